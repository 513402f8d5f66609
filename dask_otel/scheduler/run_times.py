"""Passes on to ``diagnosis.run_times`` what Dask's hooks report of tasks, workers and graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
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

_WAITING = frozenset(("waiting", "queued", "no-worker"))
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
        self.times = RunTimes(self._now(), cause_of)
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

    def _take_in(self) -> None:
        """Count what is there already."""
        now = self._now()
        for worker in self._scheduler.workers.values():
            self.times.worker_joined(worker.address, worker.nthreads, worker.status.name, now)
        for task in self._scheduler.tasks.values():
            is_waiting = task.state in _WAITING
            if not is_waiting and task.state != "processing":
                continue
            of = self._groups.get(task.group) or self._group(task.group)
            if of and is_waiting:
                self.times.enter(of, task.state, now, "")
            elif of:
                self.times.send(of, task.key, "", task.processing_on.address, now, "", False, False)
                if task in task.processing_on.long_running:
                    self.times.secede(of, task.key, now)

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
        of = self._groups[group] = GroupTimes(self.times.account(root.id), GroupKey(span.id, str(group.name)))
        return of

    def forget(self, groups: Iterable[Any]) -> None:
        """Forget ``TaskGroup``s of which tasks were forgotten; those that remain are found again."""
        for group in groups:
            self._groups.pop(group, None)

    # What hooks report

    def make_task_hook(self) -> Callable[..., None]:
        """Make the function that takes a task's transition; what it needs are its variables, since it runs so often."""
        groups, times, clock = self._groups, self.times, self._clock
        lost, again = self._lost, self._again
        send, run, enter, move = times.send, times.run, times.enter, times.move

        def moved(
            key: Any, task: Any, start: str, finish: str, stimulus: Any, startstops: Any, worker: Any, thread: Any
        ) -> None:
            if start == finish:
                return
            of = groups.get(task.group) or self._group(task.group)
            if of is None:
                return
            if finish == "waiting" and start == "released" and task.type is None:
                account = of[0]
                if account.waiting:  # nothing changes but the numbers
                    account.waiting += 1
                    account.unfinished += 1
                else:
                    enter(of, finish, time() + clock.offset, stimulus)
                return
            now = time() + clock.offset
            if finish == "processing":
                is_again = task.type is not None
                if is_again:
                    again.add(key)
                if lost and key in lost:
                    lost.discard(key)
                    start = ""
                on = task.processing_on
                is_remote = False
                for dependency in task.dependencies:
                    if on not in (dependency.who_has or ()):
                        is_remote = True
                        break
                send(of, key, start, on.address, now, stimulus, is_again, is_remote)
            elif start == "processing":
                if startstops and finish != "released":
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
                    offset = clock.offset
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
                elif task.type is not None and start == "released" and not stimulus.startswith(ASKED_FOR):
                    lost.add(key)
                else:
                    enter(of, finish, now, stimulus)
            elif start in _WAITING:
                times.leave(of, key, start, now)

        return moved

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
