"""Picks the runs of tasks that get a span of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.metrics import time

from ..mirror.model import Change
from ..mirror.tally import FirstError
from ..mirror.tasks import MAX_ERRED, Picks, TaskError, TaskRun
from .outcomes import latest_run

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
        change.picks.add_slow(self._run(key, task, details, seconds, None))
        change.slow = max(change.slow, change.picks.threshold)

    def erred(self, key: Any, task: Any, change: Change, error: FirstError, details: Mapping[str, Any]) -> None:
        """Pick a failure."""
        change.picks = change.picks or Picks()
        if len(change.picks.erred) < MAX_ERRED:
            traceback = details.get("traceback_text") or ""
            if len(traceback) > MAX_TRACEBACK:
                traceback = "…" + traceback[-MAX_TRACEBACK:]
            change.picks.add_erred(self._run(key, task, details, 0.0, TaskError(*error, traceback)))

    def _run(self, key: Any, task: Any, details: Mapping[str, Any], seconds: float, error: TaskError | None) -> TaskRun:
        runs = latest_run(details.get("startstops"))
        durations: dict[str, int] = {}
        for run in runs:
            micros = round((run["stop"] - run["start"]) * 1e6)
            durations[run["action"]] = durations.get(run["action"], 0) + micros
        run_id = task.run_id
        if not runs:
            # It failed without running, and may do so again under the same run_id: that of an earlier run, or none.
            self._failures += 1
            run_id = -self._failures
        now = time()
        worker = details.get("worker")
        state = self._workers.get(worker) if worker else None
        return TaskRun(
            key=str(key),
            group=str(task.group.name),
            prefix=str(task.prefix.name),
            run_id=run_id,
            start=min((run["start"] for run in runs), default=now),
            stop=max((run["stop"] for run in runs), default=now),
            seconds=seconds,
            durations=durations,
            worker=worker,
            worker_name=str(state.name) if state else None,
            thread=details.get("thread"),
            type=details.get("typename"),
            nbytes=details.get("nbytes"),
            error=error,
        )
