"""From snapshots to OpenTelemetry's metrics.

Built directly, not by the SDK's instruments: those cannot let go of a label that nobody uses any more, need to know an
example's trace when the observation is made, and count a whole bucket one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

from ..metrics.registry import OTHER
from ..metrics.snapshot import HistogramPoint, Labels, MetricPoints, NumberPoint, Snapshot
from ..schema import Kind, clean
from .transport import Pacer

__all__ = ["MetricFactory"]

#: What OTLP can hold.
_LARGEST = 2**63 - 1


class MetricFactory:
    """Makes what an exporter takes.

    Parameters
    ----------
    shown
        Says how the value of a label may be shown, by label and value.
    deltas
        Kinds of metrics that count from the snapshot before on, not from the start.
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
        at = _nanos(snapshot.at - snapshot.clock_offset)
        metrics = [self._metric(measured, at, snapshot.clock_offset, pacer) for measured in snapshot.measured]
        # Exporters encode one scope of one resource; of two equal ones, one would be lost.
        scopes = [ScopeMetrics(self._scope, metrics, schema_url="")]
        return MetricsData([ResourceMetrics(self._resource, scopes, schema_url="")])

    def _metric(self, measured: MetricPoints, at: int, offset: float, pacer: Pacer) -> Metric:
        metric = measured.metric
        shown: dict[tuple[tuple[str, str | bool], ...], NumberPoint | HistogramPoint] = {}
        for point in pacer.paced(measured.points):
            attributes = self._attributes(metric.labels, point.labels)
            same = shown.get(attributes)  # several names may be shown as one
            shown[attributes] = _together(same, point) if same else point
        points = pacer.paced([self._point(measured, dict(key), each, at, offset) for key, each in shown.items()])
        temporality = AggregationTemporality.DELTA if metric.kind in self.deltas else AggregationTemporality.CUMULATIVE
        data: Any
        if metric.kind is Kind.HISTOGRAM:
            data = HistogramData(points, temporality)
        elif metric.kind is Kind.GAUGE:
            data = Gauge(points)
        else:
            data = Sum(points, temporality, is_monotonic=metric.kind is Kind.COUNTER)
        return Metric(metric.name, metric.description, metric.unit, data)

    def _point(
        self,
        measured: MetricPoints,
        attributes: dict[str, str | bool],
        point: NumberPoint | HistogramPoint,
        at: int,
        offset: float,
    ) -> Any:
        # A point must not begin after it ends; the clock may have been set.
        start = min(_nanos(point.start - offset), at)
        if isinstance(point, NumberPoint):
            return NumberDataPoint(attributes, start, at, _number(point.value, measured.metric.unit))
        unknown: Any = None
        return HistogramDataPoint(
            attributes,
            start,
            at,
            count=sum(point.counts),
            sum=point.sum,
            bucket_counts=point.counts,
            explicit_bounds=measured.bounds,
            min=unknown,
            max=unknown,
            exemplars=[
                Exemplar({}, each.value, _nanos(each.time - offset), each.span_id, each.trace_id)
                for each in point.exemplars
            ],
        )

    def _attributes(self, names: Sequence[str], labels: Labels) -> tuple[tuple[str, str | bool], ...]:
        return tuple(
            (name, clean(self._shown(name, value)) if isinstance(value, str) and value != OTHER else value)
            for name, value in zip(names, labels, strict=True)
            if value is not None
        )


def _together(one: NumberPoint | HistogramPoint, other: NumberPoint | HistogramPoint) -> NumberPoint | HistogramPoint:
    """Add two points of one metric."""
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


def _nanos(seconds: float) -> int:
    return round(seconds * 1e9)
