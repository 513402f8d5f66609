"""The data that the page, ``status.json``, a notebook and ``dask-otel doctor --scheduler`` show."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from .. import __version__, schema
from ..identity import origin_of
from ..safety import Safety
from ..scheduler.runtime import SchedulerBridge
from ..spantree.lifecycle import trace_of
from .render import Inline, inline

__all__ = ["OffReport", "StatusReport", "destination", "destinations"]

_UNKNOWN = (
    "dask-otel has no run of this Dask span: no task of it has reached the scheduler, or its run is no longer kept, or "
    "the ids of the spans around it are needed too"
)

#: By whether the last request failed; None before there was one.
_VERBS = {None: "will send", False: "sends", True: "cannot send"}

#: What each switch under ``otel.capture`` hides.
_HIDDEN = {
    "message": "messages of exceptions",
    "traceback": "tracebacks",
    "keys": "names of tasks and groups",
    "tags": "names of spans",
    "code": "lines of code",
    "types": "names of types",
    "clients": "names of clients",
}


def destination(exporter: Mapping[str, Any]) -> str:
    """Describe where an exporter sends to, given its status."""
    through = f" through {exporter['proxy']}" if exporter["proxy"] else ""
    return f"{exporter['target'] or exporter['name']}{through}"


def destinations(status: Mapping[str, Any]) -> str:
    """Describe what is sent where, e.g. ``sends spans and will send metrics to http://collector:4317``."""
    places: dict[str, dict[str, str]] = {}
    remarks: dict[str, None] = {}
    for items, exporters in (("spans", status["exporters"]), ("metrics", status["metrics"])):
        for each in exporters:
            if each.get("unsupported") and not each["failing"]:
                remarks[f"{destination(each)} takes no {items}"] = None
            else:
                verb = _VERBS[each["failing"]]
                places.setdefault(destination(each), {})[items] = verb
    parts = []
    before = ""
    for place, verbs in places.items():
        named = []
        for items, verb in verbs.items():
            named.append(items if verb == before else f"{verb} {items}")
            before = verb
        parts.append(f"{' and '.join(named)} to {place}")
    sent = ", ".join(parts) or ("sends nothing" if remarks else "sends nothing, as configured")
    return "; ".join([sent, *remarks])


class StatusReport:
    """Collects the status of a bridge and of its exporters (``sink``).

    Parameters
    ----------
    problems
        Lines about settings that cannot be used. Whoever can open the page can read them.
    hiding
        Names of the settings that cannot be used and because of which all is hidden.
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
        hiding: Sequence[str] = (),
    ) -> None:
        self._scheduler_id = scheduler_id
        self._bridge = bridge
        self._sink = sink
        self._safety = safety
        self._cluster_name = cluster_name
        self._trace_url = trace_url
        self._problems = problems
        self._hiding = hiding
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
            "hidden": self._sink.hidden,
            "page_runs": self.usage(),
            "exporters": sink["exporters"],
            "metrics": sink["metrics"],
            "unsampled": sink["unsampled"],
            "over_budget": sink["over_budget"],
            "errors": [{"where": where, "type": type_, "count": count} for (where, type_), count in failures],
            "sweep": bridge["sweep"],
            "forgotten": bridge["forgotten"],
            "open_segments": bridge["open_segments"],
            "open": [self._running(each) for each in bridge["open"]],
            "finished": [each | {"link": self._link(each["trace_id"])} for each in sink["finished"]],
        }

    def notices(self) -> list[str]:
        """Return what a reader of the page should know about settings, one sentence each."""
        notices = []
        if hidden := self._sink.hidden:
            what = ", ".join(_HIDDEN.get(each, each) for each in hidden)
            why = f"under otel.capture: {', '.join(hidden)}"
            if self._hiding:
                why = f"these cannot be used: {', '.join(self._hiding)}"
            notices.append(f"Hidden, here and in what is sent: {what}. The reason is in the settings, {why}.")
            if {"keys", "tags"} & set(hidden):
                notices[-1] += " Names such as “span 1a2b3c4d” stand for hidden ones."
        return notices

    def usage(self) -> dict[str, int] | None:
        """Return what the runs that are kept take, as ``RecentRuns.usage`` does; None if none are kept."""
        usage: dict[str, int] | None = self._sink.recent_runs.usage() if self._sink.recent_runs else None
        return usage

    async def open_run(self, trace_id: int) -> dict[str, Any] | None:
        """Return the first open run of a trace as in ``status``, and ``rows`` of all: what is known of them now."""
        progress = next(self._bridge.open_runs(trace_id), None)
        if progress is None:
            return None
        found = self._running(progress) | {"rows": []}
        for number, (record, is_running) in enumerate(self._bridge.open_records(trace_id)):
            if number % 10 == 9:
                await asyncio.sleep(0)  # each takes about 0.1 ms
            if row := self._sink.recent_runs.row(record):
                if is_running:
                    row["attributes"].pop(schema.SPAN_RESULT, None)  # it has none yet
                found["rows"].append(row | {"is_running": is_running})
        return found

    def run(self, trace_id: int, span_id: int | None) -> dict[str, Any] | None:
        """Return a run as ``RecentRuns.read`` does. Blocks; call it in a thread."""
        found: dict[str, Any] | None = None
        if self._sink.recent_runs:
            found = self._sink.recent_runs.read(trace_id, span_id)
        return found

    def latest_run(self, trace_id: int, top: str | None = None) -> Any:
        """Return the ``RunId`` of the latest run of a trace, or of one Dask span at its top; None if it is not over."""
        for node in self._bridge.span_tree.forest.open_tops:
            if node.segment and node.segment.trace_id == trace_id and top in (None, node.info.id):
                return None
        return self._sink.recent_runs and self._sink.recent_runs.latest(trace_id, top)

    def names(self) -> dict[str, str]:
        """Return the names of finished runs, by where the page shows them."""
        return {each["run"]: each["name"] for each in self._sink.status()["finished"] if each["run"]}

    def link(self, trace_id: int) -> str | None:
        """Return the link to a trace in the backend, if ``otel.trace-url`` is set."""
        return self._link(f"{trace_id:032x}")

    @property
    def sends_spans(self) -> bool:
        """Whether spans are sent anywhere."""
        return bool(self._sink.span_threads)

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
        found = self._top(span_id)
        if found is None:  # it may be forgotten while its run is still kept
            kept = self._sink.recent_runs.latest_of(span_id) if self.shows_runs else None
            return kept and {"trace_id": f"{kept.trace_id:032x}", "link": self.link(kept.trace_id), "run": kept.path}
        trace_id = f"{found[0]:032x}"
        run = self.latest_run(*found)
        path = (run.path if run else f"run/{trace_id}") if self.shows_runs else None
        return {"trace_id": trace_id, "link": self._link(trace_id), "run": path}

    async def inline_run(self, span_ids: Sequence[str], wait: bool) -> dict[str, Any]:
        """Return the latest run of a Dask span for a notebook.

        Parameters
        ----------
        span_ids
            Of a root, or of a Dask span and those around it, the outermost first.
        wait
            Whether a run that is not over shall not be drawn.

        Returns
        -------
        ``state``: ``over``, ``running``, ``unknown``, ``none``; ``text``: a line for a person; ``run``, where the page
        shows the run; ``link`` to the trace in the backend; ``html`` and ``height``: the document and its height in
        pixels, or None and 0.
        """
        answer: dict[str, Any] = {"state": "none", "run": None, "link": None, "html": None, "height": 0}
        with self._safety.guard("page"):
            answer |= await self._inline_run(span_ids, wait)
        return {"text": "dask-otel could not draw this run: see the scheduler's log"} | answer

    async def _inline_run(self, span_ids: Sequence[str], wait: bool) -> dict[str, Any]:
        found = self._top(span_ids[-1])
        trace_id = found[0] if found else origin_of(span_ids).trace_id()
        answer: dict[str, Any] = {"link": self.link(trace_id)}
        if not self.shows_runs:
            return answer | {"text": "dask-otel keeps no runs on this scheduler (otel.page.runs: 0)"}
        ids = [found[1]] if found else span_ids
        run = next((run for id_ in ids if (run := self.latest_run(trace_id, id_))), None)
        progress = None if run else next(self._bridge.open_runs(trace_id), None)
        if not run and not progress:
            return {"state": "unknown", "text": _UNKNOWN}
        answer |= {"state": "over" if run else "running", "run": run.path if run else f"run/{trace_id:032x}"}
        if not run and wait:
            return answer | {"text": "this run is not over"}
        async with self.rendering:
            drawn = await asyncio.to_thread(self._drawn, trace_id, run and run.span_id)
        text = "this run is too large to be shown here"
        if drawn and run:
            top = drawn.drawn.rows[0]
            tasks = f"{top.tasks} {'task' if top.tasks == '1' else 'tasks'}" if top.tasks else ""
            error = schema.shorten(" ".join((top.error or "").split()), 200)
            why = next((each for each in drawn.drawn.reasons if each.verdict), None)
            slow = f"slow because of {why.verdict[0]}, at most {why.at_most}" if why else ""
            text = " · ".join(filter(None, [f"{top.label} took {top.duration}", top.result, tasks, error, slow]))
        elif progress:
            text = f"{schema.shorten(self._running(progress)['name'], 100)} is not over; "
            text += "here are the spans that have finished" if drawn else "none of its spans has finished yet"
        shown = {"html": drawn.html, "height": drawn.height} if drawn else {}
        return answer | {"text": text} | shown

    def _drawn(self, trace_id: int, span_id: int | None) -> Inline | None:
        found = self.run(trace_id, span_id)
        return inline(found["rows"], found["left_out"]) if found else None

    def _top(self, span_id: str) -> tuple[int, str] | None:
        """Return the trace of a Dask span, and the id of the Dask span at its top; None if the span is not known."""
        forest = self._bridge.span_tree.forest
        trace_id = trace_of(forest, span_id)
        if trace_id is None:
            return None
        top = forest.nodes[span_id]
        while top.parent and trace_of(forest, top.parent.info.id) == trace_id:
            top = top.parent
        return trace_id, top.info.id

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
            "failed": progress.failed,
            "unfinished": progress.unfinished,
            "clients": self._sink.clients(progress.clients),
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
            "hidden": [],
            "page_runs": None,
            "exporters": [],
            "metrics": [],
            "unsampled": {},
            "over_budget": {},
            "errors": [],
            "sweep": None,
            "forgotten": None,
            "open_segments": 0,
            "open": [],
            "finished": [],
        }

    def notices(self) -> list[str]:
        """Return nothing: no settings were read."""
        return []

    def usage(self) -> None:
        """Return None: no runs are kept."""

    def find(self, span_id: str) -> None:
        """Return None: no span is known."""

    async def inline_run(self, span_ids: Sequence[str], wait: bool) -> dict[str, Any]:
        """Return why there is no run, in the form of ``StatusReport.inline_run``."""
        text = f"dask-otel is off on this scheduler: {self._why}"
        return {"state": "none", "text": text, "run": None, "link": None, "html": None, "height": 0}
