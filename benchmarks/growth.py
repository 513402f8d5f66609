"""CPU of the bridge per task, group or worker, and its longest hold of the event loop, as one thing grows in number.

Graphs, transitions and heartbeats are those of a real scheduler, see ``simulated.py``. Sizes alternate, since a machine
may be slower in one minute than in the next. A hold is measured in CPU time of the thread, for the same reason.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
from contextlib import AsyncExitStack
from statistics import median
from time import perf_counter, thread_time
from uuid import uuid4

import dask
from simulated import CONFIG, BridgedScheduler

from dask_otel.scheduler import pace

PARTS = ("graphs", "hooks", "beats", "sweeps")
WORKERS = 16
#: Names of groups that come and go.
NAMES = 100
#: Tasks of a client, of a prefix, and between two workers that join.
A_CLIENT, A_PREFIX, A_WORKER = 40, 4, 40


def one_span():
    token = uuid4().hex
    return {"name": ("work",), "ids": (token,)}


async def groups(scheduler, size):
    """Groups of one task, all alive at once in one span."""
    return await scheduler.run([(f"load-{uuid4().hex}", 0) for _ in range(size)], one_span())


async def prefixes(scheduler, size):
    """Groups of different prefixes, each of some tasks that end one after the other, in one span."""
    names = [f"step_{number}x" for number in range(size)]
    token = uuid4().hex
    keys = [(f"{name}-{token}", number) for name in names for number in range(A_PREFIX)]
    return per(A_PREFIX, await scheduler.run(keys, one_span()))


async def spans(scheduler, size):
    """Spans of one task, all in one root."""
    root = uuid4().hex

    def child(key):
        return {"name": ("work", "child"), "ids": (root, f"{root}-{key[0]}")}

    return await scheduler.run([(f"load-{uuid4().hex}", 0) for _ in range(size)], child, segments=size + 1)


async def tasks(scheduler, size):
    """Tasks of one group."""
    token = uuid4().hex
    return await scheduler.run([(f"load-{token}", number) for number in range(size)], one_span())


async def dependencies(scheduler, size):
    """Groups of one task, and a last one that depends on all of them."""
    keys = [(f"load-{uuid4().hex}", 0) for _ in range(size)]
    last = (f"total-{uuid4().hex}", 0)
    return await scheduler.run([*keys, last], one_span(), depends_on={last: keys})


async def again(scheduler, size):
    """Groups that come and go under the same names in one span that goes on."""
    span, results = one_span(), []
    rounds = size // NAMES
    for number in range(rounds):
        if number == rounds - 1:
            scheduler.end_segments()
        keys = [(f"load_{name}x", number) for name in range(NAMES)]
        results.append(await scheduler.run(keys, span, segments=number == rounds - 1))
    return mean(results)


async def clients(scheduler, size):
    """Clients, each with a span of its own and some tasks."""
    results = []
    for number in range(size):
        if number % 10 == 0:
            gc.collect()  # what others leave behind is none of its own
        keys = [(f"load-{uuid4().hex}", task) for task in range(A_CLIENT)]
        results.append(await scheduler.run(keys, one_span(), client=f"Client-{number}"))
    return mean(results)


async def workers(scheduler, size):
    """Workers that join, work and leave, while a hundred spans are open."""
    root = uuid4().hex
    names = [f"load-{uuid4().hex}" for _ in range(NAMES)]
    results = []
    for number in range(size):
        if number == size - 1:
            scheduler.end_segments()
        keys = [(names[(number * A_WORKER + task) % NAMES], number * A_WORKER + task) for task in range(A_WORKER)]
        address = scheduler.add_worker()
        last = number == size - 1
        results.append(
            await scheduler.run(
                keys,
                lambda key: {"name": ("work", "child"), "ids": (root, f"{root}-{key[0]}")},
                segments=NAMES + 1 if last else 0,
                workers=[address],
            )
        )
        await scheduler.remove_worker(address)
    return per(A_WORKER, mean(results))


def per(number, result):
    """What so many tasks took together."""
    return {what: value if what == "hold" else value * number for what, value in result.items()}


def mean(results):
    """Of many runs."""
    names = {what for each in results for what in each} - {"hold"}
    return {what: sum(each.get(what, 0.0) for each in results) / len(results) for what in names} | {
        "hold": max(each["hold"] for each in results)
    }


#: What grows, to how many, per what, and the part of the rounds that it gets.
AXES = {
    "groups": (groups, (500, 2_000, 8_000, 20_000), "group", 1.0),
    "prefixes": (prefixes, (500, 2_000, 5_000), "group of 4 tasks", 0.4),
    "spans": (spans, (500, 2_000, 8_000, 20_000), "span", 1.0),
    "tasks": (tasks, (1_000, 10_000, 100_000, 1_000_000), "task", 0.4),
    "dependencies": (dependencies, (500, 5_000), "group", 1.0),
    "again": (again, (500, 5_000, 20_000), "group", 1.0),
    "clients": (clients, (1, 10, 100, 500), "task", 1.0),
    "workers": (workers, (10, 100, 1_000), "worker and 40 tasks", 1.0),
}
WHAT = {
    "groups": "groups alive in one span",
    "prefixes": "prefixes in one span",
    "spans": "spans in one root",
    "tasks": "tasks of one group",
    "dependencies": "dependencies of one group on others",
    "again": "groups that come and go under 100 names",
    "clients": "clients",
    "workers": "workers that join and leave",
}
HEAD = (
    "what grows",
    "µs for each",
    *("graphs", "hooks", "heartbeats", "sweeps"),
    "the bridge in all (min … max)",
    "to the smallest",
    "Dask",
    "longest hold, ms",
)


async def measure(axis, number_of_sizes, rounds):
    """By size, what came of each round."""
    work, sizes, _, _ = AXES[axis]
    results = {size: [] for size in sizes[:number_of_sizes]}
    for number in range(rounds):
        for size in reversed(results) if number % 2 else results:
            async with AsyncExitStack() as stack:
                idle_timeout = 3600.0 if axis in ("again", "workers") else 0.0
                scheduler = await stack.enter_async_context(BridgedScheduler(WORKERS, idle_timeout=idle_timeout))
                # For the first time, everything takes longer.
                await scheduler.run([f"load-{number}" for number in range(200)], one_span(), segments=0)
                gc.collect()
                results[size].append(await work(scheduler, size))
    return results


def rows(axis, results):
    """Lines of the table."""
    totals = {size: [sum(each[part] for part in PARTS) for each in rounds] for size, rounds in results.items()}
    smallest = next(iter(totals.values()))
    for size, rounds in results.items():
        ours, middle = totals[size], {what: median(each.get(what, 0.0) for each in rounds) for what in rounds[0]}
        # Of the same round, when the machine was about as fast.
        growth = median(our / least for our, least in zip(ours, smallest, strict=True))
        yield (
            f"| {size:,} {WHAT[axis]} | {AXES[axis][2]} "
            + "".join(f"| {middle[part]:.2f} " for part in PARTS)
            + f"| {median(ours):.2f} ({min(ours):.2f} … {max(ours):.2f}) | {growth:.2f} "
            f"| {middle['dask']:.1f} | {middle['hold'] * 1e3:.1f} |"
        )


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, help="only so many of each kind, from the smallest")
    parser.add_argument("--only", choices=AXES, help="let only this grow")
    options = parser.parse_args()
    began = perf_counter()
    table = []
    for axis in [options.only] if options.only else AXES:
        rounds = max(1, round(options.rounds * AXES[axis][3]))
        table += rows(axis, await measure(axis, options.sizes, rounds))
        print(f"{axis}: {rounds} rounds, {perf_counter() - began:.0f} s so far", file=sys.stderr, flush=True)
    print(" ".join(["`python", "benchmarks/growth.py", *sys.argv[1:]]) + "`, µs of CPU:\n")
    print(f"| {' | '.join(HEAD)} |")
    print("|---|---" + "|---:" * (len(HEAD) - 2) + "|")
    print(*table, sep="\n")


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # Whoever happens to set off a collection pays for everybody's objects, and there are more the more tasks there are.
    gc.disable()
    pace.perf_counter = thread_time
    with dask.config.set(CONFIG):
        asyncio.run(main())
