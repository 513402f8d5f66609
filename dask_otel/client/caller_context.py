"""What a submission gets of its caller: the Dask span that it is in, the context that its tasks have, and who submits.

Work of the span of ``with span(...)`` is in that Dask span. Work under any other current span is in an implicit one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from getpass import getuser
from socket import gethostname
from typing import Any, NamedTuple
from weakref import ref

import dask
from distributed import Client
from opentelemetry.context import Context, get_current
from opentelemetry.propagate import get_global_textmap
from opentelemetry.trace import get_current_span, get_tracer_provider

from ..identity import caller_of
from ..messages import ANNOTATION, OF_ONE_TASK, Submitter
from ..privacy import Capture
from .callers import (
    Caller,
    Here,
    carrier_of,
    end_of_period,
    find_caller,
    has_environment,
    is_in_task,
    is_past,
    is_suppressed,
    is_workers,
    periods_of,
    service_name,
    tag_of,
)
from .dask_spans import is_busy, open_span
from .implicit_spans import implicit_id, link_to_work
from .settings import ClientSettings, client_settings
from .submitting import NOTHING, Addition, safety

__all__ = ["caller_context", "span_ids_here"]

#: Tags and ids of a Dask span and of those around it, the outermost first.
Span = tuple[tuple[str, ...], tuple[str, ...]]


#: Contexts of which the latest addition is remembered: programs submit in loops.
MAX_REMEMBERED = 256


class _Remembered(NamedTuple):
    """An addition, and what it depends on."""

    context: ref[Context]
    #: When it is to be made anew, in nanoseconds since the epoch.
    until: int
    rest: tuple[Any, ...]
    addition: Addition


#: By the id of a context of OpenTelemetry's, which never changes; contexts that are gone are not remembered.
_remembered: dict[int, _Remembered] = {}


def caller_context(client: Any, opened: Mapping[str, Any]) -> Addition:
    """Return what a submission gets of its caller; a source of ``add_to_submissions``."""
    settings = client_settings()
    if settings.context == "none" and not settings.says_user:
        return NOTHING
    context = get_current()
    if not context and not settings.says_user and not has_environment():
        return NOTHING
    if is_busy() or is_in_task():  # first: to ask for the current span of a task would make it
        return NOTHING
    annotation = opened.get("span")
    rest = (
        client.id,
        _scheduler_of(client),
        annotation and annotation["ids"],
        ANNOTATION in opened,
        settings,
        get_global_textmap(),
        get_tracer_provider(),
        getattr(get_current_span(context), "name", None),
    )
    known = _remembered.get(id(context))
    if known and known.context() is context and known.rest == rest and not is_past(known.until):
        return known.addition
    safety.logs_messages = settings.capture == Capture()
    here = find_caller()
    addition = _addition(client, opened, settings, here)
    if here.span is not None:
        if len(_remembered) >= MAX_REMEMBERED:
            _remembered.clear()
        forget = partial(_forget, id(context))
        until = end_of_period(here, settings.link_after)
        _remembered[id(context)] = _Remembered(ref(context, forget), until, rest, addition)
    return addition


def _forget(context_id: int, context: ref[Context]) -> None:
    known = _remembered.get(context_id)
    if known and known.context is context:
        del _remembered[context_id]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remembered.clear)


def _addition(client: Any, opened: Mapping[str, Any], settings: ClientSettings, here: Here) -> Addition:
    if (not here.context and not settings.says_user) or is_suppressed(here.context):
        return NOTHING
    if here.is_environment and is_workers(client):
        return NOTHING
    submitter = Submitter(service_name())
    if settings.says_user:
        submitter = submitter._replace(user=_user(os.getpid()), host=gethostname())
    if settings.context == "none":
        return Addition(metadata=submitter.to_metadata())
    span = None
    if here.caller:
        known = open_span(here.context)
        if known and not known.schedulers and (scheduler := _scheduler_of(client)):
            known.schedulers.append(scheduler)
        span, linked = _placed(here, here.caller, opened.get("span"), settings, client)
        if linked:
            submitter = submitter._replace(caller=linked.traceparent())
            with safety.guard("caller (link)"):
                ids = span[1] if span else opened["span"]["ids"]
                for each in known.linked_spans if known else ():
                    link_to_work(each(), ids[0])
                if linked == here.caller:
                    link_to_work(here.span, ids[0])
    carrier: dict[str, str] = {}
    if ANNOTATION not in opened:
        try:
            carrier = {name: value for name, value in carrier_of(here.context).items() if name not in OF_ONE_TASK}
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            safety.caught("caller (propagators)", error)
    return Addition({ANNOTATION: carrier} if carrier else {}, span, submitter.to_metadata())


def span_ids_here() -> Sequence[str]:
    """Return the ids of the Dask span that a submission would be in here, and of those around it; none in tasks.

    The current client is the one that would submit.
    """
    opened = dask.get_annotations().get("span")
    ids = tuple(map(str, opened["ids"])) if opened else ()
    settings = client_settings()
    if settings.context == "none" or is_in_task():
        return ids
    here = find_caller()
    if here.caller is None or is_suppressed(here.context):
        return ids
    client = None
    with suppress(ValueError):  # there is none
        client = Client.current()
    span, _ = _placed(here, here.caller, opened, settings, client)
    return span[1] if span else ids


def _placed(
    here: Here, caller: Caller, opened: Mapping[str, Any] | None, settings: ClientSettings, client: Any
) -> tuple[Span | None, Caller | None]:
    """Return the Dask span for a submission, and the caller in this trace that its root is linked with.

    The first is None if it is the open one, the second if the root is in the caller's trace.

    Parameters
    ----------
    opened
        Dask's annotation ``span``.
    client
        Whose submission it is; None if there is no client.
    """
    known = open_span(here.context)
    tags: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    if opened:
        tags, ids = tuple(opened["name"]), tuple(opened["ids"])
    elif known:
        tags, ids = known.tags, known.ids
    if known and ids[: len(known.ids)] != known.ids:
        known = None
    is_known = known is not None and known.caller[:2] == caller[:2]
    linked, around = None, ids
    if known:
        # Not if what is open inside the block, by its annotation, is in a caller's trace.
        linked = None if any(map(caller_of, map(str, ids[len(known.ids) :]))) else known.linked
        around = *known.ids_on(_scheduler_of(client)), *ids[len(known.ids) :]
    nearest = caller_of(str(ids[-1])) if ids else None
    if is_known or (nearest and nearest[:2] == caller[:2]):
        return (None if opened and around == tuple(opened["ids"]) else (tags, around)), linked
    period = None
    if caller.is_sampled:
        if not ids:
            periods = periods_of(here, settings.link_after)
            if settings.context == "link" or periods:
                linked, period = caller, periods
        elif linked:
            period = 0
            if linked.trace_id != caller.trace_id:  # a request inside the block of the root
                linked = caller
    tag = tag_of(here)
    id_ = implicit_id(here, caller, tag, around, getattr(client, "id", ""), period)
    return ((*tags, tag), (*around, id_)), linked


def _scheduler_of(client: Any) -> str:
    """Return the id of a client's scheduler; empty if it is not known."""
    return str(getattr(client, "_scheduler_identity", {}).get("id", ""))


@cache
def _user(pid: int) -> str:
    try:
        return getuser()
    except Exception:  # noqa: BLE001 -- a container's user may have no name
        return ""
