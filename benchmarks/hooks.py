"""CPU of the hook bodies: the transitions of many tasks, replayed on an empty plugin and on ours, in turn."""

from __future__ import annotations

import gc
import statistics
from time import process_time
from types import SimpleNamespace

from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import TaskGroup, TaskPrefix, TaskState, WorkerState

from dask_otel.safety import Safety
from dask_otel.scheduler.inbox import Inbox
from dask_otel.scheduler.pace import Clock
from dask_otel.scheduler.plugin import BridgePlugin

TASKS = 20_000
GROUPS = 20
ROUNDS = 15


class Empty(SchedulerPlugin):
    """What any plugin costs."""

    def transition(self, key, start, finish, *args, stimulus_id, **kwargs):
        pass


class Hooks(BridgePlugin):
    """Our plugin with latches, but no sweep."""

    def __init__(self, tasks):
        super().__init__()
        self.safety = Safety()
        self.inbox = Inbox(SimpleNamespace(tasks=tasks, workers={}), Clock(), self.safety)
        self.transition = self.inbox.make_transition_hook()


def worker_state(address):
    """A worker as the scheduler has it; of all that, the hooks read the address."""
    state = WorkerState.__new__(WorkerState)
    state.address = address
    return state


def scheduler_state():
    """Tasks as the scheduler has them."""
    tasks = {}
    workers = [worker_state(f"tcp://127.0.0.1:{4000 + number}") for number in range(8)]
    for number in range(GROUPS):
        group = TaskGroup(f"group{number}", TaskPrefix(f"group{number}"))
        for i in range(TASKS // GROUPS):
            key = f"group{number}-{i:032x}"
            tasks[key] = TaskState(key, None, "released", group, False)
            tasks[key].processing_on = workers[i % len(workers)]
    return tasks


def story(key, number):
    """A task's transitions, with what the scheduler passes on."""
    begin = 1_700_000_000.0 + number * 1e-3
    done = {
        "nbytes": 28,
        "type": b"int",
        "typename": "int",
        "worker": f"tcp://127.0.0.1:{4000 + number % 8}",
        "metadata": {},
        "thread": 1,
        "status": "OK",
        "startstops": [{"action": "compute", "start": begin, "stop": begin + 1e-3 * (1 + number % 7)}],
    }
    return [
        (key, "released", "waiting", {}),
        (key, "waiting", "processing", {}),
        (key, "processing", "memory", done),
        (key, "memory", "released", {}),
        (key, "released", "forgotten", {}),
    ]


def replay(plugin, transitions):
    """CPU seconds of the calls, as the scheduler makes them."""
    gc.collect()
    gc.disable()
    begin = process_time()
    for key, start, finish, kwargs in transitions:
        plugin.transition(key, start, finish, stimulus_id="task-finished-1", **kwargs)
    seconds = process_time() - begin
    gc.enable()
    return seconds


def main():
    tasks = scheduler_state()
    transitions = [step for number, key in enumerate(tasks) for step in story(key, number)]
    empty, ours = Empty(), Hooks(tasks)
    bodies, calls = [], []
    for _ in range(ROUNDS):
        without, with_ = replay(empty, transitions), replay(ours, transitions)
        ours.inbox.take()
        calls.append(without / TASKS * 1e6)
        bodies.append((with_ - without) / TASKS * 1e6)
    assert not ours.safety.failures
    print(f"{TASKS} tasks, {len(transitions) // TASKS} transitions each, {ROUNDS} rounds, CPU per task:")
    print(f"  an empty plugin's calls  {statistics.median(calls):.2f} µs")
    low, high = min(bodies), max(bodies)
    print(f"  our hooks' bodies        {statistics.median(bodies):.2f} µs (min {low:.2f}, max {high:.2f}; budget 1.0)")


if __name__ == "__main__":
    main()
