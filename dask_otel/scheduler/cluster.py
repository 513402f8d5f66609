"""Metrics of the cluster: reads the scheduler's own numbers and passes them, with those of the sweep, to the recorder.

What fails here affects metrics only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import islice
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import dask.config
from dask.utils import parse_timedelta

from ..metrics.recorder import Recorder
from ..metrics.series import MetricSettings
from ..metrics.snapshot import ActivityKey, Cluster, ExporterCounts, Snapshot
from ..safety import Safety
from ..schema import Metric, identifier
from ..spantree.events import Change
from ..spantree.lifecycle import SpanTree
from ..spantree.records import Record
from .compat import Tap
from .pace import Clock, Pace

__all__ = ["ClusterMetrics", "Delay", "Departures", "in_parts", "read_activities", "read_cluster"]


#: Items that are read in one step, within a tenth of a slice.
AT_ONCE = 100
#: States of tasks and statuses of workers that have a series even if their number is 0.
_STATES = ("released", "waiting", "no-worker", "queued", "processing", "memory", "erred")
_STATUSES = ("running", "paused", "closing_gracefully")
#: How the reasons end for which a worker closes because of a failure.
_BROKEN = ("-fail-hard", "-heartbeat-error")

Item = TypeVar("Item")


class Delay(Tap):
    """The delay of the event loop, from the ticks that Dask reports to ``Server.digest_metric``.

    Dask keeps a maximum, too, but others reset it.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    """

    def __init__(self, scheduler: Any, safety: Safety) -> None:
        super().__init__(scheduler, "digest_metric", safety)
        #: Seconds from one tick to the next without a delay.
        self._regular = float(parse_timedelta(dask.config.get("distributed.admin.tick.interval"), default="ms"))
        self._least = 2 * self._regular
        self._longest = 0.0
        #: Seconds by which ticks were late, in all: those that were late by more than one tick.
        self.late = 0.0

    def take(self) -> float:
        """Return the longest delay of a tick since the last call, in seconds."""
        longest, self._longest = self._longest, 0.0
        return max(0.0, longest - self._regular)

    def _called(self, name: Any, value: float) -> None:
        self._original(name, value)
        # Called at each tick, also on an idle scheduler, so it has no guard; Dask itself has compared the value before.
        if name == "tick-duration" and self._listening:
            if value > self._longest:
                self._longest = value
            if value > self._least:
                self.late += value - self._regular


class Departures:
    """Remembers which workers have reported that they close.

    Dask calls a departure expected only if the scheduler retired the worker by its address. ``LocalCluster.scale``,
    ``Client.restart`` and a nanny close workers directly: these report that they close; a worker that is killed or lost
    does not.

    Parameters
    ----------
    workers
        ``Scheduler.workers``. Events of other topics than these do not count: clients can log any event.
    """

    def __init__(self, workers: Container[str]) -> None:
        self._workers = workers
        self._closing: set[str] = set()

    def announced(self, worker: str, reason: object) -> None:
        """Note that a worker has reported that it closes, and why."""
        if worker in self._workers and not (isinstance(reason, str) and reason.endswith(_BROKEN)):
            self._closing.add(worker)

    def is_expected(self, worker: object, expected: object) -> bool:
        """Return whether the departure of a worker was expected; ``expected`` is Dask's own answer."""
        announced = str(worker) in self._closing
        self._closing.discard(str(worker))
        return announced or expected is True


async def read_cluster(scheduler: Any, pace: Pace) -> Cluster:
    """Count tasks, workers and memory; takes about a microsecond for each task group, and three for each worker."""
    tasks = Counter(dict.fromkeys(_STATES, 0))
    for groups in in_parts(list(scheduler.task_groups.values())):
        for group in groups:
            for state, count in group.states.items():
                tasks[state] += count
        await pace.rest()
    del tasks["forgotten"]  # tasks that are no longer on the scheduler
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


async def read_activities(scheduler: Any, recorder: Recorder, safety: Safety, pace: Pace) -> None:
    """Record the totals of Dask's fine metrics; takes about two microseconds for each."""
    for some in in_parts(list(scheduler.cumulative_worker_metrics.items())):
        for key, total in some:
            with safety.guard("metrics"):  # users may add anything
                if activity := _activity(key):
                    recorder.activity(key, activity, total)
        await pace.rest()


def _activity(key: Any) -> ActivityKey | None:
    """Read ``("execute", prefix, activity, unit)``, ``("p2p", where, activity, unit)``, or three: context, …"""
    if not isinstance(key, tuple):  # a metric of the worker, not of an activity
        return None
    if len(key) == 4 and key[0] == "execute":
        return "execute", str(key[1]), identifier(key[2]), str(key[3])
    if len(key) == 4 and key[0] == "p2p":
        return f"p2p.{identifier(key[1])}", None, identifier(key[2]), str(key[3])
    return (identifier(key[0]), None, identifier(key[1]), str(key[2])) if len(key) == 3 else None


def in_parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Divide items into parts that are little work."""
    rest = iter(items)
    while part := list(islice(rest, AT_ONCE)):
        yield part


class ClusterMetrics:
    """Passes the numbers of one scheduler and of the sweep to its recorder, and makes snapshots.

    Parameters
    ----------
    exporters
        Returns what became of the spans.
    """

    def __init__(
        self,
        scheduler: Any,
        span_tree: SpanTree,
        settings: MetricSettings,
        delay: Delay,
        exporters: Callable[[], Iterable[ExporterCounts]],
        clock: Clock,
        safety: Safety,
    ) -> None:
        self._scheduler = scheduler
        self._span_tree = span_tree
        self._clock = clock
        self._delay = delay
        self._exporters = exporters
        self._safety = safety
        #: Until when thread-seconds are recorded, also by the monotonic clock.
        self._until, self._steady = clock.now(), monotonic()
        self._recorder = _recorder_of(scheduler, settings, self._until)
        #: An object of its own: the recorder must not keep the bridge alive.
        self._token = self._recorder.owner = object()
        #: Ids of the root segments that this sweep has put into the queue of an exporter.
        self._shown: set[int] = set()

    def read_baseline(self) -> None:
        """Take Dask's own totals as recorded."""
        for key, total in self._scheduler.cumulative_worker_metrics.items():
            self._recorder.learn_activity(key, total)

    def begin_sweep(self) -> None:
        """Note that a sweep begins, in which the number of threads has been read."""
        if self._is_latest:
            with self._safety.guard("metrics"):
                now, steady = self._clock.now(), monotonic()
                self._recorder.begin_sweep(now)
                seconds = self._span_tree.threads.available(self._until, now)
                # If the clock was set forward, the cluster has had no more thread-seconds for it.
                passed = min(1.0, (steady - self._steady) / (now - self._until)) if now > self._until else 0.0
                self._recorder.threads(seconds * passed)
                self._until, self._steady = now, steady

    def count(self, counts: Mapping[tuple[Metric, Any], int]) -> None:
        """Record what hooks counted for metrics only, by metric and value of the attribute."""
        for (metric, value), number in counts.items():
            with self._safety.guard("metrics"):
                self._recorder.count(metric, value, number)

    def change(self, change: Change) -> None:
        """Record what happened to a task group."""
        if not (change.completed or change.outcomes or change.failed or change.runs):
            return
        with self._safety.guard("metrics"):
            self._recorder.change(change)

    def busy(self, span_id: str, seconds: float) -> None:
        """Record busy thread-seconds of a Dask span."""
        with self._safety.guard("metrics"):
            self._recorder.busy(self._span_tree.forest.root_of(span_id).tags[0], seconds)

    def sent(self, records: Iterable[Record]) -> None:
        """Note records that are in the queue of an exporter, for exemplars."""
        with self._safety.guard("metrics"):
            self._shown.update(record.span_id for record in records if record.is_top)
            self._recorder.tasks_shown(records)

    async def count_ended(self, pace: Pace) -> None:
        """Record the runs that this sweep has ended."""
        for run in self._span_tree.roots.drain():
            with self._safety.guard("metrics"):
                self._recorder.root_ended(run, self._shown)
            await pace.rest()
        for reasons in self._span_tree.roots.drain_reasons():
            with self._safety.guard("metrics"):
                self._recorder.root_explained(reasons)
            await pace.rest()
        self._shown.clear()

    def swept(self, seconds: float) -> None:
        """Record a sweep, by the time for which it held the event loop."""
        with self._safety.guard("metrics"):
            self._recorder.swept(seconds)

    async def snapshot(self, pace: Pace) -> Snapshot | None:
        """Return a snapshot of all metrics; None if another bridge was registered for the scheduler since."""
        if not self._is_latest:
            return None
        self._recorder.begin_snapshot()
        with self._safety.guard("metrics"):
            self._recorder.cluster(await read_cluster(self._scheduler, pace), self._delay.take())
        await read_activities(self._scheduler, self._recorder, self._safety, pace)
        roots: Counter[str] = Counter()
        for some in in_parts(list(self._span_tree.forest.open_tops)):
            roots.update(top.info.tags[0] for top in some)
            await pace.rest()
        with self._safety.guard("metrics"):
            self._recorder.open_roots(roots)
        with self._safety.guard("metrics"):
            errors: Counter[str] = Counter()
            for (where, _), count in self._safety.failures.items():
                errors[where] += count
            self._recorder.bridge(self._exporters(), errors)
        metrics = []
        for each in self._recorder.collect():
            metrics.append(each)
            await pace.rest()
        return Snapshot(self._clock.now(), metrics, self._clock.offset)

    @property
    def _is_latest(self) -> bool:
        return self._recorder.owner is self._token


#: By scheduler. It outlives the bridge, so that counters do not go backwards if the bridge is registered again.
_recorders: WeakKeyDictionary[Any, Recorder] = WeakKeyDictionary()


def _recorder_of(scheduler: Any, settings: MetricSettings, now: float) -> Recorder:
    recorder = _recorders.get(scheduler)
    if recorder and recorder.settings == settings:
        recorder.begin_again(now)
    else:
        recorder = _recorders[scheduler] = Recorder(now, settings)
    return recorder
