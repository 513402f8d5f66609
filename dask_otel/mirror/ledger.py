"""The ledger: what has been counted for a Dask span since its last segment closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from typing import TypeVar

from .groups import Budget, GroupLedger
from .model import Change, Claim, Graph, Metrics
from .tally import Tally, sum_into

__all__ = ["Ledger"]

Key = TypeVar("Key")


class Ledger:
    """Counts of one Dask span: its own groups, and its child segments that have closed."""

    def __init__(self, since: float) -> None:
        #: When the first entry was made.
        self.since = since
        #: Own groups and closed child segments together.
        self.tally = Tally()
        self.groups: dict[str, GroupLedger] = {}
        #: The groups that are folded into one, and their names.
        self.others: GroupLedger | None = None
        self.others_names: set[str] = set()
        self.pinned = 0
        #: Number of own groups by prefix: fine metrics can be told apart by prefix only.
        self.prefixes: dict[str, int] = {}
        #: Fine metrics of this Dask span, and those of closed child segments.
        self.metrics: Metrics = {}
        self.child_metrics: Metrics = {}
        #: The latter are still those of the first child, whose record must not change.
        self._borrowed = False
        #: False once metrics are known to be lost.
        self.metrics_complete = True
        #: Of the tally, tasks that only spans outside this subtree asked for, by their ids or ``NOBODY``.
        self.foreign: dict[frozenset[str], Tally] = {}
        #: Tasks that this subtree asked for and one outside counts, by that one's id.
        self.elsewhere: dict[str, Tally] = {}
        #: By id of a span that counts tasks this one asked for, its segment if it has one.
        self.counted_in: dict[str, tuple[int, int] | None] = {}
        self.graph_seconds = 0.0
        self.graph_failures: dict[str, int] = {}
        self.truncated_groups = 0
        self.truncated_tasks = 0
        # Sets in order of insertion
        self.clients: dict[str, None] = {}
        self.collections: dict[str, None] = {}
        self.includes: dict[str, None] = {}
        self.annotations: dict[str, dict[str, None]] = {}
        self.code: tuple[str, int] | None = None

    def group(self, name: str, prefix: str, number: int, since: float) -> GroupLedger:
        """Open the ledger of one more group."""
        group = self.groups[name] = GroupLedger(name, prefix, number, since)
        self.prefixes[prefix] = self.prefixes.get(prefix, 0) + 1
        return group

    def all_groups(self) -> Iterator[GroupLedger]:
        """Yield all groups, the folded ones last and as one."""
        yield from self.groups.values()
        if self.others:
            yield self.others

    def pin(self, name: str, budget: Budget) -> bool:
        """Promise that a group will have a span, if the budget allows: another span is to link to it."""
        group = self.groups[name]
        if not group.pinned and budget.groups_beside(self.pinned):
            group.pinned = True
            self.pinned += 1
            budget.groups -= 1
        return group.pinned

    def add_change(self, change: Change, group: GroupLedger) -> None:
        """Count what happened to a group."""
        group.add(change)
        self.tally.add(change)
        for askers, tally in change.foreign.items():
            _tally(self.foreign, askers).add(tally)

    def add_metrics(self, metrics: Metrics) -> float:
        """Add fine metrics of this Dask span; return the busy thread-seconds among them."""
        # Users' own activities can be anything, and one NaN would spoil every sum that it enters.
        finite = {key: value for key, value in metrics.items() if isfinite(value)}
        if len(finite) < len(metrics):
            self.metrics_complete = False
        sum_into(self.metrics, finite)
        return sum(value for key, value in finite.items() if key[0] == "execute" and key[-1] == "seconds")

    def add_claim(self, claim: Claim, *, is_inside: bool) -> None:
        """Count what happened to tasks that this span asked for and another one counts.

        If the other one is inside this one, they are counted here, too; only their error is not known here.
        """
        if is_inside:
            self.tally.error = self.tally.error or claim.error
        else:
            _tally(self.elsewhere, claim.holder).add(claim)

    def add_graph(self, graph: Graph) -> None:
        """Add what a submission said."""
        self.graph_seconds += graph.seconds
        self.clients.update(dict.fromkeys(graph.clients))
        self.collections.update(dict.fromkeys(graph.collections))
        for name, values in graph.annotations.items():
            self.annotations.setdefault(name, {}).update(dict.fromkeys(values))
        self.code = self.code or graph.code
        if graph.failure:
            sum_into(self.graph_failures, {graph.failure: 1})
            self.tally.last_event = max(self.tally.last_event, graph.until)

    def add_child(self, child: Ledger, is_inside: Callable[[str], bool]) -> None:
        """Add all of a child segment that has closed; ``is_inside`` tells whether a span is in this one's subtree."""
        self.tally.add(child.tally)
        self._add_child_metrics(child.all_metrics())
        self.metrics_complete &= child.metrics_complete
        self.graph_seconds += child.graph_seconds
        self.truncated_groups += child.truncated_groups
        self.truncated_tasks += child.truncated_tasks
        sum_into(self.graph_failures, child.graph_failures)
        for askers, tally in child.foreign.items():
            if not any(map(is_inside, askers)):
                _tally(self.foreign, askers).add(tally)
        for holder, tally in child.elsewhere.items():
            if is_inside(holder):  # counted here after all; but the holder has not told of this error
                self.tally.error = self.tally.error or tally.error
            else:
                _tally(self.elsewhere, holder).add(tally)
        self.clients.update(child.clients)
        self.collections.update(child.collections)
        for name, values in child.annotations.items():
            self.annotations.setdefault(name, {}).update(values)
        self.code = self.code or child.code

    def _add_child_metrics(self, metrics: Metrics) -> None:
        # A span with many groups has thousands, and often is its parent's only one.
        if not self.child_metrics:
            self.child_metrics, self._borrowed = metrics, True
            return
        if self._borrowed:
            self.child_metrics, self._borrowed = dict(self.child_metrics), False
        sum_into(self.child_metrics, metrics)

    def all_elsewhere(self) -> Tally | None:
        """Tasks that this subtree asked for and another one counts."""
        if not self.elsewhere:
            return None
        total = Tally()
        for tally in self.elsewhere.values():
            total.add(tally)
        return total

    def all_metrics(self) -> Metrics:
        """Fine metrics of the whole subtree."""
        if not self.child_metrics:
            return self.metrics
        if not self.metrics:
            return self.child_metrics
        total = dict(self.metrics)
        sum_into(total, self.child_metrics)
        return total

    @property
    def has_numbers(self) -> bool:
        """Whether anything was counted that a segment must account for."""
        return bool(self.metrics or self.child_metrics or self.groups or self.others)

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self.since += seconds
        tallies: Iterable[Tally] = (self.tally, *self.elsewhere.values())
        for tally in tallies:
            tally.shift(seconds)
        for group in self.all_groups():
            group.shift(seconds)


def _tally(tallies: dict[Key, Tally], key: Key) -> Tally:
    tally = tallies.get(key)
    if tally is None:
        tally = tallies[key] = Tally()
    return tally
