"""``otel.verdicts``: CPU of the hook for each task and input, and bytes for tasks that are alive and finished.

The transitions of many tasks are replayed on the bridge's hook without verdicts and with them, in turn.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tracemalloc
from time import process_time, time
from types import SimpleNamespace

import dask
from distributed.scheduler import TaskGroup, TaskPrefix, TaskState, WorkerState
from simulated import CONFIG, BridgedScheduler

from dask_otel.safety import Safety
from dask_otel.scheduler.inbox import Inbox
from dask_otel.scheduler.pace import Clock
from dask_otel.scheduler.run_times import RunTimesHooks

TASKS = 20_000
GROUPS = 20
ROUNDS = 11
WORKERS, THREADS = 8, 4
#: When the first run began: after the graph, in each round.
BEGIN = time() + 100.0
#: Of the chain of which no task may be left.
CHAIN = 100_000
#: Tasks of a run in a scheduler, their groups, and number of runs of each kind.
SIMULATED, STEPS, SIMULATED_ROUNDS = 4_000, 200, 4
#: Inputs of each task, where the price of one is measured.
INPUTS = 10


class Cluster:
    """What the hooks read of a scheduler, with tasks that move as they are told."""

    def __init__(self, tasks=TASKS, inputs=0):
        span = SimpleNamespace(id="root", parent=None)
        self.workers = {}
        for number in range(WORKERS):
            worker = WorkerState.__new__(WorkerState)
            worker.address, worker.nthreads = f"tcp://10.0.0.{number}:1", THREADS
            worker.status = SimpleNamespace(name="running")
            worker.name, worker._hash, worker.server_id = number, number, worker.address
            self.workers[worker.address] = worker
        self.extensions = {"spans": SimpleNamespace(spans={"root": span})}
        self.stream_handlers = {}
        self.tasks = {}
        held = [TaskState(f"input-{n}", None, "memory", self._group("input"), False) for n in range(inputs)]
        for each in held:
            each.who_has = set(self.workers.values())
        on = list(self.workers.values())
        groups = [self._group(f"group{number}") for number in range(GROUPS)]
        for number in range(tasks):
            key = f"group{number % GROUPS}-{number:032x}"
            task = self.tasks[key] = TaskState(key, None, "released", groups[number % GROUPS], False)
            task.processing_on = on[number % WORKERS]
            task.dependencies = set(held)

    def _group(self, name):
        group = TaskGroup(name, TaskPrefix(name))
        group.span_id = "root"
        return group


def finished(number, thread):
    """What a worker says of a run."""
    begin = BEGIN + number * 1e-3
    return {
        "nbytes": 28,
        "type": b"int",
        "typename": "int",
        "worker": f"tcp://10.0.0.{number % WORKERS}:1",
        "metadata": {},
        "thread": thread,
        "status": "OK",
        "startstops": [{"action": "compute", "start": begin, "stop": begin + 1e-3 * (1 + number % 7)}],
    }


def done(number, key):
    """A task ends: its end, with what the scheduler does by the same stimulus."""
    yield key, "processing", "memory", f"task-finished-{number}", finished(number, number // WORKERS % THREADS)


def gone(number, key):
    yield key, "memory", "released", "client-releases-keys-1", {}
    yield key, "released", "forgotten", "client-releases-keys-1", {}


def at_once(keys):
    """All are sent as soon as they come."""
    for key in keys:
        yield key, "released", "waiting", "update-graph-1", {}
        yield key, "waiting", "processing", "update-graph-1", {}
    for number, key in enumerate(keys):
        yield from done(number, key)
    for number, key in enumerate(keys):
        yield from gone(number, key)


def queued(keys):
    """Each that ends frees a place in the queue."""
    places = WORKERS * THREADS
    for number, key in enumerate(keys):
        yield key, "released", "waiting", "update-graph-1", {}
        if number < places:
            yield key, "waiting", "processing", "update-graph-1", {}
        else:
            yield key, "waiting", "queued", "update-graph-1", {}
    for number, key in enumerate(keys):
        yield from done(number, key)
        if number + places < len(keys):
            yield keys[number + places], "queued", "processing", f"task-finished-{number}", {}
    for number, key in enumerate(keys):
        yield from gone(number, key)


def chains(keys):
    """As many chains as there are threads: each that ends releases the next one."""
    width = WORKERS * THREADS
    for key in keys:
        yield key, "released", "waiting", "update-graph-1", {}
    for key in keys[:width]:
        yield key, "waiting", "processing", "update-graph-1", {}
    for number, key in enumerate(keys):
        yield from done(number, key)
        if number + width < len(keys):
            yield keys[number + width], "waiting", "processing", f"task-finished-{number}", {}
        if number >= width:
            yield from gone(number, keys[number - width])
    for key in keys[-width:]:
        yield from gone(0, key)


class Hook:
    """The bridge's hook, with or without verdicts."""

    def __init__(self, cluster, *, verdicts):
        self.safety = Safety()
        clock = Clock()
        self.run_times = RunTimesHooks(cluster, clock, self.safety) if verdicts else None
        if self.run_times:
            self.run_times.install()
        on_task = self.run_times.make_task_hook() if self.run_times else None
        self.inbox = Inbox(cluster, clock, self.safety, on_task=on_task)
        self.transition = self.inbox.make_transition_hook()

    def came(self):
        """A graph has been taken in."""
        if self.run_times:
            self.run_times.graph_taken("update-graph-1", self.run_times.graph_came())

    def swept(self):
        self.inbox.take()
        if self.run_times:
            self.run_times.times.take()
            for _ in self.run_times.times.laps(self.run_times._now()):
                pass

    def replay(self, steps):
        """CPU seconds of the calls, as the scheduler makes them."""
        self.came()
        transition = self.transition
        gc.collect()
        gc.disable()
        begin = process_time()
        for key, start, finish, stimulus, details in steps:
            transition(key, start, finish, stimulus_id=stimulus, **details)
        seconds = process_time() - begin
        gc.enable()
        self.swept()
        assert not self.safety.failures
        return seconds


def price(story, inputs=0):
    """µs of CPU that verdicts add to the hook for each task, and what the hook takes without them; medians."""
    cluster = Cluster(inputs=inputs)
    steps = list(story(list(cluster.tasks)))
    without, with_ = Hook(cluster, verdicts=False), Hook(cluster, verdicts=True)
    pairs = [(without.replay(steps), with_.replay(steps)) for _ in range(ROUNDS)]
    added = [(two - one) / TASKS * 1e6 for one, two in pairs]
    return statistics.median(added), statistics.median(one for one, _ in pairs) / TASKS * 1e6


def kept(steps, tasks, at=None):
    """Bytes that verdicts keep for each task after these steps; of the first ``at`` of them."""
    sizes = []
    for verdicts in (False, True):
        cluster = Cluster(tasks)
        hook = Hook(cluster, verdicts=verdicts)
        hook.came()
        story = steps(list(cluster.tasks))
        gc.collect()
        tracemalloc.start()
        hook.transition(*next(story)[:3], stimulus_id="update-graph-1")
        before = tracemalloc.get_traced_memory()[0]
        for number, (key, start, finish, stimulus, details) in enumerate(story):
            if number == at:
                break
            hook.transition(key, start, finish, stimulus_id=stimulus, **details)
            if number % 10_000 == 0:
                hook.inbox.take()
        hook.inbox.take()
        del details
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0] - before)
        tracemalloc.stop()
        del hook, story, cluster
    return (sizes[1] - sizes[0]) / tasks


async def in_scheduler():
    """µs of CPU for each task, by what it is for, without verdicts and with them; medians of runs in turn."""
    found = {False: [], True: []}
    with dask.config.set(CONFIG):
        for number in range(2 * SIMULATED_ROUNDS):
            async with BridgedScheduler(20, verdicts=bool(number % 2)) as bridged:
                bridged.meter.wrap("verdict", bridged.plugin._bridge.span_tree, "_judge")
                keys = [f"step{n % STEPS}-{number}-{n}" for n in range(SIMULATED)]
                span = {"name": ("root",), "ids": (f"root-{number}",)}
                found[bool(number % 2)].append(await bridged.run(keys, span))
    parts = ("dask", "hooks", "graphs", "beats", "sweeps", "verdict")
    return [{part: statistics.median(run[part] for run in found[which]) for part in parts} for which in (False, True)]


def main():
    print(f"{TASKS} tasks, {ROUNDS} rounds, CPU that verdicts add to the hook for each task (budget 1.5 µs):")
    for story in (at_once, queued, chains):
        added, without = price(story)
        print(f"  {story.__name__:8} {added:.2f} µs, to {without:.2f} µs")
    alone, with_inputs = price(at_once)[0], price(at_once, INPUTS)[0]
    print(f"  for each of {INPUTS} inputs: {(with_inputs - alone) / INPUTS * 1e3:.0f} ns (budget 70)")
    print("bytes that verdicts keep")
    print(f"  for each queued task     {kept(queued, TASKS, at=2 * TASKS - 1):.0f} (budget 50)")
    print(f"  for each task on workers {kept(at_once, TASKS, at=2 * TASKS - 1):.0f} (budget 50)")
    print(
        f"  for each finished task of chains of {CHAIN}, in groups that alternate: {kept(chains, CHAIN):.3f} (budget 0)"
    )
    without, with_ = asyncio.run(in_scheduler())
    print(f"the verdict on a root with {STEPS} groups: {with_.pop('verdict') * SIMULATED / 1e3:.2f} ms (budget 2)")
    del without["verdict"]
    print("in a scheduler without connections, µs of CPU for each task without and with verdicts:")
    for part, micros in without.items():
        print(f"  {part:7} {micros:6.2f} {with_[part]:6.2f}")


if __name__ == "__main__":
    main()
