"""What each fact is called on a span. These names are a contract: dashboards and people's searches rest on them.

``docs/attributes.md`` lists them all; a test compares the two. Sizes and counts are ints, seconds and ratios
doubles (TraceQL's literals match only their own type). What was not measured is absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..mirror.buckets import quantile
from ..mirror.identifier import identifier
from ..mirror.records import Failure, GroupRecord, MarkerRecord, Record, SegmentRecord, TaskRecord
from ..mirror.tally import Tally
from .activities import fine_metrics
from .text import MAX_NAME, clean

__all__ = ["Attributes", "attributes", "error_description", "exception_event", "identity", "kind_of"]

Attributes = dict[str, str | bool | int | float | list[str]]

_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


_KINDS: dict[type[Record], str] = {
    SegmentRecord: "span",
    GroupRecord: "group",
    TaskRecord: "task",
    MarkerRecord: "marker",
}


def kind_of(record: Record) -> str:
    """Value of ``dask.kind``."""
    return _KINDS[type(record)]


def attributes(record: Record) -> Attributes:
    """Attributes of a record, the more important first: a limit cuts the last ones."""
    if isinstance(record, SegmentRecord):
        return _segment(record)
    if isinstance(record, GroupRecord):
        return _group(record)
    if isinstance(record, TaskRecord):
        return _task(record)
    return identity(record)


def error_description(failure: Failure) -> str:
    """Status description: how much failed, and the first exception's message (the type is ``error.type``)."""
    counts = []
    if failure.erred:
        counts.append(f"{_tasks(failure.erred)} erred")
    if failure.upstream_failed:
        counts.append(f"{_tasks(failure.upstream_failed)} failed upstream")
    if failure.graphs:
        counts.append(f"{failure.graphs} {'graph' if failure.graphs == 1 else 'graphs'} could not be taken in")
    if not counts:  # a task's own
        return failure.message
    return ", ".join(counts) + (f"; first: {failure.message}" if failure.message else "")


def exception_event(record: Record) -> Attributes | None:
    """Attributes of the event ``exception`` of a failed task's span."""
    if not isinstance(record, TaskRecord) or not record.run.error:
        return None
    error = record.run.error
    out: Attributes = {"exception.type": error.type, "exception.message": error.message}
    if error.traceback:
        out["exception.stacktrace"] = error.traceback
    return out


def _tasks(number: int) -> str:
    return f"{number} {'task' if number == 1 else 'tasks'}"


def identity(record: Record) -> Attributes:
    """Attributes that every span has."""
    span = record.span
    out: Attributes = {
        "dask.kind": kind_of(record),
        "dask.span.id": span.id,
        "dask.span.path": clean(span.path, MAX_NAME),
        "dask.span.root": clean(span.tags[0], MAX_NAME),
    }
    if record.failure:
        out["error.type"] = record.failure.type
    return out


def _segment(record: SegmentRecord) -> Attributes:
    out = identity(record)
    out["dask.span.tags"] = list(record.span.tags)
    out["dask.span.segment"] = record.number
    out["dask.span.result"] = record.result
    if record.previous_id is not None:
        out["dask.segment.previous_id"] = f"{record.previous_id:016x}"
    if record.counted_in:
        out["dask.span.counted_in"] = _one_or_list(record.counted_in)
    if record.elsewhere:
        out.update(_outcomes("dask.elsewhere", record.elsewhere))
    if record.includes:
        out["dask.span.includes"] = list(record.includes)
    out.update(_tally(record.tally))
    for status, name in (("error", "failed"), ("cancelled", "cancelled")):
        if count := record.graph_failures.get(status):
            out[f"dask.graph.{name}"] = count
    if record.truncated_groups:
        out["dask.truncated.groups"] = record.truncated_groups
    if record.truncated_tasks:
        out["dask.truncated.tasks"] = record.truncated_tasks
    if record.dropped_groups:
        out["dask.dropped.groups"] = record.dropped_groups
    if record.dropped_tasks:
        out["dask.dropped.tasks"] = record.dropped_tasks
    if record.dropped_spans:
        out["dask.dropped.spans"] = record.dropped_spans
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
        out[f"dask.annotation.{name}"] = _one_or_list(values)
    out.update(fine_metrics(record.metrics))
    return out


def _group(record: GroupRecord) -> Attributes:
    out = identity(record)
    if record.folded:
        out["dask.group.folded"] = record.folded
    else:
        out["dask.group.name"] = clean(record.group, MAX_NAME)
        out["dask.task.prefix"] = clean(record.name, MAX_NAME)
    if record.dependencies:
        out["dask.group.dependencies"] = list(record.dependencies)
    out.update(_tally(record.tally))
    if record.truncated_tasks:
        out["dask.truncated.tasks"] = record.truncated_tasks
    if record.types:
        out["dask.task.types"] = sorted(record.types, key=lambda type_: (-record.types[type_], type_))
    if record.buckets:
        for name, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            out[f"dask.task.duration.{name}"] = quantile(record.buckets, q)
    if record.metrics is not None:
        out.update(fine_metrics(record.metrics))
    elif not record.folded:
        out["dask.group.prefix_shared"] = True
    return out


def _task(record: TaskRecord) -> Attributes:
    run = record.run
    out = identity(record)
    out["dask.task.key"] = clean(run.key, MAX_NAME)
    out["dask.group.name"] = clean(run.group, MAX_NAME)
    out["dask.task.prefix"] = clean(run.prefix, MAX_NAME)
    if run.run_id >= 0:
        out["dask.task.run_id"] = run.run_id
    out["dask.task.picked"] = record.reason
    optional = {
        "dask.task.type": run.type,
        "dask.output.size": run.nbytes,
        "dask.worker.address": run.worker,
        "dask.worker.name": run.worker_name,
        "thread.id": run.thread,
    }
    out.update({name: value for name, value in optional.items() if value is not None})
    out.update(_durations(run.durations))
    return out


def _tally(tally: Tally) -> Attributes:
    out = _outcomes("dask.task", tally)
    out["dask.output.size"] = tally.nbytes
    out.update(_durations(tally.durations))
    if tally.workers:
        out["dask.worker.count"] = len(tally.workers)
        if total := sum(tally.workers.values()):
            out["dask.worker.share.max"] = max(tally.workers.values()) / total
    return out


def _outcomes(under: str, tally: Tally) -> Attributes:
    out: Attributes = {f"{under}.count": tally.tasks, f"{under}.completed": tally.completed}
    for outcome, count in tally.outcomes.items():
        out[f"{under}.{outcome}"] = count
    return out


def _durations(micros: Mapping[str, int]) -> Attributes:
    """Sum seconds by action; names that differ only in what a name may not hold become one."""
    out: dict[str, float] = {}
    for action, value in micros.items():
        name = f"dask.duration.{identifier(action)}"
        out[name] = out.get(name, 0.0) + value / 1e6
    return dict(out)


def _one_or_list(values: tuple[str, ...]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _thread_time(record: SegmentRecord) -> Attributes:
    """How much of the cluster there was, and how much of it was used.

    A task that secedes is busy without one of its worker's threads, so that more may be used than there was: then the
    ratio, and what others used, mean nothing.
    """
    busy = sum(v for k, v in record.metrics.items() if k[0] == "execute" and k[-1] == "seconds")
    mine = record.threads_available - record.threads_others
    out: Attributes = {"dask.thread_time.available": record.threads_available}
    if mine >= 0:
        out["dask.thread_time.others"] = record.threads_others
    if record.metrics:
        out["dask.thread_time.busy"] = float(busy)
        if 0 <= busy <= mine and mine > 0:
            out["dask.efficiency"] = busy / mine
    return out


def _clients(ids: tuple[str, ...]) -> Attributes:
    if not ids:
        return {}
    # Client.id is "Client-<uuid>" or "Client-<name>-<uuid>"
    names = [_UUID.sub("", id_).partition("-")[2] for id_ in ids]
    names = [name for name in dict.fromkeys(names) if name]
    out: Attributes = {"dask.client.id": _one_or_list(ids)}
    if names:
        out["dask.client.name"] = _one_or_list(tuple(names))
    return out
