"""Runs out of spans: what is joined, what is unknown, and that nothing depends on the order of spans."""

from __future__ import annotations

import math
from collections import defaultdict
from random import Random

import pytest
from support.runs import BEGIN, MadeRun, frames

from dask_otel import schema
from dask_otel.analysis.run import Failures, Run, RunPath, RunStep, RunVerdict, runs_of

LONG = "etl / " + "x" * schema.MAX_STEP


def only(*runs):
    (run,) = runs_of(frames(*runs))
    return run


def joined():
    """Two segments of a root in one trace; between them, nobody asked for anything."""
    run = MadeRun(
        7,
        seconds=10.0,
        threads=4.0,
        parts={"cpu": 6.0, "tail": 3.0, "unaccounted": -1.0, "starting": 2.0},
        gaps={"graph": 1.0},
        path={"etl / load / read": 8.0, "etl / sum": 0.5},
        result="unfinished",
        **{
            schema.CRITICAL_SECONDS: 9.0,
            schema.TASK_COUNT: 10,
            schema.VERDICT: ("stragglers", "late_workers"),
            schema.VERDICT_TEXT: "The last task ran alone. Split it.",
            schema.VERDICT_SECONDS: 3.0,
            schema.VERDICT_AT_MOST: 2.5,
            schema.VERDICT_HINTS: ("failed_work",),
        },
    )
    later = MadeRun(
        7,
        seconds=2.0,
        threads=8.0,
        parts={"cpu": 2.0},
        gaps={"client": 1.5},
        path={"etl / sum": 0.5},
        at=60.0,
        result="error",
        status="error",
        message="3 tasks erred; first: bad",
        **{
            schema.TASK_COUNT: 5,
            schema.TASK_OUTCOMES["erred"]: 3,
            schema.VERDICT: ("io",),
            schema.VERDICT_TEXT: "Another text.",
            schema.VERDICT_SECONDS: 1.0,
            schema.VERDICT_AT_MOST: 1.0,
            schema.VERDICT_WITHHELD: "a worker left",
        },
    )
    run.add("load", schema.SEGMENT, "etl / load", 0.0, 9.0, **{schema.SPAN_TAGS: ("etl", "load")})
    on_path = {schema.CRITICAL_SECONDS: 5.0, schema.CRITICAL_EDGE["data"]: 4.0, schema.CRITICAL_EDGE["thread"]: 1.0}
    run.group("etl / load / read", 0.0, 5.0, tasks=4, compute=16.0, p50=3.0, longest=7.0, **on_path)
    run.group("etl / load / read", 4.0, 9.0, tasks=5, compute=20.0, p50=4.0, longest=5.0)
    run.group("etl / sum", 9.0, 10.0, tasks=1, compute=0.5, p50=0.5, longest=0.5)
    later.group("etl / sum", 0.0, 2.0, tasks=5, **{schema.TASK_OUTCOMES["erred"]: 3})
    for _ in range(2):
        later.failed("etl / sum", "ValueError", "bad")
    run.spans += later.spans
    for number, span in enumerate(run.spans):
        object.__setattr__(span, "span_id", f"{number + 1:016x}")
    return run


def test_segments_of_a_root_are_joined():
    assert only(joined()) == Run(
        trace_id=f"{7:032x}",
        root="etl",
        service="dask-scheduler",
        start=BEGIN,
        end=BEGIN + 62.0,
        seconds=12.0,
        segments=2,
        result="error",
        tasks=15,
        failed=3,
        threads=pytest.approx((10 * 4 + 2 * 8) / 12),
        parts=pytest.approx({"cpu": 8.0, "unaccounted": -1.0, "starting": 2.0, "tail": 3.0}),
        path=RunPath(
            seconds=9.5,
            edges={"data": 9.0},
            gaps={"client": 1.5, "graph": 1.0},
            steps={"etl / load / read": 8.0, "etl / sum": 1.0},  # the roots list more of it than its groups have
            step_edges={"etl / load / read": {"data": 4.0, "thread": 1.0}},
        ),
        verdict=RunVerdict(
            ids=("stragglers", "late_workers", "io"),
            text="The last task ran alone. Split it.",
            seconds=3.0,
            at_most=2.5,
            hints=("failed_work",),
            withheld=("a worker left",),
        ),
        steps=[
            RunStep("etl / load / read", 9, 36.0, (3.0, 4.0), 7.0, BEGIN, BEGIN + 9.0, 9.0, 0),
            RunStep("etl / sum", 6, 0.5, (0.5, 0.5), 0.5, BEGIN + 9.0, BEGIN + 62.0, 3.0, 3),
        ],
        failures=[Failures("etl / sum", "ValueError", "bad", 2)],
        failures_without_span=1,
        errors=("3 tasks erred; first: bad",),
    )
    assert only(joined()).path.other_steps == 0.5
    assert only(joined()).not_explained == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(seed):
    shuffled = frames(joined())
    for name in ("spans", "groups", "tasks"):
        setattr(shuffled, name, getattr(shuffled, name).sample(frac=1, random_state=seed))
    assert runs_of(shuffled) == runs_of(frames(joined()))


def test_what_a_trace_does_not_have_is_unknown():
    """As of an older dask-otel, with no more than a name."""
    run = only(MadeRun(result=None))
    assert (run.result, run.tasks, run.threads, run.parts, run.path, run.steps) == ("", None, None, {}, None, [])
    assert run.verdict == RunVerdict((), "", None, None, (), ())
    assert run.not_explained == run.seconds == 10.0


def test_a_waterfall_that_one_segment_lacks_is_not_explained():
    run, later = MadeRun(parts={"cpu": 10.0}), MadeRun(at=20.0, seconds=5.0)
    object.__setattr__(later.spans[0], "span_id", "f" * 16)
    run.spans += later.spans
    assert only(run).parts == {"cpu": 10.0}
    assert only(run).not_explained == 5.0


def test_runs_are_those_of_roots_in_each_trace():
    both = MadeRun(1, at=5.0)
    both.spans += MadeRun(2, root="train", at=6.0).spans
    for span in both.spans:
        object.__setattr__(span, "trace_id", both.trace_id)
    running = MadeRun(3)
    running.spans = [running.add("etl", schema.PENDING, "etl", 0.0, 0.0).spans[1]]
    foreign = MadeRun(4)
    foreign.spans[0].attributes.clear()
    inner = MadeRun(5)
    inner.spans = [inner.add("load", schema.SEGMENT, "etl / load", 0.0, 1.0).spans[1]]
    found = runs_of(frames(both, running, foreign, inner, MadeRun(6)))
    assert [(int(run.trace_id), run.root) for run in found] == [(6, "etl"), (1, "etl"), (1, "train")]
    assert runs_of(frames(running, foreign)) == []
    assert runs_of(frames()) == []


def test_results_of_cut_segments_count_only_at_the_end():
    def result(*results):
        run = MadeRun(result=results[0])
        for number, each in enumerate(results[1:], 1):
            more = MadeRun(at=20.0 * number, result=each)
            object.__setattr__(more.spans[0], "span_id", f"{number:016x}")
            run.spans += more.spans
        made = frames(run)
        made.spans = made.spans[::-1]  # their order is that of time, whatever that of rows
        (run,) = runs_of(made)
        return run.result

    assert result("unfinished", "success") == "success"
    assert result("success", "unfinished") == "unfinished"
    assert result("error", "unfinished", "success") == "error"
    assert result("success", "something new") == "something new"


def test_labels_of_the_root_are_cut_and_may_stand_for_several_steps():
    """Roots list the start of a long label. If it is that of two steps, only their groups say how much each has."""
    cut = schema.clean(f"{LONG} / read", schema.MAX_STEP)
    one = MadeRun(path={cut: 3.0, "etl / unknown": 1.0}).group(f"{LONG} / read", 0, 1)
    assert only(one).path.steps == {f"{LONG} / read": 3.0, "etl / unknown": 1.0}
    on_path = {schema.CRITICAL_SECONDS: 2.0}
    more = {schema.CRITICAL_SECONDS: 4.0}  # the root has listed only some of its groups
    one = MadeRun(path={cut: 3.0, "etl / a": 2.0}).group(f"{LONG} / read", 0, 1, **more)
    assert only(one).path.steps == {f"{LONG} / read": 4.0}
    two = MadeRun(path={cut: 3.0}).group(f"{LONG} / read", 0, 1).group(f"{LONG} / write", 0, 1, **on_path)
    assert only(two).path.steps == {f"{LONG} / write": 2.0}
    assert only(two).path.other_steps == 1.0
    # A group whose name the root knows, but not its prefix, is there twice: once is enough.
    named = MadeRun(path={"sum-123": 3.0}).group("etl / sum", 0, 1, **{schema.CRITICAL_SECONDS: 3.0})
    assert only(named).path.steps == {"etl / sum": 3.0}


def test_steps_are_open_while_one_of_their_groups_is():
    """Hundreds of steps at random, in one trace: many examples for the price of one."""
    random, run, open_at = Random(0), MadeRun(seconds=100.0), defaultdict(set)
    for _ in range(1000):
        label, start, length = f"etl / {random.randrange(300)}", random.randrange(50), random.randrange(20)
        run.group(label, start, start + length)
        open_at[label] |= {*range(start, start + length)}
    assert {step.label: step.seconds for step in only(run).steps} == {
        label: float(len(seconds)) for label, seconds in open_at.items()
    }


def test_one_bad_time_loses_no_more_than_its_span():
    run = MadeRun().group("etl / a", 0, 1).group("etl / b", 0, 1)
    object.__setattr__(run.spans[1], "end", 0)
    object.__setattr__(run.spans[2], "start", 0)
    assert only(run).steps == []
    later = MadeRun(2)
    object.__setattr__(later.spans[0], "end", 0)
    assert [each.trace_id for each in runs_of(frames(run, later))] == [run.trace_id]
    assert math.isfinite(only(run).seconds)
