"""Steps of a plan that give the cluster work."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import dask.array
import dask.bag
import dask.dataframe
import pandas
from distributed import Client, Reschedule, fire_and_forget, span

from . import tasks
from .cluster import Cluster, until


async def many(cluster: Cluster, rng: random.Random) -> None:
    """Many tasks, in groups that are named after the function, or by hand."""
    options = {"seconds": rng.choice((0.0, 0.01, 0.1)), "size": rng.choice((0, 1000, 300_000))}
    key = rng.choice((None, None, "scale", "fit"))
    data = rng.choice((range(rng.randint(1, 20)), cluster.some(rng, 8) or [1]))
    function = rng.choice((tasks.work, tasks.load, tasks.doze))
    with cluster.inside(rng):
        cluster.keep(rng, cluster.client.map(function, data, key=key, pure=rng.random() < 0.5, **options))


async def submit(cluster: Cluster, rng: random.Random) -> None:
    """One task, with dependencies perhaps; under a key that may be taken already."""
    key = rng.choice((None, None, f"fit-{rng.randint(0, 2)}"))
    function = rng.choice((tasks.work, tasks.load, tasks.doze, tasks.fail))
    options = {"seconds": rng.choice((0.0, 0.1, 0.8)), "size": rng.choice((0, 400_000))}
    if function is tasks.fail:
        options = {}
    with cluster.inside(rng):
        cluster.keep(rng, [cluster.client.submit(function, *(cluster.some(rng) or [0]), key=key, **options)])


async def chain(cluster: Cluster, rng: random.Random) -> None:
    """Layers of tasks, each in a span below the one before; some fail."""
    with cluster.inside(rng):
        layer = cluster.client.map(tasks.load, range(rng.randint(2, 8)), pure=False)
        for tag in rng.sample("abcd", rng.randint(1, 3)):
            with span(tag):
                layer = cluster.client.map(rng.choice((tasks.work, tasks.load, tasks.doze)), layer, pure=False)
        if rng.random() < 0.5:
            layer = [cluster.client.submit(tasks.fail, *layer), *layer]
            layer += cluster.client.map(tasks.work, layer, pure=False)
    cluster.keep(rng, layer)


async def unreliable(cluster: Cluster, rng: random.Random) -> None:
    """Tasks that fail, or reschedule themselves, at first."""
    error, retries = rng.choice((OSError, Reschedule)), rng.randint(0, 2)
    tokens = [f"{rng.random()}" for _ in range(rng.randint(1, 4))]
    with cluster.inside(rng):
        futures = cluster.client.map(tasks.sometimes, tokens, error=error, times=rng.randint(1, 2), retries=retries)
        cluster.keep(rng, futures + cluster.client.map(tasks.work, futures))


async def spawn(cluster: Cluster, rng: random.Random) -> None:
    """Tasks that submit tasks; some wait for them."""
    with cluster.inside(rng):
        sizes = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
        futures = cluster.client.map(tasks.spawn, sizes, tag="inner", wait=rng.random() < 0.6, pure=False)
    cluster.keep(rng, futures)


async def actor(cluster: Cluster, rng: random.Random) -> None:
    """An actor, and tasks that depend on it."""
    with cluster.inside(rng):
        future = cluster.client.submit(tasks.Counting, actor=True, pure=False)
        cluster.keep(rng, [future, cluster.client.submit(tasks.load, future)])
    await until(lambda: future.status != "pending", 1)
    if future.status == "finished":
        with cluster.client.as_current():
            counting = await asyncio.wait_for(future.result(), 2)
            await asyncio.wait_for(_add(counting), 2)


async def _add(counting: Any) -> None:
    await counting.add()


async def scatter(cluster: Cluster, rng: random.Random) -> None:
    """Data that no task made; in a group that tasks may share."""
    data = {f"{rng.choice(('data', 'fit', 'load'))}-{rng.random()}": bytes(rng.randint(1, 10_000)) for _ in "ab"}
    scattered = await asyncio.wait_for(cluster.client.scatter(data, broadcast=rng.random() < 0.3), 2)
    if rng.random() < 0.7:
        with cluster.inside(rng):
            cluster.keep(rng, cluster.client.map(tasks.work, list(scattered.values())))
    cluster.keep(rng, list(scattered.values()))


async def publish(cluster: Cluster, rng: random.Random) -> None:
    """Have the scheduler hold results."""
    await cluster.client.publish_dataset(cluster.some(rng), name=f"{rng.random()}")


async def forget(cluster: Cluster, rng: random.Random) -> None:
    """Tasks that run though nobody holds them."""
    with cluster.inside(rng):
        fire_and_forget(cluster.client.map(rng.choice((tasks.load, tasks.fail)), range(rng.randint(1, 6)), pure=False))


async def collection(cluster: Cluster, rng: random.Random) -> None:
    """Graphs of collections."""
    array = dask.array.random.random((40, 40), chunks=(10, 20))
    bag = dask.bag.range(20, npartitions=4)
    with cluster.inside(rng):
        graph = rng.choice((array.sum(), array.rechunk((20, 10)), bag.map(tasks.load).fold(max), bag.frequencies()))
        cluster.keep(rng, [cluster.client.compute(graph, optimize_graph=rng.random() < 0.5)])


async def shuffle(cluster: Cluster, rng: random.Random) -> None:
    """P2P: a shuffle, or a rechunk."""
    frame = dask.dataframe.from_pandas(pandas.DataFrame({"a": range(60), "b": 1.0}), npartitions=5)
    array = dask.array.ones((30, 30), chunks=(30, 5))
    with cluster.inside(rng):
        graph = rng.choice((frame.shuffle("a").b.sum(), array.rechunk((5, 30), method="p2p").sum()))
        cluster.keep(rng, [cluster.client.compute(graph)])


async def two_clients(cluster: Cluster, rng: random.Random) -> None:
    """The same functions, even the same tasks, from two clients in two spans at once."""
    function, data = rng.choice((tasks.work, tasks.load, tasks.fail)), range(rng.randint(1, 6))
    async with Client(cluster.scheduler.address, asynchronous=True, name="bob", set_as_default=False) as bob:
        with cluster.inside(rng):
            cluster.futures += cluster.client.map(function, data, pure=True)
        with cluster.inside(rng):
            others = bob.map(function, data, pure=True)
        await until(lambda: all(future.done() for future in others), 1)


async def drop(cluster: Cluster, rng: random.Random) -> None:
    """Let go of some futures."""
    for future in cluster.some(rng, 20):
        cluster.futures.remove(future)


async def wait(cluster: Cluster, rng: random.Random) -> None:
    """Wait until all is done, and perhaps until segments have closed."""
    await cluster.settled(1)
    await asyncio.sleep(rng.choice((0.0, 0.6)))
