"""CPU of a worker for the spans of tasks: in a loop, and on a live worker.

**In a loop**, the wrapper runs around an empty ``execute``, and around one that uses the current span. From the latter,
what the SDK takes for a span with the same attributes is taken off. The tracer provider has no processor: neither
encoding nor sending is measured. The thread that ends spans does so after the loop: a loop that never waits would
compete with it for the interpreter lock.

**On a live worker**, in a process of its own, batches of tasks run with the plugin and without it, in turn. Without the
plugin, tasks have one span or two of their own; with it, one of their own and that of the task. A task that uses no
OpenTelemetry costs less than two batches differ by chance, so the wrapper's own time is measured as well, with a clock
before and after it, from which that of an empty function in the same place is taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from pathlib import Path
from time import process_time
from types import SimpleNamespace

from distributed import Client, LocalCluster, span
from distributed.worker_state_machine import ExecuteSuccessEvent
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from dask_otel import OTelWorkerPlugin
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import Safety
from dask_otel.worker import ending
from dask_otel.worker.execution import TaskSpans

LOOPS = 5_000
TASKS = 1_000
#: As the span of a task has them, at its start and at its end.
AT_START = {f"attribute.{number}": "a value of some length" for number in range(10)}
AT_END = {"type": "int", "size": 28, "thread": 7, "duration": 0.1}
EVENT = ExecuteSuccessEvent(
    key="load-1", run_id=1, value=None, start=1.8e9, stop=1.8e9 + 1, nbytes=28, type=int, stimulus_id=""
)
PARENT = set_span_in_context(
    NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))), Context()
)


class StandIn:
    """What the wrapper needs of a worker, with one task."""

    scheduler_delay = 0.0
    name = "0"
    _address = "tcp://127.0.0.1:4000"

    def __init__(self):
        annotations = {"span": {"name": ("etl", "load"), "ids": ("a", "b")}}
        task = SimpleNamespace(
            key="load-1", annotations=annotations, span_id="b", run_id=1, start_time=None, startstops=[]
        )
        self.state = SimpleNamespace(tasks={"load-1": task})
        self.handlers, self.executors, self.threads = {}, {}, {"load-1": 7}

    async def execute(self, key, *, stimulus_id):
        return EVENT

    def batched_send(self, message):
        pass


class Using(StandIn):
    async def execute(self, key, *, stimulus_id):
        trace.get_current_span().get_span_context()
        return EVENT


class WithoutUs(StandIn):
    def __init__(self):
        super().__init__()
        self.tracer = trace.get_tracer("benchmark")

    async def execute(self, key, *, stimulus_id):
        made = self.tracer.start_span("load", PARENT, trace.SpanKind.CONSUMER, AT_START.copy(), start_time=1)
        trace.get_current_span().get_span_context()
        made.set_attributes(AT_END)
        made.end(2)
        return EVENT


def looped(rounds=15):
    """CPU µs of a run, in the shortest of some rounds: bare, wrapped, using the span, with a span of the SDK's."""

    async def run(worker, spans):
        async def loop():
            for _ in range(LOOPS):
                await worker.execute("load-1", stimulus_id="")

        before = process_time()
        await asyncio.create_task(loop())
        if spans:
            await asyncio.to_thread(spans.stop, 60)
        return (process_time() - before) / LOOPS * 1e6

    ending.LINGER = 60.0  # until it is stopped

    async def measure():
        workers = [(StandIn(), False), (StandIn(), True), (Using(), True), (WithoutUs(), False)]
        wrapped = []
        for worker, is_wrapped in workers:
            spans = None
            if is_wrapped:
                spans = TaskSpans(worker, spans="any", max_rate=0, redactor=Redactor(Capture()), safety=Safety())
                spans.install()
            wrapped.append((worker, spans))
        taken = [[await run(*each) for each in wrapped] for _ in range(rounds)]
        assert not any(spans.safety.failures for _, spans in wrapped if spans)
        return [min(each) for each in zip(*taken, strict=True)]

    return asyncio.run(measure())


def cpu():
    """CPU seconds of all threads of this process, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path("/proc/self/task").iterdir()) / 1e9


def provide():
    """Set a provider whose spans record, and are not sent."""
    trace.set_tracer_provider(TracerProvider())


def measure():
    """Measure the wrapper's steps from now on."""
    from time import perf_counter

    from dask_otel.worker.execution import TaskSpans

    times = TaskSpans.times = {"_begin": [], "_end": []}

    def empty(*args):
        pass

    def measured(method, taken):
        def call(*args):
            before = perf_counter()
            empty(*args)
            between = perf_counter()
            try:
                return method(*args)
            finally:
                taken.append((perf_counter() - between) - (between - before))

        return call

    for name, taken in times.items():
        setattr(TaskSpans, name, measured(getattr(TaskSpans, name), taken))


def own_times():
    """µs of the wrapper's steps, the median of each."""
    from dask_otel.worker.execution import TaskSpans

    return sum(statistics.median(each) for each in TaskSpans.times.values()) * 1e6


def plain(x):
    return x


def one_span(x):
    with trace.get_tracer("benchmark").start_as_current_span("inner"):
        return x


def two_spans(x):
    tracer = trace.get_tracer("benchmark")
    outer = tracer.start_as_current_span("outer", kind=trace.SpanKind.CONSUMER, attributes=AT_START | AT_END)
    with outer, tracer.start_as_current_span("inner"):
        return x


def batch(client, function, name):
    """CPU µs of the worker for each task of a batch."""
    (before,) = client.run(cpu).values()
    with span(name):
        client.gather(client.map(function, range(TASKS), key=[f"task-{name}-{n}" for n in range(TASKS)]))
    (after,) = client.run(cpu).values()
    return (after - before) / TASKS * 1e6


def live(rounds):
    """Print what batches on a live worker take."""
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
        batch(client, plain, "measured")
        (own,) = client.run(own_times).values()

    def difference(one, other):
        """The median of the differences of pairs, and where half of them lie."""
        low, middle, high = statistics.quantiles([a - b for a, b in zip(one, other, strict=True)], n=4)
        return f"{middle:.0f} µs ({low:.0f} … {high:.0f})"

    print(
        f"on a live worker: {rounds} rounds of {TASKS} tasks; a plain task takes {min(without['plain']):.0f} µs of CPU"
    )
    print(f"  a task that uses no OpenTelemetry, by the clock: {own:.1f} µs")
    print(f"  the same, with dask-otel less without: {difference(with_['plain'], without['plain'])}")
    print(f"  a task that starts a span, beyond two spans of the SDK: {difference(with_['one'], without['two'])}")
    print(f"  the same, by the shortest rounds: {min(with_['one']) - min(without['two']):.0f} µs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="batches on a live worker; 0 leaves it out")
    rounds = parser.parse_args().rounds
    trace.set_tracer_provider(TracerProvider())
    bare, unused, used, sdk = looped()
    print("in a loop")
    print(f"  a task that uses no OpenTelemetry: {unused - bare:.1f} µs")
    print(f"  a task that uses the current span: {used - bare:.0f} µs, of which the SDK's span is {sdk - bare:.0f} µs")
    print(f"  beyond the SDK's span: {used - sdk:.0f} µs")
    if rounds:
        live(rounds)


if __name__ == "__main__":
    main()
