"""CPU and memory of the scheduler for the context that instrumented clients send.

Batches of tasks alternate: without annotations; with a carrier, which is the annotation ``otel`` with ``traceparent``
and ``baggage``; with a carrier and the Dask span of a request, of which the id is that ``traceparent``; and the same
with the annotation of the span made anew for each task, as Dask does it.

**Simulated**, a scheduler takes in graphs, and the messages to the workers are written: CPU time of the thread, and
bytes of a task's annotations.

**Live**, a client submits batches to a scheduler, and the CPU time of its event loop's thread is compared. This file is
also the preload of that scheduler.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import thread_time

import dask
from distributed.protocol import dumps

#: Batches, by what their tasks have.
PLAIN, CARRIER, REQUEST, UNSHARED = "plain", "carrier", "request", "request, made anew"
#: Tasks of a live batch.
TASKS = 1_000
#: Messages to workers that are written together.
TOGETHER = 100

_numbers = count(1)


async def dask_setup(scheduler):
    """Measure in the scheduler's process."""

    async def probe(comm=None, shares=True):
        _share(scheduler, shares)
        return json.dumps({"cpu": thread_time()})

    scheduler.handlers["probe"] = probe


def _share(scheduler, shares):
    """Have tasks share the annotations of spans, or have Dask make them anew; only if the bridge is there."""
    for plugin in scheduler.plugins.values():
        if bridge := getattr(plugin, "_bridge", None):
            shared = bridge.submissions._shared
            shared.install() if shares else shared.remove()


def annotations(kind):
    """What a client adds to one request's work."""
    traceparent = f"00-{random.getrandbits(128):032x}-{next(_numbers):016x}-01"
    carrier = {} if kind == PLAIN else {"otel": {"traceparent": traceparent, "baggage": "tenant=7"}}
    span = {"span": {"name": ("GET /items/{id}",), "ids": (traceparent,)}} if kind in (REQUEST, UNSHARED) else {}
    return carrier | span


def size(objects):
    """Bytes of what the objects hold, each thing once."""
    found = {}

    def find(each):
        if id(each) not in found:
            found[id(each)] = sys.getsizeof(each)
            parts = [*each.keys(), *each.values()] if isinstance(each, dict) else each if type(each) is tuple else ()
            for part in parts:
                find(part)

    for each in objects:
        find(each)
    return sum(found.values())


@contextmanager
def quiet():
    """Have no garbage collection in the middle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def simulated(tasks, rounds):
    """By kind: µs a task to take in a graph, and to write the message to its worker; and bytes a task."""
    from offline import Plugin
    from split import Simulated

    taken, written, kept = {}, {}, {}
    async with Simulated(Plugin()) as each:
        for number in range(-1, rounds):
            for kind in (PLAIN, CARRIER, REQUEST, UNSHARED):
                _share(each.scheduler, kind != UNSHARED)
                with quiet():
                    keys, seconds = await each.submit("", tasks, annotations=annotations(kind))
                    states = [each.scheduler.tasks[key] for key in keys]
                    begin = thread_time()
                    for start in range(0, tasks, TOGETHER):
                        dumps([each.scheduler._task_to_msg(state) for state in states[start : start + TOGETHER]])
                    writing = thread_time() - begin
                kept[kind] = size(state.annotations for state in states) / tasks
                if number >= 0:
                    taken.setdefault(kind, []).append(seconds / tasks * 1e6)
                    written.setdefault(kind, []).append(writing / tasks * 1e6)
                del states
                each.release(keys)
    return taken, written, kept


def live(rounds):
    """By kind, CPU µs of the event loop's thread for a task, for each round."""
    from live import cluster

    from dask_otel.cli.receiver import Receiver

    here = Path(__file__)
    path = os.pathsep.join(filter(None, (str(here.parent), os.environ.get("PYTHONPATH"))))
    micros = {PLAIN: [], CARRIER: [], REQUEST: [], UNSHARED: []}
    with (
        Receiver() as receiver,
        cluster(
            "--preload", "dask_otel", "--preload", str(here),
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoints["grpc"], PYTHONPATH=path,
        ) as (_, client),
    ):  # fmt: skip

        def probe(shares):
            return json.loads(client.sync(client.scheduler.probe, shares=shares))["cpu"]

        for number in range(-2, rounds):
            kinds = list(micros)
            random.shuffle(kinds)
            for kind in kinds:
                begin = probe(kind != UNSHARED)
                with dask.annotate(**annotations(kind)):
                    client.gather(client.map(int, range(TASKS), key=f"work{next(_numbers)}"))
                if number >= 0:
                    micros[kind].append((probe(True) - begin) / TASKS * 1e6)
    return micros


def ratio(pairs):
    """CPU of batches over that of the plain ones of the same rounds, with the range of 95 % of samples."""

    def of(some):
        return sum(one for one, _ in some) / sum(other for _, other in some)

    samples = sorted(of(random.choices(pairs, k=len(pairs))) for _ in range(2_000))
    return f"{of(pairs):.4f} ({samples[50]:.4f} … {samples[-50]:.4f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=5_000, help="of a simulated batch")
    parser.add_argument("--rounds", type=int, default=11, help="of simulated batches")
    parser.add_argument("--batches", type=int, default=40, help="of each kind on a live cluster; 0 leaves it out")
    options = parser.parse_args()
    taken, written, kept = asyncio.run(simulated(options.tasks, options.rounds))
    print(
        f"simulated: batches of {options.tasks:,} tasks, {options.rounds} rounds; beyond a batch without annotations:"
    )

    def beyond(values, kind):
        return statistics.median(a - b for a, b in zip(values[kind], values[PLAIN], strict=True))

    for kind in (CARRIER, REQUEST, UNSHARED):
        print(
            f"  {kind:20} {beyond(taken, kind):6.2f} µs a task to take it in, {beyond(written, kind):6.2f} µs to write "
            f"the message to the worker, {kept[kind] - kept[PLAIN]:5.0f} B"
        )
    if not options.batches:
        return
    micros = live(options.batches)
    task = statistics.mean(micros[PLAIN])
    print(f"live: {options.batches} batches of {TASKS:,} tasks of each kind; a plain task takes {task:.0f} µs")
    for kind, budget in ((CARRIER, 1.005), (REQUEST, 1.01), (UNSHARED, 1.01)):
        pairs = list(zip(micros[kind], micros[PLAIN], strict=True))
        sums = beyond(taken, kind) + beyond(written, kind)
        print(f"  {kind:20} {ratio(pairs)}; by its parts {1 + sums / task:.4f}; budget {budget}")


if __name__ == "__main__":
    main()
