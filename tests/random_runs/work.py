"""Steps of a plan that give the cluster work."""

from __future__ import annotations

import asyncio
import random
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import dask.array
import dask.bag
import dask.dataframe
import pandas
from distributed import Reschedule, as_completed, fire_and_forget, futures_of, span

from . import tasks
from .callers import WAYS, Failed
from .cluster import Cluster, Person, until

#: Of few names: their tasks share groups.
_FUNCTIONS = (tasks.work, tasks.load, tasks.doze)


async def many(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Many tasks, in groups that are named after the function, or by hand."""
    options = {"seconds": rng.choice((0.0, 0.01, 0.1)), "size": rng.choice((0, 1000, 300_000))}
    key = rng.choice((None, None, "scale", "fit"))
    data = rng.choice((range(rng.randint(1, 20)), person.some(rng, 8) or [1]))
    function = rng.choice(_FUNCTIONS)
    if isinstance(data, range):
        cluster.calls.append((function, data, options))
    with cluster.inside(rng):
        person.keep(rng, person.client.map(function, data, key=key, pure=rng.random() < 0.5, **options))


async def again(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """The same as somebody before: results are there, or somebody waits for them, or they are forgotten."""
    function, data, options = rng.choice(cluster.calls or [(tasks.work, range(5), {"seconds": 0.1})])
    with cluster.inside(rng):
        person.keep(rng, person.client.map(function, data, **options))


async def submit(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """One task, with dependencies perhaps; under a key that may be taken already."""
    key = rng.choice((None, None, f"fit-{rng.randint(0, 2)}"))
    function = rng.choice((*_FUNCTIONS, tasks.fail))
    options = {"seconds": rng.choice((0.0, 0.1, 0.8)), "size": rng.choice((0, 400_000))}
    if function is tasks.fail:
        options = {}
    with cluster.inside(rng):
        person.keep(rng, [person.client.submit(function, *(person.some(rng) or [0]), key=key, **options)])


async def chain(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Layers of tasks, each in a span below the one before; some fail."""
    with cluster.inside(rng):
        layer = person.client.map(tasks.load, range(rng.randint(2, 8)), pure=False)
        for tag in rng.sample("abcd", rng.randint(1, 3)):
            with span(tag):
                layer = person.client.map(rng.choice(_FUNCTIONS), layer, pure=False)
        if rng.random() < 0.5:
            layer = [person.client.submit(tasks.fail, *layer), *layer]
            layer += person.client.map(tasks.work, layer, pure=False)
    person.keep(rng, layer)


async def unreliable(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Tasks that fail, or reschedule themselves, at first."""
    error, retries = rng.choice((OSError, Reschedule)), rng.randint(0, 2)
    tokens = [f"{rng.random()}" for _ in range(rng.randint(1, 4))]
    with cluster.inside(rng):
        futures = person.client.map(tasks.sometimes, tokens, error=error, times=rng.randint(1, 2), retries=retries)
        person.keep(rng, futures + person.client.map(tasks.work, futures))


async def loop(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """A span each round around the same function; results of the last round may be gone, or those of this one."""
    function, pure = rng.choice((*_FUNCTIONS, tasks.fail)), rng.random() < 0.5
    by_hand, one_by_one, waits, holds = (rng.random() < 0.5 for _ in range(4))
    with cluster.inside(rng) if rng.random() < 0.5 else nullcontext():
        for epoch in range(rng.randint(2, 5)):
            numbers = range(rng.randint(0, 2), rng.randint(2, 5))
            with span(f"epoch {epoch}"):
                if one_by_one:
                    futures = [person.client.submit(function, number, pure=pure) for number in numbers]
                else:
                    key = f"grad-{epoch}" if by_hand else None
                    futures = person.client.map(function, numbers, key=key, pure=pure)
            if waits:
                await until(lambda futures=futures: all(future.done() for future in futures), 1)
            if holds:
                person.futures += futures


async def resubmit(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Submit one more for each that has completed, as a search does, perhaps each in a span of its own."""
    function, rounds = rng.choice(_FUNCTIONS), iter(range(3, 3 + rng.randint(2, 6)))
    with cluster.inside(rng), person.client.as_current():
        running = as_completed(person.client.map(function, range(3), pure=rng.random() < 0.5))

    async def follow() -> None:
        async for _ in running:
            number = next(rounds, None)
            if number is not None:
                with span(f"trial {number}") if rng.random() < 0.7 else nullcontext():
                    running.add(person.client.submit(function, number))

    await asyncio.wait_for(follow(), 3)


async def spawn(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Tasks that submit tasks; some wait for them."""
    options = {"tag": rng.choice(("inner", None)), "wait": rng.random() < 0.6, "shared": rng.random() < 0.5}
    with cluster.inside(rng):
        sizes = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
        futures = person.client.map(tasks.spawn, sizes, pure=False, **options)
    person.keep(rng, futures)


async def hand_on(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Tasks that submit tasks on the worker's event loop."""
    with cluster.inside(rng):
        person.keep(rng, person.client.map(tasks.hand_on, range(rng.randint(1, 3)), pure=False))


async def actor(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """An actor, and tasks that depend on it."""
    with cluster.inside(rng):
        future = cluster.make_actor(person)
        person.keep(rng, [future, person.client.submit(tasks.load, future)])
    await until(lambda: future.status != "pending", 1)
    if future.status == "finished":
        with person.client.as_current():
            counting = await asyncio.wait_for(future.result(), 2)
            await asyncio.wait_for(_add(counting), 2)


async def _add(counting: Any) -> None:
    await counting.add()


async def scatter(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Data that no task made; in a group that tasks may share."""
    data = {f"{rng.choice(('data', 'fit', 'load'))}-{rng.random()}": bytes(rng.randint(1, 10_000)) for _ in "ab"}
    scattered = await asyncio.wait_for(person.client.scatter(data, broadcast=rng.random() < 0.3), 2)
    if rng.random() < 0.7:
        with cluster.inside(rng):
            person.keep(rng, person.client.map(tasks.work, list(scattered.values())))
    person.keep(rng, list(scattered.values()))


async def publish(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Have the scheduler hold results."""
    await person.client.publish_dataset(person.some(rng), name=f"{person.client.id} {rng.random()}")


async def forget(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Tasks that run though nobody holds them."""
    with cluster.inside(rng):
        fire_and_forget(person.client.map(rng.choice((tasks.load, tasks.fail)), range(rng.randint(1, 6)), pure=False))


async def collection(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Graphs of collections, whose last groups have no hash in their names; layers may be of another span."""
    optimize = rng.random() < 0.5
    # Optimized graphs have the same keys with other dependencies; if Dask gets both, it never forgets some tasks.
    size = 20 if optimize else 40
    with cluster.inside(rng) if rng.random() < 0.5 else nullcontext():
        random_array = dask.array.random.random((size, size), chunks=(10, 20))
        array = rng.choice((random_array, dask.array.ones((size, size), chunks=(10, 20))))
        bag = dask.bag.range(size, npartitions=4)
        graphs = [array.sum(), array + 1, array.rechunk((20, 10)), bag.map(tasks.load).fold(max), bag.frequencies()]
        delayed = [dask.delayed(tasks.work, pure=True)(number) for number in range(3)]
        graphs.append(dask.delayed(tasks.load, pure=True)(*delayed))
    with cluster.inside(rng):
        person.keep(rng, [person.client.compute(rng.choice(graphs), optimize_graph=optimize)])


async def persisted(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """A collection that is persisted in one span and used in others, by others too."""
    with cluster.inside(rng) if rng.random() < 0.5 else nullcontext():
        array = dask.array.random.random((20, 20), chunks=10) + 1
    with cluster.inside(rng):
        array = person.client.persist(array, optimize_graph=rng.random() < 0.5)
    person.futures += futures_of(array)
    for _ in range(2):
        user = rng.choice((person, rng.choice(cluster.people)))
        with cluster.inside(rng):
            user.keep(rng, [user.client.compute(rng.choice((array.sum(), array, (array + 1).mean())))])


async def unneeded(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Tasks that nobody needs any more before they have run, as another input fails; then some are requested again."""
    inputs = [dask.delayed(tasks.work, pure=True)(number, seconds=0.05) for number in range(12)]
    fails = dask.delayed(tasks.fail, pure=True)(rng.random())
    with cluster.inside(rng):
        future = person.client.compute(dask.delayed(tasks.load, pure=True)(fails, *inputs))
        person.futures.append(future)
    await until(lambda: future.status != "pending", 1)
    with cluster.inside(rng):
        person.keep(rng, futures_of(person.client.persist(rng.sample(inputs, 3))))


async def shuffle(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """P2P: a shuffle, or a rechunk."""
    frame = dask.dataframe.from_pandas(pandas.DataFrame({"a": range(60), "b": 1.0}), npartitions=5)
    array = dask.array.ones((30, 30), chunks=(30, 5))
    with cluster.inside(rng):
        graph = rng.choice((frame.shuffle("a").b.sum(), array.rechunk((5, 30), method="p2p").sum()))
        person.keep(rng, [person.client.compute(graph)])


async def drop(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Let go of some futures."""
    for future in person.some(rng, 20):
        person.futures.remove(future)


async def wait(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Wait until all is done, and perhaps until segments have closed."""
    await cluster.settled(1)
    await asyncio.sleep(rng.choice((0.0, 0.6)))


async def requests(cluster: Cluster, person: Person, rng: random.Random) -> None:
    """Requests to the program that are served at the same time, with one function and perhaps several clients.

    They submit in coroutines and in threads, which have the request's context, a part of it, or none. Some requests
    fail, some are cancelled.
    """
    function, pure = rng.choice((*_FUNCTIONS, tasks.fail)), rng.random() < 0.5
    people = [person, rng.choice(cluster.people)]

    async def serve(number: int) -> None:
        with cluster.around():
            for _ in range(rng.randint(1, 3)):
                user = rng.choice(people)
                submit = partial(user.client.map, function, range(number % 2, rng.randint(2, 4)), pure=pure)
                futures = await rng.choice(WAYS)(submit)
                user.keep(rng, futures)
                if rng.random() < 0.3:
                    await until(lambda futures=futures: all(future.done() for future in futures), 1)
            if rng.random() < 0.2:
                raise Failed

    async def request(number: int) -> None:
        with suppress(Failed, TimeoutError):
            await asyncio.wait_for(serve(number), rng.choice((0.02, 2, 2)))

    await asyncio.gather(*map(request, range(rng.randint(2, 6))))
