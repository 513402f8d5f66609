"""How it ended: of the tasks that were asked for here, wherever Dask counts them."""

from __future__ import annotations

from collections.abc import Mapping

from .groups import GroupLedger
from .ledger import Ledger
from .records import Failure
from .tally import FirstError, Tally, sum_into

__all__ = ["failure_of_group", "verdict"]


def verdict(ledger: Ledger, elsewhere: Tally | None, stopped: str) -> tuple[str, Failure | None]:
    """Result of a segment, and why its status is Error if it is.

    Parameters
    ----------
    elsewhere
        All that it asked for and others count.
    stopped
        Why it closes, if its work is not done.
    """
    counts = _counts(ledger.tally, 1)
    for tally in ledger.foreign.values():
        sum_into(counts, _counts(tally, -1))
    if elsewhere:
        sum_into(counts, _counts(elsewhere, 1))
    error = ledger.tally.error or (elsewhere.error if elsewhere else None)
    failure = _failure(counts, error, ledger.graph_failures.get("error", 0))
    return stopped or _result(counts, failure, ledger.graph_failures), failure


def failure_of_group(group: GroupLedger) -> Failure | None:
    """Why the status of a group span is Error, if it is."""
    counts = _counts(group.tally, 1)
    if group.foreign:
        sum_into(counts, _counts(group.foreign, -1))
    return _failure(counts, group.tally.error, 0)


def _counts(tally: Tally, sign: int) -> dict[str, int]:
    numbers = {"tasks": tally.tasks, "completed": tally.completed, **tally.outcomes}
    return {name: sign * number for name, number in numbers.items()}


def _failure(counts: Mapping[str, int], error: FirstError | None, graphs: int) -> Failure | None:
    erred, upstream = max(0, counts.get("erred", 0)), max(0, counts.get("upstream_failed", 0))
    if not (erred or upstream or graphs):
        return None
    return Failure(error.type if error else "_OTHER", error.message if error else "", erred, upstream, graphs)


def _result(counts: Mapping[str, int], failure: Failure | None, graph_failures: Mapping[str, int]) -> str:
    if failure:
        return "error"
    if counts.get("lost", 0) > 0 and counts["completed"] < counts["tasks"]:
        return "lost"
    if counts.get("cancelled", 0) > 0 or graph_failures.get("cancelled"):
        return "cancelled"
    if counts.get("abandoned", 0) > 0 and counts["completed"] <= 0:
        return "cancelled"
    return "success"
