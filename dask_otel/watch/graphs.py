"""What submissions say: who submitted, which collections, from which line, and how long the graph took to take in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..mirror.model import Graph

__all__ = ["Graphs"]

#: Values of one annotation that one graph may add to a span.
MAX_VALUES = 32


class Graphs:
    """Notes on the graphs that came in since the last sweep, one for each Dask span of each graph.

    Parameters
    ----------
    spans
        ``SpansSchedulerExtension.spans``
    annotations
        Names of the Dask annotations that may be shown.
    """

    def __init__(self, spans: Mapping[str, Any], annotations: Iterable[str]) -> None:
        self._spans = spans
        self._allowed = tuple(annotations)
        self._notes: list[Graph] = []
        #: Stimulus of the latest graph, its notes, and the part of its tasks that each stands for.
        self._latest: tuple[str, list[tuple[Graph, float]]] = ("", [])
        #: By span id, how many entries of ``Span.metadata`` have been read.
        self._collections_read: dict[str, int] = {}

    def taken_in(
        self,
        client: str,
        groups: Counter[Any],
        annotations: Mapping[str, Mapping[Any, Any]],
        tasks: Mapping[Any, Any],
        stimulus_id: str,
    ) -> None:
        """Note a graph; ``groups`` counts its tasks by TaskGroup."""
        sizes: Counter[str] = Counter()
        for group, size in groups.items():
            if group.span_id:
                sizes[group.span_id] += size
        values = self._annotations(annotations, tasks)
        total = sum(sizes.values())
        latest = []
        for span_id, size in sizes.items():
            note = Graph(
                span_id,
                clients=(client,),
                collections=self._collections(span_id),
                annotations=values.get(span_id, {}),
                code=_innermost(self._spans[span_id]),
            )
            latest.append((note, size / total))
            self._notes.append(note)
        self._latest = (stimulus_id, latest)

    def timed(self, stimulus_id: str, seconds: float) -> None:
        """Share out the time that the scheduler took for a graph, by number of tasks."""
        stimulus, notes = self._latest
        if stimulus == stimulus_id:
            for note, part in notes:
                note.seconds += seconds * part

    def drain(self) -> list[Graph]:
        """Hand over the notes."""
        notes, self._notes = self._notes, []
        self._latest = ("", [])
        return notes

    def _collections(self, span_id: str) -> tuple[str, ...]:
        metadata = self._spans[span_id].metadata
        if not metadata:
            return ()
        entries = metadata["collections"]
        read = self._collections_read.get(span_id, 0)
        self._collections_read[span_id] = len(entries)
        return tuple(dict.fromkeys(str(entry["type"]) for entry in entries[read:] if "type" in entry))

    def _annotations(
        self, annotations: Mapping[str, Mapping[Any, Any]], tasks: Mapping[Any, Any]
    ) -> dict[str, dict[str, dict[str, None]]]:
        """Values by span and name, each once."""
        by_span: dict[str, dict[str, dict[str, None]]] = {}
        for name in self._allowed:
            for key, value in annotations.get(name, {}).items():
                span_id = tasks[key].group.span_id
                if span_id:
                    values = by_span.setdefault(span_id, {}).setdefault(name, {})
                    if len(values) < MAX_VALUES:
                        values[str(value)] = None
        return by_span


def _innermost(span: Any) -> tuple[str, int] | None:
    """File and line of the innermost user frame of the latest submission, when the client sends code."""
    if not span._code:
        return None
    frames = next(reversed(span._code))
    return (frames[-1].filename, frames[-1].lineno_frame) if frames else None
