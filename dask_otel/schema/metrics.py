"""Every metric, once: name, kind, unit, attributes and description.

To add a metric, add an entry here and record it in ``metrics/recorder.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .limits import MAX_VERDICTS
from .span_attributes import (
    ACTIVITY,
    COMPONENT_NAME,
    COMPONENT_TYPE,
    CONTEXT,
    ERROR_TYPE,
    ERROR_WHERE,
    GRAPH_STATUS,
    MEMORY_STATE,
    SPAN_RESULT,
    SPAN_ROOT,
    TASK_OUTCOME,
    TASK_OUTCOMES,
    TASK_PREFIX,
    TASK_STATE,
    VERDICT,
    WATERFALL,
    WATERFALL_PART,
    WORKER_EXPECTED,
    WORKER_STATUS,
)


class Kind(Enum):
    """Kinds of metrics, by OpenTelemetry's names."""

    COUNTER = "counter"
    UPDOWNCOUNTER = "updowncounter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, eq=False)
class Metric:
    """What never changes about a metric."""

    name: str
    kind: Kind
    #: In UCUM, as OpenTelemetry writes it: ``s``, ``By``, ``{task}``.
    unit: str
    #: Names of its attributes.
    attributes: tuple[str, ...]
    description: str
    #: How many combinations of values are left where all values that somebody invents are recorded as ``other``.
    folded: int
    #: Of a counter, the combinations that are 0 before anything has happened.
    zeros: tuple[tuple[str | bool, ...], ...]
    #: Upper ends of the buckets of a histogram, each included, if no setting changes them; seconds.
    bounds: tuple[float, ...]

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus; of a histogram, without ``_bucket``, ``_sum`` and ``_count``."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + unit + ("_total" if self.kind is Kind.COUNTER else "")


#: By name, in the order of the documentation.
METRICS: dict[str, Metric] = {}


def _metric(
    name: str,
    kind: Kind,
    unit: str,
    *attributes: str,
    description: str,
    folded: int = 1,
    zeros: tuple[tuple[str | bool, ...], ...] = (),
    bounds: tuple[float, ...] = (),
) -> Metric:
    metric = METRICS[name] = Metric(name, kind, unit, attributes, description, folded, zeros, bounds)
    return metric


_COMPONENT = (COMPONENT_NAME, COMPONENT_TYPE)
_COUNTER, _UPDOWN, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.UPDOWNCOUNTER, Kind.GAUGE, Kind.HISTOGRAM

# fmt: off
SCHEDULER_TASK_COUNT = _metric("dask.scheduler.task.count", _UPDOWN, "{task}", TASK_STATE, folded=8, description=
    "Tasks on the scheduler")
SCHEDULER_WORKER_COUNT = _metric("dask.scheduler.worker.count", _UPDOWN, "{worker}", WORKER_STATUS,
    folded=13, description=
    "Workers of the cluster")
SCHEDULER_THREAD_COUNT = _metric("dask.scheduler.thread.count", _UPDOWN, "{thread}", description=
    "Threads of all workers")
SCHEDULER_THREAD_TIME = _metric("dask.scheduler.thread_time", _COUNTER, "s", zeros=((),), description=
    "Thread-seconds that the cluster has had, used or not")
WORKER_ADDED = _metric("dask.worker.added", _COUNTER, "{worker}", zeros=((),), description="Workers that joined")
WORKER_REMOVED = _metric("dask.worker.removed", _COUNTER, "{worker}", WORKER_EXPECTED,
    folded=2, zeros=((True,), (False,)), description=
    "Workers that left; expected if the cluster was scaled down, or the worker reported that it closes")
GRAPH_UPDATES = _metric("dask.graph.updates", _COUNTER, "{graph}", GRAPH_STATUS,
    folded=3, zeros=(("OK",), ("error",), ("cancelled",)), description=
    "Graphs that clients submitted")
SCHEDULER_CLIENT_COUNT = _metric("dask.scheduler.client.count", _UPDOWN, "{client}", description=
    "Clients that are connected")
SCHEDULER_EVENT_LOOP_DELAY = _metric("dask.scheduler.event_loop.delay", _GAUGE, "s", description=
    "Longest delay of the scheduler's event loop since the last export")
TASK_FINISHED = _metric("dask.task.finished", _COUNTER, "{task}", TASK_PREFIX, TASK_OUTCOME,
    folded=len(TASK_OUTCOMES), description=
    "Tasks by outcome")
TASK_DURATION = _metric("dask.task.duration", _HISTOGRAM, "s", TASK_PREFIX, ERROR_TYPE, folded=2,
    bounds=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0, 10800.0, 43200.0),
    description="Compute time of runs; runs that failed have `error.type`")
ACTIVITY_TIME = _metric("dask.activity.time", _COUNTER, "s", CONTEXT, ACTIVITY, TASK_PREFIX, folded=2, description=
    "Time that workers spent, by activity")
ACTIVITY_IO = _metric("dask.activity.io", _COUNTER, "By", CONTEXT, ACTIVITY, TASK_PREFIX, folded=2, description=
    "Bytes that workers moved, by activity")
WORKER_MEMORY_USAGE = _metric("dask.worker.memory.usage", _UPDOWN, "By", MEMORY_STATE, folded=2, description=
    "Memory of all workers' processes: managed is Dask's results, unmanaged is the rest")
WORKER_MEMORY_SPILLED = _metric("dask.worker.memory.spilled", _UPDOWN, "By", description=
    "Results that workers hold on disk")
WORKER_MEMORY_LIMIT = _metric("dask.worker.memory.limit", _UPDOWN, "By", description=
    "Memory that all workers may use; absent if no worker has a limit")
SPAN_ACTIVE = _metric("dask.span.active", _UPDOWN, "{span}", SPAN_ROOT, description=
    "Root spans that have an open segment")
SPAN_DURATION = _metric("dask.span.duration", _HISTOGRAM, "s", SPAN_ROOT, SPAN_RESULT, folded=6,
    bounds=(0.01, 0.1, 0.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0, 43200.0),
    description="Duration of runs of root spans, from the first task to the last")
SPAN_THREAD_TIME = _metric("dask.span.thread_time", _COUNTER, "s", SPAN_ROOT, description=
    "Thread-seconds that a root span's tasks used")
WATERFALL_TIME = _metric("dask.waterfall.time", _COUNTER, "s", SPAN_ROOT, WATERFALL_PART, folded=len(WATERFALL),
    description="Thread-seconds that the cluster had while a root span was active, by what they went into")
VERDICTS = _metric("dask.verdicts", _COUNTER, "{run}", SPAN_ROOT, VERDICT, folded=MAX_VERDICTS, description=
    "Runs of root spans that were slow for a reason, by the most costly reason")
VERDICT_TIME = _metric("dask.verdict.time", _COUNTER, "s", SPAN_ROOT, VERDICT, folded=MAX_VERDICTS, description=
    "Seconds by which these runs could have been shorter at most, if that reason had not been there")
SWEEP_DURATION = _metric("dask_otel.sweep.duration", _HISTOGRAM, "s",
    bounds=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5), description=
    "Time for which a sweep held the scheduler's event loop")
BRIDGE_ERRORS = _metric("dask_otel.errors", _COUNTER, "{error}", ERROR_WHERE, description="Failures in dask-otel")
SDK_QUEUE_SIZE = _metric("otel.sdk.processor.span.queue.size", _UPDOWN, "{span}", *_COMPONENT, description=
    "Spans in the queue of an exporter")
SDK_QUEUE_CAPACITY = _metric("otel.sdk.processor.span.queue.capacity", _UPDOWN, "{span}", *_COMPONENT, description=
    "Spans that fit in the queue")
SDK_SPANS_PROCESSED = _metric("otel.sdk.processor.span.processed", _COUNTER, "{span}", *_COMPONENT, ERROR_TYPE,
    folded=2, description=
    "Spans that left the queue; with `error.type`, spans that were dropped from it")
SDK_SPANS_EXPORTED = _metric("otel.sdk.exporter.span.exported", _COUNTER, "{span}", *_COMPONENT, ERROR_TYPE,
    folded=2, description=
    "Spans that the collector accepted; with `error.type`, spans that it did not")
# fmt: on
