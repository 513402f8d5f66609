"""A span that is made when it is first used; pure: it knows neither Dask nor the OpenTelemetry SDK.

Most tasks do not use OpenTelemetry, and a span costs far more than what Dask does for a short task. So a *lazy span* is
current in each of them, and becomes an ordinary span when code in the task needs one. What is never made answers with
the parent's context: log records and child spans are then in the right trace, one level higher.

A task may use its span from several threads and from coroutines at once, and code that the task has started may go on
after its end. The lazy span is *frozen* at the end: nothing is made any more.
"""

from __future__ import annotations

import sys
from abc import update_abstractmethods
from collections.abc import Callable, Mapping
from threading import Lock, get_ident
from time import monotonic
from types import MappingProxyType
from typing import Any, Protocol

from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status

__all__ = ["ANY", "CHILD", "Budget", "DeferredSpan", "LazySpan", "Maker", "Place", "freeze", "peek"]

#: What makes a span: any use, also a request for its ids; or only a span below it, and what is recorded on it.
ANY, CHILD = "any", "child"
#: Seconds for which a thread waits for another one that makes the span; then it gets the parent's context. A processor
#: may hold the other thread for as long as it likes, and this thread may be the event loop's.
MAX_WAIT = 0.05


class Place(Protocol):
    """What is known of a span that is not made."""

    @property
    def name(self) -> str:
        """Name of the span. Raises no ``Exception``."""

    def context(self) -> SpanContext:
        """Return the context of its parent, always the same. Raises no ``Exception``."""

    def given_out(self) -> SpanContext:
        """Return it for spans and log records that refer to the parent: it has to be sent. Raises no ``Exception``."""


class Maker(Protocol):
    """Makes the real span of a lazy one."""

    def can_record(self) -> bool:
        """Whether a span that is made now would record; makes nothing."""

    def make(self) -> Span | None:
        """Make the span, and do what is to be done before anybody sees it; None if there is to be none.

        Raises no ``Exception``.
        """


class DeferredSpan:
    """Makes the real span at most once, and has it ended exactly once.

    Parameters
    ----------
    maker
        Is let go once the span is made or frozen.
    """

    __slots__ = ("_end", "_lock", "_maker", "_making", "_real", "_waits")

    def __init__(self, maker: Maker | None) -> None:
        #: Held by the thread that makes or ends the span.
        self._lock = Lock()
        #: None once the span is made or frozen.
        self._maker = maker
        #: The thread that makes the span.
        self._making = 0
        #: False once somebody has waited for that thread in vain.
        self._waits = True
        self._real: Span | None = None
        #: Ends the real span; from the end of the run until it is called.
        self._end: Callable[[Span], None] | None = None

    @property
    def real(self) -> Span | None:
        """The real span, if it has been made."""
        return self._real

    def can_record(self) -> bool:
        """Whether the real span records, or would if it were made; makes nothing."""
        real, maker = self._real, self._maker
        return real.is_recording() if real is not None else maker is not None and maker.can_record()

    def make(self) -> Span | None:
        """Return the real span, made now if need be; None if there is none, for whatever reason."""
        if self._real is not None or self._maker is None:
            return self._real
        # A span processor may ask for the current span while this one starts.
        if self._making == get_ident():
            return None
        if not self._lock.acquire(blocking=False) and not (self._waits and self._lock.acquire(timeout=MAX_WAIT)):
            self._waits = False
            return None
        try:
            if (maker := self._maker) is not None:
                self._making = get_ident()
                self._real = maker.make()
        finally:  # also if the thread is interrupted meanwhile
            self._making = 0
            self._maker = None
            self._lock.release()
            self._end_real()
        return self._real

    def freeze(self) -> bool:
        """Make nothing any more; return whether there is a real span, or may be one in a moment. Does not wait."""
        self._maker = None
        return self._real is not None or self._lock.locked()

    def end(self, end: Callable[[Span], None]) -> None:
        """Have the real span ended if there is one, after ``freeze``. Does not wait.

        Parameters
        ----------
        end
            Called once with the real span, now or by the thread that is about to make it.
        """
        self._end = end
        self._end_real()

    def _end_real(self) -> None:
        # Whoever releases the lock calls this, so nothing is left undone if the lock is held here.
        while self._end is not None and self._lock.acquire(blocking=False):
            end, self._end = self._end, None
            self._lock.release()
            if end is not None and self._real is not None:
                end(self._real)


def _forwarded(name: str) -> Any:
    """Make a method that records on the real span."""

    def record(self: LazySpan, *args: Any, **kwargs: Any) -> Any:
        real = None if self._maker is None else self._deferred.make()  # None once it is frozen
        return None if real is None else getattr(real, name)(*args, **kwargs)

    record.__name__ = record.__qualname__ = name
    record.__doc__ = f"See ``opentelemetry.trace.Span.{name}``; without a real span, nothing happens."
    return record


class LazySpan(Span):
    """A span of the task, as code in the task sees it.

    Parameters
    ----------
    makes_for_ids
        Whether a request for its ids makes the real span, as ``ANY`` has it.
    """

    #: What makes the real span, from the first use on; whoever sets it first does so for all threads.
    _used: DeferredSpan | None = None

    def __init__(self, place: Place, maker: Maker, makes_for_ids: bool = True) -> None:
        self._place = place
        self._maker: Maker | None = maker
        self._makes_for_ids = makes_for_ids

    @property
    def _deferred(self) -> DeferredSpan:
        own = vars(self)
        deferred: DeferredSpan = own.get("_used") or own.setdefault("_used", DeferredSpan(self._maker))
        if self._maker is None:  # ``freeze`` may have come in between, and found nothing
            deferred.freeze()
        return deferred

    def get_span_context(self) -> SpanContext:
        """Return the ids of the real span, made now if need be, or those of the parent."""
        deferred = self._deferred
        # Each log record with correlation asks for the ids, too.
        real = deferred.make() if self._makes_for_ids or _asked_by("start_span") else deferred.real
        return self._place.given_out() if real is None else real.get_span_context()

    def is_recording(self) -> bool:
        """Whether what is recorded now is kept; makes nothing."""
        return self._maker is not None and self._deferred.can_record()

    def end(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the span ends when the run does."""

    set_attributes = _forwarded("set_attributes")
    set_attribute = _forwarded("set_attribute")
    add_event = _forwarded("add_event")
    add_link = _forwarded("add_link")
    update_name = _forwarded("update_name")
    set_status = _forwarded("set_status")
    record_exception = _forwarded("record_exception")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are spans that record nothing, with the ids that are known."""
        return NonRecordingSpan, (peek(self),)

    def __getattr__(self, name: str) -> Any:
        # For what OpenTelemetry's API does not name: what only the SDK's spans have, or those of a later API.
        if "_place" not in vars(self):  # it is being copied
            raise AttributeError(name)
        deferred, place = self._deferred, self._place
        makes = self._makes_for_ids and not name.startswith("_")
        real = deferred.make() if makes else deferred.real
        if hasattr(real, name):
            return getattr(real, name)
        if name in _WITHOUT_SPAN:
            return _WITHOUT_SPAN[name](place)
        return getattr(NonRecordingSpan(place.context()), name)

    def __repr__(self) -> str:
        real = self._deferred.real
        return f"<LazySpan of {self._place.name!r}: {'not made' if real is None else repr(real)}>"


def peek(span: LazySpan) -> SpanContext:
    """Return the ids of the real span if it is made, else those of the parent; makes nothing."""
    real = None if span._used is None else span._used.real
    return span._place.given_out() if real is None else real.get_span_context()


def _asked_by(function: str) -> bool:
    """Whether the caller of the calling method is a function of that name."""
    try:
        return sys._getframe(2).f_code.co_name == function
    except ValueError:  # nobody: a thread that calls this method only
        return False


def freeze(span: LazySpan) -> DeferredSpan | None:
    """Make nothing any more. Does not wait.

    Returns
    -------
    What is to end the real span, if there is one, or may be one in a moment.
    """
    span._maker = None  # first: whoever uses the span from now on freezes it, too
    deferred = span._used
    return deferred if deferred is not None and deferred.freeze() else None


_NOTHING: Mapping[str, Any] = MappingProxyType({})
#: What code may read of the SDK's spans, where there is none: whether a task's span is made must not decide whether the
#: task fails.
_WITHOUT_SPAN: dict[str, Callable[[Place], Any]] = {
    "name": lambda place: place.name,
    "context": lambda place: place.given_out(),
    "parent": lambda place: place.context(),
    "attributes": lambda place: _NOTHING,
    "events": lambda place: (),
    "links": lambda place: (),
    "status": lambda place: Status(),
    "start_time": lambda place: None,
    "end_time": lambda place: None,
}

for _name in Span.__abstractmethods__ - vars(LazySpan).keys():  # methods of a later API
    setattr(LazySpan, _name, _forwarded(_name))
update_abstractmethods(LazySpan)


class Budget:
    """A token bucket of one minute's spans, for all threads.

    Parameters
    ----------
    per_minute
        Spans; 0 for no limit.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._room = float(per_minute)
        self._filled = clock()
        self._lock = Lock()

    def take(self) -> bool:
        """Take the place of one span; False if there is none left."""
        if not self._per_minute:
            return True
        with self._lock:
            now = self._clock()
            self._room = min(self._per_minute, self._room + (now - self._filled) * self._per_minute / 60)
            self._filled = now
            if self._room < 1:
                return False
            self._room -= 1
            return True

    def give_back(self) -> None:
        """Give back the place of a span that is not sent after all."""
        with self._lock:
            self._room += 1
