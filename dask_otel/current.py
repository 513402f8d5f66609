"""Where the running code is: in which task, trace and span; and a logging filter that puts this on log records.

Nothing here makes a span.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import dask
from distributed.utils import thread_state
from opentelemetry.trace import SpanContext, get_current_span

from .identity import origin_of
from .worker.lazy_span import LazySpan, peek
from .worker.task_span import Run, current_run

__all__ = ["TaskFilter", "open_span_ids", "trace_here"]

#: On log records outside of tasks and traces.
_NONE = "-"


def trace_here() -> tuple[int, str] | None:
    """Return the id of the trace that shows the work of the caller, and the id of the Dask span; None if none is open.

    Inside a task, this is the trace of the task's span, whether that span is made or not.
    """
    opened, run = open_span_ids(), current_run()
    if run is not None and (not opened or opened[-1] == run.dask_span_id):
        parent = run.context()
        if parent.is_valid:
            return parent.trace_id, run.dask_span_id
    return (origin_of(opened).trace_id(), opened[-1]) if opened else None


def open_span_ids() -> Sequence[str]:
    """Return the ids of the Dask span around the caller and of those around it, the outermost first.

    In an instrumented client, of the one in which the caller would submit work.
    """
    instrumentation = sys.modules.get("dask_otel.client.instrumentation")
    if instrumentation and instrumentation.is_instrumented():
        with suppress(Exception):  # the current span may be somebody else's, and raise anything
            ids: Sequence[str] = instrumentation.span_ids_here()
            return ids
    annotation = dask.get_annotations().get("span")
    return [str(each) for each in annotation["ids"]] if annotation else []


class TaskFilter(logging.Filter):
    """Logging filter that puts ``dask_key``, ``trace_id`` and ``span_id`` on each record, for your own log format.

    Add it to handlers: a filter of a logger does not see the records of loggers below it. It lets all records through,
    never raises, and makes no span. What a record already has stays.

    ``dask_key`` is the key of the task that logs. The ids are those of the current OpenTelemetry span. If the span of
    the task is not made, they are those of its parent, the span of the task's group; if there is no OpenTelemetry span,
    ``trace_id`` is that of the trace which shows the Dask span around the call. What is not known is ``-``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the attributes on a record."""
        values = vars(record)
        for read, names in _READ:
            found: tuple[str, ...] = (_NONE,) * len(names)
            with suppress(Exception):  # a log record must not make a task fail
                found = read()
            for name, value in zip(names, found, strict=True):
                values.setdefault(name, value)
        return True


def _key() -> tuple[str]:
    run: Run | None = current_run()
    key: Any = getattr(thread_state, "key", None) if run is None else run.key
    return (_NONE if key is None else str(key),)


def _ids() -> tuple[str, str]:
    span = get_current_span()
    context: SpanContext = peek(span) if isinstance(span, LazySpan) else span.get_span_context()
    if context.is_valid:
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    here = trace_here()
    return f"{here[0]:032x}" if here else _NONE, _NONE


#: What reads values, and their names on a record.
_READ: tuple[tuple[Callable[[], tuple[str, ...]], tuple[str, ...]], ...] = (
    (_key, ("dask_key",)),
    (_ids, ("trace_id", "span_id")),
)
