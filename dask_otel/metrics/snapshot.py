"""What comes out: metrics as plain data, at one moment. Nothing changes it any more.

How the cluster is at one moment, as plain data.

What has come since an earlier snapshot, for backends that want to be told that and not totals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..schema import Kind, Metric

__all__ = [
    "ActivityKey",
    "Cluster",
    "Exemplar",
    "ExporterCounts",
    "HistogramPoint",
    "Labels",
    "MetricPoints",
    "NumberPoint",
    "Snapshot",
    "deltas",
]

#: Values in the order of the metric's labels; None where a label does not apply.
Labels = tuple["str | bool | None", ...]


class Exemplar(NamedTuple):
    """An observation that a trace shows."""

    value: float
    #: Seconds since the epoch.
    time: float
    trace_id: int
    span_id: int


class NumberPoint(NamedTuple):
    """A point of a counter, updowncounter or gauge."""

    labels: Labels
    #: When it was zero; seconds since the epoch.
    start: float
    value: float


class HistogramPoint(NamedTuple):
    """A point of a histogram."""

    labels: Labels
    start: float
    #: Observations up to and including each bound, and beyond the last; not cumulative.
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar, ...]


class MetricPoints(NamedTuple):
    """All points of one metric."""

    metric: Metric
    #: Of a histogram.
    bounds: tuple[float, ...]
    points: Sequence[NumberPoint | HistogramPoint]


class Snapshot(NamedTuple):
    """All metrics."""

    #: Seconds since the epoch.
    at: float
    measured: list[MetricPoints]
    #: Seconds to subtract from all times: the system's clock has been set back by so much since the start.
    clock_offset: float = 0.0


#: What one entry of Dask's fine metrics counts: context, task prefix if it has one, activity, unit.
ActivityKey = tuple[str, "str | None", str, str]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the scheduler knows; bytes and counts."""

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
    """What became of the spans that one exporter was given: counts."""

    name: str
    waiting: int
    capacity: int
    #: Handed to the collector, and taken by it.
    exported: int
    #: By reason: those that were lost before they left the queue, and afterwards.
    dropped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)


def deltas(now: Snapshot, before: Snapshot | None, kinds: Collection[Kind]) -> Snapshot:
    """Return a snapshot in which some kinds of metrics count from an earlier one on, without what has not changed."""
    earlier = {each.metric.name: each for each in before.measured} if before else {}
    at = before.at if before else 0.0
    measured = [
        _delta(each, earlier.get(each.metric.name), at) if each.metric.kind in kinds else each for each in now.measured
    ]
    return now._replace(measured=[each for each in measured if each.points])


def _delta(now: MetricPoints, before: MetricPoints | None, at: float) -> MetricPoints:
    known: dict[Labels, NumberPoint | HistogramPoint] = (
        {point.labels: point for point in before.points} if before else {}
    )
    points: list[NumberPoint | HistogramPoint] = []
    for point in now.points:
        earlier = known.get(point.labels)
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
