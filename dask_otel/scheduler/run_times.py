"""Passes on to ``diagnosis.run_times`` what Dask's hooks report of tasks, workers and graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from distributed.metrics import time

from ..diagnosis.occupancy import Mark
from ..diagnosis.parts import GroupKey
from ..diagnosis.run_times import GroupTimes, RunTimes
from ..safety import Safety
from ..spantree.events import latest_run
from .outcomes import ASKED_FOR, LOST, RETRIED, RETRY
from .pace import Clock

__all__ = ["RunTimesHooks", "cause_of"]

#: Transitions that are counted at a time. Between two hooks, the scheduler works for so long that nothing that a hook
#: needs is in the processor's caches: counted one by one, they took twice the time.
MOVES = 256
#: A transition of a task: where it counts, its key, the states before and after, when, the stimulus, whether it had a
#: result before, and by how much the clock is to be corrected. Then, of a task that is sent, its worker's address and
#: whether an input is elsewhere; of a run, what its worker reported of its steps, and its thread.
Moved = tuple[GroupTimes, Any, str, str, float, Any, bool, float, Any]
_WAITING = frozenset(("waiting", "queued", "no-worker"))
_RUNNABLE = frozenset(("queued", "no-worker", "processing"))
_RUNS_AGAIN = (*LOST, *RETRIED, "reschedule", "steal", "worker-closing")


def cause_of(stimulus: str) -> str:
    """Why a task was not sent earlier that a stimulus makes runnable which is neither a run nor a graph."""
    if stimulus.startswith(_RUNS_AGAIN):
        return "lost"
    return "client" if stimulus.startswith(RETRY) else "dispatch"


class RunTimesHooks:
    """Translates hooks of one scheduler. None of its methods raises; who calls the hook of tasks guards it.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    """

    def __init__(self, scheduler: Any, clock: Clock, safety: Safety) -> None:
        self._scheduler = scheduler
        self._spans: Mapping[str, Any] = scheduler.extensions["spans"].spans
        self._clock = clock
        self._safety = safety
        self._times = RunTimes(self._now(), cause_of)
        #: What tasks have done since ``times`` was brought up to date.
        self._moves: list[Moved] = []
        #: By ``TaskGroup``; without those that have no span.
        self._groups: dict[Any, GroupTimes] = {}
        #: Keys of tasks that wait to run again because their results were lost with a worker.
        self._lost: set[Any] = set()
        #: Keys of tasks that workers have and that had a result before.
        self._again: set[Any] = set()
        self._handler: Callable[..., Any] | None = None
        self._take_in()

    def _now(self) -> float:
        # ``Clock.now`` takes four times as long; every sweep calls it and so finds out if the clock was set back.
        return float(time() + self._clock.offset)

    @property
    def times(self) -> RunTimes:
        """The times, with all that hooks have reported."""
        if self._moves:
            self._catch_up()
        return self._times

    def lap_start(self, root_id: str) -> float | None:
        """Return when the lap of a root began that is not over; None if there is none."""
        return self.times.lap_start(root_id)

    def distrust(self) -> None:
        """Have no more laps: a transition was lost."""
        self._times.distrust()

    def _take_in(self) -> None:
        """Count what is there already."""
        now, times = self._now(), self._times
        for worker in self._scheduler.workers.values():
            times.worker_joined(worker.address, worker.nthreads, worker.status.name, now)
        for task in self._scheduler.tasks.values():
            is_waiting = task.state in _WAITING
            if not is_waiting and task.state != "processing":
                continue
            of = self._groups.get(task.group) or self._group(task.group)
            if of and is_waiting:
                times.enter(of, task.key, task.state, now, "")
            elif of:
                times.send(of, task.key, "", task.processing_on.address, now, "", False, False)
                if task in task.processing_on.long_running:
                    times.secede(of, task.key, now)

    def install(self) -> None:
        """Begin to listen."""
        self._handler = self._scheduler.stream_handlers.get("long-running")
        if self._handler:
            self._scheduler.stream_handlers["long-running"] = self._long_running

    def remove(self) -> None:
        """Stop listening, unless somebody wrapped the handler after us."""
        if self._handler and self._scheduler.stream_handlers["long-running"] == self._long_running:
            self._scheduler.stream_handlers["long-running"] = self._handler
            self._handler = None

    def _group(self, group: Any) -> GroupTimes | None:
        """Return where the tasks of a ``TaskGroup`` count; None for scattered data that no graph has used yet."""
        span = self._spans.get(group.span_id) if group.span_id else None
        if span is None:
            return None
        root = span
        while root.parent:
            root = root.parent
        of = self._groups[group] = GroupTimes(self._times.account(root.id), GroupKey(span.id, str(group.name)))
        return of

    def forget(self, groups: Iterable[Any]) -> None:
        """Forget ``TaskGroup``s of which tasks were forgotten; those that remain are found again."""
        for group in groups:
            self._groups.pop(group, None)

    # What hooks report

    def make_task_hook(self) -> Callable[..., None]:
        """Make the function that takes a task's transition; what it needs are its variables, since it runs so often."""
        groups, moves, clock = self._groups, self._moves, self._clock
        append = moves.append

        def moved(
            key: Any, task: Any, start: str, finish: str, stimulus: Any, startstops: Any, worker: Any, thread: Any
        ) -> None:
            if start == finish:
                return
            of = groups.get(task.group) or self._group(task.group)
            if of is None:
                return
            if finish == "processing":
                on = task.processing_on
                is_remote = False
                for dependency in task.dependencies:
                    if on not in (dependency.who_has or ()):
                        is_remote = True
                        break
                details = on.address, is_remote
            elif startstops:
                details = startstops, thread
            else:
                details = None
            offset = clock.offset
            if start == "waiting" and moves and finish in _RUNNABLE:
                _, last, before, _, now, by, had_result, _, _ = moves[-1]
                if last is key and by is stimulus and before == "released" and not had_result:
                    # It has not waited: one transition instead of two.
                    moves[-1] = of, key, before, finish, now, stimulus, False, offset, details
                    return
            append((of, key, start, finish, time() + offset, stimulus, task.type is not None, offset, details))
            if len(moves) >= MOVES:
                self._catch_up()

        return moved

    def _catch_up(self) -> None:
        """Count what tasks have done since the last time."""
        moves = iter(self._moves.copy())
        self._moves.clear()
        while True:  # again after a failure, with those that follow
            try:
                return self._count(moves)
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self._times.distrust()
                self._safety.caught("run times", error)

    def _count(self, moves: Iterator[Moved]) -> None:
        times, lost, again = self._times, self._lost, self._again
        send, run, enter, move = times.send, times.run, times.enter, times.move
        for of, key, start, finish, now, stimulus, had_result, offset, details in moves:
            if finish == "processing":
                if had_result:
                    again.add(key)
                if lost and key in lost:
                    lost.discard(key)
                    start = ""
                address, is_remote = details
                send(of, key, start, address, now, stimulus, had_result, is_remote)
            elif start == "processing":
                if details and finish != "released":
                    startstops, thread = details
                    begin = end = 0.0
                    steps = startstops if len(startstops) == 1 else latest_run(startstops)
                    for step in steps:
                        if step["action"] == "compute":
                            begin = step["start"]
                        if step["stop"] > end:
                            end = step["stop"]
                    begin = begin or min(step["start"] for step in steps)
                    seconds = 0.0
                    if again and key in again:
                        again.discard(key)
                        seconds = end - begin
                    run(of, key, begin + offset, end + offset, thread, now, stimulus, seconds)
                else:
                    again.discard(key)
                    times.release(of, key, now, was_lost=finish == "released" and stimulus.startswith(LOST))
            elif lost and key in lost:
                if finish not in _WAITING:
                    lost.discard(key)
            elif finish in _WAITING:
                if start in _WAITING:
                    move(of, key, start, finish, now, stimulus)
                elif had_result and start == "released" and not stimulus.startswith(ASKED_FOR):
                    lost.add(key)
                else:
                    enter(of, key, finish, now, stimulus)
            elif start in _WAITING:
                times.leave(of, key, start, now)

    def _long_running(self, *args: Any, **message: Any) -> Any:
        assert self._handler
        result = self._handler(*args, **message)
        with self._safety.guard("run times"):
            task = self._scheduler.tasks.get(message.get("key"))
            if task is not None and task.processing_on and task in task.processing_on.long_running:
                of = self._group(task.group)
                if of:
                    self.times.secede(of, task.key, self._now())
        return result

    def worker_joined(self, address: str) -> None:
        """Note that a worker joined."""
        with self._safety.guard("run times"):
            worker = self._scheduler.workers.get(address)
            if worker:
                self.times.worker_joined(address, worker.nthreads, worker.status.name, self._now())

    def worker_left(self, address: object) -> None:
        """Note what Dask logs when a worker has left; anybody can log such an event."""
        with self._safety.guard("run times"):
            if isinstance(address, str) and address not in self._scheduler.workers:
                self.times.worker_left(address, self._now())

    def worker_status(self, address: str) -> None:
        """Note what Dask logs when a worker has got another status; anybody can log such an event."""
        with self._safety.guard("run times"):
            worker = self._scheduler.workers.get(address)
            if worker:
                self.times.worker_status(address, worker.status.name, self._now())

    def stolen(self, event: tuple[Any, ...]) -> None:
        """Note what Dask logs of work stealing: ``("confirm", key, state of the task, victim, thief, stimulus)``.

        Anybody can log such an event.
        """
        with self._safety.guard("run times"):
            if len(event) > 1 and event[0] == "confirm" and isinstance(event[1], Hashable):
                task = self._scheduler.tasks.get(event[1])
                of = self._group(task.group) if task is not None else None
                if of and task.processing_on:
                    self.times.steal(of, task.key, task.processing_on.address, self._now())

    def graph_came(self) -> Mark | None:
        """Return what ``graph_taken`` needs of this moment, at which a graph comes."""
        with self._safety.guard("run times"):
            return self.times.graph_came(self._now())
        return None

    def graph_taken(self, stimulus: str, came: Mark) -> None:
        """Note that a graph has been taken in."""
        with self._safety.guard("run times"):
            self.times.graph_taken(stimulus, came, self._now())
