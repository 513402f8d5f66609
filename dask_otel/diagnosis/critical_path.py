"""The critical path of each root, exact, while its tasks run.

A run of a task waits for the run that made it runnable, for the graph in which it came, for the run before it on its
thread, or for the run that freed its place in the queue: its predecessor is what ended last of these. The path of a run
is that of its predecessor, the gap between the two, and the run itself, so that seconds and gaps sum to the time since
the lap began, whatever the clocks of workers say.

A node sums up the runs of one group that follow each other on a path. It refers to the node before them, and every 64
nodes are folded into sums: what is kept follows the tasks that are alive, not those that have finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest
from typing import Any, NamedTuple

from .parts import CriticalPath, GroupKey, OnPath

__all__ = ["DATA", "THREAD", "Base", "PathNode", "Sums", "path_from", "path_of", "path_to_arrival", "path_to_run"]

#: Numbers of ``EDGES``.
DATA, THREAD = 0, 1
#: Nodes that are folded at a time.
FOLDED = 64
#: Groups of a path that are kept apart: beyond twice as many, those with the least seconds are summed.
MAX_GROUPS = 500


class Sums(NamedTuple):
    """Sums over the nodes that are folded."""

    #: Seconds by group and edge.
    seconds: dict[tuple[GroupKey | None, int], float]
    #: Seconds by cause, of the causes that nodes do not sum up themselves.
    gaps: dict[str, float]


class Base:
    """Where the paths of a lap begin, and whose they are."""

    __slots__ = ("owner", "start")

    def __init__(self, start: float, owner: object) -> None:
        self.start = start
        self.owner = owner


#: What a path is up to the end of a run, or to the arrival of a graph. It is a tuple, since one is made for every run:
#: 0 the base of its lap; 1 when the path has come so far; 2 when the scheduler was told;
#: 3 the node before, or its ``Sums``, or None; 4 number of nodes before that are not folded;
#: 5 the group of the latest runs, or None; 6 the edge that led to them; 7 their seconds;
#: 8 another cause of waiting before them or between them, or an empty text, and 9 its seconds;
#: 10, 11, 12 seconds of the gaps ``report``, ``dispatch``, ``input`` of the whole path.
PathNode = tuple[Any, ...]
BASE, END, TOLD = 0, 1, 2
BEFORE, NUMBER, GROUP, EDGE, SECONDS, CAUSE, GAP = 3, 4, 5, 6, 7, 8, 9


def path_from(base: Base) -> PathNode:
    """Return the node at which a lap begins."""
    return base, base.start, base.start, None, 0, None, DATA, 0.0, "", 0.0, 0.0, 0.0, 0.0


def path_to_arrival(before: PathNode, came: float, taken_in: float) -> PathNode:
    """Return the node of a graph that came and was taken in, after what the client had seen last."""
    thought = max(0.0, came - before[END])
    node = _behind(before, before[END] + thought, taken_in, "client", thought)
    taking_in = max(0.0, taken_in - node[END])
    return _behind(node, node[END] + taking_in, taken_in, "graph", taking_in)


def path_to_run(
    before: PathNode,
    group: GroupKey,
    edge: int,
    start: float,
    stop: float,
    told: float,
    sent: float,
    waited: str,
    others_until: float,
    is_remote: bool,
) -> PathNode:
    """Return the node of a run.

    Parameters
    ----------
    before
        Of its predecessor.
    start, stop
        Of the run, by the clock of its worker.
    told
        When the scheduler was told of its end.
    sent
        When the task was sent to the worker.
    waited
        Cause of the time from the report of the predecessor until the task was sent.
    others_until
        Until when its thread ran a task of another root; 0.0 for none.
    is_remote
        Whether an input was on another worker.
    """
    base, at, reported, link, number, last_group, last_edge, seconds, cause, gap, report, dispatch, input_ = before
    end, wait = stop, 0.0
    if start > at:
        end = stop if stop > start else start
        if reported > sent:  # it had been sent before, and waited for its thread
            reported = sent
        if reported > at:
            reported = reported if reported < start else start
            report += reported - at
            at = reported
        if sent > at:
            sent = sent if sent < start else start
            if waited == "dispatch":
                dispatch += sent - at
            else:
                wait = sent - at
            at = sent
        if others_until > at:
            others_until = others_until if others_until < start else start
            if wait and waited != "others":
                before = _behind(before, at, told, waited, wait)
                _, _, _, link, number, last_group, last_edge, seconds, cause, gap, _, _, _ = before
                wait = 0.0
            waited, wait = "others", wait + others_until - at
            at = others_until
        if is_remote:
            input_ += start - at
        else:
            dispatch += start - at
        more = end - start
    elif stop > at:
        more = stop - at
    else:
        end, more = at, 0.0
    if last_group is group and last_edge == edge:
        if not wait:
            return base, end, told, link, number, group, edge, seconds + more, cause, gap, report, dispatch, input_
        if cause == waited or not cause:
            seconds += more
            gap += wait
            return base, end, told, link, number, group, edge, seconds, waited, gap, report, dispatch, input_
    if not wait:
        waited = ""
    if number < FOLDED:
        return base, end, told, before, number + 1, group, edge, more, waited, wait, report, dispatch, input_
    return base, end, told, _sums(before), 0, group, edge, more, waited, wait, report, dispatch, input_


def _behind(before: PathNode, end: float, told: float, cause: str, gap: float) -> PathNode:
    """Return a node without a run, behind which the path goes on after a gap."""
    fold = before[NUMBER] >= FOLDED
    link = _sums(before) if fold else before
    return before[BASE], end, told, link, 0 if fold else before[NUMBER] + 1, None, DATA, 0.0, cause, gap, *before[10:]


def _sums(node: PathNode) -> Sums:
    """Sum over a node and all before it."""
    seconds: dict[tuple[GroupKey | None, int], float] = {}
    gaps: dict[str, float] = {}
    link: PathNode | Sums | None = node
    while link is not None:
        if type(link) is Sums:
            for key, value in link.seconds.items():
                seconds[key] = seconds.get(key, 0.0) + value
            for cause, value in link.gaps.items():
                gaps[cause] = gaps.get(cause, 0.0) + value
            break
        _, _, _, before, _, group, edge, own, cause, gap, _, _, _ = link
        if own:
            seconds[group, edge] = seconds.get((group, edge), 0.0) + own
        if gap:
            gaps[cause] = gaps.get(cause, 0.0) + gap
        link = before
    if len(seconds) > 2 * MAX_GROUPS:
        seconds = _largest(seconds)
    return Sums(seconds, gaps)


def _largest(seconds: Mapping[tuple[GroupKey | None, int], float]) -> dict[tuple[GroupKey | None, int], float]:
    """Keep the groups with most seconds, and sum the others under None."""
    kept = dict(nlargest(MAX_GROUPS, seconds.items(), key=lambda item: (item[0][0] is not None, item[1])))
    for (group, edge), value in seconds.items():
        if (group, edge) not in kept:
            kept[None, edge] = kept.get((None, edge), 0.0) + value
    return kept


def path_of(node: PathNode) -> CriticalPath:
    """Return the whole path up to a node."""
    sums = _sums(node)
    groups: dict[GroupKey, OnPath] = {}
    other_groups = OnPath()
    for (group, edge), seconds in sums.seconds.items():
        before = groups.get(group, OnPath()) if group else other_groups
        data, thread = (seconds, 0.0) if edge == DATA else (0.0, seconds)
        more = OnPath(before.data + data, before.thread + thread)
        if group:
            groups[group] = more
        else:
            other_groups = more
    gaps = {**sums.gaps, **{cause: node[place] for cause, place in (("report", 10), ("dispatch", 11), ("input", 12))}}
    gaps = {cause: seconds for cause, seconds in gaps.items() if seconds}
    return CriticalPath(node[BASE].start, node[END], groups, gaps, other_groups)
