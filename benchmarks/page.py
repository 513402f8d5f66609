"""What the runs that the page keeps cost: on the event loop, in threads, and in memory; one with 3,000 groups."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from statistics import median
from time import thread_time

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.large import large_trace
from support.records import group, root_segment
from tornado.template import Loader

import dask_otel.status
from dask_otel.otlp.recent_runs import RecentRuns
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import Safety
from dask_otel.spantree.records import SegmentRecord
from dask_otel.status.waterfall import Waterfall, waterfall

MIB = 2**20
ROUNDS = 20
ROWS = Loader(str(Path(dask_otel.status.__file__).parent)).load("rows.html")


def make() -> RecentRuns:
    runs = RecentRuns(20, Redactor(Capture()), Safety())
    runs.close()  # no thread: it would be measured too
    return runs


def add(records: list) -> float:
    """Seconds that the event loop is held."""
    times = []
    for _ in range(ROUNDS):
        runs = make()
        begin = thread_time()
        runs.add(records)
        times.append(thread_time() - begin)
    return median(times)


def draw(drawn: Waterfall) -> bytes:
    return b"".join(ROWS.generate(rows=rows) for rows in drawn.parts())


def main() -> None:
    records = large_trace(max_groups=500)
    print(f"event loop, a segment with one group: {add([group(), root_segment()]) * 1e6:.0f} µs")
    print(f"event loop, a segment with {len(records) - 1} groups and tasks: {add(records) * 1e6:.0f} µs")
    runs, together, seconds = make(), [], 0.0
    for record in records:
        together.append(record)
        if isinstance(record, SegmentRecord):
            runs.add(together)
            begin = thread_time()
            runs._pack()
            seconds += thread_time() - begin
            together = []
    run = records[-1]
    print(f"thread, to compress a row: {seconds / len(records) * 1e6:.0f} µs")
    print(f"compressed: {sum(each.bytes for each in runs._finished.values()) / 1000:.0f} kB")
    begin = thread_time()
    page = draw(waterfall(runs.read(run.trace_id, run.span_id)["rows"]))
    print(f"thread, to make the page: {(thread_time() - begin) * 1e3:.0f} ms, {len(page) / MIB:.1f} MiB")
    tracemalloc.start()
    draw(waterfall(runs.read(run.trace_id, run.span_id)["rows"]))
    print(f"memory while it is made: {tracemalloc.get_traced_memory()[1] / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
