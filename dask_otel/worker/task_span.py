"""What the span of a task's run says, and where it is: an ordinary span of the global tracer provider.

Its attributes are those of the scheduler's task spans; ``otel.capture.*`` applies. It is below the group span of its
task, whose id every process can compute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import floor
from time import time
from typing import Any, NamedTuple

from dask.utils import key_split, typename
from distributed.utils import key_split_group, thread_state
from opentelemetry.context import Context, attach, create_key, get_current, get_value
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from .. import schema
from ..identity import caller_of, group_id, origin_of
from ..messages import GROUP_FIELD, PARENT_FIELD, SpanMade
from ..privacy import Redactor
from ..safety import Safety
from ..schema import MAX_NAME, clean, identifier
from ..spantree.events import TaskError, latest_run
from .lazy_span import Budget, LazySpan

__all__ = ["RUN", "Outcome", "Run", "RunWithMore", "SpanSource", "current_run", "end_span", "is_short", "record_error"]

_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_DEFAULT = ("default",)
#: Key of the run in OpenTelemetry's context, which spans below the span of the run have too.
RUN = create_key("dask_otel_run")
#: Groups of which is remembered what their spans have in common.
MAX_KNOWN = 1024

#: Characters of a carrier that is remembered, at most.
MAX_CARRIER = 4096

#: Attributes of a span, by name.
Attributes = dict[str, "str | int | float"]


class Common(NamedTuple):
    """What the spans of the runs of one group have in common."""

    #: Of the parent; invalid if it is not known. And the context that the span is made in.
    parent: SpanContext
    context: Context
    name: str
    group: str
    attributes: Attributes


_UNKNOWN = Common(INVALID_SPAN_CONTEXT, Context(), "(no name)", "", {})


class SpanSource:
    """What the spans of one worker have in common; it does not keep the worker alive.

    Parameters
    ----------
    tracer
        Returns a tracer of the global provider; None if the process has none.
    report
        Reports a span to the scheduler.
    worker
        Returns address and name of the worker, each None if it is not known.
    """

    def __init__(
        self,
        *,
        tracer: Callable[[], Tracer | None],
        report: Callable[[SpanMade], None],
        worker: Callable[[], tuple[str | None, str | None]],
        budget: Budget,
        redactor: Redactor,
        safety: Safety,
    ) -> None:
        self.tracer = tracer
        self.report = report
        self.worker = worker
        self.budget = budget
        self.redactor = redactor
        self.safety = safety
        #: By Dask span, group and what else it depends on. Threads add to it.
        self.known: dict[tuple[Any, ...], Common] = {}
        #: Parents that were given out where no span was made, and reported: ids of trace and span. Threads add to it.
        self.given_out: set[tuple[int, int]] = set()
        self._process = os.getpid()

    def is_here(self) -> bool:
        """Whether this is the worker's process, not one that was forked off it: there, nothing is sent or reported."""
        return os.getpid() == self._process


class Run:
    """One run of a task, or one call to an actor: where its span is, and how it is made.

    Made from what a task had when its run began, since Dask changes a task under a run that is cancelled and submitted
    again. What it says is computed when somebody asks for the first time.

    Parameters
    ----------
    annotations
        Of the task.
    run_id
        Dask's number of the run; None for a call to an actor.
    task
        Says when the run began, as long as it lasts; None for a call to an actor.
    """

    # Few of these are set for a run that uses no OpenTelemetry: it is made for each one.
    __slots__ = ("_annotations", "_common", "_run_id", "_source", "dask_span_id", "entered", "key", "own", "task")

    #: OpenTelemetry's context of the run, without the lazy span; the fields of the task's annotation ``otel``.
    base = Context()
    carrier: tuple[tuple[str, str], ...] = ()
    #: Name of the method that is called, of an actor.
    function = ""

    def __init__(
        self,
        source: SpanSource,
        key: Any,
        dask_span_id: str,
        annotations: Mapping[str, Any],
        run_id: int | None,
        task: Any,
    ) -> None:
        self._source = source
        self.key = key
        self.dask_span_id = dask_span_id
        self._annotations = annotations
        self._run_id = run_id
        #: Set to None at the end.
        self.task = task
        self._common: Common | None = None
        #: Context of the span, once it is made and if it is sampled.
        self.own: SpanContext | None = None
        self.entered = time()

    @property
    def name(self) -> str:
        """Name of the span: as the scheduler's task spans have it; of a call, with the method."""
        return self._found().name

    def context(self) -> SpanContext:
        """Context of the parent; invalid if it cannot be known."""
        return self._found().parent

    def given_out(self) -> SpanContext:
        """Context of the parent, which is reported to the scheduler the first time."""
        found, source = self._found(), self._source
        parent = found.parent
        key = parent.trace_id, parent.span_id
        if key not in source.given_out and parent.trace_flags.sampled and source.is_here():
            if len(source.given_out) >= MAX_KNOWN:
                source.given_out.clear()
            source.given_out.add(key)
            with source.safety.guard("task span"):
                source.report(
                    SpanMade(self.key, None, self.dask_span_id, found.group, parent.trace_id, 0, parent.span_id)
                )
        return parent

    def can_record(self) -> bool:
        """Whether there is a provider, and the trace is sampled; the provider's sampler is not asked."""
        with self._source.safety.guard("task span"):
            source = self._source
            return source.is_here() and source.tracer() is not None and self._found().parent.trace_flags.sampled
        return False

    def make(self) -> Span | None:
        """Make the span and report it to the scheduler; None if there is to be none."""
        source, span = self._source, None
        try:  # half the time of a guard
            parent, context, name, group, common = self._found()
            tracer = source.tracer()
            if tracer is None or not parent.trace_flags.sampled or not source.is_here() or not source.budget.take():
                return None
            key = source.redactor.key(str(self.key))
            attributes = common | {schema.TASK_KEY: _clean(schema.TASK_KEY, key)}
            if self._run_id is not None:
                attributes[schema.TASK_RUN_ID] = self._run_id
            span = tracer.start_span(
                name,
                context=context,
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                start_time=floor(self._start() * 1e6) * 1000,
            )
            own = span.get_span_context()
            if own.trace_flags.sampled and span.is_recording():
                self.own = own
                source.report(
                    SpanMade(
                        self.key, self._run_id, self.dask_span_id, group, own.trace_id, own.span_id, parent.span_id
                    )
                )
            else:  # as the provider's sampler decided, or OTEL_SDK_DISABLED
                source.budget.give_back()
                span = span if own.is_valid and own.span_id != parent.span_id else None
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            source.safety.caught("task span", error)
        return span

    def is_here(self) -> bool:
        """Whether this is the process that runs it."""
        return self._source.is_here()

    def _start(self) -> float:
        """When the run began, as its thread says, else the task, else the worker; asked while it lasts."""
        task = self.task
        if task is None:
            return self.entered
        if getattr(thread_state, "key", None) == self.key:
            return max(self.entered, float(thread_state.start_time))
        return max(self.entered, task.start_time or 0.0)

    def _found(self) -> Common:
        common = self._common
        if common is None:
            try:
                known = self._source.known
                of = self.dask_span_id, key_split_group(self.key), self.carrier, self.function
                common = known.get(of)
                if common is None:
                    common = self._look_up()
                    if len(known) >= MAX_KNOWN:
                        known.clear()
                    if common.parent.is_valid and is_short(self.carrier):
                        known[of] = common
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                common = _UNKNOWN
                self._source.safety.caught("task span (group)", error)
            self._common = common  # only now: other threads may ask meanwhile
        return common

    def _look_up(self) -> Common:
        carrier = dict(self.carrier)
        group = str(carrier.get(GROUP_FIELD) or key_split_group(self.key))
        parent = self._parent(group, carrier.get(PARENT_FIELD, ""))
        context = set_span_in_context(NonRecordingSpan(parent), self.base)
        redactor, prefix = self._source.redactor, str(key_split(self.key))
        name = redactor.key(prefix)
        if self.function and redactor.capture.keys:
            name = f"{name}.{self.function}"
        return Common(parent, context, clean(name, MAX_NAME) or "(no name)", group, self._attributes(group, prefix))

    def _parent(self, group: str, given: str) -> SpanContext:
        caller = caller_of(given)
        if caller:
            trace_id, span_id, is_sampled = caller
        else:
            requested = self._annotations.get("span")
            ids = list(map(str, requested["ids"])) if requested else [self.dask_span_id]
            if ids[-1] != self.dask_span_id:  # its root, and so the trace, is not known
                return INVALID_SPAN_CONTEXT
            origin = origin_of(ids)
            trace_id, span_id = origin.trace_id(), group_id(self.dask_span_id, group, 0)
            is_sampled = origin.caller is None or origin.caller.is_sampled
        # The caller's, if it is the caller's trace.
        sent = get_current_span(self.base).get_span_context()
        state = sent.trace_state if sent.trace_id == trace_id else None
        return SpanContext(trace_id, span_id, True, _SAMPLED if is_sampled else _NOT_SAMPLED, state)

    def _attributes(self, group: str, prefix: str) -> Attributes:
        redactor, requested = self._source.redactor, self._annotations.get("span")
        tags = redactor.tags(tuple(map(str, requested["name"])) if requested else _DEFAULT)
        address, name = self._source.worker()
        values: dict[str, str | None] = {
            schema.KIND: schema.ACTOR_CALL if self._run_id is None else schema.TASK,
            schema.SPAN_ID: self.dask_span_id,
            schema.SPAN_PATH: " / ".join(tags),
            schema.SPAN_ROOT: tags[0],
            schema.GROUP_NAME: redactor.key(group),
            schema.TASK_PREFIX: redactor.key(prefix),
            schema.WORKER_ADDRESS: address,
            schema.WORKER_NAME: name,
        }
        return {attribute: _clean(attribute, value) for attribute, value in values.items() if value is not None}


def current_run() -> Run | None:
    """Return the run of a task, or the call to an actor, that the caller is part of; None outside of these."""
    run = get_value(RUN)
    return run if isinstance(run, Run) and run.is_here() else None


def _leave() -> None:
    """Be in no task, in a process that was forked off inside of one; a process pool keeps the context for ever."""
    context = get_current()
    if RUN in context:
        is_own = not isinstance(get_current_span(), LazySpan)
        attach(Context({key: value for key, value in context.items() if key != RUN}) if is_own else Context())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


def is_short(carrier: tuple[tuple[str, str], ...]) -> bool:
    """Whether what belongs to a carrier may be remembered."""
    return sum(len(name) + len(value) for name, value in carrier) <= MAX_CARRIER


class RunWithMore(Run):
    """A run of a task with an annotation ``otel``, or a call to an actor."""

    __slots__ = ("base", "carrier", "function")

    def __init__(self, *args: Any, carrier: tuple[tuple[str, str], ...], base: Context, function: str = "") -> None:
        super().__init__(*args)
        self.carrier = carrier
        self.base = base
        self.function = function


class Outcome(NamedTuple):
    """How a run ended; it refers to no result, worker or task."""

    #: Seconds since the epoch by this process's clock.
    stop: float
    error: TaskError | None = None
    #: Of the result; without a size, there is none.
    type: type | None = None
    nbytes: int | None = None
    thread: int | None = None
    #: As in Dask's ``TaskState.startstops``.
    startstops: Sequence[Mapping[str, Any]] = ()


def end_span(span: Span, outcome: Outcome, redactor: Redactor) -> None:
    """End the span of a run. May raise what a span processor raises, but the span has ended then."""
    # To the next microsecond, as the start to the one before: times of runs are floats, and spans inside the run have
    # exact ones.
    end = (floor(outcome.stop * 1e6) + 1) * 1000
    start = getattr(span, "start_time", None)
    if isinstance(start, int):
        end = max(end, start)
    try:
        if span.is_recording():
            span.set_attributes(_ended(outcome, redactor))
            if outcome.error:
                record_error(span, redactor.task_error(outcome.error), end)
    finally:
        span.end(end)


def _ended(outcome: Outcome, redactor: Redactor) -> Attributes:
    values: Attributes = {}
    if outcome.nbytes is not None:
        if redactor.capture.types:
            values[schema.TASK_TYPE] = _clean(schema.TASK_TYPE, typename(outcome.type))
        values[schema.OUTPUT_SIZE] = outcome.nbytes
    if outcome.thread is not None:
        values[schema.THREAD_ID] = outcome.thread
    for each in outcome.startstops if len(outcome.startstops) < 2 else latest_run(outcome.startstops):  # a call less
        name = _duration(each["action"])
        values[name] = values.get(name, 0.0) + round((each["stop"] - each["start"]) * 1e6) / 1e6
    return values


@lru_cache(256)
def _duration(action: str) -> str:
    return schema.DURATION(identifier(action))


def record_error(span: Span, error: TaskError, at: int) -> None:
    """Record an exception on a span as an event, and set its status; ``at`` in nanoseconds since the epoch."""
    span.set_attribute(schema.ERROR_TYPE, _clean(schema.ERROR_TYPE, error.type))
    event = {schema.EXCEPTION_TYPE: error.type, schema.EXCEPTION_MESSAGE: error.message}
    if error.traceback:
        event[schema.EXCEPTION_STACKTRACE] = error.traceback
    span.set_status(Status(StatusCode.ERROR, clean(error.message)))  # first: some spans of others take no events
    span.add_event("exception", {name: _clean(name, value) for name, value in event.items()}, at)


def _clean(attribute: str, value: Any) -> Any:
    return clean(value, schema.ATTRIBUTES[attribute].cap) if isinstance(value, str) else value
