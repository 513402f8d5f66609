"""What a burst of records does to the event loop: its lag with the burst, beside that without, interleaved.

The loop wakes up every 2 ms; its lag is how much later than asked for. The records are sent by the real exporter to a
receiver in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
from time import perf_counter

from made import GROUPS
from made import records as made
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dask_otel.cli.receiver import Receiver
from dask_otel.otlp.environment import Limits
from dask_otel.otlp.exporter import ExportThread, SpanExportQueue
from dask_otel.otlp.spans import SpanFactory
from dask_otel.otlp.transport import make_senders
from dask_otel.safety import Safety
from dask_otel.scheduler.pace import Pace

TICK = 0.002


async def lags(done) -> list[float]:
    """Seconds by which the loop was late, each time, until done."""
    found = []
    while not done():
        begin = perf_counter()
        await asyncio.sleep(TICK)
        found.append(perf_counter() - begin - TICK)
    return found


async def measure(pipeline: ExportThread, records: int) -> tuple[list[float], list[float], float]:
    """Lag without and with a burst, and how long it took."""
    end = perf_counter() + 2.0
    without = await lags(lambda: perf_counter() > end)
    begin = perf_counter()

    async def put():
        pace = Pace()  # the sweep's, which makes the records of one segment after the other
        for number in range(records // (GROUPS + 1)):
            together = []
            for record in made(number):
                together.append(record)
                await pace.rest()
            pipeline.put(together)
            for _ in pipeline.queue.packing():
                await pace.rest()

    putting = asyncio.create_task(put())
    with_burst = await lags(lambda: putting.done() and not pipeline.unsent - pipeline.queue.dropped.total())
    await putting
    return without, with_burst, perf_counter() - begin


def serve(endpoints):
    with Receiver() as receiver:
        receiver.take = lambda request: None
        endpoints.put(receiver.endpoints)
        endpoints.get()


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    endpoints = context.Queue()
    receiver = context.Process(target=serve, args=(endpoints,), daemon=True)
    receiver.start()
    endpoint = endpoints.get()["grpc"]
    (sender,) = make_senders(endpoint)
    factory = SpanFactory(Resource({"service.name": "burst"}), InstrumentationScope("dask_otel"), SpanLimits())
    limits = Limits(max_waiting=10**6, max_bytes=10**10)
    pipeline = ExportThread(sender, SpanExportQueue(sender.form(factory), Safety(), limits), Safety())
    print("| round | lag p50 / p99 / max without, ms | with the burst, ms | p99 moved by, ms | sent in, s |")
    print("|---|---|---|---|---|")
    moved = []
    for number in range(arguments.rounds):
        without, with_burst, took = asyncio.run(measure(pipeline, arguments.records))
        cells = [" / ".join(f"{quantile(each, q):.2f}" for q in (0.5, 0.99, 1.0)) for each in (without, with_burst)]
        moved.append(quantile(with_burst, 0.99) - quantile(without, 0.99))
        print(f"| {number + 1} | {cells[0]} | {cells[1]} | {moved[-1]:.2f} | {took:.1f} |")
    print(f"\nmedian: p99 moved by {statistics.median(moved):.2f} ms (budget 3 ms)")
    pipeline.close(5)
    receiver.kill()


if __name__ == "__main__":
    main()
