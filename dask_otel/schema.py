"""Names of activities and units, which users may invent.

Makes any text fit for OTLP: a lone surrogate in a name would lose a whole batch.

Every metric that there is: the one place that names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["METRICS", "OPEN_LABELS", "ZEROS", "Kind", "Metric", "clean", "clean_items", "identifier"]


def identifier(text: object) -> str:
    """Return ``text`` as part of an attribute's name: only ``[a-z0-9_]``."""
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")[:64] or "unnamed"


#: Bytes of an attribute value; Tempo cuts at 2,048.
MAX_VALUE = 2000
#: Bytes of a name. Names stand on every span, so they make most of a trace's size.
MAX_NAME = 250
#: Bytes of a list.
MAX_LIST = 1000


def clean(text: str, limit: int = MAX_VALUE) -> str:
    """Return valid UTF-8 text of at most ``limit`` bytes, without a character cut in two."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def clean_items(texts: Sequence[str], limit: int = MAX_LIST) -> list[str]:
    """Return valid texts of about ``limit`` bytes together; the last one says how many there was no room for."""
    out: list[str] = []
    room = limit
    for number, text in enumerate(texts):
        item = clean(text, limit)
        room -= len(item.encode())
        if room < 0 and out:
            return [*out, f"… ({len(texts) - number} more)"]
        out.append(item)
    return out


class Kind(Enum):
    """As OpenTelemetry calls it."""

    COUNTER = "counter"
    UPDOWNCOUNTER = "updowncounter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


#: Labels whose values people or programs invent. They are what is folded into ``other`` where there are too many.
OPEN_LABELS = frozenset(
    {"dask.task.prefix", "dask.span.root", "dask.activity", "dask.context", "error.type", "dask_otel.error.where"}
    | {"otel.component.name"}
)


@dataclass(frozen=True)
class Metric:
    """What never changes about a metric."""

    name: str
    kind: Kind
    #: In UCUM, as OpenTelemetry writes it: ``s``, ``By``, ``{task}``.
    unit: str
    labels: tuple[str, ...]
    description: str
    #: How many combinations of values there are once all open labels say ``other``.
    closed: int = 1


_PREFIX, _ROOT = "dask.task.prefix", "dask.span.root"
_C, _U, _H = Kind.COUNTER, Kind.UPDOWNCOUNTER, Kind.HISTOGRAM
_COMPONENT = ("otel.component.name", "otel.component.type")
_ACTIVITY = ("dask.context", "dask.activity", _PREFIX)

#: By name, in the order of the documentation.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("dask.scheduler.task.count", _U, "{task}", ("dask.task.state",), "Tasks that the scheduler knows", 8),
        Metric("dask.scheduler.worker.count", _U, "{worker}", ("dask.worker.status",), "Workers of the cluster", 13),
        Metric("dask.scheduler.thread.count", _U, "{thread}", (), "Threads of all workers"),
        Metric("dask.scheduler.thread_time", _C, "s", (), "Thread-seconds that the cluster has had: what was paid for"),
        Metric("dask.worker.added", _C, "{worker}", (), "Workers that joined"),
        Metric(
            "dask.worker.removed",
            _C,
            "{worker}",
            ("dask.worker.expected",),
            "Workers that left; expected: because the cluster was scaled down, or they were asked to or said so",
            2,
        ),
        Metric("dask.graph.updates", _C, "{graph}", ("dask.graph.status",), "Graphs that clients submitted", 3),
        Metric("dask.scheduler.client.count", _U, "{client}", (), "Clients that are connected"),
        Metric(
            "dask.scheduler.event_loop.delay",
            Kind.GAUGE,
            "s",
            (),
            "By how much the scheduler's event loop was late, at worst, since the last export",
        ),
        Metric("dask.task.finished", _C, "{task}", (_PREFIX, "dask.task.outcome"), "Tasks by what became of them", 9),
        Metric(
            "dask.task.duration",
            _H,
            "s",
            (_PREFIX, "error.type"),
            "Time that tasks computed; with an error, failures",
            2,
        ),
        Metric("dask.activity.time", _C, "s", _ACTIVITY, "Time that workers spent, by what on", 2),
        Metric("dask.activity.io", _C, "By", _ACTIVITY, "Bytes that workers moved, by what for", 2),
        Metric(
            "dask.worker.memory.usage",
            _U,
            "By",
            ("dask.memory.state",),
            "Memory of all workers' processes: managed holds Dask's results, unmanaged is the rest",
            2,
        ),
        Metric("dask.worker.memory.spilled", _U, "By", (), "Results that workers hold on disk"),
        Metric("dask.worker.memory.limit", _U, "By", (), "Memory that all workers may use; absent if none has a limit"),
        Metric("dask.span.active", _U, "{span}", (_ROOT,), "Root spans at work or just finished"),
        Metric(
            "dask.span.duration", _H, "s", (_ROOT, "dask.span.result"), "Runs of root spans, from first to last task", 6
        ),
        Metric("dask.span.thread_time", _C, "s", (_ROOT,), "Busy thread-seconds: who used what was paid for"),
        Metric("dask_otel.sweep.duration", _H, "s", (), "Time for which a sweep held the scheduler's event loop"),
        Metric("dask_otel.errors", _C, "{error}", ("dask_otel.error.where",), "Failures in the bridge"),
        Metric("otel.sdk.processor.span.queue.size", _U, "{span}", _COMPONENT, "Spans that wait to be sent"),
        Metric("otel.sdk.processor.span.queue.capacity", _U, "{span}", _COMPONENT, "Spans that may wait"),
        Metric(
            "otel.sdk.processor.span.processed",
            _C,
            "{span}",
            (*_COMPONENT, "error.type"),
            "Spans that left the queue; with an error, dropped from it",
            2,
        ),
        Metric(
            "otel.sdk.exporter.span.exported",
            _C,
            "{span}",
            (*_COMPONENT, "error.type"),
            "Spans that arrived; with an error, those that did not",
            2,
        ),
    )
}

#: Counters that are zero before anything has happened, by labels.
ZEROS: tuple[tuple[str, tuple[str | bool, ...]], ...] = (
    ("dask.scheduler.thread_time", ()),
    ("dask.worker.added", ()),
    ("dask.worker.removed", (True,)),
    ("dask.worker.removed", (False,)),
    ("dask.graph.updates", ("OK",)),
    ("dask.graph.updates", ("error",)),
    ("dask.graph.updates", ("cancelled",)),
)
