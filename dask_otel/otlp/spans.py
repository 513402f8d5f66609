"""Fine performance metrics as attributes: summed over prefixes, their number capped.

What each fact is called on a span. These names are a contract: dashboards and people's searches rest on them.

``docs/attributes.md`` lists them all; a test compares the two. Sizes and counts are ints, seconds and ratios
doubles (TraceQL's literals match only their own type). What was not measured is absent.

Records to OTel spans, one pure function.

``ReadableSpan`` is built directly: a tracer's ``start_span`` takes no span id and costs eight times as much. A test
compares the result with what a tracer makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ..schema import MAX_NAME, clean, clean_items, identifier
from ..spantree.counts import Tally, quantile
from ..spantree.events import Metrics
from ..spantree.records import Failure, GroupRecord, PendingRecord, Record, SegmentRecord, TaskRecord
from .sampling import Decided, caller_context

__all__ = [
    "Attributes",
    "SpanFactory",
    "attributes",
    "error_description",
    "exception_event",
    "fine_metrics",
    "identity",
    "kind_of",
]

#: Distinct activities per context; the sums of the rest are under ``other``.
MAX_SPAN_ACTIVITIES = 32


def fine_metrics(metrics: Metrics) -> dict[str, int | float]:
    """Sum fine metrics over prefixes: ``("execute", prefix, activity, unit)``, ``("p2p", where, activity, unit)``."""
    sums: dict[str, dict[tuple[str, str], float]] = {}
    for key, value in metrics.items():
        if key[0] == "execute" and len(key) == 4:
            context = "execute"
        elif key[0] == "p2p" and len(key) == 4:
            context = f"p2p.{identifier(key[1])}"
        else:
            continue
        by_activity = sums.setdefault(context, {})
        activity = (identifier(key[2]), identifier(key[3]))
        by_activity[activity] = by_activity.get(activity, 0) + value
    out: dict[str, int | float] = {}
    for context, by_activity in sums.items():
        for (activity_name, unit), value in _capped(by_activity).items():
            out[f"dask.{context}.{activity_name}.{unit}"] = _metric_value(value, unit)
    return out


def _capped(by_activity: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
    names = sorted({activity for activity, _ in by_activity})
    if len(names) <= MAX_SPAN_ACTIVITIES:
        return by_activity
    kept = set(names[:MAX_SPAN_ACTIVITIES])
    out: dict[tuple[str, str], float] = {}
    for (activity, unit), value in by_activity.items():
        capped = (activity if activity in kept else "other", unit)
        out[capped] = out.get(capped, 0) + value
    return out


def _metric_value(value: float, unit: str) -> int | float:
    """One type for each name: bytes and counts are ints, seconds and users' own units doubles."""
    return round(value) if unit in ("bytes", "count") else float(value)


Attributes = dict[str, str | bool | int | float | list[str]]

_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


_KINDS: dict[type[Record], str] = {
    SegmentRecord: "span",
    GroupRecord: "group",
    TaskRecord: "task",
    PendingRecord: "pending",
}


def kind_of(record: Record) -> str:
    """Value of ``dask.kind``."""
    return _KINDS[type(record)]


def attributes(record: Record) -> Attributes:
    """Attributes of a record, the more important first: a limit cuts the last ones."""
    if isinstance(record, SegmentRecord):
        return _segment(record)
    if isinstance(record, GroupRecord):
        return _group(record)
    if isinstance(record, TaskRecord):
        return _task(record)
    return identity(record)


def error_description(failure: Failure) -> str:
    """Status description: how much failed, and the first exception's message (the type is ``error.type``)."""
    counts = []
    if failure.erred:
        counts.append(f"{_tasks(failure.erred)} erred")
    if failure.upstream_failed:
        counts.append(f"{_tasks(failure.upstream_failed)} failed upstream")
    if failure.graphs:
        counts.append(f"{failure.graphs} {'graph' if failure.graphs == 1 else 'graphs'} could not be taken in")
    if not counts:  # a task's own
        return failure.message
    return ", ".join(counts) + (f"; first: {failure.message}" if failure.message else "")


def exception_event(record: Record) -> Attributes | None:
    """Attributes of the event ``exception`` of a failed task's span."""
    if not isinstance(record, TaskRecord) or not record.run.error:
        return None
    error = record.run.error
    out: Attributes = {"exception.type": error.type, "exception.message": error.message}
    if error.traceback:
        out["exception.stacktrace"] = error.traceback
    return out


def _tasks(number: int) -> str:
    return f"{number} {'task' if number == 1 else 'tasks'}"


def identity(record: Record) -> Attributes:
    """Attributes that every span has."""
    span = record.span
    out: Attributes = {
        "dask.kind": kind_of(record),
        "dask.span.id": span.id,
        "dask.span.path": clean(span.path, MAX_NAME),
        "dask.span.root": clean(span.tags[0], MAX_NAME),
    }
    if record.failure:
        out["error.type"] = record.failure.type
    return out


def _segment(record: SegmentRecord) -> Attributes:
    out = identity(record)
    out["dask.span.tags"] = list(record.span.tags)
    out["dask.span.segment"] = record.number
    out["dask.span.result"] = record.result
    if record.previous_id is not None:
        out["dask.segment.previous_id"] = f"{record.previous_id:016x}"
    if record.counted_in:
        out["dask.span.counted_in"] = _one_or_list(record.counted_in)
    if record.elsewhere:
        out.update(_outcomes("dask.elsewhere", record.elsewhere))
    if record.includes:
        out["dask.span.includes"] = list(record.includes)
    out.update(_tally(record.tally))
    for status, name in (("error", "failed"), ("cancelled", "cancelled")):
        if count := record.graph_failures.get(status):
            out[f"dask.graph.{name}"] = count
    if record.truncated_groups:
        out["dask.truncated.groups"] = record.truncated_groups
    if record.truncated_tasks:
        out["dask.truncated.tasks"] = record.truncated_tasks
    if record.dropped_groups:
        out["dask.dropped.groups"] = record.dropped_groups
    if record.dropped_tasks:
        out["dask.dropped.tasks"] = record.dropped_tasks
    if record.dropped_spans:
        out["dask.dropped.spans"] = record.dropped_spans
    out.update(_thread_time(record))
    if record.tally.run_start:
        out["dask.span.queue_time"] = max(0.0, record.tally.run_start - record.start)
    for part, seconds in record.wall.items():
        out[f"dask.wall.{part}"] = seconds
    if record.graph_seconds:
        out["dask.graph.update_time"] = record.graph_seconds
    out["dask.metrics.complete"] = record.metrics_complete
    out.update(_clients(record.clients))
    if record.collections:
        out["dask.collections"] = list(record.collections)
    if record.code:
        out["code.file.path"], out["code.line.number"] = record.code
    for name, values in record.annotations.items():
        out[f"dask.annotation.{name}"] = _one_or_list(values)
    out.update(fine_metrics(record.metrics))
    return out


def _group(record: GroupRecord) -> Attributes:
    out = identity(record)
    if record.folded:
        out["dask.group.folded"] = record.folded
    else:
        out["dask.group.name"] = clean(record.group, MAX_NAME)
        out["dask.task.prefix"] = clean(record.name, MAX_NAME)
    if record.dependencies:
        out["dask.group.dependencies"] = list(record.dependencies)
    out.update(_tally(record.tally))
    if record.truncated_tasks:
        out["dask.truncated.tasks"] = record.truncated_tasks
    if record.types:
        out["dask.task.types"] = sorted(record.types, key=lambda type_: (-record.types[type_], type_))
    if record.buckets:
        for name, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            out[f"dask.task.duration.{name}"] = quantile(record.buckets, q)
    if record.metrics is not None:
        out.update(fine_metrics(record.metrics))
    elif not record.folded:
        out["dask.group.prefix_shared"] = True
    return out


def _task(record: TaskRecord) -> Attributes:
    run = record.run
    out = identity(record)
    out["dask.task.key"] = clean(run.key, MAX_NAME)
    out["dask.group.name"] = clean(run.group, MAX_NAME)
    out["dask.task.prefix"] = clean(run.prefix, MAX_NAME)
    if run.run_id >= 0:
        out["dask.task.run_id"] = run.run_id
    out["dask.task.picked"] = record.reason
    optional = {
        "dask.task.type": run.type,
        "dask.output.size": run.nbytes,
        "dask.worker.address": run.worker,
        "dask.worker.name": run.worker_name,
        "thread.id": run.thread,
    }
    out.update({name: value for name, value in optional.items() if value is not None})
    out.update(_durations(run.durations))
    return out


def _tally(tally: Tally) -> Attributes:
    out = _outcomes("dask.task", tally)
    out["dask.output.size"] = tally.nbytes
    out.update(_durations(tally.durations))
    if tally.workers:
        out["dask.worker.count"] = len(tally.workers)
        if total := sum(tally.workers.values()):
            out["dask.worker.share.max"] = max(tally.workers.values()) / total
    return out


def _outcomes(under: str, tally: Tally) -> Attributes:
    out: Attributes = {f"{under}.count": tally.tasks, f"{under}.completed": tally.completed}
    for outcome, count in tally.outcomes.items():
        out[f"{under}.{outcome}"] = count
    return out


def _durations(micros: Mapping[str, int]) -> Attributes:
    """Sum seconds by action; names that differ only in what a name may not hold become one."""
    out: dict[str, float] = {}
    for action, value in micros.items():
        name = f"dask.duration.{identifier(action)}"
        out[name] = out.get(name, 0.0) + value / 1e6
    return dict(out)


def _one_or_list(values: tuple[str, ...]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _thread_time(record: SegmentRecord) -> Attributes:
    """How much of the cluster there was, and how much of it was used.

    A task that secedes is busy without one of its worker's threads, so that more may be used than there was: then the
    ratio, and what others used, mean nothing.
    """
    busy = sum(v for k, v in record.metrics.items() if k[0] == "execute" and k[-1] == "seconds")
    mine = record.threads_available - record.threads_others
    out: Attributes = {"dask.thread_time.available": record.threads_available}
    if mine >= 0:
        out["dask.thread_time.others"] = record.threads_others
    if record.metrics:
        out["dask.thread_time.busy"] = float(busy)
        if 0 <= busy <= mine and mine > 0:
            out["dask.efficiency"] = busy / mine
    return out


def _clients(ids: tuple[str, ...]) -> Attributes:
    if not ids:
        return {}
    # Client.id is "Client-<uuid>" or "Client-<name>-<uuid>"
    names = [_UUID.sub("", id_).partition("-")[2] for id_ in ids]
    names = [name for name in dict.fromkeys(names) if name]
    out: Attributes = {"dask.client.id": _one_or_list(ids)}
    if names:
        out["dask.client.name"] = _one_or_list(tuple(names))
    return out


_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
#: What else a group depends on is named in an attribute.
MAX_LINKS = 32


class SpanFactory:
    """Makes OTel spans of one process.

    Parameters
    ----------
    resource
        What process.
    scope
        Who made the spans: this package.
    limits
        The standard ``OTEL_*_LIMIT`` variables.
    redact
        Takes out of a record what must not be shown.
    decided
        Says what the sampler decided of a record's trace.
    """

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        limits: SpanLimits,
        redact: Callable[[Record], Record] = lambda record: record,
        decided: Callable[[Record], Decided] = lambda record: Decided(takes=True),
    ) -> None:
        self._redact = redact
        self._decided = decided
        self._resource = resource
        self._scope = scope
        self._limits = limits

    def span(self, record: Record) -> ReadableSpan:
        """Make a span of a record."""
        record = self._redact(record)
        failure = record.failure
        status = Status(StatusCode.ERROR, clean(error_description(failure))) if failure else Status(StatusCode.UNSET)
        return self._make(record, attributes(record), self._events(record), self._links(record), status)

    def bare(self, record: Record) -> ReadableSpan:
        """Make a span of what identifies a record: something in the rest cannot be converted, and it has children."""
        record = self._redact(record)
        values = identity(record) | {"dask.dropped.attributes": True}
        return self._make(record, values, (), (), Status(StatusCode.ERROR if record.failure else StatusCode.UNSET))

    def _make(
        self, record: Record, values: Attributes, events: Sequence[Event], links: Sequence[Link], status: Status
    ) -> ReadableSpan:
        limits = self._limits
        _, extra, state = self._decided(record)
        parent = None if record.parent_id is None else _context(record.trace_id, record.parent_id, state)
        kind = SpanKind.INTERNAL
        if record.is_top:
            values = values | dict(extra)
            if record.caller:
                parent, kind = caller_context(record.caller, state), SpanKind.SERVER
        return ReadableSpan(
            name=clean(record.name, MAX_NAME) or "(no name)",
            context=_context(record.trace_id, record.span_id, state),
            parent=parent,
            resource=self._resource,
            attributes=_bounded(values, limits.max_span_attributes, limits.max_span_attribute_length),
            events=events,
            links=links,
            kind=kind,
            status=status,
            start_time=_nanoseconds(record.start),
            end_time=_nanoseconds(record.end),
            instrumentation_scope=self._scope,
        )

    def _links(self, record: Record) -> Sequence[Link]:
        limits = self._limits
        most = MAX_LINKS if limits.max_links is None else min(MAX_LINKS, limits.max_links)
        links: BoundedList[Link] = BoundedList(most)
        for link in record.links[:most]:
            attributes = _bounded(
                {"dask.link.type": link.kind}, limits.max_link_attributes, limits.max_attribute_length
            )
            links.append(Link(_context(link.trace_id, link.span_id), attributes))
        links.dropped = len(record.links) - len(links)
        return links

    def _events(self, record: Record) -> Sequence[Event]:
        limits = self._limits
        events: BoundedList[Event] = BoundedList(limits.max_events)
        exception = exception_event(record)
        if exception:
            attributes = _bounded(exception, limits.max_event_attributes, limits.max_attribute_length)
            events.append(Event("exception", attributes, _nanoseconds(record.end)))
        return events


def _bounded(values: Attributes, limit: int | None, longest: int | None) -> BoundedAttributes:
    """Clean the values and keep the first ``limit`` of them; the SDK alone would keep the last."""
    kept = list(values.items())[:limit]
    bounded = BoundedAttributes(
        limit,
        # Cut here: the SDK warns of each value that it cuts.
        {clean(name, MAX_NAME): _clean_value(value, longest) for name, value in kept},
        max_value_len=longest,
    )
    bounded.dropped = len(values) - len(kept)
    return bounded


def _context(trace_id: int, span_id: int, state: TraceState | None = None) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state)


def _clean_value(
    value: str | bool | int | float | list[str], longest: int | None
) -> str | bool | int | float | list[str]:
    if isinstance(value, str):
        return clean(value)[:longest]
    if isinstance(value, list):
        return [item[:longest] for item in clean_items(value)]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # OTLP's ints have 64 bits
        return float(value)
    return value


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
