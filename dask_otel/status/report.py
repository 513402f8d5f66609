"""The data that the page, ``status.json`` and ``dask-otel doctor --scheduler`` show."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from .. import __version__
from ..identity import client_names
from ..safety import Safety
from ..scheduler.runtime import SchedulerBridge
from ..spantree.lifecycle import trace_of

__all__ = ["OffReport", "StatusReport", "destination", "destinations"]


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
    parts = [f"{' and '.join(items)} to {place}" for place, items in places.items()]
    return ", ".join(parts) or "nothing, as configured"


class StatusReport:
    """Collects the status of a bridge and of its exporters (``sink``).

    Parameters
    ----------
    problems
        Lines about settings that cannot be used. Whoever can open the page can read them.
    """

    def __init__(
        self,
        scheduler_id: str,
        bridge: SchedulerBridge,
        sink: Any,
        safety: Safety,
        *,
        cluster_name: str | None,
        trace_url: str | None,
        problems: Sequence[str] = (),
    ) -> None:
        self._scheduler_id = scheduler_id
        self._bridge = bridge
        self._sink = sink
        self._safety = safety
        self._cluster_name = cluster_name
        self._trace_url = trace_url
        self._problems = problems
        #: Held while a run is rendered: one needs some MiB.
        self.rendering = asyncio.Lock()

    def status(self) -> dict[str, Any]:
        """Return everything as plain data, described in ``docs/health.md``. Call it on the event loop."""
        bridge, sink = self._bridge.status(), self._sink.status()
        failures = self._safety.failures.items()
        return {
            "version": __version__,
            "scheduler": self._scheduler_id,
            "cluster": self._cluster_name,
            "started": True,
            "on": not self._bridge.why_ended,
            "why": self._bridge.why_ended,
            "problems": [*self._problems, *sink["problems"]],
            "remarks": sink["remarks"],
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

    def run(self, trace_id: int, span_id: int | None) -> dict[str, Any] | None:
        """Return a run as ``RecentRuns.read`` does. Blocks; call it in a thread."""
        found: dict[str, Any] | None = None
        if self._sink.recent_runs:
            found = self._sink.recent_runs.read(trace_id, span_id)
        return found

    def run_path(self, trace_id: int, top: str | None = None) -> str | None:
        """Return where the page shows the latest run of a trace, or of one Dask span at its top, if that is over."""
        for node in self._bridge.span_tree.forest.open_tops:
            if node.segment and node.segment.trace_id == trace_id and top in (None, node.info.id):
                return None
        latest = self._sink.recent_runs and self._sink.recent_runs.latest(trace_id, top)
        return latest.path if latest else None

    def is_running(self, trace_id: int) -> bool:
        """Whether a trace has a run that is not over."""
        tops = self._bridge.span_tree.forest.open_tops
        return any(node.segment and node.segment.trace_id == trace_id for node in tops)

    def names(self) -> dict[str, str]:
        """Return the names of finished runs, by where the page shows them."""
        return {each["run"]: each["name"] for each in self._sink.status()["finished"] if each["run"]}

    def link(self, trace_id: int) -> str | None:
        """Return the link to a trace in the backend, if ``otel.trace-url`` is set."""
        return self._link(f"{trace_id:032x}")

    @property
    def shows_runs(self) -> bool:
        """Whether the page shows runs span by span."""
        return self._sink.recent_runs is not None

    def find(self, span_id: str) -> dict[str, str | None] | None:
        """Return the trace of a Dask span; None if the span is not known.

        Returns
        -------
        ``trace_id``; ``link``; ``run``, where the page shows the run, if it shows runs.
        """
        forest = self._bridge.span_tree.forest
        number = trace_of(forest, span_id)
        if number is None:
            return None
        top = forest.nodes[span_id]
        while top.parent and trace_of(forest, top.parent.info.id) == number:
            top = top.parent
        trace_id = f"{number:032x}"
        run = (self.run_path(number, top.info.id) or f"run/{trace_id}") if self.shows_runs else None
        return {"trace_id": trace_id, "link": self._link(trace_id), "run": run}

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
            "run": f"run/{trace_id}" if self.shows_runs else None,
        }

    def _link(self, trace_id: str | None) -> str | None:
        return self._trace_url.replace("{trace_id}", trace_id) if self._trace_url and trace_id else None


class OffReport:
    """The status of a bridge that did not start: in the form of ``StatusReport``, without contents."""

    shows_runs = False

    def __init__(self, scheduler_id: str, why: str) -> None:
        self._scheduler_id = scheduler_id
        self._why = why

    def status(self) -> dict[str, Any]:
        """Return plain data, described in ``docs/health.md``."""
        return {
            "version": __version__,
            "scheduler": self._scheduler_id,
            "cluster": None,
            "started": False,
            "on": False,
            "why": self._why,
            "problems": [],
            "remarks": [],
            "trace_url": None,
            "exporters": [],
            "metrics": [],
            "unsampled": {},
            "over_budget": {},
            "errors": [],
            "sweep": None,
            "open_segments": 0,
            "open": [],
            "finished": [],
        }

    def find(self, span_id: str) -> None:
        """Return None: no span is known."""
