"""Numbers as people read them.

The requests that the page answers. Whatever fails, the scheduler's server gives an error and goes on.

Puts the page on the scheduler's HTTP server.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from time import time
from typing import Any, Protocol

from distributed.http.utils import RequestHandler

__all__ = ["STATUS_CALL", "Page", "Slash", "Source", "Status", "Trace", "ago", "bytes_", "install", "seconds", "when"]


def seconds(value: float | None) -> str:
    """Write a duration: ``0.4 ms``, ``2.50 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if value is None:
        return ""
    if value < 1:
        return f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.2f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60):02} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60):02} min"


def ago(at: float | None) -> str:
    """Write how long ago something was."""
    return "never" if at is None else f"{seconds(max(0.0, time() - at))} ago"


def when(at: float) -> str:
    """Write a time, in UTC."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def bytes_(value: float) -> str:
    """Write a size."""
    return f"{value / 2**20:.1f} MiB"


class Source(Protocol):
    """Who knows what the page shows."""

    def status(self) -> dict[str, Any]:
        """Everything on the page, as plain data; see ``docs/health.md``."""

    def find(self, span_id: str) -> dict[str, str | None] | None:
        """Say in which trace a Dask span is: ``trace_id`` and ``link``, if there is a template for links."""


class _Handler(RequestHandler):  # type: ignore[misc]
    @property
    def source(self) -> Source:
        source: Source = self.extra["source"]
        return source

    def set_default_headers(self) -> None:
        """Allow nothing but the page's own style: no script can run, whatever a tag says."""
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def get_template_path(self) -> str:
        """Our own templates, not Dask's."""
        return str(Path(__file__).parent)


class Slash(_Handler):
    """``/otel``: relative links need the slash; a relative redirect works behind a proxy that strips a prefix."""

    def get(self) -> None:
        """Redirect."""
        self.set_header("Location", "otel/")
        self.set_status(302)


class Page(_Handler):
    """``/otel/``"""

    def get(self) -> None:
        """Show the page."""
        self.render("page.html", status=self.source.status(), ago=ago, bytes_=bytes_, seconds=seconds, when=when)


class Status(_Handler):
    """``/otel/status.json``"""

    def get(self) -> None:
        """Give what is on the page."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(json.dumps(self.source.status()))


class Trace(_Handler):
    """``/otel/trace/<id of a Dask span>``"""

    def get(self, span_id: str) -> None:
        """Redirect to the trace."""
        found = self.source.find(span_id)
        if found and found["link"]:
            self.redirect(found["link"])
            return
        self.set_status(404)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if found:
            self.write(f"Its trace is {found['trace_id']}. Set otel.trace-url to be led there.\n")
        else:
            self.write("dask-otel knows no such Dask span.\n")


#: Name of the call, for ``distributed.rpc``.
STATUS_CALL = "otel_status"

#: Routes of Dask's own that every scheduler has; what stands before them is the prefix of all.
_KNOWN = ("/health", "/info", "/metrics")


def install(scheduler: Any, source: Source) -> None:
    """Add ``/otel`` and what is below it, and the call ``otel_status``; those of an earlier bridge make place.

    They stay when the bridge has stopped, and say so. Dask has no call to take routes away, so it is the rules of
    Tornado's router that make place.
    """
    scheduler.handlers[STATUS_CALL] = source.status
    application = scheduler.http_application
    prefix = _prefix(application)
    options = {"dask_server": scheduler, "extra": {"source": source}}
    rules = application.default_router.rules
    rules[:] = [rule for rule in rules if not _is_ours(rule)]
    application.add_handlers(
        r".*$",
        [
            (prefix + r"/otel", Slash, options),
            (prefix + r"/otel/", Page, options),
            (prefix + r"/otel/status\.json", Status, options),
            (prefix + r"/otel/trace/([^/]+)", Trace, options),
        ],
    )


def _is_ours(rule: Any) -> bool:
    """Whether a rule, which is one for a host, leads to the page."""
    return any(getattr(each, "target", None) is Page for each in getattr(rule.target, "rules", ()))


def _prefix(application: Any) -> str:
    """Find out under what prefix Dask serves its own pages (``--dashboard-prefix``): it keeps that nowhere."""
    for rule in application.wildcard_router.rules:
        pattern = str(getattr(getattr(rule.matcher, "regex", None), "pattern", "")).rstrip("$")
        for known in _KNOWN:
            if pattern.endswith(known):
                return pattern.removesuffix(known)
    return ""
