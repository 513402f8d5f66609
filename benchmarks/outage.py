"""Memory of a process whose collector is away, with its queue full: above that with the queue empty.

Each kind of record is tried in a process of its own.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from time import sleep

import psutil
from made import bundle
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dask_otel.otlp.exporter import ExportThread, SpanExportQueue
from dask_otel.otlp.spans import SpanFactory
from dask_otel.otlp.transport import make_senders
from dask_otel.safety import Safety

#: Failed tasks of each segment, besides its 49 groups.
KINDS = {"segments with 49 groups": 0, "segments with 49 groups and 200 failed tasks": 200}


def rss() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def put(pipeline: ExportThread, records: list) -> None:
    """Put records not faster than a sweep makes them: not so many at once that none can be packed."""
    while pipeline.queue._queue.loose > 5_000:
        sleep(0.001)
    pipeline.put(records)


def measure(kind: str) -> str:
    """A row: memory with an empty queue, with a full one, and with one that has been full for long."""
    logging.disable(logging.CRITICAL)
    (sender,) = make_senders("http://127.0.0.1:1")
    factory = SpanFactory(Resource({"service.name": "outage"}), InstrumentationScope("dask_otel"), SpanLimits())
    pipeline = ExportThread(sender, SpanExportQueue(sender.form(factory), Safety()), Safety())
    number = 0
    pipeline.put(bundle(number))  # the first failure loads what there is to load
    while pipeline.is_failing is None:
        pass
    empty = rss()
    while not pipeline.queue.dropped.total():
        number += 1
        put(pipeline, bundle(number, KINDS[kind]))
    full = rss()
    for _ in range(1000):
        number += 1
        put(pipeline, bundle(number, KINDS[kind]))
    later = rss()
    queue = pipeline.status()["queue"]
    pipeline.close(0.1)
    return (
        f"| {kind} | {empty:.0f} | {full - empty:.1f} | {later - empty:.1f} | {queue['spans']} | "
        f"{queue['bytes'] / 2**20:.1f} |"
    )


def main() -> None:
    print("| what waits | empty, MiB | full: above that | after 1,000 more segments | spans that wait | counted, MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        print(
            subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, check=True).stdout.strip()
        )
    print("\nbudget: 64 MiB above")


if __name__ == "__main__":
    print(measure(sys.argv[1])) if len(sys.argv) > 1 else main()
