"""Keeps a trace bounded, whatever the graph: groups that are too many become one span that carries their sums."""

from __future__ import annotations

from .groups import Budget, GroupLedger
from .ledger import Ledger
from .tasks import TaskRun
from .tree import Node

__all__ = ["fold_groups", "pick_runs"]


def fold_groups(node: Node, ledger: Ledger, number: int, keep: int) -> None:
    """Leave at most ``keep`` groups of segment ``number``, those that failed or took longest, and fold the others.

    Groups with unfinished tasks or that others link to stay in any case.
    """
    ranked = sorted(ledger.groups.values(), key=_worth, reverse=True)
    folded = [group for group in ranked[keep:] if not (group.unfinished or group.pinned)]
    if not folded:
        return
    if ledger.others is None:
        ledger.others = GroupLedger("", "other groups", number, folded[0].since)
    for group in folded:
        del ledger.groups[group.name]
        ledger.others.fold(group)
        ledger.others_names.add(group.name)
        node.withdraw_group(group)
    ledger.truncated_groups += len(folded)


def _worth(group: GroupLedger) -> tuple[bool, bool, int]:
    failed = bool(group.tally.outcomes.get("erred") or group.tally.outcomes.get("upstream_failed"))
    return group.pinned or bool(group.unfinished), failed, sum(group.tally.durations.values())


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
