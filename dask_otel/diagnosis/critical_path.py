"""The critical path of each root, exact, while its tasks run.

A run of a task waits for the run that made it runnable, for the graph in which it came, for the run before it on its
thread, or for the run that freed its place in the queue: its predecessor is what ended last of these. The path of a run
is that of its predecessor, the gap between the two, and the run itself, so that seconds and gaps sum to the time since
the lap began, whatever the clocks of workers say.

A node refers to the one before it, and every 64 nodes are folded into sums: what is kept follows the tasks that
are alive, not those that have finished.
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
    #: Seconds by cause.
    gaps: dict[str, float]


class Base:
    """Where the paths of a lap begin, and whose they are."""

    __slots__ = ("owner", "start")

    def __init__(self, start: float, owner: object) -> None:
        self.start = start
        self.owner = owner


#: A run, or the arrival of a graph, and the path that leads to it. It is a tuple, since one is made for every run:
#: 0 the base of its lap; 1 when the path has come so far; 2 when the scheduler was told; 3 the node before, or None;
#: 4 the group, or None for the arrival of a graph; 5 the edge; 6 seconds of the run; 7 to 12 the gap before it: three
#: causes, each with its seconds; 13 number of nodes before that are not folded; 14 sums of this one and all before, if
#: they are folded.
PathNode = tuple[Any, ...]


def path_from(base: Base) -> PathNode:
    """Return the node at which a lap begins."""
    start = base.start
    return base, start, start, None, None, DATA, 0.0, "", 0.0, "", 0.0, "", 0.0, 0, None


def path_to_arrival(before: PathNode, came: float, taken_in: float) -> PathNode:
    """Return the node of a graph that came and was taken in, after what the client had seen last."""
    end: float = before[1]
    thought = max(0.0, came - end)
    taking_in = max(0.0, taken_in - end - thought)
    return _step(before, end + thought + taking_in, taken_in, None, DATA, 0.0, "client", thought, "graph", taking_in)


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
    last: str,
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
    last
        Cause of the time from then until the run began: ``input`` or ``dispatch``.
    """
    at: float = before[1]
    if start <= at:
        seconds = stop - at
        if seconds <= 0.0:
            return _step(before, at, told, group, edge, 0.0)
        return _step(before, stop, told, group, edge, seconds)
    report = waiting = 0.0
    reported = before[2]
    if reported > at:
        reported = reported if reported < start else start
        report, at = reported - at, reported
    if sent > at:
        sent = sent if sent < start else start
        waiting, at = sent - at, sent
    end = stop if stop > start else start
    if others_until > at:
        others_until = others_until if others_until < start else start
        if others_until < start:  # four causes are rare: what waited is with the others then
            rest = start - others_until
            if waiting and waited != "others":
                between = _step(before, at, told, None, edge, 0.0, "report", report, waited, waiting)
                return _step(between, end, told, group, edge, end - start, "others", others_until - at, last, rest)
            waiting += others_until - at
            return _step(before, end, told, group, edge, end - start, "report", report, "others", waiting, last, rest)
        return _step(
            before, end, told, group, edge, end - start, "report", report, waited, waiting, "others", start - at
        )
    return _step(before, end, told, group, edge, end - start, "report", report, waited, waiting, last, start - at)


def _step(
    before: PathNode,
    end: float,
    told: float,
    group: GroupKey | None,
    edge: int,
    seconds: float,
    cause: str = "",
    gap: float = 0.0,
    second_cause: str = "",
    second_gap: float = 0.0,
    third_cause: str = "",
    third_gap: float = 0.0,
) -> PathNode:
    number = before[13] + 1
    node = (
        before[0],
        end,
        told,
        before,
        group,
        edge,
        seconds,
        cause,
        gap,
        second_cause,
        second_gap,
        third_cause,
        third_gap,
        number,
        None,
    )
    return node if number < FOLDED else (*node[:3], None, *node[4:13], 0, _sums(node))


def _sums(node: PathNode) -> Sums:
    """Sum over a node and all before it."""
    nodes = []
    at: PathNode | None = node
    while at and at[14] is None:
        nodes.append(at)
        at = at[3]
    seconds, gaps = (dict(at[14].seconds), dict(at[14].gaps)) if at else ({}, {})
    for each in reversed(nodes):
        if each[6]:
            key = each[4], each[5]
            seconds[key] = seconds.get(key, 0.0) + each[6]
        for place in (7, 9, 11):
            if each[place + 1]:
                gaps[each[place]] = gaps.get(each[place], 0.0) + each[place + 1]
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
    return CriticalPath(node[0].start, node[1], groups, sums.gaps, other_groups)
