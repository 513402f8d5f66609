"""What is known of roots while they are open."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from .forest import Forest
from .ids import trace_id
from .model import SpanInfo

__all__ = ["Progress", "open_roots", "trace_of"]

#: Open segments that are looked at in all; beyond, what is known is not summed up.
MAX_SEGMENTS = 2000


class Progress(NamedTuple):
    """An open root. Numbers are those since its segment opened; None where it would take too long to tell."""

    span: SpanInfo
    name: str
    trace_id: int
    start: float
    tasks: int | None
    completed: int | None
    unfinished: int


def open_roots(forest: Forest, most: int) -> Iterator[Progress]:
    """Describe the open roots, the oldest first."""
    room = MAX_SEGMENTS
    for root in islice(forest.open_roots, most):
        if root.segment is None:
            continue
        tasks = completed = 0
        for node in islice(root.open_below(), room):
            room -= 1
            if node.ledger:
                tasks += node.ledger.tally.tasks
                completed += node.ledger.tally.completed
        known = room > 0
        yield Progress(
            root.info,
            root.title,
            root.segment.trace_id,
            root.segment.start,
            tasks if known else None,
            completed if known else None,
            root.load.unfinished,
        )


def trace_of(forest: Forest, span_id: str) -> int | None:
    """Id of the trace that shows a Dask span now, or showed it last; None if the span is not known."""
    node = forest.nodes.get(span_id)
    return trace_id(node.root.info.id, node.root.trace_number) if node else None
