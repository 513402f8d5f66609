"""Ids of implicit Dask spans: work under a current span of OpenTelemetry is in a Dask span that nobody has opened.

All that is submitted under one span, by one client and inside the same Dask spans, is in one implicit Dask span. Its id
is the ``traceparent`` of the caller's span where that can name nothing else. It is followed by a nonce if the caller is
in another process or is handed on to forked ones, and for a second client, a second name of the span, or other Dask
spans around it. So it is if the caller's span is that of ``with span(...)`` and another Dask span is open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import blake2b
from secrets import token_bytes
from threading import RLock
from time import time_ns
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from opentelemetry.trace import Span, SpanContext, TraceFlags

from .. import schema
from ..identity import origin_of, segment_id
from .callers import Caller, Here

__all__ = ["implicit_id", "link_to_work", "reserve"]

#: Ids that are remembered for a span.
MAX_KNOWN = 100

#: Makes nonces differ between processes that have the same caller.
_secret = token_bytes(16)
#: Re-entrant: a signal handler may submit.
_lock = RLock()
#: By span of this process, its ids by what tells its implicit Dask spans apart.
_known: WeakKeyDictionary[Any, dict[tuple[Any, ...], str]] = WeakKeyDictionary()
#: By span of this process, the roots that it has links to.
_linked: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
#: When this process was forked off, in nanoseconds since the epoch: a span that began before is the parent's, too.
_forked_at = 0


def implicit_id(here: Here, caller: Caller, tag: str, around: tuple[str, ...], client: str, period: int | None) -> str:
    """Return the id of the implicit Dask span for what is submitted here.

    Parameters
    ----------
    around
        Ids of the open Dask spans around it.
    client
        Id of the client.
    period
        None if the Dask span is in the caller's trace. Else it has a trace of its own, and another one in each period.
    """
    what = tag, around, client, period
    if here.span is None:
        return _hashed(caller, what)
    with _lock:
        try:
            known = _known.setdefault(here.span, {})
        except TypeError:  # a span of somebody else's making, which cannot be a key
            return _hashed(caller, what)
        found = known.get(what)
        if found is None:
            start = getattr(here.span, "start_time", None)
            is_unique = not known and period is None and isinstance(start, int) and start > _forked_at
            found = caller.traceparent() if is_unique else _hashed(caller, what)
            if len(known) < MAX_KNOWN:
                known[what] = found
        return found


def reserve(span: Span) -> None:
    """Leave the bare ``traceparent`` of the span of a ``with span(...)`` block to the Dask span of the block."""
    with _lock, suppress(TypeError):  # a span of somebody else's making, see above
        _known.setdefault(span, {})[()] = ""


def link_to_work(span: Span | None, root_id: str) -> None:
    """Link the caller's span, once, with the first segment of a root Dask span that has a trace of its own.

    Nothing is done if there is no span in this process, or if it cannot have links after its start.
    """
    if span is None or type(span).add_link is Span.add_link:
        return
    with _lock:
        linked = _linked.setdefault(span, set())
        if root_id in linked or len(linked) >= MAX_KNOWN:
            return
        linked.add(root_id)
    trace_id = origin_of([root_id]).trace_id()
    segment = SpanContext(trace_id, segment_id(root_id, 0), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    span.add_link(segment, {schema.LINK_TYPE: "work"})


def _hashed(caller: Caller, what: tuple[Any, ...]) -> str:
    written = repr((*caller, *what)).encode("utf-8", "backslashreplace")
    digest = blake2b(written, digest_size=16, key=_secret).digest()
    *_, period = what
    return caller.traceparent(digest[:8].hex()) if period is None else str(UUID(bytes=digest))


def _forked() -> None:
    """Have secrets and locks of its own, in a process that was forked off."""
    global _secret, _lock, _forked_at
    _secret, _lock, _forked_at = token_bytes(16), RLock(), time_ns()
    _known.clear()
    _linked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
