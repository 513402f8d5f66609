"""Whether workers leave because they were asked to."""

from __future__ import annotations

from collections.abc import Container

__all__ = ["Departures"]

#: At the end of the reasons for which a worker closes because it cannot go on.
_BROKEN = ("-fail-hard", "-heartbeat-error")


class Departures:
    """Remembers which workers have said that they close.

    Dask calls a worker's end expected only if the scheduler has retired it by its address. ``LocalCluster.scale``,
    ``Client.restart`` and a nanny close workers themselves: these say so, and what is killed or lost does not.

    Parameters
    ----------
    workers
        ``Scheduler.workers``; anybody can log events of others.
    """

    def __init__(self, workers: Container[str]) -> None:
        self._workers = workers
        self._closing: set[str] = set()

    def announced(self, worker: str, reason: object) -> None:
        """Note that a worker has said that it closes, and why."""
        if worker in self._workers and not (isinstance(reason, str) and reason.endswith(_BROKEN)):
            self._closing.add(worker)

    def is_expected(self, worker: object, expected: object) -> bool:
        """Say whether a worker that has left was asked to; ``expected`` is what Dask says of it."""
        announced = str(worker) in self._closing
        self._closing.discard(str(worker))
        return announced or expected is True
