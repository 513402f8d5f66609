"""Snapshots to OpenTelemetry's metrics.

The SDK's data classes are made directly, not by its instruments: those cannot end a series that nobody uses any more,
need an exemplar's trace when the observation is made, and record observations one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ..metrics.series import OTHER
from ..metrics.snapshot import HistogramPoint, MetricPoints, NumberPoint, Snapshot
from ..schema import Kind, clean
from .transport import Pacer

__all__ = ["MetricFactory"]

#: The largest int of OTLP.
_LARGEST = 2**63 - 1


#: Attributes of a point by name, as a key.
_Key = tuple[tuple[str, "str | bool"], ...]


class MetricFactory:
    """Makes what an exporter takes.

    Parameters
    ----------
    shown
        Returns what may be shown of the value of an attribute, by its name and value.
    deltas
        Kinds of metrics that count from the previous snapshot on, not from the start.
    """

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        shown: Callable[[str, str], str],
        deltas: frozenset[Kind] = frozenset(),
    ) -> None:
        self._resource = resource
        self._scope = scope
        self._shown = shown
        self.deltas = deltas

    def data(self, snapshot: Snapshot) -> MetricsData:
        """Return a snapshot in OpenTelemetry's terms."""
        pacer = Pacer()
        metrics = [self._metric(each, snapshot, pacer) for each in snapshot.metrics]
        # Exporters encode one scope of one resource; of two equal ones, one would be lost.
        scopes = [ScopeMetrics(self._scope, metrics, schema_url="")]
        return MetricsData([ResourceMetrics(self._resource, scopes, schema_url="")])

    def _metric(self, each: MetricPoints, snapshot: Snapshot, pacer: Pacer) -> Metric:
        metric = each.metric
        by_key: dict[_Key, NumberPoint | HistogramPoint] = {}
        for point in pacer.paced(each.points):
            key = self._key(each, point)
            same = by_key.get(key)  # several values may be shown as one
            by_key[key] = _sum(same, point) if same else point
        points = pacer.paced([_point(each, dict(key), point, snapshot) for key, point in by_key.items()])
        temporality = AggregationTemporality.DELTA if metric.kind in self.deltas else AggregationTemporality.CUMULATIVE
        data: Any
        if metric.kind is Kind.HISTOGRAM:
            data = HistogramData(points, temporality)
        elif metric.kind is Kind.GAUGE:
            data = Gauge(points)
        else:
            data = Sum(points, temporality, is_monotonic=metric.kind is Kind.COUNTER)
        return Metric(metric.name, metric.description, metric.unit, data)

    def _key(self, each: MetricPoints, point: NumberPoint | HistogramPoint) -> _Key:
        return tuple(
            (name, clean(self._shown(name, value)) if isinstance(value, str) and value != OTHER else value)
            for name, value in zip(each.metric.attributes, point.attributes, strict=True)
            if value is not None
        )


def _point(
    each: MetricPoints, attributes: dict[str, str | bool], point: NumberPoint | HistogramPoint, snapshot: Snapshot
) -> Any:
    offset = snapshot.clock_offset
    at = _nanoseconds(snapshot.at - offset)
    # A point must not begin after it ends; the clock may have been set.
    start = min(_nanoseconds(point.start - offset), at)
    if isinstance(point, NumberPoint):
        return NumberDataPoint(attributes, start, at, _number(point.value, each.metric.unit))
    unknown: Any = None
    return HistogramDataPoint(
        attributes,
        start,
        at,
        count=sum(point.counts),
        sum=point.sum,
        bucket_counts=point.counts,
        explicit_bounds=each.bounds,
        min=unknown,
        max=unknown,
        exemplars=[
            Exemplar({}, example.value, _nanoseconds(example.time - offset), example.span_id, example.trace_id)
            for example in point.exemplars
        ],
    )


def _sum(one: NumberPoint | HistogramPoint, other: NumberPoint | HistogramPoint) -> NumberPoint | HistogramPoint:
    start = min(one.start, other.start)
    if isinstance(one, NumberPoint) and isinstance(other, NumberPoint):
        return one._replace(start=start, value=one.value + other.value)
    assert isinstance(one, HistogramPoint)
    assert isinstance(other, HistogramPoint)
    return one._replace(
        start=start,
        counts=tuple(a + b for a, b in zip(one.counts, other.counts, strict=True)),
        sum=one.sum + other.sum,
        exemplars=one.exemplars + other.exemplars,
    )


def _number(value: float, unit: str) -> float:
    """Seconds are doubles, all else counts."""
    return float(value) if unit == "s" else max(-_LARGEST, min(_LARGEST, round(value)))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
