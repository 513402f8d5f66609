"""What a sweep need not tell of many groups at work: each has done little since the last one.

To tell of a little costs much the same as of a lot. It is told at every fifth sweep, and before anything depends on it:
the end of a segment, a cut, metrics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distributed.metrics import time

from ..mirror.model import Change
from ..mirror.segments import Mirror
from .latches import Latches
from .pace import Pace
from .snapshot import Groups

__all__ = ["Deferral"]

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

    def defer(self, group: Any, change: Change) -> bool:
        """Tell of a group that has a span only how many of its tasks wait for what, if the rest can be told later.

        Returns
        -------
        Whether that was so; the change is latched again.
        """
        now = time()
        longest = self._mirror.settings.max_segment
        begun = now - longest + max(BEFORE_CUT * longest, SECONDS_BEFORE_CUT)  # else it is cut before long
        if not self._mirror.forest.shows(group.span_id, str(group.name), begun):
            return False
        if self._latches.is_latched(group):  # there is a new change already
            return False
        if not self._groups.look(group, change):
            return False
        self._latches.put_back(group, change)
        self._mirror.look(change, now)
        return True

    async def raise_thresholds(self, groups: Iterable[Any], pace: Pace) -> None:
        """Have no run picked of groups at work that would not be among the slowest in the end."""
        if self._latches.picks_slow:
            for group in groups:
                threshold = self._mirror.forest.threshold(group.span_id, str(group.name))
                if threshold >= 0.0:
                    self._latches.raise_threshold(group, threshold)
                await pace.rest()
