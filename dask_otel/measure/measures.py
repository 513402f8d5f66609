"""All that is measured: told by the sweep, read by it when metrics are to be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from ..mirror.model import Change
from ..mirror.records import Record, TaskRecord
from ..mirror.roots import RootRun
from .catalog import METRICS, ZEROS, Kind
from .names import Names, Rewriting
from .series import Histogram, Numbers, Room, Series
from .settings import SWEEP_BOUNDS, MeasureSettings
from .snapshot import Exemplar, Measured
from .state import Activity, Cluster, Exporter

__all__ = ["Measures"]

#: Names at a time, other than of prefixes and roots.
MAX_CONTEXTS = 16
MAX_ACTIVITIES = 32
MAX_ERRORS = 32
#: ``otel.component.type`` of our exporters' queues.
COMPONENT = "dask_otel"


class Measures:
    """Counts what happens, and holds how it is.

    Parameters
    ----------
    now
        When it begins to count; seconds since the epoch, as all times.
    """

    def __init__(self, now: float, settings: MeasureSettings) -> None:
        self.settings = settings
        self._now = now
        self._room = Room(now)
        self._room.make_some = self._forget_unused
        #: Of metrics that are not wanted: counted like the others, but never shown.
        self._elsewhere = Room(now)
        self._excluded = settings.excluded
        self._all: dict[str, Series] = {}
        for metric in METRICS.values():
            room = self._elsewhere if metric.name in settings.excluded else self._room
            if metric.kind is Kind.HISTOGRAM:
                bounds = {"dask.task.duration": settings.task_bounds, "dask.span.duration": settings.span_bounds}
                self._all[metric.name] = Histogram(metric, room, bounds.get(metric.name, SWEEP_BOUNDS))
            else:
                self._all[metric.name] = Numbers(metric, room)
        self._rewrite = Rewriting(settings.root_names)
        self._label = Rewriting()
        self._prefixes = self._names("dask.task.prefix")
        self._roots = self._names("dask.span.root")
        self._errors = self._names("error.type", MAX_ERRORS)
        self._contexts = self._names("dask.context", MAX_CONTEXTS)
        self._activities = self._names("dask.activity", MAX_ACTIVITIES)
        self._open_names = (self._prefixes, self._roots, self._errors, self._contexts, self._activities)
        #: What of each activity has been counted.
        self._counted: dict[Hashable, float] = {}
        for name, labels in ZEROS:
            self._numbers(name).add(labels, 0)

    # What the sweep tells

    def begin_again(self, now: float) -> None:
        """Go on counting for another watch of the same scheduler, whose exporters begin at zero."""
        self.begin_sweep(now)
        for series in self._all.values():
            if isinstance(series, Numbers):
                series.begin_totals()

    def begin_sweep(self, now: float) -> None:
        """Note that a sweep begins."""
        self._room.since = self._elsewhere.since = self._now
        self._now = now

    def change(self, change: Change) -> None:
        """Count what happened to a task group."""
        prefix = self._prefix(change.prefix)
        finished = self._numbers("dask.task.finished")
        if change.completed:
            finished.add((prefix, "completed"), change.completed)
        for outcome, count in change.outcomes.items():
            finished.add((prefix, outcome), count)
        duration = self._histogram("dask.task.duration")
        seconds = sum(change.workers.values())
        for error, (counts, failed) in change.failed.items():
            duration.add_counts((prefix, self._error(error)), counts, failed)
            seconds -= failed
        if any(change.runs):
            duration.add_counts((prefix, None), change.runs, max(0.0, seconds))

    def root_ended(self, run: RootRun, shown: Collection[int]) -> None:
        """Count a run of a root span.

        Parameters
        ----------
        shown
            Ids of OTel spans that are on their way to a backend.
        """
        labels = (self._root(run.span.tags[0]), run.result)
        seconds = run.end - run.start
        duration = self._histogram("dask.span.duration")
        duration.add(labels, seconds)
        if run.span_id in shown:
            duration.exemplify(labels, Exemplar(seconds, self._now, run.trace_id, run.span_id))

    def tasks_shown(self, records: Iterable[Record]) -> None:
        """Take the tasks among records that are on their way to a backend for examples."""
        duration = self._histogram("dask.task.duration")
        for record in records:
            if isinstance(record, TaskRecord) and "compute" in record.run.durations:
                run = record.run
                labels = (self._prefix(run.prefix), self._error(run.error.type) if run.error else None)
                seconds = run.durations["compute"] / 1e6
                duration.exemplify(labels, Exemplar(seconds, self._now, record.trace_id, record.span_id))

    def busy(self, root: str, seconds: float) -> None:
        """Count busy thread-seconds of a root's tree."""
        self._numbers("dask.span.thread_time").add((self._root(root),), seconds)

    def open_roots(self, roots: Iterable[str]) -> None:
        """Say which roots are open, by first tag."""
        active = Counter(map(self._root, roots))
        self._numbers("dask.span.active").set({(root,): count for root, count in active.items()})

    def graph(self, status: str) -> None:
        """Count a graph that was submitted."""
        self._numbers("dask.graph.updates").add((status,), 1)

    def worker_added(self) -> None:
        """Count a worker that joined."""
        self._numbers("dask.worker.added").add((), 1)

    def worker_removed(self, *, expected: bool) -> None:
        """Count a worker that left."""
        self._numbers("dask.worker.removed").add((expected,), 1)

    def threads(self, seconds: float) -> None:
        """Count thread-seconds that the cluster has had."""
        self._numbers("dask.scheduler.thread_time").add((), seconds)

    def swept(self, seconds: float) -> None:
        """Count a sweep, by the time for which it held the event loop."""
        self._histogram("dask_otel.sweep.duration").add((), seconds)

    def activities(self, totals: Iterable[tuple[Hashable, Activity, float]]) -> None:
        """Count what has come to Dask's fine metrics, each with Dask's own name for it and its total."""
        for key, activity, total in totals:
            change = total - self._counted.get(key, 0.0)
            if change:
                self._counted[key] = total
                self._activity(activity, change)

    def cluster(self, cluster: Cluster, delay: float) -> None:
        """Say how the cluster is; ``delay`` is the longest of the event loop since it was last said, seconds."""
        self._numbers("dask.scheduler.task.count").set({(state,): n for state, n in cluster.tasks.items()})
        self._numbers("dask.scheduler.worker.count").set({(status,): n for status, n in cluster.workers.items()})
        self._numbers("dask.scheduler.thread.count").set({(): cluster.threads})
        self._numbers("dask.scheduler.client.count").set({(): cluster.clients})
        memory = {("managed",): cluster.managed, ("unmanaged",): cluster.unmanaged}
        self._numbers("dask.worker.memory.usage").set(memory)
        self._numbers("dask.worker.memory.spilled").set({(): cluster.spilled})
        limit = self._numbers("dask.worker.memory.limit")
        limit.clear()
        if cluster.limit is not None:
            limit.set({(): cluster.limit})
        self._numbers("dask.scheduler.event_loop.delay").set({(): delay})

    def bridge(self, exporters: Iterable[Exporter], errors: Mapping[str, int]) -> None:
        """Say how the bridge itself is doing; counts since it began."""
        size = self._numbers("otel.sdk.processor.span.queue.size")
        exporters = list(exporters)
        size.set({(each.name, COMPONENT): each.waiting for each in exporters})
        capacity = self._numbers("otel.sdk.processor.span.queue.capacity")
        capacity.set({(each.name, COMPONENT): each.capacity for each in exporters})
        processed = self._numbers("otel.sdk.processor.span.processed")
        exported = self._numbers("otel.sdk.exporter.span.exported")
        for each in exporters:
            processed.reach((each.name, COMPONENT, None), each.exported + sum(each.failed.values()))
            exported.reach((each.name, COMPONENT, None), each.exported)
            for reason, count in each.dropped.items():
                processed.reach((each.name, COMPONENT, reason), count)
            for reason, count in each.failed.items():
                exported.reach((each.name, COMPONENT, reason), count)
        for where, count in errors.items():
            self._numbers("dask_otel.errors").reach((self._label(where),), count)

    # What comes out

    def measured(self) -> Iterator[Measured]:
        """Return the metrics that have values, one at a time; each is little work."""
        for name, series in self._all.items():
            if name not in self._excluded:
                measured = series.measured()
                if measured.points:
                    yield measured

    # Inside

    def _activity(self, activity: Activity, change: float) -> None:
        context, prefix, name, unit = activity
        metric = {"seconds": "dask.activity.time", "bytes": "dask.activity.io"}.get(unit)
        if metric is None:
            return
        labels = (
            self._contexts.use(context, self._now),
            self._activities.use(name, self._now),
            None if prefix is None else self._prefix(prefix),
        )
        self._numbers(metric).add(labels, change)

    def _prefix(self, name: str) -> str:
        return self._prefixes.use(self._label(name), self._now)

    def _root(self, name: str) -> str:
        return self._roots.use(self._rewrite(name), self._now)

    def _error(self, name: str) -> str:
        return self._errors.use(self._label(name), self._now)

    def _names(self, label: str, *most: int) -> Names:
        def forget(name: str) -> None:
            for series in self._all.values():
                series.forget(label, name)

        return Names(forget, *most)

    def _forget_unused(self) -> None:
        for names in self._open_names:
            names.forget_unused(self._now)

    def _numbers(self, name: str) -> Numbers:
        series = self._all[name]
        assert isinstance(series, Numbers)
        return series

    def _histogram(self, name: str) -> Histogram:
        series = self._all[name]
        assert isinstance(series, Histogram)
        return series
