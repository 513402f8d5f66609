"""Makes the records of a segment that closes. The ledger goes into them; nobody writes to it any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from .clock import Threads, fit
from .folding import pick_runs
from .groups import GroupLedger
from .ids import group_id, marker_id, others_id, task_id
from .ledger import Ledger
from .model import Dependency, Metrics
from .records import Failure, GroupRecord, Link, MarkerRecord, Record, SegmentRecord, TaskRecord
from .settings import Level
from .tally import Tally
from .tasks import PickedRun, TaskRun
from .tree import Node, Segment
from .verdict import failure_of_group, verdict

__all__ = ["close_segment", "marker"]

#: Tells the trace and span id of a group's span.
Find = Callable[[Dependency], "tuple[int, int] | None"]
#: Runs that get a span, by group, with the reason.
Runs = Mapping["str | None", Sequence["tuple[str, TaskRun | PickedRun]"]]


def close_segment(
    node: Node, segment: Segment, ledger: Ledger, now: float, stopped: str, threads: Threads, find: Find, level: Level
) -> tuple[SegmentRecord, Iterator[Record]]:
    """Make the record of a segment whose groups have been folded, and, one at a time, those of its groups and tasks.

    Parameters
    ----------
    stopped
        Why it closes, if its work is not done.
    level
        What the trace shows.
    """
    runs = pick_runs(ledger, segment.budget) if level >= Level.TASKS else {}
    ledger.truncated_tasks += sum(_truncated(group, runs) for group in ledger.all_groups())
    if level < Level.GROUPS:
        ledger.truncated_groups += len(ledger.groups)
    record = _segment(node, segment, ledger, now, stopped, threads)

    def find_here(to: Dependency) -> tuple[int, int] | None:
        if to.span_id == node.info.id and to.name in ledger.others_names:
            return segment.trace_id, others_id(node.info.id, segment.number)
        return find(to)

    if level < Level.GROUPS:
        return record, iter(())
    return record, _inside(record, ledger, runs, find_here)


def marker(root: Node, segment: Segment, now: float) -> MarkerRecord:
    """Say of a root that it is running: it can be found before it ends, and should it never end."""
    segment.announced = True
    segment.enclose(segment.start, now)
    return MarkerRecord(
        span=root.info,
        trace_id=segment.trace_id,
        span_id=marker_id(root.info.id, segment.number),
        parent_id=segment.id,
        name=f"{root.title} (running)",
        start=segment.start,
        end=now,
        links=(),
        failure=None,
    )


def _segment(node: Node, segment: Segment, ledger: Ledger, now: float, stopped: str, threads: Threads) -> SegmentRecord:
    elsewhere = ledger.all_elsewhere()
    end = _end(node, segment, ledger.tally, elsewhere, now, stopped)
    links = [Link(*at, "counted_in") for at in ledger.counted_in.values() if at and at[0] != segment.trace_id]
    previous_id = None
    if node.previous:
        previous_trace, previous_span = node.previous
        # A span without parent must not link into its own trace: Jaeger would take the link for its parent.
        if segment.parent_id is None and previous_trace == segment.trace_id:
            previous_id = previous_span
        else:
            links.append(Link(previous_trace, previous_span, "continues"))
    result, failure = verdict(ledger, elsewhere, stopped if node.load.unfinished else "")
    return SegmentRecord(
        span=node.info,
        trace_id=segment.trace_id,
        span_id=segment.id,
        parent_id=segment.parent_id,
        name=node.title,
        start=segment.start,
        end=end,
        links=tuple(links),
        failure=failure,
        tally=ledger.tally,
        number=segment.number,
        result=result,
        previous_id=previous_id,
        metrics=ledger.metrics,
        wall=segment.wall.until(end),
        threads_available=threads.available(segment.start, end),
        threads_others=max(0.0, segment.others_now - segment.others_at_start),
        metrics_complete=ledger.metrics_complete,
        clients=tuple(ledger.clients),
        graph_seconds=ledger.graph_seconds,
        collections=tuple(ledger.collections),
        annotations={name: tuple(values) for name, values in ledger.annotations.items()},
        code=ledger.code,
        includes=tuple(ledger.includes),
        counted_in=tuple(ledger.counted_in),
        elsewhere=elsewhere,
        graph_failures=ledger.graph_failures,
        truncated_groups=ledger.left_out_groups,
        truncated_tasks=ledger.truncated_tasks,
    )


def _inside(segment: SegmentRecord, ledger: Ledger, runs: Runs, find: Find) -> Iterator[Record]:
    """Make the records of groups and tasks."""
    for group in ledger.all_groups():
        alone = not group.folded and ledger.prefixes[group.prefix] == 1
        metrics = ledger.metrics_by_prefix.get(group.prefix, {}) if alone else None
        record = _group(segment, group, metrics, _truncated(group, runs), find)
        yield record
        for reason, run in runs.get(group.key, ()):
            yield _task(record, run.described(), reason)


def _group(
    segment: SegmentRecord, group: GroupLedger, metrics: Metrics | None, truncated: int, find: Find
) -> GroupRecord:
    dependencies = sorted(set(group.dependencies), key=lambda dependency: dependency.name)
    found = (find(dependency) for dependency in dependencies)
    start, end = _group_times(group, segment)
    span_id = segment.span.id
    return GroupRecord(
        span=segment.span,
        trace_id=segment.trace_id,
        span_id=others_id(span_id, group.number) if group.folded else group_id(span_id, group.name, group.number),
        parent_id=segment.span_id,
        name=group.prefix,
        start=start,
        end=end,
        links=tuple(Link(*ids, "dependency") for ids in dict.fromkeys(found) if ids),
        failure=failure_of_group(group),
        tally=group.tally,
        group=group.name,
        dependencies=tuple(dict.fromkeys(dependency.name for dependency in dependencies)),
        types=group.types,
        buckets=group.buckets,
        metrics=metrics,
        folded=group.folded,
        truncated_tasks=truncated,
    )


def _task(group: GroupRecord, run: TaskRun, reason: str) -> TaskRecord:
    start, end = fit(run.start, run.stop, group.start, group.end)
    return TaskRecord(
        span=group.span,
        trace_id=group.trace_id,
        span_id=task_id(group.span.id, run.key, run.run_id),
        parent_id=group.span_id,
        name=run.prefix,
        start=start,
        end=end,
        links=(),
        failure=Failure(run.error.type, run.error.message) if run.error else None,
        run=run,
        reason=reason,
    )


def _truncated(group: GroupLedger, runs: Runs) -> int:
    """Count the failed tasks that get no span."""
    shown = sum(reason == "erred" for reason, _ in runs.get(group.key, ()))
    return group.tally.outcomes.get("erred", 0) - shown


def _end(node: Node, segment: Segment, tally: Tally, elsewhere: Tally | None, now: float, stopped: str) -> float:
    """When the work ended, not when that was noticed; never outside the children or in the future."""
    if stopped and node.load.unfinished:
        return max(now, segment.start, segment.enclosed_until)
    ended = max(tally.end, elsewhere.end if elsewhere else 0.0, segment.start)
    return max(min(ended, max(now, segment.start)), segment.enclosed_until)


def _group_times(group: GroupLedger, segment: SegmentRecord) -> tuple[float, float]:
    """From the first start of a run to the last stop, within the segment."""
    start = group.tally.run_start or group.since
    end = max(group.tally.end, start)
    if group.unfinished:  # the segment was cut, or the cluster closed
        end = max(end, segment.end)
    return fit(start, end, segment.start, segment.end)
