"""Workflows that tests run; their traces are known. Workers import this module: it imports little itself."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import dask
from distributed import Client, Event, Future, Scheduler, span, wait


def _load(x: int) -> int:
    time.sleep(0.02)
    return x


def work(x: int) -> int:
    """What several people may call at once."""
    time.sleep(0.02)
    return x


def _scale(x: int) -> int:
    return 10 * x


def _check(x: int) -> int:
    if x > 80:
        raise ValueError(f"{x} is too much")
    return x


def nested(client: Client) -> tuple[str, int]:
    """Nested spans, a dependency between groups, and an error; return the root span's id and the result."""
    with span("Alice's workflow") as root_id:
        with span("data load"):
            raw = client.map(_load, range(10), key="load")
        with span("prepare", "scale"):
            scaled = client.map(_scale, raw, key="scale")
            total = client.submit(sum, scaled, key="total")
        with span("check"):
            checked = client.map(_check, scaled, key="check")
    wait([total, *checked])  # not before: a client that is slow would end the first segment
    return root_id, total.result()


#: What `tree(spans, "dask.task.count", "dask.task.completed", "dask.span.result")` says of it.
NESTED = [
    "Alice's workflow [span] dask.task.count=31 dask.task.completed=30 dask.span.result=error "
    "Error: ValueError: 1 task erred; first: 90 is too much",
    "  data load [span] dask.task.count=10 dask.task.completed=10 dask.span.result=success",
    "    load [group] dask.task.count=10 dask.task.completed=10",
    "  prepare [span] dask.task.count=11 dask.task.completed=11 dask.span.result=success",
    "    scale [span] dask.task.count=11 dask.task.completed=11 dask.span.result=success",
    "      scale [group] dask.task.count=10 dask.task.completed=10 dependency -> load",
    "      total [group] dask.task.count=1 dask.task.completed=1 dependency -> scale",
    "  check [span] dask.task.count=10 dask.task.completed=9 dask.span.result=error "
    "Error: ValueError: 1 task erred; first: 90 is too much",
    "    check [group] dask.task.count=10 dask.task.completed=9 "
    "Error: ValueError: 1 task erred; first: 90 is too much dependency -> scale",
]
NESTED_ATTRIBUTES = ("dask.task.count", "dask.task.completed", "dask.span.result")


def spans_page(folder: Path) -> str:
    """The example on the page "Spans" of Dask's documentation, with each compute() inside its span."""
    import dask.dataframe as dd
    import pandas as pd

    # Dask warns that annotations are lost when a DataFrame is built (they count when it is computed), and of pandas.
    with warnings.catch_warnings(), span("Alice's workflow") as root_id:
        warnings.simplefilter("ignore")
        with span("data load"):
            frame = dd.from_pandas(pd.DataFrame({"x": range(100), "y": range(100)}), npartitions=4)
            frame.to_parquet(folder)
            frame = dd.read_parquet(folder).persist()
        with span("ML preprocessing"):
            frame = frame.assign(z=frame.x + frame.y).persist()
        with span("Model training"):
            model = dask.delayed(lambda part: part.z.sum(), name="train")
            dask.compute([model(part) for part in frame.to_delayed()])
    return root_id


def one(x):
    return x + 1


def slow(x):
    time.sleep(0.2)
    return x + 1


def hang_once(x, first):
    if Event(first).is_set():
        return x
    Event(first).set()
    time.sleep(600)
    return None


def hang(x, first):
    Event(first).set()
    time.sleep(600)


def request(x, then=None):
    """Make a span, and hang after it if there is an event to set."""
    from opentelemetry import trace

    with trace.get_tracer("people").start_as_current_span("request"):
        pass
    if then:
        hang(x, then)
    return x


def many_at_once(client: Client, groups: int, tasks: int) -> tuple[str, list[Future]]:
    """Run groups of which each does a little every now and then, all at the same time; return the root's id."""
    keys = [(f"work-{group}", number) for number in range(tasks) for group in range(groups)]
    with span("root") as root_id:
        futures = client.map(pause, range(len(keys)), key=keys, pure=False)
    return root_id, futures


def pause(x):
    time.sleep(0.01)
    return x


def group_numbers(dask_scheduler: Scheduler) -> dict[str, tuple[int, int, int]]:
    """What Dask says of each group: tasks with a result, bytes, and µs of compute."""
    return {
        name: (group.states["memory"], group.nbytes_total, round(group.all_durations["compute"] * 1e6))
        for name, group in dask_scheduler.task_groups.items()
    }
