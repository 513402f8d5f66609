"""The page ``/otel/`` on the scheduler's HTTP server, its JSON, and redirects to traces.

If a handler fails, the server answers with an error and the scheduler is not affected.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from time import time
from typing import Any

from dask.utils import format_bytes, format_time
from distributed.http.utils import RequestHandler

from .report import OffReport, StatusReport

__all__ = ["STATUS_CALL", "install"]

#: Name of the call that returns the status, for ``distributed.rpc``.
STATUS_CALL = "otel_status"
#: Paths of Dask's own that every scheduler serves; they show the prefix of all paths.
_KNOWN = ("/health", "/info", "/metrics")


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
        self.render("page.html", status=self.report.status(), now=time(), time=format_time, size=format_bytes, utc=_utc)


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
        if found:
            self.write(f"Its trace is {found['trace_id']}. Set otel.trace-url to be redirected to it.\n")
        else:
            self.write("dask-otel knows no such Dask span.\n")


def install(scheduler: Any, report: StatusReport | OffReport) -> None:
    """Add ``/otel`` and what is below it, and the call ``otel_status``; they replace those of an earlier bridge.

    They stay when the bridge has stopped, and show that. Dask has no call to remove routes, so the rules of an earlier
    bridge are removed from Tornado's router.
    """
    scheduler.handlers[STATUS_CALL] = report.status
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
        ],
    )


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


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
