"""Single runs of tasks that are worth a span of their own: failures, and the slowest of each group."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from operator import attrgetter
from typing import NamedTuple

__all__ = ["MAX_ERRED", "MAX_SLOWEST", "Picks", "TaskError", "TaskRun"]

#: Task spans a group.
MAX_ERRED = 20
MAX_SLOWEST = 5


class TaskError(NamedTuple):
    """The exception that a task raised."""

    type: str
    message: str
    traceback: str


class TaskRun(NamedTuple):
    """One run of one task."""

    key: str
    group: str
    prefix: str
    #: Dask's own; negative for a failure without a run, such as a task that no worker can take.
    run_id: int
    #: Seconds since the epoch; equal where there was no run.
    start: float
    stop: float
    #: Seconds of compute.
    seconds: float
    #: µs by action.
    durations: Mapping[str, int]
    #: Address and name.
    worker: str | None
    worker_name: str | None
    thread: int | None
    #: Of the result.
    type: str | None
    nbytes: int | None
    error: TaskError | None

    def shift(self, seconds: float) -> TaskRun:
        """Return it at another time."""
        return self._replace(start=self.start + seconds, stop=self.stop + seconds)


class Picks:
    """The runs picked from one group."""

    __slots__ = ("erred", "slowest")

    def __init__(self) -> None:
        #: The first ones.
        self.erred: list[TaskRun] = []
        self.slowest: list[TaskRun] = []

    def add_erred(self, run: TaskRun) -> None:
        """Keep a failed run, unless there are enough."""
        if len(self.erred) < MAX_ERRED:
            self.erred.append(run)

    def add_slow(self, run: TaskRun) -> None:
        """Keep a run if it is among the slowest."""
        self.slowest.append(run)
        if len(self.slowest) >= MAX_SLOWEST:
            self.slowest.sort(key=attrgetter("seconds"), reverse=True)
            del self.slowest[MAX_SLOWEST:]

    @property
    def threshold(self) -> float:
        """Seconds that a run must take to be among the slowest, or more; negative while any is."""
        return self.slowest[-1].seconds if len(self.slowest) == MAX_SLOWEST else -1.0

    def add(self, other: Picks) -> None:
        """Take over what another group's, or another sweep's, picks add."""
        for run in other.erred:
            self.add_erred(run)
        for run in other.slowest:
            self.add_slow(run)

    def shift(self, seconds: float, after: float = -inf) -> None:
        """Move the times of runs that ended after a time: the clock was set."""
        self.erred = [run.shift(seconds) if run.stop > after else run for run in self.erred]
        self.slowest = [run.shift(seconds) if run.stop > after else run for run in self.slowest]
