"""Measures where the time of whoever submits goes, and of whoever waits for results.

Where the phases are measured:

- ``optimize`` from ``collections_to_expr``, which ``compute`` and ``persist`` call first, until the graph is submitted;
- ``serialize`` and ``submit`` in ``Client._graph_to_futures``, where all submissions meet;
- ``wait`` and ``gather`` in ``Client.sync``, through which ``result``, ``gather``, ``wait`` and others call what they
  need, in the thread or the task of whoever waits. Within it, ``distributed.utils.All`` is what waits for the tasks.
  What Dask waits for on its own, as ``as_completed`` does in the background, does not pass there.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from threading import local
from time import time_ns
from types import CodeType, FrameType
from typing import Any

import dask.base
import distributed.client
import distributed.utils
from distributed import Client, as_completed
from distributed.utils import nbytes

from .. import schema
from ..patching import wrap
from ..safety import Safety, log
from .phase_spans import GATHER, OPTIMIZE, SERIALIZE, SUBMIT, WAIT, Kind, Phase, Phases, PhasesCaller
from .sizes import size_of

__all__ = ["install"]

#: Marks of one thread that no submission has taken: the graph went to another scheduler, or to none.
MAX_MARKS = 16
_CLIENT = "distributed.client"
#: The part of dask-otel that fails, in the log.
_WHERE = "caller (phases)"
#: Whose time from ``collections_to_expr`` on is optimisation.
_SUBMITTERS = {(module, name) for module in ("dask.base", _CLIENT) for name in ("compute", "persist")}
#: What ``Client.sync`` is given: calls that fetch results, and calls that only wait.
_RESULTS = {"Client._gather", "Future._result"}
_WAITS = {"_wait", "Future._exception", "Future._traceback"}


# ------------------------------------------------------------------------------------------------------- submissions


class _Marks(local):
    """When graphs began to be collected: by the id of the frame that goes on to submit, with its code.

    A frame is not kept: that would keep a person's data. Its id can belong to another frame later, but whatever runs
    the same code sets a mark of its own first.
    """

    def __init__(self) -> None:
        self.of: dict[int, tuple[CodeType, int]] = {}

    def set(self, frame: FrameType) -> None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) not in _SUBMITTERS:
            return
        self.of.pop(id(frame), None)
        if len(self.of) >= MAX_MARKS:
            del self.of[next(iter(self.of))]
        self.of[id(frame)] = frame.f_code, time_ns()

    def take(self, frame: FrameType | None) -> int | None:
        """Return when the graph that a frame submits began to be collected; None if that is not known."""
        if not self.of:
            return None
        while frame is not None and _is_between(frame):
            frame = frame.f_back
        code, started = self.of.pop(id(frame), (None, 0))
        return started if frame is not None and code is frame.f_code else None


def _is_between(frame: FrameType) -> bool:
    """Whether a frame is one of those between a submission and what has collected its graph."""
    module = frame.f_globals.get("__name__", "")
    return module.startswith("dask_otel.") or (module, frame.f_code.co_name) == (_CLIENT, "get")


class _Submission:
    """One graph on its way to the scheduler."""

    __slots__ = ("caller", "collected", "entered", "serialized", "size", "tasks")

    def __init__(self, caller: PhasesCaller, collected: int | None, tasks: int | None) -> None:
        self.caller = caller
        self.collected = collected
        self.tasks = tasks
        self.entered = time_ns()
        self.serialized: int | None = None
        self.size = 0

    def phases(self, *, is_done: bool, knows_serialize: bool) -> list[Phase]:
        now = time_ns()
        out = []
        if self.collected is not None:
            out.append(Phase(OPTIMIZE, self.collected, self.entered))
        since = self.entered
        if self.serialized is not None:
            size = {schema.GRAPH_SIZE: self.size}
            out.append(Phase(SERIALIZE, since, self.serialized, size, size))
            since = self.serialized
        elif knows_serialize:
            # It has failed, before the graph was serialised or while it was; else the phases are not known.
            return out if is_done else [*out, Phase(SERIALIZE, since, now)]
        tasks = {} if self.tasks is None else {schema.GRAPH_TASK_COUNT: self.tasks}
        return [*out, Phase(SUBMIT, since, now, tasks, {schema.SUBMIT_COUNT: 1} if is_done else {})]


_submission: ContextVar[_Submission | None] = ContextVar("dask_otel_submission", default=None)


def _tasks_of(expr: Any = None, keys: Any = None, *args: Any, **kwargs: Any) -> int | None:
    """Return the number of tasks of a graph that is there already; others are not made for this."""
    kind = type(expr).__name__
    if kind == "LLGExpr":
        (graph,) = expr.operands
        return len(graph) if type(graph) is dict else None
    return len(keys) if kind == "_MapExpr" and isinstance(keys, list) else None


def _collecting(phases: Phases, marks: _Marks, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def collections_to_expr(*args: Any, **kwargs: Any) -> Any:
        with phases.safety.guard(_WHERE):
            marks.set(sys._getframe(1))
        return original(*args, **kwargs)

    return collections_to_expr


def _serializing(phases: Phases, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def serialize(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        try:
            submission = _submission.get()
            if submission is not None:
                submission.size = sum(map(nbytes, result[1]))
                submission.serialized = time_ns()
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            phases.safety.caught(_WHERE, error)
        return result

    return serialize


def _submitting(
    phases: Phases, marks: _Marks, original: Callable[..., Any], *, knows_serialize: bool
) -> Callable[..., Any]:
    @functools.wraps(original)
    def _graph_to_futures(client: Any, *args: Any, **kwargs: Any) -> Any:
        submission = None
        try:  # half the time of a guard, here and below
            caller = phases.caller()
            if caller is not None:
                submission = _Submission(caller, marks.take(sys._getframe(1)), _tasks_of(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            phases.safety.caught(_WHERE, error)
        if submission is None:
            return original(client, *args, **kwargs)
        is_done = False
        token = _submission.set(submission)
        try:
            result = original(client, *args, **kwargs)
            is_done = True
        finally:
            _submission.reset(token)
            try:
                phases.record(submission.caller, submission.phases(is_done=is_done, knows_serialize=knows_serialize))
            except Exception as error:  # noqa: BLE001 -- as above
                phases.safety.caught(_WHERE, error)
        return result

    return _graph_to_futures


# ------------------------------------------------------------------------------------------------- calls that wait


class _Call:
    """One call that waits for tasks, and then fetches their results if it is one of those."""

    __slots__ = ("_ended", "_has_failed", "_kind", "_since", "_task", "_was_split", "caller")

    def __init__(self, caller: PhasesCaller) -> None:
        self.caller = caller
        self._ended: list[Phase] = []
        self._kind = WAIT
        self._since = time_ns()
        #: Of asyncio, which waits, once it has begun; the tasks that it starts have its context.
        self._task: Any = None
        self._was_split = self._has_failed = False

    def start(self) -> None:
        """Begin now, not when the call was made."""
        self._since = time_ns()

    def begin_wait(self) -> bool:
        """Wait for tasks; return False if it is not the call itself that does."""
        current = asyncio.current_task()
        self._task = self._task or current
        if self._task is not current:
            return False
        if self._kind is GATHER:  # some results had been lost, and are computed again
            self._turn(WAIT)
        return True

    def end_wait(self, *, is_done: bool) -> None:
        """Go on to fetch the results; if waiting has raised, probably not."""
        self._was_split = True
        self._has_failed = not is_done
        self._turn(GATHER)

    def finish(self, *, fetches: bool, is_done: bool) -> list[Phase]:
        """Return the phases; none if Dask has fetched results without a sign of when waiting had ended."""
        if is_done or not self._has_failed:
            self._turn(self._kind)
        # A copy: a call that was interrupted may go on for a moment on the event loop.
        return [] if fetches and is_done and not self._was_split else [*self._ended]

    def _turn(self, kind: Kind) -> None:
        now = time_ns()
        self._ended.append(Phase(self._kind, self._since, now))
        self._kind, self._since = kind, now


_call: ContextVar[_Call | None] = ContextVar("dask_otel_call", default=None)


def _kind_of(function: Any) -> tuple[bool, bool]:
    """Return whether a function waits for tasks, and whether it fetches results then."""
    if getattr(function, "__module__", None) != _CLIENT:
        return False, False
    name = getattr(function, "__qualname__", None)
    return name in _RESULTS or name in _WAITS, name in _RESULTS


def _waiting(phases: Phases, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Client.sync``."""
    safety = phases.safety

    @functools.wraps(original)
    def sync(client: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        call, fetches, is_async = None, False, False
        with safety.guard(_WHERE):
            caller = phases.caller()
            if caller is not None:
                waits, fetches = _kind_of(func)
                if waits:
                    asked = kwargs.get("asynchronous")
                    is_async = bool(client.asynchronous if asked is None else asked)
                    call = _Call(caller)
        if call is None:
            return original(client, func, *args, **kwargs)
        if is_async:
            return original(client, _awaited(phases, call, func, fetches), *args, **kwargs)
        try:
            result = original(client, _watched(call, func) if fetches else func, *args, **kwargs)
        except BaseException as error:
            _finish(phases, call, fetches, False, None)
            _hide_frame(error)
            raise
        _finish(phases, call, fetches, True, result)
        return result

    return sync


def _hide_frame(error: BaseException) -> None:
    """Take the frame that calls this out of a traceback, if it is about to raise the exception again.

    Dask sees to it that the traceback of a task's exception is short. Python 3.10 has the frame all the same.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def _watched(call: _Call, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what does the same, in a context of its own; it adds nothing to the stack of the coroutine."""

    @functools.wraps(function)
    def start(*args: Any, **kwargs: Any) -> Any:
        _call.set(call)
        return function(*args, **kwargs)

    return start


def _awaited(phases: Phases, call: _Call, function: Callable[..., Any], fetches: bool) -> Callable[..., Any]:
    """Return what does the same, in the task of whoever awaits it."""

    @functools.wraps(function)
    async def start(*args: Any, **kwargs: Any) -> Any:
        with phases.safety.guard(_WHERE):
            call.start()
        token = _call.set(call if fetches else None)
        done, result = False, None
        try:
            result = await function(*args, **kwargs)
            done = True
        except BaseException as error:
            _hide_frame(error)
            raise
        finally:
            with suppress(ValueError):  # closed from another context
                _call.reset(token)
            _finish(phases, call, fetches, done, result)
        return result

    return start


def _finish(phases: Phases, call: _Call, fetches: bool, is_done: bool, result: Any) -> None:
    with phases.safety.guard(_WHERE):
        ended = call.finish(fetches=fetches, is_done=is_done)
        if ended and ended[-1].kind is GATHER and is_done and (size := size_of(result)) is not None:
            sizes = {schema.GATHER_SIZE: size}
            ended[-1] = ended[-1]._replace(attributes=sizes, sums=sizes)
        phases.record(call.caller, ended)


def _waiting_for_all(phases: Phases, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap ``distributed.utils.All``."""

    async def timed(call: _Call, awaitable: Awaitable[Any]) -> Any:
        is_done = False
        try:
            result = await awaitable
            is_done = True
        finally:
            with phases.safety.guard(_WHERE):
                call.end_wait(is_done=is_done)
        return result

    @functools.wraps(original)
    def wait_for_all(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        awaitable, call = original(*args, **kwargs), None
        with phases.safety.guard(_WHERE):
            current = _call.get()
            if current is not None and current.begin_wait():
                call = current
        return awaitable if call is None else timed(call, awaitable)

    return wait_for_all


def _next(phases: Phases, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``as_completed.__next__``."""

    @functools.wraps(original)
    def wait_for_next(completed: Any) -> Any:
        call = _waiting_call(phases)
        if call is None:
            return original(completed)
        try:
            return original(completed)
        except BaseException as error:
            _hide_frame(error)
            raise
        finally:
            _finish(phases, call, False, True, None)

    return wait_for_next


def _anext(phases: Phases, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``as_completed.__anext__``."""

    @functools.wraps(original)
    async def wait_for_next(completed: Any) -> Any:
        call = _waiting_call(phases)
        if call is None:
            return await original(completed)
        try:
            return await original(completed)
        except BaseException as error:
            _hide_frame(error)
            raise
        finally:
            _finish(phases, call, False, True, None)

    return wait_for_next


def _waiting_call(phases: Phases) -> _Call | None:
    with phases.safety.guard(_WHERE):
        caller = phases.caller()
        return None if caller is None else _Call(caller)
    return None


# --------------------------------------------------------------------------------------------------------- installing


def install(safety: Safety) -> Callable[[], None]:
    """Record the phases of all clients of this process. What a version of Dask lacks is not measured.

    Returns
    -------
    A function that undoes this, but for what somebody has wrapped since.
    """
    phases, marks, undo = Phases(safety), _Marks(), []

    def patch(target: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> bool:
        original = getattr(target, name, None)
        if not callable(original):
            log.info("dask-otel: this version of Dask has no %s.%s; its time is not measured.", target.__name__, name)
            return False
        undo.append(wrap(target, name, wrapper(original)))
        return True

    knows_serialize = patch(distributed.client, "serialize", partial(_serializing, phases))
    submitting = partial(_submitting, phases, marks, knows_serialize=knows_serialize)
    if patch(Client, "_graph_to_futures", submitting):
        for module in (dask.base, distributed.client):
            patch(module, "collections_to_expr", partial(_collecting, phases, marks))
    patch(distributed.utils, "All", partial(_waiting_for_all, phases))
    patch(Client, "sync", partial(_waiting, phases))
    patch(as_completed, "__next__", partial(_next, phases))
    patch(as_completed, "__anext__", partial(_anext, phases))

    def uninstall() -> None:
        phases.is_over = True
        while undo:
            undo.pop()()

    return uninstall
