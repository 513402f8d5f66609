"""Picks the runs of tasks that get a span of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.metrics import time

from ..mirror.model import Change
from ..mirror.tally import FirstError
from ..mirror.tasks import MAX_ERRED, PickedRun, Picks, TaskError

__all__ = ["Runs"]

#: Characters kept of a traceback: its end, where the error was raised.
MAX_TRACEBACK = 1900


class Runs:
    """Describes runs.

    Parameters
    ----------
    workers
        ``Scheduler.workers``
    first_failure
        Where the numbers of failures without a run begin; an earlier watch of the scheduler had others.
    """

    def __init__(self, workers: Mapping[str, Any], first_failure: int) -> None:
        self._workers = workers
        self._failures = first_failure

    def slow(self, key: Any, task: Any, change: Change, seconds: float, details: Mapping[str, Any]) -> None:
        """Pick a run that is slower than those that its group has shown."""
        change.picks = change.picks or Picks()
        change.picks.add_slow(self._run(key, task, details, seconds))
        change.slow = max(change.slow, change.picks.threshold)

    def erred(self, key: Any, task: Any, change: Change, error: FirstError, details: Mapping[str, Any]) -> None:
        """Pick a failure."""
        change.picks = change.picks or Picks()
        if len(change.picks.erred) < MAX_ERRED:
            traceback = details.get("traceback_text") or ""
            if len(traceback) > MAX_TRACEBACK:
                traceback = "…" + traceback[-MAX_TRACEBACK:]
            run = self._run(key, task, details, 0.0)
            if not details.get("startstops"):
                # It failed without running, and may do so again under the same run_id: that of an earlier run, or none.
                self._failures += 1
                run = run._replace(run_id=-self._failures)
            change.picks.add_erred(run.described(TaskError(*error, traceback)))

    def _run(self, key: Any, task: Any, details: Mapping[str, Any], seconds: float) -> PickedRun:
        worker = details.get("worker")
        state = self._workers.get(worker) if worker else None
        return PickedRun(
            seconds,
            key,
            task.group.name,
            task.prefix.name,
            task.run_id,
            details.get("startstops") or _at(time()),
            worker,
            state.name if state else None,
            details.get("thread"),
            details.get("typename"),
            details.get("nbytes"),
        )


def _at(now: float) -> Sequence[Mapping[str, Any]]:
    """What a worker would have said of a run that took no time."""
    return [{"action": "", "start": now, "stop": now}]
