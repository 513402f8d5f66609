"""What comes out of the mirror: finished OTel spans, not yet in OpenTelemetry's terms. Nothing changes them any more.

Times are seconds since the epoch by the scheduler's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .model import Metrics, SpanInfo, Tally

__all__ = ["GroupRecord", "Link", "Record", "SegmentRecord"]


class Link(NamedTuple):
    """A reference to another span; ``kind`` is ``dependency`` or ``continues``."""

    trace_id: int
    span_id: int
    kind: str


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
    tally: Tally


@dataclass(slots=True)
class GroupRecord(Record):
    """A finished group span."""

    group: str
    dependencies: tuple[str, ...]
    types: Mapping[str, int]
    buckets: Mapping[int, int]
    #: Fine metrics, where no other group of the segment has the same prefix; else None.
    metrics: Metrics | None


@dataclass(slots=True)
class SegmentRecord(Record):
    """A finished segment."""

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
