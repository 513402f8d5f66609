"""The life of segments: when they open, close and are cut.

Dask has no event for "span finished". A segment closes when its subtree has been idle for ``idle_timeout`` and the
workers have delivered their fine metrics, which travel on heartbeats and arrive after the runs that they are about.
All methods are called by one sweep at a time; the time is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import islice
from typing import Any, NamedTuple

from ..diagnosis.evidence import ClusterEvidence, RunFacts
from ..diagnosis.parts import Lap, OnPath
from ..diagnosis.verdict import Verdict, judge
from ..diagnosis.waterfall import Laps
from ..identity import group_id, segment_id
from .events import Change, Claim, Dependency, Graph, Metrics, SpanInfo, WorkerSpan
from .facts import Groups, facts_of
from .forgotten import ForgottenIds
from .ledger import Ledger
from .records import GroupRecord, Record, RootRuns, SegmentRecord, StandInRecord
from .timing import Heartbeats, Threads
from .to_records import (
    Critical,
    Level,
    SpanTreeSettings,
    close_segment,
    fold,
    fold_for_closing,
    fold_some,
    open_records,
    pending_span,
)
from .tree import MAX_SEGMENTS, NO_LOAD, Forest, Node, Segment, sum_open

__all__ = ["AwaitedMetrics", "Progress", "SpanTree", "open_runs", "trace_of"]

#: Open segments that are looked at in one step: most are not due, which takes less time than a step.
LOOKS_AT_ONCE = 100
#: Groups of a Dask span whose group spans are sent because spans of workers are below them.
MAX_PARENTS = 10_000
#: Segments that were not sent, and of which this is remembered.
MAX_UNSENT = 1000
#: Outcomes of runs that end without a report of their worker, whose metrics arrive all the same.
_WORDLESS = ("retried", "rescheduled", "cancelled", "abandoned")


class AwaitedMetrics:
    """Which workers have metrics to deliver for which open segments.

    Kept in both directions, so that a worker that leaves concerns only the segments that wait for it.
    """

    def __init__(self) -> None:
        self.heartbeats = Heartbeats()
        #: By worker, the nodes whose segment waits for it; sets in order of insertion.
        self._waiting: dict[str, dict[Node, None]] = {}

    def after(self, node: Node, runs: Change, now: float) -> bool:
        """Expect metrics of runs that have ended; return whether the workers that have them are still there."""
        assert node.segment
        if not node.segment.has_wordless_runs and runs.outcomes:
            node.segment.has_wordless_runs = any(runs.outcomes.get(outcome) for outcome in _WORDLESS)
        workers, here = runs.workers.keys(), self.heartbeats.here
        all_here = workers <= here
        self._expect(node, node.segment, dict.fromkeys(workers if all_here else workers & here, now))
        return all_here

    def after_wordless(self, node: Node, now: float) -> None:
        """Expect metrics of all workers that were given tasks, if a run has ended without a report."""
        if node.segment and node.segment.has_wordless_runs:  # on one of these workers
            node.segment.has_wordless_runs = False
            self.expect(node, {each: now for each in node.segment.sent_to if each in self.heartbeats.here})

    def expect(self, node: Node, owed: dict[str, float]) -> None:
        """Expect metrics of workers, for runs that ended at some time."""
        assert node.segment
        self._expect(node, node.segment, owed)

    def _expect(self, node: Node, segment: Segment, owed: dict[str, float]) -> None:
        known = len(segment.owed)
        segment.owed.update(owed)
        for worker in islice(reversed(segment.owed), len(segment.owed) - known):  # those that are new come last
            segment.overdue.pop(worker, None)
            if worker in self._waiting:
                self._waiting[worker][node] = None
            else:
                self._waiting[worker] = {node: None}

    def give_up_overdue(self, node: Node, now: float) -> bool:
        """Stop waiting for workers that delivered, left or are silent; return whether the segment awaits nothing."""
        segment = node.segment
        if segment is None:
            return True
        over = []
        for worker, since in segment.owed.items():
            if not self.heartbeats.has_delivered(worker, since):
                if self.heartbeats.is_awaited(worker, since, now):
                    break
                segment.overdue[worker] = since
            over.append(worker)
        awaits_nothing = len(over) == len(segment.owed)
        for worker in over:  # never checked again
            del segment.owed[worker]
        self.ended(node, over)
        return awaits_nothing

    def awaited(self, now: float) -> set[str]:
        """Return the workers that are still there and have metrics to deliver for any segment."""
        return {
            worker
            for worker, nodes in self._waiting.items()
            if any(
                self.heartbeats.is_awaited(worker, node.segment.owed[worker], now)
                for node in nodes
                if node.segment and worker in node.segment.owed
            )
        }

    def add_event(self, kind: str, worker: str) -> Iterator[None]:
        """Record a worker event, and stop waiting for a worker that has left: the metrics that it owes are lost."""
        if kind == "joined":
            self.heartbeats.joined(worker)
        else:
            yield from self._settle(worker)
            self.heartbeats.left(worker)
        yield

    def _settle(self, worker: str) -> Iterator[None]:
        for node in self._waiting.pop(worker, {}):
            if node.segment and node.ledger and worker in node.segment.owed:
                since = node.segment.owed.pop(worker)
                node.ledger.metrics_complete &= self.heartbeats.has_delivered(worker, since)
            yield

    def ended(self, node: Node, workers: Iterable[str]) -> None:
        """A node's segment waits no more."""
        for worker in workers:
            waiting = self._waiting.get(worker)
            if waiting:
                waiting.pop(node, None)
                if not waiting:
                    del self._waiting[worker]


class SpanTree:
    """The tree of Dask spans of one scheduler, and the open segments.

    Parameters
    ----------
    now
        When it begins to count.
    threads
        Number of threads of the cluster.
    first_number
        Of the segments of spans that are older: another bridge of the scheduler may have sent those before.
    forgotten
        Ids of spans that this one or another bridge of the scheduler has forgotten.
    """

    def __init__(
        self,
        now: float,
        threads: int,
        settings: SpanTreeSettings,
        first_number: int = 0,
        forgotten: ForgottenIds | None = None,
    ) -> None:
        #: Whose fine metrics have not arrived.
        self.owed = AwaitedMetrics()
        self.heartbeats = self.owed.heartbeats
        self.threads = Threads(now, threads)
        self.settings = settings
        #: Which spans are open.
        self.forest = Forest(
            now, settings.max_groups, first_number, settings.keep_requested, forgotten or ForgottenIds()
        )
        self.roots = RootRuns()
        #: Returns when the lap of a root began that is not over; None if there is none.
        self.lap_start: Callable[[str], float | None] = lambda root_id: None
        #: What has been seen of the cluster since a mark, and what follows from that and from the facts of a run.
        self.evidence_since: Callable[[Any], ClusterEvidence] = lambda mark: ClusterEvidence()
        self.judge: Callable[[RunFacts], Verdict] = judge
        #: Guards what only verdicts need: no segment is lost because it fails.
        self.explaining: Callable[[], AbstractContextManager[None, bool]] = suppress
        #: Seconds to subtract from times that leave, see ``scheduler.pace.Clock``.
        self._offset = 0.0
        #: Spans in the place of group spans, to be sent by the next ``advance``: parents, names of groups, and when.
        self._stand_ins: list[tuple[Node, WorkerSpan, int | None, float]] = []
        #: Traces of segments that were not sent, by id; the latest ones.
        self._unsent: dict[int, int] = {}

    # Input

    def add_span(self, info: SpanInfo) -> None:
        """Add a Dask span; its parent must be known."""
        self.forest.add(info)

    def add_requested(self, info: SpanInfo) -> None:
        """Add a span that was requested and that Dask has not made; its parent must be known."""
        self.forest.add_requested(info)

    def add_change(self, change: Change, now: float) -> None:
        """Count what happened to a group."""
        node = self.forest.nodes[change.span_id]
        if change.active:
            if not node.segment:
                self.forest.open_segment(node, min(change.since, change.run_start or change.since), now)
            if change.run_stop and node.segment:
                change.put_in_time(node.segment.start, now)
        self._saw(node, change, now)
        if not change.is_empty:
            ledger = self.forest.ledger(node, now)
            group = ledger.find(change.name) or ledger.begin_among_others(change)
            if group is None:
                group = node.begin_group(ledger, change.name, change.prefix, change.since)
            ledger.add_change(change, group)
            fold_some(node, ledger, self.settings.max_groups)
            if change.outcomes.get("lost"):  # and with the worker, the metrics of the run
                ledger.metrics_complete = False
        elif node.ledger:
            node.ledger.note_unfinished(change)

    def add_claim(self, claim: Claim, now: float) -> None:
        """Count what happened to tasks that a span requested and another one counts; both must be known."""
        node = self.forest.nodes[claim.requesting]
        segment = self.forest.open_segment(node, claim.since, now)
        if node.ledger and not node.ledger.groups:
            node.begin_with(claim.prefix)
        claim.put_in_time(segment.start, now)
        segment.claimed[claim.owning] = segment.claimed.get(claim.owning, 0) + claim.load.unfinished
        ledger = self.forest.ledger(node, now)
        self._note_owner(ledger, claim.owning)
        if not self.forest.is_inside(claim.owning, node):
            ledger.add_claim(claim)
        self.forest.touch(node, claim, claim.load, now)

    def add_metrics(self, span_id: str, metrics: Metrics, now: float) -> float:
        """Count fine metrics, held while there is no open segment; return the busy thread-seconds among them."""
        node = self.forest.nodes[span_id]
        busy = self.forest.ledger(node, now).add_metrics(metrics)
        node.root.busy += busy
        self.forest.busy += busy
        return busy

    def add_lap(self, lap: Lap) -> None:
        """Add what threads did for a root while it had unfinished tasks, to its open segment."""
        node = self.forest.nodes.get(lap.root_id)
        if node and node.segment and node.ledger:
            node.ledger.laps = node.ledger.laps or Laps()
            node.ledger.laps.add(lap)
            node.segment.cluster = self.evidence_since(node.segment.mark)

    def add_graph(self, graph: Graph, now: float) -> None:
        """Record what a submission contained for a Dask span."""
        node = self.forest.nodes[graph.span_id]
        if graph.failure:
            self.forest.open_segment(node, graph.since, now)
            node.begin_with(graph.prefix)
        if graph.phase:
            self.forest.open_segment(node, graph.phase.start, now, is_early=True)
        self.forest.ledger(node, now).add_graph(graph)
        self.forest.noted[node] = None
        if graph.failure or graph.phase:
            self.forest.touch(node, None, NO_LOAD, now)

    def add_worker_span(self, made: WorkerSpan, now: float) -> None:
        """Have the parent of spans of workers sent, whatever else is left out; their Dask span must be known.

        The parent is a segment that ``parent_segment`` has named, or the first group span of their group. In the place
        of one that is not sent, or no more, a span without numbers is.
        """
        node, name = self.forest.nodes[made.span_id], made.group
        if node.segment and node.segment.id == made.parent_id:
            node.segment.is_parent = True
            return
        if self._unsent.get(made.parent_id) == made.trace_id:
            del self._unsent[made.parent_id]
            self._add_stand_in(node, made, now)
            return
        first = node.origin.trace_id(), group_id(node.info.id, name, 0)
        # Group spans of number 0 are an earlier bridge's, if there was one.
        if node.first_number or (made.trace_id, made.parent_id) != first or (node.parents and name in node.parents):
            return
        if node.parents and len(node.parents) >= MAX_PARENTS:
            return
        node.add_parent(name)
        if not node.segment and not node.previous:
            self.forest.open_segment(node, now, now)
        if not self._keep_group(node, name, made.trace_id):
            self._add_stand_in(node, made, now)

    def parent_segment(self, span_id: str, root_id: str, enqueued: float) -> tuple[int, int] | None:
        """Return which segment is to be the parent of the spans of new tasks, if it is not the span of their group.

        Workers can compute the id of a group's first group span. It is the parent unless it is in another trace, or an
        earlier bridge may have sent it.

        Parameters
        ----------
        enqueued
            When the Dask span appeared: it may not be known yet.

        Returns
        -------
        Number of the trace, and of the segment.
        """
        node = self.forest.nodes.get(span_id)
        root = node.root if node else self.forest.nodes.get(root_id)
        trace_number = root.trace_number if root else 0
        first_number = node.first_number if node else self.forest.first_number_of(span_id, enqueued)
        if not (first_number or trace_number):
            return None
        return trace_number, node.next_number if node else first_number

    def given_up(self, record: GroupRecord) -> None:
        """Note that a group span was not sent."""
        node = self.forest.nodes.get(record.span.id)
        if node and record.span_id == group_id(record.span.id, record.group, 0):
            node.note_unsent(record.group)

    def add_worker_event(self, kind: str, worker: str) -> Iterator[None]:
        """Record that a worker ``joined`` or ``left``; lazy, each step is little work.

        To be called before the changes of the same sweep.
        """
        return self.owed.add_event(kind, worker)

    def add_heartbeats(self, heartbeats: Iterable[tuple[str, int]], now: float) -> None:
        """Count the heartbeats that arrived since the last sweep: workers, and how many of each.

        To be called before the changes of the same sweep. Heartbeats that a worker sent before it left come before its
        ``left``, all others after it.
        """
        self.heartbeats.beat(heartbeats, now)

    # Output

    def advance(
        self, now: float, clock_offset: float = 0.0, *, taking_in_graph: bool = False
    ) -> Iterator[Record | None]:
        """Close what has ended or grown too old.

        Lazy: each step is little work. A step that makes no record yields None.

        Parameters
        ----------
        clock_offset
            Seconds to subtract from all times of records.
        """
        self._offset = clock_offset
        yield from self._send_stand_ins()
        yield from self.forest.drop_notes()
        yield from self._account(now)
        earliest = now
        pending_span_after = self.settings.pending_span_after
        for number, top in enumerate(list(self.forest.open_tops)):
            if not number % LOOKS_AT_ONCE:
                yield None
            if top.segment is None:
                continue
            start = top.segment.start
            age = now - start
            if start < earliest:
                earliest = start
            # A root comes before the tops below it, and is as old: all are cut together.
            if self._is_too_old(top, now):
                yield from self._cut(top, now)
            elif age >= pending_span_after and self._wants_pending_span(top, age):
                yield pending_span(top, top.segment, now, self._offset)
        if not taking_in_graph:
            for number, node in enumerate(list(self.forest.at_rest)):  # children before their parents
                if not self._is_settled(node, now):
                    if not number % LOOKS_AT_ONCE:
                        yield None
                elif self.owed.give_up_overdue(node, now):
                    yield from self._close(node, now)
                else:
                    yield None
        self.forest.forget_requested(now)
        # A segment may start a little before the sweep that opens it.
        self.threads.forget(earliest - 60.0)

    def owing(self, now: float) -> set[str]:
        """Return the workers that are still there and have metrics to deliver for an open segment."""
        return self.owed.awaited(now)

    def open_records(self, trace_id: int, now: float, clock_offset: float = 0.0) -> Iterator[tuple[Record, bool]]:
        """Describe the open runs of a trace as if they ended now, see ``to_records.open_records``."""
        for top in list(self.forest.open_tops):
            if top.segment and top.segment.trace_id == trace_id:
                yield from open_records(top, now, clock_offset, self.threads, self._level_of(top))

    def close(self, now: float, clock_offset: float = 0.0, *, stopped: str = "interrupted") -> Iterator[Record | None]:
        """Close everything; as ``advance``.

        Parameters
        ----------
        stopped
            Result of what is not done: ``interrupted`` if the cluster closes, ``unfinished`` if the work goes on.
        """
        self._offset = clock_offset
        yield from self._send_stand_ins()
        yield from self._account(now)
        for node in sorted(self.forest.held, key=lambda node: node.ledger.since if node.ledger else now):
            self._open_for_held(node, now)
        for node in sorted(self.forest.open, key=lambda node: -node.depth):
            yield from self._close(node, now, stopped=stopped)

    def roots_to_cut(self, now: float) -> list[str]:
        """Return the ids of roots whose segments ``advance`` will cut."""
        if not self.forest.open_tops:
            return []
        return [top.root.info.id for top in self.forest.open_tops if self._is_too_old(top, now)]

    def is_over(self, root_id: str) -> bool:
        """Whether a root has no open segment."""
        node = self.forest.nodes.get(root_id)
        return node is None or node.segment is None

    # What is to be forgotten

    def rests_since(self, span_id: str) -> float | None:
        """Return when the last segment of a span ended; 0.0 if it has had none, None while one is open."""
        node = self.forest.nodes.get(span_id)
        if node is None:
            return 0.0
        return None if node.segment else node.previous_end

    def last_segment(self, span_id: str) -> tuple[int, int] | None:
        """Return the trace and span id of the last segment of a span that has closed."""
        node = self.forest.nodes.get(span_id)
        return node.previous if node else None

    def is_complete(self, span_ids: Iterable[str]) -> bool:
        """Whether all spans that are known below a root are among those given: some were perhaps only requested."""
        known = [node for span_id in span_ids if (node := self.forest.nodes.get(span_id))]
        below = sum(node.parent is not None for node in known)
        return sum(node.children_known for node in known) == below

    def send_held(self, span_ids: Iterable[str], now: float) -> bool:
        """Have numbers that came after the last segment of a span sent in one more; return whether there are any."""
        found = False
        for span_id in span_ids:
            node = self.forest.nodes.get(span_id)
            if node and node.ledger:
                found |= self._open_for_held(node, now)
        return found

    def forget(self, span_ids: Iterable[str]) -> None:
        """Forget spans that rest and hold nothing; children before their parents."""
        for span_id in span_ids:
            node = self.forest.nodes.get(span_id)
            if node:
                self.forest.forget(node)

    # Inside

    def _open_for_held(self, node: Node, now: float) -> bool:
        """Open a segment for numbers that a span holds; return whether it has."""
        # Without a segment before, all its work was done before the span tree was there, or never.
        if not node.previous or not node.ledger or not node.ledger.has_numbers:
            return False
        for each in node.lineage():
            if not each.segment:
                self.roots.late(each.info)
        self.forest.open_segment(node, node.ledger.since, now)
        return True

    def _saw(self, node: Node, change: Change, now: float) -> None:
        """Add a change to the load of its node, and wait for the metrics of its runs."""
        self.forest.touch(node, change, change.load, now if change.active else None)
        if node.segment:
            node.segment.sent_to.update(change.sent_to)
            if not self.owed.after(node, change, now):
                self.forest.ledger(node, now).metrics_complete = False

    def _is_settled(self, node: Node, now: float) -> bool:
        """Whether a segment has been idle for long enough, and so have those below it."""
        segment = node.segment
        if segment is None or segment.children:
            return False
        return now - segment.last_change >= self.settings.idle_timeout

    def _is_too_old(self, top: Node, now: float) -> bool:
        """Whether an open segment is to be cut; in a pause it is given twice the time, since the run may end."""
        age, max_segment = now - top.segment.start if top.segment else 0.0, self.settings.max_segment
        return age >= max_segment and age >= max_segment * (1 if top.load.unfinished else 2)

    def _account(self, now: float) -> Iterator[None]:
        """Account for what changed."""
        for node in self.forest.account(now):
            self.owed.after_wordless(node, now)
            yield None

    def _close(self, node: Node, now: float, stopped: str = "") -> Iterator[Record | None]:
        """Close a segment whose child segments are closed; ``stopped``: why, if its work is not done."""
        # Out of the way first: a segment that cannot be made must not stand in the way of others.
        segment, ledger = self.forest.take_out(node)
        self.owed.ended(node, segment.owed)
        goes_on = stopped == "unfinished" and node.load.unfinished > 0
        ledger.metrics_complete &= segment.end_metrics(self.heartbeats, goes_on=goes_on)
        level = self._level_of(node)
        yield from fold_for_closing(node, segment, ledger)
        yield from self._note_groups(node, segment, ledger)
        record, inside = close_segment(
            node,
            segment,
            ledger,
            now,
            self._offset,
            stopped,
            self.threads,
            self._reserve,
            level,
            self.settings.slowest_tasks,
            self._critical(node, ledger),
        )
        if node.parent is None:
            self._explain(record, segment, ledger)
        node.previous, node.previous_end = (segment.trace_id, segment.id), record.end
        if self._offset:  # else the same object: nodes are many
            node.previous_end += self._offset
        if record.is_top:
            self.roots.closed(record)
        self.roots.explained(record)
        above = node.parent
        if above and above.segment and above.ledger:
            above.segment.enclose(record.start, record.end)
            above.segment.is_parent |= segment.is_parent
            above.ledger.add_child(ledger, lambda span_id: self.forest.is_inside(span_id, above))
        if node.load == NO_LOAD:
            node.load = NO_LOAD
        if level > Level.NOTHING or segment.is_parent:
            yield from inside
            yield record
        else:
            self._unsent[segment.id] = segment.trace_id
            if len(self._unsent) > MAX_UNSENT:
                del self._unsent[next(iter(self._unsent))]

    def _note_groups(self, node: Node, segment: Segment, ledger: Ledger) -> Iterator[None]:
        """Note for the verdict of a root the groups of a segment below it, or of its own, that closes."""
        # Those of a root that closes have been taken out.
        root_ledger, root_segment = (node.root.ledger or ledger), (node.root.segment or segment)
        with self.explaining():
            if root_ledger.laps is None and self.lap_start(node.root.info.id) is not None:
                root_ledger.laps = Laps()
            if root_ledger.laps is not None:
                root_segment.facts = root_segment.facts or Groups()
                yield from root_segment.facts.add(node.info.id, node.info.tags, ledger)

    def _critical(self, node: Node, ledger: Ledger) -> Critical:
        """Return what says how long groups of a segment that closes are on the critical path of its root."""
        laps = (node.root.ledger or ledger).laps
        if laps is None:
            return lambda names: None

        def critical(names: Collection[str]) -> OnPath | None:
            with self.explaining():
                lap_start = self.lap_start(node.root.info.id)
                is_known = lap_start is None or lap_start >= ledger.tally.end
                return laps.of_groups(node.info.id, names, is_known=is_known)
            return None

        return critical

    def _explain(self, record: SegmentRecord, segment: Segment, ledger: Ledger) -> None:
        """Find out why the segment of a root took as long as it did."""
        laps, groups = ledger.laps, segment.facts or Groups()
        if laps is None or not laps.start:
            return
        with self.explaining():
            start, end = segment.start, record.end + self._offset
            without = self.threads.without(start, end)
            record.waterfall = laps.waterfall(record.metrics, start, end, record.threads_available, without)
            record.critical = laps.path(start, end)
            record.critical.titles = groups.titles()
            lacked = self.threads.lacked(start, end)
            record.verdict = self.judge(facts_of(record, ledger, groups, segment.cluster, lacked))

    def _keep_group(self, node: Node, name: str, trace_id: int) -> bool:
        """Ensure that a group's first group span is sent; return whether it is, or was."""
        segment, ledger = node.segment, node.ledger
        if node.group_numbers.get(name, 0) == 0:  # it was folded, or nothing was counted for the group yet
            node.group_numbers[name] = 1
            return False
        group = ledger.groups.get(name) if ledger else None
        if group is None or group.number:
            was_sent = not node.unsent_groups or name not in node.unsent_groups
            return was_sent and self._level_of(node) >= Level.GROUPS
        if not segment or not ledger:  # only held; nobody knows when it will be sent
            group.number, node.group_numbers[name] = 1, 2
            return False
        if segment.trace_id != trace_id:
            return False
        if ledger.pin(name, segment.budget):
            group.is_parent = segment.is_parent = True
            return True
        fold(node, ledger, group, node.next_number)
        node.group_numbers[name] = 1
        return False

    def _add_stand_in(self, node: Node, made: WorkerSpan, now: float) -> None:
        segment = node.segment
        parent_id: int | None
        if segment and segment.trace_id == made.trace_id:
            segment.is_parent = True
            parent_id, at = segment.id, segment.start
        elif self._level_of(node) == Level.NOTHING:  # no segment has been sent
            parent_id, at = None, now
        elif node.previous and node.previous[0] == made.trace_id:
            parent_id, at = node.previous[1], node.previous_end
        else:
            parent_id, at = segment_id(node.info.id, node.first_number), max(node.info.enqueued, self.forest.born)
        self._stand_ins.append((node, made, parent_id, at))

    def _send_stand_ins(self) -> Iterator[Record]:
        stand_ins, self._stand_ins = self._stand_ins, []
        for node, made, parent_id, at in stand_ins:
            at -= self._offset
            if node.segment and node.segment.id == parent_id:
                node.segment.enclose(at, at)
            top = node.top
            yield StandInRecord(
                span=node.info,
                top=top.info,
                caller=top.caller,
                trace_id=made.trace_id,
                span_id=made.parent_id,
                parent_id=parent_id,
                name=made.prefix,
                start=at,
                end=at,
                links=(),
                failure=None,
                group=made.group,
            )

    def _cut(self, root: Node, now: float) -> Iterator[Record | None]:
        """Close a tree that has grown too old, and go on in the next segments with what is unfinished."""
        nodes = list(root.open_below())
        unfinished = {
            node: (node.ledger, node.segment) for node in nodes if node.ledger and node.segment and node.load.unfinished
        }
        if root.info.is_default:
            # In one step with the number of its next segment: ``parent_segment`` may be asked between two steps.
            root.trace_number += 1
        for node in reversed(nodes):
            yield from self._close(node, now, stopped="unfinished")
        for node in nodes:
            if node in unfinished:
                closed, before = unfinished[node]
                segment = self.forest.open_segment(node, now, now)
                self.owed.expect(node, before.owed)
                segment.sent_to.update(before.sent_to)
                segment.claimed = {owning: number for owning, number in before.claimed.items() if number > 0}
                ledger = self.forest.ledger(node, now)
                for owning in segment.claimed:
                    self._note_owner(ledger, owning)
                for each in closed.unfinished_groups():
                    group = node.begin_group(ledger, each.name, each.prefix, now)
                    group.dependencies, group.unfinished = each.dependencies, each.tasks
                    ledger.note_unfinished(group)
                    yield None
        yield from self._account(now)

    def _note_owner(self, ledger: Ledger, span_id: str) -> None:
        """Record in a ledger which span counts its tasks, and that span's segment if it can be linked to."""
        at = None
        owning = self.forest.nodes.get(span_id)  # it may be forgotten by now
        if owning and self._level_of(owning) > Level.NOTHING:
            at = (owning.segment.trace_id, owning.segment.id) if owning.segment else owning.previous
        if at or span_id not in ledger.counted_in:
            ledger.counted_in[span_id] = at

    def _wants_pending_span(self, top: Node, age: float) -> bool:
        is_due = top.segment is not None and age >= top.segment.pending_after
        return is_due and top.load.unfinished > 0 and self._level_of(top) > Level.NOTHING

    def _level_of(self, node: Node) -> Level:
        return self.settings.level_of(is_default=node.root.info.is_default)

    def _reserve(self, to: Dependency) -> tuple[int, int] | None:
        """Return the trace and span id of a group that is linked to; it will have a span."""
        node = self.forest.nodes.get(to.span_id)
        return node.reserve_group_span(to.name) if node and self._level_of(node) >= Level.GROUPS else None


class Progress(NamedTuple):
    """A run that goes on: the open segment at the top of a trace.

    Numbers are those since its segment opened; None where it would take too long to count.
    """

    span: SpanInfo
    name: str
    trace_id: int
    start: float
    tasks: int | None
    completed: int | None
    #: Tasks that erred or failed upstream.
    failed: int | None
    unfinished: int
    #: Ids of the clients that submitted.
    clients: tuple[str, ...]


def open_runs(forest: Forest, most: int, clock_offset: float = 0.0, trace_id: int | None = None) -> Iterator[Progress]:
    """Describe the open runs, or those of one trace, the oldest first; ``clock_offset`` is subtracted from times."""
    room = MAX_SEGMENTS
    tops = (top for top in forest.open_tops if top.segment and trace_id in (None, top.segment.trace_id))
    for top in islice(tops, most):
        assert top.segment
        sums = sum_open(top, room)
        room = sums.room
        yield Progress(
            top.info,
            top.title,
            top.segment.trace_id,
            top.segment.start - clock_offset,
            sums.tasks if room else None,
            sums.completed if room else None,
            sums.failed if room else None,
            top.load.unfinished,
            sums.clients,
        )


def trace_of(forest: Forest, span_id: str) -> int | None:
    """Id of the trace that shows a Dask span now, or showed it last; None if the span is not known."""
    node = forest.nodes.get(span_id)
    return node.origin.trace_id(node.root.trace_number) if node else None
