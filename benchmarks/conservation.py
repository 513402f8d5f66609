"""What it costs to keep the sums of a segment with 500 groups x 20 activities, from heartbeat to record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from time import perf_counter, process_time

from dask_otel.spantree.events import Change, SpanInfo
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.to_records import SpanTreeSettings

GROUPS, ACTIVITIES, ROUNDS = 500, 20, 31


def metrics() -> dict[tuple[object, ...], float]:
    """What one heartbeat brings, if it brings everything."""
    return {
        ("execute", f"prefix-{group}", f"activity-{number}", "seconds"): 0.5
        for group in range(GROUPS)
        for number in range(ACTIVITIES)
    }


def changes(span: str) -> Iterator[Change]:
    """What one sweep brings, if every group changed."""
    for number in range(GROUPS):
        change = Change(100.0)
        change.span_id, change.name, change.prefix, change.active = span, f"g-{number}", f"prefix-{number}", True
        change.tasks = change.completed = 10
        change.nbytes = 280
        change.durations = {"compute": 10_000, "transfer": 5_000}
        change.workers = {"tcp://a": 0.5, "tcp://b": 0.5}
        change.buckets = {1: 5, 2: 5}
        change.types = {"int": 10}
        change.hull(100.0, 101.0)
        yield change


def timed(work) -> tuple[float, float]:
    """CPU milliseconds in all, and the longest single step that holds the event loop."""
    began, longest, last = process_time(), 0.0, perf_counter()
    for _ in work:
        now = perf_counter()
        longest, last = max(longest, now - last), now
    return (process_time() - began) * 1e3, max(longest, perf_counter() - last) * 1e3


def once(results: dict[str, list[tuple[float, float]]]) -> None:
    """One segment, in a span below another."""
    span_tree = SpanTree(99.0, 4, SpanTreeSettings())
    span_tree.add_span(SpanInfo("root", ("root",), None, 99.0))
    span_tree.add_span(SpanInfo("child", ("root", "child"), "root", 99.0))
    prepared, heartbeat = list(changes("child")), metrics()

    def add() -> Iterator[None]:
        for change in prepared:
            span_tree.add_change(change, 102.0)
            yield

    def beat() -> Iterator[None]:
        span_tree.add_metrics("child", heartbeat, 102.0)
        yield

    results["changes of 500 groups"].append(timed(add()))
    results["10,000 metrics of a heartbeat"].append(timed(beat()))
    results["closing, up to the root"].append(timed(span_tree.close(103.0)))


if __name__ == "__main__":
    results: dict[str, list[tuple[float, float]]] = {
        "changes of 500 groups": [],
        "10,000 metrics of a heartbeat": [],
        "closing, up to the root": [],
    }
    for _ in range(ROUNDS):
        once(results)
    for what, numbers in results.items():
        total = statistics.median(total for total, _ in numbers)
        hold = statistics.median(hold for _, hold in numbers)
        print(f"{what:30} {total:6.2f} ms of CPU in all, longest hold {hold:5.2f} ms (median of {ROUNDS})")
