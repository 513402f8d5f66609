"""Records: the output of the span tree. A record describes a finished OTel span, and nothing changes it any more.

Times are seconds since the epoch by the scheduler's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..diagnosis.parts import CriticalPath, OnPath, Waterfall
from ..diagnosis.verdict import Verdict
from ..identity import Caller
from .counts import FirstError, Tally
from .events import Metrics, Phase, SpanInfo, TaskRun

__all__ = [
    "ENDS",
    "Failure",
    "GroupRecord",
    "Link",
    "ParentGroupRecord",
    "PendingRecord",
    "PhaseRecord",
    "Record",
    "RootReasons",
    "RootRun",
    "RootRuns",
    "SegmentRecord",
    "StandInRecord",
    "TaskRecord",
]


class Link(NamedTuple):
    """A reference to another span; ``kind`` is one of ``schema.LINK_TYPES``."""

    trace_id: int
    span_id: int
    kind: str


#: Results of a run that ended though no task failed; they are types of failures, too.
ENDS = ("lost", "interrupted")


class Failure(NamedTuple):
    """Why the status is Error."""

    #: Of the first exception; or ``lost``, ``interrupted`` where there was none.
    type: str
    message: str
    #: How many tasks, and how many graphs that the scheduler could not take in.
    erred: int = 0
    upstream_failed: int = 0
    graphs: int = 0
    #: How many tasks did not end, of a run that was lost or interrupted.
    unfinished: int = 0


@dataclass(slots=True)
class Record:
    """What all kinds of record have."""

    span: SpanInfo
    #: The Dask span at the top of the trace, and the span of another process that is above that one.
    top: SpanInfo
    caller: Caller | None
    trace_id: int
    span_id: int
    parent_id: int | None
    name: str
    start: float
    end: float
    links: tuple[Link, ...]
    failure: Failure | None

    @property
    def is_top(self) -> bool:
        """Whether this is a segment at the top of its trace, which is listed, counted and sampled as a run."""
        return False


@dataclass(slots=True)
class PendingRecord(Record):
    """A span for a run that has not ended yet."""

    #: Tasks of the open segments and all below; None where they are too many to count.
    tasks: int | None = None
    completed: int | None = None
    #: Tags of the Dask spans that had unfinished tasks.
    active: tuple[tuple[str, ...], ...] = ()


@dataclass(slots=True)
class TaskRecord(Record):
    """One run of one task."""

    run: TaskRun
    #: Why it was picked: erred, outlier, slowest.
    reason: str


@dataclass(slots=True)
class PhaseRecord(Record):
    """The scheduler's taking in of a graph, if it took long."""

    phase: Phase


@dataclass(slots=True)
class GroupRecord(Record):
    """A finished group span, or the one that stands for the groups that were folded."""

    tally: Tally
    group: str
    dependencies: tuple[str, ...]
    types: Mapping[str, int]
    buckets: Mapping[int, int]
    #: Fine metrics, where no other group of the segment has the same prefix; else None.
    metrics: Metrics | None
    #: For how many groups it stands; 0 for a group's own.
    folded: int
    #: Failed tasks without a span.
    truncated_tasks: int
    #: Of the first run that failed and was retried.
    retried_error: FirstError | None = None
    #: Seconds that its runs are on the critical path of its root; None if that was not known yet when it was sent.
    critical: OnPath | None = None


@dataclass(slots=True)
class ParentGroupRecord(GroupRecord):
    """A group span that is the parent of spans of workers: it is sent though others are left out."""


@dataclass(slots=True)
class StandInRecord(Record):
    """A span in the place of a group span that is not sent, since spans of workers have it for their parent.

    It has no numbers: those of the group are in other spans.
    """

    group: str


@dataclass(slots=True)
class SegmentRecord(Record):
    """A finished segment."""

    tally: Tally
    number: int
    result: str
    #: Id of the segment before, where there is no parent and hence no link may be.
    previous_id: int | None
    metrics: Metrics
    #: Seconds of the segment by what went on: executing, queued, no_worker, idle.
    wall: Mapping[str, float]
    #: Thread-seconds that the cluster had meanwhile, and that other roots used.
    threads_available: float
    threads_others: float
    metrics_complete: bool
    clients: tuple[str, ...]
    graph_seconds: float
    collections: tuple[str, ...]
    annotations: Mapping[str, tuple[str, ...]]
    code: tuple[str, int] | None
    #: Ids of Dask spans that count tasks which this one requested, and those tasks.
    counted_in: tuple[str, ...]
    elsewhere: Tally | None
    #: Graphs that the scheduler could not take in, by status: error, cancelled.
    graph_failures: Mapping[str, int]
    truncated_groups: int
    truncated_tasks: int
    truncated_phases: int = 0
    #: On a top, by ``service``, ``user``, ``host``: who submitted.
    submitters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Spans inside this one that were dropped before they were sent: beyond the rate limit or the queue's size.
    dropped_groups: int = 0
    dropped_tasks: int = 0
    dropped_phases: int = 0
    #: On a top: spans of its trace that were lost before it was sent, and that no other segment counts.
    dropped_spans: int = 0
    #: Of a root: why it took as long as it did.
    waterfall: Waterfall | None = None
    critical: CriticalPath | None = None
    verdict: Verdict | None = None

    @property
    def is_top(self) -> bool:
        """Whether no other span of the cluster is above it in its trace."""
        return self.span.id == self.top.id


class RootRun(NamedTuple):
    """A run that has ended, whether or not a trace shows it; ids of its last segment, or of the first that failed."""

    span: SpanInfo
    start: float
    end: float
    #: As ``dask.span.result``, but ``error`` if any of its segments failed.
    result: str
    trace_id: int
    span_id: int


class RootReasons(NamedTuple):
    """Why a segment of a root took as long as it did, whether or not a trace shows it."""

    span: SpanInfo
    waterfall: Waterfall | None
    verdict: Verdict | None


class RootRuns:
    """Joins the segments of runs that were cut: a run is from the first task to the last."""

    def __init__(self) -> None:
        #: By id of a top that was cut and goes on: when it began, and the trace and span id of a segment that failed.
        self._cut: dict[str, tuple[float, tuple[int, int] | None]] = {}
        self._ended: list[RootRun] = []
        self._reasons: list[RootReasons] = []
        #: Ids of spans whose segment is there for numbers that came late.
        self._late: set[str] = set()

    def late(self, span: SpanInfo) -> None:
        """Note that the next segment of a span is no run."""
        self._late.add(span.id)

    def closed(self, record: SegmentRecord) -> None:
        """Note that a segment at the top of its trace has closed."""
        if record.span.id in self._late:
            self._late.discard(record.span.id)
            return
        at = record.trace_id, record.span_id
        start, failed = self._cut.pop(record.span.id, (record.start, None))
        failed = failed or (at if record.failure and record.failure.type not in ENDS else None)
        if record.result == "unfinished":
            self._cut[record.span.id] = start, failed
            return
        result = "error" if failed and record.result != "interrupted" else record.result
        self._ended.append(RootRun(record.span, start, record.end, result, *(failed or at)))

    def explained(self, record: SegmentRecord) -> None:
        """Note why a segment of a root took long, if that is known."""
        if record.waterfall or record.verdict:
            self._reasons.append(RootReasons(record.span, record.waterfall, record.verdict))

    def drain(self) -> list[RootRun]:
        """Hand over the runs that have ended."""
        ended, self._ended = self._ended, []
        return ended

    def drain_reasons(self) -> list[RootReasons]:
        """Hand over why segments took long."""
        reasons, self._reasons = self._reasons, []
        return reasons
