"""The columns of data frames: by the schema, whatever a trace has."""

from __future__ import annotations

import pandas as pd
import pytest

from dask_otel import schema
from dask_otel.analysis import LoadError, load

TRACE = "ab" * 16


def span(span_id, kind=None, *, parent="", start=1, end=2, name="x", **attributes):
    values = {"dask.kind": kind, "dask.span.root": "nightly"} | attributes if kind else attributes
    return {
        "traceId": TRACE,
        "spanId": f"{span_id:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": name,
        "startTimeUnixNano": str(start * 10**9),
        "endTimeUnixNano": str(end * 10**9),
        "attributes": [{"key": key, "value": as_value(value)} for key, value in values.items()],
    }


def as_value(value):
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [as_value(each) for each in value]}}
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    return {kinds[type(value)]: str(value) if type(value) is int else value}


def loaded(*spans, **resource):
    attributes = [{"key": key.replace("_", "."), "value": as_value(value)} for key, value in resource.items()]
    resource_of = {"attributes": attributes}
    return load([{"resourceSpans": [{"resource": resource_of, "scopeSpans": [{"spans": [each]}]}]} for each in spans])


FIXED = {
    **dict.fromkeys(("trace_id", "span_id", "parent_id", "name", "service", "kind"), "string"),
    **dict.fromkeys(("start", "end"), "datetime64[ns, UTC]"),
    "duration": "float64",
    **dict.fromkeys(("status", "status_message"), "string"),
}
TYPES = {"string": "string", "int": "Int64", "double": "Float64", "bool": "boolean"}


@pytest.mark.parametrize(
    ("frame", "kinds"),
    [
        ("spans", {schema.SEGMENT}),
        ("groups", {schema.GROUP}),
        ("tasks", {schema.TASK}),
        ("phases", {schema.PHASE, schema.CLIENT_PHASE}),
        ("others", set()),
    ],
)
def test_each_frame_has_the_columns_of_the_schema_even_without_rows(frame, kinds):
    runs = loaded(span(1))
    expected = dict(FIXED)
    for name, attribute in schema.ATTRIBUTES.items():
        if "<" not in name and kinds & {*attribute.on}:
            expected[name] = TYPES.get(attribute.type, "object")
    assert {name: str(dtype) for name, dtype in getattr(runs, frame).dtypes.items()} == expected
    links = ["trace_id", "span_id", "linked_trace_id", "linked_span_id", "type"]
    assert {name: str(dtype) for name, dtype in runs.links.dtypes.items()} == dict.fromkeys(links, "string")


def test_types_are_those_of_the_schema_whatever_came():
    runs = loaded(
        span(
            1,
            "span",
            **{
                "dask.task.count": "12",  # a backend that has only texts
                "dask.task.completed": 3.0,
                "dask.task.erred": "many",
                "dask.efficiency": 1,
                "dask.metrics.complete": "true",
                "dask.span.path": 7,
                "dask.client.id": "one",
                "dask.client.name": ("one", "two"),
                "dask.execute.thread_cpu.seconds": 1,
                "dask.execute.disk_read.bytes": 2.0,
                "dask.p2p.foreground.p2p_shards.count": 5,
                "dask.annotation.my.team": "red",
                "mine": 1.5,
            },
        ),
        span(2, "span", **{"mine": 2}),
        service_name="dask-scheduler",
        dask_cluster_name="prod",
    )
    first, second = runs.spans.iloc[0], runs.spans.iloc[1]
    assert (first["dask.task.count"], first["dask.task.completed"], first["dask.task.erred"]) == (12, 3, pd.NA)
    assert (first["dask.efficiency"], first["dask.metrics.complete"], first["dask.span.path"]) == (1.0, True, "7")
    assert (first["dask.client.id"], first["dask.client.name"]) == (("one",), ("one", "two"))
    assert first["dask.annotation.my.team"] == ("red",)
    assert (second["dask.client.id"], second["dask.annotation.my.team"]) == (None, None)
    types = {name: str(runs.spans[name].dtype) for name in runs.spans if name not in FIXED}
    assert types["dask.execute.thread_cpu.seconds"] == types["mine"] == "Float64"
    assert types["dask.execute.disk_read.bytes"] == types["dask.p2p.foreground.p2p_shards.count"] == "Int64"
    assert list(runs.spans["dask.cluster.name"]) == ["prod", "prod"]
    assert (first["service"], first["parent_id"], first["duration"]) == ("dask-scheduler", pd.NA, 1.0)
    assert first["start"] == pd.Timestamp(1, unit="s", tz="UTC")


def test_kinds_are_told_apart():
    runs = loaded(
        span(1, "span"),
        span(2, "group"),
        span(3, "task"),
        span(4, "actor"),
        span(5, "phase", **{"dask.phase": "take_in"}),
        span(6, **{"dask.phase": "gather"}),
        span(7, **{"http.method": "GET", "dask.wait.time": 1.0}),
    )
    frames = ("spans", "groups", "tasks", "phases", "others")
    found = {name: list(getattr(runs, name)["span_id"].str.slice(-1)) for name in frames}
    assert found == {"spans": ["1"], "groups": ["2"], "tasks": ["3", "4"], "phases": ["5", "6"], "others": ["7"]}


def test_what_is_there_twice_is_loaded_once():
    runs = loaded(span(1, "span"), span(2, "group", parent=1), span(1, "span"), span(2, "group", parent=1))
    assert (len(runs.spans), len(runs.groups)) == (1, 1)


def test_a_pending_span_stands_for_a_segment_that_is_not_there():
    pending = [span(n, "pending", parent=1, end=n, **{"dask.progress.completed": n}) for n in (10, 12, 11)]
    runs = loaded(*pending)
    assert list(runs.spans["dask.progress.completed"]) == [12]
    assert list(runs.spans["dask.kind"]) == ["pending"]
    runs = loaded(*pending, span(1, "span"))
    assert list(runs.spans["dask.kind"]) == ["span"]


def test_one_trace_of_many():
    other = span(3, "span") | {"traceId": "f" * 32}
    runs = loaded(span(1, "span"), span(2, "group", parent=1), other | {"startTimeUnixNano": "1"})
    assert runs.trace_ids == ["f" * 32, TRACE]
    one = runs.trace(TRACE.upper())
    assert repr(one) == "<Runs: 1 traces, 1 spans, 1 groups, 0 tasks, 0 phases, 0 links, 0 others>"
    assert list(one.groups.index) == [0]
    with pytest.raises(LoadError, match="trace_id='abc': no span of this trace was loaded"):
        runs.trace("abc")
