"""The last finished runs that the page keeps: how many, how large, and what is left out."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from dataclasses import replace
from random import Random

import pytest
from support.large import large_trace
from support.memory import MemoryExporter, make_sink
from support.records import group, pending, phase, root_segment, segment, task

from dask_otel.otlp import recent_runs
from dask_otel.otlp.recent_runs import CHUNK, MAX_OPEN, MAX_RUN_BYTES, MAX_SPANS, RecentRuns, RunId
from dask_otel.otlp.spans import attributes, cleaned
from dask_otel.otlp.transport import Sender
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import MAX_IN_A_ROW, Safety
from dask_otel.schema import DROPPED_ATTRIBUTES
from dask_otel.spantree.events import SpanInfo
from dask_otel.spantree.records import SegmentRecord

#: What all runs together may take, as documented.
LIMIT = 8 * 2**20


@pytest.fixture
def runs():
    kept = RecentRuns(20, Redactor(Capture()), Safety())
    yield kept
    kept.close()


def top(number, **changes):
    info = SpanInfo(f"id-{number}", (f"root {number}",), None, 1.0)
    return root_segment(trace_id=number, span_id=number, span=info, top=info, name=info.tags[0], **changes)


def below(record, number, make=group, **changes):
    """A record of the run of a top."""
    placed = {"trace_id": record.trace_id, "parent_id": record.span_id, "top": record.top, "span_id": number}
    return make(**placed | changes)


def put(runs, records):
    """Add a large trace as the sweep does: what leaves together at a time."""
    together = []
    for record in records:
        together.append(record)
        if isinstance(record, SegmentRecord):
            runs.add(together)
            together = []
            runs._pack()


def rows_of(runs, record):
    return {row["id"]: row for row in runs.read(record.trace_id, record.span_id)["rows"]}


def test_rows_have_what_is_sent(runs):
    run = top(1)
    inside = [below(run, 5), below(run, 7, task)]
    runs.add([*inside, run])
    rows = rows_of(runs, run)
    assert [rows[f"{record.span_id:016x}"]["attributes"] for record in (run, *inside)] == [
        cleaned(attributes(record)) for record in (run, *inside)
    ]
    failed = rows[f"{7:016x}"]
    assert (failed["kind"], failed["parent"], failed["error"]) == ("task", f"{1:016x}", "boom")
    assert failed["exception"]["exception.stacktrace"] == "Traceback: …"
    assert rows[f"{5:016x}"]["links"] == [[f"{1:032x}", f"{6:016x}", "dependency"]]
    assert runs.read(1, 2) is None


def test_a_run_that_is_not_over_and_one_of_the_same_trace(runs):
    one = top(1)
    other = replace(one, span_id=2, number=1)
    runs.add([below(one, 5, segment)])
    assert runs.latest(1) is None
    assert [row["id"] for row in runs.read(1, None)["rows"]] == [f"{5:016x}"]
    runs.add([one])
    runs.add([pending()])
    runs.add([other])
    assert runs.read(1, None) is None
    assert set(rows_of(runs, one)) == {f"{1:016x}", f"{5:016x}"}
    assert runs.read(1, 2)["others"] == [RunId(1, 1)]
    assert runs.latest(1) == RunId(1, 2)


def test_the_oldest_are_forgotten_and_not_even_packed(runs, monkeypatch):
    packed = []
    pack_one = runs._pack_one
    monkeypatch.setattr(
        runs, "_pack_one", lambda records, left_out: (packed.append(records), pack_one(records, left_out))
    )
    all_runs = [top(number) for number in range(1, 101)]
    with runs._packing:  # the thread waits
        for run in all_runs:
            runs.add([below(run, 5, segment)])
            runs.add([run])
    found = [runs.read(run.trace_id, run.span_id) is not None for run in all_runs]
    assert found == [False] * 80 + [True] * 20
    assert [runs.has(RunId(run.trace_id, run.span_id)) for run in all_runs] == found
    assert len(packed) == 40


def test_a_record_that_cannot_be_converted_costs_its_attributes(runs):
    run = top(1, metrics={("execute", "inc", "thread-cpu", "seconds"): "not a number"})
    runs._safety.logs_messages = False
    runs.add([run])
    assert rows_of(runs, run)[f"{1:016x}"]["attributes"][DROPPED_ATTRIBUTES] is True
    assert runs._safety.failures.total() == 1


@pytest.mark.parametrize("part", ["_add", "_pack_one", "row"])
def test_a_fault_costs_nothing_but_the_page(part, monkeypatch):
    def fail(*args):
        raise ValueError

    monkeypatch.setattr(RecentRuns, part, fail)
    safety, exporter = Safety(), MemoryExporter()
    sink = make_sink(Sender("memory", exporter), safety)
    sink.recent_runs = RecentRuns(20, Redactor(Capture()), safety)
    for number in range(1, 2 * MAX_IN_A_ROW):
        sink.put([top(number)])
        sink.recent_runs._pack()
    sink.close(5)
    assert len(exporter.spans()) == 2 * MAX_IN_A_ROW - 1
    assert safety.failures["page", "ValueError"] >= 2 * MAX_IN_A_ROW - 1
    assert safety.gave_up is False


def test_of_too_many_spans_those_that_are_worth_most_are_kept(runs):
    run = top(1)
    records = []
    for number in range(600):  # tasks that were slow, groups, segments; the last segments failed
        failure = run.failure if number >= 550 else None
        child = below(run, 10_000 + number, segment, failure=failure)
        records += [
            below(run, 30_000 + number, task, failure=None, parent_id=20_000 + number),
            below(run, 20_000 + number, failure=None, parent_id=child.span_id),
            child,
        ]
    put(runs, [*records, run])
    found = runs.read(1, 1)
    ids = {int(row["id"], 16) for row in found["rows"]}
    assert len(ids) <= MAX_SPANS
    assert len(ids) + found["left_out"] == len(records) + 1
    assert {1, *range(10_000, 10_600)} <= ids
    assert len(ids) > MAX_SPANS - CHUNK
    assert not [number for number in ids if number >= 30_000]


def test_failed_spans_beyond_the_limit(runs):
    run = top(1)
    for number in range(30):
        runs.add([below(run, 1000 * number + each, segment) for each in range(100, 200)])
        runs._pack()
    runs.add([run])
    found = runs.read(1, 1)
    assert f"{1:016x}" in {row["id"] for row in found["rows"]}
    assert len(found["rows"]) + found["left_out"] == 3001


def test_three_thousand_groups(runs):
    records = large_trace(max_groups=500)
    put(runs, records)
    run = records[-1]
    found = runs.read(run.trace_id, run.span_id)
    assert 900 < len(found["rows"]) <= MAX_SPANS
    assert len(found["rows"]) + found["left_out"] == len(records)
    kept = {row["id"] for row in found["rows"]}
    assert {f"{record.span_id:016x}" for record in records if record.failure} <= kept
    assert {f"{record.span_id:016x}" for record in records if isinstance(record, SegmentRecord)} <= kept


@pytest.mark.slow
def test_memory_with_many_huge_runs(runs):
    """Names and messages that cannot be compressed, in runs that finish and in others that do not."""
    random = Random(7)

    def noise():
        return random.randbytes(900).decode("latin-1")

    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 31):
            run = top(number)
            inside = [below(run, 5000 + each, name=noise(), group=noise(), failure=None) for each in range(100)]
            failed = [
                below(run, 9000 + each, task, run=replace_error(noise(), noise()), name=noise()) for each in range(50)
            ]
            runs.add([*inside, *failed, below(run, 4000, segment)])
            if number % 2:
                runs.add([run])
            runs._pack()
            del run, inside, failed
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < recent_runs.MAX_BYTES + 2**18
    finally:
        tracemalloc.stop()
    assert sum(run.bytes for run in (*runs._open.values(), *runs._finished.values())) <= recent_runs.MAX_BYTES
    kept = [run for run in runs._finished if runs.has(run)]
    assert kept
    assert set(kept) == set(runs._ids)


def test_phases(runs):
    """They are worth as much as groups, and more than tasks."""
    run = top(1)
    failed = below(run, 4, phase)
    others = [below(run, number, make, failure=None) for number, make in ((2, task), (3, phase))]
    runs.add([*others, below(run, 5, group, failure=None, end=101.5), failed, run])
    found = rows_of(runs, run)
    assert list(found) == [f"{number:016x}" for number in (1, 4, 3, 5, 2)]
    row = found[f"{4:016x}"]
    assert (row["kind"], row["name"], row["error"]) == ("phase", "take in graph", "1 graph could not be taken in")
    assert row["attributes"]["dask.graph.task.count"] == 12


def replace_error(message, traceback):
    run = task().run
    return run._replace(error=run.error._replace(message=message, traceback=traceback))


@pytest.mark.slow
def test_memory_of_what_waits(runs):
    """While the thread has no time, as many records wait as may, and those that failed are kept."""
    records = large_trace(max_groups=500)
    run = records[-1]
    pickled = pickle.dumps(records[:-1])  # copies share nothing
    gc.collect()
    with runs._packing:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(1, 11):
                info = SpanInfo(f"root {number}", ("root",), None, 1.0)
                copies = [replace(record, top=info, trace_id=number) for record in pickle.loads(pickled)]
                runs.add([*copies, replace(run, trace_id=number, span_id=number, span=info, top=info)])
                del copies
            gc.collect()
            waiting = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert waiting < LIMIT - recent_runs.MAX_BYTES - 2**18
    found = runs.read(10, 10)
    assert len(found["rows"]) + found["left_out"] == len(records)


def test_many_runs_that_never_finish(runs):
    for number in range(1, 3 * MAX_OPEN):
        runs.add([below(top(number), 5, segment)])
    assert runs.read(1, None) is None
    assert runs.read(3 * MAX_OPEN - 1, None)
    assert len(runs._open) == MAX_OPEN


def test_one_run_cannot_take_all(runs):
    random = Random(7)
    run = top(1)
    for number in range(40):
        names = [random.randbytes(900).decode("latin-1") for _ in range(50)]
        runs.add(
            [below(run, 100 * number + n, name=name, group=name, failure=None) for n, name in enumerate(names, 50)]
        )
        runs._pack()
    runs.add([run])
    found = runs.read(1, 1)
    assert found["left_out"]
    assert runs._finished[RunId(1, 1)].bytes <= MAX_RUN_BYTES


def test_what_must_not_be_shown_is_not_even_kept():
    kept = RecentRuns(20, Redactor(Capture(False, False, False, False, False, False)), Safety())
    run = top(1)
    kept.add([below(run, 7, task), run])
    text = str(kept.read(1, 1))
    for secret in ("boom", "Traceback", "inc-123", "root 1", "work.py", "DataFrame"):
        assert secret not in text.replace("dask.span.root", ""), secret
    kept.close()
