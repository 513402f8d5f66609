"""The scheduler plugin: Dask calls its hooks, which append to the inbox."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from functools import partial
from time import time
from typing import Any
from weakref import WeakKeyDictionary, ref

from distributed.diagnostics.plugin import SchedulerPlugin

from ..safety import Safety, why_off
from ..schema import GRAPH_UPDATES, WORKER_ADDED, WORKER_REMOVED
from .compat import can_work
from .runtime import BridgeSettings, SchedulerBridge
from .sweep import Output

__all__ = ["BridgePlugin"]

#: Why the bridge is off if no line of the log was recorded, such as with a higher level of logging.
_UNKNOWN = "see the lines of distributed.dask_otel in the scheduler's log"
#: How the scheduler may have taken a graph in, as its events say.
GRAPH_STATUSES = ("OK", "error", "cancelled")


class BridgePlugin(SchedulerPlugin):  # type: ignore[misc]
    """Mirrors a scheduler's spans into a sink.

    All state is made in :meth:`start`, so that the plugin can be sent to a running cluster.
    """

    name = "dask-otel"
    idempotent = True

    def __init__(self) -> None:
        #: Set while the bridge is on.
        self._bridge: SchedulerBridge | None = None
        #: Where records go; stays after the bridge has stopped.
        self.sink: Output | None = None

    @abstractmethod
    def connect(self, scheduler: Any, safety: Safety) -> tuple[BridgeSettings, Output] | None:
        """Read the settings and make the output; None if the bridge is to stay off."""

    async def prepare(self) -> None:
        """Do what would hold the event loop for long, in a thread: the scheduler may be running."""

    async def start(self, scheduler: Any) -> None:
        """Start watching; called by Dask. Never raises."""
        safety, begin = Safety(), time()
        before = scheduler.plugins.get(self.name)
        with safety.guard("start"):
            await self.prepare()
        came_first = False
        with safety.guard("start"):
            now = scheduler.plugins.get(self.name)
            came_first = now is not before and now is not self  # Dask will not add this one
            connected = self.connect(scheduler, safety) if can_work(scheduler) and not came_first else None
            if connected:
                _make_place(scheduler)
                self.sink = connected[1]
                self._bridge = SchedulerBridge(
                    scheduler,
                    safety,
                    *connected,
                    is_registered=partial(_is_registered, self, scheduler),
                    stopped=partial(self.stopped, scheduler),
                )
                _bridges[scheduler] = ref(self._bridge)
                self.transition = self._bridge.inbox.transition  # type: ignore[method-assign]
                with safety.guard("page"):
                    self.started(scheduler, self._bridge)
        if self._bridge is None:
            with safety.guard("start"):
                if self.sink:
                    self.sink.close(0.0)
                if not came_first and not _is_active(scheduler):
                    self.stays_off(scheduler, why_off(begin) or _UNKNOWN)
            # Dask may add the plugin only after this returns.
            asyncio.get_running_loop().call_soon(_withdraw, self, scheduler)

    def started(self, scheduler: Any, bridge: SchedulerBridge) -> None:
        """Do what follows once the bridge is on; a failure affects nothing else."""

    def stays_off(self, scheduler: Any, why: str) -> None:
        """Do what follows if the bridge stays off; ``why`` is for a person."""

    async def before_close(self) -> None:
        """Send everything; called by Dask when the scheduler closes, while its workers may still be there."""
        if self._bridge:
            # Whoever gives up waiting must not stop it half-way.
            await asyncio.shield(self._bridge.close())

    def stopped(self, scheduler: Any, bridge: SchedulerBridge) -> None:
        """Forget a bridge that has ended, and unregister: the hooks would do nothing from now on."""
        if self._bridge is bridge:  # else the plugin has been started anew
            self._bridge = None
            _withdraw(self, scheduler)
            self.__dict__.pop("transition", None)

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Do nothing; while the bridge is on, ``Inbox.transition`` replaces this method and saves a call."""

    def update_graph(self, scheduler: Any, *, tasks: Any, annotations: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Append a graph to the inbox; called by Dask when it has been taken in."""
        if self._bridge:
            with self._bridge.safety.guard("update_graph hook"):
                self._bridge.submissions.taken_in(tasks, annotations, stimulus_id)

    def log_event(self, topic: str, msg: Any) -> None:
        """Append how long a graph took, or that it failed, and why a worker left; called by Dask with every event."""
        if self._bridge and isinstance(msg, dict):
            with self._bridge.safety.guard("log_event hook"):
                action = msg.get("action")
                if not isinstance(action, str):  # anybody can log anything
                    return
                if action == "update-graph" and topic == "scheduler":
                    if msg.get("status") in GRAPH_STATUSES:
                        self._bridge.inbox.count(GRAPH_UPDATES, msg["status"])
                    self._bridge.submissions.logged(msg)
                elif action == "closing-worker":
                    self._bridge.departures.announced(topic, msg.get("reason"))
                elif action == "remove-worker" and topic == "all" and isinstance(msg.get("expected"), bool):
                    is_expected = self._bridge.departures.is_expected(msg.get("worker"), msg["expected"])
                    self._bridge.inbox.count(WORKER_REMOVED, is_expected)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Append a new worker; called by Dask."""
        if self._bridge:
            with self._bridge.safety.guard("add_worker hook"):
                self._bridge.inbox.worker_joined(worker)
                self._bridge.inbox.count(WORKER_ADDED)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Append that a worker left; called by Dask."""
        if self._bridge:
            with self._bridge.safety.guard("remove_worker hook"):
                self._bridge.inbox.worker_left(worker)


#: The latest bridge of each scheduler, which it must not keep alive.
_bridges: WeakKeyDictionary[Any, ref[SchedulerBridge]] = WeakKeyDictionary()


def _make_place(scheduler: Any) -> None:
    """End an earlier bridge that has not noticed yet that its plugin is gone: wrappers must not accumulate."""
    earlier = _bridges.get(scheduler, lambda: None)()
    if earlier and not earlier.why_ended:
        earlier.detach()
        earlier.close("another bridge has taken its place")


def _is_active(scheduler: Any) -> bool:
    """Whether a scheduler has a bridge that has not ended."""
    bridge = _bridges.get(scheduler, lambda: None)()
    return bridge is not None and not bridge.why_ended


def _is_registered(plugin: BridgePlugin, scheduler: Any) -> bool:
    """Whether the scheduler has the plugin, under whatever name."""
    return any(each is plugin for each in scheduler.plugins.values())


def _withdraw(plugin: BridgePlugin, scheduler: Any) -> None:
    """Unregister a plugin that stays off, so that it costs nothing."""
    for name in [name for name, each in scheduler.plugins.items() if each is plugin]:
        del scheduler.plugins[name]
