"""The requests that the page answers. Whatever fails, the scheduler's server gives an error and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from distributed.http.utils import RequestHandler

from .text import ago, bytes_, seconds, when

__all__ = ["Page", "Slash", "Source", "Status", "Trace"]


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
