"""A snapshot of all metrics as plain data, which nothing changes afterwards; and its difference to an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..schema import Kind, Metric

__all__ = [
    "ActivityKey",
    "AttributeValues",
    "Cluster",
    "Exemplar",
    "ExporterCounts",
    "HistogramPoint",
    "MetricPoints",
    "NumberPoint",
    "Snapshot",
    "deltas",
]

#: Values in the order of ``Metric.attributes``; None where an attribute does not apply.
AttributeValues = tuple["str | bool | None", ...]


class Exemplar(NamedTuple):
    """An observation, and the span that shows it."""

    value: float
    #: Seconds since the epoch.
    time: float
    trace_id: int
    span_id: int


class NumberPoint(NamedTuple):
    """A point of a counter, updowncounter or gauge."""

    attributes: AttributeValues
    #: When it was zero; seconds since the epoch.
    start: float
    value: float


class HistogramPoint(NamedTuple):
    """A point of a histogram."""

    attributes: AttributeValues
    start: float
    #: Observations up to and including each bound, and beyond the last; not cumulative.
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar, ...]


class MetricPoints(NamedTuple):
    """All points of one metric."""

    metric: Metric
    #: Upper ends of a histogram's buckets.
    bounds: tuple[float, ...]
    points: Sequence[NumberPoint | HistogramPoint]


class Snapshot(NamedTuple):
    """All metrics."""

    #: Seconds since the epoch.
    at: float
    metrics: list[MetricPoints]
    #: Seconds to subtract from all times: the system's clock has been set back by so much since the start.
    clock_offset: float = 0.0


#: What one entry of Dask's fine metrics counts: context, task prefix if it has one, activity, unit.
ActivityKey = tuple[str, "str | None", str, str]


@dataclass(frozen=True, slots=True)
class Cluster:
    """State of the cluster; bytes and counts."""

    tasks: Mapping[str, int]
    workers: Mapping[str, int]
    threads: int
    clients: int
    managed: int
    unmanaged: int
    spilled: int
    #: None if no worker has a limit.
    limit: int | None


@dataclass(frozen=True, slots=True)
class ExporterCounts:
    """What became of the spans that one exporter was given."""

    name: str
    waiting: int
    capacity: int
    #: Handed to the collector, and taken by it.
    exported: int
    #: By reason: those that were lost before they left the queue, and afterwards.
    dropped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)


def deltas(now: Snapshot, before: Snapshot | None, kinds: Collection[Kind]) -> Snapshot:
    """Return a snapshot whose metrics of some kinds count from an earlier one on, without what has not changed."""
    earlier = {each.metric.name: each for each in before.metrics} if before else {}
    at = before.at if before else 0.0
    metrics = [
        _delta(each, earlier.get(each.metric.name), at) if each.metric.kind in kinds else each for each in now.metrics
    ]
    return now._replace(metrics=[each for each in metrics if each.points])


def _delta(now: MetricPoints, before: MetricPoints | None, at: float) -> MetricPoints:
    known = {point.attributes: point for point in before.points} if before else {}
    points: list[NumberPoint | HistogramPoint] = []
    for point in now.points:
        earlier = known.get(point.attributes)
        if earlier and earlier.start == point.start:  # else it is new, or was forgotten meanwhile
            point = _minus(point, earlier)._replace(start=at)
        if point.value if isinstance(point, NumberPoint) else any(point.counts):
            points.append(point)
    return now._replace(points=points)


def _minus(point: NumberPoint | HistogramPoint, earlier: NumberPoint | HistogramPoint) -> NumberPoint | HistogramPoint:
    if isinstance(point, NumberPoint) and isinstance(earlier, NumberPoint):
        return point._replace(value=point.value - earlier.value)
    assert isinstance(point, HistogramPoint)
    assert isinstance(earlier, HistogramPoint)
    counts = tuple(a - b for a, b in zip(point.counts, earlier.counts, strict=True))
    return point._replace(counts=counts, sum=point.sum - earlier.sum)
