"""The page ``/otel/`` on the scheduler's HTTP server, its JSON, and redirects to traces.

If a handler fails, the server answers with an error and the scheduler is not affected.
"""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from time import time
from typing import Any

from distributed.http.utils import RequestHandler

from ..spantree.records import ENDS
from .render import TEXTS, page
from .report import OffReport, StatusReport
from .waterfall import waterfall

__all__ = ["RUN_CALL", "STATUS_CALL", "install"]

#: Names of the calls that return the status and a run, for ``distributed.rpc``.
STATUS_CALL = "otel_status"
RUN_CALL = "otel_run"
#: Paths of Dask's own that every scheduler serves; they show the prefix of all paths.
_KNOWN = ("/health", "/info", "/metrics")
#: The page that describes these pages, in the repository; used if the installed package names no address.
DOCUMENTATION = "docs/health.md"
#: Results of runs that failed.
_FAILURES = ("error", *ENDS)
#: Finished runs that are listed at once, and failed ones that are named above them.
_LATEST = 10
_MAX_FAILED = 5
_RUN_PATHS = (r"/otel/run/([0-9a-f]{32})", r"/otel/run/([0-9a-f]{32})/([0-9a-f]{16})")


class _Handler(RequestHandler):  # type: ignore[misc]
    @property
    def report(self) -> StatusReport | OffReport:
        report: StatusReport | OffReport = self.extra["report"]
        return report

    def set_default_headers(self) -> None:
        """Allow nothing but the page's own style: no script can run, whatever a tag says."""
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def get_template_path(self) -> str:
        """Our own templates, not Dask's."""
        return str(Path(__file__).parent)

    def get_template_namespace(self) -> dict[str, Any]:
        """Add what all pages show."""
        namespace: dict[str, Any] = super().get_template_namespace()
        return namespace | TEXTS | self.shared()

    def shared(self) -> dict[str, Any]:
        """Return what all pages show of the scheduler. Call it on the event loop."""
        return {
            "has_dashboard": _dashboard(self.server) is not None,
            "documentation": _documentation() or DOCUMENTATION,
            "notices": self.report.notices(),
            "usage": self.report.usage(),
        }


class _Slash(_Handler):
    """``/otel``: relative links need the slash; a relative redirect works behind a proxy that strips a prefix."""

    def get(self) -> None:
        """Redirect."""
        self.set_header("Location", "otel/")
        self.set_status(302)


class _Page(_Handler):
    """``/otel/``"""

    def get(self) -> None:
        """Render ``page.html``."""
        status = self.report.status()
        finished = status["finished"][::-1]
        self.render(
            "page.html",
            status=status,
            finished=finished,
            failed=[(number, each) for number, each in enumerate(finished) if each["result"] in _FAILURES],
            failures=_FAILURES,
            latest=_LATEST,
            max_failed=_MAX_FAILED,
            is_live=self.get_query_argument("live", None) is not None,
            now=time(),
        )


class _Status(_Handler):
    """``/otel/status.json``"""

    def get(self) -> None:
        """Send what is on the page."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(json.dumps(self.report.status()))


class _Trace(_Handler):
    """``/otel/trace/<id of a Dask span>``"""

    def get(self, span_id: str) -> None:
        """Redirect to the trace."""
        found = self.report.find(span_id)
        if found and found["link"]:
            self.redirect(found["link"])
            return
        self.set_status(404)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if found and found["run"]:
            self.set_header("Location", f"../{found['run']}")  # relative, as for ``_Slash``
            self.set_status(302)
        elif found:
            self.write(f"Its trace is {found['trace_id']}. Set otel.trace-url to be redirected to it.\n")
        else:
            self.write("dask-otel knows no such Dask span.\n")


class _Run(_Handler):
    """``/otel/run/<trace id>/<id of a run's top span>``, and ``/otel/run/<trace id>`` for a run that is not over."""

    @property
    def report(self) -> StatusReport:
        report: StatusReport = self.extra["report"]
        return report

    async def get(self, trace_id: str, span_id: str | None = None) -> None:
        """Render ``run.html`` in a thread, one at a time."""
        trace = int(trace_id, 16)
        is_zipped = "gzip" in self.request.headers.get("Accept-Encoding", "")
        async with self.report.rendering:
            open_run = await self.report.open_run(trace) if self.report.shows_runs and span_id is None else None
            if span_id is None and open_run is None and (run := self.report.latest_run(trace)):
                self.set_header("Location", run.path.removeprefix("run/"))
                self.set_status(302)
                return
            self.set_header("Vary", "Accept-Encoding")
            if is_zipped:
                self.set_header("Content-Encoding", "gzip")
            parts = self._parts(trace_id, span_id, open_run, self.report.names(), self.shared())
            self.write(await asyncio.to_thread(self._rendered, parts, is_zipped))

    def _rendered(self, parts: Iterator[bytes], is_zipped: bool) -> bytes:
        if not is_zipped:
            return b"".join(parts)
        zipped = zlib.compressobj(1, wbits=31)  # gzip's format
        return b"".join([*map(zipped.compress, parts), zipped.flush()])

    def _parts(
        self,
        trace_id: str,
        span_id: str | None,
        open_run: Mapping[str, Any] | None,
        names: Mapping[str, str],
        shared: Mapping[str, Any],
    ) -> Iterator[bytes]:
        found = self.report.run(int(trace_id, 16), int(span_id, 16) if span_id else None)
        rows = {row["id"]: row for row in [*(open_run["rows"] if open_run else ()), *(found["rows"] if found else ())]}
        show = self.get_query_argument("show", "")
        until = open_run["start"] + open_run["duration"] if open_run else 0.0
        drawn = waterfall(list(rows.values()), show, until) if rows else None
        if drawn is None:
            self.set_status(404)
        yield from page(
            drawn,
            **shared,
            above="../../" if span_id else "../",
            trace_id=trace_id,
            link=self.report.link(int(trace_id, 16)),
            is_sent=self.report.sends_spans,
            open_run=open_run,
            show=show,
            left_out=found["left_out"] if found else 0,
            others=[(each.path, names.get(each.path, "run")) for each in found["others"]] if found else [],
        )


def install(scheduler: Any, report: StatusReport | OffReport) -> None:
    """Add ``/otel`` and what is below it, and the two calls; they replace those of an earlier bridge.

    They stay when the bridge has stopped, and show that. Dask has no call to remove routes, so the rules of an earlier
    bridge are removed from Tornado's router.
    """
    scheduler.handlers[STATUS_CALL] = report.status
    scheduler.handlers[RUN_CALL] = report.inline_run
    application = scheduler.http_application
    prefix = _prefix(application)
    options = {"dask_server": scheduler, "extra": {"report": report}}
    rules = application.default_router.rules
    rules[:] = [rule for rule in rules if not _is_ours(rule)]
    application.add_handlers(
        r".*$",
        [
            (prefix + r"/otel", _Slash, options),
            (prefix + r"/otel/", _Page, options),
            (prefix + r"/otel/status\.json", _Status, options),
            (prefix + r"/otel/trace/([^/]+)", _Trace, options),
            *([] if isinstance(report, OffReport) else [(prefix + path, _Run, options) for path in _RUN_PATHS]),
        ],
    )
    with suppress(Exception):  # Dask's pages do without the link
        _link_from_dask(scheduler)


def _link_from_dask(scheduler: Any) -> None:
    """Add a link to the navigation bar of Dask's pages.

    Dask has no call for that. Its dashboard, if bokeh is installed, keeps the names of the pages of each scheduler in a
    list.
    """
    if dashboard := _dashboard(scheduler):
        pages = dashboard.template_variables(scheduler)["pages"]
        if "otel" not in pages:
            pages.append("otel")


def _dashboard(scheduler: Any) -> Any:
    """Return the module of Dask's dashboard; None if the scheduler has no dashboard, e.g. without bokeh."""
    return sys.modules.get("distributed.dashboard.scheduler") if scheduler.http_application.applications else None


def _is_ours(rule: Any) -> bool:
    """Whether a rule, which is one for a host, has the page among its routes."""
    return any(getattr(each, "target", None) is _Page for each in getattr(rule.target, "rules", ()))


def _prefix(application: Any) -> str:
    """Find the prefix of Dask's own pages (``--dashboard-prefix``), which the scheduler does not keep."""
    for rule in application.wildcard_router.rules:
        pattern = str(getattr(getattr(rule.matcher, "regex", None), "pattern", "")).rstrip("$")
        for known in _KNOWN:
            if pattern.endswith(known):
                return pattern.removesuffix(known)
    return ""


def _documentation() -> str | None:
    """Return the address of the documentation that the installed package names."""
    with suppress(PackageNotFoundError):
        for each in metadata("dask-otel").get_all("Project-URL", ()):
            label, _, address = str(each).partition(", ")
            if label.lower() == "documentation" and address.startswith("https://"):
                return address
    return None
