"""Instruments the Dask clients of a process, and undoes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock

import distributed

from ..patching import ANNOTATIONS, generator_of, replace_generator
from ..safety import log_error
from . import phases
from .caller_context import caller_context, span_ids_here
from .dask_spans import with_callers_span
from .submitting import add_to_submissions, can_add, safety

__all__ = ["instrument", "is_instrumented", "span_ids_here", "uninstrument"]

#: Re-entrant: a signal handler may get here.
_lock = RLock()
#: What undoes it; empty if nothing is instrumented.
_undo: list[Callable[[], None]] = []
#: How often it was done and undone: what has another number is undone.
_count = 0


def instrument() -> None:
    """Instrument all clients of this process, now and later; twice is once. Never raises."""
    global _count
    with safety.guard("caller (instrumenting)"), _lock:
        if _undo:
            return
        generator = generator_of(distributed.span)
        lacking = [
            name
            for name, is_there in (
                ("distributed.span", generator is not None),
                ("Client._graph_to_futures", can_add()),
                ("dask.base._annotations", ANNOTATIONS is not None),
            )
            if not is_there
        ]
        if lacking or generator is None:
            log_error(
                "dask-otel does not instrument clients in this process: distributed %s lacks %s, or something else has "
                "replaced it. Upgrade dask-otel, or use a distributed that it supports.",
                distributed.__version__,
                ", ".join(lacking),
            )
            return
        number = _count = _count + 1
        _undo.append(replace_generator(distributed.span, with_callers_span(generator, lambda: number == _count)))
        _undo.append(add_to_submissions(caller_context))
        _undo.append(phases.install(safety))


def uninstrument() -> None:
    """Undo ``instrument``. What is below a patch of somebody else stays there and does nothing. Never raises."""
    global _count
    with safety.guard("caller (instrumenting)"), _lock:
        _count += 1
        while _undo:
            _undo.pop()()


def is_instrumented() -> bool:
    """Whether the clients of this process are instrumented."""
    return bool(_undo)


def _renew_lock() -> None:
    """Have a lock that no other thread holds, in a process that was forked off."""
    global _lock
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
