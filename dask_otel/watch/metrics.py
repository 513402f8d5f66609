"""Fine performance metrics: they reach the scheduler with heartbeats, added up per span there and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed.metrics import time

from ..mirror.clock import Heartbeats
from ..mirror.model import Metrics
from ..safety import Safety
from .wrap import wrap

__all__ = ["MetricsTap"]


class MetricsTap:
    """Listens in on the spans extension's ``heartbeat``: Dask's own runs first, untouched, then a note of ours.

    Parameters
    ----------
    extension
        The scheduler's ``SpansSchedulerExtension``.
    heartbeats
        To be told of each heartbeat.
    """

    def __init__(self, extension: Any, heartbeats: Heartbeats, safety: Safety) -> None:
        self._extension = extension
        self._heartbeats = heartbeats
        self._safety = safety
        self._metrics: dict[str, Metrics] = {}
        #: Called after each heartbeat, with the worker's address.
        self.on_heartbeat: Callable[[str], None] | None = None
        self._listening = False
        self._original = extension.heartbeat
        self._undo: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._original = self._extension.heartbeat
        self._undo = wrap(self._extension, "heartbeat", self._heartbeat)

    def remove(self) -> None:
        """Stop listening, and give the extension its own method back, unless somebody wrapped it after us."""
        self._listening = False
        self._undo()

    def drain(self) -> dict[str, Metrics]:
        """Hand over what came in, by span id."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _heartbeat(self, ws: Any, data: dict[tuple[Any, ...], float]) -> None:
        self._original(ws, data)
        if not self._listening:
            return
        with self._safety.guard("heartbeat hook"):
            self._heartbeats.beat(ws.address, time())
            metrics: Metrics = {}
            last = None
            for (context, span_id, *rest), value in data.items():
                if span_id != last:  # those of a span come one after the other, mostly
                    metrics, last = self._metrics.setdefault(span_id, {}), span_id
                key = (context, *rest)
                metrics[key] = metrics.get(key, 0) + value
            if self.on_heartbeat:
                self.on_heartbeat(ws.address)
