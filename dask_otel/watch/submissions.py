"""What submissions say: who submitted what, in which span, from which line, and how long the graph took to take in.

Dask puts a task whose group is in a span already in that span, whatever the submission asked for. Which span it asked
for is known only while the graph is being taken in, hence the two wrappers: each runs Dask's own method, untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from distributed.metrics import time

from ..mirror.model import NOBODY
from ..safety import Safety
from .wrap import wrap

__all__ = ["Ask", "Collision", "Submission", "Submissions"]

#: The submission that the running code belongs to.
_current: ContextVar[Submission | None] = ContextVar("dask_otel_submission", default=None)


@dataclass(slots=True)
class Ask:
    """A span as a submission names it; Dask may not have made it."""

    tags: tuple[Any, ...]
    ids: tuple[str, ...]

    @property
    def id(self) -> str:
        """Id of the span."""
        return self.ids[-1]


@dataclass(slots=True)
class Collision:
    """A task that Dask counts in another span than the one that was asked for."""

    key: Any
    #: None where no span was asked for.
    ask: Ask | None
    #: Whether the task is new: only this submission has asked for it.
    is_new: bool


@dataclass(slots=True)
class Submission:
    """A graph that is being taken in."""

    since: float
    client: str
    #: Keys that the client wants.
    keys: Collection[Any]
    #: The span around the submission.
    ask: Ask | None
    collections: tuple[str, ...]
    code: tuple[str, int] | None = None
    #: Number of new tasks that are where they belong, for each group of the graph's tasks and their inputs.
    groups: dict[Any, int] = field(default_factory=dict)
    collisions: list[Collision] = field(default_factory=list)
    #: Keys of tasks that are where this submission wants them, but that another span has asked for before.
    again: list[Any] = field(default_factory=list)


class Submissions:
    """Listens in on the scheduler's handler of graphs, and on the spans extension.

    Parameters
    ----------
    claimed
        Keys of tasks that are not where they were asked for.
    """

    def __init__(self, scheduler: Any, claimed: Container[Any], safety: Safety) -> None:
        self._claimed = claimed
        self._scheduler = scheduler
        self._extension = scheduler.extensions["spans"]
        self._safety = safety
        self._listening = False
        self._handler = scheduler.stream_handlers["update-graph"]
        self._observe = self._extension.observe_tasks
        self._undo: Callable[[], None] = lambda: None

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

    @staticmethod
    def current() -> Submission | None:
        """Return the submission that the calling code belongs to."""
        return _current.get()

    # Dask awaits it only if it is a coroutine function. The context is that of the client's stream.
    async def _update_graph(self, *args: Any, **message: Any) -> Any:
        if self._listening:
            with self._safety.guard("update-graph hook"):
                _current.set(_submission(message))
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
        """Note which span each task asked for, before Dask overwrites it."""
        if code:  # frames of the user's code, the innermost last
            submission.code = (code[-1].filename, code[-1].lineno_frame)
        around = submission.ask.id if submission.ask else NOBODY
        asks: dict[str, Ask | None] = {}
        homes: dict[Any, tuple[str, str]] = {}
        for task in tasks:
            annotation = task.annotations.get("span") if task.annotations else None
            asked = annotation["ids"][-1] if type(annotation) is dict and annotation.get("ids") else NOBODY
            group = task.group
            home = homes.get(group)
            if home is None:
                home = homes[group] = self._home(group, asked)
                submission.groups[group] = 0
            if task.run_id is not None or task.state != "released":  # not new: an input, or somebody asked before
                if around and around not in home:
                    submission.collisions.append(Collision(task.key, submission.ask, is_new=False))
                elif self._claimed and around in home and task.key in self._claimed:
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


def _submission(message: Mapping[str, Any]) -> Submission:
    annotation = (message.get("annotations") or {}).get("span")
    collections = (message.get("span_metadata") or {}).get("collections") or ()
    return Submission(
        since=time(),
        client=message["client"],
        keys=message["keys"],
        ask=_ask(annotation),
        collections=tuple(dict.fromkeys(str(entry["type"]) for entry in collections if "type" in entry)),
    )


def _ask(annotation: Any) -> Ask | None:
    """Read an annotation; Dask takes others than its own ``span`` makes, which mean nothing to us."""
    if not isinstance(annotation, Mapping):
        return None
    tags, ids = tuple(annotation.get("name") or ()), tuple(str(id_) for id_ in annotation.get("ids") or ())
    return Ask(tags, ids) if ids and len(tags) == len(ids) else None
