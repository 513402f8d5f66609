"""What comes out of the mirror: finished OTel spans, not yet in OpenTelemetry's terms. Nothing changes them any more.

Times are seconds since the epoch by the scheduler's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .model import Metrics, SpanInfo
from .tally import Tally
from .tasks import TaskRun

__all__ = ["Failure", "GroupRecord", "Link", "MarkerRecord", "Record", "SegmentRecord", "TaskRecord"]


class Link(NamedTuple):
    """A reference to another span; ``kind`` is ``dependency``, ``continues`` or ``counted_in``."""

    trace_id: int
    span_id: int
    kind: str


class Failure(NamedTuple):
    """Why the status is Error. Tasks that another span asked for are no failure of this one."""

    #: Of the first exception.
    type: str
    message: str
    #: How many tasks, and how many graphs that the scheduler could not take in.
    erred: int = 0
    upstream_failed: int = 0
    graphs: int = 0


@dataclass(slots=True)
class Record:
    """What all kinds of record have."""

    span: SpanInfo
    trace_id: int
    span_id: int
    parent_id: int | None
    name: str
    start: float
    end: float
    links: tuple[Link, ...]
    failure: Failure | None


@dataclass(slots=True)
class MarkerRecord(Record):
    """Says of a root that it is running."""


@dataclass(slots=True)
class TaskRecord(Record):
    """One run of one task."""

    run: TaskRun
    #: Why it was picked: erred, slowest.
    reason: str


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
    #: Paths of other spans whose tasks are counted here.
    includes: tuple[str, ...]
    #: Ids of Dask spans that count tasks this one asked for, and those tasks.
    counted_in: tuple[str, ...]
    elsewhere: Tally | None
    #: Graphs that the scheduler could not take in, by status: error, cancelled.
    graph_failures: Mapping[str, int]
    truncated_groups: int
    truncated_tasks: int
    #: Spans inside this one that were given up on the way out: too many at once, or too many for what waits.
    dropped_groups: int = 0
    dropped_tasks: int = 0
    #: On a root: spans of its trace that were lost before it left, and that no other segment tells of.
    dropped_spans: int = 0
