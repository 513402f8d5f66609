"""Links from a notebook to the traces of its cluster, and a line that says where these are sent."""

from __future__ import annotations

import re
from contextlib import suppress
from html import escape
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import dask
from distributed import Client, get_client

from .otlp_options import own_variables
from .status.handlers import STATUS_CALL
from .status.report import destinations

__all__ = ["Description", "Link", "describe", "page_link", "scheduler_link"]

_REGISTER = "client.register_plugin(dask_otel.OTelPlugin(endpoint))"
_FROM_ENV = "client.register_plugin(dask_otel.OTelPlugin.from_env())"


class Link(str):
    """A URL that a notebook shows as a link that can be clicked."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        url = escape(self, quote=True)
        return f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'


class Description:
    """A line for a person, and links; a notebook shows them so that they can be clicked."""

    def __init__(self, text: str, *, page: str | None = None, trace: str | None = None) -> None:
        self.text = text
        #: The page on the scheduler's HTTP server, and a trace; None if there is none.
        self.page = Link(page) if page else None
        self.trace = Link(trace) if trace else None

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
        return " · ".join([escape(self.text), *named])


def describe(trace: str | None, client: Any = None) -> Description:
    """Describe where a cluster's traces are sent.

    Parameters
    ----------
    trace
        Link to a trace.
    client
        Of the cluster; by default the current one. With an asynchronous client, the result is to be awaited.
    """
    client = client or _current_client()
    if client is None:
        return Description("there is no Dask client here: create one, then ask again", trace=trace)
    if not isinstance(client, Client):
        raise TypeError(f"client must be a distributed.Client, not a {type(client).__name__}")
    if client.status in ("closing", "closed"):
        return Description("the client is closed: create another one, then ask again", trace=trace)
    described: Description = client.sync(_describe, client, trace)
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
    if page is None:
        return None
    parts = urlsplit(page)
    return Link(urlunsplit(parts._replace(path=f"{parts.path}trace/{quote(span_id, safe='')}")))


def _current_client() -> Any:
    with suppress(Exception):  # no client, or a worker that cannot make one now
        return get_client()
    return None


class _HasCall:
    """Pickles as a function that says whether the scheduler has the call; a call that it lacks would log a warning."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"lambda dask_scheduler: {STATUS_CALL!r} in dask_scheduler.handlers",)


async def _describe(client: Any, trace: str | None) -> Description:
    try:
        has_call = await client.run_on_scheduler(_HasCall())
    except Exception:  # noqa: BLE001 -- the scheduler takes no functions (distributed.scheduler.blocked-handlers)
        has_call = True
    try:
        status = await getattr(client.scheduler, STATUS_CALL)() if has_call else None
    except Exception as error:  # noqa: BLE001 -- a line for a person is better than an exception in a notebook
        return Description(f"the scheduler cannot be asked ({type(error).__name__})", trace=trace)
    if not isinstance(status, dict):
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
