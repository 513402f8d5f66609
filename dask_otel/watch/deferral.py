"""What a sweep need not tell of many groups at work: each has done little since the last one.

To tell of a little costs much the same as of a lot. It is told at every fifth sweep, and before anything depends on it:
the end of a segment, a cut, metrics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from typing import Any, NamedTuple

from distributed.metrics import time

from ..mirror.model import Change
from ..mirror.segments import Mirror
from .latches import Latches
from .pace import Pace
from .snapshot import MAX_DEFERRED, Groups

__all__ = ["Deferral", "Due", "entered_only"]

#: Groups that have changed; of fewer, all is told at once.
MANY_GROUPS = 50
#: Before a segment is cut, the part of its life, and the seconds at least, in which nothing is left for later.
BEFORE_CUT, SECONDS_BEFORE_CUT = 0.1, 5.0


class Deferral:
    """Leaves what happened to groups for a later sweep, and the hooks without work that would come to nothing."""

    def __init__(self, mirror: Mirror, latches: Latches, groups: Groups) -> None:
        self._mirror = mirror
        self._latches = latches
        self._groups = groups
        #: Number of this sweep; and by number of a sweep, the groups of which it is to tell in full.
        self._number = 0
        self._due: dict[int, list[Any]] = {}
        #: When the oldest root began of which a group was left: it is the first one that is cut.
        self._oldest = inf

    def begin_sweep(self, changed: int, *, may_defer: bool) -> Due:
        """Begin a sweep; say what earlier ones have left for this one.

        Parameters
        ----------
        changed
            Number of groups to which something has happened.
        """
        self._number += 1
        due = self._due.pop(self._number, [])
        may_defer = may_defer and changed + len(self._latches.left) > MANY_GROUPS
        is_cut_soon = self._is_cut_soon(self._oldest, time())
        if may_defer and not is_cut_soon:
            return Due(may_defer, frozenset(due), self._latches.take_left(due), [])
        self._due = {}
        left = self._latches.take_all_left()
        entered: list[Any] = []
        if is_cut_soon:
            self._oldest = inf
            entered = list(self._groups.entered)
        return Due(may_defer, left.keys(), left, entered)

    def clock_set_back(self, seconds: float) -> None:
        """Move what was kept to the clock's new time, as roots move."""
        self._oldest -= seconds
        self._groups.clock_set_back(seconds, time())

    def defer(self, group: Any, change: Change) -> bool:
        """Tell of a group in an open span only how many of its tasks wait for what, if the rest can be told later.

        Returns
        -------
        Whether that was so; what is left is kept.
        """
        now = time()
        begun = self._mirror.forest.begun(group.span_id)
        if begun is None or self._is_cut_soon(begun, now):
            return False
        if self._groups.knows(group) and not self._mirror.forest.has_group(group.span_id, str(group.name)):
            return False
        if self._latches.is_latched(group):  # there is a new change already
            return False
        if not self._groups.look(group, change):
            return False
        self._oldest = min(self._oldest, begun)
        self._mirror.look(change, now)
        if not change.completed:
            self._groups.keep_entered(group, change)
            return True
        self._latches.leave_for_later(group, change)
        if self._groups.begins_to_wait(group):
            self._due.setdefault(self._number + MAX_DEFERRED, []).append(group)
        return True

    def _is_cut_soon(self, begun: float, now: float) -> bool:
        longest = self._mirror.settings.max_segment
        return now - begun >= longest - max(BEFORE_CUT * longest, SECONDS_BEFORE_CUT)

    async def raise_thresholds(self, groups: Iterable[Any], pace: Pace) -> None:
        """Have no run picked of groups at work that would not be among the slowest in the end."""
        if self._latches.picks_slow:
            for group in groups:
                threshold = self._mirror.forest.threshold(group.span_id, str(group.name))
                if threshold >= 0.0:
                    self._latches.raise_threshold(group, threshold)
                await pace.rest()


class Due(NamedTuple):
    """What a sweep has to tell of besides what has just happened."""

    #: Whether anything may be left for a later sweep.
    may_defer: bool
    #: Groups of which all is to be told, whatever has happened to them.
    groups: Collection[Any]
    #: Changes that were left for this sweep.
    left: dict[Any, Change]
    #: Groups of which only that tasks have entered is to be told.
    entered: list[Any]


def entered_only(now: float) -> Change:
    """Say nothing more of a group than that tasks have entered, which has been kept."""
    change = Change(now)
    change.active = True
    return change
