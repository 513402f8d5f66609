"""What each fact is called on a span. These names are a contract: dashboards and people's searches rest on them.

``docs/attributes.md`` lists them all; a test compares the two. Sizes and counts are ints, seconds and ratios
doubles (TraceQL's literals match only their own type). What was not measured is absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..mirror.buckets import quantile
from ..mirror.model import Metrics, Tally
from ..mirror.records import GroupRecord, Record, SegmentRecord
from .text import identifier

__all__ = ["Attributes", "attributes", "error_description", "has_failed"]

Attributes = dict[str, str | bool | int | float | list[str]]

#: Distinct activities per context; the sums of the rest are under ``other``.
MAX_ACTIVITIES = 32

_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def attributes(record: Record) -> Attributes:
    """Attributes of a record, the more important first: a limit cuts the last ones."""
    if isinstance(record, SegmentRecord):
        return _segment(record)
    assert isinstance(record, GroupRecord)
    return _group(record)


def has_failed(tally: Tally) -> bool:
    """Whether the span's status is Error."""
    return bool(tally.outcomes.get("erred") or tally.outcomes.get("upstream_failed"))


def error_description(tally: Tally) -> str:
    """Status description: how many tasks failed, and the first exception's message (the type is ``error.type``)."""
    counts = []
    if erred := tally.outcomes.get("erred", 0):
        counts.append(f"{erred} {'task' if erred == 1 else 'tasks'} erred")
    if upstream := tally.outcomes.get("upstream_failed", 0):
        counts.append(f"{upstream} {'task' if upstream == 1 else 'tasks'} failed upstream")
    message = tally.error.message if tally.error else ""
    return ", ".join(counts) + (f"; first: {message}" if message else "")


def _identity(record: Record, kind: str) -> Attributes:
    span = record.span
    return {
        "dask.kind": kind,
        "dask.span.id": span.id,
        "dask.span.path": " / ".join(span.tags),
        "dask.span.root": span.tags[0],
    }


def _segment(record: SegmentRecord) -> Attributes:
    out = _identity(record, "span")
    out["dask.span.tags"] = list(record.span.tags)
    out["dask.span.segment"] = record.number
    out["dask.span.result"] = record.result
    if record.previous_id is not None:
        out["dask.segment.previous_id"] = f"{record.previous_id:016x}"
    out.update(_tally(record.tally))
    out.update(_thread_time(record))
    if record.tally.run_start:
        out["dask.span.queue_time"] = max(0.0, record.tally.run_start - record.start)
    for part, seconds in record.wall.items():
        out[f"dask.wall.{part}"] = seconds
    if record.graph_seconds:
        out["dask.graph.update_time"] = record.graph_seconds
    out["dask.metrics.complete"] = record.metrics_complete
    out.update(_clients(record.clients))
    if record.collections:
        out["dask.collections"] = list(record.collections)
    if record.code:
        out["code.file.path"], out["code.line.number"] = record.code
    for name, values in record.annotations.items():
        out[f"dask.annotation.{name}"] = values[0] if len(values) == 1 else list(values)
    out.update(_fine_metrics(record.metrics))
    return out


def _group(record: GroupRecord) -> Attributes:
    out = _identity(record, "group")
    out["dask.group.name"] = record.group
    out["dask.task.prefix"] = record.name
    if record.dependencies:
        out["dask.group.dependencies"] = list(record.dependencies)
    out.update(_tally(record.tally))
    if record.types:
        out["dask.task.types"] = sorted(record.types, key=lambda type_: (-record.types[type_], type_))
    if record.buckets:
        for name, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            out[f"dask.task.duration.{name}"] = quantile(record.buckets, q)
    if record.metrics is None:
        out["dask.group.prefix_shared"] = True
    else:
        out.update(_fine_metrics(record.metrics))
    return out


def _tally(tally: Tally) -> Attributes:
    out: Attributes = {}
    if has_failed(tally):
        out["error.type"] = tally.error.type if tally.error else "_OTHER"
    out["dask.task.count"] = tally.tasks
    out["dask.task.completed"] = tally.completed
    for outcome, count in tally.outcomes.items():
        out[f"dask.task.{outcome}"] = count
    out["dask.output.size"] = tally.nbytes
    for action, micros in tally.durations.items():
        out[f"dask.duration.{identifier(action)}"] = micros / 1e6
    if tally.workers:
        out["dask.worker.count"] = len(tally.workers)
        if total := sum(tally.workers.values()):
            out["dask.worker.share.max"] = max(tally.workers.values()) / total
    return out


def _thread_time(record: SegmentRecord) -> Attributes:
    """How much of the cluster there was, and how much of it was used."""
    busy = sum(v for k, v in record.metrics.items() if k[0] == "execute" and k[-1] == "seconds")
    mine = record.threads_available - record.threads_others
    out: Attributes = {
        "dask.thread_time.available": record.threads_available,
        "dask.thread_time.others": record.threads_others,
    }
    if record.metrics:
        out["dask.thread_time.busy"] = float(busy)
        if mine > 0:
            out["dask.efficiency"] = min(1.0, max(0.0, busy / mine))
    return out


def _clients(ids: tuple[str, ...]) -> Attributes:
    if not ids:
        return {}
    # Client.id is "Client-<uuid>" or "Client-<name>-<uuid>"
    names = [_UUID.sub("", id_).partition("-")[2] for id_ in ids]
    names = [name for name in dict.fromkeys(names) if name]
    out: Attributes = {"dask.client.id": ids[0] if len(ids) == 1 else list(ids)}
    if names:
        out["dask.client.name"] = names[0] if len(names) == 1 else names
    return out


def _fine_metrics(metrics: Metrics) -> Attributes:
    """Sum fine metrics over prefixes: ``("execute", prefix, activity, unit)``, ``("p2p", where, activity, unit)``."""
    sums: dict[str, dict[tuple[str, str], float]] = {}
    for key, value in metrics.items():
        if key[0] == "execute" and len(key) == 4:
            context = "execute"
        elif key[0] == "p2p" and len(key) == 4:
            context = f"p2p.{identifier(key[1])}"
        else:
            continue
        by_activity = sums.setdefault(context, {})
        activity = (identifier(key[2]), identifier(key[3]))
        by_activity[activity] = by_activity.get(activity, 0) + value
    out: Attributes = {}
    for context, by_activity in sums.items():
        for (activity_name, unit), value in _capped(by_activity).items():
            out[f"dask.{context}.{activity_name}.{unit}"] = _number(value, unit)
    return out


def _capped(by_activity: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
    names = sorted({activity for activity, _ in by_activity})
    if len(names) <= MAX_ACTIVITIES:
        return by_activity
    kept = set(names[:MAX_ACTIVITIES])
    out: dict[tuple[str, str], float] = {}
    for (activity, unit), value in by_activity.items():
        capped = (activity if activity in kept else "other", unit)
        out[capped] = out.get(capped, 0) + value
    return out


def _number(value: float, unit: str) -> int | float:
    """One type for each name: bytes and counts are ints, seconds and users' own units doubles."""
    return round(value) if unit in ("bytes", "count") else float(value)
