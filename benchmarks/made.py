"""Records as a workflow makes them, without one."""

from __future__ import annotations

from collections.abc import Iterator

from dask_otel.spantree.counts import Tally
from dask_otel.spantree.events import SpanInfo, TaskError, TaskRun
from dask_otel.spantree.records import Failure, GroupRecord, Record, SegmentRecord, TaskRecord

__all__ = ["GROUPS", "bundle", "records"]

#: Of a segment.
GROUPS = 49


def bundle(number: int, tasks: int = 0) -> list[Record]:
    """A segment with its groups, and failed tasks."""
    return list(records(number, tasks))


def records(number: int, tasks: int = 0) -> Iterator[Record]:
    """The same, one after the other."""
    span = SpanInfo(f"span-{number}", ("Alice's workflow", f"step {number}"), None, 0.0)
    common = {
        "span": span,
        "top": span,
        "caller": None,
        "trace_id": 1 + number,
        "start": 1e9,
        "end": 1e9 + 1,
        "links": (),
        "failure": None,
    }
    for task in range(tasks):
        yield _task(span, number, task)
    for n in range(GROUPS):
        yield GroupRecord(
            **common, span_id=1 + n, parent_id=99, name="inc", tally=_tally(number),
            group=f"inc-{n:032x}", dependencies=tuple(f"load-{number}-{d}" for d in range(3)),
            types={f"int{number % 10}": 1000},
            buckets=dict.fromkeys(range(8), 1), metrics=None, folded=0, truncated_tasks=0,
        )  # fmt: skip
    yield SegmentRecord(
        **common, span_id=99, parent_id=None, name=span.tags[-1], tally=_tally(number), number=0, result="success",
        previous_id=None, metrics={("execute", "inc", n, "seconds"): 1.0 for n in range(8)}, wall={"executing": 1.0},
        threads_available=1.0, threads_others=0.0, metrics_complete=True, clients=(), graph_seconds=0.0,
        collections=(), annotations={}, code=None, counted_in=(), elsewhere=None, graph_failures={},
        truncated_groups=0, truncated_tasks=0,
    )  # fmt: skip


def _task(span: SpanInfo, number: int, task: int) -> TaskRecord:
    message = f"value {number}.{task} is out of range " * 5
    error = TaskError("ValueError", message, "".join(f"  File 'x.py', line {n}, in f{number}\n" for n in range(60)))
    run = TaskRun(
        f"('inc-{number}', {task})", f"inc-{number}", "inc", task, 1e9, 1e9 + 1, 1.0, {"compute": 1_000_000},
        f"tcp://10.0.0.1:{task}", "w", 1, None, None, error,
    )  # fmt: skip
    return TaskRecord(
        span,
        span,
        None,
        1 + number,
        1000 + task,
        1,
        "inc",
        1e9,
        1e9 + 1,
        (),
        Failure("ValueError", message),
        run,
        "erred",
    )


def _tally(number: int) -> Tally:
    tally = Tally()
    tally.tasks = tally.completed = 1000 + number
    tally.durations = {"compute": 1_000_000 + number, "transfer": 2_000_000 + number, "disk-read": 3_000_000 + number}
    tally.workers = {f"tcp://10.0.0.{n}:4321": 1.0 + number + n for n in range(8)}
    return tally
