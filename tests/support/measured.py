"""The bridge with a sink that keeps a snapshot of every sweep, and Dask's own accounts to compare them with."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distributed import Scheduler, Status, Worker
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.utils_test import gen_cluster
from random_runs.recorder import Recorder

from dask_otel.metrics.snapshot import HistogramPoint, Snapshot
from dask_otel.scheduler.runtime import BridgeSettings
from dask_otel.scheduler.sweep import Output
from dask_otel.schema import MAX_SERIES, Kind
from support.clusters import finished, one_clock
from support.memory import MemoryPlugin


class KeepingSink:
    """A sink that wants metrics at every sweep, unless told otherwise; records go where they went."""

    def __init__(self, sink: Output) -> None:
        self._sink = sink
        self.snapshots: list[Snapshot] = []
        self.is_due = True
        self._arrived = asyncio.Event()
        self.put, self.packing, self.exporters = sink.put, sink.packing, sink.exporters
        self.close, self.close_spans, self.close_metrics = sink.close, sink.close_spans, sink.close_metrics

    def wants_metrics(self, *, last: bool = False) -> bool:
        return last or self.is_due

    def put_metrics(self, snapshot: Snapshot, *, last: bool = False) -> None:
        self.snapshots.append(snapshot)
        self._arrived.set()

    @property
    def is_away(self) -> bool:
        return self._sink.is_away

    @property
    def sampler(self) -> Any:
        return self._sink.sampler

    async def until(self, condition: Callable[[Snapshot], Any]) -> Snapshot:
        """Return the first snapshot from now on of which something holds."""
        while True:
            self._arrived.clear()
            await self._arrived.wait()
            if condition(self.snapshots[-1]):
                return self.snapshots[-1]

    async def fresh(self) -> Snapshot:
        """Return the snapshot of a sweep that begins after now."""
        await self.until(lambda _: True)  # of one that may have begun before
        return await self.until(lambda _: True)


class MeasuredPlugin(MemoryPlugin):
    """The plugin as it is, but for where it sends."""

    keeping: KeepingSink

    def connect(self, scheduler: Any, safety: Any) -> tuple[BridgeSettings, Any]:
        self.scheduler = scheduler
        settings, sink = super().connect(scheduler, safety)
        self.keeping = KeepingSink(sink)
        return settings, self.keeping

    @property
    def last(self) -> Snapshot:
        return self.keeping.snapshots[-1]


class Account(SchedulerPlugin):  # type: ignore[misc]
    """What Dask's hooks tell."""

    name = "account"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: Seconds that each run computed, by prefix, and type of error if it failed.
        self.runs: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        self.workers_added = 0
        #: Of those that left, whether that was expected: by Dask, or since they had begun to close.
        self.workers_removed: Counter[bool] = Counter()
        self._closing: set[str] = set()
        self.graphs: Counter[str] = Counter()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **details: Any) -> None:
        """Note the run that a worker told of; of a transition within another one, only one has it."""
        task = self._scheduler.tasks[key]
        if start == "processing" and finish in ("memory", "erred"):
            # Tests raise what begins with its type's name.
            error = (details.get("exception_text") or "").partition("(")[0] if finish == "erred" else None
            runs = [run for run in details.get("startstops") or () if run["action"] == "compute"]
            if runs:  # the last: a worker that still knew the task tells of its earlier runs again
                self.runs[task.prefix.name, error].append(runs[-1]["stop"] - runs[-1]["start"])

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self.workers_added += 1

    def log_event(self, topic: str, msg: Any) -> None:
        if topic == "all" and msg["action"] == "remove-worker":
            self.workers_removed[msg["expected"] or msg["worker"] in self._closing] += 1
        if topic in self._scheduler.workers and msg.get("status") == "closing":
            self._closing.add(topic)
        if topic == "scheduler" and msg.get("action") == "update-graph":
            self.graphs[msg["status"]] += 1


def measured(*, nthreads=(("127.0.0.1", 1), ("127.0.0.1", 2)), cluster=None, sampler=None, **settings):
    """Run a test with a cluster, a client, the bridge, and accounts of its own; nothing of ours may fail.

    When the test has ended, all is compared that Dask has an account of.
    """

    def decorate(test):
        @gen_cluster(**{"client": True, "nthreads": list(nthreads), "timeout": 90} | (cluster or {}))
        async def run(client, scheduler, *workers):
            plugin = MeasuredPlugin(**settings)
            plugin.sampler = sampler
            plugin.recorder, plugin.account = Recorder(scheduler), Account(scheduler)
            scheduler.add_plugin(plugin.recorder)
            scheduler.add_plugin(plugin.account)
            await plugin.add_to(scheduler)
            with one_clock():
                await test(plugin, client, scheduler, *workers)
                if plugin._bridge:
                    check_sent(plugin.keeping, await finished(plugin))
            check_series(plugin.keeping.snapshots)
            check_runs(plugin.last, plugin.account)
            check_outcomes(plugin.last, plugin.recorder)
            check_counts(plugin.last, plugin.account)

        run.__name__ = test.__name__
        return run

    return decorate


async def all_told(workers: Iterable[Worker]) -> None:
    """Have workers tell all they know, and nothing more on their own account."""
    for worker in workers:
        if worker.status in (Status.running, Status.paused):
            worker.periodic_callbacks["heartbeat"].stop()
            await worker.heartbeat()  # there may be one on its way
            await worker.heartbeat()


def values(snapshot: Snapshot, name: str) -> dict[Any, Any]:
    """Return the points of a metric by labels: numbers, or whole distributions."""
    for measured_ in snapshot.metrics:
        if measured_.metric.name == name:
            return {p.attributes: p if isinstance(p, HistogramPoint) else p.value for p in measured_.points}
    return {}


def value(snapshot: Snapshot, name: str, *labels: Any) -> Any:
    """Return the point with these labels."""
    return values(snapshot, name)[labels]


def bounds(snapshot: Snapshot, name: str) -> tuple[float, ...]:
    return next(each.bounds for each in snapshot.metrics if each.metric.name == name)


def nonzero(numbers: dict[Any, float]) -> dict[Any, float]:
    return {labels: number for labels, number in numbers.items() if number}


def size(snapshot: Snapshot) -> int:
    """Number of series as Prometheus counts them: one for each bucket, ``+Inf`` among them, ``_sum``, ``_count``."""
    return sum(len(each.points) * (len(each.bounds) + 3 if each.bounds else 1) for each in snapshot.metrics)


def check_series(snapshots: Sequence[Snapshot]) -> None:
    """What holds of all snapshots of a run: none is too large, no counter goes back, nothing begins in the future."""
    assert snapshots
    before: dict[Any, Any] = {}
    for snapshot in snapshots:
        assert size(snapshot) <= MAX_SERIES
        now = {}
        for each in snapshot.metrics:
            labels = [point.attributes for point in each.points]
            assert len(set(labels)) == len(labels), each.metric.name
            for point in each.points:
                assert point.start <= snapshot.at, (each.metric.name, point)
                assert len(point.attributes) == len(each.metric.attributes)
                now[each.metric.name, point.attributes] = each.metric.kind, point
        for key, (kind, point) in before.items():
            if kind not in (Kind.COUNTER, Kind.HISTOGRAM):
                continue
            assert key in now, f"{key} is gone"
            later = now[key][1]
            assert later.start == point.start, key
            if kind is Kind.COUNTER:
                assert later.value >= point.value, (key, point, later)
            else:
                assert all(b >= a for a, b in zip(point.counts, later.counts, strict=True)), (key, point, later)
                assert later.sum >= point.sum, (key, point, later)
        before = now


def histogram(seconds: Iterable[float], upper: Sequence[float]) -> list[int]:
    """Count by bucket, the slow way: the first whose upper end is not below, else the last."""
    counts = [0] * (len(upper) + 1)
    for each in seconds:
        counts[next((i for i, bound in enumerate(upper) if each <= bound), len(upper))] += 1
    return counts


def check_runs(snapshot: Snapshot, account: Account) -> None:
    """``dask.task.duration`` is what the workers said of their runs."""
    found = values(snapshot, "dask.task.duration")
    assert found.keys() == account.runs.keys()
    for labels, seconds in account.runs.items():
        assert list(found[labels].counts) == histogram(seconds, bounds(snapshot, "dask.task.duration")), labels
        assert abs(found[labels].sum - sum(seconds)) < 1e-6, (labels, found[labels].sum, seconds)


def check_outcomes(snapshot: Snapshot, recorder: Recorder) -> None:
    """``dask.task.finished`` is how tasks ended, as far as that can be told from transitions alone."""
    seen: Counter[tuple[str, str]] = Counter()
    for group, outcomes in recorder.outcomes.items():
        for outcome, count in outcomes.items():
            seen[group.prefix.name, outcome] += count
    found = values(snapshot, "dask.task.finished")
    told = {labels: n for labels, n in found.items() if labels[1] in ("completed", "erred", "upstream_failed")}
    assert nonzero(told) == seen


def check_sent(keeping: KeepingSink, spans: Sequence[Any]) -> None:
    """The last snapshot knows what became of the last spans."""
    exported = values(keeping.snapshots[-1], "otel.sdk.exporter.span.exported")
    assert nonzero(exported) == ({("memory", "dask_otel", None): len(spans)} if spans else {})
    assert not nonzero(values(keeping.snapshots[-1], "otel.sdk.processor.span.queue.size"))


def check_counts(snapshot: Snapshot, account: Account) -> None:
    """Workers that came and went, and graphs, are what Dask's events say."""
    assert value(snapshot, "dask.worker.added") == account.workers_added
    assert nonzero(values(snapshot, "dask.worker.removed")) == {(e,): n for e, n in account.workers_removed.items()}
    assert nonzero(values(snapshot, "dask.graph.updates")) == {(s,): n for s, n in account.graphs.items()}
