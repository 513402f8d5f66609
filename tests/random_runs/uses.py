"""What tasks do with OpenTelemetry, at random, as people's code does: nothing, most of the time."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from distributed import get_worker
from distributed.utils import thread_state
from opentelemetry import trace

import dask_otel

__all__ = ["KEY", "RAISED", "WORKER", "at_rest", "begin", "uses_spans"]

#: Attributes of children: key of the task, if the thread knows it, and address of the worker; of the span of a run:
#: type of the exception that the function raised, empty for none.
KEY, WORKER, RAISED = "test.key", "test.worker", "test.raised"
#: Seconds that a thread which a task has started may go on after it.
LONGEST = 0.3

_tracer = trace.get_tracer("people")
_is_on = False
#: Functions and threads that have begun and not ended; held to change it.
_running = 0
_lock = threading.Lock()


def begin() -> None:
    """Have tasks in this process use OpenTelemetry from now on."""
    global _is_on
    _is_on = True


def at_rest(seconds: float) -> bool:
    """Wait until no task, and no thread that a task has started, runs any more; return whether that is so. Blocks."""
    deadline = time.monotonic() + seconds
    while _running and time.monotonic() < deadline:
        time.sleep(0.01)
    return not _running


def uses_spans(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a task use OpenTelemetry before, around or after what it does."""
    if iscoroutinefunction(function):

        @wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            if not _is_on:
                return await function(*args, **kwargs)
            with _Counted(), random.choice(_USES)():
                return await function(*args, **kwargs)

    else:

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not _is_on:
                return function(*args, **kwargs)
            with _Counted(), random.choice(_USES)():
                return function(*args, **kwargs)

    return run


class _Counted(AbstractContextManager[None]):
    def __enter__(self) -> None:
        _count(1)

    def __exit__(self, *exc: object) -> None:
        _count(-1)


def _count(number: int) -> None:
    global _running
    with _lock:
        _running += number


def _child(name: str) -> AbstractContextManager[Any]:
    attributes = {KEY: str(getattr(thread_state, "key", ""))}
    with suppress(ValueError):  # a thread of the task's own
        attributes[WORKER] = get_worker().address
    return _tracer.start_as_current_span(name, attributes=attributes)


class _Nothing(AbstractContextManager[None]):
    """No use, nor one that needs a span."""

    def __enter__(self) -> None:
        dask_otel.TaskFilter().filter(logging.makeLogRecord({}))
        with suppress(ValueError):  # a worker that has not got the plugin yet
            dask_otel.trace_id()

    def __exit__(self, *exc: object) -> None:
        pass


class _Noted(AbstractContextManager[None]):
    """A use that says on the span of the run how it ended."""

    def __init__(self) -> None:
        self._span = trace.get_current_span()

    def __enter__(self) -> None:
        self.before()

    def before(self) -> None:
        """Use OpenTelemetry at the beginning."""

    def after(self) -> None:
        """Use it at the end."""

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.after()
        self._span.set_attribute(RAISED, kind.__name__ if kind else "")


class _Recorded(_Noted):
    """Only the attribute, perhaps so late that a cancelled run does not come to it."""


class _Ids(_Noted):
    """As log records with correlation do."""

    def before(self) -> None:
        self._span.get_span_context()


class _Child(_Noted):
    """A request, with one inside."""

    def before(self) -> None:
        with _child("request"), _child("response"):
            pass


class _Late(_Noted):
    def after(self) -> None:
        with _child("late"):
            pass


class _Around(_Noted):
    """A child that is as long as the run."""

    def before(self) -> None:
        self._child = _child("around")
        self._child.__enter__()

    def after(self) -> None:
        self._child.__exit__(None, None, None)


class _Background(AbstractContextManager[None]):
    """A thread with the context of the task, which has a span of its own after the end, perhaps."""

    def __enter__(self) -> None:
        _count(1)
        threading.Thread(target=copy_context().run, args=(self._run, random.uniform(0, LONGEST)), daemon=True).start()

    def _run(self, seconds: float) -> None:
        time.sleep(seconds)
        with _child("background"):
            pass
        _count(-1)

    def __exit__(self, *exc: object) -> None:
        pass


_USES: tuple[Callable[[], AbstractContextManager[None]], ...] = (
    *(_Nothing, _Nothing, _Nothing, _Recorded, _Ids, _Child, _Child, _Late, _Around, _Background),
)
