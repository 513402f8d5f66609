"""CPU of a client: what its instrumentation adds to ``submit``, to waiting for a result, and to a computation.

**In a loop**, the wrappers run around an empty submission. **With a cluster**, the scheduler and the worker are other
processes, and what the wrappers read is in no cache when they run. Rounds with and without instrumentation alternate in
one process, and of each group of rounds the shortest counts: in many of them, nothing else runs on the processor. Each
value is the median of the groups, with the lowest and the highest. The tracer provider has no exporter, and the SDK's
span of the request is made outside of what is measured.

"Calling thread" is the CPU time of the thread that calls ``submit`` or ``result``; "process" also has that of the event
loop, until the tasks have ended. The garbage collector is off.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from contextlib import contextmanager, nullcontext
from time import perf_counter, process_time, thread_time
from types import SimpleNamespace

import dask.array
import distributed.client
from dask._expr import LLGExpr
from distributed import Client, LocalCluster
from distributed.spans import SpanMetadata
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider

import dask_otel
from dask_otel.client import phases
from dask_otel.client.submitting import safety
from dask_otel.safety import Safety

#: Submissions of a round, and chunks of a computation's array, which make some 10,000 tasks.
SUBMITS, CHUNKS = 200, 7_500
#: Submissions of a round in a loop.
LOOPS = 2_000


def same(x):
    return x


@contextmanager
def instrumented():
    dask_otel.instrument()
    try:
        yield
    finally:
        dask_otel.uninstrument()


@contextmanager
def with_phases():
    """Only what measures phases."""
    own = Safety()
    undo = phases.install(own)
    try:
        yield
    finally:
        undo()
    assert not own.failures, own.failures


class Unsent(SynchronousMultiSpanProcessor):
    """A processor that does nothing: with none, dask-otel takes the provider for one that sends no spans."""

    def __init__(self):
        super().__init__()
        self.add_span_processor(SpanProcessor())


def request():
    return trace.get_tracer("benchmark").start_as_current_span("GET /report/{id}")


#: By what a row is called: what is installed, and what is current.
VARIANTS = {
    "without": (nullcontext, nullcontext),
    "instrumented, without a current span": (instrumented, nullcontext),
    "phases only, without a current span": (with_phases, nullcontext),
    "without, in a request": (nullcontext, request),
    "instrumented, in a request": (instrumented, request),
    "phases only, in a request": (with_phases, request),
}


def looped(groups, rounds):
    """CPU seconds of the wrappers around an empty submission in a loop, by variant for each group of rounds."""
    client = SimpleNamespace(
        name="client", id="Client-1", asynchronous=False, _scheduler_identity={"id": "Scheduler-1"}
    )
    expr, keys = LLGExpr({"x": (same, 1)}), ["x"]
    serialized = {}, [b"x" * 200]
    own = Client._graph_to_futures, distributed.client.serialize

    def empty(client, expr, keys, span_metadata, **arguments):
        return distributed.client.serialize(expr)

    def submissions(client):
        before = thread_time()
        for _ in range(LOOPS):
            Client._graph_to_futures(client, expr, keys, span_metadata=SpanMetadata(collections=[{"type": "Future"}]))
        return ((thread_time() - before) / LOOPS,)

    Client._graph_to_futures, distributed.client.serialize = empty, lambda *args, **kwargs: serialized
    try:
        return measured(client, submissions, groups, rounds)
    finally:
        Client._graph_to_futures, distributed.client.serialize = own


def submits(client):
    """CPU seconds of a submission: of the calling thread, and of the process until the tasks have ended."""
    before, process = thread_time(), process_time()
    futures = [client.submit(same, number, pure=False) for number in range(SUBMITS)]
    taken = thread_time() - before
    client.sync(_wait, futures)  # not ``wait``, which is measured
    return taken / SUBMITS, (process_time() - process) / SUBMITS


async def _wait(futures):
    for future in futures:
        await future._state.wait()


def results(client):
    """CPU seconds to get the result of a task that has ended: of the calling thread, and of the process."""
    future = client.submit(same, 1, pure=False)
    client.sync(_wait, [future])
    before, process = thread_time(), process_time()
    for _ in range(SUBMITS):
        future.result()
    return (thread_time() - before) / SUBMITS, (process_time() - process) / SUBMITS


def measured(client, function, groups, rounds):
    """By variant, for each group of rounds, the shortest times."""
    out = {name: [] for name in VARIANTS}
    for _ in range(groups):
        taken = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            for name, (installed, current) in VARIANTS.items():
                with installed(), current():
                    taken[name].append(function(client))
        for name, values in taken.items():
            out[name].append([min(each) for each in zip(*values, strict=True)])
    return out


def spread(values, unit="µs", digits=1):
    """The median of some groups, the lowest and the highest."""
    return f"{statistics.median(values):.{digits}f} {unit} ({min(values):.{digits}f} … {max(values):.{digits}f})"


def print_differences(taken):
    print_difference("added without a current span", taken, "instrumented, without a current span", "without")
    print_difference("of that, the phases", taken, "phases only, without a current span", "without")
    print_difference("added in a request", taken, "instrumented, in a request", "without, in a request")
    print_difference("of that, the phases", taken, "phases only, in a request", "without, in a request")


def print_difference(what, taken, name, base):
    for column, where in enumerate(("calling thread", "process")[: len(taken[name][0])]):
        pairs = zip(taken[name], taken[base], strict=True)
        print(f"  {what}, {where}: {spread([(each[column] - plain[column]) * 1e6 for each, plain in pairs])}")


def computed(client, batches):
    """Wall-clock and CPU seconds of a computation, for each batch; and its tasks."""
    names = ("without", "without, in a request", "instrumented, in a request", "phases only, in a request")
    taken, tasks = {name: [] for name in names}, 0
    for number in range(-1, batches):  # the first one warms up
        # Each one begins as often as another.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            total = dask.array.ones((100, CHUNKS // 100), chunks=1).sum()
            tasks = len(total.__dask_graph__())
            installed, current = VARIANTS[name]
            with installed(), current():
                before, process = perf_counter(), process_time()
                client.compute(total, sync=True)
                if number >= 0:
                    taken[name].append((perf_counter() - before, process_time() - process))
            gc.collect()
    return taken, tasks


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, default=5, help="of rounds")
    parser.add_argument("--rounds", type=int, default=10, help="of a group, of which the shortest counts")
    parser.add_argument("--batches", type=int, default=8, help="of computations; 0 leaves them out")
    options = parser.parse_args()
    trace.set_tracer_provider(TracerProvider(active_span_processor=Unsent()))
    gc.disable()
    print(f"wrappers around an empty submission, in a loop: {options.groups} groups of {options.rounds} rounds")
    looped(1, 1)
    print_differences(looped(options.groups, options.rounds))
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        measured(client, submits, 1, 1)
        taken = measured(client, submits, options.groups, options.rounds)
        print(f"submit: {options.groups} groups of {options.rounds} rounds of {SUBMITS}")
        for column, where in enumerate(("calling thread", "process")):
            print(f"  Dask alone, {where}: {spread([each[column] * 1e6 for each in taken['without']])}")
        print_differences(taken)
        taken = measured(client, results, options.groups, options.rounds)
        print(f"result of a task that has ended: {options.groups} groups of {options.rounds} rounds of {SUBMITS}")
        for column, where in enumerate(("calling thread", "process")):
            print(f"  Dask alone, {where}: {spread([each[column] * 1e6 for each in taken['without']])}")
        print_differences(taken)
        if options.batches:
            taken, tasks = computed(client, options.batches)
            print(f"compute of {tasks:,} tasks: {options.batches} batches")
            print_computed(taken)
        assert not safety.failures, safety.failures


def print_computed(taken):
    wall = [seconds for seconds, _ in taken["without"]]
    print(f"  Dask alone: {spread([each * 1e3 for each in wall], 'ms', 0)}")
    for name, base in (
        ("instrumented, in a request", "without, in a request"),
        ("phases only, in a request", "without, in a request"),
        ("without, in a request", "without"),
    ):
        pairs = [*zip(taken[name], taken[base], strict=True)]
        ratios = [with_[0] / plain[0] for with_, plain in pairs]
        added = [(with_[1] - plain[1]) * 1e3 for with_, plain in pairs]
        share = statistics.median(added) / 1e3 / statistics.median(wall)
        print(f"  {name}: {spread(ratios, 'of the time', 3)}")
        print(f"    CPU of the client's process: {spread(added, 'ms more')}, {share:.2%} of the time")


if __name__ == "__main__":
    main()
