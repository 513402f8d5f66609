"""What the online account makes of a full record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dask_otel.diagnosis.parts import GroupKey, Lap
from dask_otel.diagnosis.run_times import GroupTimes, RunTimes
from dask_otel.spantree.events import latest_run

from .full_record import Arrival, Came, Cut, Event, Move, Swept, WorkerChange

__all__ = ["drive"]

_WAITING = ("waiting", "queued", "no-worker")
ASKED_FOR = ("update-graph", "stimulus-retry")


@dataclass
class _Task:
    state: str = ""
    #: Whether it was released while a worker had it, or its result; and whether it runs again for that.
    was_in_vain: bool = False
    runs_again: bool = False


def drive(events: Iterable[Event], start: float) -> list[Lap]:
    """Tell it all events; return all laps in the order in which they ended."""
    times = RunTimes(start, _cause_of)
    driver = _Driver(times)
    laps: list[Lap] = []
    for event in events:
        if isinstance(event, Swept):
            laps += times.take(event.at)
        elif isinstance(event, Cut):
            lap = times.cut(event.root, event.at)
            laps += [lap] if lap else []
        elif isinstance(event, Came):
            driver.came[event.stimulus] = times.graph_came(event.at)
        elif isinstance(event, Arrival):
            times.graph_taken(event.stimulus, driver.came.pop(event.stimulus), event.at)
        elif isinstance(event, WorkerChange):
            driver.change(event)
        elif event.root and event.start != event.finish:
            driver.move(event)
    return laps


def _cause_of(stimulus: str) -> str:
    return "lost" if stimulus.startswith(("handle-worker-cleanup", "task-erred", "reschedule", "steal")) else "dispatch"


class _Driver:
    def __init__(self, times: RunTimes) -> None:
        self._times = times
        self._tasks: dict[int, _Task] = {}
        self._moves: dict[int, Move] = {}
        self._groups: dict[tuple[str, str, str], GroupTimes] = {}
        self.came: dict[str, Any] = {}

    def change(self, event: WorkerChange) -> None:
        times, now = self._times, event.at
        if event.what == "joined":
            times.worker_joined(event.worker, event.threads, now, is_running=event.status == "running")
        elif event.what == "left":
            times.worker_left(event.worker, now)
        elif event.what == "status":
            times.worker_status(event.worker, now, is_running=event.status == "running")
        elif event.what == "seceded":
            times.secede(self._of(self._moves[event.task]), event.task, now)
        else:
            times.steal(self._of(self._moves[event.task]), event.task, event.worker, now)

    def _of(self, move: Move) -> GroupTimes:
        key = move.root, move.span, move.group
        if key not in self._groups:
            self._groups[key] = GroupTimes(self._times.account(move.root), GroupKey(move.span, move.group))
        return self._groups[key]

    def move(self, event: Move) -> None:
        times, of, now, key, stimulus = self._times, self._of(event), event.at, event.task, event.stimulus
        task = self._tasks.setdefault(key, _Task())
        self._moves[key] = event
        before, task.state = task.state, event.finish
        if event.finish in _WAITING:
            if before in _WAITING:
                times.move(of, key, before, event.finish, now, stimulus)
            else:
                times.enter(of, event.finish, now, stimulus)
        elif event.finish == "processing":
            remote, again = event.lacks_input, event.had_result
            times.send(of, key, before, event.sent_to, now, stimulus, ran_before=again, is_remote=remote)
        elif before == "processing":
            if event.finish in ("memory", "erred") and event.startstops:
                steps = latest_run(event.startstops)
                begin = next(step["start"] for step in steps if step["action"] == "compute") + event.offset
                stop = max(step["stop"] for step in steps) + event.offset
                times.run(of, key, begin, stop, event.thread, now, stimulus)
            else:
                times.release(of, key, now, was_lost=stimulus.startswith("handle-worker-cleanup"))
        elif before in _WAITING:
            times.leave(of, key, before, now)
