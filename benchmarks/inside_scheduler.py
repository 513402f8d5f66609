"""CPU of a live scheduler for the spans of workers; ``inside.py`` runs it.

In batches of tasks, a tenth of the tasks have a span, or none has. Clocks on the scheduler measure what handles the
event about a span: Dask's handler, of which a part is the hook of the bridge; and the sweep. For a task without a span,
they measure how the bridge decides, for each graph, whether its workers must be sent anything. The CPU time of the
event loop's thread in both kinds of batches is compared, too.

This file is also the preload of the scheduler that it starts.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from collections import defaultdict
from pathlib import Path
from time import perf_counter, thread_time

from distributed import span
from opentelemetry import trace

from dask_otel import OTelWorkerPlugin
from dask_otel.messages import TOPIC

__all__ = ["measure"]

TASKS = 1_000


async def dask_setup(scheduler):
    """Measure in the scheduler's process."""
    times = defaultdict(list)

    def clock(part, function, counts=lambda *args, **kwargs: True):
        def timed(*args, **kwargs):
            begin = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if counts(*args, **kwargs):
                    times[part].append(perf_counter() - begin)

        return timed

    def begin():
        plugin = scheduler.plugins["dask-otel"]
        span_tree, parents = plugin._bridge.sweep._span_tree, plugin._bridge.submissions._parents
        handlers = scheduler.stream_handlers
        handlers["log-event"] = clock("handler", handlers["log-event"], lambda **message: message["topic"] == TOPIC)
        plugin.log_event = clock("hook", plugin.log_event, lambda topic, msg: topic == TOPIC)
        span_tree.add_worker_span = clock("sweep", span_tree.add_worker_span)
        parents.write = clock("parents", parents.write)

    is_new = True

    async def probe(comm=None):
        nonlocal is_new
        if is_new:  # before, the bridge was not there
            begin()
            is_new = False
        taken = {part: [statistics.median(each), len(each)] for part, each in times.items()}
        times.clear()
        return json.dumps({"cpu": thread_time(), "parts": taken})

    scheduler.handlers["probe"] = probe


def none(x):
    return x


def tenth(x):
    if x % 10 == 0:
        with trace.get_tracer("benchmark").start_as_current_span("inner"):
            pass
    return x


def measure(batches, reading):
    """Print what spans of workers take of a live scheduler.

    Parameters
    ----------
    reading
        µs that Dask takes to read an event.
    """
    from inside_worker import provide
    from live import cluster

    from dask_otel.cli.receiver import Receiver

    here = Path(__file__)
    path = os.pathsep.join(filter(None, (str(here.parent), os.environ.get("PYTHONPATH"))))
    pairs, parts = [], defaultdict(list)
    with (
        Receiver() as receiver,
        cluster(
            "--preload", "dask_otel", "--preload", str(here),
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoints["grpc"], PYTHONPATH=path,
        ) as (_, client),
    ):  # fmt: skip

        def probe():
            return json.loads(client.sync(client.scheduler.probe))

        def batch(function, number):
            before = probe()["cpu"]
            with span(f"{function.__name__}-{number}"):
                keys = [f"{function.__name__}-{number}-{each}" for each in range(TASKS)]
                client.gather(client.map(function, range(TASKS), key=keys))
            after = probe()
            if number >= 0:
                for part, (median, calls) in after["parts"].items():
                    parts[part].append((median * 1e6, calls))
            return (after["cpu"] - before) / TASKS * 1e6

        client.run(provide)
        client.register_plugin(OTelWorkerPlugin())
        for number in range(-1, batches):
            order = (tenth, none) if number % 2 else (none, tenth)
            took = {function: batch(function, number) for function in order}
            if number >= 0:
                pairs.append((took[tenth], took[none]))

    def ratio(some):
        return sum(one for one, _ in some) / sum(other for _, other in some)

    task = statistics.mean(other for _, other in pairs)
    values = {part: statistics.median(each for each, _ in some) for part, some in parts.items()}
    spans = sum(calls for _, calls in parts["handler"])
    sweep = sum(micros * calls for micros, calls in parts["sweep"]) / spans
    total = reading + values["handler"] + sweep
    samples = sorted(ratio(random.choices(pairs, k=len(pairs))) for _ in range(2_000))
    print(
        f"on a live scheduler: {batches} batches of {TASKS} tasks, of which {spans / batches:.0f} have a span; as many"
    )
    print(f"  without spans, where a task takes {task:.0f} µs of the event loop's CPU time")
    print(f"  Dask, to read the event about a span: {reading:.1f} µs")
    print(f"  its handler: {values['handler']:.1f} µs, of which the hook of the bridge: {values['hook']:.1f} µs")
    print(f"  sweeps: {sweep:.2f} µs")
    print(f"  all of these, for a tenth of the tasks: {total / 10:.2f} µs, {total / 10 / task:.2%} of a task")
    print(f"  for a task without a span: {values['parents'] / TASKS:.3f} µs")
    print(f"  batches with / without: {ratio(pairs):.4f}, 95 % of samples {samples[50]:.4f} … {samples[-50]:.4f}")
