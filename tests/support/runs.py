"""Spans of made-up runs, as attributes have them in traces."""

from __future__ import annotations

import json
from types import SimpleNamespace

from click.testing import CliRunner

from dask_otel import schema
from dask_otel.analysis.frames import make_frames
from dask_otel.analysis.otlp_json import PlainSpan
from dask_otel.cli.main import dask_otel as commands
from dask_otel.cli.sources import read

#: When runs begin, seconds since the epoch.
BEGIN = 1_800_000_000


class MadeRun:
    """A run of one segment, ``seconds`` long, on ``threads`` threads.

    Parameters
    ----------
    parts
        Wall seconds by part of the waterfall.
    gaps, path
        Seconds of the critical path by cause, and by label of a step.
    """

    def __init__(
        self,
        number=1,
        *,
        root="etl",
        seconds=10.0,
        threads=4.0,
        parts=None,
        gaps=None,
        path=None,
        at=0.0,
        result="success",
        status="unset",
        message="",
        **attributes,
    ):
        self.trace_id = f"{number:032x}"
        self.root = root
        self.at = BEGIN + at
        self.spans = []
        gaps, path = gaps or {}, path or {}
        values = {
            schema.SPAN_TAGS: (root,),
            schema.SPAN_RESULT: result,
            **{schema.WATERFALL[part]: wall * threads for part, wall in (parts or {}).items()},
            **({schema.WATERFALL_THREADS: threads} if parts else {}),
            **{schema.CRITICAL_GAP[cause]: value for cause, value in gaps.items()},
        }
        if path:
            values |= {
                schema.CRITICAL_SECONDS: sum(path.values()),
                schema.CRITICAL_EDGE["data"]: sum(path.values()),
                schema.CRITICAL_STEPS: tuple(path),
                schema.CRITICAL_STEPS_SECONDS: tuple(path.values()),
            }
        self.add(root, schema.SEGMENT, root, 0.0, seconds, status, message, **values | attributes)

    def add(self, name, kind, path, start, end, status="unset", message="", **attributes):
        """Add a span from ``start`` to ``end``, seconds after the run's begin."""
        attributes = {schema.KIND: kind, schema.SPAN_PATH: path, schema.SPAN_ROOT: self.root, **attributes}
        self.spans.append(
            PlainSpan(
                trace_id=self.trace_id,
                span_id=f"{int(self.trace_id, 16) * 10_000 + len(self.spans) + 1:016x}",
                parent_id=self.spans[0].span_id if self.spans else "",
                name=name,
                kind="internal",
                start=round((self.at + start) * 1e9),
                end=round((self.at + end) * 1e9),
                status=status,
                status_message=message,
                attributes={name: value for name, value in attributes.items() if value is not None},
                links=(),
                events=(),
                resource={"service.name": "dask-scheduler"},
            )
        )
        return self

    def group(self, label, start, end, *, tasks=1, compute=None, p50=None, longest=None, **attributes):
        """Add a group; its label is the path of its span and its prefix."""
        path, _, prefix = label.rpartition(" / ")
        values = {
            schema.TASK_PREFIX: prefix,
            schema.TASK_COUNT: tasks,
            schema.DURATION("compute"): compute,
            schema.TASK_DURATION_QUANTILES[0.5]: p50,
            schema.TASK_DURATION_QUANTILES[1.0]: longest,
        }
        return self.add(prefix, schema.GROUP, path, start, end, **values | attributes)

    def failed(self, label, error_type, message):
        """Add the span of a failed task."""
        path, _, prefix = label.rpartition(" / ")
        values = {schema.TASK_PREFIX: prefix, schema.ERROR_TYPE: error_type}
        return self.add(f"{prefix}-1", schema.TASK, path, 0.0, 1.0, "error", message, **values)


def frames(*runs):
    """Data frames of runs."""
    return SimpleNamespace(**make_frames([span for run in runs for span in run.spans]))


def write(path, *runs):
    """Write the spans of runs as OTLP in JSON, a line for each run; return the path."""
    with path.open("w", encoding="utf-8") as file:
        for run in runs:
            resource = {"attributes": _attributes(run.spans[0].resource)}
            scope = {"spans": [_span(span) for span in run.spans]}
            file.write(json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}) + "\n")
    return path


def _span(span):
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "name": span.name,
        "kind": 1,
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes(span.attributes),
        "status": {"code": 2, "message": span.status_message} if span.status == "error" else {},
    }


def _attributes(values):
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value):
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    kind = {bool: "boolValue", int: "intValue", float: "doubleValue", str: "stringValue"}[type(value)]
    return {kind: str(value) if kind == "intValue" else value}


def run_command(*arguments, exit_code=0):
    """Run a command of dask-otel; return what it printed."""
    read.cache_clear()
    done = CliRunner().invoke(commands, [*map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == exit_code, done.output
    return done
