"""A worker with a process pool, and tasks that fork; run as a process of its own, since forks of threads may hang."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import dask
from distributed import Client, Scheduler, Worker
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import dask_otel
from dask_otel.worker.task_span import current_run

exporter = InMemorySpanExporter()


def see(span=None):
    """The parent of a span that is made here, whether this is in a task, and the spans that this process has sent.

    And whether a span of a task would be made here.
    """
    exporter.clear()
    with trace.get_tracer("person").start_as_current_span("inner") as inner:
        pass
    if span is not None:
        span.set_attribute("a", 1)
    parent = inner.parent
    sent = [each.name for each in exporter.get_finished_spans()]
    return [parent and f"{parent.span_id:x}", current_run() is not None, sent, span is not None and span.is_recording()]


def fork(uses_its_span):
    """The same in a process that is forked off here."""
    span = trace.get_current_span()
    if uses_its_span:
        span.set_attribute("a", 1)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, json.dumps(see(span)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return json.loads(os.read(read, 10_000))


async def main():
    """Print what tasks in a process pool see, and tasks that fork."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    async with (
        Scheduler(port=0, dashboard=False) as scheduler,
        Worker(scheduler.address, nthreads=1, executor={"pool": pool}) as worker,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        await worker.plugin_add(dask_otel.OTelWorkerPlugin())
        with dask.annotate(executor="pool"):
            pooled = [await client.submit(see, key=f"pooled_{number}") for number in range(2)]
        forked = [await client.submit(fork, uses, key=f"forked_{uses}") for uses in (False, True)]
    sys.stdout.write(json.dumps([pooled, forked]))


if __name__ == "__main__":
    # Functions of the main module cannot be sent.
    from support.forked import main as run

    asyncio.run(run())
