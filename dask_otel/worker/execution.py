"""Wraps how one worker runs tasks and takes calls to actors, so that each has a context of its own.

``Worker.execute`` runs a task from start to end, in an asyncio task whose context Dask copies to the thread or
coroutine that runs the user's function. The wrapper sets OpenTelemetry's context there, and awaits Dask's own method,
whose result it returns as it is. If ``execute`` raised, Dask would take the task for one that executes for ever. So
everything that is done here is guarded.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context as CopiedContext
from contextvars import ContextVar, Token, copy_context
from functools import partial
from time import time
from typing import Any
from weakref import ref

from distributed.worker_state_machine import ExecuteFailureEvent, ExecuteSuccessEvent, TaskState
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import extract
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    set_span_in_context,
)

from ..client.submitting import add_to_submissions
from ..messages import ANNOTATION, TOPIC, SpanMade
from ..patching import ANNOTATIONS, clear_annotations, wrap
from ..privacy import Redactor
from ..safety import Safety
from ..scheduler.outcomes import described, error_of
from ..spantree.events import TaskError
from ..tracers import GlobalTracer
from .ending import EndingThread
from .lazy_span import ANY, Budget, LazySpan, freeze
from .nested import carried_on
from .task_span import RUN, Outcome, Run, RunWithMore, SpanSource, end_span, is_short

__all__ = ["TaskSpans", "missing"]

#: Carriers of which the context is remembered: nearly all tasks of a graph have the same.
MAX_CARRIERS = 128
#: Seconds after which the span of a task that goes on is reported; otherwise it is reported just before the result.
REPORT_AFTER = 0.1

#: What is read of Dask's tasks on workers.
_OF_TASKS = ("annotations", "run_id", "span_id", "start_time", "startstops")
_NOTHING: Mapping[str, Any] = {}
_NO_CONTEXT = Context()
#: Key of the current span in a context.
(_SPAN,) = set_span_in_context(INVALID_SPAN, Context())
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
        "dask.base._annotations": isinstance(ANNOTATIONS, ContextVar),
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
        self._makes_for_ids = spans == ANY
        self._redactor = redactor
        self.safety = safety
        self._ending = EndingThread(safety)
        #: Spans that tasks have made, to be reported. Threads append to it.
        self._made: deque[SpanMade] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Whether the event loop will call ``_tick``.
        self._ticks = False
        self._source = SpanSource(
            tracer=GlobalTracer(),
            report=partial(_call_if_there, ref(self), TaskSpans._span_made),
            worker=partial(_address_and_name, ref(worker)),
            budget=Budget(max_rate),
            redactor=redactor,
            safety=safety,
        )
        self._contexts = _Contexts(self._caught)
        self._listening = False
        self._execute = worker.execute
        self._actor_execute = worker.handlers.get("actor_execute")
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begin to listen; called on the event loop of the worker."""
        self._loop = asyncio.get_running_loop()
        self._listening = True
        self._execute = self._worker.execute
        self._undo.append(wrap(self._worker, "execute", self._run_task))
        self._undo.append(add_to_submissions(carried_on))
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
        self._report()

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
                self._caught("begin of a task", error)
        if run is None:
            return await self._execute(*args, **kwargs)
        try:
            event = await self._execute(*args, **kwargs)
        except BaseException as error:
            self._end(*run, None, error)
            raise
        self._end(*run, event, None)
        return event

    def _begin(self, key: Any) -> tuple[Run, LazySpan, float] | None:
        """Give the running asyncio task the context of a task.

        Returns
        -------
        The run, its lazy span, and the seconds that Dask will add to its times, so that they are the scheduler's. None
        if the task gets no span.
        """
        clear_annotations()  # those of whoever ran last in this context; Dask sets the task's own
        task = self._tasks.get(key)
        if task is None:
            attach(_NO_CONTEXT)
            return None
        annotations = task.annotations or _NOTHING
        dask_span_id = task.span_id
        if ANNOTATION in annotations or dask_span_id is None:
            carrier, base = self._contexts.of(annotations.get(ANNOTATION))
            if dask_span_id is None:
                attach(base)
                return None
            run: Run = RunWithMore(
                self._source, key, dask_span_id, annotations, task.run_id, task, carrier=carrier, base=base
            )
            span = LazySpan(run, run, self._makes_for_ids)
            context = Context(base | {_SPAN: span, RUN: run})
        else:
            run = Run(self._source, key, dask_span_id, annotations, task.run_id, task)
            span = LazySpan(run, run, self._makes_for_ids)
            context = Context({_SPAN: span, RUN: run})  # as ``set_span_in_context`` makes it, in half the time
        begun = run, span, self._worker.scheduler_delay
        # Not detached: the context is that of this asyncio task. Nothing may fail later, or the span would not end.
        attach(context)
        return begun

    def _end(self, run: Run, span: LazySpan, delay: float, event: Any, error: BaseException | None) -> None:
        try:
            deferred = freeze(span)
            task, run.task = run.task, None
            if self._made and not isinstance(error, GeneratorExit):  # that comes in any thread
                self._report()
            if deferred is not None:
                outcome = self._outcome(task, event, error, delay)
                deferred.end(partial(self._end_later, lambda: outcome))
        except Exception as failed:  # noqa: BLE001 -- handed to the one place that catches everything
            self._caught("end of a task", failed)

    def _outcome(self, task: Any, event: Any, error: BaseException | None, delay: float) -> Outcome:
        try:
            return _outcome(task, event, error, delay, self._worker)
        except Exception as failed:  # noqa: BLE001 -- the span ends all the same
            self._caught("end of a task", failed)
            return Outcome(time())

    def _end_later(self, outcome: Callable[[], Outcome], span: Span) -> None:
        try:  # this may be a thread of the task's, which has just made the span
            self._ending.call(lambda: end_span(span, outcome(), self._redactor))
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._caught("end of a task", error)

    # Reports to the scheduler: from the event loop, since to wake it for each would cost more than all the rest

    def _span_made(self, made: SpanMade) -> None:
        """Have a span reported: before the result of its task, and soon if the task goes on. Called in any thread."""
        self._made.append(made)
        self._tick_soon()

    def _tick_soon(self) -> None:
        loop = self._loop
        if self._ticks or loop is None:
            return
        self._ticks = True
        with self.safety.guard("timer"), suppress(RuntimeError):  # the loop is closed, and so is the worker
            # In a context of its own: what runs there is of no task.
            tick = partial(_call_if_there, ref(self), TaskSpans._tick)
            loop.call_soon_threadsafe(loop.call_later, REPORT_AFTER, tick, context=CopiedContext())

    def _tick(self) -> None:
        self._ticks = False  # first: a span that is made from now on may have to wait for the next tick
        with self.safety.guard("report"):
            self._report()
        if self.safety.check_streaks():
            self._tick_soon()

    def _caught(self, where: str, error: Exception) -> None:
        self.safety.caught(where, error)
        self._tick_soon()  # which ends the streak

    def _report(self) -> None:
        while self._made:
            try:
                # As ``log_event`` does, but for a test whether it can be written, which takes longer than all the rest.
                event = self._made.popleft().to_event()
                self._worker.batched_send({"op": "log-event", "topic": TOPIC, "msg": event})
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self._caught("report", error)

    # Calls to actors

    async def _call_actor(self, *args: Any, **message: Any) -> Any:
        handler: Any = self._actor_execute
        if not self._listening or self.safety.gave_up:
            return await handler(*args, **message)
        span, undo = None, _do_nothing
        try:
            span, undo = self._begin_call(message)
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._caught("begin of a call", error)
        try:
            answer = await handler(*args, **message)
        except BaseException as error:
            # A call that is collected may be so in another context.
            self._end_call(span, None, error, _do_nothing if isinstance(error, GeneratorExit) else undo)
            raise
        self._end_call(span, answer, None, undo)
        return answer

    def _begin_call(self, message: Mapping[str, Any]) -> tuple[LazySpan | None, Callable[[], None]]:
        """Give the running asyncio task the context of a call.

        It is that of a connection, which takes other calls later: hence a function that undoes this.
        """
        key, function = message.get("actor"), message.get("function")
        task = self._tasks.get(key)
        annotations = (task.annotations if task is not None else None) or _NOTHING
        carrier, base = self._contexts.of(annotations.get(ANNOTATION))
        span, context = None, base
        if task is not None and task.span_id is not None:
            run = RunWithMore(
                self._source, key, task.span_id, annotations, None, None,
                carrier=carrier, base=base, function=str(function),
            )  # fmt: skip
            span = LazySpan(run, run, self._makes_for_ids)
            context = Context(base | {_SPAN: span, RUN: run})
        marker = _in_call.set(True)
        # What a call submits is requested in the Dask span of the actor, as with tasks.
        opened = {"span": annotations["span"]} if "span" in annotations else None
        replaced = ANNOTATIONS.set(opened) if ANNOTATIONS is not None else None
        token = attach(context)
        return span, partial(_undo_call, token, marker, replaced)

    def _end_call(
        self, span: LazySpan | None, answer: Any, error: BaseException | None, undo: Callable[[], None]
    ) -> None:
        try:
            undo()
        except Exception as failed:  # noqa: BLE001 -- handed to the one place that catches everything
            self._caught("end of a call", failed)
        if span is None:
            return
        try:
            deferred = freeze(span)
            if self._made and not isinstance(error, GeneratorExit):
                self._report()
            if deferred is not None:
                outcome = partial(_outcome_of_call, time(), _error_of_call(answer, error))
                deferred.end(partial(self._end_later, outcome))
        except Exception as failed:  # noqa: BLE001 -- handed to the one place that catches everything
            self._caught("end of a call", failed)


def _outcome(task: Any, event: Any, error: BaseException | None, delay: float, worker: Any) -> Outcome:
    start, stop = getattr(event, "start", None), getattr(event, "stop", None)
    failed = None
    if isinstance(event, ExecuteFailureEvent):
        failed = TaskError(*error_of(event), event.traceback_text or "")
    elif error is not None and not isinstance(error, asyncio.CancelledError | GeneratorExit):
        failed = described(error)
    if start is None or stop is None:  # it did not run, was rescheduled, or cancelled
        return Outcome(time(), failed)
    startstops = (*task.startstops, {"action": "compute", "start": start, "stop": stop})
    thread = worker.threads.get(event.key)
    if isinstance(event, ExecuteSuccessEvent):
        return Outcome(stop - delay, None, event.type, event.nbytes, thread, startstops)
    return Outcome(stop - delay, failed, thread=thread, startstops=startstops)


def _undo_call(token: Token[Context], marker: Token[bool], replaced: Token[Any] | None) -> None:
    detach(token)
    _in_call.reset(marker)
    if ANNOTATIONS is not None and replaced is not None:
        ANNOTATIONS.reset(replaced)


def _error_of_call(answer: Any, error: BaseException | None) -> BaseException | None:
    if error is None and isinstance(answer, Mapping) and answer.get("status") == "error":
        error = getattr(answer.get("exception"), "data", None)
    is_error = isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError | GeneratorExit)
    return error if is_error else None


def _outcome_of_call(stop: float, error: BaseException | None) -> Outcome:
    return Outcome(stop, None if error is None else described(error))


class _Contexts:
    """Carriers, and the contexts that they describe; the latest ones."""

    def __init__(self, caught: Callable[[str, Exception], None]) -> None:
        self._caught = caught
        self._known: OrderedDict[tuple[tuple[str, str], ...], Context] = OrderedDict()

    def of(self, carrier: Any) -> tuple[tuple[tuple[str, str], ...], Context]:
        """Return the fields of a carrier, and its context; somebody else's annotation has none."""
        fields: tuple[tuple[str, str], ...] = ()
        context = _NO_CONTEXT
        try:
            if isinstance(carrier, Mapping):
                texts = ((name, value) for name, value in carrier.items() if isinstance(name, str))
                fields = tuple((name, value) for name, value in texts if isinstance(value, str))
            if fields in self._known:
                self._known.move_to_end(fields)
                context = self._known[fields]
            elif fields:
                context = extract(dict(fields), context=Context())
                if is_short(fields):
                    self._known[fields] = context
                if len(self._known) > MAX_CARRIERS:
                    self._known.popitem(last=False)
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._caught("carrier", error)
        return fields, context


def _call_if_there(spans: ref[TaskSpans], method: Callable[..., None], *args: Any) -> None:
    """Call a method; whoever refers to the call does not keep the worker."""
    found = spans()
    if found is not None:
        method(found, *args)


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
