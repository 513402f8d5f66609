"""The ledger: what has been counted for a Dask span since its last segment closed."""

from __future__ import annotations

from math import isfinite

from .model import Change, Dependency, Graph, Metrics, Tally

__all__ = ["GroupLedger", "Ledger"]


class GroupLedger:
    """What has been counted for one group. It always becomes a group span of the next segment to close."""

    __slots__ = ("buckets", "dependencies", "name", "number", "prefix", "since", "tally", "types", "unfinished")

    def __init__(self, name: str, prefix: str, number: int, since: float) -> None:
        self.name = name
        self.prefix = prefix
        #: Which group span of this group it will be: 0, 1, 2 …
        self.number = number
        self.since = since
        self.tally = Tally()
        self.buckets: dict[int, int] = {}
        self.types: dict[str, int] = {}
        self.dependencies: tuple[Dependency, ...] = ()
        self.unfinished = 0

    def add(self, change: Change) -> None:
        """Add what a sweep saw."""
        self.tally.add(change)
        self.unfinished = change.unfinished
        self.dependencies = change.dependencies
        for bucket, count in change.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        for type_, count in change.types.items():
            self.types[type_] = self.types.get(type_, 0) + count


class Ledger:
    """Counts of one Dask span: its own groups, and its child segments that have closed."""

    def __init__(self, since: float) -> None:
        #: When the first entry was made.
        self.since = since
        #: Own groups and closed child segments together.
        self.tally = Tally()
        self.groups: dict[str, GroupLedger] = {}
        #: Number of own groups by prefix: fine metrics can be told apart by prefix only.
        self.prefixes: dict[str, int] = {}
        #: Fine metrics of this Dask span, and those of closed child segments.
        self.metrics: Metrics = {}
        self.child_metrics: Metrics = {}
        #: False once metrics are known to be lost.
        self.metrics_complete = True
        self.graph_seconds = 0.0
        # Sets in order of insertion
        self.clients: dict[str, None] = {}
        self.collections: dict[str, None] = {}
        self.annotations: dict[str, dict[str, None]] = {}
        self.code: tuple[str, int] | None = None

    def group(self, name: str, prefix: str, number: int, since: float) -> GroupLedger:
        """Open the ledger of one more group."""
        group = self.groups[name] = GroupLedger(name, prefix, number, since)
        self.prefixes[prefix] = self.prefixes.get(prefix, 0) + 1
        return group

    def add_metrics(self, metrics: Metrics) -> float:
        """Add fine metrics of this Dask span; return the busy thread-seconds among them."""
        # Users' own activities can be anything, and one NaN would spoil every sum that it enters.
        finite = {key: value for key, value in metrics.items() if isfinite(value)}
        if len(finite) < len(metrics):
            self.metrics_complete = False
        _sum_into(self.metrics, finite)
        return sum(value for key, value in finite.items() if key[0] == "execute" and key[-1] == "seconds")

    def add_graph(self, graph: Graph) -> None:
        """Add what a submission said."""
        self.graph_seconds += graph.seconds
        self.clients.update(dict.fromkeys(graph.clients))
        self.collections.update(dict.fromkeys(graph.collections))
        for name, values in graph.annotations.items():
            self.annotations.setdefault(name, {}).update(dict.fromkeys(values))
        self.code = self.code or graph.code

    def add_child(self, child: Ledger) -> None:
        """Add all of a child segment that has closed."""
        self.tally.add(child.tally)
        _sum_into(self.child_metrics, child.metrics)
        _sum_into(self.child_metrics, child.child_metrics)
        self.metrics_complete = self.metrics_complete and child.metrics_complete
        self.graph_seconds += child.graph_seconds
        self.clients.update(child.clients)
        self.collections.update(child.collections)
        for name, values in child.annotations.items():
            self.annotations.setdefault(name, {}).update(values)
        self.code = self.code or child.code

    def all_metrics(self) -> Metrics:
        """Fine metrics of the whole subtree."""
        total = dict(self.metrics)
        _sum_into(total, self.child_metrics)
        return total

    @property
    def has_numbers(self) -> bool:
        """Whether anything was counted that a segment must account for."""
        return bool(self.metrics or self.child_metrics or self.groups)


def _sum_into(total: Metrics, more: Metrics) -> None:
    for key, value in more.items():
        total[key] = total.get(key, 0) + value
