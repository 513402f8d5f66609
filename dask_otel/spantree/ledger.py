"""Ledgers: what has been counted for a Dask span, and for each of its groups, since its last segment closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple, TypeVar

from ..diagnosis.parts import OVERHEAD_ACTIVITIES
from ..diagnosis.waterfall import Laps
from ..identity import Caller
from ..schema import (
    MAX_CALLERS,
    MAX_ERRED_SPANS,
    MAX_GROUP_SPANS,
    MAX_PHASES,
    MAX_SLOWEST_SPANS,
    MAX_SUBMITTERS,
    MAX_TYPES,
)
from .counts import FirstError, Tally, quantile, sum_into
from .events import Change, Claim, Dependency, Graph, Metrics, Phase, PickedRun, Picks, TaskRun

__all__ = ["OUTLIER_SECONDS", "UNFINISHED", "Budget", "GroupLedger", "Ledger", "UnfinishedGroup", "unfinished_group"]

#: A run stands out if it took this many times the median of its group, this many seconds, and this share of the time
#: from the group's first run to its last: a shorter one hardly delays what waits for the group.
OUTLIER_MEDIANS, OUTLIER_SECONDS, OUTLIER_SHARE = 2.0, 0.1, 0.01
#: More than any sum of µs.
_FAILED, UNFINISHED = 1e20, 1e30


@dataclass(slots=True)
class Budget:
    """How many spans of groups and tasks the trace of one root segment may still have.

    Together they stay below the 5 MB at which Tempo drops a trace.
    """

    #: Groups of one segment.
    a_segment: int
    groups: int = MAX_GROUP_SPANS
    erred: int = MAX_ERRED_SPANS
    slowest: int = MAX_SLOWEST_SPANS

    def groups_beside(self, pinned: int) -> int:
        """How many groups a segment may have beside those that are pinned, and have been charged for."""
        return max(0, min(self.a_segment - pinned, self.groups))


class UnfinishedGroup(NamedTuple):
    """A group that goes on in the next segment if this one is cut."""

    name: str
    prefix: str
    #: Unfinished tasks.
    tasks: int
    dependencies: tuple[Dependency, ...]


class GroupLedger:
    """What has been counted for one group. It becomes a group span of the next segment to close, or is folded."""

    __slots__ = (
        "buckets",
        "dependencies",
        "erred_with_span",
        "folded",
        "is_parent",
        "name",
        "number",
        "picks",
        "pinned",
        "prefix",
        "retried_error",
        "since",
        "tally",
        "trace_before",
        "types",
        "unfinished",
    )

    def __init__(self, name: str, prefix: str, number: int, since: float) -> None:
        self.name = name
        self.prefix = prefix
        #: Which group span of this group it will be: 0, 1, 2 …
        self.number = number
        self.since = since
        #: Number of the trace of its group span before; only for default roots that have rolled over.
        self.trace_before: int | None = None
        self.tally = Tally()
        self.buckets: dict[int, int] = {}
        self.types: dict[str, int] = {}
        self.dependencies: tuple[Dependency, ...] = ()
        self.picks: Picks | None = None
        self.retried_error: FirstError | None = None
        self.unfinished = 0
        #: Number of failed runs whose spans workers have made.
        self.erred_with_span = 0
        #: A span that has left links to it, or spans of workers are below it.
        self.pinned = False
        self.is_parent = False
        #: For how many folded groups it stands.
        self.folded = 0

    @property
    def key(self) -> str | None:
        """Its name; None for the folded groups, since a group may have any name."""
        return None if self.folded else self.name

    @property
    def worth(self) -> float:
        """How much the group should be shown rather than folded: if it failed, else the longer it took."""
        outcomes = self.tally.outcomes
        failed = outcomes and (outcomes.get("erred") or outcomes.get("upstream_failed"))
        return sum(self.tally.durations.values()) + (_FAILED if failed else 0.0)

    def add(self, change: Change) -> None:
        """Add what a sweep saw of this group, or of one that is folded into it."""
        self.tally.add(change)
        self.retried_error = self.retried_error or change.retried_error
        self.erred_with_span += change.erred_with_span
        if change.buckets or change.types or change.picks:
            self._add_details(change.buckets, change.types, change.picks)
        if not self.folded:
            self.dependencies = change.dependencies

    def outliers(self) -> list[TaskRun | PickedRun]:
        """Return the successful runs that stand out: slow for the group, and slow enough to matter to whoever waits."""
        if not self.picks:
            return []
        if self.folded:
            return self.picks.outliers
        if not self.buckets:
            return []
        lasted = self.tally.run_stop - self.tally.run_start
        at_least = max(OUTLIER_MEDIANS * quantile(self.buckets, 0.5), OUTLIER_SECONDS, OUTLIER_SHARE * lasted)
        return [run for run in self.picks.slowest if run.seconds >= at_least]

    def fold(self, group: GroupLedger) -> None:
        """Take in a whole group."""
        self.folded += 1
        self.since = min(self.since, group.since)
        self.tally.add(group.tally)
        self.retried_error = self.retried_error or group.retried_error
        self.erred_with_span += group.erred_with_span
        self._add_details(group.buckets, group.types, group.picks)
        if self.picks:
            self.picks.add_outliers(group.outliers())

    def _add_details(self, buckets: dict[int, int], types: dict[str, int], picks: Picks | None) -> None:
        sum_into(self.buckets, buckets)
        sum_into(self.types, types)
        if self.folded and len(self.types) > MAX_TYPES:
            self.types = dict(sorted(self.types.items(), key=lambda item: -item[1])[:MAX_TYPES])
        if picks:
            self.picks = self.picks or Picks()
            self.picks.add(picks)


def unfinished_group(of: GroupLedger | Change) -> UnfinishedGroup:
    """Say what of a group goes on in the next segment; it may be nothing."""
    return UnfinishedGroup(of.name, of.prefix, of.unfinished, of.dependencies)


Key = TypeVar("Key")


class Ledger:
    """Counts of one Dask span: its own groups, and its child segments that have closed."""

    def __init__(self, since: float) -> None:
        #: When the first entry was made.
        self.since = since
        #: Own groups and closed child segments together.
        self.tally = Tally()
        self.groups: dict[str, GroupLedger] = {}
        #: Those of them that may be folded, finished and without a span that links to them, and what each is worth.
        self.foldable: dict[GroupLedger, float] = {}
        #: The groups that are folded into one, and their names. A folded group stays folded until the segment closes:
        #: each group's numbers are in one place.
        self.others: GroupLedger | None = None
        self.others_names: set[str] = set()
        #: Of the folded groups, the unfinished ones.
        self.others_unfinished: dict[str, UnfinishedGroup] = {}
        #: Groups that are worth no more would be folded soon.
        self.least_worth = -1.0
        self.pinned = 0
        #: Number of own groups by prefix: Dask keeps fine metrics by prefix, not by group.
        self.prefixes: dict[str, int] = {}
        #: Fine metrics of this Dask span and of closed child segments, summed over prefixes.
        self.metrics: Metrics = {}
        #: Those of this Dask span by prefix: as many as there are prefixes and activities.
        self.metrics_by_prefix: dict[object, Metrics] = {}
        #: False once metrics are known to be lost.
        self.metrics_complete = True
        #: Tasks that this subtree requested and a span outside counts, by that span's id.
        self.elsewhere: dict[str, Tally] = {}
        #: By id of a span that counts tasks which this one requested, its segment if it has one.
        self.counted_in: dict[str, tuple[int, int] | None] = {}
        #: Seconds that the scheduler took for graphs; number of these, and of those of closed child segments.
        self.graph_seconds = 0.0
        self.graphs = 0
        self.graph_failures: dict[str, int] = {}
        #: Those that failed, then the longest.
        self.phases: list[Phase] = []
        #: Phases of this segment and of closed child segments that have no span.
        self.truncated_phases = 0
        #: Groups and failed tasks of closed child segments that have no span.
        self.truncated_groups = 0
        self.truncated_tasks = 0
        # Sets in order of insertion
        self.clients: dict[str, None] = {}
        #: By ``service``, ``user``, ``host``.
        self.submitters: dict[str, dict[str, None]] = {}
        self.callers: dict[Caller, None] = {}
        self.collections: dict[str, None] = {}
        self.annotations: dict[str, dict[str, None]] = {}
        self.code: tuple[str, int] | None = None
        #: Of a root, once it has one.
        self.laps: Laps | None = None

    def group(self, name: str, prefix: str, number: int, since: float) -> GroupLedger:
        """Open the ledger of one more group."""
        group = self.groups[name] = GroupLedger(name, prefix, number, since)
        self.prefixes[prefix] = self.prefixes.get(prefix, 0) + 1
        return group

    def find(self, name: str) -> GroupLedger | None:
        """Return where a group is counted: on its own, or among the folded ones; None if it is not."""
        return self.others if name in self.others_names else self.groups.get(name)

    def note_unfinished(self, of: GroupLedger | Change) -> None:
        """Note how many tasks of a group are unfinished, if the group is counted here."""
        group = self.groups.get(of.name)
        if group:
            group.unfinished = of.unfinished
            if of.unfinished or group.pinned:
                self.foldable.pop(group, None)
            else:
                self.foldable[group] = group.worth
        elif self.others and of.name in self.others_names:
            if of.unfinished:
                self.others_unfinished[of.name] = unfinished_group(of)
            else:
                self.others_unfinished.pop(of.name, None)
            self.others.unfinished = len(self.others_unfinished)

    def unfinished_groups(self) -> Iterator[UnfinishedGroup]:
        """Yield the groups that have unfinished tasks."""
        for group in self.groups.values():
            if group.unfinished:
                yield unfinished_group(group)
        yield from self.others_unfinished.values()

    def fold(self, group: GroupLedger, number: int) -> None:
        """Count a group among the folded ones from now on; ``number`` is that of the segment."""
        if self.others is None:
            self.others = GroupLedger("", "other groups", number, group.since)
        del self.groups[group.name]
        self.foldable.pop(group, None)
        self.others.fold(group)
        self.others_names.add(group.name)
        self.note_unfinished(group)

    def begin_among_others(self, change: Change) -> GroupLedger | None:
        """Count a new group among the folded ones at once, if it would be folded soon; return these."""
        if not self.others or change.unfinished or change.outcomes or sum(change.durations.values()) > self.least_worth:
            return None
        self.prefixes[change.prefix] = self.prefixes.get(change.prefix, 0) + 1
        self.others_names.add(change.name)
        self.others.folded += 1
        self.others.since = min(self.others.since, change.since)
        return self.others

    def all_groups(self) -> Iterator[GroupLedger]:
        """Yield all groups, the folded ones last and as one."""
        yield from self.groups.values()
        if self.others:
            yield self.others

    def pin(self, name: str, budget: Budget) -> bool:
        """Reserve a span for a group, if the budget allows: another span links to it, or is below it."""
        group = self.groups[name]
        if not group.pinned and budget.groups_beside(self.pinned):
            group.pinned = True
            self.foldable.pop(group, None)
            self.pinned += 1
            budget.groups -= 1
        return group.pinned

    def add_change(self, change: Change, group: GroupLedger) -> None:
        """Count what happened to a group, or to one of those that are folded into it."""
        group.add(change)
        self.note_unfinished(change)
        self.tally.add(change)

    def add_metrics(self, metrics: Metrics) -> float:
        """Add fine metrics of this Dask span; return the busy thread-seconds among them."""
        # Users' own activities can be anything, and one NaN would spoil every sum that it enters.
        busy = 0.0
        for key, value in metrics.items():
            if not isfinite(value):
                self.metrics_complete = False
                continue
            total = key
            if key[0] == "execute":
                total = ("execute", None, *key[2:])
                of_prefix = self.metrics_by_prefix.setdefault(key[1], {})
                of_prefix[key] = of_prefix.get(key, 0) + value
                if key[-1] == "seconds" and key[2] not in OVERHEAD_ACTIVITIES:
                    busy += value
            self.metrics[total] = self.metrics.get(total, 0) + value
        return busy

    def add_claim(self, claim: Claim) -> None:
        """Count what happened to tasks that this span requested and one outside this subtree counts."""
        _tally(self.elsewhere, claim.owning).add(claim)

    def add_graph(self, graph: Graph) -> None:
        """Add what a submission contained."""
        self.graph_seconds += graph.seconds
        self.graphs += graph.seconds > 0
        self.clients.update(dict.fromkeys(graph.clients))
        self.collections.update(dict.fromkeys(graph.collections))
        for name, values in graph.annotations.items():
            self.annotations.setdefault(name, {}).update(dict.fromkeys(values))
        self.code = self.code or graph.code
        for name, value in graph.submitter.items():
            self._add_submitters(name, [value])
        if graph.caller:
            self._add_callers([graph.caller])
        if graph.phase:
            self._add_phase(graph.phase)
        if graph.failure:
            sum_into(self.graph_failures, {graph.failure: 1})
            self.tally.last_event = max(self.tally.last_event, graph.until)

    def _add_submitters(self, name: str, values: Iterable[str]) -> None:
        _add_some(self.submitters.setdefault(name, {}), values, MAX_SUBMITTERS)

    def _add_callers(self, callers: Iterable[Caller]) -> None:
        _add_some(self.callers, callers, MAX_CALLERS)

    def _add_phase(self, phase: Phase) -> None:
        self.phases.append(phase)
        self.tally.last_event = max(self.tally.last_event, phase.end)
        if len(self.phases) > MAX_PHASES:
            self.phases.remove(min(self.phases, key=lambda each: (each.failed, each.end - each.start)))
            self.truncated_phases += 1

    def add_child(self, child: Ledger, is_inside: Callable[[str], bool]) -> None:
        """Add all of a child segment that has closed; ``is_inside``: whether a span is in this one's subtree."""
        self.tally.add(child.tally)
        sum_into(self.metrics, child.metrics)
        self.metrics_complete &= child.metrics_complete
        self.graph_seconds += child.graph_seconds
        self.graphs += child.graphs
        self.truncated_groups += child.left_out_groups
        self.truncated_tasks += child.truncated_tasks
        self.truncated_phases += child.truncated_phases
        sum_into(self.graph_failures, child.graph_failures)
        for owning, tally in child.elsewhere.items():
            if not is_inside(owning):  # else it is counted here
                _tally(self.elsewhere, owning).add(tally)
        self.clients.update(child.clients)
        for name, submitters in child.submitters.items():
            self._add_submitters(name, submitters)
        self._add_callers(child.callers)
        self.collections.update(child.collections)
        for name, values in child.annotations.items():
            self.annotations.setdefault(name, {}).update(values)
        self.code = self.code or child.code

    def all_elsewhere(self) -> Tally | None:
        """Tasks that this subtree requested and another one counts."""
        if not self.elsewhere:
            return None
        total = Tally()
        for tally in self.elsewhere.values():
            total.add(tally)
        return total

    @property
    def left_out_groups(self) -> int:
        """Number of groups, of closed child segments too, that have no span of their own."""
        return self.truncated_groups + len(self.others_names)

    @property
    def has_numbers(self) -> bool:
        """Whether anything was counted that a segment must account for."""
        return bool(self.metrics or self.groups or self.others)


def _add_some(known: dict[Key, None], more: Iterable[Key], most: int) -> None:
    """Add to a set in order of insertion while it has fewer than ``most``."""
    for key in more:
        if len(known) < most:
            known[key] = None


def _tally(tallies: dict[Key, Tally], key: Key) -> Tally:
    tally = tallies.get(key)
    if tally is None:
        tally = tallies[key] = Tally()
    return tally
