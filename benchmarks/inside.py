"""CPU of a live worker for the spans of tasks: with dask-otel on the worker, less that without, in one process.

Batches of tasks run on one worker with the plugin and without it, in turn. The worker is a process of its own. Its
tracer provider has no processor: neither encoding nor sending is measured.

A task that uses no OpenTelemetry costs less than two batches differ by chance. So the wrapper's own time is measured as
well, inside the live worker, with a clock that takes part of a microsecond itself.

A task that starts a span has two with the plugin. What the SDK takes for the second one is taken off: the difference
between tasks with two spans and tasks with one, without the plugin.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from time import thread_time

from distributed import Client, LocalCluster, span
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from dask_otel import OTelWorkerPlugin

TASKS = 1_000
#: As many as the span of a task has.
ATTRIBUTES = {f"attribute.{number}": "a value of some length" for number in range(14)}


def cpu():
    """CPU seconds of all threads of this process, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path("/proc/self/task").iterdir()) / 1e9


def provide():
    """Set a provider whose spans record, and go nowhere."""
    trace.set_tracer_provider(TracerProvider())


def measure():
    """Measure the wrapper from now on."""
    from dask_otel.worker.execution import TaskSpans

    def measured(method):
        def call(*args):
            before = thread_time()
            try:
                return method(*args)
            finally:
                TaskSpans.own_time += thread_time() - before

        return call

    TaskSpans.own_time = 0.0
    TaskSpans._begin = measured(TaskSpans._begin)
    TaskSpans._end = measured(TaskSpans._end)


def own_time():
    """Seconds that the wrapper took, and those that one look at the clock takes."""
    from dask_otel.worker.execution import TaskSpans

    looks = []
    for _ in range(1000):
        before = thread_time()
        looks.append(thread_time() - before)
    return TaskSpans.own_time, statistics.median(looks)


def plain(x):
    return x


def one_span(x):
    with trace.get_tracer("benchmark").start_as_current_span("inner"):
        return x


def two_spans(x):
    tracer = trace.get_tracer("benchmark")
    outer = tracer.start_as_current_span("outer", kind=trace.SpanKind.CONSUMER, attributes=ATTRIBUTES)
    with outer, tracer.start_as_current_span("inner"):
        return x


def batch(client, function, name):
    """CPU µs of the worker for each task of a batch."""
    (before,) = client.run(cpu).values()
    with span(name):
        client.gather(client.map(function, range(TASKS), key=[f"task-{name}-{n}" for n in range(TASKS)]))
    (after,) = client.run(cpu).values()
    return (after - before) / TASKS * 1e6


def quartiles(values):
    """The median, and where half of the values lie."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} µs ({low:.1f} … {high:.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    kinds = {"plain": plain, "one": one_span, "two": two_spans}
    with_, without = ({kind: [] for kind in kinds} for _ in range(2))
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        client.run(provide)
        for number in range(rounds + 1):
            for kind, function in kinds.items():
                for plugin, took in ((True, with_), (False, without)):
                    if plugin:
                        client.register_plugin(OTelWorkerPlugin())
                    micros = batch(client, function, f"{kind}-{number}-{plugin}")
                    if plugin:
                        client.unregister_worker_plugin("dask-otel")
                    if number:  # else it warms up
                        took[kind].append(micros)
        client.run(measure)
        client.register_plugin(OTelWorkerPlugin())
        for number in range(3):
            batch(client, plain, f"measured-{number}")
        ((own, look),) = client.run(own_time).values()

    def differences(one, other):
        return [a - b for a, b in zip(one, other, strict=True)]

    sdk = differences(without["two"], without["one"])
    added = differences(with_["one"], without["one"])
    print(f"{rounds} rounds of {TASKS} tasks; CPU of a plain task on the worker: {min(without['plain']):.0f} µs")
    print("a task that uses no OpenTelemetry")
    print(f"  with dask-otel, less without: {quartiles(differences(with_['plain'], without['plain']))}")
    print(f"  the wrapper's own time: {(own / 3 / TASKS - 2 * look) * 1e6:.1f} µs")
    print("a task that starts a span")
    print(f"  with dask-otel, less without: {quartiles(added)}")
    print(f"  of which the SDK takes for another span with as many attributes: {quartiles(sdk)}")
    print(f"  beyond the SDK's span: {quartiles(differences(added, sdk))}")
    print(f"  beyond the SDK's span, by the shortest rounds: {min(with_['one']) - min(without['two']):.1f} µs")


if __name__ == "__main__":
    main()
