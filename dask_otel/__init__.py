"""Dask's spans as OpenTelemetry traces.

``dask scheduler --preload dask_otel`` is the whole set-up. Importing this package imports the standard library only: an
ImportError in a preload module would stop the scheduler.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .current import TaskFilter
    from .links import Description, Link
    from .preload import OTelPlugin, OTelWorkerPlugin

__all__ = [
    "OTelPlugin",
    "OTelWorkerPlugin",
    "TaskFilter",
    "__version__",
    "dask_setup",
    "describe",
    "instrument",
    "show_trace",
    "trace_id",
    "trace_url",
    "uninstrument",
]

__version__ = "0.1.0"


def dask_setup(server: Any) -> Any:
    """Set up dask-otel in a Dask process; Dask calls this for ``--preload dask_otel``. Never raises.

    Parameters
    ----------
    server
        The Scheduler, Worker, Nanny or Client that loads this module.

    Returns
    -------
    What Dask is to await, in a Worker; else None.
    """
    from .safety import Safety, import_or_log

    with Safety().guard("set-up"):
        preload = import_or_log("dask_otel.preload")
        if preload:
            return preload.set_up(server)
    return None


def instrument() -> None:
    """Instrument the Dask clients of this process: one trace leads from the program's spans to the cluster's.

    Spans of Dask, ``with distributed.span("name"):``, are also spans of the program's own tracer provider, and work
    that is submitted while a span of OpenTelemetry is current belongs to that span. Calling it again does nothing.
    Where something that it needs is missing or broken, the log says so, and nothing changes. Never raises.

    The setting ``otel.client.context`` says whether the cluster's spans are in the trace of the program.
    """
    from .safety import import_or_log

    module = import_or_log("dask_otel.client.instrumentation")
    if module:
        module.instrument()


def uninstrument() -> None:
    """Undo :func:`instrument`, except for what another library has replaced in the meantime. Never raises."""
    module = sys.modules.get("dask_otel.client.instrumentation")
    if module:
        module.uninstrument()


def trace_id(span_ids: str | Sequence[str] | None = None) -> str:
    """Return the id of the trace that shows a Dask span.

    Parameters
    ----------
    span_ids
        What ``with span("name") as span_id`` yields for a span that is in no other, or the ids of a span and of those
        around it, the outermost first; by default those of the span around the caller, in the client or inside a task.

    Returns
    -------
    32 hexadecimal digits. Inside a task of a worker with dask-otel, without arguments, the id of the trace of the task:
    also if the task was requested outside of a span, if its own span is not made, and if the trace is not sampled and
    so is in no backend. No span is made.

    Raises
    ------
    ValueError
        If no id is given and there is no span around the caller.
    """
    if span_ids is None:
        here = _trace_here()
        if here is None:
            raise ValueError(_NO_SPAN)
        return f"{here[0]:032x}"
    from .identity import origin_of

    return f"{origin_of([span_ids] if isinstance(span_ids, str) else span_ids).trace_id():032x}"


def trace_url(span_ids: str | Sequence[str] | None = None) -> Link | None:
    """Return a link to the trace of a Dask span: a ``str`` that a notebook shows as a link.

    Parameters
    ----------
    span_ids
        As for :func:`trace_id`.

    Returns
    -------
    A link made from the setting ``otel.trace-url``. If that is not set in this process, a link to the page of the
    current client's scheduler, which leads to the trace. None if there is no client or no dashboard, or if no id is
    given and there is no span around the caller.

    Raises
    ------
    ValueError
        If ``otel.trace-url`` is set and is no link with ``{trace_id}``.
    """
    from .config import trace_url_template
    from .links import Link, scheduler_link

    if span_ids is None:
        here = _trace_here()
        if here is None:
            return None
        trace, last = f"{here[0]:032x}", here[1]
    else:
        ids = [span_ids] if isinstance(span_ids, str) else span_ids
        if not ids:
            raise ValueError("no id of a span was given")
        trace, last = trace_id(ids), ids[-1]
    template = trace_url_template()
    return Link(template.replace("{trace_id}", trace)) if template else scheduler_link(last)


def describe(span_ids: str | Sequence[str] | None = None, *, client: Any = None) -> Description:
    """Describe in one line where the cluster's traces are sent, with links to dask-otel's page and to a trace.

    A notebook shows the links so that they can be clicked. If the scheduler runs without dask-otel, the line says how
    to register it.

    Parameters
    ----------
    span_ids
        As for :func:`trace_id`; without it, there is a link to a trace only inside ``with span("name"):``.
    client
        The ``distributed.Client`` of the cluster; by default the current one. With an asynchronous client, the result
        is to be awaited.
    """
    from .links import describe as describe_cluster

    try:
        trace = trace_url(span_ids)
    except ValueError:  # otel.trace-url cannot be used
        trace = None
    return describe_cluster(trace, client)


def show_trace(
    span_ids: str | Sequence[str] | None = None, *, client: Any = None, timeout: float | str = "10s"
) -> Description:
    """Show the latest run of a Dask span in a notebook, as a waterfall of its spans, task groups and tasks.

    The picture comes from the scheduler through the client: no backend and no connection to the dashboard are needed.
    Elsewhere than in a notebook, the result is a line with links. If there is nothing to show, the line says why.

    Parameters
    ----------
    span_ids
        As for :func:`trace_id`.
    client
        As for :func:`describe`.
    timeout
        How long to wait until the run is over, in seconds or as a text such as ``"1 minute"``. A run is over when its
        Dask span has had no unfinished task for ``otel.traces.idle-timeout``. After the timeout, the result shows the
        spans that have finished.

    Raises
    ------
    ValueError
        If no id is given and there is no span around the caller, or if the timeout is no duration.
    """
    from dask.utils import parse_timedelta

    from .config import trace_url_template
    from .links import show_trace as show

    ids = _span_ids() if span_ids is None else [span_ids] if isinstance(span_ids, str) else span_ids
    if not ids:
        raise ValueError("no id of a span was given")
    template = trace_url_template()
    trace = template.replace("{trace_id}", trace_id(ids)) if template else None
    try:
        seconds = float(parse_timedelta(timeout))
    except (KeyError, IndexError, ValueError):
        raise ValueError(f"timeout must be a duration such as 10 or '1 minute', not {timeout!r}") from None
    return show(ids, seconds, trace, client)


_NO_SPAN = 'no span here: call this inside `with span("name"):`, or give it the id of a root span'


def _span_ids() -> Sequence[str]:
    from .current import open_span_ids

    ids = open_span_ids()
    if not ids:
        raise ValueError(_NO_SPAN)
    return ids


def _trace_here() -> tuple[int, str] | None:
    from .current import trace_here

    return trace_here()


def __getattr__(name: str) -> Any:
    # These need distributed, which this module must not import.
    if name == "TaskFilter":
        from .current import TaskFilter

        return TaskFilter
    if name in ("OTelPlugin", "OTelWorkerPlugin"):
        from . import preload

        return getattr(preload, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
