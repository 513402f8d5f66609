"""Reads how the cluster is, and Dask's own counts, for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from ..measure.measures import Measures
from ..measure.state import Activity, Cluster
from ..mirror.identifier import identifier
from ..safety import Safety
from .pace import Pace

__all__ = ["in_parts", "read_activities", "read_cluster"]

#: Things that are looked at in one step, within a tenth of a slice.
AT_ONCE = 100
#: What is counted also where there is none.
_STATES = ("released", "waiting", "no-worker", "queued", "processing", "memory", "erred")
_STATUSES = ("running", "paused", "closing_gracefully")

Item = TypeVar("Item")


async def read_cluster(scheduler: Any, pace: Pace) -> Cluster:
    """Count tasks, workers and memory; takes about a microsecond for each task group, and three for each worker."""
    tasks = Counter(dict.fromkeys(_STATES, 0))
    for groups in in_parts(list(scheduler.task_groups.values())):
        for group in groups:
            for state, count in group.states.items():
                tasks[state] += count
        await pace.rest()
    # Those that the scheduler does not know any more.
    del tasks["forgotten"]
    workers = Counter(dict.fromkeys(_STATUSES, 0))
    managed = unmanaged = spilled = limit = 0
    for some in in_parts(list(scheduler.workers.values())):
        for worker in some:
            memory = worker.memory
            workers[worker.status.name] += 1
            managed += memory.managed
            unmanaged += memory.unmanaged
            spilled += memory.spilled
            limit += worker.memory_limit or 0
        await pace.rest()
    return Cluster(
        tasks=tasks,
        workers=workers,
        threads=scheduler.total_nthreads,
        clients=len(scheduler.clients) - ("fire-and-forget" in scheduler.clients),
        managed=managed,
        unmanaged=unmanaged,
        spilled=spilled,
        limit=limit or None,
    )


async def read_activities(scheduler: Any, measures: Measures, safety: Safety, pace: Pace) -> None:
    """Tell what has come to Dask's fine metrics, about two microseconds for each."""
    for some in in_parts(list(scheduler.cumulative_worker_metrics.items())):
        for key, total in some:
            with safety.guard("metrics"):  # users may add what they like
                activity = _activity(key)
                if activity:
                    measures.activity(key, activity, total)
        await pace.rest()


def _activity(key: Any) -> Activity | None:
    """Read ``("execute", prefix, activity, unit)``, ``("p2p", where, activity, unit)``, or three: context, …"""
    if not isinstance(key, tuple):  # of the worker, not of an activity
        return None
    if len(key) == 4 and key[0] == "execute":
        return "execute", str(key[1]), identifier(key[2]), str(key[3])
    if len(key) == 4 and key[0] == "p2p":
        return f"p2p.{identifier(key[1])}", None, identifier(key[2]), str(key[3])
    return (identifier(key[0]), None, identifier(key[1]), str(key[2])) if len(key) == 3 else None


def in_parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Divide things into parts that are little work."""
    rest = iter(items)
    while part := list(islice(rest, AT_ONCE)):
        yield part
