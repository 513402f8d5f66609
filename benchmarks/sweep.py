"""Longest hold of the event loop by a sweep: 2,000 live spans, 10,000 live groups, on a real scheduler.

In CPU time, since a machine that is shared interrupts this process for longer than a sweep holds the loop; and in the
time of a clock, which includes such interruptions.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
from time import perf_counter, thread_time

from distributed import Client, Scheduler, span
from offline import Plugin

SPANS = 2_000
GROUPS_PER_SPAN = 5
ROUNDS = 10


class LoopMonitor:
    """Longest time between two turns of the event loop: of CPU, and of a clock."""

    async def __aenter__(self):
        self.longest, self.longest_by_clock, self._running = 0.0, 0.0, True
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc):
        self._running = False
        await self._task

    async def _run(self):
        cpu, clock = thread_time(), perf_counter()
        while self._running:
            await asyncio.sleep(0)
            cpu_now, now = thread_time(), perf_counter()
            self.longest, cpu = max(self.longest, cpu_now - cpu), cpu_now
            self.longest_by_clock, clock = max(self.longest_by_clock, now - clock), now


async def measure(what, work, prepare=lambda: None):
    """Run ``work`` some times, each under a monitor."""
    holds, by_clock, totals = [], [], []
    for _ in range(ROUNDS):
        prepare()
        await asyncio.sleep(0.01)
        async with LoopMonitor() as monitor:
            begin = thread_time()
            await work()
            totals.append(thread_time() - begin)
        holds.append(monitor.longest)
        by_clock.append(monitor.longest_by_clock)
    report(what, statistics.median(holds), statistics.median(by_clock), statistics.median(totals), max(holds))


def report(what, hold, by_clock, total, worst=None):
    """Print seconds as milliseconds."""
    of_all = "" if worst is None else f"; worst of {ROUNDS}, of CPU: {worst * 1e3:.2f}"
    print(
        f"  {what:28} longest hold {hold * 1e3:5.2f} ms of CPU (by the clock: {by_clock * 1e3:.2f}{of_all}), "
        f"in all {total * 1e3:6.1f} ms of CPU"
    )


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
            print(f"{len(bridge.span_tree.forest.open)} live spans, {len(groups)} live groups (budget 3 ms):")
            await measure("nothing changed", sweep)
            await measure("every group changed", sweep, lambda: [*map(bridge.inbox.touch, groups)])
            keys = [future.key for future in futures]
            await client.cancel(futures)
            while any(key in scheduler.tasks for key in keys):
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
            async with LoopMonitor() as monitor:
                begin = thread_time()
                await sweep()
                seconds = thread_time() - begin
            sent = plugin.sink.records
            report(f"all {sent} spans sent at once", monitor.longest, monitor.longest_by_clock, seconds)
            assert not plugin.safety.failures


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # A collection of all of Python's objects takes longer than any sweep, whoever causes it.
    gc.disable()
    asyncio.run(main())
