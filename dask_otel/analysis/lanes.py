"""Which spans share a line of a viewer: lanes, on which spans nest.

Viewers of Perfetto's and Chrome's formats take a span that lies within another one on the same line for a part of it,
and show spans wrong that only overlap.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["NONE", "depths", "divide"]

#: In the place of a parent's number.
NONE = -1


def divide(
    spans: Iterable[int], starts: Sequence[int], ends: Sequence[int], parents: Sequence[int], depths: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Divide the spans of a track into lanes on which they nest.

    A span lies within another one only if that is its ancestor: what merely happened in the meantime is on another
    lane, where nobody takes it for a part. A span without length takes the next instant as well: readers of files
    don't know otherwise whether it is before or within what starts at the same time.

    Parameters
    ----------
    spans
        Numbers of the spans of this track: places in the other parameters, which are of all spans.
    starts, ends
        Integers, in any unit.
    parents
        Numbers of parents; ``NONE`` without one.
    depths
        Of ``depths()``.

    Yields
    ------
    tuple
        The number of a span and that of its lane. Spans of a lane are in the order of their starts, outer ones before
        inner ones.
    """
    #: By lane, its open spans, the innermost last; and by span, the lane on which it is open.
    stacks: list[list[int]] = []
    open_on: dict[int, int] = {}
    #: Lanes without an open span; and all others, by the end of the outermost one.
    free: list[int] = []
    busy: list[tuple[int, int]] = []

    def until(span: int) -> int:
        return max(ends[span], starts[span] + 1)

    def lane_within_an_ancestor(span: int) -> int | None:
        above, steps = parents[span], depths[span]  # as many as it has ancestors: parents may be in a circle
        while above != NONE and steps > 0:
            lane = open_on.get(above)
            if lane is not None:
                stack = stacks[lane]
                while stack and until(stack[-1]) <= starts[span]:
                    del open_on[stack.pop()]
                if stack and stack[-1] == above and ends[above] >= until(span):
                    return lane
            above, steps = parents[above], steps - 1
        return None

    for span in sorted(spans, key=lambda span: (starts[span], -ends[span], depths[span])):
        while busy and busy[0][0] <= starts[span]:
            _, lane = heapq.heappop(busy)
            for each in stacks[lane]:
                del open_on[each]
            stacks[lane].clear()
            heapq.heappush(free, lane)
        found = lane_within_an_ancestor(span)
        if found is None:
            if free:
                found = heapq.heappop(free)
            else:
                found = len(stacks)
                stacks.append([])
            heapq.heappush(busy, (until(span), found))
        stacks[found].append(span)
        open_on[span] = found
        yield span, found


def depths(parents: Sequence[int]) -> list[int]:
    """Return how many ancestors each span has. A circle of parents, which no program sends on purpose, is cut."""
    found = [NONE] * len(parents)
    for span in range(len(parents)):
        chain: dict[int, None] = {}
        at = span
        while at != NONE and found[at] == NONE and at not in chain:
            chain[at] = None
            at = parents[at]
        depth = NONE if at == NONE else found[at]
        for each in reversed(chain):
            depth += 1
            found[each] = depth
    return found
