"""Who the caller is where the running code submits work: the current OpenTelemetry span, or that of the environment.

Batch systems hand a span on in environment variables (``TRACEPARENT``, ``TRACESTATE``, ``BAGGAGE``, or what else the
configured propagators read). They count where no span is current.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from time import time_ns
from typing import Any, NamedTuple

import opentelemetry.context
from distributed import Worker, get_worker
from distributed.utils import thread_state
from opentelemetry.context import Context, get_current
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    INVALID_SPAN,
    SpanContext,
    SpanKind,
    TraceFlags,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)

from ..tracers import may_be_sent
from ..worker.task_span import current_run
from .submitting import safety

__all__ = [
    "Caller",
    "Here",
    "carrier_of",
    "end_of_period",
    "find_caller",
    "has_environment",
    "is_in_task",
    "is_past",
    "is_suppressed",
    "is_workers",
    "periods_of",
    "service_name",
    "tag_of",
]

#: Names of routes, and of other spans, that become tags of Dask spans; further ones share one tag. Dask's dashboard
#: and metrics have an entry for each.
MAX_NAMES = 100
#: Characters of such a name.
MAX_NAME = 200
#: Fields and characters of a carrier, of which each task has a copy when it is sent to its worker.
MAX_FIELDS, MAX_CARRIER = 64, 16_384

#: Tag of the names beyond ``MAX_NAMES``; of callers without a name in a program without one; and what is added to a
#: name that would be taken for Dask's own tag of work without a span.
OTHER, NAMELESS, NOT_DEFAULT = "other", "caller", "default (caller)"

#: Key of the current span in a context.
(_SPAN,) = set_span_in_context(INVALID_SPAN, Context())
#: Under these keys, OpenTelemetry's own parts and instrumentations say that nothing is to be traced.
_SUPPRESSED = tuple(
    filter(None, ("suppress_instrumentation", getattr(opentelemetry.context, "_SUPPRESS_INSTRUMENTATION_KEY", None)))
)
_NO_CONTEXT = Context()


class Caller(NamedTuple):
    """The span of a caller."""

    trace_id: int
    span_id: int
    #: As in W3C trace context.
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether the caller may have recorded it."""
        return bool(self.flags & TraceFlags.SAMPLED)

    @classmethod
    def of(cls, context: SpanContext) -> Caller:
        """Return the caller whose span has this context."""
        return cls(context.trace_id, context.span_id, context.trace_flags)

    def traceparent(self, nonce: str = "") -> str:
        """Return the W3C ``traceparent``, followed by ``;`` and the nonce if there is one: an anchored id."""
        written = f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"
        return f"{written};{nonce}" if nonce else written


class Here(NamedTuple):
    """Where the running code is."""

    #: OpenTelemetry's; without a current span, with that of the environment in it.
    context: Context
    #: None if there is no span.
    caller: Caller | None
    #: The caller's span, if it is of this process and named; else None.
    span: Any
    #: Whether the environment named the caller.
    is_environment: bool = False


def find_caller() -> Here:
    """Return where the running code is."""
    context = get_current()
    span: Any = context.get(_SPAN)
    if span is not None:
        found = span.get_span_context()
        if found.is_valid and not may_be_sent(span):  # as without an SDK: who called this process counts, if anybody
            found = span.parent if span.parent is not None and span.parent.is_remote else None
            return Here(context, Caller.of(found) if found else None, None)
        if found.is_valid:
            is_local = not found.is_remote and isinstance(getattr(span, "name", None), str)
            return Here(context, Caller.of(found), span if is_local else None)
    environment = _environment()
    if not environment:
        return Here(context, None, None)
    context = Context({**environment, **{key: value for key, value in context.items() if key != _SPAN}})
    found = get_current_span(context).get_span_context()
    return Here(context, Caller.of(found) if found.is_valid else None, None, is_environment=True)


def is_suppressed(context: Context) -> bool:
    """Whether nothing is to be traced in this context."""
    return any(map(context.get, _SUPPRESSED))


def is_in_task() -> bool:
    """Whether the running code is part of a task or of a call to an actor.

    Work of a task belongs to the Dask span of the task, whether the worker has dask-otel or not.
    """
    if current_run() is not None or getattr(thread_state, "key", None) is not None:
        return True
    try:
        get_worker()
    except ValueError:
        return False
    return True


def is_workers(client: Any) -> bool:
    """Whether a worker has made a client. Threads of a task have no context, but this client."""
    return client in getattr(Worker, "_initialized_clients", ())


def periods_of(here: Here, seconds: float) -> int:
    """Return how many times a period has passed since the caller's span began; 0 if that is not known."""
    start = _SINCE if here.is_environment else getattr(here.span, "start_time", None)
    return max(0, int((time_ns() - start) / 1e9 // seconds)) if isinstance(start, int) else 0


def end_of_period(here: Here, seconds: float) -> int:
    """Return when another period begins, in nanoseconds since the epoch; far away if it is not known when one began."""
    start = _SINCE if here.is_environment else getattr(here.span, "start_time", None)
    return start + int((periods_of(here, seconds) + 1) * seconds * 1e9) if isinstance(start, int) else sys.maxsize


def is_past(when: int) -> bool:
    """Whether a time is past, in nanoseconds since the epoch."""
    return time_ns() >= when


#: About when this process began; a span of the environment is as old at least. In nanoseconds since the epoch.
_SINCE = time_ns()


# Names


class _Names:
    """Names that become tags; the first ones."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def limited(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= MAX_NAMES:
                return OTHER
            self._known.add(name)
        return name


#: Names with a route, which a program has few of, apart from others, which it may invent.
_routes, _others = _Names(), _Names()


def tag_of(here: Here) -> str:
    """Return the tag of the Dask span for a caller: low in cardinality, since Dask keeps each one.

    That is the route of a web request, else the name of the span. A caller in another process has no name here: the
    service of this process takes its place.
    """
    span = here.span
    if span is None:
        return _tag(service_name() or _program() or NAMELESS, _others)
    if route := _route(span):
        return _tag(route, _routes)
    # FastAPI's own spans inside of a request have one name for all routes.
    if getattr(getattr(span, "instrumentation_scope", None), "name", None) == "fastapi":
        for value in here.context.values():
            if route := _route(getattr(value, "span", None)):
                return _tag(route, _routes)
        function = _attributes(span).get("code.function.name")
        if isinstance(function, str):
            return _tag(function, _routes)
    return _tag(span.name, _others)


def _route(span: Any) -> str:
    """Return the method and the route of a web server's span; empty if it has none."""
    attributes = _attributes(span) if getattr(span, "kind", None) == SpanKind.SERVER else {}
    route = attributes.get("http.route")
    method = attributes.get("http.request.method") or attributes.get("http.method") or ""
    return f"{method} {route}".strip() if isinstance(route, str) else ""


def _attributes(span: Any) -> Mapping[str, Any]:
    found = getattr(span, "attributes", None)
    return found if isinstance(found, Mapping) else {}


def _tag(name: str, names: _Names) -> str:
    name = name.encode("utf-8", "replace").decode("utf-8")[:MAX_NAME].strip() or NAMELESS
    return names.limited(NOT_DEFAULT if name == "default" else name)


def service_name() -> str:
    """Return the name of this process's service, from its tracer provider or else from the environment; or nothing."""
    try:
        resource: Any = getattr(get_tracer_provider(), "resource", None)
        found = resource.attributes.get("service.name") if resource else os.environ.get("OTEL_SERVICE_NAME")
    except Exception:  # noqa: BLE001 -- somebody else's provider, for the sake of a name
        return ""
    # What the SDK writes if nobody has named the service.
    return found if isinstance(found, str) and not found.startswith("unknown_service") else ""


def _program() -> str:
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return name if name not in ("-c", "-m", "__main__.py") else ""


# Carriers


def carrier_of(context: Context) -> dict[str, str]:
    """Return what the configured propagators write for a context.

    Raises what they raise, and ValueError if it is too long to be sent with each task.
    """
    if not context:
        return {}
    written: dict[Any, Any] = {}
    get_global_textmap().inject(written, context=context)
    texts = ((_text(name), _text(value)) for name, value in written.items())
    carrier = {name: value for name, value in texts if name is not None and value is not None}
    if len(carrier) > MAX_FIELDS or sum(map(len, (*carrier, *carrier.values()))) > MAX_CARRIER:
        raise ValueError(
            f"the propagators write {len(carrier):,} fields; more than {MAX_FIELDS} of them, or {MAX_CARRIER:,} "
            "characters, are not sent with tasks"
        )
    return carrier


def _text(value: Any) -> str | None:
    """Return text that can be sent, without a type of its own; None for anything else.

    A scheduler that cannot import a type would end the connection, and a task with half a character would never reach
    its worker.
    """
    try:
        return str.encode(value).decode() if isinstance(value, str) else None
    except UnicodeEncodeError:
        return None


class _EnvironmentGetter(Getter[Mapping[str, str]]):
    """Reads fields of propagators from the environment: ``traceparent`` is ``TRACEPARENT``."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        value = carrier.get(_variable(key))
        return [value] if value else None

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return [*carrier]


_getter = _EnvironmentGetter()


def _variable(field: str) -> str:
    return field.upper().replace("-", "_")


#: The propagator that was asked last, the variables that it reads, their values, and the context that they describe.
_latest: tuple[Any, tuple[str, ...], tuple[str | None, ...], Context] | None = None


def has_environment() -> bool:
    """Whether the environment describes a context."""
    return bool(_environment())


def _environment() -> Context:
    """Return the context that the environment describes; a propagator that fails is not asked again."""
    global _latest
    propagator, latest = get_global_textmap(), _latest
    if latest is None or latest[0] is not propagator:
        variables: tuple[str, ...] = ()
        with safety.guard("caller (propagators)"):
            variables = tuple(sorted({_variable(field) for field in propagator.fields if isinstance(field, str)}))
        latest = propagator, variables, (), _NO_CONTEXT
    values = tuple(map(os.environ.get, latest[1]))
    if values != latest[2]:
        carrier = {
            # Bytes that are no text, which propagators fail on.
            name: value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            for name, value in zip(latest[1], values, strict=True)
            if value
        }
        context = _NO_CONTEXT
        if carrier:
            with safety.guard("caller (propagators)"):
                context = propagator.extract(carrier, context=Context(), getter=_getter)
        latest = *latest[:2], values, context
    _latest = latest
    return latest[3]
