"""What has come since an earlier snapshot, for backends that want to be told that and not totals."""

from __future__ import annotations

from collections.abc import Collection

from .catalog import Kind
from .snapshot import Distribution, Labels, Measured, Number, Snapshot

__all__ = ["deltas"]


def deltas(now: Snapshot, before: Snapshot | None, kinds: Collection[Kind]) -> Snapshot:
    """Return a snapshot in which some kinds of metrics count from an earlier one on, without what has not changed."""
    earlier = {each.metric.name: each for each in before.measured} if before else {}
    at = before.at if before else 0.0
    measured = [
        _delta(each, earlier.get(each.metric.name), at) if each.metric.kind in kinds else each for each in now.measured
    ]
    return Snapshot(now.at, [each for each in measured if each.points])


def _delta(now: Measured, before: Measured | None, at: float) -> Measured:
    known: dict[Labels, Number | Distribution] = {point.labels: point for point in before.points} if before else {}
    points: list[Number | Distribution] = []
    for point in now.points:
        earlier = known.get(point.labels)
        if earlier and earlier.start == point.start:  # else it is new, or was forgotten meanwhile
            point = _minus(point, earlier)._replace(start=at)
        if point.value if isinstance(point, Number) else any(point.counts):
            points.append(point)
    return now._replace(points=points)


def _minus(point: Number | Distribution, earlier: Number | Distribution) -> Number | Distribution:
    if isinstance(point, Number) and isinstance(earlier, Number):
        return point._replace(value=point.value - earlier.value)
    assert isinstance(point, Distribution)
    assert isinstance(earlier, Distribution)
    counts = tuple(a - b for a, b in zip(point.counts, earlier.counts, strict=True))
    return point._replace(counts=counts, sum=point.sum - earlier.sum)
