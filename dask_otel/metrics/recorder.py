"""All that is measured: told by the sweep, read by it when metrics are to be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from ..spantree.events import Change
from ..spantree.records import Record, RootRun, TaskRecord
from .registry import MetricSettings, Registry
from .snapshot import ActivityKey, Cluster, Exemplar, ExporterCounts, MetricPoints

__all__ = ["Recorder"]

#: ``otel.component.type`` of our exporters' queues.
COMPONENT = "dask_otel"


class Recorder:
    """Counts what happens, and holds how it is.

    Parameters
    ----------
    now
        When it begins to count; seconds since the epoch, as all times.
    """

    def __init__(self, now: float, settings: MetricSettings) -> None:
        self.settings = settings
        #: Who tells how the cluster is: the latest watch of it.
        self.owner: object = None
        self._now = now
        #: When what others count was read, and before that.
        self._read = self._read_before = now
        self._registry = Registry(now, settings)
        #: What of each activity has been counted.
        self._counted: dict[Hashable, float] = {}

    def begin_again(self, now: float) -> None:
        """Go on counting for another watch of the same scheduler, whose exporters begin at zero."""
        self.begin_sweep(now)
        self._registry.begin_totals()

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self._now += seconds
        self._read += seconds
        self._read_before += seconds
        self._registry.shift(seconds)

    def begin_snapshot(self) -> None:
        """Note that what Dask and the exporters count is read."""
        self._read_before, self._read = self._read, self._now

    def begin_sweep(self, now: float) -> None:
        """Note that a sweep begins."""
        self._registry.begin_sweep(now)
        self._now = now

    def change(self, change: Change) -> None:
        """Count what happened to a task group."""
        prefix, since = self._registry.prefix(change.prefix), self._registry.zero_at(change.since)
        finished = self._registry.numbers("dask.task.finished")
        if change.completed:
            finished.add((prefix, "completed"), change.completed, since)
        for outcome, count in change.outcomes.items():
            finished.add((prefix, outcome), count, since)
        duration = self._registry.histogram("dask.task.duration")
        seconds = sum(change.workers.values())
        for error, (counts, failed) in change.failed.items():
            duration.add_counts((prefix, self._registry.error(error)), counts, failed, since)
            seconds -= failed
        if any(change.runs.values()):
            duration.add_counts((prefix, None), change.runs, max(0.0, seconds), since)

    def root_ended(self, run: RootRun, shown: Collection[int]) -> None:
        """Count a run of a root span.

        Parameters
        ----------
        shown
            Ids of OTel spans that are on their way to a backend.
        """
        labels = (self._registry.root(run.span.tags[0]), run.result)
        seconds = run.end - run.start
        duration = self._registry.histogram("dask.span.duration")
        duration.add(labels, seconds)
        if run.span_id in shown:
            duration.exemplify(labels, Exemplar(seconds, self._now, run.trace_id, run.span_id))

    def tasks_shown(self, records: Iterable[Record]) -> None:
        """Take the tasks among records that are on their way to a backend for examples."""
        duration = self._registry.histogram("dask.task.duration")
        for record in records:
            if isinstance(record, TaskRecord) and "compute" in record.run.durations:
                run = record.run
                error = self._registry.errors.known(self._registry.label(run.error.type)) if run.error else None
                labels = (self._registry.prefixes.known(self._registry.label(run.prefix)), error)
                seconds = run.durations["compute"] / 1e6
                duration.exemplify(labels, Exemplar(seconds, self._now, record.trace_id, record.span_id))

    def busy(self, root: str, seconds: float) -> None:
        """Count busy thread-seconds of a root's tree."""
        self._registry.numbers("dask.span.thread_time").add((self._registry.root(root),), seconds)

    def open_roots(self, roots: Mapping[str, int]) -> None:
        """Say how many roots are open, by first tag."""
        active: Counter[str] = Counter()
        for name, count in roots.items():
            active[self._registry.root(name)] += count
        self._registry.numbers("dask.span.active").set({(root,): count for root, count in active.items()})

    def count(self, metric: str, value: str | bool | None, number: int) -> None:
        """Add to a counter with one attribute, or with none if ``value`` is None."""
        self._registry.numbers(metric).add(() if value is None else (value,), number)

    def threads(self, seconds: float) -> None:
        """Count thread-seconds that the cluster has had."""
        self._registry.numbers("dask.scheduler.thread_time").add((), seconds)

    def swept(self, seconds: float) -> None:
        """Count a sweep, by the time for which it held the event loop."""
        self._registry.histogram("dask_otel.sweep.duration").add((), seconds)

    def learn_activity(self, key: Hashable, total: float) -> None:
        """Take one of Dask's fine metrics as it is for the zero from which to count."""
        self._counted[key] = total

    def activity(self, key: Hashable, activity: ActivityKey, total: float) -> None:
        """Say to what one of Dask's fine metrics has come; ``key`` is Dask's own name for it."""
        change = total - self._counted.get(key, 0.0)
        if change:
            self._counted[key] = total
            self._activity(activity, change)

    def cluster(self, cluster: Cluster, delay: float) -> None:
        """Say how the cluster is; ``delay`` is the longest of the event loop since it was last said, seconds."""
        self._registry.numbers("dask.scheduler.task.count").set({(state,): n for state, n in cluster.tasks.items()})
        self._registry.numbers("dask.scheduler.worker.count").set(
            {(status,): n for status, n in cluster.workers.items()}
        )
        self._registry.numbers("dask.scheduler.thread.count").set({(): cluster.threads})
        self._registry.numbers("dask.scheduler.client.count").set({(): cluster.clients})
        memory = {("managed",): cluster.managed, ("unmanaged",): cluster.unmanaged}
        self._registry.numbers("dask.worker.memory.usage").set(memory)
        self._registry.numbers("dask.worker.memory.spilled").set({(): cluster.spilled})
        limit = self._registry.numbers("dask.worker.memory.limit")
        limit.clear()
        if cluster.limit is not None:
            limit.set({(): cluster.limit})
        self._registry.numbers("dask.scheduler.event_loop.delay").set({(): delay})

    def bridge(self, exporters: Iterable[ExporterCounts], errors: Mapping[str, int]) -> None:
        """Say how the bridge itself is doing; counts since it began."""
        size = self._registry.numbers("otel.sdk.processor.span.queue.size")
        exporters = list(exporters)
        size.set({(each.name, COMPONENT): each.waiting for each in exporters})
        capacity = self._registry.numbers("otel.sdk.processor.span.queue.capacity")
        capacity.set({(each.name, COMPONENT): each.capacity for each in exporters})
        processed = self._registry.numbers("otel.sdk.processor.span.processed")
        exported = self._registry.numbers("otel.sdk.exporter.span.exported")
        for each in exporters:
            processed.reach((each.name, COMPONENT, None), each.exported + sum(each.failed.values()), self._read_before)
            exported.reach((each.name, COMPONENT, None), each.exported, self._read_before)
            for reason, count in each.dropped.items():
                processed.reach((each.name, COMPONENT, reason), count, self._read_before)
            for reason, count in each.failed.items():
                exported.reach((each.name, COMPONENT, reason), count, self._read_before)
        for where, count in errors.items():
            self._registry.numbers("dask_otel.errors").reach((self._registry.label(where),), count, self._read_before)

    def measured(self) -> Iterator[MetricPoints]:
        """Return the metrics that have values, one at a time; each is little work."""
        return self._registry.measured()

    def _activity(self, activity: ActivityKey, change: float) -> None:
        context, prefix, name, unit = activity
        metric = {"seconds": "dask.activity.time", "bytes": "dask.activity.io"}.get(unit)
        if metric:
            labels = self._registry.activity(context, name, prefix)
            self._registry.numbers(metric).add(labels, change, self._read_before)
