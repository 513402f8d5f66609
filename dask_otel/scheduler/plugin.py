"""The scheduler plugin: Dask calls its hooks, which append to the inbox."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from time import time
from typing import Any
from weakref import WeakKeyDictionary, ref

from distributed.diagnostics.plugin import SchedulerPlugin

from ..messages import TOPIC
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
    #: Else Dask would ignore a second registration, whatever its settings are.
    idempotent = False

    def __init__(self) -> None:
        #: Set while the bridge is on.
        self._bridge: SchedulerBridge | None = None
        #: Where records go; stays after the bridge has stopped.
        self.sink: Output | None = None
        #: What the bridge was started with, see ``values``.
        self._started_with: Any = None
        #: The ends of bridges that this one has replaced.
        self._replaced: list[asyncio.Task[None]] = []

    @property
    def is_on(self) -> bool:
        """Whether the bridge is on, and has not begun to close."""
        return self._bridge is not None and not self._bridge.why_ended

    @abstractmethod
    def connect(self, scheduler: Any, safety: Safety) -> tuple[BridgeSettings, Output] | None:
        """Read the settings and make the output; None if the bridge is to stay off."""

    def values(self) -> Any:
        """Return what ``connect`` depends on: a plugin that would change nothing replaces none."""
        return None

    async def prepare(self) -> None:
        """Do what would hold the event loop for long, in a thread: the scheduler may be running."""

    async def start(self, scheduler: Any) -> None:
        """Start watching; called by Dask, which then adds the plugin. Never raises.

        If the scheduler has a bridge with the same values, the plugin takes part in it. A bridge with other values is
        replaced: it sends what it has counted, and this one counts from the same moment.
        """
        safety, begin = Safety(), time()
        with safety.guard("start"):
            await self.prepare()
        with safety.guard("start"):
            values = self.values()
            if self._shares_bridge(scheduler, values):
                return
            connected = self.connect(scheduler, safety) if can_work(scheduler) else None
            if connected:
                self.sink = connected[1]
                with_span = await _make_place(scheduler, self)
                self._bridge = SchedulerBridge(
                    scheduler,
                    safety,
                    *connected,
                    is_registered=partial(_is_registered, self, scheduler),
                    stopped=partial(self.stopped, scheduler),
                )
                self._bridge.inbox.take_over(with_span)
                self._started_with = values
                _bridges[scheduler] = ref(self._bridge)
                self.transition = self._bridge.inbox.make_transition_hook()  # type: ignore[method-assign]
                with safety.guard("page"):
                    self.started(scheduler, self._bridge)
        if self._bridge is None:
            with safety.guard("start"):
                if self.sink:
                    self.sink.close(0.0)
                if not _running(scheduler):
                    self.stays_off(scheduler, why_off(begin) or _UNKNOWN)
            # Dask may add the plugin only after this returns.
            asyncio.get_running_loop().call_soon(_withdraw, self, scheduler)

    def _shares_bridge(self, scheduler: Any, values: Any) -> bool:
        """Take part in the bridge of a plugin with the same values, if the scheduler has one.

        Dask puts this plugin in the place of the other one as soon as ``start`` returns.
        """
        for name, other in list(scheduler.plugins.items()):
            if isinstance(other, BridgePlugin) and other.is_on and other._started_with == values:
                if other is not self:
                    del scheduler.plugins[name]
                    self.__dict__ = other.__dict__
                return True
        return False

    def started(self, scheduler: Any, bridge: SchedulerBridge) -> None:
        """Do what follows once the bridge is on; a failure affects nothing else."""

    def stays_off(self, scheduler: Any, why: str) -> None:
        """Do what follows if the bridge stays off; ``why`` is for a person."""

    async def before_close(self) -> None:
        """Send everything; called by Dask when the scheduler closes, while its workers may still be there."""
        if self._bridge:
            # Whoever gives up waiting must not stop it half-way. Those that were replaced have begun to close earlier.
            await asyncio.shield(asyncio.wait([self._bridge.close(), *self._replaced]))

    def stopped(self, scheduler: Any, bridge: SchedulerBridge) -> None:
        """Forget a bridge that has ended, and unregister: the hooks would do nothing from now on."""
        if self._bridge is bridge:  # else the plugin has been started anew
            self._bridge = None
            _withdraw(self, scheduler)
            self.__dict__.pop("transition", None)

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Do nothing; while the bridge is on, a function of the inbox takes the place of this method."""

    def update_graph(self, scheduler: Any, *, tasks: Any, annotations: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Append a graph to the inbox; called by Dask when it has been taken in."""
        if self._bridge:
            with self._bridge.safety.guard("update_graph hook"):
                self._bridge.submissions.taken_in(tasks, annotations, stimulus_id)

    def log_event(self, topic: str, msg: Any) -> None:
        """Append how long a graph took, or that it failed, why a worker left, and spans of workers.

        Called by Dask with every event.
        """
        if self._bridge and topic == "stealing" and isinstance(msg, tuple):
            if self._bridge.run_times:
                self._bridge.run_times.stolen(msg)
        elif self._bridge and isinstance(msg, dict):
            if topic == TOPIC:  # without a guard, which would cost as much as the rest
                self._bridge.inbox.span_made(msg)
                return
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
                elif action == "worker-status-change":
                    if self._bridge.run_times:
                        self._bridge.run_times.worker_status(topic)
                elif action == "remove-worker" and topic == "all" and isinstance(msg.get("expected"), bool):
                    if self._bridge.run_times:
                        self._bridge.run_times.worker_left(msg.get("worker"))
                    is_expected = self._bridge.departures.is_expected(msg.get("worker"), msg["expected"])
                    self._bridge.inbox.count(WORKER_REMOVED, is_expected)
                    if self._bridge.evidence and not is_expected:
                        with self._bridge.safety.guard("evidence"):  # anybody can log such an event
                            self._bridge.evidence.left(msg)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Append a new worker; called by Dask."""
        if self._bridge:
            with self._bridge.safety.guard("add_worker hook"):
                self._bridge.inbox.worker_joined(worker)
                if self._bridge.run_times:
                    self._bridge.run_times.worker_joined(worker)
                self._bridge.inbox.count(WORKER_ADDED)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Append that a worker left; called by Dask."""
        if self._bridge:
            with self._bridge.safety.guard("remove_worker hook"):
                self._bridge.inbox.worker_left(worker)


#: The latest bridge of each scheduler, which it must not keep alive.
_bridges: WeakKeyDictionary[Any, ref[SchedulerBridge]] = WeakKeyDictionary()


async def _make_place(scheduler: Any, plugin: BridgePlugin) -> Mapping[Any, int]:
    """End an earlier bridge, and unregister its plugin, so that wrappers do not accumulate.

    When this returns, the earlier bridge has counted everything up to that moment.

    Returns
    -------
    Its ``Inbox.with_span``.
    """
    with_span: Mapping[Any, int] = {}
    while earlier := _running(scheduler):
        await earlier.sweep.wait()
        if _running(scheduler) is earlier:  # else another one has taken its place meanwhile
            for name, each in list(scheduler.plugins.items()):
                if isinstance(each, BridgePlugin) and each is not plugin:
                    plugin._replaced += [task for task in each._replaced if not task.done()]
                    del scheduler.plugins[name]  # Dask would warn that it overwrites one
            with_span = earlier.inbox.with_span
            plugin._replaced.append(earlier.hand_over(plugin.sink))
    return with_span


def _running(scheduler: Any) -> SchedulerBridge | None:
    bridge = _bridges.get(scheduler, lambda: None)()
    return bridge if bridge and not bridge.why_ended else None


def _is_registered(plugin: BridgePlugin, scheduler: Any) -> bool:
    """Whether the scheduler has the plugin, or one that takes part in its bridge, under whatever name."""
    return any(
        each.__dict__ is plugin.__dict__ for each in scheduler.plugins.values() if isinstance(each, BridgePlugin)
    )


def _withdraw(plugin: BridgePlugin, scheduler: Any) -> None:
    """Unregister a plugin that stays off, so that it costs nothing."""
    for name, each in list(scheduler.plugins.items()):
        if isinstance(each, BridgePlugin) and each.__dict__ is plugin.__dict__:
            del scheduler.plugins[name]
