"""Keeps a trace bounded, whatever the graph: groups that are too many become one span that carries their sums."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappush, heappushpop
from operator import itemgetter

from .groups import UNFINISHED, Budget, GroupLedger
from .ledger import Ledger
from .tasks import PickedRun, TaskRun
from .tree import Node, Segment

__all__ = ["fold_for_closing", "fold_some", "pick_runs"]

#: Groups, at most, that are folded at a time while a segment is open.
AT_ONCE = 200


def fold_some(node: Node, ledger: Ledger, most: int) -> None:
    """While a segment is open: fold finished groups, some at a time, since to choose them takes a look at all."""
    excess = min(most, AT_ONCE)
    if len(ledger.foldable) >= most + excess:
        for group, worth in sorted(ledger.foldable.items(), key=itemgetter(1))[:excess]:
            _fold(node, ledger, group, node.next_number)
            ledger.least_worth = worth


def fold_for_closing(node: Node, segment: Segment, ledger: Ledger) -> Iterator[None]:
    """Leave no more groups than a segment that closes, and the trace, may show; also of unfinished ones.

    Unfinished groups are kept first, then those that failed, then those that took longest; of equal ones the earlier.
    Lazy: each step is little work.
    """
    keep = segment.budget.groups_beside(ledger.pinned)
    kept: list[tuple[float, int, GroupLedger]] = []
    for place, group in enumerate([group for group in ledger.groups.values() if not group.pinned]):
        entry = (UNFINISHED if group.unfinished else group.worth), -place, group
        if len(kept) < keep:
            heappush(kept, entry)
        else:
            _fold(node, ledger, heappushpop(kept, entry)[2], segment.number)
        yield
    segment.budget.groups -= len(ledger.groups) - ledger.pinned


def _fold(node: Node, ledger: Ledger, group: GroupLedger, number: int) -> None:
    ledger.fold(group, number)
    node.withdraw_group(group)


def pick_runs(ledger: Ledger, budget: Budget) -> dict[str | None, list[tuple[str, TaskRun | PickedRun]]]:
    """Choose the runs that get a span, with the reason, by group (the folded ones under None)."""
    chosen: dict[str | None, list[tuple[str, TaskRun | PickedRun]]] = {}
    slowest: list[tuple[float, str | None, TaskRun | PickedRun]] = []
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
