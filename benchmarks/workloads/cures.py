"""Cures of five ill workloads: the same work, without its illness."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from .cluster import WorkerOptions, Workload
from .ill import (
    FOUR,
    PROCESSES,
    anomalies,
    count_requests,
    price_all,
    score_all_customers,
    simulate_with_workers,
)

FAST_NETWORK = (WorkerOptions(network=400e6),) * 4


@dataclass(frozen=True)
class Cure:
    """A workload that does what an ill one does, but faster, and what a comparison of the two should name."""

    #: Name of the ill workload.
    of: str
    cured: Workload
    #: Prefixes of tasks of which one became faster by most; none if no task did.
    steps: frozenset[str]
    #: Parts of the waterfall of which one shrank by most.
    parts: frozenset[str]


CURES = (
    # Processes instead of threads.
    Cure(
        "gil",
        Workload("gil, cured", count_requests, (WorkerOptions(processes=2, memory="2GiB"),), expected=None),
        frozenset({"parse", "read_lines"}),
        frozenset({"noncpu"}),
    ),
    # Larger partitions.
    Cure(
        "tiny tasks",
        Workload("tiny tasks, cured", partial(price_all, 8), PROCESSES, expected=None),
        frozenset({"price", "filter", "sum", "sum-part", "bag-from_sequence", "lambda"}),
        frozenset({"handed", "overhead"}),
    ),
    # The large customer's orders in several partitions.
    Cure(
        "skew",
        Workload("skew, cured", partial(score_all_customers, 64), FOUR, expected=None),
        frozenset({"score_customers"}),
        # What idle threads wait for depends on what else is left, and where it may run.
        frozenset({"tail", "imbalance", "dependencies"}),
    ),
    # The same chunks on a network that is ten times as fast. To load the data in the chunks that are needed would save
    # the work of cutting them, too, and so more than the transfers.
    Cure(
        "transfers",
        Workload("transfers, cured", partial(anomalies, (200, 20_000)), FAST_NETWORK, expected=None),
        frozenset({"rechunk-split", "rechunk-merge", "concatenate", "getitem"}),
        frozenset({"handed"}),
    ),
    # Workers that are there when the work comes.
    Cure(
        "late workers",
        Workload("late workers, cured", simulate_with_workers, PROCESSES, expected=None),
        frozenset(),
        frozenset({"starting"}),
    ),
)
