"""A large trace, made by the span tree from a story: 100,000 tasks in 3,000 groups."""

from __future__ import annotations

from typing import Any

from dask_otel.spantree.events import Change, Dependency, Picks, TaskError, TaskRun
from dask_otel.spantree.records import Record
from support.story import Story

GROUPS, TASKS = 3000, 100_000
#: As a real cluster's groups are called.
PREFIX = "read-parquet-fused-assign"
ACTIVITIES = ("deserialize", "thread-cpu", "thread-noncpu", "executor", "other", "disk-read", "disk-write", "compress")
TRACEBACK = "  File '/home/alice/site-packages/work/transform.py', line 100, in transform\n    raise ValueError\n"


def large_trace(groups: int = GROUPS, tasks: int = TASKS, children: int = 3, **settings: Any) -> list[Record]:
    """Groups depend on those before them; each has slow runs, and every tenth has failures."""
    story = Story(threads=64, **settings)
    names = [f"{PREFIX}-{number:032x}" for number in range(groups)]
    spans = [story.span("Alice's workflow", f"step {number}") for number in range(children)]
    for number, name in enumerate(names):
        span = spans[number % children]
        count = tasks * (number + 1) // groups - tasks * number // groups
        failed = 25 if number % 10 == 0 else 0
        change = Change(story.now)
        change.span_id, change.name, change.prefix, change.active = span, name, f"{PREFIX}-{number % 1500}", True
        change.tasks, change.completed, change.nbytes = count, count - failed, count * 128_000_000
        change.durations = {"compute": count * 1_234_567, "transfer": count * 345_678, "disk-read": count * 1000}
        change.workers = {f"tcp://10.0.0.{worker}:4321": 1.5 for worker in range(16)}
        change.buckets = dict.fromkeys(range(12), 3)
        change.types = {"pandas.core.frame.DataFrame": count}
        change.dependencies = tuple(
            Dependency(spans[n % children], names[n]) for n in range(max(0, number - 4), number)
        )
        change.hull(story.now, story.now + 5)
        change.picks = Picks()
        for task in range(failed):
            change.count("erred")
            change.picks.add_erred(_run(name, task, story.now, TaskError("ValueError", "bad " * 50, TRACEBACK * 18)))
        for task in range(5):
            change.picks.add_slow(_run(name, 100 + task, story.now, None))
        story.now += 5
        story.span_tree.add_change(change, story.now)
        metrics = {("execute", change.prefix, activity, "seconds"): 1.2345 * number for activity in ACTIVITIES}
        story.span_tree.add_metrics(span, dict(metrics), story.now)
    return story.close()


def _run(group: str, number: int, start: float, error: TaskError | None) -> TaskRun:
    return TaskRun(
        key=f"('{group}', {number})",
        group=group,
        prefix=PREFIX,
        run_id=number,
        start=start,
        stop=start + 1.5 + number / 1000,
        seconds=1.2 + number / 1000,
        durations={"compute": 1_200_000, "transfer": 300_000},
        worker="tcp://10.0.0.1:4321",
        worker_name="dask-worker-12",
        thread=140_123_456_789,
        type="pandas.core.frame.DataFrame",
        nbytes=128_000_000,
        error=error,
    )
