"""What it costs that each task counts where it was requested.

Three schedulers take in the same graphs in turn: Dask alone, one with the bridge, and one with the bridge and
``otel.split-groups: false``. Workers and clients are simulated. All times are CPU time of the thread of the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count
from math import inf
from statistics import median
from time import thread_time

import dask
from dask._expr import LLGExpr
from dask._task_spec import Task
from distributed import Scheduler
from distributed.protocol import Serialized, serialize, to_serialize
from distributed.scheduler import ClientState
from offline import Plugin
from simulated import CONFIG
from workers import Workers

CLIENT, OTHER = "Client-simulated", "Client-other"
SATURATIONS = (1.1, inf)
WORKERS = 4
#: Tasks of each span, where there are many spans.
A_SPAN = 10


class Unsplit(Plugin):
    """The bridge with ``otel.split-groups: false``."""

    def connect(self, scheduler, safety):
        settings, output = super().connect(scheduler, safety)
        return replace(settings, split_groups=False), output


class Simulated:
    """A scheduler that takes in graphs of tasks of one function.

    Parameters
    ----------
    plugin
        The bridge; None for Dask alone.
    """

    def __init__(self, plugin=None, saturation=1.1):
        self._plugin = plugin
        self._saturation = saturation
        self._numbers = count()

    async def __aenter__(self):
        with dask.config.set(CONFIG | {"distributed.scheduler.worker-saturation": self._saturation}):
            self.scheduler = await Scheduler(protocol="inproc", dashboard=False, dashboard_address=":0")
        for client in (CLIENT, OTHER):
            self.scheduler.clients[client] = ClientState(client)
        self._workers = Workers(self.scheduler)
        for number in range(WORKERS):
            self._workers.add(number)
        if self._plugin:
            await self.scheduler.register_scheduler_plugin(self._plugin, idempotent=True)
        return self

    async def __aexit__(self, *failure):
        await self.scheduler.close()
        assert not self._plugin or not self._plugin.safety.failures

    async def submit(self, span, size, client=CLIENT, annotations=None):
        """Take in a graph; return its keys, and the seconds for which it held the event loop.

        With annotations, there is a span only if these have one, and the tasks have a prefix of their own.
        """
        first = next(self._numbers)
        prefix = f"work{first}" if annotations is not None else "work"
        keys = [f"{prefix}-{number}" for number in (first, *(next(self._numbers) for _ in range(size - 1)))]
        create, seconds = self.scheduler._create_taskstate_from_graph, []

        def timed(**details):
            begin = thread_time()
            try:
                return create(**details)
            finally:
                seconds.append(thread_time() - begin)

        self.scheduler._create_taskstate_from_graph = timed
        await self.scheduler.stream_handlers["update-graph"](
            client=client,
            expr_ser=Serialized(*serialize(to_serialize(LLGExpr({key: Task(key, max, 0) for key in keys})))),
            keys=set(keys),
            span_metadata={"collections": []},
            internal_priority={key: number for number, key in enumerate(keys)},
            submitting_task=None,
            annotations={"span": {"name": (span,), "ids": (f"id-{span}",)}} if annotations is None else annotations,
        )
        del self.scheduler._create_taskstate_from_graph
        return keys, seconds[0]

    def run(self):
        """Have all tasks end; return the seconds."""
        seconds = 0.0
        while running := [task for worker in self.scheduler.workers.values() for task in worker.processing]:
            messages = [self._workers.finished(task) for task in running]
            begin = thread_time()
            for message in messages:
                self.scheduler.handle_task_finished(**message)
            seconds += thread_time() - begin
        return seconds

    def release(self, keys, client=CLIENT):
        """The client lets go of keys; return the seconds."""
        begin = thread_time()
        self.scheduler.client_releases_keys(keys=keys, client=client)
        return thread_time() - begin


async def intake(size, rounds):
    """Seconds to take in a graph, by scheduler, and whether its tasks collide with those of another span."""
    seconds = {}
    async with AsyncExitStack() as stack:
        schedulers = {
            name: await stack.enter_async_context(Simulated(plugin))
            for name, plugin in (("alone", None), ("unsplit", Unsplit()), ("split", Plugin()))
        }
        for each in schedulers.values():
            await each.submit("home", 1, OTHER)
        for _ in range(rounds):
            for span in ("home", "guest"):
                for name, each in schedulers.items():
                    gc.collect()
                    gc.disable()
                    keys, taken = await each.submit(span, size)
                    gc.enable()
                    seconds.setdefault((name, span), []).append(taken)
                    each.release(keys)
    return seconds


async def decisions(parts):
    """Seconds of a decision: of a task of a group that is not split, and of one that is."""
    seconds = []
    async with Simulated(saturation=inf) as alone, Simulated(Plugin(), saturation=inf) as split:
        for each in (alone, split):
            for number in range(parts):
                await each.submit(f"span {number}", 2)
        for _ in range(5):
            for each in (alone, split):
                task = next(iter(each.scheduler.tasks.values()))
                begin = thread_time()
                for _ in range(2_000):
                    each.scheduler.is_rootish(task)
                    each.scheduler.decide_worker_rootish_queuing_disabled(task)
                seconds.append((thread_time() - begin) / 2_000)
    return median(seconds[::2]), median(seconds[1::2])


async def loop(plugin, spans, saturation):
    """Seconds for each task of a loop of spans around one function, from submission to release."""
    async with Simulated(plugin, saturation) as each:
        gc.collect()
        gc.disable()
        seconds, keys = 0.0, []
        for number in range(spans):
            more, taken = await each.submit(f"span {number}", A_SPAN)
            keys += more
            seconds += taken
        seconds += each.run() + each.release(keys)
        gc.enable()
    return seconds / (spans * A_SPAN)


async def main(size, rounds, spans):
    taken = await intake(size, rounds)

    def extra(span, without):
        """Microseconds a task, and the part of Dask's own time: median of the rounds, in which both ran."""
        rounds = list(zip(taken["split", span], taken[without], taken["alone", span], strict=True))
        return median(a - b for a, b, _ in rounds) / size * 1e6, median((a - b) / dask for a, b, dask in rounds)

    print(f"taking in {size:,} tasks of one function, {rounds} rounds; of this in µs a task:")
    print(f"  Dask alone                            {median(taken['alone', 'guest']) / size * 1e6:7.2f}")
    print(
        "  splitting, if none of them moves      {:7.2f}  ({:.3f} of Dask's own)".format(
            *extra("home", ("unsplit", "home"))
        )
    )
    print(
        "  splitting, if all of them move        {:7.2f}  ({:.3f}; goal 0.1)".format(
            *extra("guest", ("unsplit", "home"))
        )
    )
    for parts in (1, *spans):
        alone, split = await decisions(parts)
        print(
            f"two decisions, {parts:5,} spans: Dask alone {alone * 1e6:6.2f} µs, with the bridge {split * 1e6:6.2f} µs"
        )
    for saturation in SATURATIONS:
        for number in spans:
            pairs = [
                (await loop(None, number, saturation), await loop(Plugin(), number, saturation)) for _ in range(rounds)
            ]
            alone, split = (median(each) * 1e6 for each in zip(*pairs, strict=True))
            ratio = median(b / a for a, b in pairs)
            print(
                f"{number:5,} spans of {A_SPAN} tasks, worker-saturation {saturation}: "
                f"Dask alone {alone:6.1f} µs a task, with the bridge {split:6.1f} µs, ratio {ratio:.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--spans", type=int, nargs="+", default=[100, 1_000])
    options = parser.parse_args()
    logging.disable(logging.NOTSET)
    asyncio.run(main(options.tasks, options.rounds, options.spans))
