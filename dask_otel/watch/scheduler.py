"""The scheduler plugin: hooks, the sweep's rhythm, and closing."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.metrics import time
from distributed.scheduler import heartbeat_interval

from ..mirror.records import Record
from ..mirror.segments import Mirror
from ..mirror.settings import MirrorSettings
from ..safety import Safety, log
from .drift import can_work
from .graphs import Graphs
from .latches import Latches
from .metrics import MetricsTap
from .submissions import Submissions
from .sweep import Sweeper

__all__ = ["SchedulerWatch", "Sink", "WatchSettings"]


class Sink(Protocol):
    """Where records go."""

    def put(self, records: list[Record]) -> None:
        """Take records that should leave together; never blocks."""

    def close(self, timeout: float) -> None:
        """Send what is left, within ``timeout`` seconds; blocks."""


@dataclass(frozen=True)
class WatchSettings:
    """What the watch needs to know; times in seconds."""

    sweep_interval: float = 1.0
    shutdown_timeout: float = 10.0
    #: Names of Dask annotations that may be shown.
    annotations: tuple[str, ...] = ()
    mirror: MirrorSettings = field(default_factory=MirrorSettings)


class SchedulerWatch(SchedulerPlugin):  # type: ignore[misc]
    """Mirrors a scheduler's spans into a sink.

    All state is made in :meth:`start`, so that the plugin can be sent to a running cluster.
    """

    name = "dask-otel"
    idempotent = True

    def __init__(self) -> None:
        #: Set while the watch is on.
        self._watch: _Watch | None = None
        #: Where records go; stays after the watch has stopped.
        self.sink: Sink | None = None

    @abstractmethod
    def connect(self, scheduler: Any, safety: Safety) -> tuple[WatchSettings, Sink] | None:
        """Read the settings and make the sink; None if the watch is to stay off."""

    async def start(self, scheduler: Any) -> None:
        """Start watching; called by Dask. Never raises."""
        safety = Safety()
        with safety.guard("start"):
            connected = self.connect(scheduler, safety) if can_work(scheduler) else None
            if connected:
                self.sink = connected[1]
                self._watch = _Watch(self, scheduler, safety, *connected)
                self.transition = self._watch.latches.transition  # type: ignore[method-assign]
        if self._watch is None:
            with safety.guard("start"):
                if self.sink:
                    self.sink.close(0.0)
            # Dask may add the plugin only after this returns.
            asyncio.get_running_loop().call_soon(_withdraw, self, scheduler)

    async def before_close(self) -> None:
        """Send everything; called by Dask when the scheduler closes, while its workers may still be there."""
        if self._watch:
            # Whoever gives up waiting must not stop it half-way.
            await asyncio.shield(self._watch.close())

    def stopped(self) -> None:
        """Forget the watch; the hooks do nothing from now on."""
        self._watch = None
        self.__dict__.pop("transition", None)

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Do nothing; while the watch is on, ``Latches.transition`` takes this one's place and saves a call."""

    def update_graph(self, scheduler: Any, *, tasks: Any, annotations: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Note a graph; called by Dask when it has been taken in."""
        if self._watch:
            with self._watch.safety.guard("update_graph hook"):
                self._watch.graph(tasks, annotations, stimulus_id)

    def log_event(self, topic: str, msg: Any) -> None:
        """Note how long a graph took to take in, or that it failed; called by Dask for each event."""
        if self._watch and topic == "scheduler":
            with self._watch.safety.guard("log_event hook"):
                if isinstance(msg, dict) and msg.get("action") == "update-graph":
                    self._watch.graph_event(msg)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Note a new worker; called by Dask."""
        if self._watch:
            with self._watch.safety.guard("add_worker hook"):
                self._watch.mirror.heartbeats.joined(worker, time())

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Note that a worker left; called by Dask."""
        if self._watch:
            with self._watch.safety.guard("remove_worker hook"):
                self._watch.mirror.worker_left(worker)


class _Watch:
    """What runs between start and close."""

    def __init__(
        self, plugin: SchedulerWatch, scheduler: Any, safety: Safety, settings: WatchSettings, sink: Sink
    ) -> None:
        self._plugin = plugin
        self._scheduler = scheduler
        self._settings = settings
        self._sink = sink
        self.safety = safety
        extension = scheduler.extensions["spans"]
        self.mirror = Mirror(time(), scheduler.total_nthreads, settings.mirror)
        first_number = _first_number(scheduler)
        self.latches = Latches(scheduler, safety, first_number)
        self.submissions = Submissions(scheduler, self.latches.claims.keys, safety)
        self.graphs = Graphs(scheduler.tasks, self.latches, settings.annotations)
        self._metrics = MetricsTap(extension, self.mirror.heartbeats, safety)
        self._sweeper = Sweeper(
            scheduler, self.mirror, self.latches, self.graphs, self._metrics, sink.put, safety, first_number
        )
        self._sweeper.learn()
        self._closing: asyncio.Task[None] | None = None
        # Last: what comes before may fail.
        self._metrics.install()
        self.submissions.install()
        self._sweeping = asyncio.create_task(self._sweep_regularly(), name="dask-otel sweep")

    def graph(self, tasks: Any, annotations: Any, stimulus_id: str) -> None:
        """Note a graph that was taken in."""
        submission = self.submissions.current()
        if submission:
            self.graphs.taken_in(submission, annotations, stimulus_id)
        else:  # somebody called the scheduler's method directly
            for group in {self._scheduler.tasks[key].group for key in tasks}:
                self.latches.touch(group)

    def graph_event(self, event: Any) -> None:
        """Note what Dask says after it has taken in a graph, or failed to."""
        submission = self.submissions.current()
        if "metrics" in event:
            self.graphs.timed(event["stimulus_id"], event["metrics"]["duration_seconds"])
        elif submission:
            self.graphs.failed(submission, event["status"])

    def close(self) -> asyncio.Task[None]:
        """Stop, wait for the workers' last metrics, send everything; always the same task."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="dask-otel close")
        return self._closing

    async def _close(self) -> None:
        deadline = perf_counter() + self._settings.shutdown_timeout
        with self.safety.guard("closing"):
            await self._await_metrics()
            await self._sweeper.close()
        # Only now: cancelled in the middle of a sweep, it would lose what it had drained.
        self._sweeping.cancel()
        self._metrics.remove()
        self.submissions.remove()
        self._plugin.stopped()
        with self.safety.guard("closing"):
            timeout = max(0.0, deadline - perf_counter())
            await asyncio.get_running_loop().run_in_executor(None, self._sink.close, timeout)

    async def _sweep_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            if not _is_registered(self._plugin, self._scheduler):
                log.info("dask-otel stops: its plugin is no longer registered with the scheduler")
                self.close()
                return
            with self.safety.guard("sweep"):
                await self._sweeper.sweep()

    async def _await_metrics(self) -> None:
        """Give workers that are still there a heartbeat interval to deliver."""
        heard = asyncio.Event()
        self._metrics.on_heartbeat = heard.set
        workers = len(self._scheduler.workers)
        # A worker's first heartbeat comes after 1 s, whatever the interval.
        wait = min(1.2 * max(1.0, heartbeat_interval(workers)), self._settings.shutdown_timeout / 2)
        deadline = perf_counter() + wait
        await self._sweeper.sweep()
        while self.mirror.owes_metrics(time()) and perf_counter() < deadline:
            heard.clear()
            try:
                await asyncio.wait_for(heard.wait(), deadline - perf_counter())
            except asyncio.TimeoutError:
                return


def _is_registered(plugin: SchedulerWatch, scheduler: Any) -> bool:
    """Whether the scheduler has the plugin, under whatever name."""
    return any(each is plugin for each in scheduler.plugins.values())


def _withdraw(plugin: SchedulerWatch, scheduler: Any) -> None:
    """Unregister a plugin that stays off, so that it costs nothing."""
    for name in [name for name, each in scheduler.plugins.items() if each is plugin]:
        del scheduler.plugins[name]


#: How many watches a scheduler has had.
_watches: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _first_number(scheduler: Any) -> int:
    """Where this watch's segment numbers begin for spans that an earlier one may have sent: no id may repeat."""
    earlier = _watches.get(scheduler, 0)
    _watches[scheduler] = earlier + 1
    return earlier * 1_000_000
