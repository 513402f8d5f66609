"""Submissions: who submitted which graph, in which span, from which line, and how long the scheduler took for it.

Dask puts a task whose group is in a span already in that span, whatever span the submission names. The requested span
is known only while the scheduler takes the graph in, hence the two wrappers: each runs Dask's own method, untouched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from dask.utils import key_split

from ..safety import Safety, log
from ..schema import MAX_ANNOTATION_VALUES
from ..spantree.events import NOBODY, Graph
from .compat import wrap
from .inbox import Inbox, RequestedSpan
from .pace import Clock

__all__ = ["Submissions"]

_EXPLANATION = (
    "dask-otel: Dask counts some tasks that were submitted in %r in another span, because tasks of the same name are "
    "there already. The traces say so (dask.span.counted_in, dask.span.includes). To have numbers of their own, give "
    "such tasks names of their own: client.submit(..., key=...), client.map(..., key=...)."
)

#: The submission that the running code belongs to.
_current: ContextVar[Submission | None] = ContextVar("dask_otel_submission", default=None)


@dataclass(slots=True)
class Collision:
    """A task that Dask counts in another span than the requested one."""

    key: Any
    #: None if no span was requested.
    ask: RequestedSpan | None
    #: Whether the task is new: only this submission has requested it.
    is_new: bool


@dataclass(slots=True)
class Submission:
    """A graph that is being taken in."""

    since: float
    client: str
    #: Keys that the client wants.
    keys: Collection[Any]
    #: The span around the submission.
    ask: RequestedSpan | None
    collections: tuple[str, ...]
    code: tuple[str, int] | None = None
    #: Number of new tasks that are where they belong, for each group of the graph's tasks and their inputs.
    groups: dict[Any, int] = field(default_factory=dict)
    collisions: list[Collision] = field(default_factory=list)
    #: Keys of tasks that are in the span that this submission requests, but that another span requested before.
    again: list[Any] = field(default_factory=list)


class Submissions:
    """Wraps the scheduler's handler of graphs and the spans extension, and appends what graphs say to the inbox.

    Parameters
    ----------
    annotations
        Names of the Dask annotations that may be shown.
    """

    def __init__(self, scheduler: Any, inbox: Inbox, annotations: Iterable[str], clock: Clock, safety: Safety) -> None:
        self._inbox = inbox
        self._scheduler = scheduler
        self._extension = scheduler.extensions["spans"]
        self._annotations = tuple(annotations)
        self._clock = clock
        self._safety = safety
        self._listening = False
        self._handler = scheduler.stream_handlers["update-graph"]
        self._observe = self._extension.observe_tasks
        self._undo: Callable[[], None] = lambda: None
        #: Stimulus of the latest graph, and by span id, the part of its tasks.
        self._latest: tuple[str, dict[str, float]] = ("", {})
        self._warned = False

    def install(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._handler = self._scheduler.stream_handlers["update-graph"]
        self._observe = self._extension.observe_tasks
        self._scheduler.stream_handlers["update-graph"] = self._update_graph
        self._undo = wrap(self._extension, "observe_tasks", self._observe_tasks)

    def remove(self) -> None:
        """Stop listening, and give Dask its own methods back, unless somebody wrapped them after us."""
        self._listening = False
        if self._scheduler.stream_handlers["update-graph"] == self._update_graph:
            self._scheduler.stream_handlers["update-graph"] = self._handler
        self._undo()

    # Dask awaits it only if it is a coroutine function. The context is that of the client's stream.
    async def _update_graph(self, *args: Any, **message: Any) -> Any:
        if self._listening:
            with self._safety.guard("update-graph hook"):
                _current.set(_submission(message, self._clock.now()))
        try:
            return await self._handler(*args, **message)
        finally:
            _current.set(None)

    def _observe_tasks(self, tasks: Any, *args: Any, **details: Any) -> Any:
        if self._listening:
            with self._safety.guard("observe_tasks hook"):
                submission = _current.get()
                if submission and isinstance(tasks, Collection):  # else reading would use it up
                    self._read(submission, tasks, **details)
        return self._observe(tasks, *args, **details)

    def _read(self, submission: Submission, tasks: Collection[Any], *, code: Any = (), **details: Any) -> None:
        """Record which span each task requests, before Dask overwrites it."""
        if code:  # frames of the user's code, the innermost last
            submission.code = (code[-1].filename, code[-1].lineno_frame)
        around = submission.ask.id if submission.ask else NOBODY
        asks: dict[str, RequestedSpan | None] = {}
        homes: dict[Any, tuple[str, str]] = {}
        for task in tasks:
            annotation = task.annotations.get("span") if task.annotations else None
            asked = annotation["ids"][-1] if type(annotation) is dict and annotation.get("ids") else NOBODY
            group = task.group
            home = homes.get(group)
            if home is None:
                home = homes[group] = self._home(group, asked)
                submission.groups[group] = 0
            if task.run_id is not None or task.state != "released":  # not new: an input, or requested before
                if around and around not in home:
                    submission.collisions.append(Collision(task.key, submission.ask, is_new=False))
                elif around in home and task.key in self._inbox.claims.keys:
                    submission.again.append(task.key)
            elif asked in home:
                submission.groups[group] += 1
            else:
                if asked not in asks:
                    asks[asked] = _ask(annotation)
                submission.collisions.append(Collision(task.key, asks[asked], is_new=True))

    def _home(self, group: Any, asked: str) -> tuple[str, str]:
        """Which spans a task of a group may ask for and be where it belongs."""
        if not group.span_id:  # the group's first task decides
            return asked, asked
        is_default = self._extension.spans[group.span_id].name == ("default",)
        return group.span_id, NOBODY if is_default else group.span_id

    # What Dask's plugin hooks report

    def taken_in(self, tasks: Iterable[Any], annotations: Mapping[str, Mapping[Any, Any]], stimulus_id: str) -> None:
        """Append what a graph says to the inbox, once Dask has decided which task is in which span."""
        submission = _current.get()
        if submission is None:  # somebody called the scheduler's method directly
            for group in {self._scheduler.tasks[key].group for key in tasks}:
                self._inbox.touch(group)
            return
        sizes: Counter[str] = Counter()
        for group, size in submission.groups.items():
            self._inbox.touch(group)
            if group.span_id and size:
                sizes[group.span_id] += size
        if submission.ask:
            self._inbox.request(submission.ask, submission.since)
            sizes.setdefault(submission.ask.id, 0)
        asked = self._collide(submission, sizes)
        for key in submission.again:
            self._inbox.claims.wanted_where_it_is(key)
        values = self._values(annotations, asked)
        total = sum(sizes.values())
        for span_id in sizes:
            graph = Graph(
                span_id,
                clients=(submission.client,),
                collections=submission.collections,
                annotations=values.get(span_id, {}),
                code=submission.code,
            )
            self._inbox.add_graph(graph)
        parts = {span_id: size / total if total else 1 / len(sizes) for span_id, size in sizes.items()}
        self._latest = (stimulus_id, parts)

    def logged(self, event: Mapping[str, Any]) -> None:
        """Append what Dask logs after it has taken in a graph, or failed to: time, or status ``error``, ``cancelled``.

        The time is shared out by number of tasks.
        """
        submission = _current.get()
        if "metrics" in event:
            stimulus, parts = self._latest
            seconds = event["metrics"]["duration_seconds"]
            if stimulus == event["stimulus_id"]:
                for span_id, part in parts.items():
                    self._inbox.add_graph(Graph(span_id, seconds=seconds * part))
        elif submission:
            self._failed(submission, event["status"])

    def _failed(self, submission: Submission, status: str) -> None:
        span = submission.ask or RequestedSpan(("default",), (str(uuid4()),))
        self._inbox.request(span, submission.since)
        self._inbox.add_graph(
            Graph(
                span.id,
                clients=(submission.client,),
                collections=submission.collections,
                failure=status,
                prefix=next((str(key_split(key)) for key in submission.keys), ""),
                since=submission.since,
                until=self._clock.now(),
            )
        )

    def _collide(self, submission: Submission, sizes: Counter[str]) -> dict[Any, str]:
        """Follow tasks that are not in their requested span; return the requested span of each new one."""
        asked: dict[Any, str] = {}
        for collision in submission.collisions:
            key, ask = collision.key, collision.ask
            if not (collision.is_new or key in submission.keys):
                continue  # an input, computed for somebody else
            task = self._scheduler.tasks[key]
            asker = ask.id if ask else NOBODY
            if not task.group.span_id or task.group.span_id == asker:
                continue
            if ask:
                self._inbox.request(ask, submission.since)
            change = self._inbox.touch(task.group)
            self._inbox.claims.add(key, task, asker, submission.since, change, is_new=collision.is_new)
            if collision.is_new:
                asked[key] = asker
                if ask:
                    sizes[asker] += 1
            if not self._warned:
                self._warned = True
                path = " / ".join(map(str, ask.tags)) if ask else "no span"
                log.warning(_EXPLANATION, path if self._safety.logs_messages else "one span")
        return asked

    def _values(
        self, annotations: Mapping[str, Mapping[Any, Any]], asked: Mapping[Any, str]
    ) -> dict[str, dict[str, dict[str, None]]]:
        """Values by span and name, each once."""
        by_span: dict[str, dict[str, dict[str, None]]] = {}
        for name in self._annotations:
            for key, value in annotations.get(name, {}).items():
                span_id = asked.get(key, self._scheduler.tasks[key].group.span_id)
                if span_id:
                    values = by_span.setdefault(span_id, {}).setdefault(name, {})
                    if len(values) < MAX_ANNOTATION_VALUES:
                        values[str(value)] = None
        return by_span


def _submission(message: Mapping[str, Any], now: float) -> Submission:
    annotation = (message.get("annotations") or {}).get("span")
    collections = (message.get("span_metadata") or {}).get("collections") or ()
    return Submission(
        since=now,
        client=message["client"],
        keys=message["keys"],
        ask=_ask(annotation),
        collections=tuple(dict.fromkeys(str(entry["type"]) for entry in collections if "type" in entry)),
    )


def _ask(annotation: Any) -> RequestedSpan | None:
    """Read an annotation; Dask takes others than its own ``span`` makes, which mean nothing to us."""
    if not isinstance(annotation, Mapping):
        return None
    tags, ids = tuple(annotation.get("name") or ()), tuple(str(id_) for id_ in annotation.get("ids") or ())
    return RequestedSpan(tags, ids) if ids and len(tags) == len(ids) else None
