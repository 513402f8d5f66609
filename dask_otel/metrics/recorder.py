"""Records events and the state of a cluster as metrics.

To add a metric, add an entry in ``schema/metrics.py`` and record it here.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from .. import schema
from ..schema import Metric
from ..spantree.events import Change
from ..spantree.records import Record, RootReasons, RootRun, TaskRecord
from .series import MetricSettings, Registry
from .snapshot import ActivityKey, AttributeValues, Cluster, Exemplar, ExporterCounts, MetricPoints

__all__ = ["Recorder"]

#: Value of ``otel.component.type``.
COMPONENT = "dask_otel"


class Recorder:
    """The metrics of one scheduler.

    Parameters
    ----------
    now
        When recording starts; seconds since the epoch, as all times.
    """

    def __init__(self, now: float, settings: MetricSettings) -> None:
        self.settings = settings
        #: Who may record the state of the cluster: the bridge that was registered last.
        self.owner: object = None
        self._now = now
        #: When the latest snapshot began, and the one before: totals that others count are read once a snapshot.
        self._snapshot = self._previous_snapshot = now
        self._registry = Registry(now, settings)
        #: Of each total that others count (Dask's fine metrics, the exporters' counts), what is recorded already.
        self._recorded: dict[Hashable, float] = {}

    def begin_again(self, now: float) -> None:
        """Go on for another bridge of the same scheduler, whose exporters count from zero."""
        self.begin_sweep(now)
        self._recorded.clear()

    def begin_snapshot(self) -> None:
        """Note that a snapshot begins."""
        self._previous_snapshot, self._snapshot = self._snapshot, self._now

    def begin_sweep(self, now: float) -> None:
        """Note that a sweep begins."""
        self._registry.begin_sweep(now)
        self._now = now

    def collect(self) -> Iterator[MetricPoints]:
        """Return the metrics that have values, one at a time; each is little work."""
        return self._registry.collect()

    # Events

    def change(self, change: Change) -> None:
        """Record what happened to a task group."""
        add, add_counts = self._registry.add, self._registry.add_counts
        prefix, since = change.prefix, min(change.since, self._registry.since)
        if change.completed:
            add(schema.TASK_FINISHED, (prefix, "completed"), change.completed, since)
        for outcome, count in change.outcomes.items():
            add(schema.TASK_FINISHED, (prefix, outcome), count, since)
        seconds = sum(change.workers.values())
        for error, (counts, failed) in change.failed.items():
            add_counts(schema.TASK_DURATION, (prefix, error), counts, failed, since)
            seconds -= failed
        if any(change.runs.values()):
            add_counts(schema.TASK_DURATION, (prefix, None), change.runs, max(0.0, seconds), since)

    def root_ended(self, run: RootRun, shown: Collection[int]) -> None:
        """Record a run of a root span.

        Parameters
        ----------
        shown
            Ids of OTel spans that are in the queue of an exporter.
        """
        values = (run.span.tags[0], run.result)
        seconds = run.end - run.start
        self._registry.observe(schema.SPAN_DURATION, values, seconds)
        if run.span_id in shown:
            exemplar = Exemplar(seconds, self._now, run.trace_id, run.span_id)
            self._registry.exemplify(schema.SPAN_DURATION, values, exemplar)

    def root_explained(self, reasons: RootReasons) -> None:
        """Record why a segment of a root span took as long as it did."""
        root = reasons.span.tags[0]
        for part, seconds in reasons.waterfall.parts.items() if reasons.waterfall else ():
            if seconds > 0:  # what is unaccounted for is negative, and a counter only rises
                self._registry.add(schema.WATERFALL_TIME, (root, part), seconds)
        if reasons.verdict and reasons.verdict.findings:
            first = reasons.verdict.findings[0]
            self._registry.add(schema.VERDICTS, (root, first.id), 1)
            self._registry.add(schema.VERDICT_TIME, (root, first.id), first.at_most)

    def tasks_shown(self, records: Iterable[Record]) -> None:
        """Make exemplars of the tasks among records that are in the queue of an exporter."""
        for record in records:
            if isinstance(record, TaskRecord) and "compute" in record.run.durations:
                run = record.run
                exemplar = Exemplar(run.durations["compute"] / 1e6, self._now, record.trace_id, record.span_id)
                values = (run.prefix, run.error.type if run.error else None)
                self._registry.exemplify(schema.TASK_DURATION, values, exemplar)

    def busy(self, root: str, seconds: float) -> None:
        """Record thread-seconds that tasks of a root span, named by its first tag, used."""
        self._registry.add(schema.SPAN_THREAD_TIME, (root,), seconds)

    def count(self, metric: Metric, value: str | bool | None, number: int) -> None:
        """Add to a counter with one attribute, or with none if ``value`` is None."""
        self._registry.add(metric, () if value is None else (value,), number)

    def threads(self, seconds: float) -> None:
        """Record thread-seconds that the cluster has had."""
        self._registry.add(schema.SCHEDULER_THREAD_TIME, (), seconds)

    def swept(self, seconds: float) -> None:
        """Record a sweep, by the time for which it held the event loop."""
        self._registry.observe(schema.SWEEP_DURATION, (), seconds)

    # State

    def open_roots(self, roots: Mapping[str, int]) -> None:
        """Record how many root spans are open, by first tag."""
        self._registry.set(schema.SPAN_ACTIVE, {(root,): count for root, count in roots.items()})

    def cluster(self, cluster: Cluster, delay: float) -> None:
        """Record the state of the cluster, and the longest delay of its event loop since the latest snapshot."""
        set_ = self._registry.set
        set_(schema.SCHEDULER_TASK_COUNT, {(state,): count for state, count in cluster.tasks.items()})
        set_(schema.SCHEDULER_WORKER_COUNT, {(status,): count for status, count in cluster.workers.items()})
        set_(schema.SCHEDULER_THREAD_COUNT, {(): cluster.threads})
        set_(schema.SCHEDULER_CLIENT_COUNT, {(): cluster.clients})
        set_(schema.SCHEDULER_EVENT_LOOP_DELAY, {(): delay})
        set_(schema.WORKER_MEMORY_USAGE, {("managed",): cluster.managed, ("unmanaged",): cluster.unmanaged})
        set_(schema.WORKER_MEMORY_SPILLED, {(): cluster.spilled})
        if cluster.limit is None:
            self._registry.clear(schema.WORKER_MEMORY_LIMIT)
        else:
            set_(schema.WORKER_MEMORY_LIMIT, {(): cluster.limit})

    # Totals that others count

    def learn_activity(self, key: Hashable, total: float) -> None:
        """Take the total of one of Dask's fine metrics as recorded."""
        self._recorded[key] = total

    def activity(self, key: Hashable, activity: ActivityKey, total: float) -> None:
        """Record the total of one of Dask's fine metrics; ``key`` is Dask's own name for it."""
        change = total - self._recorded.get(key, 0.0)
        if change:
            self._recorded[key] = total
            context, prefix, name, unit = activity
            if metric := {"seconds": schema.ACTIVITY_TIME, "bytes": schema.ACTIVITY_IO}.get(unit):
                self._registry.add(metric, (context, name, prefix), change, self._previous_snapshot)

    def bridge(self, exporters: Iterable[ExporterCounts], errors: Mapping[str, int]) -> None:
        """Record the queues and totals of the exporters, and the failures in dask-otel, by where they were."""
        exporters = list(exporters)
        self._registry.set(schema.SDK_QUEUE_SIZE, {(each.name, COMPONENT): each.waiting for each in exporters})
        self._registry.set(schema.SDK_QUEUE_CAPACITY, {(each.name, COMPONENT): each.capacity for each in exporters})
        for each in exporters:
            left = each.exported + sum(each.failed.values())
            self._reach(schema.SDK_SPANS_PROCESSED, (each.name, COMPONENT, None), left)
            self._reach(schema.SDK_SPANS_EXPORTED, (each.name, COMPONENT, None), each.exported)
            for reason, count in each.dropped.items():
                self._reach(schema.SDK_SPANS_PROCESSED, (each.name, COMPONENT, reason), count)
            for reason, count in each.failed.items():
                self._reach(schema.SDK_SPANS_EXPORTED, (each.name, COMPONENT, reason), count)
        for where, count in errors.items():
            self._reach(schema.BRIDGE_ERRORS, (where,), count)

    def _reach(self, metric: Metric, values: AttributeValues, total: float) -> None:
        key = (metric.name, values)
        self._registry.add(metric, values, total - self._recorded.get(key, 0), self._previous_snapshot)
        self._recorded[key] = total
