"""Numbers that add up, and how many tasks wait for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

__all__ = ["OUTCOMES", "FirstError", "Load", "Tally", "sum_into"]

Key = TypeVar("Key")
Number = TypeVar("Number", int, float)

#: How a task can end, or begin anew, other than by completing.
OUTCOMES = (
    "erred",
    "upstream_failed",
    "cancelled",
    "abandoned",
    "retried",
    "rescheduled",
    "recomputed",
    "lost",
)


class Load(NamedTuple):
    """How many unfinished tasks, by what they wait for."""

    processing: int = 0
    queued: int = 0
    no_worker: int = 0
    #: for their dependencies
    waiting: int = 0
    #: Of all these, tasks that had finished once and only run again because their worker left. They don't keep
    #: a segment open: when a cluster closes, workers often go first.
    provisional: int = 0

    @property
    def unfinished(self) -> int:
        """Tasks that keep a segment open."""
        return self.processing + self.queued + self.no_worker + self.waiting - self.provisional

    def plus(self, other: Load) -> Load:
        """Add field by field."""
        return Load(
            self.processing + other.processing,
            self.queued + other.queued,
            self.no_worker + other.no_worker,
            self.waiting + other.waiting,
            self.provisional + other.provisional,
        )

    def minus(self, other: Load) -> Load:
        """Subtract field by field."""
        return Load(
            self.processing - other.processing,
            self.queued - other.queued,
            self.no_worker - other.no_worker,
            self.waiting - other.waiting,
            self.provisional - other.provisional,
        )


class FirstError(NamedTuple):
    """The exception that the first erred task raised."""

    #: Unqualified, e.g. ``ValueError``; ``_OTHER`` where Dask doesn't say.
    type: str
    message: str


class Tally:
    """Numbers that add up: over the tasks of a group, over groups, over child segments."""

    __slots__ = (
        "completed",
        "durations",
        "error",
        "last_event",
        "nbytes",
        "outcomes",
        "run_start",
        "run_stop",
        "tasks",
        "workers",
    )

    def __init__(self) -> None:
        #: Tasks that entered.
        self.tasks = 0
        #: Tasks that finished with a result. Kept apart from the other outcomes because it is counted most.
        self.completed = 0
        #: By outcome, see ``OUTCOMES``.
        self.outcomes: dict[str, int] = {}
        #: µs by action: compute, transfer …
        self.durations: dict[str, int] = {}
        self.nbytes = 0
        #: Seconds of compute by worker address.
        self.workers: dict[str, float] = {}
        #: Earliest start and latest stop of a run; 0.0 while there was none.
        self.run_start = 0.0
        self.run_stop = 0.0
        #: Latest time that a task ended without a run: cancelled, failed upstream.
        self.last_event = 0.0
        self.error: FirstError | None = None

    def count(self, outcome: str) -> None:
        """Count one task that ended, or began anew, in this way; ``completed`` is one of them."""
        if outcome == "completed":
            self.completed += 1
        else:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def hull(self, start: float, stop: float) -> None:
        """Widen the time in which tasks ran."""
        if not self.run_start or start < self.run_start:
            self.run_start = start
        self.run_stop = max(self.run_stop, stop)

    @property
    def end(self) -> float:
        """When the latest task ended; 0.0 while none has."""
        return max(self.run_stop, self.last_event)

    def put_in_time(self, earliest: float, now: float) -> None:
        """Move runs that a clock which is off placed in the future, or before there was anything to run."""
        length = self.run_stop - self.run_start
        if self.run_stop > now:
            self.run_start, self.run_stop = now - length, now
        if self.run_start and self.run_stop <= earliest:
            self.run_start, self.run_stop = earliest, max(earliest, min(now, earliest + length))

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self.run_start += seconds if self.run_start else 0.0
        self.run_stop += seconds if self.run_stop else 0.0
        self.last_event += seconds if self.last_event else 0.0

    def add(self, other: Tally) -> None:
        """Add another tally to this one; the first error stays the first."""
        self.tasks += other.tasks
        self.completed += other.completed
        self.nbytes += other.nbytes
        if other.outcomes:
            sum_into(self.outcomes, other.outcomes)
        if other.durations:
            sum_into(self.durations, other.durations)
        if other.workers:
            sum_into(self.workers, other.workers)
        if other.run_start:
            self.hull(other.run_start, other.run_stop)
        if other.last_event > self.last_event:
            self.last_event = other.last_event
        self.error = self.error or other.error


def sum_into(total: dict[Key, Number], more: Mapping[Key, Number]) -> None:
    """Add numbers to those of the same key."""
    for key, value in more.items():
        total[key] = total[key] + value if key in total else value
