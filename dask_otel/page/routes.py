"""Puts the page on the scheduler's HTTP server."""

from __future__ import annotations

from typing import Any

from .handlers import Page, Slash, Source, Status, Trace

__all__ = ["STATUS_CALL", "install"]

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
