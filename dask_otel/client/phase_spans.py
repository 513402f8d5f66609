"""Spans of the phases of a submission below the caller's span, and sums of short ones on it.

A phase that takes long is a span below the caller's span; what is shorter is summed up in attributes of the caller's
span. No phase is ever the current span, so no span of anybody else is below one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from threading import RLock
from types import MappingProxyType
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, get_current_span, set_span_in_context

from .. import schema
from ..safety import Safety
from ..tracers import GlobalTracer
from .callers import is_in_task, is_suppressed
from .settings import client_settings

__all__ = [
    "GATHER",
    "MAX_PHASE_SPANS",
    "OPTIMIZE",
    "SERIALIZE",
    "SUBMIT",
    "WAIT",
    "Kind",
    "Phase",
    "Phases",
    "PhasesCaller",
]

#: Phase spans below one caller's span; what comes later is summed up.
MAX_PHASE_SPANS = 100


class Kind(NamedTuple):
    """A phase: its value of ``dask.phase``, the name of its spans, and the attribute that sums up its time."""

    value: str
    name: str
    time: str


OPTIMIZE, SERIALIZE, SUBMIT, WAIT, GATHER = (
    Kind(value, name, schema.PHASE_TIMES[value])
    for value, name in {
        "optimize": "optimize graph",
        "serialize": "serialize graph",
        "submit": "submit graph",
        "wait": "wait for results",
        "gather": "gather results",
    }.items()
)
_NONE: Mapping[str, int] = MappingProxyType({})
_TIMES = frozenset(schema.PHASE_TIMES.values())


class Phase(NamedTuple):
    """Times in nanoseconds since the epoch, as those of the spans around it."""

    kind: Kind
    start: int
    end: int
    #: Attributes that only a span of its own has; and those that are summed up where there is none.
    attributes: Mapping[str, int] = _NONE
    sums: Mapping[str, int] = _NONE


class PhasesCaller(NamedTuple):
    """Whose phases they are."""

    #: That was current.
    span: Span
    #: Nanoseconds; what takes as long is a span.
    threshold: float


class _Sums:
    """What has been recorded of one caller's span."""

    __slots__ = ("has_room", "lock", "spans", "values")

    def __init__(self, span: Span) -> None:
        #: Threads share spans.
        self.lock = RLock()
        self.spans = 0
        #: By attribute; times in nanoseconds.
        self.values: dict[str, int] = {}
        self.has_room = _has_room(span)

    def take_place(self) -> bool:
        """Return whether there may be one more phase span."""
        with self.lock:
            self.spans += 1
            return self.spans <= MAX_PHASE_SPANS

    def add(self, name: str, value: int, changed: dict[str, int | float]) -> None:
        total = self.values[name] = self.values.get(name, 0) + value
        changed[name] = total / 1e9 if name in _TIMES else total


def _has_room(span: Span) -> bool:
    """Whether a span can take our attributes: at its limit, each would push out one of the person's."""
    attributes = getattr(span, "_attributes", None)
    limit = getattr(attributes, "maxlen", None)
    return limit is None or len(attributes or ()) + len(_TIMES) + 3 <= limit


class Phases:
    """Records the phases of all clients of a process."""

    def __init__(self, safety: Safety) -> None:
        self.safety = safety
        #: Set if nothing is to be recorded any more; some wrappers may still be there, below those of others.
        self.is_over = False
        self._tracer = GlobalTracer()
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self._lock = RLock()
        self._sums: WeakKeyDictionary[Span, _Sums] = WeakKeyDictionary()

    def caller(self) -> PhasesCaller | None:
        """Return whose phases are recorded here; None if there is nobody, or in a task."""
        context = get_current()
        span = get_current_span(context)
        if span is INVALID_SPAN or self.is_over or is_suppressed(context) or is_in_task():
            return None
        settings = client_settings()
        if settings.context == "none" or not span.is_recording():
            return None
        return PhasesCaller(span, settings.phase_threshold * 1e9)

    def record(self, caller: PhasesCaller, phases: Iterable[Phase]) -> None:
        """Record phases that have ended."""
        span, threshold = caller
        sums = self._sums_of(span)
        short = [p for p in phases if p.end - p.start < threshold or not self._make_span(span, sums, p)]
        if not short:
            return
        changed: dict[str, int | float] = {}
        with sums.lock:
            for phase in short:
                sums.add(phase.kind.time, max(phase.end - phase.start, 0), changed)
                for name, value in phase.sums.items():
                    sums.add(name, value, changed)
            # In the lock, or an older sum could replace a newer one. A span that has ended would log a warning.
            if sums.has_room and span.is_recording():
                span.set_attributes(changed)

    def _sums_of(self, span: Span) -> _Sums:
        found = self._sums.get(span)
        if found is None:
            with self._lock:
                found = self._sums.setdefault(span, _Sums(span))
        return found

    def _make_span(self, span: Span, sums: _Sums, phase: Phase) -> bool:
        """Return whether the phase has a span."""
        tracer = self._tracer()
        if tracer is None or not sums.take_place():
            return False
        # Without a lock: the person's processors may do anything.
        made = tracer.start_span(
            phase.kind.name,
            set_span_in_context(span),
            SpanKind.INTERNAL,
            {schema.PHASE_NAME: phase.kind.value, **phase.attributes},
            start_time=phase.start,
        )
        is_kept = made.is_recording()  # the sampler decides
        made.end(max(phase.end, phase.start))
        return is_kept


_all: WeakSet[Phases] = WeakSet()


def _renew_locks() -> None:
    """Have locks that no other thread holds, in a process that was forked off."""
    for phases in _all:
        phases._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
