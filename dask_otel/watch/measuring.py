"""Tells the measures what the hooks and the sweep saw, and makes snapshots of them.

What fails here costs nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from distributed.metrics import time

from ..measure.measures import Measures
from ..measure.settings import MeasureSettings
from ..measure.snapshot import Snapshot
from ..measure.state import Exporter
from ..mirror.model import Change
from ..mirror.records import Record
from ..mirror.segments import Mirror
from ..safety import Safety
from .cluster import in_parts, read_activities, read_cluster
from .delay import Delay
from .departures import Departures
from .pace import Pace

__all__ = ["Measuring"]

#: How a graph may have been taken in, as Dask's events say.
_STATUSES = ("OK", "error", "cancelled")


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
        #: Until when the cluster's threads have been counted, also by a clock that nobody sets.
        self._until, self._steady = time(), monotonic()
        self._measures = _measures_of(scheduler, settings, self._until)
        #: Not itself: what measures a scheduler must not keep it alive.
        self._token = self._measures.owner = object()
        #: Ids of the OTel spans that this sweep has put on their way.
        self._shown: set[int] = set()
        self.delay = Delay(scheduler, safety)
        self._departures = Departures(scheduler.workers)

    def learn(self) -> None:
        """Take Dask's own counts as they are for the zero from which to count."""
        for key, total in self._scheduler.cumulative_worker_metrics.items():
            self._measures.learn_activity(key, total)

    # What the hooks tell

    def graph(self, status: object) -> None:
        """Count a graph that was submitted."""
        if status in _STATUSES:  # anybody can log events
            with self._safety.guard("metrics"):
                self._measures.graph(str(status))

    def worker_added(self) -> None:
        """Count a worker that joined."""
        with self._safety.guard("metrics"):
            self._measures.worker_added()

    def worker_closes(self, worker: str, reason: object) -> None:
        """Note that a worker has said that it closes."""
        with self._safety.guard("metrics"):
            self._departures.announced(worker, reason)

    def worker_removed(self, worker: object, *, expected: object) -> None:
        """Count a worker that left; ``expected`` is what Dask says of it."""
        if isinstance(expected, bool):
            with self._safety.guard("metrics"):
                self._measures.worker_removed(expected=self._departures.is_expected(worker, expected))

    # What the sweep tells

    def begin_sweep(self) -> None:
        """Note that a sweep begins, in which the number of threads has been read."""
        if self._is_latest:
            with self._safety.guard("metrics"):
                now, steady = time(), monotonic()
                self._measures.begin_sweep(now)
                seconds = self._mirror.threads.available(self._until, now)
                # A clock that was set forward gives the cluster no more of them.
                passed = min(1.0, (steady - self._steady) / (now - self._until)) if now > self._until else 0.0
                self._measures.threads(seconds * passed)
                self._until, self._steady = now, steady

    def clock_set_back(self, seconds: float) -> None:
        """Count on from the clock's new time."""
        self._until -= seconds
        if self._is_latest:
            with self._safety.guard("metrics"):
                self._measures.shift(-seconds)

    def change(self, change: Change) -> None:
        """Count what happened to a task group."""
        if not (change.completed or change.outcomes or change.failed or change.runs):
            return
        with self._safety.guard("metrics"):
            self._measures.change(change)

    def busy(self, span_id: str, seconds: float) -> None:
        """Count busy thread-seconds of a Dask span."""
        with self._safety.guard("metrics"):
            self._measures.busy(self._mirror.forest.root_of(span_id).tags[0], seconds)

    def sent(self, records: Iterable[Record]) -> None:
        """Note records that are on their way to a backend."""
        with self._safety.guard("metrics"):
            self._shown.update(record.span_id for record in records if record.parent_id is None)
            self._measures.tasks_shown(records)

    async def count_ended(self, pace: Pace) -> None:
        """Count the runs of roots that this sweep has ended."""
        for run in self._mirror.roots.drain():
            with self._safety.guard("metrics"):
                self._measures.root_ended(run, self._shown)
            await pace.rest()
        self._shown.clear()

    def swept(self, seconds: float) -> None:
        """Count a sweep, by the time for which it held the event loop."""
        with self._safety.guard("metrics"):
            self._measures.swept(seconds)

    # What comes out

    async def snapshot(self, pace: Pace) -> Snapshot | None:
        """Say how everything is now; None if another watch does."""
        if not self._is_latest:
            return None
        self._measures.begin_snapshot()
        with self._safety.guard("metrics"):
            self._measures.cluster(await read_cluster(self._scheduler, pace), self.delay.drain())
        await read_activities(self._scheduler, self._measures, self._safety, pace)
        roots: Counter[str] = Counter()
        for some in in_parts(list(self._mirror.forest.open_roots)):
            roots.update(root.info.tags[0] for root in some)
            await pace.rest()
        with self._safety.guard("metrics"):
            self._measures.open_roots(roots)
        with self._safety.guard("metrics"):
            errors: Counter[str] = Counter()
            for (where, _), count in self._safety.failures.items():
                errors[where] += count
            self._measures.bridge(self._exporters(), errors)
        measured = []
        for each in self._measures.measured():
            measured.append(each)
            await pace.rest()
        return Snapshot(time(), measured)

    @property
    def _is_latest(self) -> bool:
        return self._measures.owner is self._token


#: Of each scheduler, which they must not keep alive: counters must not go backwards if the bridge is registered again.
_measures: WeakKeyDictionary[Any, Measures] = WeakKeyDictionary()


def _measures_of(scheduler: Any, settings: MeasureSettings, now: float) -> Measures:
    measures = _measures.get(scheduler)
    if measures and measures.settings == settings:
        measures.begin_again(now)
    else:
        measures = _measures[scheduler] = Measures(now, settings)
    return measures
