"""What has been counted for one group, and how many groups a trace may show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .model import Change, Dependency
from .tally import Tally, sum_into
from .tasks import Picks

__all__ = ["UNFINISHED", "Budget", "GroupLedger", "UnfinishedGroup", "unfinished_group"]

#: More than any sum of µs.
_FAILED, UNFINISHED = 1e20, 1e30
#: Distinct result types that folded groups name.
MAX_TYPES = 32


@dataclass(slots=True)
class Budget:
    """How many spans of groups and tasks the trace of one root segment may still have.

    Together they stay below the 5 MB at which Tempo drops a trace.
    """

    #: Groups of one segment.
    a_segment: int
    groups: int = 1000
    #: A failed task's span carries a traceback; it is four times as large.
    erred: int = 200
    slowest: int = 800

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
        "folded",
        "foreign",
        "name",
        "number",
        "picks",
        "pinned",
        "prefix",
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
        #: Of these, the tasks that only other spans asked for.
        self.foreign: Tally | None = None
        self.buckets: dict[int, int] = {}
        self.types: dict[str, int] = {}
        self.dependencies: tuple[Dependency, ...] = ()
        self.picks: Picks | None = None
        self.unfinished = 0
        #: A span that has left links to it.
        self.pinned = False
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
        self.tally.tasks += change.entered
        for tally in change.foreign.values():
            self._add_foreign(tally)
        if change.buckets or change.types or change.picks:
            self._add_details(change.buckets, change.types, change.picks)
        if not self.folded:
            self.dependencies = change.dependencies

    def fold(self, group: GroupLedger) -> None:
        """Take in a whole group."""
        self.folded += 1
        self.since = min(self.since, group.since)
        self.tally.add(group.tally)
        if group.foreign:
            self._add_foreign(group.foreign)
        self._add_details(group.buckets, group.types, group.picks)

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self.since += seconds
        self.tally.shift(seconds)
        if self.picks:
            self.picks.shift(seconds)

    def _add_foreign(self, tally: Tally) -> None:
        self.foreign = self.foreign or Tally()
        self.foreign.add(tally)

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
