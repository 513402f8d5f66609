"""Bytes that the bridge keeps for finished spans and tasks, as tracemalloc counts them for the lines of dask_otel."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import dask
from distributed import Client, LocalCluster, span
from offline import Plugin

import dask_otel

OURS = tracemalloc.Filter(True, str(Path(dask_otel.__file__).parent / "*"))


def kept():
    gc.collect()
    statistics = tracemalloc.take_snapshot().filter_traces([OURS]).statistics("filename")
    return sum(statistic.size for statistic in statistics)


async def run(spans, tasks):
    """Bytes kept after so many spans with so many tasks each have come and gone."""
    plugin = Plugin(sweep_interval=0.05)
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    async with LocalCluster(**options, asynchronous=True) as cluster, Client(cluster, asynchronous=True) as client:
        await cluster.scheduler.register_scheduler_plugin(plugin, idempotent=True)
        span_tree = plugin._bridge.span_tree
        tracemalloc.start()
        before = kept()
        for number in range(spans):
            with span(f"span {number}"):
                await client.gather(client.map(int, range(tasks), key=f"group{number}", pure=False))
        while span_tree.forest.open or cluster.scheduler.task_groups:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        after = kept()
        tracemalloc.stop()
        return after - before


async def main():
    print("spans   tasks each   kept by the bridge   per span (budget 1.5 KB)   per task")
    for spans, tasks in ((200, 1), (200, 51), (2_000, 1), (20_000, 1)):
        size = await run(spans, tasks)
        if tasks == 1:
            reference = size
            per_task = ""
        else:
            per_task = f"{(size - reference) / (spans * (tasks - 1)):.1f} B more"
        print(f"{spans:6} {tasks:8} {size / 1e3:16.0f} KB {size / spans:18.0f} B {'':15} {per_task}", flush=True)


if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.work-stealing": False, "distributed.worker.daemon": False})
    asyncio.run(main())
