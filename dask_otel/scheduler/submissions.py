"""Follows tasks that a span asked for and Dask put in another span.

What submissions say: who submitted what, in which span, from which line, and how long the graph took to take in.

Dask puts a task whose group is in a span already in that span, whatever the submission asked for. Which span it asked
for is known only while the graph is being taken in, hence the two wrappers: each runs Dask's own method, untouched.

From submissions to notes for the span tree: who submitted to which span, and which tasks Dask put elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from dask.utils import key_split
from distributed.metrics import time

from ..safety import Safety, log
from ..spantree.counts import FirstError, Load, Tally
from ..spantree.events import NOBODY, Change, Claim, Graph, latest_run
from .compat import wrap
from .outcomes import UNFINISHED, error_of

if TYPE_CHECKING:
    from .inbox import Inbox

__all__ = ["Ask", "Claims", "Collision", "Graphs", "Submission", "Submissions"]

_FAILED = ("erred", "upstream_failed")


class _Claimed:
    """A task that is not where it was asked for."""

    __slots__ = ("askers", "is_foreign", "state", "waiting")

    def __init__(self, *, is_foreign: bool) -> None:
        #: Nobody has asked for it where it is. Should it fail, ever, that is no failure of the span that counts it.
        self.is_foreign = is_foreign
        #: Ids of the spans that asked, or ``NOBODY``.
        self.askers: frozenset[str] = frozenset()
        #: Of these, the spans for which it has not ended yet.
        self.waiting: frozenset[str] = frozenset()
        #: Last known; empty before the first transition: a task may never need to run.
        self.state = ""


class _Open(Claim):
    """A claim of the current sweep."""

    __slots__ = ("states",)

    def __init__(self, asker: str, holder: str, since: float) -> None:
        super().__init__(asker, holder, since)
        #: By how much the number of tasks in each state changed.
        self.states: dict[str, int] = {}


class Claims:
    """What happened to such tasks since the last sweep."""

    def __init__(self) -> None:
        #: Those that Dask has not forgotten.
        self.keys: dict[Any, _Claimed] = {}
        self._claims: dict[tuple[str, str], _Open] = {}
        #: A set for each asker of the current sweep: most tasks have one asker, and one map may bring a million tasks.
        self._alone: dict[str, frozenset[str]] = {}

    def add(self, key: Any, task: Any, asker: str, since: float, change: Change, *, is_new: bool) -> None:
        """Follow a task from now on.

        Parameters
        ----------
        change
            Of the task's group.
        is_new
            Whether only this submission has asked for the task.
        """
        alone = self._alone.get(asker)
        if alone is None:
            alone = self._alone[asker] = frozenset((asker,))
        if is_new:
            _foreign(change, alone).tasks += 1
        ended = task.state in ("memory", "erred")
        if asker != NOBODY and ended:
            self._ended_before(self._claim(asker, task.group.span_id, since), task)
            if task.state == "memory":
                return  # while a failure may be run again
        claimed = self.keys.get(key)
        if claimed is None:
            claimed = self.keys[key] = _Claimed(is_foreign=is_new)
        claimed.askers = claimed.askers | alone if claimed.askers else alone
        claimed.state = task.state if task.state in UNFINISHED else ""
        if asker != NOBODY and not ended and asker not in claimed.waiting:
            claimed.waiting = claimed.waiting | alone if claimed.waiting else alone
            claim = self._claim(asker, task.group.span_id, since)
            claim.tasks += 1
            if claimed.state:
                claim.states[claimed.state] = claim.states.get(claimed.state, 0) + 1

    def wanted_where_it_is(self, key: Any) -> None:
        """Note that the span that counts a task has asked for it, too."""
        claimed = self.keys.get(key)
        if claimed:
            claimed.is_foreign = False

    def is_foreign(self, key: Any) -> bool:
        """Whether only spans other than the one that counts a task have asked for it."""
        claimed = self.keys.get(key)
        return claimed is not None and claimed.is_foreign

    def follow(
        self,
        key: Any,
        state: str,
        task: Any,
        outcome: str | None,
        change: Change,
        details: Mapping[str, Any],
        *,
        asked_again: bool,
    ) -> None:
        """Note a transition to a state.

        Parameters
        ----------
        change
            Of the task's group.
        asked_again
            Whether a person has it run again after a failure.
        """
        claimed = self.keys[key]
        before = claimed.state
        if asked_again and not claimed.waiting:
            claimed.waiting = claimed.askers - {NOBODY}
        claimed.state = state if state in UNFINISHED else ""
        if outcome and claimed.is_foreign:
            foreign = _foreign(change, claimed.askers)
            foreign.count(outcome)
            if outcome in _FAILED:
                foreign.error = foreign.error or FirstError(*error_of(task.exception_blame))
                if not claimed.waiting:
                    self._failed_for_nobody(claimed, task)
                    before = ""  # they have not been told that it was to run
        for asker in claimed.waiting:
            claim = self._claim(asker, task.group.span_id, time())
            claim.prefix = claim.prefix or str(task.prefix.name)
            if before:
                claim.states[before] = claim.states.get(before, 0) - 1
            if claimed.state:
                claim.states[state] = claim.states.get(state, 0) + 1
            if state == "processing" and not claim.began:
                claim.began = time()
            if outcome:
                self._end(claim, task, outcome, details)
        if state in ("memory", "erred") or outcome in ("cancelled", "abandoned"):
            claimed.waiting = frozenset()
        elif state == "forgotten":
            del self.keys[key]

    def _failed_for_nobody(self, claimed: _Claimed, task: Any) -> None:
        """Every failure is some root's: of those who have asked before, else of work without a span."""
        claimed.waiting = claimed.askers - {NOBODY}
        if not claimed.waiting:
            claimed.waiting = claimed.askers
            self._claim(NOBODY, task.group.span_id, time()).tasks += 1

    def drain(self) -> list[Claim]:
        """Hand over what happened."""
        claims, self._claims = self._claims, {}
        self._alone = {}
        for claim in claims.values():
            claim.load = Load(*(claim.states.get(state, 0) for state in UNFINISHED))
        return list(claims.values())

    @staticmethod
    def _ended_before(claim: Claim, task: Any) -> None:
        """Count a task that was there, or had failed, already."""
        claim.tasks += 1
        claim.last_event = time()
        if task.state == "memory":
            claim.completed += 1
        else:
            claim.count("erred" if task.exception_blame is task else "upstream_failed")
            claim.error = claim.error or FirstError(*error_of(task.exception_blame))

    @staticmethod
    def _end(claim: Claim, task: Any, outcome: str, details: Mapping[str, Any]) -> None:
        claim.count(outcome)
        for run in latest_run(details.get("startstops")):
            claim.hull(run["start"], run["stop"])
        if outcome != "completed":
            claim.last_event = time()
        if outcome in _FAILED and not claim.error:
            claim.error = FirstError(*error_of(task.exception_blame))

    def _claim(self, asker: str, holder: str, since: float) -> _Open:
        claim = self._claims.get((asker, holder))
        if claim is None:
            claim = self._claims[asker, holder] = _Open(asker, holder, since)
        return claim


def _foreign(change: Change, askers: frozenset[str]) -> Tally:
    tally = change.foreign.get(askers)
    if tally is None:
        tally = change.foreign[askers] = Tally()
    return tally


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

    def __init__(self, tasks: Mapping[Any, Any], inbox: Inbox, annotations: Iterable[str], safety: Safety) -> None:
        self._safety = safety
        self._tasks = tasks
        self._inbox = inbox
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
            self._inbox.touch(group)
            if group.span_id and size:
                sizes[group.span_id] += size
        if submission.ask:
            self._learn(submission.ask, submission.since)
            sizes.setdefault(submission.ask.id, 0)
        asked = self._collide(submission, sizes)
        for key in submission.again:
            self._inbox.claims.wanted_where_it_is(key)
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
            change = self._inbox.touch(task.group)
            self._inbox.claims.add(key, task, asker, submission.since, change, is_new=collision.is_new)
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
