"""Snapshots of metrics, made by the real measures, and metrics as a backend gets them."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from dask_otel import schema
from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.snapshot import Cluster, ExporterCounts, Snapshot
from dask_otel.spantree.events import Change, SpanInfo
from dask_otel.spantree.records import RootReasons, RootRun
from support.records import VERDICT, WATERFALL

CLUSTER = Cluster(
    tasks={"processing": 3, "memory": 0},
    workers={"running": 2},
    threads=4,
    clients=1,
    managed=10,
    unmanaged=20,
    spilled=0,
    limit=100,
)


def everything(recorder: Recorder, *, prefix: str = "inc", root: str = "etl", error: str = "ValueError") -> None:
    """Something of all that can be measured."""
    change = Change(inf)  # after the latest sweep
    change.prefix, change.completed, change.outcomes = prefix, 2, {"erred": 1}
    change.workers = {"w": 3.0}
    change.runs, change.failed = {5: 2}, {error: ({5: 1}, 1.0)}
    recorder.change(change)
    run = RootRun(SpanInfo("id", (root,), None, 0.0), 10.0, 14.0, "success", 1, 2)
    recorder.root_ended(run, {2})
    recorder.busy(root, 2.5)
    recorder.root_explained(RootReasons(run.span, WATERFALL, VERDICT))
    recorder.open_roots({root: 1})
    recorder.count(schema.GRAPH_UPDATES, "OK", 1)
    recorder.count(schema.WORKER_ADDED, None, 1)
    recorder.count(schema.WORKER_REMOVED, False, 1)
    recorder.threads(8.0)
    recorder.swept(0.001)
    for (context, of, name, unit), total in {
        ("execute", prefix, "thread_cpu", "seconds"): 2.0,
        ("execute", prefix, "disk_read", "bytes"): 50.0,
        ("get_data", None, "memory_read", "bytes"): 100.0,
    }.items():
        recorder.activity((context, of, name), (context, of, name, unit), total)
    recorder.cluster(CLUSTER, 0.02)
    exporter = ExporterCounts("otlp", 1, 50_000, 10, dropped={"queue_full": 2}, failed={"refused": 3})
    recorder.bridge([exporter], {"sweep": 1})


def snapshot(recorder: Recorder, at: float = 1000.0) -> Snapshot:
    return Snapshot(at, list(recorder.collect()))


class Point(NamedTuple):
    """A point as a backend gets it."""

    name: str
    unit: str
    kind: str
    is_delta: bool
    attributes: dict[str, Any]
    start: float
    time: float
    #: A number, or the counts of a histogram's buckets.
    value: Any
    sum: float | None = None
    bounds: tuple[float, ...] = ()
    #: ``(value, trace id, span id)``
    exemplars: tuple[tuple[float, str, str], ...] = ()


def points(requests: Iterable[ExportMetricsServiceRequest]) -> list[Point]:
    """All points of requests, in the order in which they came."""
    return [
        point
        for request in requests
        for by_resource in request.resource_metrics
        for by_scope in by_resource.scope_metrics
        for metric in by_scope.metrics
        for point in _points(metric)
    ]


def _points(metric: Any) -> Iterable[Point]:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    is_delta = kind != "gauge" and data.aggregation_temporality == 1
    if kind == "sum":
        kind = "counter" if data.is_monotonic else "updowncounter"
    for point in data.data_points:
        labels = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in point.attributes}
        start, at = point.start_time_unix_nano / 1e9, point.time_unix_nano / 1e9
        if kind != "histogram":
            value = getattr(point, point.WhichOneof("value"))
            yield Point(metric.name, metric.unit, kind, is_delta, labels, start, at, value)
            continue
        assert point.count == sum(point.bucket_counts)
        exemplars = tuple((each.as_double, each.trace_id.hex(), each.span_id.hex()) for each in point.exemplars)
        counts, bounds = tuple(point.bucket_counts), tuple(point.explicit_bounds)
        yield Point(metric.name, metric.unit, kind, is_delta, labels, start, at, counts, point.sum, bounds, exemplars)
