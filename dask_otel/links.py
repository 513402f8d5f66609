"""What a notebook shows of its cluster's traces: links, a line that says where they are sent, and runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import dask
from distributed import Client, get_client

from .otlp_options import own_variables
from .status.handlers import RUN_CALL, STATUS_CALL
from .status.report import destinations

__all__ = ["Description", "Link", "describe", "page_link", "scheduler_link", "show_trace"]

#: Makes a frame light or dark like the theme of JupyterLab or VS Code. Elsewhere, the browser's setting is used.
_THEMES = (
    "<style>[data-jp-theme-light=true] .dask-otel-run, .vscode-light .dask-otel-run { color-scheme: light } "
    "[data-jp-theme-light=false] .dask-otel-run, .vscode-dark .dask-otel-run { color-scheme: dark }</style>"
)
_REGISTER = "client.register_plugin(dask_otel.OTelPlugin(endpoint))"
_FROM_ENV = "client.register_plugin(dask_otel.OTelPlugin.from_env())"
#: Seconds between two questions whether a run is over, and until a span is known: sweeps come that late.
_PAUSE, _UNKNOWN_FOR = 0.1, 5.0


class Link(str):
    """A URL that a notebook shows as a link that can be clicked."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        url = escape(self, quote=True)
        return f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'


class Description:
    """A line for a person, links, and a document; a notebook shows the document, and links that can be clicked."""

    def __init__(
        self, text: str, *, page: str | None = None, trace: str | None = None, document: str = "", height: int = 0
    ) -> None:
        self.text = text
        #: The page on the scheduler's HTTP server, and a trace; None if there is none.
        self.page = Link(page) if page else None
        self.trace = Link(trace) if trace else None
        #: HTML without scripts; empty if there is none. Its height is in pixels.
        self.document = document
        self.height = height

    def __repr__(self) -> str:
        links = (("page", self.page), ("trace", self.trace))
        return "; ".join([self.text, *(f"{name}: {link}" for name, link in links if link)])

    def _repr_html_(self) -> str:
        links = (("page", self.page), ("trace", self.trace))
        named = [
            f'<a href="{escape(link, quote=True)}" target="_blank" rel="noopener">{name}</a>'
            for name, link in links
            if link
        ]
        line = " · ".join([escape(self.text), *named])
        if not self.document:
            return line
        # In a frame, the document's style has no effect on the notebook, nor the notebook's on the document.
        return (
            f'{_THEMES}{line}<iframe class="dask-otel-run" sandbox title="{escape(self.text)}" '
            f'srcdoc="{escape(self.document)}" '
            f'style="width: 100%; height: {self.height}px; border: 0; resize: vertical"></iframe>'
        )


def describe(trace: str | None, client: Any = None) -> Description:
    """Describe where a cluster's traces are sent.

    Parameters
    ----------
    trace
        Link to a trace.
    client
        Of the cluster; by default the current one. With an asynchronous client, the result is to be awaited.
    """
    return _with_client(client, trace, _describe)


def show_trace(span_ids: Sequence[str], timeout: float, trace: str | None, client: Any = None) -> Description:
    """Return the latest run of a Dask span, as a document from the scheduler.

    Parameters
    ----------
    timeout
        Seconds to wait until the run is over.
    trace, client
        As for ``describe``.
    """
    return _with_client(client, trace, _show_trace, list(map(str, span_ids)), timeout)


def _with_client(client: Any, trace: str | None, function: Any, *arguments: Any) -> Description:
    """Call a coroutine function with a client, a link and more, if there is a client that is open."""
    client = client or _current_client()
    if client is None:
        return Description("there is no Dask client here: create one, then ask again", trace=trace)
    if not isinstance(client, Client):
        raise TypeError(f"client must be a distributed.Client, not a {type(client).__name__}")
    if client.status in ("closing", "closed"):
        return Description("the client is closed: create another one, then ask again", trace=trace)
    described: Description = client.sync(function, client, trace, *arguments)
    return described


def page_link(client: Any = None) -> Link | None:
    """Return the link to the page ``/otel/`` of a cluster, in place of the one to its dashboard; None if unknown."""
    client = client or _current_client()
    with suppress(Exception):  # a cluster's own class may raise anything here, e.g. for a template with unset variables
        link = client.dashboard_link
        if link:
            parts = urlsplit(link)
            path = re.sub("/(status)?$", "", parts.path) + "/otel/"
            return Link(urlunsplit(parts._replace(path=path, fragment="")))
    return None


def scheduler_link(span_id: str) -> Link | None:
    """Return the link to a Dask span's trace on its scheduler; None if there is no client, or no dashboard."""
    page = page_link()
    return _below(page, f"trace/{quote(span_id, safe='')}") if page else None


def _below(page: Link, path: str) -> Link:
    parts = urlsplit(page)
    return Link(urlunsplit(parts._replace(path=parts.path + path)))


def _current_client() -> Any:
    with suppress(Exception):  # no client, or a worker that cannot make one now
        return get_client()
    return None


class _HasCall:
    """Pickles as a function that says whether the scheduler has a call; a call that it lacks would log a warning."""

    def __init__(self, call: str) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"lambda dask_scheduler: {self._call!r} in dask_scheduler.handlers",)


async def _has(client: Any, call: str) -> bool:
    try:
        return bool(await client.run_on_scheduler(_HasCall(call)))
    except Exception:  # noqa: BLE001 -- the scheduler takes no functions (distributed.scheduler.blocked-handlers)
        return True


async def _call(client: Any, call: str, **arguments: Any) -> dict[str, Any] | None:
    """Call the scheduler; None if it has no such call.

    Raises
    ------
    RuntimeError
        With a line for a person, if the call fails.
    """
    try:
        answer = await getattr(client.scheduler, call)(**arguments)
    except Exception as error:
        raise RuntimeError(f"the scheduler cannot be asked ({type(error).__name__})") from error
    return answer if isinstance(answer, dict) else None


async def _show_trace(client: Any, trace: str | None, span_ids: list[str], timeout: float) -> Description:
    begin = monotonic()
    if not await _has(client, RUN_CALL):
        return await _describe(client, trace)
    while True:
        waited = monotonic() - begin
        try:
            found = await _call(client, RUN_CALL, span_ids=span_ids, wait=waited < timeout)
        except RuntimeError as error:
            return Description(str(error), trace=trace)
        if found is None:
            return await _describe(client, trace)
        patience = {"running": timeout, "unknown": min(timeout, _UNKNOWN_FOR)}.get(found["state"], 0)
        if waited >= patience:
            break
        await asyncio.sleep(min(_PAUSE, patience - waited))
    page = page_link(client)
    return Description(
        found["text"],
        page=_below(page, found["run"]) if page and found["run"] else page,
        trace=trace or found["link"],
        document=found["html"] or "",
        height=found["height"],
    )


async def _describe(client: Any, trace: str | None) -> Description:
    try:
        status = await _call(client, STATUS_CALL) if await _has(client, STATUS_CALL) else None
    except RuntimeError as error:
        return Description(str(error), trace=trace)
    if status is None:
        return Description(_why_not_there())
    if not status["on"]:
        return Description(f"dask-otel is off on this scheduler: {status['why']}", page=page_link(client))
    return Description(f"dask-otel {destinations(status)}{_failures(status)}", page=page_link(client), trace=trace)


def _failures(status: dict[str, Any]) -> str:
    errors = {
        each["target"] or each["name"]: each["last_error"]
        for each in [*status["metrics"], *status["exporters"]]
        if each["failing"]
    }
    return "".join(f"; the last request to {target} failed: {error}" for target, error in errors.items())


def _why_not_there() -> str:
    preload = dask.config.get("distributed.scheduler.preload", ())
    was_late = "dask_otel" in ([preload] if isinstance(preload, str) else preload or ())
    why = (
        " (the preload is in this process' configuration; it was set after the cluster had started, or the scheduler "
        "does not read this configuration)"
    )
    register = _FROM_ENV if any(name.endswith("ENDPOINT") for name in own_variables()) else _REGISTER
    return f"this cluster's scheduler runs without dask-otel{why if was_late else ''}; register it now: {register}"
