"""What clients request, read where they do it: nothing that the scheduler makes of it can change this account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, NamedTuple

import dask
from dask._expr import LLGExpr
from distributed import Client
from distributed.scheduler import _cull, _materialize_graph

__all__ = ["Ids", "Submission", "note_submissions", "submission_of"]

#: Ids of a span and those above it, from the root down; empty for no span.
Ids = tuple[str, ...]


class Submission(NamedTuple):
    """A graph, as a client sends it."""

    #: The span that is open.
    around: Ids
    #: By key of each task, the span that requests it: that of its layer, which may have been made in another one.
    spans: Mapping[Any, Ids]

    def only(self, keep: Callable[[str], bool]) -> Submission:
        """Return the same without some spans."""
        return Submission(
            tuple(filter(keep, self.around)), {key: tuple(filter(keep, ids)) for key, ids in self.spans.items()}
        )


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
        submission = Context().run(_read, expr, keys, around)
        return send(client, expr, keys, {**span_metadata, "submission": submission}, **options)

    Client._graph_to_futures = note


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
