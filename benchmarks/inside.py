"""CPU of workers and of the scheduler for the spans of tasks.

**In a loop**, the wrapper runs around an empty ``execute``, and around one that uses the current span. From the latter,
what the SDK takes for a span with the same attributes is taken off. The tracer provider has no processor: neither
encoding nor sending is measured. Rounds are short and alternate, so that in many of them nothing else runs on the
processor, and the shortest counts. What Dask needs to write the event about a span and to read it is a row of its own.

``inside_worker.py`` and ``inside_scheduler.py`` measure a live worker and a live scheduler. Each value is the median of
some groups of rounds or batches, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from time import process_time, thread_time
from types import SimpleNamespace

import inside_scheduler
import inside_worker
from distributed.protocol import dumps, loads
from distributed.worker_state_machine import ExecuteSuccessEvent
from inside_worker import AT_END, AT_START, PARENT
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from dask_otel.messages import TOPIC, SpanMade
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import Safety
from dask_otel.worker import ending
from dask_otel.worker.execution import TaskSpans

#: Tasks of a round in a loop; and rounds of a group, of which the shortest counts.
LOOPS, ROUNDS = 200, 60
EVENT = ExecuteSuccessEvent(
    key="load-1", run_id=1, value=None, start=1.8e9, stop=1.8e9 + 1, nbytes=28, type=int, stimulus_id=""
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


def looped(groups):
    """CPU µs of a run by group of rounds: bare, wrapped, using the span, with a span of the SDK's."""

    async def run(worker, spans):
        async def loop():
            for _ in range(LOOPS):
                await worker.execute("load-1", stimulus_id="")

        if spans:
            spans._ending = ending.EndingThread(spans.safety)
        before = process_time()
        await asyncio.create_task(loop())
        if spans:
            spans.stop(60)
        return (process_time() - before) / LOOPS * 1e6

    # A loop that never waits would compete with the thread that ends spans for the interpreter lock.
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
        taken = []
        for _ in range(groups):
            rounds = [[await run(*each) for each in wrapped] for _ in range(ROUNDS)]
            taken.append([min(each) for each in zip(*rounds, strict=True)])
        assert not any(spans.safety.failures for _, spans in wrapped if spans)
        return taken

    return asyncio.run(measure())


def messages(groups):
    """CPU µs for one event among other messages, by group: to write it, and to read it, without the connection."""
    made = SpanMade("load-0123456789abcdef", 17, "2b6b8a1c-0f0e-4b8e-9d5c-3c2d1e0f9a8b", "load", *(3 << 60,) * 3)
    event = {"op": "log-event", "topic": TOPIC, "msg": made.to_event()}
    other = {"op": "task-finished", "key": "load-0123456789abcdef", "nbytes": 28, "type": b"x" * 100, "thread": 7}
    without, with_ = [other] * 20, [other, event] * 20
    steps = [(dumps, without), (dumps, with_), (loads, dumps(without)), (loads, dumps(with_))]
    taken = []
    for _ in range(groups):
        best = [float("inf")] * 4
        for _ in range(ROUNDS):
            for number, (step, what) in enumerate(steps):
                before = thread_time()
                step(what)
                best[number] = min(best[number], thread_time() - before)
        taken.append(((best[1] - best[0]) / 20 * 1e6, (best[3] - best[2]) / 20 * 1e6))
    return taken


def spread(values):
    """The median of some groups, the lowest and the highest."""
    return f"{statistics.median(values):.1f} µs ({min(values):.1f} … {max(values):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, default=5, help="of rounds in a loop")
    parser.add_argument("--batches", type=int, default=20, help="on a live cluster; 0 leaves it out")
    options = parser.parse_args()
    trace.set_tracer_provider(TracerProvider())
    taken, (writes, reads) = looped(options.groups), zip(*messages(options.groups), strict=True)
    print(f"in a loop: {options.groups} groups of {ROUNDS} rounds")
    print(f"  a task that uses no OpenTelemetry: {spread([unused - bare for bare, unused, _, _ in taken])}")
    print(f"  a span of the SDK: {spread([sdk - bare for bare, _, _, sdk in taken])}")
    print(f"  a task that uses the current span, beyond it: {spread([used - sdk for _, _, used, sdk in taken])}")
    print(f"  Dask, to write the event about a span: {spread(writes)}")
    print(f"  Dask, to read it: {spread(reads)}")
    if options.batches:
        inside_worker.measure(options.batches, spread)
        inside_scheduler.measure(options.batches, statistics.median(reads))


if __name__ == "__main__":
    main()
