"""Single runs of tasks that are worth a span of their own: failures, and the slowest of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

__all__ = ["MAX_ERRED", "MAX_SLOWEST", "PickedRun", "Picks", "TaskError", "TaskRun", "latest_run"]

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

    def described(self) -> TaskRun:
        """Return all that its span says."""
        return self

    def shift(self, seconds: float) -> TaskRun:
        """Return it at another time."""
        return self._replace(start=self.start + seconds, stop=self.stop + seconds)


def latest_run(startstops: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]]:
    """What a worker says of a run, without the runs before: it goes on writing where it still knows the task."""
    startstops = startstops or ()
    computes = [number for number, each in enumerate(startstops) if each["action"] == "compute"]
    return startstops[computes[-2] + 1 :] if len(computes) > 1 else startstops


class PickedRun(NamedTuple):
    """A run that is among the slowest so far, as a worker has told of it.

    Most of them will not have a span in the end: of a group with few tasks all are picked, and there may be thousands
    of such groups.
    """

    #: Of compute.
    seconds: float
    key: object
    group: object
    prefix: object
    run_id: int
    #: ``action``, ``start`` and ``stop`` of each thing that was done; also of earlier runs that the worker remembers.
    startstops: Sequence[Mapping[str, Any]]
    worker: str | None
    worker_name: object
    thread: int | None
    type: str | None
    nbytes: int | None
    #: By how much the clock was set since.
    moved: float = 0.0

    @property
    def stop(self) -> float:
        """When it ended, seconds since the epoch."""
        return max((each["stop"] for each in self.startstops), default=0.0) + self.moved

    def shift(self, seconds: float) -> PickedRun:
        """Return it at another time."""
        return self._replace(moved=self.moved + seconds)

    def described(self, error: TaskError | None = None) -> TaskRun:
        """Return all that its span says."""
        runs = latest_run(self.startstops)
        durations: dict[str, int] = {}
        for run in runs:
            if run["action"]:
                micros = round((run["stop"] - run["start"]) * 1e6)
                durations[run["action"]] = durations.get(run["action"], 0) + micros
        return TaskRun(
            key=str(self.key),
            group=str(self.group),
            prefix=str(self.prefix),
            run_id=self.run_id,
            start=min(run["start"] for run in runs) + self.moved,
            stop=max(run["stop"] for run in runs) + self.moved,
            seconds=self.seconds,
            durations=durations,
            worker=self.worker,
            worker_name=None if self.worker_name is None else str(self.worker_name),
            thread=self.thread,
            type=self.type,
            nbytes=self.nbytes,
            error=error,
        )


class Picks:
    """The runs picked from one group."""

    __slots__ = ("erred", "slowest")

    def __init__(self) -> None:
        #: The first ones.
        self.erred: list[TaskRun] = []
        self.slowest: list[TaskRun | PickedRun] = []

    def add_erred(self, run: TaskRun) -> None:
        """Keep a failed run, unless there are enough."""
        if len(self.erred) < MAX_ERRED:
            self.erred.append(run)

    def add_slow(self, run: TaskRun | PickedRun) -> None:
        """Keep a run if it is among the slowest."""
        if len(self.slowest) == MAX_SLOWEST and run.seconds <= self.slowest[-1].seconds:
            return
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
        for failed in other.erred:
            self.add_erred(failed)
        for slow in other.slowest:
            self.add_slow(slow)

    def shift(self, seconds: float, after: float = -inf) -> None:
        """Move the times of runs that ended after a time: the clock was set."""
        self.erred = [run.shift(seconds) if run.stop > after else run for run in self.erred]
        self.slowest = [run.shift(seconds) if run.stop > after else run for run in self.slowest]
