"""What clients request, read where they do it: nothing that the scheduler makes of it can change this account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from typing import Any, NamedTuple

import dask
from dask._expr import LLGExpr
from distributed import Client, get_worker
from distributed.scheduler import _cull, _materialize_graph
from opentelemetry import trace

__all__ = ["Ids", "Outside", "SpanOf", "Submission", "is_in_task", "note_callers", "note_submissions", "submission_of"]

#: Ids of a span and those above it, from the root down; empty for no span.
Ids = tuple[str, ...]


class SpanOf(NamedTuple):
    """A caller's span."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @classmethod
    def current(cls) -> SpanOf | None:
        """Return the current one of OpenTelemetry; None if there is none."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return cls(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)


class Outside(NamedTuple):
    """Where the program submits a graph, before an instrumented client has a say."""

    caller: SpanOf | None
    #: The Dask span that is open.
    opened: Ids
    client: str


class Submission(NamedTuple):
    """A graph, as a client sends it."""

    #: The span that is open.
    around: Ids
    #: By key of each task, the span that requests it: that of its layer, which may have been made in another one.
    spans: Mapping[Any, Ids]
    #: None in tasks, and if clients are not instrumented.
    outside: Outside | None = None

    def only(self, keep: Callable[[str], bool]) -> Submission:
        """Return the same without some spans."""
        return self._replace(
            around=tuple(filter(keep, self.around)),
            spans={key: tuple(filter(keep, ids)) for key, ids in self.spans.items()},
        )


_outside: ContextVar[Outside | None] = ContextVar("outside", default=None)


def note_submissions() -> None:
    """Have all clients of this process, those in tasks too, say in each submission what they request.

    ``Client._graph_to_futures`` is where submit, map, compute and persist meet. The account is sent among the metadata
    for spans, of which Dask reads nothing but the collections.
    """
    send = Client._graph_to_futures

    def note(client: Client, expr: Any, keys: Any, span_metadata: Any, **options: Any) -> Any:
        keys = list(keys)
        around = _ids(dask.get_annotations().get("span"))
        # As on the scheduler, no span is open where layers are made.
        submission = Context().run(_read, expr, keys, around)._replace(outside=_outside.get())
        return send(client, expr, keys, {**span_metadata, "submission": submission}, **options)

    Client._graph_to_futures = note


def note_callers() -> None:
    """Have the submissions say, too, who the caller is and which Dask span is open; to be called after instrumenting.

    The account of ``note_submissions``, which is called before, is below the instrumented client's own code.
    """
    send = Client._graph_to_futures

    def note(client: Client, *args: Any, **options: Any) -> Any:
        outside = None
        if not is_in_task():
            outside = Outside(SpanOf.current(), _ids(dask.get_annotations().get("span")), client.id)
        token = _outside.set(outside)
        try:
            return send(client, *args, **options)
        finally:
            _outside.reset(token)

    Client._graph_to_futures = note


def is_in_task() -> bool:
    """Whether the running code is a task's."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


def submission_of(message: Mapping[str, Any]) -> Submission:
    """Return what a client's message to the scheduler submits."""
    submission: Submission = message["span_metadata"]["submission"]
    return submission


def _read(expr: Any, keys: Any, around: Ids) -> Submission:
    graph, annotations = _materialize_graph(expr, validate=False)
    if isinstance(expr, LLGExpr):
        graph = _cull(graph, set(keys))
    layers = annotations.get("span", {})
    return Submission(around, {key: _ids(layers[key]) if key in layers else around for key in graph})


def _ids(annotation: Any) -> Ids:
    return tuple(annotation["ids"]) if annotation else ()
