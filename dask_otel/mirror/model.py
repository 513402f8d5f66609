"""What goes into the mirror, as plain data.

Times are seconds since the epoch by the scheduler's clock, durations of tasks integer microseconds (as Dask
itself counts them), sizes bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "OUTCOMES",
    "Change",
    "Dependency",
    "FirstError",
    "Graph",
    "Load",
    "Metrics",
    "SpanInfo",
    "Tally",
]

#: Fine performance metrics: ``("execute", prefix, activity, unit)`` or ``("p2p", where, activity, unit)``.
Metrics = dict[tuple[object, ...], float]

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


@dataclass(frozen=True, slots=True)
class SpanInfo:
    """What never changes about a Dask span."""

    id: str
    #: ``Span.name``: the tags from the root down.
    tags: tuple[str, ...]
    parent_id: str | None
    #: When it first appeared on the scheduler.
    enqueued: float

    @property
    def is_default(self) -> bool:
        """True for the span that Dask gives to work without a span."""
        return self.tags == ("default",)


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
        return Load(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Load) -> Load:
        """Subtract field by field."""
        return Load(*(a - b for a, b in zip(self, other, strict=True)))


class FirstError(NamedTuple):
    """The exception that the first erred task raised."""

    #: Unqualified, e.g. ``ValueError``; ``_OTHER`` where Dask doesn't say.
    type: str
    message: str


def _sum_into(total: dict[str, int], more: Mapping[str, int]) -> None:
    for key, value in more.items():
        total[key] = total.get(key, 0) + value


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
        """Count one task that ended, or began anew, in this way."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def hull(self, start: float, stop: float) -> None:
        """Widen the time in which tasks ran."""
        if not self.run_start or start < self.run_start:
            self.run_start = start
        self.run_stop = max(self.run_stop, stop)

    def add(self, other: Tally) -> None:
        """Add another tally to this one; the first error stays the first."""
        self.tasks += other.tasks
        self.completed += other.completed
        self.nbytes += other.nbytes
        _sum_into(self.outcomes, other.outcomes)
        _sum_into(self.durations, other.durations)
        for worker, seconds in other.workers.items():
            self.workers[worker] = self.workers.get(worker, 0.0) + seconds
        if other.run_start:
            self.hull(other.run_start, other.run_stop)
        self.last_event = max(self.last_event, other.last_event)
        self.error = self.error or other.error


class Dependency(NamedTuple):
    """A group that another one depends on."""

    span_id: str
    name: str


class Change(Tally):
    """What happened to one task group of Dask's between two sweeps.

    The hooks write into it what would otherwise vanish; the sweep adds what can be read from the group.
    """

    __slots__ = (
        "active",
        "buckets",
        "dependencies",
        "load",
        "name",
        "prefix",
        "provisional",
        "since",
        "span_id",
        "types",
        "unfinished",
    )

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since = since
        #: Tasks entered, ran or ended; not only released, forgotten or recomputed because a worker left.
        self.active = False
        #: Number of runs by bucket of compute time, see ``buckets``.
        self.buckets: dict[int, int] = {}
        #: Number of results by type name.
        self.types: dict[str, int] = {}
        #: By how much the number of provisional tasks changed.
        self.provisional = 0
        self.span_id = ""
        self.name = ""
        self.prefix = ""
        self.dependencies: tuple[Dependency, ...] = ()
        #: By how much the group's load changed.
        self.load = Load()
        #: Unfinished tasks of the group now.
        self.unfinished = 0

    @property
    def is_empty(self) -> bool:
        """Nothing to count: a release, a change of state only."""
        return not (self.active or self.tasks or self.nbytes or self.durations)


@dataclass(slots=True)
class Graph:
    """What a submission said about one Dask span."""

    span_id: str
    #: Ids of the clients that submitted.
    clients: tuple[str, ...] = ()
    #: Seconds the scheduler took to take the graph in.
    seconds: float = 0.0
    #: Types of the collections computed, e.g. ``DataFrame``.
    collections: tuple[str, ...] = ()
    #: Values of annotations on the allow-list.
    annotations: Mapping[str, Iterable[str]] = field(default_factory=dict)
    #: File and line of the innermost user frame.
    code: tuple[str, int] | None = None
