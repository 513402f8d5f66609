"""From submissions to notes for the mirror: who submitted to which span, and which tasks Dask put elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from dask.utils import key_split
from distributed.metrics import time

from ..mirror.model import NOBODY, Graph
from ..safety import Safety, log
from .latches import Latches
from .submissions import Ask, Submission

__all__ = ["Graphs"]

#: Values of one annotation that one graph may add to a span.
MAX_VALUES = 32

_EXPLANATION = (
    "dask-otel: Dask counts some tasks that were submitted in %r in another span, because tasks of the same name are "
    "there already. The traces say so (dask.span.counted_in, dask.span.includes). To have numbers of their own, give "
    "such tasks names of their own: client.submit(..., key=...), client.map(..., key=...)."
)


class Graphs:
    """Notes on the graphs that came in since the last sweep, one for each span of each graph.

    Parameters
    ----------
    tasks
        ``Scheduler.tasks``
    latches
        To be told of tasks that Dask put elsewhere.
    annotations
        Names of the Dask annotations that may be shown.
    """

    def __init__(self, tasks: Mapping[Any, Any], latches: Latches, annotations: Iterable[str], safety: Safety) -> None:
        self._safety = safety
        self._tasks = tasks
        self._latches = latches
        self._allowed = tuple(annotations)
        self._notes: list[Graph] = []
        #: Spans that were asked for; Dask may not have them.
        self._asked: dict[str, tuple[Ask, float]] = {}
        #: Stimulus of the latest graph, its notes, and the part of its tasks that each stands for.
        self._latest: tuple[str, list[tuple[Graph, float]]] = ("", [])
        self._warned = False

    def taken_in(self, submission: Submission, annotations: Mapping[str, Mapping[Any, Any]], stimulus_id: str) -> None:
        """Note a graph, once Dask has decided which task goes where."""
        sizes: Counter[str] = Counter()
        for group, size in submission.groups.items():
            self._latches.touch(group)
            if group.span_id and size:
                sizes[group.span_id] += size
        if submission.ask:
            self._learn(submission.ask, submission.since)
            sizes.setdefault(submission.ask.id, 0)
        asked = self._collide(submission, sizes)
        for key in submission.again:
            self._latches.claims.wanted_where_it_is(key)
        values = self._annotations(annotations, asked)
        total = sum(sizes.values())
        latest = []
        for span_id, size in sizes.items():
            note = Graph(
                span_id,
                clients=(submission.client,),
                collections=submission.collections,
                annotations=values.get(span_id, {}),
                code=submission.code,
            )
            latest.append((note, size / total if total else 1 / len(sizes)))
            self._notes.append(note)
        self._latest = (stimulus_id, latest)

    def timed(self, stimulus_id: str, seconds: float) -> None:
        """Share out the time that the scheduler took for a graph, by number of tasks."""
        stimulus, notes = self._latest
        if stimulus == stimulus_id:
            for note, part in notes:
                note.seconds += seconds * part

    def failed(self, submission: Submission, status: str) -> None:
        """Note a graph that could not be taken in; status ``error`` or ``cancelled``."""
        ask = submission.ask or Ask(("default",), (str(uuid4()),))
        self._learn(ask, submission.since)
        prefix = next((str(key_split(key)) for key in submission.keys), "")
        self._notes.append(
            Graph(
                ask.id,
                clients=(submission.client,),
                collections=submission.collections,
                failure=status,
                prefix=prefix,
                since=submission.since,
                until=time(),
            )
        )

    def drain(self) -> tuple[list[Graph], list[tuple[Ask, float]]]:
        """Hand over the notes, and the spans that were asked for since when."""
        notes, self._notes = self._notes, []
        asked, self._asked = self._asked, {}
        self._latest = ("", [])
        return notes, list(asked.values())

    def _learn(self, ask: Ask, since: float) -> None:
        self._asked.setdefault(ask.id, (ask, since))

    def _collide(self, submission: Submission, sizes: Counter[str]) -> dict[Any, str]:
        """Follow tasks that are not where they belong; return which span each new one asked for."""
        asked: dict[Any, str] = {}
        for collision in submission.collisions:
            key, ask = collision.key, collision.ask
            if not (collision.is_new or key in submission.keys):
                continue  # an input, computed for somebody else
            task = self._tasks[key]
            asker = ask.id if ask else NOBODY
            if not task.group.span_id or task.group.span_id == asker:
                continue
            if ask:
                self._learn(ask, submission.since)
            change = self._latches.touch(task.group)
            self._latches.claims.add(key, task, asker, submission.since, change, is_new=collision.is_new)
            if collision.is_new:
                asked[key] = asker
                if ask:
                    sizes[asker] += 1
            if not self._warned:
                self._warned = True
                path = " / ".join(map(str, ask.tags)) if ask else "no span"
                log.warning(_EXPLANATION, path if self._safety.tells else "one span")
        return asked

    def _annotations(
        self, annotations: Mapping[str, Mapping[Any, Any]], asked: Mapping[Any, str]
    ) -> dict[str, dict[str, dict[str, None]]]:
        """Values by span and name, each once."""
        by_span: dict[str, dict[str, dict[str, None]]] = {}
        for name in self._allowed:
            for key, value in annotations.get(name, {}).items():
                span_id = asked.get(key, self._tasks[key].group.span_id)
                if span_id:
                    values = by_span.setdefault(span_id, {}).setdefault(name, {})
                    if len(values) < MAX_VALUES:
                        values[str(value)] = None
        return by_span
