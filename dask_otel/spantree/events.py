"""What goes into the span tree, as plain data.

Times are seconds since the epoch by the scheduler's clock, durations of tasks integer microseconds (as Dask
itself counts them), sizes bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from ..identity import Caller
from ..schema import MAX_ERRED, MAX_ERROR_TYPES, MAX_SLOWEST
from .counts import FirstError, Intervals, Load, Tally, sum_into

__all__ = [
    "Change",
    "Claim",
    "Dependency",
    "Graph",
    "Metrics",
    "Phase",
    "PickedRun",
    "Picks",
    "SpanInfo",
    "TaskError",
    "TaskRun",
    "WorkerSpan",
    "latest_run",
]


#: Runs that are counted in one step.
AT_ONCE = 500


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
    #: Whether its worker has made its span.
    has_span: bool = False

    def described(self) -> TaskRun:
        """Return all that its span says."""
        return self


def latest_run(startstops: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]]:
    """Return what a worker reported of its latest run of a task, without those before in the same list."""
    startstops = startstops or ()
    computes = [number for number, each in enumerate(startstops) if each["action"] == "compute"]
    return startstops[computes[-2] + 1 :] if len(computes) > 1 else startstops


class PickedRun(NamedTuple):
    """A run that is among the slowest so far, as a worker reported it.

    Most of them get no span in the end, so they are described only then: of a group with few tasks all are picked, and
    there may be thousands of such groups.
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
    #: Seconds to add to these times, see ``scheduler.pace.Clock``.
    clock_offset: float = 0.0
    #: Whether its worker has made its span.
    has_span: bool = False

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
            start=min(run["start"] for run in runs) + self.clock_offset,
            stop=max(run["stop"] for run in runs) + self.clock_offset,
            seconds=self.seconds,
            durations=durations,
            worker=self.worker,
            worker_name=None if self.worker_name is None else str(self.worker_name),
            thread=self.thread,
            type=self.type,
            nbytes=self.nbytes,
            error=error,
            has_span=self.has_span,
        )


class WorkerSpan(NamedTuple):
    """A worker has made spans of tasks of one group."""

    #: Id of the Dask span.
    span_id: str
    group: str
    prefix: str
    #: Of their parent.
    trace_id: int
    parent_id: int


class Picks:
    """The runs picked from one group, or from the groups that are folded."""

    __slots__ = ("erred", "outliers", "slowest")

    def __init__(self) -> None:
        #: The first ones.
        self.erred: list[TaskRun] = []
        self.slowest: list[TaskRun | PickedRun] = []
        #: Of folded groups: runs that stood out in their own group.
        self.outliers: list[TaskRun | PickedRun] = []

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
            self.slowest = _slowest(self.slowest)

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

    def add_outliers(self, runs: Iterable[TaskRun | PickedRun]) -> None:
        """Keep runs that stood out in a group that is folded, if they are among the slowest of those."""
        self.outliers = _slowest([*self.outliers, *runs])


def _slowest(runs: list[TaskRun | PickedRun]) -> list[TaskRun | PickedRun]:
    return sorted(runs, key=attrgetter("seconds"), reverse=True)[:MAX_SLOWEST]


#: Fine performance metrics: ``("execute", prefix, activity, unit)`` or ``("p2p", where, activity, unit)``.
Metrics = dict[tuple[object, ...], float]


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
        """Whether Dask made this span for work without one."""
        return self.tags == ("default",)

    @property
    def path(self) -> str:
        """The tags, joined."""
        return " / ".join(self.tags)


class Dependency(NamedTuple):
    """A group that another one depends on."""

    span_id: str
    name: str


class Change(Tally):
    """What happened to one ``TaskGroup`` between two sweeps.

    Hooks add what would be gone by the next sweep; the sweep adds what it reads from the group.
    """

    __slots__ = (
        "active",
        "began",
        "buckets",
        "dependencies",
        "erred_with_span",
        "failed",
        "load",
        "name",
        "picks",
        "prefix",
        "provisional",
        "retried_error",
        "runs",
        "sent_to",
        "since",
        "slow",
        "span_id",
        "types",
        "uncounted",
        "unfinished",
    )

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since = since
        #: When the first task was sent to a worker; 0.0 while none was.
        self.began = 0.0
        #: Tasks entered, ran or ended; not only released, forgotten or recomputed because a worker left.
        self.active = False
        #: Of each run that is not counted yet, three values: seconds of compute or None, worker, type of the result. A
        #: look-up for each run by itself takes a microsecond: what it looks at is in no cache then.
        self.uncounted: list[Any] = []
        #: Number of runs by bucket of compute time, see ``buckets``.
        self.buckets: dict[int, int] = {}
        #: Number of runs by bar of a histogram of compute times, without those that failed; and of those, with the
        #: seconds that they computed, by type of error.
        self.runs: dict[int, int] = {}
        self.failed: dict[str, tuple[dict[int, int], float]] = {}
        #: Number of results by type name.
        self.types: defaultdict[str, int] = defaultdict(int)
        #: Of the first run that failed and was retried.
        self.retried_error: FirstError | None = None
        #: Addresses of workers that were given tasks; a set in order of insertion.
        self.sent_to: dict[str, None] = {}
        #: Number of failed runs whose spans workers have made.
        self.erred_with_span = 0
        #: Runs worth a span, and the seconds that one must take to be among them.
        self.picks: Picks | None = None
        self.slow = -1.0
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

    def ran(self, startstops: Sequence[Mapping[str, Any]] | None, worker: str | None, type_: str | None) -> float:
        """Append a run as a worker reported it; return the seconds that it computed."""
        seconds = None
        for step in startstops if startstops and len(startstops) == 1 else latest_run(startstops):  # a call less
            start, stop = step["start"], step["stop"]
            if start < self.run_start or not self.run_start:
                self.run_start = start
            if stop > self.run_stop:
                self.run_stop = stop
            if step["action"] == "compute":
                seconds = stop - start
        self.uncounted += (seconds, worker, type_)
        return seconds or 0.0

    def pick_slow(self, run: PickedRun) -> float:
        """Keep a run if it is among the slowest; return the seconds that the next one must take to be among them."""
        self.picks = self.picks or Picks()
        self.picks.add_slow(run)
        return self.picks.threshold

    def run_failed(self, error: str, interval: int, seconds: float) -> None:
        """Mark a run that has been counted in an interval as failed."""
        if error not in self.failed and len(self.failed) >= MAX_ERROR_TYPES:
            error = "_OTHER"
        counts, total = self.failed.get(error) or ({}, 0.0)
        counts[interval] = counts.get(interval, 0) + 1
        self.failed[error] = counts, total + seconds

    def count_runs(self, intervals: Intervals) -> Iterator[None]:
        """Count the runs that hooks have appended, by bucket and bar, type and worker; lazy, in steps of 0.2 ms."""
        uncounted, self.uncounted = self.uncounted, []
        workers, types, ends = self.workers, self.types, intervals.ends
        numbers: defaultdict[int, int] = defaultdict(int)
        for begin in range(0, len(uncounted), 3 * AT_ONCE):
            values = iter(uncounted[begin : begin + 3 * AT_ONCE])
            for seconds, worker, type_ in zip(values, values, values, strict=True):
                if seconds is not None:
                    numbers[bisect_left(ends, seconds)] += 1
                if worker:
                    workers[worker] = workers.get(worker, 0.0) + (seconds or 0.0)
                if type_:
                    types[type_] += 1
            yield
        buckets, runs = self.buckets, self.runs
        for number, count in numbers.items():
            bucket, bar = intervals.buckets[number], intervals.bars[number]
            buckets[bucket] = buckets.get(bucket, 0) + count
            runs[bar] = runs.get(bar, 0) + count
        for error, (counts, total) in self.failed.items():
            bars: dict[int, int] = {}
            for number, count in counts.items():
                sum_into(bars, {intervals.bars[number]: count})
            sum_into(self.runs, {bar: -count for bar, count in bars.items()})
            self.failed[error] = bars, total

    @property
    def is_trivial(self) -> bool:
        """Whether hooks have reported nothing that must be counted: the group's own numbers may still have changed."""
        return not (self.active or self.sent_to or self.outcomes or self.error or self.provisional)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to count: only results were released, or tasks changed their state."""
        return not (self.active or self.tasks or self.nbytes or self.durations)


class Claim(Tally):
    """What happened between two sweeps to tasks that one span requested and another one counts."""

    __slots__ = ("began", "load", "owning", "prefix", "requesting", "since")

    def __init__(self, requesting: str, owning: str, since: float) -> None:
        super().__init__()
        #: Ids of the two spans.
        self.requesting = requesting
        self.owning = owning
        self.since = since
        #: When the first task was sent to a worker; 0.0 while none was.
        self.began = 0.0
        #: Of the first task that changed.
        self.prefix = ""
        #: By how much the number of unfinished tasks changed.
        self.load = Load()


class Phase(NamedTuple):
    """The scheduler took a graph in, and that took long."""

    #: When the graph came, and when it had been taken in, or could not be.
    start: float
    end: float
    #: Tasks of the graph, and its size in bytes; None if not known.
    tasks: int | None = None
    size: int | None = None
    #: Whether the graph could not be taken in.
    failed: bool = False


@dataclass(slots=True)
class Graph:
    """What a submission contained for one Dask span."""

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
    #: ``error`` or ``cancelled`` if the scheduler could not take the graph in, and when it came and failed.
    failure: str = ""
    #: Of the tasks of a graph that failed.
    prefix: str = ""
    since: float = 0.0
    until: float = 0.0
    #: By ``service``, ``user``, ``host``, what the submitting program says of itself.
    submitter: Mapping[str, str] = field(default_factory=dict)
    #: The span that submitted, if it is to be linked to.
    caller: Caller | None = None
    #: None if the graph was taken in quickly.
    phase: Phase | None = None
