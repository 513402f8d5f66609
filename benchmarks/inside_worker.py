"""CPU of a live worker for the spans of tasks; ``inside.py`` runs it.

Dask works for a millisecond between two tasks, and what the wrapper reads is in no cache then. A task costs less than
two batches differ by chance, so clocks measure the steps where they run, and medians count, since a step may be
interrupted:

- the wrapper, by clocks before and after it, in every second task. The same clocks without a wrapper between them, in
  the other tasks, are taken off. The wrapper also reports the span, by a method of Dask's;
- what a task takes to start and end a span of its own, with the wrapper and without. With the wrapper, the span of the
  task is made meanwhile;
- the thread that ends spans, by the kernel's counter;
- a span of the SDK with the same attributes, in tasks without the wrapper.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections import defaultdict
from pathlib import Path
from time import perf_counter

from distributed import Client, LocalCluster
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from dask_otel import OTelWorkerPlugin
from dask_otel.messages import TOPIC

__all__ = ["AT_END", "AT_START", "PARENT", "measure", "provide"]

#: Tasks of a batch.
TASKS = 1_000
#: As the span of a task has them, at its start and at its end.
AT_START = {f"attribute.{number}": "a value of some length" for number in range(10)}
AT_END = {"type": "int", "size": 28, "thread": 7, "duration": 0.1}
PARENT = set_span_in_context(
    NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))), Context()
)

#: Seconds of steps since the last look, by what ran and whether the wrapper was there. In the worker's process.
_times = defaultdict(list)


def provide():
    """Set a provider whose spans record, and are not sent."""
    trace.set_tracer_provider(TracerProvider())


def plain(x):
    return x


def one_span(x):
    tracer, before = trace.get_tracer("benchmark"), perf_counter()
    with tracer.start_as_current_span("inner"):
        pass
    took = perf_counter() - before
    _times["task", type(trace.get_current_span()).__name__ == "LazySpan"].append(took)


def two_spans(x):
    tracer, before = trace.get_tracer("benchmark"), perf_counter()
    outer = tracer.start_span("load", PARENT, trace.SpanKind.CONSUMER, AT_START.copy(), start_time=1)
    outer.set_attributes(AT_END)
    outer.end(2)
    with tracer.start_as_current_span("inner"):
        pass
    _times["task", False].append(perf_counter() - before)


def clock_wrapper(dask_worker):
    """Measure the wrapper, and leave it out in every second task."""
    from dask_otel.worker import ending
    from dask_otel.worker.plugin import _installed

    ending.IDLE = 3600.0  # a thread that ends takes its counter along
    spans = _installed[dask_worker]()
    with_wrapper, execute, send = dask_worker.execute, spans._execute, dask_worker.batched_send
    inner, number = {}, 0

    async def inside(key, *, stimulus_id):
        begin = perf_counter()
        event = await execute(key, stimulus_id=stimulus_id)
        inner[key] = begin, perf_counter()
        return event

    async def outside(key, *, stimulus_id):
        nonlocal number
        number += 1
        is_wrapped = number % 2 == 0
        run = with_wrapper if is_wrapped else inside
        begin = perf_counter()
        event = await run(key, stimulus_id=stimulus_id)
        end = perf_counter()
        began, ended = inner.pop(key)
        _times["wrapper", is_wrapped].append(began - begin + end - ended)
        return event

    def timed_send(message):
        begin = perf_counter()
        send(message)
        if message.get("topic") == TOPIC:
            _times["send", True].append(perf_counter() - begin)

    spans._execute, dask_worker.execute, dask_worker.batched_send = inside, outside, timed_send


async def take():
    """Median seconds of the steps since the last call, CPU seconds of the thread that ends spans, and how many."""
    await asyncio.sleep(0.2)  # until that thread has nothing to do
    taken = {each: statistics.median(values) for each, values in _times.items()}
    wrapped = len(_times["wrapper", True])
    _times.clear()
    threads = [each.native_id for each in threading.enumerate() if each.name == "dask-otel task spans"]
    ended = sum(int(Path(f"/proc/self/task/{each}/schedstat").read_text().split()[0]) for each in threads)
    return taken, ended / 1e9, wrapped


def measure(batches, spread):
    """Print what the steps on a live worker take."""
    functions = {"plain": plain, "one": one_span, "two": two_spans}
    results, ended = {name: [] for name in functions}, {name: [] for name in functions}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:

        def batch(name, number):
            (before,) = client.run(take).values()
            keys = [f"{name}-{number}-{each}" for each in range(TASKS)]
            client.gather(client.map(functions[name], range(TASKS), key=keys))
            (after,) = client.run(take).values()
            if number >= 0:
                results[name].append(after[0])
                ended[name].append((after[1] - before[1]) / after[2])

        client.run(provide)
        client.register_plugin(OTelWorkerPlugin())
        client.run(clock_wrapper)
        for number in range(-1, batches):  # the first one warms up
            for name in functions:
                batch(name, number)

    def micros(name, part):
        return [(each[part, True] - each[part, False]) * 1e6 for each in results[name]]

    wrapper, making, ending = micros("one", "wrapper"), micros("one", "task"), [each * 1e6 for each in ended["one"]]
    sending = [each["send", True] * 1e6 for each in results["one"]]
    sdk = [
        (two["task", False] - one["task", False]) * 1e6 for one, two in zip(results["one"], results["two"], strict=True)
    ]
    beyond = [sum(parts) - each for *parts, each in zip(wrapper, making, ending, sdk, strict=True)]
    print(f"on a live worker: {batches} batches of {TASKS} tasks, the wrapper in every second one")
    print(f"  a task that uses no OpenTelemetry: {spread(micros('plain', 'wrapper'))}")
    print(f"  a span of the SDK: {spread(sdk)}")
    print(f"  a task that starts a span, beyond it: {spread(beyond)}")
    print(f"    the wrapper, and reporting: {spread(wrapper)}")
    print(f"      of that, Dask's method that sends the event: {spread(sending)}")
    print(f"    making the span: {spread(making)}")
    print(f"    ending it, in the thread for that: {spread(ending)}")
