"""Steps of a plan that break something, or take it back."""

from __future__ import annotations

import asyncio
import os
import random
import signal

from distributed import Client
from distributed.core import Status

from . import tasks
from .cluster import Cluster, Person, until


async def cancel(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Cancel tasks, running ones too."""
    await person.client.cancel(person.some(rng, 8), force=rng.random() < 0.5)


async def retry(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Run again what failed."""
    await person.client.retry([future for future in person.futures if future.status == "error"])


async def close_worker(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Stop a worker, with all it holds and does, and start another."""
    await cluster.victim(rng).close(executor_wait=False)
    await cluster.add_worker(rng)


async def lose_worker(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Break a worker's connection."""
    cluster.victim(rng).batched_stream.comm.abort()
    await cluster.add_worker(rng)


async def remove_worker(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Let the scheduler give a worker up; it comes to know by itself."""
    address = cluster.victim(rng).address
    await cluster.scheduler.remove_worker(address, stimulus_id="check-worker-ttl-test", close=rng.random() < 0.5)
    await cluster.add_worker(rng)


async def retire_worker(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Retire a worker: its results are moved."""
    await cluster.add_worker(rng)
    await asyncio.wait_for(person.client.retire_workers([cluster.victim(rng).address]), 3)


async def pause_worker(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Pause a worker for a while."""
    worker = cluster.victim(rng)
    worker.status = Status.paused
    await asyncio.sleep(0.1)
    if worker.status == Status.paused:
        worker.status = Status.running


async def move(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Copy or move results."""
    done = [future for future in person.futures if future.status == "finished"]
    await asyncio.wait_for(person.client.replicate(done) if rng.random() < 0.5 else person.client.rebalance(), 3)


async def restart(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Restart the cluster; without nannies its workers are gone."""
    await person.client.restart(wait_for_workers=False, timeout=3)
    await cluster.add_worker(rng)


async def lose_client(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """A second client that leaves while its tasks run."""
    async with Client(cluster.scheduler.address, asynchronous=True, name="bob", set_as_default=False) as bob:
        with cluster.inside(rng):
            futures = bob.map(rng.choice((tasks.work, tasks.load)), range(8), seconds=0.1, pure=rng.random() < 0.5)
        await asyncio.sleep(rng.choice((0.05, 0.2)))
        del futures


async def _lose_holder(cluster: Cluster, rng: random.Random, key: object) -> None:
    """Break the connection of the worker that has a task or its result."""
    await until(lambda: cluster.worker_of(key) is not None, 1)
    worker = cluster.worker_of(key)
    if worker:
        worker.batched_stream.comm.abort()
        await until(lambda: worker.address not in cluster.scheduler.workers, 1)
        await cluster.add_worker(rng)


async def kill_workers(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Lose workers until a task is blamed for it."""
    with cluster.inside(rng):
        future = person.client.submit(tasks.doze, 0, seconds=0.5, pure=False)
        person.keep(rng, [future, person.client.submit(tasks.load, future)])
    for _ in range(cluster.scheduler.allowed_failures + 1):
        await _lose_holder(cluster, rng, future.key)


async def kill_process(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Kill the process of a worker in the middle of tasks; some have made spans, and some of these have been sent."""
    alive = [each for each in cluster.apart if each.address in cluster.scheduler.workers]
    if alive:
        victim = rng.choice(alive)
        options = {"seconds": rng.choice((0.1, 0.5)), "pure": False}
        with cluster.inside(rng):
            key = rng.choice((None, "fit", "scale"))
            futures = person.client.map(tasks.work, range(4), key=key, workers=[victim.address],
                                        allow_other_workers=True, **options)  # fmt: skip
            person.keep(rng, futures)
        await until(lambda: bool(cluster.scheduler.workers[victim.address].processing), 1)
        await asyncio.sleep(rng.choice((0.0, 0.02, 0.2, 0.4)))
        os.kill(victim.process.pid, signal.SIGKILL)
        await until(lambda: victim.address not in cluster.scheduler.workers, 3)
    await cluster.add_apart(rng)


async def lose_actor(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Lose an actor with its worker."""
    with cluster.inside(rng):
        future = cluster.make_actor(person)
        person.keep(rng, [future, person.client.submit(tasks.load, future)])
    await until(lambda: future.status != "pending", 1)
    await _lose_holder(cluster, rng, future.key)


async def lose_long_running(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Lose a worker with a task that has left its thread and waits for others."""
    with cluster.inside(rng):
        future = person.client.submit(tasks.spawn, 3, tag="inner", wait=True, seconds=0.2, pure=False)
    person.keep(rng, [future])
    await until(lambda: any(worker.state.long_running for worker in cluster.running), 1)
    await _lose_holder(cluster, rng, future.key)


async def shrink(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Lose results that are smaller when they are computed again."""
    with cluster.inside(rng):
        futures = person.client.map(tasks.shrink, [f"{rng.random()}" for _ in range(4)])
    person.keep(rng, futures)
    await until(lambda: futures[0].status != "pending", 1)
    await _lose_holder(cluster, rng, futures[0].key)


async def unrunnable(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Tasks that no worker can run."""
    options = rng.choice(({"workers": ["tcp://127.0.0.1:1"]}, {"resources": {"GPU": 1}}))
    function = rng.choice((tasks.work, tasks.load))
    with cluster.inside(rng):
        futures = person.client.map(function, range(rng.randint(1, 3)), pure=rng.random() < 0.5, **options)
        person.keep(rng, [*futures, person.client.submit(tasks.work, *futures)])


async def too_large(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """A task whose inputs are larger than a worker's memory, if that is limited."""
    with cluster.inside(rng):
        inputs = person.client.map(tasks.load, range(4), size=400_000, pure=False)
        future = person.client.submit(tasks.work, *inputs)
        person.keep(rng, [future, person.client.submit(tasks.load, future)])


async def unreadable(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """A graph that the scheduler cannot take in."""
    with cluster.inside(rng):
        person.keep(rng, [person.client.submit(rng.choice((tasks.work, tasks.load)), tasks.Unreadable(), pure=False)])
