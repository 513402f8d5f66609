"""Ways in which a cluster ends: ``python -m support.exits <way>`` runs a workflow and ends so."""

from __future__ import annotations

import asyncio
import sys

import dask
from distributed import Client, LocalCluster, Scheduler, Worker

import dask_otel
from support.workflows import nested

LOCAL = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}


def work(client: Client) -> None:
    root_id, _ = nested(client)
    sys.stdout.write(f"TRACE {dask_otel.trace_id(root_id)}\n")
    sys.stdout.flush()


def cluster_close() -> None:
    with LocalCluster(**LOCAL) as cluster, Client(cluster) as client:
        work(client)


def client_shutdown() -> None:
    client = Client(LocalCluster(**LOCAL))
    work(client)
    client.shutdown()


def interpreter_exits() -> None:
    global kept
    kept = LocalCluster(**LOCAL)
    work(Client(kept))


def interpreter_exits_with_threads() -> None:
    global kept
    kept = LocalCluster(**LOCAL, processes=False)
    work(Client(kept))


def system_exit() -> None:
    interpreter_exits()
    sys.exit(3)


def scheduler_close() -> None:
    async def run() -> None:
        async with (
            Scheduler(port=0, dashboard_address="127.0.0.1:0") as scheduler,
            Worker(scheduler.address, nthreads=2),
        ):
            await asyncio.to_thread(_in_thread, scheduler.address)
            await scheduler.close()

    asyncio.run(run())


def event_loop_ends() -> None:
    async def run() -> None:
        global kept
        kept = await LocalCluster(**LOCAL, asynchronous=True)
        await asyncio.to_thread(_in_thread, kept.scheduler_address)

    asyncio.run(run())


def _in_thread(address: str) -> None:
    with Client(address) as client:
        work(client)


WAYS = {
    way.__name__: way
    for way in (
        cluster_close,
        client_shutdown,
        interpreter_exits,
        interpreter_exits_with_threads,
        system_exit,
        scheduler_close,
        event_loop_ends,
    )
}

if __name__ == "__main__":
    with dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}):
        WAYS[sys.argv[1]]()
