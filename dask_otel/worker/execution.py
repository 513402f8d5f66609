"""Wraps how one worker runs tasks and takes calls to actors, so that each has a context of its own.

``Worker.execute`` runs a task from start to end, in an asyncio task whose context Dask copies to the thread or
coroutine that runs the user's function. The wrapper sets OpenTelemetry's context there, and awaits Dask's own method,
whose result it returns as it is. If ``execute`` raised, Dask would take the task for one that executes for ever. So
everything that is done here is guarded.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token, copy_context
from functools import partial
from time import time
from traceback import format_tb
from typing import Any
from weakref import ref

import dask.base
from distributed.utils import thread_state
from distributed.worker_state_machine import ExecuteFailureEvent, ExecuteSuccessEvent, TaskState
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import extract
from opentelemetry.trace import (
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    Tracer,
    get_tracer_provider,
    set_span_in_context,
)

from .. import __version__
from ..privacy import Redactor
from ..safety import Safety
from ..scheduler.compat import wrap
from ..scheduler.outcomes import error_of, first_error
from ..spantree.events import TaskError
from .ending import EndingThread
from .lazy_span import Budget, DeferredSpan, LazySpan
from .messages import ANNOTATION, TOPIC, SpanMade
from .task_span import Outcome, Place, SpanMaker, SpanSource, end_span

__all__ = ["TaskSpans", "missing"]

#: Carriers of which the context is remembered: nearly all tasks of a graph have the same.
MAX_CARRIERS = 128
#: Runs after which failures that are long ago count no longer.
RUNS_PER_CHECK = 1024

#: What is read of Dask's tasks on workers.
_OF_TASKS = ("annotations", "run_id", "span_id", "start_time", "startstops")
_NOTHING: Mapping[str, Any] = {}
_NO_CONTEXT = Context()
#: Dask's annotations, which it has no function to clear; None if a version of Dask keeps them elsewhere.
_annotations: ContextVar[Any] | None = getattr(dask.base, "_annotations", None)
#: Whether the running code is in a call to an actor.
_in_call: ContextVar[bool] = ContextVar("dask_otel_actor_call", default=False)


def missing(worker: Any) -> list[str]:
    """Name what a worker lacks that the wrappers need."""
    state = getattr(worker, "state", None)
    needed = {
        "Worker.execute": callable(getattr(worker, "execute", None)),
        "Worker.state.tasks": isinstance(getattr(state, "tasks", None), Mapping),
        "Worker.scheduler_delay": hasattr(worker, "scheduler_delay"),
        "Worker.threads": hasattr(worker, "threads"),
        "dask.base._annotations": isinstance(_annotations, ContextVar),
    }
    needed |= {f"TaskState.{name}": hasattr(TaskState, name) for name in _OF_TASKS}
    return [name for name, is_there in needed.items() if not is_there]


class TaskSpans:
    """Gives the tasks of one worker their spans, between ``install`` and ``remove``.

    Parameters
    ----------
    spans
        ``ANY`` or ``CHILD``.
    max_rate
        Spans a minute; 0 for no limit.
    """

    def __init__(self, worker: Any, *, spans: str, max_rate: int, redactor: Redactor, safety: Safety) -> None:
        self._worker = worker
        self._tasks: Mapping[Any, Any] = worker.state.tasks
        self._spans = spans
        self._redactor = redactor
        self.safety = safety
        self._ending = EndingThread(safety)
        self._source = SpanSource(
            tracer=_Tracers(),
            report=partial(_report, ref(worker)),
            worker=partial(_address_and_name, ref(worker)),
            budget=Budget(max_rate),
            redactor=redactor,
            safety=safety,
        )
        self._contexts = _Contexts(safety)
        self._listening = False
        self._execute = worker.execute
        self._actor_execute = worker.handlers.get("actor_execute")
        self._undo: list[Callable[[], None]] = []
        self._runs = 0

    def install(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._execute = self._worker.execute
        self._undo.append(wrap(self._worker, "execute", self._run_task))
        handler, executor = self._worker.handlers.get("actor_execute"), self._worker.executors.get("actor")
        if handler is None or executor is None:  # this version of Dask has other means
            return
        self._actor_execute = handler
        wrapper = _with_signature_of(handler, self._call_actor)
        self._worker.handlers["actor_execute"] = wrapper
        self._undo.append(partial(_put_back, self._worker.handlers, wrapper, handler))
        self._undo.append(wrap(executor, "submit", partial(_submit, executor.submit)))

    def remove(self) -> None:
        """Stop listening, and give Dask its own methods back, unless somebody wrapped them after us."""
        self._listening = False
        for undo in self._undo:
            with self.safety.guard("removing"):
                undo()
        self._undo.clear()

    def stop(self, timeout: float) -> bool:
        """Wait until the spans of runs that are over have ended; return whether they have. Blocks."""
        return self._ending.stop(timeout)

    # Tasks

    async def _run_task(self, *args: Any, **kwargs: Any) -> Any:
        run = None
        if self._listening and not self.safety.gave_up:
            # A guard would cost as much as all the rest.
            try:
                run = self._begin(args[0] if args else kwargs["key"])
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self.safety.caught("begin of a task", error)
        try:
            event = await self._execute(*args, **kwargs)
        except BaseException as error:
            if run is not None:
                self._end(run, None, error)
            raise
        if run is not None:
            self._end(run, event, None)
        return event

    def _begin(self, key: Any) -> _Run | None:
        """Give the running asyncio task the context of a task; None if the task gets no span."""
        if _annotations is not None and _annotations.get() is not None:
            _annotations.set(None)  # those of whoever ran last in this context; Dask sets the task's own
        task = self._tasks.get(key)
        annotations = (task.annotations if task is not None else None) or _NOTHING
        carrier = annotations.get(ANNOTATION) or _NOTHING
        base = self._contexts.of(carrier) if carrier else _NO_CONTEXT
        if task is None or task.span_id is None:
            attach(base)
            return None
        place = Place(
            key, task.span_id, annotations.get("span"), carrier if isinstance(carrier, Mapping) else _NOTHING, base,
            self._redactor, self.safety,
        )  # fmt: skip
        run = _Run(task, self._worker.scheduler_delay)
        run.deferred = DeferredSpan(SpanMaker(self._source, place, run.start, task.run_id), place)
        # Not detached: the context is that of this asyncio task.
        attach(set_span_in_context(LazySpan(run.deferred, self._spans), base))
        return run

    def _end(self, run: _Run, event: Any, error: BaseException | None) -> None:
        try:
            self._runs += 1
            if not self._runs % RUNS_PER_CHECK:
                self.safety.check_streaks()
            if run.deferred.freeze():
                run.deferred.end(partial(self._end_later, self._outcome(run, event, error)))
        except Exception as failed:  # noqa: BLE001 -- handed to the one place that catches everything
            self.safety.caught("end of a task", failed)

    def _outcome(self, run: _Run, event: Any, error: BaseException | None) -> Outcome:
        try:
            return _outcome(run, event, error, self._worker)
        except Exception as failed:  # noqa: BLE001 -- the span ends all the same
            self.safety.caught("end of a task", failed)
            return Outcome(time())

    def _end_later(self, outcome: Outcome, span: Span) -> None:
        # This may be a thread of the task's, which has just made the span.
        with self.safety.guard("end of a task"):
            self._ending.call(partial(end_span, span, outcome, self._redactor))

    # Calls to actors

    async def _call_actor(self, *args: Any, **message: Any) -> Any:
        handler: Any = self._actor_execute
        if not self._listening or self.safety.gave_up:
            return await handler(*args, **message)
        call, undo = None, _do_nothing
        try:
            call, undo = self._begin_call(message)
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self.safety.caught("begin of a call", error)
        try:
            answer = await handler(*args, **message)
        except BaseException as error:
            if call is not None:
                self._end_call(call, None, error)
            if not isinstance(error, GeneratorExit):  # it is collected, perhaps in another context
                undo()
            raise
        if call is not None:
            self._end_call(call, answer, None)
        undo()
        return answer

    def _begin_call(self, message: Mapping[str, Any]) -> tuple[DeferredSpan | None, Callable[[], None]]:
        """Give the running asyncio task the context of a call.

        It is that of a connection, which takes other calls later: hence a function that undoes this.
        """
        key, function = message.get("actor"), message.get("function")
        task = self._tasks.get(key)
        annotations = (task.annotations if task is not None else None) or _NOTHING
        carrier = annotations.get(ANNOTATION) or _NOTHING
        base = self._contexts.of(carrier) if carrier else _NO_CONTEXT
        deferred, context = None, base
        if task is not None and task.span_id is not None:
            place = Place(
                key, task.span_id, annotations.get("span"), carrier if isinstance(carrier, Mapping) else _NOTHING,
                base, self._redactor, self.safety, str(function),
            )  # fmt: skip
            start = time()
            deferred = DeferredSpan(SpanMaker(self._source, place, lambda: start, None), place)
            context = set_span_in_context(LazySpan(deferred, self._spans), base)
        token, marker = attach(context), _in_call.set(True)
        cleared = _annotations.set(None) if _annotations is not None else None
        return deferred, partial(self._undo_call, token, marker, cleared)

    def _undo_call(self, token: Token[Context], marker: Token[bool], cleared: Token[Any] | None) -> None:
        with self.safety.guard("end of a call"):
            detach(token)
            _in_call.reset(marker)
            if _annotations is not None and cleared is not None:
                _annotations.reset(cleared)

    def _end_call(self, call: DeferredSpan, answer: Any, error: BaseException | None) -> None:
        try:
            if call.freeze():
                call.end(partial(self._end_later, Outcome(time(), _error_of_call(answer, error))))
        except Exception as failed:  # noqa: BLE001 -- handed to the one place that catches everything
            self.safety.caught("end of a call", failed)


class _Run:
    """One run of a task. The coroutine that runs the task refers to it, and until the end, the maker of its span."""

    __slots__ = ("deferred", "delay", "entered", "task")

    deferred: DeferredSpan

    def __init__(self, task: Any, delay: float) -> None:
        self.task = task
        #: Seconds that Dask adds to the times of the run, so that they are the scheduler's.
        self.delay = delay
        self.entered = time()

    def start(self) -> float:
        """When it began, as its thread says, else the task; asked while it runs."""
        if getattr(thread_state, "key", None) == self.task.key:
            return max(self.entered, float(thread_state.start_time))
        return max(self.entered, self.task.start_time or 0.0)


def _outcome(run: _Run, event: Any, error: BaseException | None, worker: Any) -> Outcome:
    if isinstance(event, ExecuteFailureEvent):
        failed = TaskError(*error_of(event), event.traceback_text or "")
    elif error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
        failed = None
    else:
        failed = _described(error)
    start, stop = getattr(event, "start", None), getattr(event, "stop", None)
    if start is None or stop is None:  # it did not run, was rescheduled, or cancelled
        return Outcome(time(), failed)
    startstops = [*run.task.startstops, {"action": "compute", "start": start, "stop": stop}]
    outcome = Outcome(stop - run.delay, failed, thread=worker.threads.get(event.key), startstops=startstops)
    if isinstance(event, ExecuteSuccessEvent):
        outcome = outcome._replace(type=event.type, nbytes=event.nbytes)
    return outcome


def _error_of_call(answer: Any, error: BaseException | None) -> TaskError | None:
    if error is None and isinstance(answer, Mapping) and answer.get("status") == "error":
        error = getattr(answer.get("exception"), "data", None)
    if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return _described(error)
    return None


def _described(error: BaseException) -> TaskError:
    return TaskError(type(error).__name__, first_error(repr(error))[1], "".join(format_tb(error.__traceback__)))


class _Contexts:
    """Contexts of carriers, the latest ones."""

    def __init__(self, safety: Safety) -> None:
        self._safety = safety
        self._known: OrderedDict[tuple[tuple[str, str], ...], Context] = OrderedDict()

    def of(self, carrier: Any) -> Context:
        """Return the context that a carrier describes; an empty one if it is no carrier."""
        context = _NO_CONTEXT
        with self._safety.guard("carrier"):
            if not isinstance(carrier, Mapping):  # somebody else's annotation
                return context
            fields = tuple((name, value) for name, value in carrier.items() if isinstance(value, str))
            if fields in self._known:
                self._known.move_to_end(fields)
                return self._known[fields]
            context = extract(dict(fields), context=Context())
            self._known[fields] = context
            if len(self._known) > MAX_CARRIERS:
                self._known.popitem(last=False)
        return context


class _Tracers:
    """The tracer of the global provider, which may be set at any time."""

    def __init__(self) -> None:
        self._of: tuple[Any, Tracer] | None = None

    def __call__(self) -> Tracer | None:
        """Return the tracer; None if the process has no provider that makes spans."""
        provider, known = get_tracer_provider(), self._of
        if isinstance(provider, (ProxyTracerProvider, NoOpTracerProvider)):
            return None
        if known is None or known[0] is not provider:
            known = self._of = provider, provider.get_tracer("dask_otel", __version__)
        return known[1]


def _report(worker: ref[Any], made: SpanMade) -> None:
    if (found := worker()) is not None:
        found.log_event(TOPIC, made.to_event())


def _address_and_name(worker: ref[Any]) -> tuple[str | None, str | None]:
    found = worker()
    name = getattr(found, "name", None)
    return getattr(found, "_address", None) or None, None if name is None else str(name)


def _submit(submit: Callable[..., Any], function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Have a call to an actor see the context of the call, as Dask does for tasks."""
    if _in_call.get():
        return submit(copy_context().run, function, *args, **kwargs)
    return submit(function, *args, **kwargs)


def _with_signature_of(handler: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Make a wrapper that Dask calls with the same arguments: it looks at the signature."""

    @functools.wraps(handler)
    async def handle(*args: Any, **message: Any) -> Any:
        return await wrapper(*args, **message)

    return handle


def _put_back(handlers: dict[str, Any], wrapper: Any, handler: Any) -> None:
    if handlers.get("actor_execute") is wrapper:
        handlers["actor_execute"] = handler


def _do_nothing() -> None:
    pass
