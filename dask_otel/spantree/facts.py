"""What a verdict of a root may rest on, collected from the segments of its tree as they close."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nlargest
from typing import TypeVar

from ..diagnosis.evidence import ClusterEvidence, Failures, GraphFacts, GroupFacts, RunFacts
from ..diagnosis.parts import GroupKey, Step
from .counts import Tally, quantile
from .events import Metrics
from .ledger import GroupLedger, Ledger
from .records import SegmentRecord

__all__ = ["Groups", "facts_of"]

_Number = TypeVar("_Number", int, float)

#: Groups that are kept, those with the most seconds of compute; twice as many while they are collected.
MAX_GROUPS = 300
#: Groups that are added in one step.
AT_ONCE = 20


class Groups:
    """The groups of a root's tree whose segments have closed."""

    def __init__(self) -> None:
        self._facts: dict[GroupKey, GroupFacts] = {}

    def add(self, span_id: str, tags: tuple[str, ...], ledger: Ledger) -> Iterator[None]:
        """Add the groups of a segment that closes. Lazy: each step is little work."""
        for number, group in enumerate(ledger.groups.values(), 1):
            key = GroupKey(span_id, group.name)
            alone = ledger.prefixes[group.prefix] == 1
            facts = _group(key, Step(tags, group.prefix), group, ledger.metrics_by_prefix if alone else {})
            before = self._facts.get(key)
            self._facts[key] = _joined(before, facts) if before else facts
            if not number % AT_ONCE:
                yield
        if len(self._facts) > 2 * MAX_GROUPS:
            self._facts = {each.key: each for each in self.most()}

    def titles(self) -> dict[GroupKey, Step]:
        """Return what people call the groups."""
        return {key: each.title for key, each in self._facts.items()}

    def most(self) -> list[GroupFacts]:
        """Return the groups with the most seconds of compute."""
        return nlargest(MAX_GROUPS, self._facts.values(), key=lambda each: each.compute)


def _group(key: GroupKey, title: Step, group: GroupLedger, metrics: dict[object, Metrics]) -> GroupFacts:
    tally = group.tally
    facts = GroupFacts(
        key,
        title,
        tasks=tally.tasks,
        completed=tally.completed,
        compute=tally.durations.get("compute", 0) / 1e6,
        output=tally.nbytes,
        recomputed=tally.outcomes.get("recomputed", 0),
        lost=tally.outcomes.get("lost", 0),
    )
    if group.buckets:
        facts.p50, facts.longest = quantile(group.buckets, 0.5), quantile(group.buckets, 1.0)
    if group.picks and group.picks.slowest:
        slowest = group.picks.slowest
        facts.longest = max(run.seconds for run in slowest)
        facts.largest_output = max((run.nbytes for run in slowest if run.nbytes is not None), default=None)
    own = metrics.get(group.prefix)
    if own:
        facts.cpu = own.get(("execute", group.prefix, "thread-cpu", "seconds"))
        facts.noncpu = own.get(("execute", group.prefix, "thread-noncpu", "seconds"))
    return facts


def _joined(one: GroupFacts, other: GroupFacts) -> GroupFacts:
    """Join what two segments say of one group; middle durations are those of the segment with more runs."""
    larger = one if one.completed >= other.completed else other
    return GroupFacts(
        one.key,
        one.title,
        tasks=one.tasks + other.tasks,
        completed=one.completed + other.completed,
        compute=one.compute + other.compute,
        p50=larger.p50,
        longest=_most(one.longest, other.longest),
        output=_sum(one.output, other.output),
        largest_output=_most(one.largest_output, other.largest_output),
        cpu=_sum(one.cpu, other.cpu),
        noncpu=_sum(one.noncpu, other.noncpu),
        recomputed=one.recomputed + other.recomputed,
        lost=one.lost + other.lost,
    )


def _most(one: _Number | None, other: _Number | None) -> _Number | None:
    return max(one, other) if one is not None and other is not None else one if other is None else other


def _sum(one: _Number | None, other: _Number | None) -> _Number | None:
    """Sum if both are known."""
    return one + other if one is not None and other is not None else None


def facts_of(
    record: SegmentRecord, ledger: Ledger, groups: Groups, cluster: ClusterEvidence, lacked: float
) -> RunFacts:
    """Return the facts of a root's segment that closes, which has its waterfall."""
    assert record.waterfall
    most = groups.most()
    for group in most:
        group.critical = record.critical.groups.get(group.key) if record.critical else None
    return RunFacts(
        record.waterfall,
        record.critical,
        most,
        # Those of runs that go on come when they end.
        record.metrics_complete and record.result not in ("unfinished", "interrupted"),
        _failures(record.tally),
        _graphs(ledger),
        cluster,
        lacked,
    )


def _failures(tally: Tally) -> Failures:
    counts = tally.outcomes
    return Failures(counts.get("erred", 0), counts.get("upstream_failed", 0), counts.get("retried", 0))


def _graphs(ledger: Ledger) -> GraphFacts:
    largest = max(ledger.phases, key=lambda phase: phase.tasks or 0, default=None)
    return GraphFacts(
        ledger.graphs,
        largest.tasks if largest else None,
        max((phase.size for phase in ledger.phases if phase.size is not None), default=None),
    )
