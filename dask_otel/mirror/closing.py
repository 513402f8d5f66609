"""Makes the records of a segment that closes. The ledger goes into them; nobody writes to it any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .clock import Threads
from .ids import group_id
from .ledger import GroupLedger, Ledger
from .model import Dependency, Metrics, SpanInfo, Tally
from .records import GroupRecord, Link, SegmentRecord
from .tree import Node, Segment

__all__ = ["close_groups", "close_segment"]


def close_segment(
    node: Node, segment: Segment, ledger: Ledger, now: float, stopped: str, threads: Threads
) -> SegmentRecord:
    """Make the record of a segment; ``stopped`` says why it closes, if its work is not done."""
    end = _end(node, segment, ledger, now, stopped)
    wall = segment.wall.until(end)
    links: tuple[Link, ...] = ()
    previous_id = None
    if node.previous:
        previous_trace, previous_span = node.previous
        # A span without parent must not link into its own trace: Jaeger would take the link for its parent.
        if segment.parent_id is None and previous_trace == segment.trace_id:
            previous_id = previous_span
        else:
            links = (Link(previous_trace, previous_span, "continues"),)
    return SegmentRecord(
        span=node.info,
        trace_id=segment.trace_id,
        span_id=segment.id,
        parent_id=segment.parent_id,
        name=node.title,
        start=segment.start,
        end=end,
        links=links,
        tally=ledger.tally,
        number=segment.number,
        result=_result(ledger.tally, stopped if node.load.unfinished else ""),
        previous_id=previous_id,
        metrics=ledger.all_metrics(),
        wall=wall,
        threads_available=threads.available(segment.start, end),
        threads_others=max(0.0, segment.others_now - segment.others_at_start),
        metrics_complete=ledger.metrics_complete,
        clients=tuple(ledger.clients),
        graph_seconds=ledger.graph_seconds,
        collections=tuple(ledger.collections),
        annotations={name: tuple(values) for name, values in ledger.annotations.items()},
        code=ledger.code,
    )


def close_groups(
    span: SpanInfo,
    segment: Segment,
    ledger: Ledger,
    record: SegmentRecord,
    find: Callable[[Dependency], tuple[int, int] | None],
) -> Iterator[GroupRecord]:
    """Make the records of a segment's groups, one at a time; ``find`` tells a group's trace and span id."""
    by_prefix: dict[object, Metrics] = {}
    for key, value in ledger.metrics.items():
        if key[0] == "execute":
            by_prefix.setdefault(key[1], {})[key] = value
    for group in ledger.groups.values():
        start, end = _group_times(group, record)
        dependencies = sorted(set(group.dependencies), key=lambda dependency: dependency.name)
        found = (find(dependency) for dependency in dependencies)
        yield GroupRecord(
            span=span,
            trace_id=segment.trace_id,
            span_id=group_id(span.id, group.name, group.number),
            parent_id=segment.id,
            name=group.prefix,
            start=start,
            end=end,
            links=tuple(Link(*ids, "dependency") for ids in found if ids),
            tally=group.tally,
            group=group.name,
            dependencies=tuple(dict.fromkeys(dependency.name for dependency in dependencies)),
            types=group.types,
            buckets=group.buckets,
            metrics=by_prefix.get(group.prefix, {}) if ledger.prefixes[group.prefix] == 1 else None,
        )


def _end(node: Node, segment: Segment, ledger: Ledger, now: float, stopped: str) -> float:
    """When the work ended, not when that was noticed; never outside the children or in the future."""
    if stopped and node.load.unfinished:
        return max(now, segment.start, segment.children_end)
    tally = ledger.tally
    end = min(max(segment.start, tally.run_stop, tally.last_event), max(now, segment.start))
    return max(end, segment.children_end)


def _group_times(group: GroupLedger, record: SegmentRecord) -> tuple[float, float]:
    """From the first start of a run to the last stop, within the segment."""
    tally = group.tally
    start = tally.run_start or group.since
    end = max(tally.run_stop, tally.last_event, start)
    if group.unfinished:  # the segment was cut, or the cluster closed
        end = record.end
    start = min(max(start, record.start), record.end)
    return start, min(max(end, start), record.end)


def _result(tally: Tally, stopped: str) -> str:
    outcomes = tally.outcomes
    if stopped:
        return stopped
    if outcomes.get("erred") or outcomes.get("upstream_failed"):
        return "error"
    if outcomes.get("lost") and tally.completed < tally.tasks:
        return "lost"
    if outcomes.get("cancelled") or (outcomes.get("abandoned") and not tally.completed):
        return "cancelled"
    return "success"
