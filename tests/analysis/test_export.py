"""Traces as files for viewers, as viewers read them."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter

import pytest
from support.viewers import chrome_tracing, needs_viewers, perfetto_ui

from dask_otel.analysis import LoadError
from dask_otel.analysis.export import write
from dask_otel.analysis.otlp_json import PlainSpan

#: Nanoseconds since the epoch, as no double has it.
BEGIN = 1_800_000_000_123_456_789
TRACE = "0af7651916cd43dd8448eb211c80319c"
SCHEDULER = {"service.name": "dask-scheduler", "dask.cluster.name": "prod"}
API = {"service.name": "api"}


def plain(number, parent, name, start, end, attributes=(), *, links=(), events=(), resource=SCHEDULER, error=""):
    return PlainSpan(
        trace_id=TRACE,
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        name=name,
        kind="internal",
        start=BEGIN + start,
        end=BEGIN + end,
        status="error" if error else "unset",
        status_message=error,
        attributes=dict(attributes),
        links=tuple((TRACE, f"{other:016x}", {"dask.link.type": "dependency"}) for other in links),
        events=tuple((name, BEGIN + at, attributes) for name, at, attributes in events),
        resource=resource,
    )


def of(kind, path, **more):
    attributes = {"dask.kind": kind, "dask.span.path": path, "dask.span.root": path.partition(" / ")[0]}
    return attributes | {name.replace("__", "."): value for name, value in more.items()}


def task(path, thread, address="tcp://10.0.0.1:1"):
    return of("task", path, dask__worker__address=address, dask__worker__name="w-0", thread__id=thread)


#: A request that has two groups computed, one of which depends on the other, and a task of which fails.
SMALL = [
    plain(1, None, "GET /", 0, 90_000, resource=API),
    plain(2, 1, "Alice's", 10_000, 80_001, of("span", "Alice's", dask__verdict=("gil", "io")), error="1 task erred"),
    plain(3, 2, "load", 20_000, 50_000, of("group", "Alice's")),
    plain(4, 2, "train", 40_000, 80_001, of("group", "Alice's"), links=[3], error="1 task erred"),
    plain(
        *(5, 4, "train", 41_000, 80_001, task("Alice's", 7)),
        error="no",
        events=[("exception", 80_001, {"exception.type": "ValueError"})],
    ),
]


def chrome(spans):
    file = io.BytesIO()
    assert write(spans, file, "chrome") == len(spans)
    return json.loads(file.getvalue())


def test_a_small_trace_in_chrome_s_format():
    trace = chrome(SMALL)
    assert trace["otherData"] == {"start_unix_ns": str(BEGIN)}
    ids = {"trace_id": TRACE}
    alice = {"dask.span.path": "Alice's", "dask.span.root": "Alice's"}
    error = {"status": "error", "status_message": "1 task erred"}
    named = [
        (each["name"], each["pid"], each["tid"], *each["args"].values())
        for each in trace["traceEvents"]
        if each["ph"] == "M" and not each["name"].endswith("sort_index")
    ]
    assert named == [
        ("process_name", 1, 0, "api"),
        ("process_name", 2, 0, "dask-scheduler (prod)"),
        ("process_name", 3, 0, "worker w-0 (tcp://10.0.0.1:1)"),
        ("thread_name", 1, 1, "spans"),
        ("thread_name", 2, 2, "Alice's"),
        ("thread_name", 2, 3, "Alice's (2)"),
        ("thread_name", 3, 4, "thread 7"),
    ]
    slices = [each for each in trace["traceEvents"] if each["ph"] != "M"]
    assert slices == [
        {
            "ph": "X", "pid": 1, "tid": 1, "ts": 0, "dur": 90, "name": "GET /", "cat": "other",
            "args": ids | {"span_id": f"{1:016x}"},
        },
        {
            "ph": "X", "pid": 2, "tid": 2, "ts": 10, "dur": 70.001, "name": "Alice's", "cat": "span",
            "cname": "terrible",
            "args": ids | {"span_id": f"{2:016x}", "dask.kind": "span", "dask.verdict": ["gil", "io"]} | alice | error,
        },
        {
            "ph": "X", "pid": 2, "tid": 2, "ts": 20, "dur": 30, "name": "load", "cat": "group",
            "args": ids | {"span_id": f"{3:016x}", "dask.kind": "group"} | alice,
        },
        {"ph": "s", "pid": 2, "tid": 2, "ts": 20, "name": "link", "cat": "link", "id": 1},
        {
            "ph": "X", "pid": 2, "tid": 3, "ts": 40, "dur": 40.001, "name": "train", "cat": "group",
            "cname": "terrible",
            "args": ids | {"span_id": f"{4:016x}", "dask.kind": "group"} | alice | error,
        },
        {"ph": "f", "pid": 2, "tid": 3, "ts": 40, "name": "link", "cat": "link", "id": 1, "bp": "e"},
        {
            "ph": "X", "pid": 3, "tid": 4, "ts": 41, "dur": 39.001, "name": "train", "cat": "task",
            "cname": "terrible",
            "args": {"span_id": f"{5:016x}", **ids, **task("Alice's", 7), **error, "status_message": "no"},
        },
        # A nanosecond before the end: at the end, it would be in the next slice.
        {
            "ph": "i", "pid": 3, "tid": 4, "ts": 80, "name": "exception", "cat": "task", "s": "t",
            "args": {"exception.type": "ValueError"},
        },
    ]  # fmt: skip


def test_tracks():
    """What a worker's thread and a service do is on their tracks, wherever it belongs to."""
    worker = {"service.name": "dask-worker"}
    spans = [
        plain(9, None, "later root", 900, 950, of("span", "A root")),
        plain(1, None, "root", 0, 500, of("span", "Z root")),
        plain(2, 1, "child", 5, 90, of("span", "Z root / b")),
        plain(3, 1, "child", 10, 80, of("span", "Z root / a")),
        plain(4, 3, "task", 20, 70, task("Z root / a", 12), resource=worker),
        plain(5, 4, "SELECT", 30, 60, resource=worker),
        plain(6, 5, "remote", 40, 50, resource={"service.name": "db"}),
        plain(7, 3, "never ran", 60, 60, of("task", "Z root / a")),
        plain(8, 1, "optimize", 1, 2, {"dask.kind": "phase"}, resource=API),
        plain(10, 999, "parent is not here", 1, 2, resource={}),
    ]
    trace = chrome(spans)["traceEvents"]
    processes = {each["pid"]: each["args"]["name"] for each in trace if each["name"] == "process_name"}
    tracks = [(processes[e["pid"]], e["args"]["name"]) for e in trace if e["name"] == "thread_name"]
    scheduler, on_worker = "dask-scheduler (prod)", "worker w-0 (tcp://10.0.0.1:1)"
    assert tracks == [
        (scheduler, "Z root"),
        (scheduler, "Z root / b"),
        (scheduler, "Z root / a"),
        (scheduler, "A root"),
        ("api", "spans"),
        ("unknown service", "spans"),
        ("db", "spans"),
        (on_worker, "thread 12"),
    ]
    of_slice = {each["name"]: tracks[each["tid"] - 1] for each in trace if each["ph"] == "X"}
    assert of_slice["SELECT"] == of_slice["task"] == (on_worker, "thread 12")
    assert of_slice["never ran"] == (scheduler, "Z root / a")
    assert of_slice["remote"] == ("db", "spans")


def test_what_is_unknown_or_strange():
    spans = [
        plain(1, 2, "a circle", 0, -5, {"a": float("nan"), "b": b"\xff", "c": {"d": 1}, "lone \ud800": "\udfff"}),
        plain(2, 1, "of parents", 1, 3, links=[1, 7, 2], events=[("early", -9, {}), ("late", 99, {})]),
    ]
    no_start = plain(3, None, "when?", -BEGIN, 5)
    file = io.BytesIO()
    assert write([no_start, *spans], file, "chrome") == 2
    first, *others = (each for each in json.loads(file.getvalue())["traceEvents"] if each["ph"] != "M")
    assert (first["ts"], first["dur"]) == (0, 0)  # its end is before its start
    values = dict(list(first["args"].items())[2:])
    assert values == {"a": "nan", "b": "ff", "c": "{'d': 1}", "lone ?": "?"}
    assert [(each["ph"], each["ts"]) for each in others] == [
        ("s", 0), ("X", 0.001), ("i", 0.001), ("i", 0.002), ("f", 0.001),
    ]  # fmt: skip
    with pytest.raises(LoadError, match="no spans to export"):
        write([no_start], io.BytesIO(), "chrome")
    write(spans, io.BytesIO(), "perfetto")


def full(format_):
    """A trace with all that readers could take for something else, and arrows between its spans.

    In Chrome's format, an arrow is between the innermost slices at two times: without one between segments that begin
    together with their first groups.
    """
    hour = 3600 * 10**9
    values = {
        "dask.verdict": ["gil", "io"],
        "dask.verdict.text": "Zwei Sätze. 🐍 " + "x" * 300_000,
        "dask.waterfall.cpu.seconds": 1.5,
        "dask.critical.seconds": 0.1 + 0.2,
        "dask.task.count": 2**62 if format_ == "perfetto" else 2**53 - 1,  # more than a double has
        "dask.output.size": -(2**40),
        "dask.metrics.complete": False,
    }
    spans = [
        plain(1, None, "Alice's 🐍", 0, 50 * hour + 1, of("span", "Alice's 🐍") | values),
        # No length, where others begin or end.
        plain(3, 1, "at the start", 0, 0, of("group", "Alice's 🐍")),
        plain(4, 1, "at the end", 50 * hour + 1, 50 * hour + 1, of("group", "Alice's 🐍")),
        # The next segment begins when this one ends, and has a group that has the same times.
        plain(
            5,
            None,
            "Alice's 🐍",
            50 * hour + 1,
            50 * hour + 9_000_001,
            of("span", "Alice's 🐍"),
            links=[1] if format_ == "perfetto" else [],
        ),
        plain(2, 5, "all the time", 50 * hour + 1, 50 * hour + 9_000_001, of("group", "Alice's 🐍")),
    ]
    # Groups that overlap and touch, each of which depends on the one before. The viewer of chrome://tracing takes times
    # of less than a microsecond for the same.
    for number in range(10, 60):
        start = 10_001 * (number * 7 % 100 + number * 20)
        end = start + 10_001 * (number % 5 * 20)
        spans.append(plain(number, 1, f"group-{number}", start, end, of("group", "Alice's 🐍"), links=[number - 1]))
        for more in range(3):
            at = start + more * 50_000
            spans.append(
                plain(
                    *(number * 100 + more, number, "task", at, at + 100_000, task("Alice's 🐍", number % 2)),
                    error="no" if more == 2 else "",
                    # Some before and some after their span.
                    events=[("exception", at + 100_000 + (number % 3 - 1) * 10**6, {"exception.type": "ValueError"})]
                    if more == 2
                    else (),
                )
            )
    return spans


def expected_arrows(spans):
    starts = {span.span_id: span.start for span in spans}
    out = []
    for span in spans:
        for _, other, _ in span.links:
            if other in starts and starts[other] != span.start:
                out.append(tuple(sorted((other, span.span_id), key=starts.get)))
    return sorted(out)


def check(spans, slices, arrows, instants):
    """Compare with what was read: process, track, name, start, duration, id, id of the slice around, and arguments."""
    by_id = {span.span_id: span for span in spans}
    assert Counter(each[5] for each in slices) == Counter(by_id.keys())
    inside = 0
    for _, track, name, start, duration, id_, around, arguments in slices:
        span = by_id[id_]
        assert (name, start, duration) == (span.name, span.start, span.end - span.start)
        if "thread.id" in span.attributes:
            assert track.partition(" (")[0] == f"thread {span.attributes['thread.id']}"
        else:
            assert track.partition(" (")[0] == span.attributes["dask.span.path"]
        assert arguments == span.attributes | {"trace_id": TRACE, "span_id": id_} | (
            {"status": "error", "status_message": span.status_message} if span.status == "error" else {}
        )
        if around is not None:
            inside += 1
            assert by_id[around].start <= span.start
            assert span.end <= by_id[around].end
            ancestor = span.parent_id
            while ancestor != around:
                ancestor = by_id[ancestor].parent_id
    assert inside > 10
    assert sum(each[4] for each in slices) == sum(span.end - span.start for span in spans)
    assert sorted(arrows) == expected_arrows(spans)
    assert len(arrows) > 40
    assert sorted(instants) == sorted(span.span_id for span in spans if span.events)


@needs_viewers
@pytest.mark.slow
@pytest.mark.parametrize("format_", ["perfetto", "chrome"])
def test_perfetto_reads_it(tmp_path, format_):
    spans = full(format_)
    trace = tmp_path / "trace"
    with trace.open("wb") as file:
        write(spans, file, format_)
    rows, of_sets, flows, shifts = asyncio.run(_read_by_perfetto(trace, tmp_path / "profile"))
    arguments = {}
    for set_id, key, type_, *values in of_sets:
        value = next((each for each in values if each is not None), None)
        arguments.setdefault(set_id, {})[key] = bool(value) if type_ == "bool" else value
    prefix, shift = ("debug.", 0) if format_ == "perfetto" else ("args.", BEGIN)
    assert shifts == ([(0,)] if format_ == "perfetto" else [])  # from times in the file to those on the wall
    ids = {row[5]: arguments[row[7]].get(f"{prefix}span_id") for row in rows}
    slices, instants = [], []
    for process, track, name, start, duration, id_, around, set_id in rows:
        assert process == ("worker w-0 (tcp://10.0.0.1:1)" if track.startswith("thread") else "dask-scheduler (prod)")
        if name == "exception":
            assert arguments[set_id][f"{prefix}exception.type"] == "ValueError"
            instants.append(ids[around])
            continue
        values = {key.removeprefix(prefix): value for key, value in arguments[set_id].items() if prefix in key}
        if "dask.verdict[0]" in values:
            values["dask.verdict"] = [values.pop("dask.verdict[0]"), values.pop("dask.verdict[1]")]
        slices.append((process, track, name, start + shift, duration, ids[id_], ids.get(around), values))
    check(spans, slices, [(ids[begin], ids[end]) for begin, end in flows], instants)


async def _read_by_perfetto(trace, profile):
    async with perfetto_ui(trace, profile) as ui:
        errors = await ui.query("select name, value from stats where severity in ('error', 'data_loss') and value > 0")
        assert errors == []
        rows = await ui.query(
            """select process.name, track, s.name, s.ts, s.dur, s.id, s.parent_id, s.arg_set_id from slice s
            join (select id as track_id, name as track, upid from process_track
                  union select thread_track.id, thread.name, upid from thread_track join thread using (utid))
            using (track_id) join process using (upid)"""
        )
        arguments = await ui.query("select arg_set_id, key, value_type, int_value, string_value, real_value from args")
        arrows = await ui.query("select slice_out, slice_in from flow")
        return rows, arguments, arrows, await ui.query("select clock_value - ts from clock_snapshot where clock_id = 1")


@needs_viewers
@pytest.mark.slow
def test_chrome_tracing_reads_it(tmp_path):
    spans = full("chrome")
    trace = tmp_path / "trace.json"
    with trace.open("wb") as file:
        write(spans, file, "chrome")
    read = asyncio.run(chrome_tracing(trace, tmp_path / "profile"))
    assert read["warnings"] == []
    slices = [[*each[:3], BEGIN + each[3], *each[4:]] for each in read["slices"] if each[2] != "exception"]
    instants = [each[6] for each in read["slices"] if each[2] == "exception"]
    check(spans, slices, [tuple(each) for each in read["arrows"]], instants)
