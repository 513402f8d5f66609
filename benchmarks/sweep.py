"""Longest hold of the event loop by a sweep: 2,000 live spans, 10,000 live groups, on a real scheduler."""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
from time import perf_counter

from distributed import Client, Scheduler, span
from offline import Plugin

SPANS = 2_000
GROUPS_PER_SPAN = 5
ROUNDS = 10


class LoopMonitor:
    """Longest time between two turns of the event loop."""

    async def __aenter__(self):
        self.longest, self._running = 0.0, True
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc):
        self._running = False
        await self._task

    async def _run(self):
        last = perf_counter()
        while self._running:
            await asyncio.sleep(0)
            now = perf_counter()
            self.longest, last = max(self.longest, now - last), now


async def measure(what, work, prepare=lambda: None):
    """Run ``work`` some times, each under a monitor."""
    holds, totals = [], []
    for _ in range(ROUNDS):
        prepare()
        await asyncio.sleep(0.01)
        async with LoopMonitor() as monitor:
            begin = perf_counter()
            await work()
            totals.append(perf_counter() - begin)
        holds.append(monitor.longest)
    hold, worst, total = (value * 1e3 for value in (statistics.median(holds), max(holds), statistics.median(totals)))
    print(f"  {what:28} longest hold {hold:5.2f} ms (worst of {ROUNDS}: {worst:5.2f}), in all {total:6.1f} ms")


def submit(client, number):
    """A span with some groups of one task each; there is no worker, so they stay."""
    with span(f"span {number}"):
        futures = []
        for i in range(GROUPS_PER_SPAN):
            key = f"group{number}x{i}"
            futures.append(client.submit(int, key=key))
        return futures


async def main():
    plugin = Plugin()
    async with Scheduler(port=0, dashboard_address="127.0.0.1:0", dashboard=False) as scheduler:
        await scheduler.register_scheduler_plugin(plugin, idempotent=True)
        async with Client(scheduler.address, asynchronous=True) as client:
            futures = [future for number in range(SPANS) for future in submit(client, number)]
            while len(scheduler.task_groups) < SPANS * GROUPS_PER_SPAN:
                await asyncio.sleep(0.1)
            bridge = plugin._bridge
            sweep = bridge.sweep.sweep
            await sweep()
            groups = list(scheduler.task_groups.values())
            print(f"{len(bridge.span_tree.forest.open)} live spans, {len(groups)} live groups (budget 5 ms):")
            await measure("nothing changed", sweep)
            await measure("every group changed", sweep, lambda: [*map(bridge.inbox.touch, groups)])
            keys = [future.key for future in futures]
            await client.cancel(futures)
            while any(key in scheduler.tasks for key in keys):
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
            async with LoopMonitor() as monitor:
                begin = perf_counter()
                await sweep()
                seconds = perf_counter() - begin
            sent = plugin.sink.records
            print(
                f"  all {sent} spans sent at once       longest hold {monitor.longest * 1e3:5.2f} ms, "
                f"in all {seconds * 1e3:7.1f} ms"
            )
            assert not plugin.safety.failures


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # A collection of all of Python's objects takes longer than any sweep, whoever causes it.
    gc.disable()
    asyncio.run(main())
