"""``with span("x")`` is a span of the caller, too, and the id of the Dask span is the ``traceparent`` of that span.

The caller's span is made with the program's own tracer provider. Where there is none, the Dask span is below the
current span all the same, such as one of another process. Dask's own code opens the Dask span; what is added here can
fail without a trace of it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from hashlib import blake2b
from time import time_ns
from typing import NamedTuple
from uuid import uuid4

import dask
from opentelemetry.context import Context, attach, create_key, get_current
from opentelemetry.trace import Span, SpanKind, Tracer, set_span_in_context

from .. import schema
from ..patching import ANNOTATIONS
from ..privacy import Capture, Redactor
from ..scheduler.outcomes import described
from ..schema import MAX_NAME, clean
from ..tracers import GlobalTracer
from ..worker.task_span import record_error
from .callers import Caller, Here, find_caller, is_in_task, is_suppressed, periods_of
from .implicit_spans import link_to_work
from .settings import ClientSettings, client_settings
from .submitting import safety

__all__ = ["OpenSpan", "is_busy", "open_span", "with_callers_span"]


class OpenSpan(NamedTuple):
    """A Dask span that ``with span(...)`` has opened in this process, and those around it."""

    tags: tuple[str, ...]
    ids: tuple[str, ...]
    #: The span whose work is in this Dask span itself: that of ``with span(...)``, or the current one without an SDK.
    caller: Caller
    #: The caller's span that the root is linked with; None if the root is in the caller's trace.
    linked: Caller | None
    #: Id of the scheduler that work inside the root was submitted to first, once there is one.
    schedulers: list[str]

    def ids_on(self, scheduler: str) -> tuple[str, ...]:
        """Return the ids for one of several schedulers: each makes spans whose ids depend on these."""
        if scheduler and not self.schedulers:
            self.schedulers.append(scheduler)
        if not scheduler or self.schedulers[0] == scheduler:
            return self.ids
        nonce = blake2b(scheduler.encode(), digest_size=8).hexdigest()
        return tuple(f"{each};{nonce}" for each in self.ids)


#: Key of the innermost open Dask span in OpenTelemetry's context: some threads get that context and not Dask's.
_OPEN = create_key("dask_otel_open_span")
#: Whether a caller's span is being made or ended here: span processors may use Dask.
_busy: ContextVar[bool] = ContextVar("dask_otel_busy", default=False)
_tracer = GlobalTracer()


def open_span(context: Context) -> OpenSpan | None:
    """Return the innermost open Dask span in a context of OpenTelemetry's."""
    found = context.get(_OPEN)
    return found if isinstance(found, OpenSpan) else None


def is_busy() -> bool:
    """Whether the running code is called by a tracer of the caller's, for a span that is made or ended here."""
    return _busy.get()


def with_callers_span(original: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """Return what takes the place of the generator function behind ``distributed.span``.

    Parameters
    ----------
    original
        The function that was there before, which opens the Dask span.
    """
    opens = contextmanager(original)

    @functools.wraps(original)
    def span(*tags: str) -> Iterator[str]:
        with opens(*tags) as span_id:
            opened = _begin(len(tags))
            if opened is None:
                yield span_id
                return
            error: BaseException | None = None
            try:
                yield opened.id
            except BaseException as raised:
                error = raised
                raise
            finally:
                opened.end(error)
                error = None  # it refers to this frame

    return span


class _Opened:
    """The caller's spans for the tags of one ``with span(...)``."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.spans: list[Span] = []
        #: Of the innermost Dask span.
        self.id = ""
        #: OpenTelemetry's context, and the one before.
        self.context = Context()
        self.before = Context()

    def end(self, error: BaseException | None) -> None:
        """Leave the context if it is still current, and end the spans with what has left the block; never raises."""
        safety.logs_messages = self._capture == Capture()
        with safety.guard("caller (end of a span)"):
            # Not by a token: the block may be left in another context, which OpenTelemetry would log as an error.
            if get_current() is self.context:
                attach(self.before)
        token = _busy.set(True)
        try:
            while self.spans:
                with safety.guard("caller (end of a span)"):
                    _end(self.spans.pop(), error, self._capture)
        finally:
            _busy.reset(token)


def _begin(count: int) -> _Opened | None:
    """Begin the caller's spans for as many tags as Dask has just opened; None if there are to be none."""
    opened = None
    try:
        settings = client_settings()
        if settings.context == "none" or _busy.get() or is_in_task():
            return None
        here = find_caller()
        if is_suppressed(here.context):
            return None
        opened = _Opened(settings.capture)
        token = _busy.set(True)
        try:
            is_open = _open(opened, here, settings, count)
        finally:
            _busy.reset(token)
        if is_open:
            return opened
    except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
        safety.caught("caller (begin of a span)", error)
    if opened:
        opened.end(None)
    return None


def _open(opened: _Opened, here: Here, settings: ClientSettings, count: int) -> bool:
    annotation = dask.get_annotations()["span"]
    tags, ids = tuple(annotation["name"]), tuple(annotation["ids"])
    around = ids[:-count]
    outer = open_span(here.context)
    if outer and around[: len(outer.ids)] != outer.ids:
        outer = None
    caller, linked, context = here.caller, outer.linked if outer else None, here.context
    # A root that is linked, not below its caller; what is in it is in its trace, whatever the setting is by now.
    is_linked = linked is not None if around else _is_linked(here, settings)
    tracer, redactor = _tracer(), _redactor(settings.capture)
    new_ids: list[str] = []
    for number, (tag, plain_id) in enumerate(zip(tags[-count:], ids[-count:], strict=True)):
        is_root = not around and number == 0
        span = own = None
        if tracer:
            span = _start(tracer, redactor, str(tag), context, is_root)
            opened.spans.append(span)
            own = span.get_span_context()
        if span and own and own.is_valid and (not here.caller or own.span_id != here.caller.span_id):
            caller = Caller.of(own)
            context = set_span_in_context(span, context)
            nonce = ""
        else:  # no SDK, or one that is switched off
            span, tracer = None, None
            if caller is None:
                return False
            nonce = uuid4().hex[:16]
        is_linked = is_linked and caller.is_sampled
        new_ids.append(plain_id if is_linked else caller.traceparent(nonce))
        if is_root and is_linked:
            linked = caller
        if span and span.is_recording():
            if is_root and is_linked:
                link_to_work(span, plain_id)
            span.set_attribute(schema.SPAN_ID, new_ids[-1])
    if caller is None or ANNOTATIONS is None:
        return False
    opened.id = new_ids[-1]
    ids = *around, *new_ids
    opened.before = get_current()
    opened.context = Context({**context, _OPEN: OpenSpan(tags, ids, caller, linked, outer.schedulers if outer else [])})
    attach(opened.context)
    # Dask itself puts back what was there before.
    ANNOTATIONS.set({**dask.get_annotations(), "span": {"name": tags, "ids": ids}})
    return True


def _is_linked(here: Here, settings: ClientSettings) -> bool:
    return settings.context == "link" or (here.caller is not None and periods_of(here, settings.link_after) > 0)


def _start(tracer: Tracer, redactor: Redactor, tag: str, context: Context, is_root: bool) -> Span:
    name = clean(redactor.tags((tag,))[0], MAX_NAME) or "(no name)"
    # The scheduler's span for the root is SERVER: service graphs are drawn from such pairs.
    return tracer.start_span(name, context=context, kind=SpanKind.CLIENT if is_root else SpanKind.INTERNAL)


def _end(span: Span, error: BaseException | None, capture: Capture) -> None:
    try:
        if span.is_recording() and error is not None:
            if isinstance(error, asyncio.CancelledError):
                span.set_attribute(schema.SPAN_RESULT, "cancelled")
            elif not _is_no_error(error):
                record_error(span, _redactor(capture).task_error(described(error)), time_ns())
    finally:
        span.end()


def _is_no_error(error: BaseException) -> bool:
    """Whether a block has been left by an exception as programs are: a generator that is closed, ``sys.exit()``."""
    return isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and error.code in (None, 0))


@lru_cache(8)
def _redactor(capture: Capture) -> Redactor:
    return Redactor(capture)
