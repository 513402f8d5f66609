"""Numbers that add up: tallies of tasks, their load by state, and durations in logarithmic buckets.

With buckets, quantiles cost an entry of a dict and not a list of all tasks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import exp, floor, inf, log, sqrt
from typing import NamedTuple, TypeVar

__all__ = ["GROWTH", "OUTCOMES", "FirstError", "Intervals", "Load", "Tally", "bucket", "quantile", "sum_into"]

#: Each bucket is this much wider than the one before; a quantile is its bucket's geometric middle, hence
#: off by at most sqrt(GROWTH) - 1 = 4.9 %.
GROWTH = 1.1

#: Buckets per e-fold.
BUCKETS = 1.0 / log(GROWTH)
#: Dask rounds durations to microseconds; what is shorter falls in the first bucket.
SHORTEST = 1e-6
#: Seconds; what is longer falls in the last one.
LONGEST = 1e7


def bucket(seconds: float) -> int:
    """Bucket number of a duration in seconds."""
    return floor(log(seconds if seconds > SHORTEST else SHORTEST) * BUCKETS)


def quantile(buckets: Mapping[int, int], q: float) -> float:
    """Duration in seconds below which a part ``q`` (0…1) of the tasks lie, within ±4.9 %.

    Raises
    ------
    ValueError
        If there is nothing in the buckets.
    """
    rank = q * sum(buckets.values())
    seen = 0
    for number in sorted(buckets):
        seen += buckets[number]
        if seen and seen >= rank:
            return exp((number + 0.5) / BUCKETS)
    raise ValueError("quantile of nothing")


class Intervals:
    """Durations divided both at the ends of buckets and at the bounds of a histogram: one look-up for the two.

    Parameters
    ----------
    bounds
        Upper ends of the histogram's bars, seconds, rising.
    """

    def __init__(self, bounds: Iterable[float]) -> None:
        bounds = list(bounds)
        steps = (exp(number / BUCKETS) for number in range(bucket(SHORTEST) + 1, bucket(LONGEST) + 1))
        #: Upper ends; the number of a duration's interval is ``bisect_left(ends, seconds)``.
        self.ends = sorted({*steps, *bounds})
        middles = [SHORTEST, *map(_middle, self.ends, self.ends[1:]), self.ends[-1] * sqrt(GROWTH)]
        #: By number of an interval, the bucket and the bar of which it is a part.
        self.buckets = [bucket(middle) for middle in middles]
        self.bars = [bisect_left(bounds, end) for end in (*self.ends, inf)]


def _middle(low: float, high: float) -> float:
    return sqrt(low * high)


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

    #: Unqualified, e.g. ``ValueError``; ``_OTHER`` if Dask does not know it.
    type: str
    message: str


class Tally:
    """Numbers that add up: over the tasks of a group, over groups, over child segments."""

    __slots__ = (
        "completed",
        "durations",
        "error",
        "last_event",
        "lost_for_good",
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
        #: Of the outcome ``lost``, the tasks that can never run again: their scattered input is gone.
        self.lost_for_good = 0
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
    def failed_tasks(self) -> int:
        """Number of tasks that erred or failed upstream."""
        return self.outcomes.get("erred", 0) + self.outcomes.get("upstream_failed", 0)

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

    def add(self, other: Tally) -> None:
        """Add another tally to this one; the first error stays the first."""
        self.tasks += other.tasks
        self.completed += other.completed
        self.nbytes += other.nbytes
        self.lost_for_good += other.lost_for_good
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
