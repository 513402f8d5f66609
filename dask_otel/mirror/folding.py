"""Keeps a trace bounded, whatever the graph: groups that are too many become one span that carries their sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappush, heappushpop

from .groups import Budget, GroupLedger
from .ledger import Ledger
from .tasks import TaskRun
from .tree import Node, Segment

__all__ = ["fold_for_closing", "fold_some", "pick_runs"]

#: Groups, at most, that are folded at a time while a segment is open.
AT_ONCE = 200


def fold_some(node: Node, ledger: Ledger, most: int) -> None:
    """While a segment is open: fold finished groups, some at a time, since to choose them takes a look at all."""
    if len(ledger.foldable) >= most + min(most, AT_ONCE):
        for _ in _fold(node, ledger, node.next_number, ledger.foldable, most):
            pass


def _fold(node: Node, ledger: Ledger, number: int, groups: Iterable[GroupLedger], keep: int) -> Iterator[None]:
    """Leave at most ``keep`` of some groups of segment ``number``, and fold the others.

    Those are kept that have unfinished tasks, then those that failed, then those that took longest; of equal ones the
    earlier. Lazy: each step is little work, and proportional to the logarithm of ``keep``.
    """
    kept: list[tuple[tuple[bool, bool, int], int, GroupLedger]] = []
    for place, group in enumerate(list(groups)):
        entry = _worth(group), -place, group
        if len(kept) < keep:
            heappush(kept, entry)
        else:
            _, _, least = heappushpop(kept, entry)
            ledger.fold(least, number)
            node.withdraw_group(least)
        yield


def fold_for_closing(node: Node, segment: Segment, ledger: Ledger) -> Iterator[None]:
    """Leave no more groups than a segment that closes, and the trace, may show; also of unfinished ones."""
    rest = [group for group in ledger.groups.values() if not group.pinned]
    yield from _fold(node, ledger, segment.number, rest, segment.budget.groups_beside(ledger.pinned))
    segment.budget.groups -= len(ledger.groups) - ledger.pinned


def _worth(group: GroupLedger) -> tuple[bool, bool, int]:
    failed = bool(group.tally.outcomes.get("erred") or group.tally.outcomes.get("upstream_failed"))
    return bool(group.unfinished), failed, sum(group.tally.durations.values())


def pick_runs(ledger: Ledger, budget: Budget) -> dict[str | None, list[tuple[str, TaskRun]]]:
    """Choose the runs that get a span, with the reason, by group (the folded ones under None)."""
    chosen: dict[str | None, list[tuple[str, TaskRun]]] = {}
    slowest: list[tuple[float, str | None, TaskRun]] = []
    for group in ledger.all_groups():
        if group.picks:
            erred = group.picks.erred[: max(0, budget.erred)]
            budget.erred -= len(erred)
            chosen[group.key] = [("erred", run) for run in erred]
            slowest += [(run.seconds, group.key, run) for run in group.picks.slowest]
    slowest.sort(key=lambda pick: -pick[0])
    for _, key, run in slowest[: max(0, budget.slowest)]:
        chosen[key].append(("slowest", run))
        budget.slowest -= 1
    return chosen
