"""``with span("x")`` is a span of the caller, too, and the id of the Dask span is the ``traceparent`` of that span.

The caller's span is made with the program's own tracer provider. Where there is none, the Dask span is below the
current span all the same, such as one of another process. Dask's own code opens the Dask span; what is added here can
fail without a trace of it.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from functools import lru_cache
from hashlib import blake2b
from time import time_ns
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary, ref

import dask
from opentelemetry.context import Context, attach, create_key, get_current
from opentelemetry.trace import Span, SpanKind, Tracer, get_current_span, set_span_in_context

from .. import schema
from ..patching import ANNOTATIONS
from ..privacy import Capture, Redactor
from ..scheduler.outcomes import described
from ..schema import MAX_NAME, clean
from ..tracers import GlobalTracer
from ..worker.task_span import record_error
from .callers import Caller, Here, find_caller, is_in_task, is_suppressed, periods_of
from .implicit_spans import reserve
from .settings import ClientSettings, client_settings
from .submitting import safety

__all__ = ["OpenSpan", "is_busy", "open_span", "with_callers_span"]


Result = TypeVar("Result")


class OpenSpan(NamedTuple):
    """A Dask span that ``with span(...)`` has opened in this process, and those around it."""

    tags: tuple[str, ...]
    ids: tuple[str, ...]
    #: The span whose work is in this Dask span itself: that of ``with span(...)``, or the current one without an SDK.
    caller: Caller
    #: The span of the caller's trace that the root is linked with; None if this Dask span is in a caller's trace.
    linked: Caller | None
    #: Spans of callers that are to be linked with the root once there is work.
    linked_spans: tuple[ref[Span], ...]
    #: Id of the scheduler that work inside the root was submitted to first, once there is one.
    schedulers: list[str]

    def ids_on(self, scheduler: str) -> tuple[str, ...]:
        """Return the ids for one of several schedulers: each makes spans whose ids depend on these."""
        if not scheduler or not self.schedulers or self.schedulers[0] == scheduler:
            return self.ids
        nonce = blake2b(scheduler.encode(), digest_size=8).hexdigest()
        return tuple(f"{each};{nonce}" for each in self.ids)


#: Key of the innermost open Dask span in OpenTelemetry's context: some threads get that context and not Dask's.
_OPEN = create_key("dask_otel_open_span")
#: Whether a caller's span is being made or ended here: span processors may use Dask.
_busy: ContextVar[Callable[[], _Call | None]] = ContextVar("dask_otel_busy", default=lambda: None)
#: The innermost block; only for its tokens, which belong to one context as those of Dask do.
_entered: ContextVar[Any] = ContextVar("dask_otel_block", default=None)
#: By the span of the caller that ``with span(...)`` has made.
_of_spans: WeakKeyDictionary[Any, OpenSpan] = WeakKeyDictionary()
_tracer = GlobalTracer()


def open_span(context: Context) -> OpenSpan | None:
    """Return the Dask span of the current span if ``with span(...)`` has made that, else the innermost open one.

    Programs hand the current span on by hand, to threads that do not get its context.
    """
    with suppress(TypeError):  # a span of somebody else's making, which cannot be a key
        found = _of_spans.get(get_current_span(context))
        if found is not None:
            return found
    latest = context.get(_OPEN)
    return latest if isinstance(latest, OpenSpan) else None


def is_busy() -> bool:
    """Whether the running code is called by a tracer of the caller's, for a span that is made or ended here."""
    call = _busy.get()()
    return call is not None and not call.is_over


def with_callers_span(
    original: Callable[..., Iterator[str]], is_on: Callable[[], bool]
) -> Callable[..., Iterator[str]]:
    """Return what takes the place of the generator function behind ``distributed.span``.

    Parameters
    ----------
    original
        The function that was there before, which opens the Dask span.
    is_on
        Whether to make spans of the caller: it may still be there, below a patch of somebody else, once it is undone.
    """
    opens = contextmanager(original)

    @functools.wraps(original)
    def span(*tags: str) -> Iterator[str]:
        with opens(*tags) as span_id:
            opened = _begin(len(tags)) if is_on() else None
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
        self._process = os.getpid()
        #: Of the innermost Dask span.
        self.id = ""
        #: OpenTelemetry's context before, and what tells the context apart in which it was left; once it is.
        self.before = Context()
        self.token: Token[Any] | None = None

    def enter(self, context: Context) -> None:
        """Make a context of OpenTelemetry's the current one."""
        self.before = get_current()
        self.token = _entered.set(self)
        attach(context)

    def leave(self) -> None:
        """Put back the context before, whatever the block has left, unless it is left in another context.

        Not by OpenTelemetry's token: it would log an error then.
        """
        token, self.token = self.token, None
        if token is not None:
            with suppress(ValueError):
                _entered.reset(token)
                attach(self.before)

    def end(self, error: BaseException | None) -> None:
        """Leave the context if it is still current, and end the spans with what has left the block; never raises."""
        safety.logs_messages = self._capture == Capture()
        interrupt: BaseException | None = None
        try:
            with safety.guard("caller (end of a span)"):
                self.leave()
        except BaseException as raised:  # noqa: BLE001 -- such as Ctrl-C; raised below
            interrupt = raised
        # In a process that was forked off inside the block, they are the other process's.
        while self.spans and self._process == os.getpid():
            try:
                with safety.guard("caller (end of a span)"):
                    _busily(_end, self.spans.pop(), error, self._capture)
            except BaseException as raised:  # noqa: BLE001 -- raised below
                interrupt = raised
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                interrupt = None  # it refers to this frame


def _begin(count: int) -> _Opened | None:
    """Begin the caller's spans for as many tags as Dask has just opened; None if there are to be none."""
    opened = None
    try:
        settings = client_settings()
        safety.logs_messages = settings.capture == Capture()
        if settings.context == "none" or is_busy() or is_in_task():
            return None
        here = find_caller()
        if is_suppressed(here.context):
            return None
        opened = _Opened(settings.capture)
        if _open(opened, here, settings, count):
            return opened
    except BaseException as error:
        if opened:
            opened.end(None if isinstance(error, Exception) else error)
        if not isinstance(error, Exception):  # such as Ctrl-C
            raise
        safety.caught("caller (begin of a span)", error)
        return None
    if opened:
        opened.end(None)
    return None


def _open(opened: _Opened, here: Here, settings: ClientSettings, count: int) -> bool:
    annotation = dask.get_annotations()["span"]
    tags, ids = tuple(annotation["name"]), tuple(annotation["ids"])
    around = ids[:-count]
    outer = open_span(here.context)
    if outer and not around:  # in a thread that has got OpenTelemetry's context, and not Dask's
        around, tags = outer.ids, (*outer.tags, *tags)
    elif outer and around[: len(outer.ids)] != outer.ids:
        outer = None
    caller, context = here.caller, here.context
    linked, linked_spans = (outer.linked, outer.linked_spans) if outer else (None, ())
    # A root that is linked, not below its caller; what is in it is in its trace, whatever the setting is by now.
    is_linked = linked is not None if around else _is_linked(here, settings)
    tracer, redactor = _tracer(), _redactor(settings.capture)
    new_ids: list[str] = []
    for number, (tag, plain_id) in enumerate(zip(tags[-count:], ids[-count:], strict=True)):
        is_root = not around and number == 0
        span = own = None
        if tracer:
            span = _busily(_start, tracer, redactor, str(tag), context, is_root)
            opened.spans.append(span)
            own = span.get_span_context()
        if span and own and own.is_valid and (not here.caller or own.span_id != here.caller.span_id):
            caller = Caller.of(own)
            context = set_span_in_context(span, context)
            nonce = ""
            reserve(span)
        else:  # no SDK, or one that is switched off
            if opened.spans and span:
                opened.spans.pop()  # it may be the current span itself, which is not ours to end
            span, tracer = None, None
            if caller is None:
                return False
            nonce = uuid4().hex[:16]
        is_linked = is_linked and caller.is_sampled
        new_ids.append(plain_id if is_linked else caller.traceparent(nonce))
        # Not yet for a root, nor in a request inside the block of the root.
        is_new_link = is_linked and (linked is None or linked.trace_id != caller.trace_id)
        if is_new_link or not is_linked:  # what is inside an unsampled one is not in the trace of the root
            linked = caller if is_new_link else None
            if is_new_link and span:
                with suppress(TypeError):  # a span of somebody else's making
                    linked_spans = (*linked_spans, ref(span))
        if span and span.is_recording():
            span.set_attribute(schema.SPAN_ID, new_ids[-1])
    if caller is None or ANNOTATIONS is None:
        return False
    opened.id = new_ids[-1]
    ids = *around, *new_ids
    found = OpenSpan(tags, ids, caller, linked, linked_spans, outer.schedulers if outer else [])
    if opened.spans:
        with suppress(TypeError):  # a span of somebody else's making
            _of_spans[opened.spans[-1]] = found
    opened.enter(Context({**context, _OPEN: found}))
    # Dask itself puts back what was there before.
    ANNOTATIONS.set({**dask.get_annotations(), "span": {"name": tags, "ids": ids}})
    return True


class _Call:
    """A call of the program's tracer; once nothing refers to it, the call is over, also if it was interrupted."""

    is_over = False


def _busily(function: Callable[..., Result], *args: Any) -> Result:
    """Call what calls the program's span processors, which may use Dask."""
    call = _Call()
    token = _busy.set(ref(call))
    try:
        return function(*args)
    finally:
        call.is_over = True
        _busy.reset(token)


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
