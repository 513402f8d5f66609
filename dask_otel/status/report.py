"""The data that the page, ``status.json`` and ``dask-otel doctor --scheduler`` show."""

from __future__ import annotations

from collections.abc import Mapping
from time import time
from typing import Any

from .. import __version__
from ..identity import client_names
from ..safety import Safety
from ..scheduler.runtime import SchedulerBridge
from ..spantree.lifecycle import trace_of

__all__ = ["StatusReport", "destination", "destinations"]


def destination(exporter: Mapping[str, Any]) -> str:
    """Describe where an exporter sends to, given its status."""
    through = f" through {exporter['proxy']}" if exporter["proxy"] else ""
    return f"{exporter['target'] or exporter['name']}{through}"


def destinations(status: Mapping[str, Any]) -> str:
    """Describe what is sent where, e.g. ``spans and metrics to http://collector:4317``."""
    places: dict[str, dict[str, None]] = {}
    for items, exporters in (("spans", status["exporters"]), ("metrics", status["metrics"])):
        for each in exporters:
            places.setdefault(destination(each), {})[items] = None
    return ", ".join(f"{' and '.join(items)} to {place}" for place, items in places.items()) or "nothing"


class StatusReport:
    """Collects the status of a bridge and of its exporters (``sink``)."""

    def __init__(
        self,
        scheduler_id: str,
        bridge: SchedulerBridge,
        sink: Any,
        safety: Safety,
        *,
        cluster_name: str | None,
        trace_url: str | None,
    ) -> None:
        self._scheduler_id = scheduler_id
        self._bridge = bridge
        self._sink = sink
        self._safety = safety
        self._cluster_name = cluster_name
        self._trace_url = trace_url

    def status(self) -> dict[str, Any]:
        """Return everything as plain data, described in ``docs/health.md``. Call it on the event loop."""
        bridge, sink = self._bridge.status(), self._sink.status()
        failures = self._safety.failures.items()
        return {
            "version": __version__,
            "scheduler": self._scheduler_id,
            "cluster": self._cluster_name,
            "on": not self._bridge.why_ended,
            "why": self._bridge.why_ended,
            "trace_url": self._trace_url,
            "exporters": sink["exporters"],
            "metrics": sink["metrics"],
            "unsampled": sink["unsampled"],
            "over_budget": sink["over_budget"],
            "errors": [{"where": where, "type": type_, "count": count} for (where, type_), count in failures],
            "sweep": bridge["sweep"],
            "open_segments": bridge["open_segments"],
            "open": [self._running(each) for each in bridge["open"]],
            "finished": [each | {"link": self._link(each["trace_id"])} for each in sink["finished"]],
        }

    def find(self, span_id: str) -> dict[str, str | None] | None:
        """Return the trace of a Dask span: ``trace_id`` and ``link``; None if the span is not known."""
        number = trace_of(self._bridge.span_tree.forest, span_id)
        if number is None:
            return None
        trace_id = f"{number:032x}"
        return {"trace_id": trace_id, "link": self._link(trace_id)}

    def _running(self, progress: Any) -> dict[str, Any]:
        trace_id = f"{progress.trace_id:032x}"
        return {
            "id": progress.span.id,
            "name": self._sink.title(progress.span, progress.name),
            "trace_id": trace_id,
            "link": self._link(trace_id),
            "start": progress.start,
            "duration": max(0.0, time() - progress.start),
            "tasks": progress.tasks,
            "completed": progress.completed,
            "unfinished": progress.unfinished,
            "clients": client_names(progress.clients),
        }

    def _link(self, trace_id: str | None) -> str | None:
        return self._trace_url.replace("{trace_id}", trace_id) if self._trace_url and trace_id else None
