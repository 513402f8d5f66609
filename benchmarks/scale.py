"""CPU of the bridge per task, as tasks, workers and spans that Dask keeps grow in number.

Transitions, heartbeats and graphs are those of a real scheduler, see ``simulated.py``; it talks to nobody, so Dask's
part is a fraction of what it is in life. Sizes alternate, since a machine may be slower in one minute than in the next.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
from contextlib import AsyncExitStack
from statistics import median
from time import perf_counter
from uuid import uuid4

import dask
from simulated import CONFIG, BridgedScheduler

GROUPS = 4
#: Of a task: released, waiting, processing, memory, released, forgotten.
TRANSITIONS = 5
#: Where others grow.
WORKERS = 16
TASKS = 5_000
TRANSITION_SIZES = (1_000, 10_000, 100_000, 1_000_000)
WORKER_SIZES = (10, 100, 1_000)
SPAN_SIZES = (10, 100, 1_000, 10_000)
OPEN_AT_ONCE = 500
HEAD = (
    "what grows",
    "graphs",
    "hooks",
    "heartbeats",
    "sweeps",
    "the bridge in all (min … max)",
    "to the smallest",
    "Dask",
    "with the bridge / without",
    "number of heartbeats",
    "of fine metrics",
)
PARTS = ("graphs", "hooks", "beats", "sweeps")


async def work(scheduler, tasks):
    """A new span with so many tasks; returns what each took."""
    token = uuid4().hex
    keys = [(f"step{number % GROUPS}-{token}", number) for number in range(tasks)]
    return await scheduler.run(keys, {"name": ("work",), "ids": (token,)})


async def make_old(scheduler, spans):
    """Let so many spans come and go, not all at once."""
    for begin in range(0, spans, OPEN_AT_ONCE):
        keys = [(f"old-{uuid4().hex}", 0) for _ in range(begin, min(begin + OPEN_AT_ONCE, spans))]
        await scheduler.run(keys, lambda key: {"name": ("old",), "ids": (key[0],)})


async def transitions(stack, sizes):
    scheduler = await stack.enter_async_context(BridgedScheduler(WORKERS))
    return {size: (scheduler, size // TRANSITIONS) for size in sizes}


async def workers(stack, sizes):
    return {size: (await stack.enter_async_context(BridgedScheduler(size)), TASKS) for size in sizes}


async def spans(stack, sizes):
    setups = {size: (await stack.enter_async_context(BridgedScheduler(WORKERS)), TASKS) for size in sizes}
    for size, (scheduler, _) in setups.items():
        await make_old(scheduler, size)
    return setups


#: What grows, and the part of the rounds that it gets: a million transitions take as long as all the rest.
AXES = {
    "transitions": (transitions, TRANSITION_SIZES, 0.6),
    "workers": (workers, WORKER_SIZES, 1.0),
    "old spans": (spans, SPAN_SIZES, 1.0),
}


async def measure(axis, number_of_sizes, rounds):
    """By size, what a task took in each round."""
    prepare, sizes, _ = AXES[axis]
    results = {size: [] for size in sizes[:number_of_sizes]}
    async with AsyncExitStack() as stack:
        setups = await prepare(stack, list(results))
        for scheduler in {scheduler: None for scheduler, _ in setups.values()}:
            await work(scheduler, 1_000)  # for the first time, everything takes longer
        for number in range(rounds):
            for size in reversed(results) if number % 2 else results:
                scheduler, tasks = setups[size]
                gc.collect()
                results[size].append(await work(scheduler, tasks))
    return results


def rows(axis, results):
    """Lines of the table."""
    totals = {size: [sum(each[part] for part in PARTS) for each in rounds] for size, rounds in results.items()}
    smallest = next(iter(totals.values()))
    for size, rounds in results.items():
        ours, middle = totals[size], {what: median(each[what] for each in rounds) for what in rounds[0]}
        # Of the same round, when the machine was about as fast.
        growth = median(our / least for our, least in zip(ours, smallest, strict=True))
        ratio = median(1 + our / each["dask"] for our, each in zip(ours, rounds, strict=True))
        yield (
            f"| {size:,} {axis} "
            + "".join(f"| {middle[part]:.2f} " for part in PARTS)
            + f"| {median(ours):.2f} ({min(ours):.2f} … {max(ours):.2f}) | {growth:.2f} "
            f"| {middle['dask']:.1f} | {ratio:.3f} | {middle['heartbeats']:.2f} | {middle['metrics']:.2f} |"
        )


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, help="only so many of each kind, from the smallest")
    parser.add_argument("--only", choices=AXES, help="let only this grow")
    options = parser.parse_args()
    began = perf_counter()
    table = []
    for axis in [options.only] if options.only else AXES:
        rounds = max(1, round(options.rounds * AXES[axis][2]))
        table += rows(axis, await measure(axis, options.sizes, rounds))
        print(f"{axis}: {rounds} rounds, {perf_counter() - began:.0f} s so far", file=sys.stderr, flush=True)
    print(" ".join(["`python", "benchmarks/scale.py", *sys.argv[1:]]) + "`, for each task, µs of CPU:\n")
    print(f"| {' | '.join(HEAD)} |")
    print("|---" + "|---:" * (len(HEAD) - 1) + "|")
    print(*table, sep="\n")


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.ERROR)
    # Whoever happens to set off a collection pays for everybody's objects, and there are more the more tasks there are.
    gc.disable()
    with dask.config.set(CONFIG):
        asyncio.run(main())
