"""Builds the records of a segment that closes: its result, its groups and tasks, its links.

A trace is bounded whatever the graph: groups beyond the limit are folded into one span that has their sums. The ledger
of a closed segment becomes part of its record, and nothing changes it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from heapq import heappush, heappushpop
from itertools import chain, islice
from operator import itemgetter

from ..diagnosis.parts import OnPath
from ..identity import group_id, others_id, pending_id, phase_id, task_id
from .counts import FirstError, Tally, sum_into
from .events import Dependency, Metrics, Phase, PickedRun, TaskRun
from .ledger import UNFINISHED, Budget, GroupLedger, Ledger
from .records import (
    ENDS,
    Failure,
    GroupRecord,
    Link,
    ParentGroupRecord,
    PendingRecord,
    PhaseRecord,
    Record,
    SegmentRecord,
    TaskRecord,
)
from .timing import Threads, fit
from .tree import MAX_SEGMENTS, Node, Segment, sum_open

__all__ = [
    "KEEP_REQUESTED",
    "Level",
    "SpanTreeSettings",
    "close_segment",
    "failure_of_group",
    "fold",
    "fold_for_closing",
    "fold_some",
    "open_records",
    "pending_span",
    "pick_runs",
    "verdict",
]


#: Seconds for which a span that was only requested is kept after its last segment: it may request more.
KEEP_REQUESTED = 3600.0


class Level(IntEnum):
    """What a trace shows; each level includes those before."""

    NOTHING = 0
    SPANS = 1
    GROUPS = 2
    TASKS = 3


@dataclass(frozen=True)
class SpanTreeSettings:
    """Settings of the span tree; times in seconds."""

    #: For how long a subtree must be idle before its segment closes.
    idle_timeout: float = 5.0
    #: Age at which a segment is cut.
    max_segment: float = 3600.0
    #: Age at which a run that is active gets a pending span.
    pending_span_after: float = 15.0
    #: Group spans a segment.
    max_groups: int = 500
    #: How many of the slowest runs of a group get a span though they do not stand out.
    slowest_tasks: int = 0
    #: For how long a span that was only requested is kept after its last segment.
    keep_requested: float = KEEP_REQUESTED
    #: What traces show.
    level: Level = Level.TASKS
    #: What those of work without a span show, if that is less.
    default_level: Level = Level.TASKS

    def level_of(self, *, is_default: bool) -> Level:
        """What a trace shows, that of work without a span or another."""
        return min(self.level, self.default_level) if is_default else self.level


#: Groups, at most, that are folded at a time while a segment is open.
FOLDED_AT_ONCE = 200


def fold_some(node: Node, ledger: Ledger, most: int) -> None:
    """Fold finished groups of an open segment, some at a time: to choose them takes time for all."""
    excess = min(most, FOLDED_AT_ONCE)
    if len(ledger.foldable) >= most + excess:
        for group, worth in sorted(ledger.foldable.items(), key=itemgetter(1))[:excess]:
            fold(node, ledger, group, node.next_number)
            ledger.least_worth = worth


def fold_for_closing(node: Node, segment: Segment, ledger: Ledger) -> Iterator[None]:
    """Fold the groups of a segment that closes beyond those that it and the trace may show, also unfinished ones.

    Unfinished groups are kept first, then those that failed, then those that took longest; of equal ones the earlier.
    Lazy: each step is little work.
    """
    keep = segment.budget.groups_beside(ledger.pinned)
    kept: list[tuple[float, int, GroupLedger]] = []
    for place, group in enumerate([group for group in ledger.groups.values() if not group.pinned]):
        entry = (UNFINISHED if group.unfinished else group.worth), -place, group
        if len(kept) < keep:
            heappush(kept, entry)
        else:
            fold(node, ledger, heappushpop(kept, entry)[2], segment.number)
        yield
    segment.budget.groups -= len(ledger.groups) - ledger.pinned


def fold(node: Node, ledger: Ledger, group: GroupLedger, number: int) -> None:
    """Count a group among the folded ones of a segment; ``number`` is that of the segment."""
    ledger.fold(group, number)
    node.withdraw_group(group)


def pick_runs(
    ledger: Ledger, budget: Budget, most_slowest: int
) -> dict[str | None, list[tuple[str, TaskRun | PickedRun]]]:
    """Choose the runs that get a span, with the reason, by group (the folded ones under None).

    Parameters
    ----------
    most_slowest
        How many of the slowest runs of a group get one though they do not stand out.
    """
    chosen: dict[str | None, list[tuple[str, TaskRun | PickedRun]]] = {}
    slow: list[tuple[TaskRun | PickedRun, str | None, str]] = []
    for group in ledger.all_groups():
        if group.picks:
            erred = group.picks.erred[: max(0, budget.erred)]
            budget.erred -= len(erred)
            chosen[group.key] = [("erred", run) for run in erred]
            outliers = group.outliers()
            slow += [(run, group.key, "outlier") for run in outliers if not run.has_span]
            if most_slowest:
                shown = set(map(id, outliers))
                others = [run for run in group.picks.slowest if id(run) not in shown]
                others.sort(key=lambda run: -run.seconds)
                others = others[: max(0, most_slowest - len(outliers))]
                slow += [(run, group.key, "slowest") for run in others if not run.has_span]
    slow.sort(key=lambda pick: -pick[0].seconds)
    for run, key, reason in slow[: max(0, budget.slowest)]:
        chosen[key].append((reason, run))
        budget.slowest -= 1
    return chosen


def verdict(ledger: Ledger, elsewhere: Tally | None, stopped: str) -> tuple[str, Failure | None]:
    """Result of a segment, and why its status is Error if it is.

    Parameters
    ----------
    elsewhere
        The tasks that it requested and other spans count.
    stopped
        Why it closes, if its work is not done.
    """
    counts = _counts(ledger.tally)
    if elsewhere:
        sum_into(counts, _counts(elsewhere))
    error = ledger.tally.error or (elsewhere.error if elsewhere else None)
    failure = _failure(counts, error, ledger.graph_failures.get("error", 0))
    return stopped or _result(counts, failure, ledger.graph_failures), failure


def failure_of_group(group: GroupLedger) -> Failure | None:
    """Why the status of a group span is Error, if it is."""
    return _failure(group.tally.outcomes, group.tally.error, 0)


def _counts(tally: Tally) -> dict[str, int]:
    return {
        "tasks": tally.tasks,
        "completed": tally.completed,
        "lost_for_good": tally.lost_for_good,
        **tally.outcomes,
    }


def _failure(counts: Mapping[str, int], error: FirstError | None, graphs: int) -> Failure | None:
    erred, upstream = counts.get("erred", 0), counts.get("upstream_failed", 0)
    if not (erred or upstream or graphs):
        return None
    return Failure(error.type if error else "_OTHER", error.message if error else "", erred, upstream, graphs)


def _result(counts: Mapping[str, int], failure: Failure | None, graph_failures: Mapping[str, int]) -> str:
    if failure:
        return "error"
    if counts["lost_for_good"]:
        return "lost"
    if counts.get("cancelled") or graph_failures.get("cancelled"):
        return "cancelled"
    if counts.get("abandoned") and not counts["completed"]:
        return "cancelled"
    return "success"


#: Name of the spans of phases.
TAKE_IN = "take in graph"
#: Returns the trace and span id of a group's span.
Find = Callable[[Dependency], "tuple[int, int] | None"]
#: Returns how long groups that share a span are on the critical path of their root; None if that is not known.
Critical = Callable[[Collection[str]], "OnPath | None"]
#: Runs that get a span, by group, with the reason.
Runs = Mapping["str | None", Sequence["tuple[str, TaskRun | PickedRun]"]]


def close_segment(
    node: Node,
    segment: Segment,
    ledger: Ledger,
    now: float,
    offset: float,
    stopped: str,
    threads: Threads,
    find: Find,
    level: Level,
    slowest_tasks: int,
    critical: Critical,
) -> tuple[SegmentRecord, Iterator[Record]]:
    """Make the record of a segment whose groups have been folded, and, one at a time, those of its groups and tasks.

    Parameters
    ----------
    offset
        Seconds to subtract from all times of the record, see ``scheduler.pace.Clock``.
    stopped
        Why it closes, if its work is not done.
    level, slowest_tasks
        What the trace shows, see ``SpanTreeSettings``.
    critical
        Says how long its groups are on the critical path.
    """
    runs = pick_runs(ledger, segment.budget, slowest_tasks) if level >= Level.TASKS else {}
    ledger.truncated_tasks += sum(_truncated(group, runs) for group in ledger.all_groups())
    if level < Level.GROUPS:
        ledger.truncated_groups += sum(not group.is_parent for group in ledger.groups.values())
        ledger.truncated_phases += len(ledger.phases)
    record = _segment(node, segment, ledger, now, offset, stopped, threads)

    def find_here(to: Dependency) -> tuple[int, int] | None:
        if to.span_id == node.info.id and to.name in ledger.others_names:
            return segment.trace_id, others_id(node.info.id, segment.number)
        return find(to)

    if level < Level.GROUPS:
        parents = [group for group in ledger.groups.values() if group.is_parent]
        return record, _inside(record, ledger, parents, offset, runs, lambda to: None, critical)
    inside = _inside(record, ledger, ledger.all_groups(), offset, runs, find_here, critical)
    return record, chain(_phases(record, ledger.phases, offset), inside)


#: Seconds of a run after which it sends another pending span; later, one an hour.
PENDING_AGES = (60.0, 300.0, 900.0)
HOUR = 3600.0


def pending_span(top: Node, segment: Segment, now: float, offset: float) -> PendingRecord:
    """Build a pending span of a run: the run can be found before it ends, or if it never does."""
    age = now - segment.start
    segment.pending_after = next((each for each in PENDING_AGES if each > age), (age // HOUR + 1) * HOUR)
    segment.pending_sent += 1
    start, end = segment.start - offset, now - offset
    segment.enclose(start, end)
    sums = sum_open(top, MAX_SEGMENTS)
    return PendingRecord(
        span=top.info,
        top=top.info,
        caller=top.caller,
        trace_id=segment.trace_id,
        span_id=pending_id(top.info.id, segment.number, segment.pending_sent - 1),
        parent_id=segment.id,
        name=f"{top.title} (running)",
        start=start,
        end=end,
        links=(),
        failure=None,
        tasks=sums.tasks if sums.room else None,
        completed=sums.completed if sums.room else None,
        active=sums.active,
    )


#: Of a run that is open: segments, groups and failed tasks that are described at a time, at most: each takes
#: about 0.1 ms.
MAX_OPEN_SEGMENTS, MAX_OPEN_GROUPS, MAX_OPEN_TASKS = 40, 40, 20


def open_records(top: Node, now: float, offset: float, threads: Threads, level: Level) -> Iterator[tuple[Record, bool]]:
    """Describe a run that is open as if it ended now: open segments, their groups and failed tasks, some of each.

    The span tree is not changed. The records refer to its ledgers: use them before the next sweep.

    Yields
    ------
    A record, and whether it has unfinished tasks. Segments come before what is in them.
    """
    nodes = list(islice(top.open_below(), MAX_SEGMENTS))
    sums: dict[Node, Tally] = {}
    for node in reversed(nodes):  # children before their parents
        sums[node] = Tally()
        if node.ledger:
            sums[node].add(node.ledger.tally)
        for child in node.segment.children if node.segment else ():
            if child in sums:
                sums[node].add(sums[child])
    groups: list[tuple[SegmentRecord, GroupLedger]] = []
    described: list[tuple[SegmentRecord, list[Phase]]] = []
    for node in nodes[:MAX_OPEN_SEGMENTS]:
        if node.segment and node.ledger:
            stopped = "unfinished" if node.load.unfinished else ""
            record = _segment(node, node.segment, node.ledger, now, offset, stopped, threads)
            tally = sums[node]
            failure = _failure(tally.outcomes, tally.error, 0) or record.failure
            yield replace(record, tally=tally, failure=failure), bool(stopped)
            groups += ((record, group) for group in node.ledger.all_groups())
            described.append((record, node.ledger.phases))
    if level < Level.GROUPS:
        return
    for record, phases in described:
        for phase in _phases(record, phases, offset):
            yield phase, False
    groups.sort(key=lambda each: (not each[1].tally.failed_tasks, not each[1].unfinished, -each[1].since))
    room = MAX_OPEN_TASKS if level >= Level.TASKS else 0
    for number, (record, group) in enumerate(groups[:MAX_OPEN_GROUPS]):
        # What is left is shared by the groups after this one, each of which may have failed in another way.
        erred = group.picks.erred[: max(1, room // (len(groups) - number))] if group.picks and room else []
        room -= len(erred)
        truncated = group.tally.outcomes.get("erred", 0) - len(erred) - group.erred_with_span
        made = _group(record, group, {}, offset, truncated, lambda to: None)
        yield made, bool(group.unfinished)
        for run in erred:
            yield _task(made, run.described(), offset, "erred"), False


def _segment(
    node: Node, segment: Segment, ledger: Ledger, now: float, offset: float, stopped: str, threads: Threads
) -> SegmentRecord:
    elsewhere = ledger.all_elsewhere()
    # Its children have been sent with the offset of that time.
    end = max(_end(node, segment, ledger.tally, elsewhere, now, stopped) - offset, segment.enclosed_until)
    is_top = segment.top is node
    callers = [caller for caller in ledger.callers if is_top and caller.trace_id != segment.trace_id]
    links = [Link(caller.trace_id, caller.span_id, "caller") for caller in callers]
    links += [Link(*at, "counted_in") for at in ledger.counted_in.values() if at and at[0] != segment.trace_id]
    above = node.parent.segment if node.parent else None
    if above and above.trace_id != segment.trace_id:
        links.append(Link(above.trace_id, above.id, "within"))
    previous_id = None
    if node.previous:
        previous_trace, previous_span = node.previous
        # A span without parent must not link into its own trace: Jaeger would take the link for its parent.
        if segment.parent_id is None and previous_trace == segment.trace_id:
            previous_id = previous_span
        else:
            links.append(Link(previous_trace, previous_span, "continues"))
    result, failure = verdict(ledger, elsewhere, stopped if node.load.unfinished else "")
    if failure is None and result in ENDS and is_top:
        lost = ledger.tally.lost_for_good + (elsewhere.lost_for_good if elsewhere else 0)
        failure = Failure(result, "", unfinished=node.load.unfinished + lost)
    return SegmentRecord(
        span=node.info,
        top=segment.top.info,
        caller=segment.top.caller,
        trace_id=segment.trace_id,
        span_id=segment.id,
        parent_id=segment.parent_id,
        name=node.title,
        start=segment.start - offset,
        end=end,
        links=tuple(links),
        failure=failure,
        tally=ledger.tally,
        number=segment.number,
        result=result,
        previous_id=previous_id,
        metrics=ledger.metrics,
        wall=segment.wall.until(end + offset),
        threads_available=threads.available(segment.start, end + offset),
        threads_others=max(0.0, segment.others_now - segment.others_at_start),
        metrics_complete=ledger.metrics_complete,
        clients=tuple(ledger.clients),
        graph_seconds=ledger.graph_seconds,
        collections=tuple(ledger.collections),
        annotations={name: tuple(values) for name, values in ledger.annotations.items()},
        code=ledger.code,
        counted_in=tuple(ledger.counted_in),
        elsewhere=elsewhere,
        graph_failures=ledger.graph_failures,
        truncated_groups=ledger.left_out_groups,
        truncated_tasks=ledger.truncated_tasks,
        truncated_phases=ledger.truncated_phases,
        submitters={name: tuple(values) for name, values in ledger.submitters.items()} if is_top else {},
    )


def _phases(segment: SegmentRecord, phases: Sequence[Phase], offset: float) -> Iterator[PhaseRecord]:
    """Make the records of phases."""
    for number, phase in enumerate(phases):
        start, end = fit(phase.start - offset, phase.end - offset, segment.start, segment.end)
        yield PhaseRecord(
            span=segment.span,
            top=segment.top,
            caller=segment.caller,
            trace_id=segment.trace_id,
            span_id=phase_id(segment.span.id, segment.number, number),
            parent_id=segment.span_id,
            name=TAKE_IN,
            start=start,
            end=end,
            links=(),
            failure=Failure("_OTHER", "", graphs=1) if phase.failed else None,
            phase=phase,
        )


def _inside(
    segment: SegmentRecord,
    ledger: Ledger,
    groups: Iterable[GroupLedger],
    offset: float,
    runs: Runs,
    find: Find,
    critical: Critical,
) -> Iterator[Record]:
    """Make the records of groups and tasks."""
    for group in groups:
        alone = not group.folded and ledger.prefixes[group.prefix] == 1
        metrics = ledger.metrics_by_prefix.get(group.prefix, {}) if alone else None
        record = _group(segment, group, metrics, offset, _truncated(group, runs), find)
        record.critical = critical(ledger.others_names if group.folded else [group.name])
        yield record
        for reason, run in runs.get(group.key, ()):
            yield _task(record, run.described(), offset, reason)


def _group(
    segment: SegmentRecord, group: GroupLedger, metrics: Metrics | None, offset: float, truncated: int, find: Find
) -> GroupRecord:
    dependencies = sorted(set(group.dependencies), key=lambda dependency: dependency.name)
    found = (find(dependency) for dependency in dependencies)
    start, end = _group_times(group, segment, offset)
    span_id = segment.span.id
    kind = ParentGroupRecord if group.is_parent else GroupRecord
    return kind(
        span=segment.span,
        top=segment.top,
        caller=segment.caller,
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
        retried_error=group.retried_error,
    )


def _task(group: GroupRecord, run: TaskRun, offset: float, reason: str) -> TaskRecord:
    start, end = fit(run.start - offset, run.stop - offset, group.start, group.end)
    return TaskRecord(
        span=group.span,
        top=group.top,
        caller=group.caller,
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
    return group.tally.outcomes.get("erred", 0) - shown - group.erred_with_span


def _end(node: Node, segment: Segment, tally: Tally, elsewhere: Tally | None, now: float, stopped: str) -> float:
    """When the work ended, not when that was noticed; never in the future."""
    if stopped and node.load.unfinished:
        return max(now, segment.start)
    ended = max(tally.end, elsewhere.end if elsewhere else 0.0, segment.start)
    return min(ended, max(now, segment.start))


def _group_times(group: GroupLedger, segment: SegmentRecord, offset: float) -> tuple[float, float]:
    """From the first start of a run to the last stop, within the segment."""
    start = (group.tally.run_start or group.since) - offset
    end = max(group.tally.end - offset, start)
    if group.unfinished:  # the segment was cut, or the cluster closed
        end = max(end, segment.end)
    return fit(start, end, segment.start, segment.end)
