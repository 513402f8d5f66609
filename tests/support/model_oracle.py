"""What must hold of the records, given what the span tree was told."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from dask_otel.identity import segment_id, trace_id
from dask_otel.spantree.ledger import Budget
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.records import GroupRecord, PendingRecord, Record, SegmentRecord, StandInRecord, TaskRecord
from dask_otel.spantree.to_records import Level

from .model_cluster import Cluster
from .model_data import Account, is_inside, numbers

STOPPED = ("unfinished", "interrupted")
Ids = tuple[int, int]


class Oracle:
    """Keeps accounts of what was told, and compares them with the records as they come out."""

    def __init__(self, cluster: Cluster, max_groups: int, budget: Budget, level: Level) -> None:
        self.cluster = cluster
        self.max_groups = max_groups
        self.budget = budget
        self.level = level
        #: Whether the clock never went back, and no worker left.
        self.steady = self.all_stay = True
        #: How often all workers have sent heartbeats since the span tree was last told of a group.
        self.beats = 0
        self.accounts: dict[tuple[str, int], Account] = defaultdict(Account)
        #: Numbers of the next segments, and of the first ones since a span was forgotten.
        self.closed: Counter[str] = Counter()
        self.first: Counter[str] = Counter()
        #: Spans that have been cut.
        self.cut: set[str] = set()
        self.records: dict[Ids, Record] = {}
        self.inside: dict[Ids, list[Record]] = defaultdict(list)
        #: Of closed segments, with all below.
        self.whole: dict[Ids, Account] = {}
        self.told_elsewhere: dict[str, set[str]] = {}
        self.last: dict[str, SegmentRecord] = {}

    def account(self, span_id: str) -> Account:
        """Return the account of the segment that is open, or will be the next."""
        return self.accounts[span_id, self.closed[span_id]]

    def forget(self, span_ids: list[str]) -> None:
        """Nothing that counts is left of spans."""
        for span_id in span_ids:
            account = self.accounts.pop((span_id, self.closed[span_id]), Account())
            self._check_lost(span_id, account)
            self.last.pop(span_id, None)
            self.told_elsewhere.pop(span_id, None)
            self.cut.discard(span_id)

    def begin_again(self, span_ids: list[str]) -> None:
        """Numbers go on with the time at which the spans are made again, if they were ever sent."""
        for span_id in span_ids:
            if self.closed[span_id] and span_id in self.cluster.spans:
                self.closed[span_id] = self.first[span_id] = int(self.cluster.spans[span_id].enqueued * 1000)

    def take(self, record: Record | None) -> None:
        """Check a record."""
        if record is None:
            return
        ids = record.trace_id, record.span_id
        assert ids not in self.records, "an id twice"
        assert record.start <= record.end
        assert not self.steady or record.end <= self.cluster.now - self.cluster.offset, "in the future"
        self.records[ids] = record
        above = record.trace_id, record.parent_id
        if isinstance(record, SegmentRecord):
            above = self._check_place(record)
        for child in self.inside[ids]:
            assert record.start <= child.start, ("begins before its parent", child, record)
            assert child.end <= record.end, ("ends after its parent", child, record)
        if above:
            self.inside[above].append(record)
        if isinstance(record, SegmentRecord):
            self._take_segment(record)

    def _take_segment(self, record: SegmentRecord) -> None:
        span_id, ids = record.span.id, (record.trace_id, record.span_id)
        assert record.number == self.closed[span_id]
        before = self.last.get(span_id)
        if before:
            assert not self.steady or before.end <= record.start, "segments overlap"
            assert (record.previous_id == before.span_id) == (
                record.parent_id is None and before.trace_id == record.trace_id
            ) or any(link.span_id == before.span_id for link in record.links)
        assert record.end > record.start or record.span_id not in self.cluster.lasting, "no duration"
        own = self.accounts.pop((span_id, record.number), Account())
        # A piece of a segment that was cut may have nothing to tell yet of what is still to come elsewhere.
        told = self.told_elsewhere.setdefault(span_id, set())
        told |= (new := {owning for _, owning in own.claims})
        assert new <= set(record.counted_in) <= told
        whole = self.whole[ids] = own
        children = [child for child in self.inside[ids] if isinstance(child, SegmentRecord)]
        groups = [child for child in self.inside[ids] if isinstance(child, GroupRecord)]
        for child in children:
            whole.add(self.whole.pop((child.trace_id, child.span_id)))
        self._check_numbers(record, whole, groups, children)
        self._check_how_it_ended(record, whole)
        self._check_times(record)
        if self.level >= Level.GROUPS:
            self._check_what_is_left_out(record, own, groups, children)
        else:
            self._check_parents_only(groups)
        self.closed[span_id] += 1
        self.last[span_id] = record

    def _check_place(self, record: SegmentRecord) -> Ids | None:
        """Check in which trace a segment is, and below what; return the ids of the segment of the Dask span above."""
        trace, is_called, parent_id = *self._trace_of(record.span.id), record.span.parent_id
        above = segment_id(parent_id, self.closed[parent_id]) if parent_id else None
        is_top = parent_id is None or self._trace_of(parent_id)[0] != trace
        assert record.is_top == is_top
        if isinstance(trace, int) or not self.cluster.spans[trace].is_default:  # that one may roll over
            assert record.trace_id == (trace if isinstance(trace, int) else trace_id(trace))
        within = [link for link in record.links if link.kind == "within"]
        if record.parent_id is None:
            assert all(link.trace_id != record.trace_id for link in record.links), "links into its own trace"
        if not is_top:
            assert record.parent_id == above
            assert not within
            return record.trace_id, above
        assert record.parent_id == (8 if is_called else None)
        assert [link.span_id for link in within] == ([above] if above else [])
        return within[0][:2] if above else None

    def _trace_of(self, span_id: str) -> tuple[int | str, bool]:
        """The trace of a Dask span, or the root whose trace it is, and whether its own id names a caller."""
        called = span_id.startswith("00-")
        if called:
            return int(span_id.split("-")[1], 16), True
        parent_id = self.cluster.spans[span_id].parent_id
        return (self._trace_of(parent_id)[0] if parent_id else span_id), False

    def _check_numbers(
        self, record: SegmentRecord, told: Account, groups: list[GroupRecord], children: list[SegmentRecord]
    ) -> None:
        parts: Counter[str] = Counter()
        for part in (*groups, *children):
            parts.update(numbers(part.tally))
        _same(numbers(record.tally), told.numbers)
        if self.level >= Level.GROUPS:
            _same(numbers(record.tally), parts)
        _same(Counter(record.metrics), told.metrics)
        _same(Counter(record.graph_failures), told.graphs)
        # Less, because nothing is kept of what is said of spans in which nothing happens
        assert record.graph_seconds <= told.graph_seconds + 1e-9
        shared = Counter(group.name for group in groups)
        for group in groups:
            if group.metrics is not None:
                assert shared[group.name] == 1, "prefix is shared"

    def _check_how_it_ended(self, record: SegmentRecord, told: Account) -> None:
        here = record.span.id
        elsewhere: Counter[str] = Counter()
        for (_, owning), counts in told.claims.items():
            if not is_inside(owning, here):
                elsewhere.update(counts)
        _same(numbers(record.elsewhere) if record.elsewhere else Counter(), elsewhere)
        counts = Counter(told.numbers)
        counts.update(elsewhere)
        failure = record.failure
        failed = counts["erred"], counts["upstream_failed"], told.graphs["error"]
        assert (failure[2:5] if failure else (0, 0, 0)) == failed, ("failure", record.failure, failed)
        if failure and not any(failed):  # the top of a trace that did not end well
            assert record.is_top
            assert failure.type == record.result
            assert failure.unfinished > 0
        elif record.is_top:
            assert any(failed) or record.result not in ("lost", "interrupted")
        if failure:
            assert failure.message in told.messages | {""}, "another one's error"
        unfinished = any(n for span_id, n in self.cluster.unfinished.items() if is_inside(span_id, here))
        assert (record.result in STOPPED) == unfinished
        if not unfinished:
            assert record.result == _result(counts, any(failed), told.graphs["cancelled"])

    def _check_times(self, record: SegmentRecord) -> None:
        duration = record.end - record.start
        assert all(seconds >= 0 for seconds in record.wall.values())
        assert math.isclose(sum(record.wall.values()), duration, abs_tol=1e-6), ("wall", record.wall, duration)
        assert 0 <= record.threads_available <= 6 * duration + 1e-6
        assert record.threads_others >= 0
        if self.all_stay and self.steady and self.beats > 1:
            assert record.metrics_complete

    def _check_what_is_left_out(
        self, record: SegmentRecord, told: Account, groups: list[GroupRecord], children: list[SegmentRecord]
    ) -> None:
        assert sum(group.folded > 0 for group in groups) <= 1
        left_out = told.groups - {group.group for group in groups}
        if record.result == "unfinished":
            self.cut.add(record.span.id)
        # After a cut, also groups of which nothing was told since.
        of_span = {group.name for group in self.cluster.groups.values() if group.span_id == record.span.id}
        most = of_span - {group.group for group in groups} if record.span.id in self.cut else left_out
        assert len(left_out) <= sum(group.folded for group in groups) <= len(most), "number of groups"
        folded = sum(group.folded for group in groups) + sum(child.truncated_groups for child in children)
        assert record.truncated_groups == folded
        below = sum(child.truncated_tasks for child in children)
        assert record.truncated_tasks == sum(group.truncated_tasks for group in groups) + below
        for group in groups:
            tasks = self.inside[group.trace_id, group.span_id]  # come after it, but before the segment
            shown = sum(isinstance(task, TaskRecord) and task.reason == "erred" for task in tasks)
            assert group.truncated_tasks == group.tally.outcomes.get("erred", 0) - shown
            assert all(group.start <= task.start <= task.end <= group.end for task in tasks)

    def _check_parents_only(self, groups: list[GroupRecord]) -> None:
        parents = {parent_id for _, parent_id in self.cluster.parents}
        assert all(group.span_id in parents for group in groups), "a group that nothing is below"

    def check_end(self, span_tree: SpanTree) -> None:
        """Check what can be told only when all is there."""
        for ids in self.inside:
            assert not self.inside[ids] or ids in self.records, ("parent missing", self.inside[ids])
        for ids in self.cluster.parents:
            assert ids in self.records, ("parent of a worker's span missing", ids)
        for record in self.records.values():
            for link in record.links:
                assert link[:2] in self.records, ("link to nowhere", record, link)
        for (span_id, _), account in self.accounts.items():
            self._check_lost(span_id, account)
        self._check_budgets()
        forest = span_tree.forest
        assert not {**forest.open, **forest.open_tops, **forest.touched, **forest.at_rest}
        assert not any(node.previous and node.ledger.has_numbers for node in forest.held)

    def _check_lost(self, span_id: str, account: Account) -> None:
        # What never had a segment was done before the span tree was there, or never.
        is_shown = self.closed[span_id] > self.first[span_id]
        assert not (is_shown and (+account.numbers or account.metrics)), ("lost", span_id, account)

    def _check_budgets(self) -> None:
        of_root: dict[Ids, Counter[str]] = defaultdict(Counter)
        for record in self.records.values():
            if isinstance(record, PendingRecord | StandInRecord):
                continue
            root = record
            while not root.is_top:
                root = self.records[root.trace_id, root.parent_id]
            spent = of_root[root.trace_id, root.span_id]
            if isinstance(record, TaskRecord):
                spent[record.reason] += 1
            elif isinstance(record, GroupRecord) and not record.folded:
                spent["groups"] += 1
                spent[f"groups of {record.parent_id}"] += 1
        for spent in of_root.values():
            assert spent.pop("groups", 0) <= self.budget.groups
            assert spent.pop("erred", 0) <= self.budget.erred
            assert spent.pop("slowest", 0) + spent.pop("outlier", 0) <= self.budget.slowest
            assert all(n <= self.max_groups for n in spent.values()), spent


def _same(got: Counter, want: Counter) -> None:
    for key in {*got, *want}:
        assert math.isclose(got[key], want[key], rel_tol=1e-9, abs_tol=1e-3), (key, got[key], want[key])


def _result(counts: Counter[str], failed: bool, graphs_cancelled: int) -> str:
    if failed:
        return "error"
    if counts["for_good"]:
        return "lost"
    given_up = counts["cancelled"] or (counts["abandoned"] and not counts["completed"])
    return "cancelled" if given_up or graphs_cancelled else "success"
