"""What the hooks latch: facts that would have vanished from the scheduler's state by the next sweep.

The transition hook runs four or five times for every task, so it does next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.metrics import time

from ..mirror.buckets import bucket
from ..mirror.model import Change, FirstError
from ..safety import Safety
from .outcomes import first_error, outcome_of_release

__all__ = ["Latches"]

#: Stimuli by which a person asks for a task to run again.
_ASKED_FOR = ("update-graph", "stimulus-retry")


class Latches:
    """Changes by task group since the last sweep.

    Parameters
    ----------
    tasks
        ``Scheduler.tasks``
    """

    def __init__(self, tasks: Mapping[Any, Any], safety: Safety) -> None:
        self._tasks = tasks
        self._safety = safety
        #: By TaskGroup.
        self._changes: dict[Any, Change] = {}
        #: Keys of tasks that had finished and run again because their results are gone.
        self._provisional: set[Any] = set()

    def touch(self, group: Any) -> Change:
        """Have the next sweep look at a group."""
        change = self._changes.get(group)
        if change is None:
            change = self._changes[group] = Change(time())
        return change

    def drain(self) -> dict[Any, Change]:
        """Hand over what was latched."""
        changes, self._changes = self._changes, {}
        return changes

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **details: Any) -> None:
        """Note a task's transition; ``details`` is what the worker said of the run."""
        # A guard would cost as much as all the rest.
        try:
            task = self._tasks[key]
            change = self._changes.get(task.group)
            if change is None:
                change = self.touch(task.group)
            if finish == "memory" and start != "memory":
                change.active = True
                change.completed += 1
                self._ran(change, details)
                if self._provisional and key in self._provisional:
                    self._settle_provisional(key, change, recomputed=True)
            elif finish == "processing" or (start == "memory" and finish != "erred"):
                pass
            elif finish == "waiting":
                if task.type is None:
                    change.active = True
                elif start == "released":
                    self._again(key, change, stimulus_id)
            elif finish == "erred":
                self._erred(key, start, task, change, details)
            elif start in ("processing", "waiting", "queued", "no-worker") and finish in ("released", "forgotten"):
                self._released(key, start, task, change, stimulus_id)
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._safety.caught("transition hook", error)

    @staticmethod
    def _ran(change: Change, details: Mapping[str, Any]) -> None:
        """Note when, where and for how long a task ran, and what came of it."""
        seconds = 0.0
        for run in details.get("startstops") or ():
            start, stop = run["start"], run["stop"]
            if start < change.run_start or not change.run_start:
                change.run_start = start
            if stop > change.run_stop:
                change.run_stop = stop
            if run["action"] == "compute":
                seconds = stop - start
                number = bucket(seconds)
                change.buckets[number] = change.buckets.get(number, 0) + 1
        worker = details.get("worker")
        if worker:
            change.workers[worker] = change.workers.get(worker, 0.0) + seconds
        type_ = details.get("typename")
        if type_:
            change.types[type_] = change.types.get(type_, 0) + 1

    def _again(self, key: Any, change: Change, stimulus_id: str) -> None:
        """A task that had finished is to run again."""
        if stimulus_id.startswith(_ASKED_FOR):
            change.active = True
            change.count("recomputed")
        else:  # because a worker left
            self._provisional.add(key)
            change.provisional += 1

    def _erred(self, key: Any, start: str, task: Any, change: Change, details: Mapping[str, Any]) -> None:
        blame = task.exception_blame
        if blame is task and start in ("waiting", "queued", "no-worker") and not details:
            # The task erred on its way to a worker: it has been counted in a transition inside this one.
            return
        change.active = True
        change.last_event = time()
        if blame is task:
            self._ran(change, details)
            change.count("erred")
        else:  # it depends on a task that erred
            change.count("upstream_failed")
        if not change.error:
            change.error = FirstError(*first_error(blame.exception_text if blame else None))
        if key in self._provisional:
            self._settle_provisional(key, change, recomputed=True)

    def _released(self, key: Any, start: str, task: Any, change: Change, stimulus_id: str) -> None:
        if key in self._provisional:
            self._settle_provisional(key, change, recomputed=False)
            return
        # Without its scattered input a task can never run.
        outcome = "lost" if task.has_lost_dependencies else outcome_of_release(start, stimulus_id)
        if outcome:
            change.active = True
            change.last_event = time()
            change.count(outcome)

    def _settle_provisional(self, key: Any, change: Change, *, recomputed: bool) -> None:
        self._provisional.discard(key)
        change.provisional -= 1
        if recomputed:
            change.count("recomputed")
