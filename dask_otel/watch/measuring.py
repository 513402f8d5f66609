"""Tells the measures what the sweep saw, and makes snapshots of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from distributed.metrics import time

from ..measure.measures import Measures
from ..measure.settings import MeasureSettings
from ..measure.snapshot import Snapshot
from ..measure.state import Exporter
from ..mirror.records import Record
from ..mirror.segments import Mirror
from ..safety import Safety
from .cluster import read_activities, read_cluster
from .delay import Delay
from .pace import Pace

__all__ = ["Measuring"]


class Measuring:
    """Measures one scheduler.

    Parameters
    ----------
    exporters
        Says what became of the spans.
    """

    def __init__(
        self,
        scheduler: Any,
        mirror: Mirror,
        settings: MeasureSettings,
        exporters: Callable[[], Iterable[Exporter]],
        safety: Safety,
    ) -> None:
        self._scheduler = scheduler
        self._mirror = mirror
        self._exporters = exporters
        self._safety = safety
        #: Until when the cluster's threads have been counted.
        self._until = time()
        self.measures = Measures(self._until, settings)
        #: Ids of the OTel spans that this sweep has put on their way.
        self._shown: set[int] = set()
        self._delay = Delay(scheduler)

    def begin_sweep(self) -> None:
        """Note that a sweep begins, in which the number of threads has been read."""
        now = time()
        self.measures.begin_sweep(now)
        self.measures.threads(self._mirror.threads.available(self._until, now))
        self._until = now

    def clock_set_back(self, seconds: float) -> None:
        """Count on from the clock's new time."""
        self._until -= seconds

    def busy(self, span_id: str, seconds: float) -> None:
        """Count busy thread-seconds of a Dask span."""
        self.measures.busy(self._mirror.forest.root_of(span_id).tags[0], seconds)

    def sent(self, records: Iterable[Record]) -> None:
        """Note records that are on their way to a backend."""
        for record in records:
            if record.parent_id is None:
                self._shown.add(record.span_id)
        self.measures.tasks_shown(records)

    def count_ended(self) -> None:
        """Count the runs of roots that this sweep has ended."""
        for run in self._mirror.roots.drain():
            self.measures.root_ended(run, self._shown)
        self._shown.clear()

    async def snapshot(self, pace: Pace) -> Snapshot:
        """Say how everything is now."""
        self.measures.cluster(await read_cluster(self._scheduler, pace), self._delay.drain())
        await read_activities(self._scheduler, self.measures, pace)
        self.measures.open_roots(root.info.tags[0] for root in self._mirror.forest.open_roots)
        self.measures.bridge(self._exporters(), self._errors())
        measured = []
        for each in self.measures.measured():
            measured.append(each)
            await pace.rest()
        return Snapshot(time(), measured)

    def remove(self) -> None:
        """Stop listening."""
        self._delay.remove()

    def _errors(self) -> dict[str, int]:
        errors: dict[str, int] = {}
        for (where, _), count in self._safety.failures.items():
            errors[where] = errors.get(where, 0) + count
        return errors
