"""Records with every field filled in."""

from __future__ import annotations

from typing import Any

from dask_otel.diagnosis.parts import GAPS, PARTS, CriticalPath, GroupKey, OnPath, Step, Waterfall
from dask_otel.diagnosis.verdict import Finding, Verdict
from dask_otel.identity import Caller
from dask_otel.spantree.counts import OUTCOMES, FirstError, Tally
from dask_otel.spantree.events import Phase, SpanInfo, TaskError, TaskRun
from dask_otel.spantree.records import (
    Failure,
    GroupRecord,
    Link,
    PendingRecord,
    PhaseRecord,
    SegmentRecord,
    TaskRecord,
)

FAILURE = Failure("ValueError", "boom", erred=2, upstream_failed=2, graphs=1)
ROOT = SpanInfo("parent", ("Alice's workflow",), None, 99.0)
CALLER = Caller(1, 99, is_sampled=True)
INFO = SpanInfo("dask-id", ("Alice's workflow", "data load"), "parent", 100.0)


def full_tally() -> Tally:
    tally = Tally()
    tally.tasks, tally.completed, tally.nbytes = 12, 10, 280
    tally.outcomes = dict.fromkeys(OUTCOMES, 2)
    tally.durations = {"compute": 1_500_000, "disk-read": 250_000}
    tally.workers = {"tcp://a": 1.0, "tcp://b": 0.5}
    tally.error = FirstError("ValueError", "boom")
    tally.hull(101.0, 102.0)
    return tally


#: Why a root was slow: with all parts, and all gaps; the group without a title is not one of those that were known.
WATERFALL = Waterfall(dict.fromkeys(PARTS, 0.5) | {"unaccounted": -0.5}, threads=2.0, seconds=4.25)
CRITICAL_PATH = CriticalPath(
    100.0,
    103.0,
    groups={
        GroupKey("dask-id", "inc-123"): OnPath(data=1.0, thread=0.25),
        GroupKey("dask-id", "load-123"): OnPath(data=0.5),
        GroupKey("dask-id", "none-123"): OnPath(),
    },
    gaps=dict.fromkeys(GAPS, 0.125),
    other_groups=OnPath(thread=0.125),
    titles={GroupKey("dask-id", "inc-123"): Step(("Alice's workflow", "data load"), "inc")},
)
VERDICT = Verdict(
    (
        Finding(
            id="skew",
            part="tail",
            seconds=1.5,
            at_most=1.25,
            evidence="One of 8 tasks of {0} took 3 s, the others 0.2 s.",
            remedy="Divide the data into smaller partitions.",
            steps=(Step(("Alice's workflow", "data load"), "inc"),),
        ),
        Finding("gil", "noncpu", 0.5, 0.5, "Threads {waited} for the interpreter lock.", "Use processes."),
    ),
    hints=("unused_memory",),
    withheld="fine metrics are missing",
)


def segment(**changes: Any) -> SegmentRecord:
    values: dict[str, Any] = {
        "span": INFO,
        "top": ROOT,
        "caller": None,
        "trace_id": 1,
        "span_id": 2,
        "parent_id": 3,
        "name": "data load",
        "start": 100.0,
        "end": 103.0,
        "links": (Link(1, 4, "continues"),),
        "failure": FAILURE,
        "tally": full_tally(),
        "number": 1,
        "result": "error",
        "previous_id": 4,
        "metrics": {
            ("execute", "inc", "thread-cpu", "seconds"): 1.5,
            ("execute", "dec", "thread-cpu", "seconds"): 0.5,
            ("execute", "inc", "disk-read", "bytes"): 100,
            ("p2p", "foreground", "shard", "seconds"): 0.25,
        },
        "wall": {"executing": 1.0, "queued": 1.0, "no_worker": 0.5, "idle": 0.5},
        "threads_available": 12.0,
        "threads_others": 2.0,
        "metrics_complete": True,
        "clients": ("Client-alice-5dc9b908-116b-49a5-b0d7-5a681f49a111",),
        "graph_seconds": 0.01,
        "collections": ("DataFrame",),
        "annotations": {"team": ("red",)},
        "code": ("/home/alice/work.py", 7),
        "counted_in": ("other-id",),
        "elsewhere": full_tally(),
        "graph_failures": {"error": 1, "cancelled": 1},
        "truncated_groups": 3,
        "truncated_tasks": 4,
        "truncated_phases": 5,
        "submitters": {"service": ("alice-notebook",), "user": ("alice",), "host": ("alice-laptop",)},
        "waterfall": WATERFALL,
        "critical": CRITICAL_PATH,
        "verdict": VERDICT,
    }
    return SegmentRecord(**(values | changes))


def root_segment(**changes: Any) -> SegmentRecord:
    """A segment without a span above it, which hence has no links into its own trace."""
    return segment(**({"span": ROOT, "parent_id": None, "links": ()} | changes))


def group(**changes: Any) -> GroupRecord:
    values: dict[str, Any] = {
        "span": INFO,
        "top": ROOT,
        "caller": None,
        "trace_id": 1,
        "span_id": 5,
        "parent_id": 2,
        "name": "inc",
        "start": 101.0,
        "end": 102.0,
        "links": (Link(1, 6, "dependency"),),
        "failure": FAILURE,
        "tally": full_tally(),
        "group": "inc-123",
        "dependencies": ("load-123",),
        "types": {"int": 8, "float": 2},
        "buckets": {0: 10},
        "metrics": {("execute", "inc", "thread-cpu", "seconds"): 1.5},
        "folded": 0,
        "truncated_tasks": 1,
        "critical": OnPath(data=1.0, thread=0.25),
    }
    return GroupRecord(**(values | changes))


RUN = TaskRun(
    key="('inc-123', 0)",
    group="inc-123",
    prefix="inc",
    run_id=7,
    start=101.0,
    stop=102.0,
    seconds=0.75,
    durations={"compute": 750_000, "transfer": 250_000},
    worker="tcp://a",
    worker_name="a",
    thread=42,
    type="int",
    nbytes=28,
    error=TaskError("ValueError", "boom", "Traceback: …"),
)


def task(**changes: Any) -> TaskRecord:
    values: dict[str, Any] = {
        "span": INFO,
        "top": ROOT,
        "caller": None,
        "trace_id": 1,
        "span_id": 7,
        "parent_id": 5,
        "name": "inc",
        "start": 101.0,
        "end": 102.0,
        "links": (),
        "failure": Failure("ValueError", "boom"),
        "run": RUN,
        "reason": "erred",
    }
    return TaskRecord(**(values | changes))


def phase(**changes: Any) -> PhaseRecord:
    values: dict[str, Any] = {
        "span": INFO,
        "top": ROOT,
        "caller": None,
        "trace_id": 1,
        "span_id": 9,
        "parent_id": 2,
        "name": "take in graph",
        "start": 100.0,
        "end": 101.0,
        "links": (),
        "failure": Failure("_OTHER", "", graphs=1),
        "phase": Phase(100.0, 101.0, 12, 34_567, failed=True),
    }
    return PhaseRecord(**(values | changes))


def pending() -> PendingRecord:
    return PendingRecord(INFO, INFO, None, 1, 8, 2, "data load (running)", 100.0, 101.0, (), None, 5, 3, (INFO.tags,))
