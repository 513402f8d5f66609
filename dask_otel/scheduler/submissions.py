"""Submissions: who submitted which graph, in which span, from which line, and how long the scheduler took for it.

Which span a task requests is known only while the scheduler takes the graph in, hence the two wrappers: each runs
Dask's own method, untouched. Before Dask files the tasks, those in the group of another span move to groups of their
own. What stays in another span is followed there: tasks that were there already, and with ``otel.split-groups: false``
new ones, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from distributed.utils import nbytes

from ..diagnosis.occupancy import Mark
from ..identity import Caller, caller_of
from ..messages import ANNOTATION, PARENT_FIELD, Submitter
from ..patching import clear_annotations, wrap
from ..safety import Safety
from ..schema import MAX_ANNOTATION_VALUES
from ..spantree.events import Graph, Phase
from .inbox import NOBODY, Inbox, RequestedSpan
from .outcomes import prefix_of
from .pace import Clock
from .run_times import RunTimesHooks
from .span_annotations import SharedAnnotations
from .split_groups import GroupSplitter, Misplaced
from .task_parents import TaskParents

__all__ = ["Submissions"]

#: Spans that tasks without a span opened, of which is remembered which task it was.
MAX_OPENED = 10_000
NOTHING: frozenset[str] = frozenset()
#: Home of a task that moves to a part of its group that exists already: no span has this id.
LEAVES = (None, None)

#: The submission that the running code belongs to.
_current: ContextVar[Submission | None] = ContextVar("dask_otel_submission", default=None)


@dataclass(slots=True)
class Submission:
    """A graph that is being taken in."""

    since: float
    client: str
    #: What the client's program says of itself; and the span that submits, if it is to be linked to.
    described: Mapping[str, str]
    caller: Caller | None
    #: Bytes of the serialised graph; None if not known.
    size: int | None
    #: Keys that the client wants.
    keys: Collection[Any]
    #: The span around the submission.
    requested: RequestedSpan | None
    #: Key of the task that submits, if Dask knows it: not from coroutines.
    submitter: Any
    #: Span of that task, as ``PARENT_FIELD`` has it; empty if it has made none.
    submitter_span: str
    collections: tuple[str, ...]
    code: tuple[str, int] | None = None
    #: What ``RunTimesHooks`` needs of the moment at which the graph came.
    came: Mark | None = None
    #: Keys of new tasks, while the graph is taken in.
    new: Collection[Any] = ()
    #: Number of new tasks for each group of the graph's tasks and their inputs.
    groups: dict[Any, int] = field(default_factory=dict)
    #: Keys of tasks that another span counts, and the span that requests them.
    elsewhere: list[tuple[Any, RequestedSpan]] = field(default_factory=list)


class Submissions:
    """Wraps the scheduler's handler of graphs and the spans extension, and appends what graphs say to the inbox.

    Parameters
    ----------
    annotations
        Names of the Dask annotations that may be shown.
    splitter
        Knows which tasks are new, and moves tasks to groups of their own; None if Dask lacks what it needs.
    parents
        Writes into new tasks what their workers cannot compute.
    splits
        Whether it may move tasks; else they stay where Dask puts them.
    phase_threshold
        Seconds; a graph that takes at least so long to be taken in is a phase of its span.
    run_times
        Is told when graphs come, and when they have been taken in.
    """

    def __init__(
        self,
        scheduler: Any,
        inbox: Inbox,
        annotations: Iterable[str],
        splitter: GroupSplitter | None,
        parents: TaskParents,
        *,
        splits: bool,
        shows_tags: bool,
        phase_threshold: float,
        run_times: RunTimesHooks | None,
        clock: Clock,
        safety: Safety,
    ) -> None:
        self._inbox = inbox
        self._run_times = run_times
        self._scheduler = scheduler
        self._extension = scheduler.extensions["spans"]
        self._annotations = tuple(annotations)
        self._splitter = splitter
        self._parents = parents
        self._splits = splits
        self._shows_tags = shows_tags
        self._phase_threshold = phase_threshold
        self._clock = clock
        self._safety = safety
        self._shared = SharedAnnotations()
        self._listening = False
        self._handler = scheduler.stream_handlers["update-graph"]
        self._observe = self._extension.observe_tasks
        self._undo: Callable[[], None] = lambda: None
        #: By id of a span that a task without a span opened, the key of the task.
        self._opened_by: dict[str, Any] = {}
        #: Stimulus of the latest graph, and by span id, the part of its tasks.
        self._latest: tuple[str, dict[str, float]] = ("", {})

    def install(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._handler = self._scheduler.stream_handlers["update-graph"]
        self._observe = self._extension.observe_tasks
        if self._splitter:
            self._splitter.install(self._safety, shows_tags=self._shows_tags)
        self._scheduler.stream_handlers["update-graph"] = self._update_graph
        self._undo = wrap(self._extension, "observe_tasks", self._observe_tasks)
        with self._safety.guard("annotations of spans"):
            self._shared.install()

    def remove(self) -> None:
        """Stop listening, and give Dask its own methods back, unless somebody wrapped them after us."""
        if not self._listening:  # the splitter may be another bridge's by now
            return
        self._listening = False
        if self._scheduler.stream_handlers["update-graph"] == self._update_graph:
            self._scheduler.stream_handlers["update-graph"] = self._handler
        self._undo()
        with self._safety.guard("annotations of spans"):
            self._shared.remove()
        if self._splitter:
            self._splitter.remove()

    # Dask awaits it only if it is a coroutine function. The context is that of the client's stream.
    async def _update_graph(self, *args: Any, **message: Any) -> Any:
        if self._listening:
            with self._safety.guard("update-graph hook"):
                submission = _submission(message, self._clock.now())
                _current.set(submission)
                if self._run_times:
                    submission.came = self._run_times.graph_came()
                # Layers that are made meanwhile would get the annotations of whoever made the cluster.
                clear_annotations()
        try:
            taking_in = self._handler(*args, **message)
            message.clear()  # Dask frees the serialised graph as soon as it can
            return await taking_in
        finally:
            _current.set(None)

    def _observe_tasks(self, tasks: Any, *args: Any, **details: Any) -> Any:
        submission = _current.get() if self._listening else None
        if submission and isinstance(tasks, Collection):  # else reading would use it up
            with self._safety.guard("observe_tasks hook"):
                self._read(submission, tasks, **details)
        try:
            return self._shared.call(self._observe, tasks, *args, **details)
        finally:
            if submission and submission.new:
                with self._safety.guard("parents of tasks"):
                    self._parents.write(tasks, submission.groups, submission.new, submission.submitter_span)
                submission.new = ()
            if self._listening and self._splitter:
                with self._safety.guard("observe_tasks hook"):
                    self._splitter.taken_in()

    def _read(self, submission: Submission, tasks: Collection[Any], *, code: Any = (), **details: Any) -> None:
        """Record which span each task requests, before Dask overwrites it, and move new tasks where they belong."""
        if code:  # frames of the user's code, the innermost last
            submission.code = (code[-1].filename, code[-1].lineno_frame)
        new = self._splitter.new if self._splitter else {task.key for task in tasks if _never_ran(task)}
        splitter = self._splitter if self._splits else None
        if splitter and submission.submitter is not None and (leaked := self._leaked(submission)):
            _clear(submission, tasks, leaked, new)
        submission.new = new
        around = submission.requested.id if submission.requested else NOBODY
        homes: dict[Any, tuple[Any, Any]] = {}
        misplaced: dict[tuple[Any, Any], Misplaced] = {}
        last: Any = None
        requested_id: Any = NOBODY
        for task in tasks:
            group = task.group
            annotation = task.annotations.get("span") if task.annotations else None
            if annotation is not last:  # most tasks of a graph share one
                requested_id = annotation["ids"][-1] if type(annotation) is dict and annotation.get("ids") else NOBODY
                last = annotation
            is_new = task.key in new
            home = homes.get(group)
            if home is None:
                submission.groups.setdefault(group, 0)
                if is_new and splitter and not group.span_id and splitter.is_part(group, requested_id):
                    home = LEAVES  # and the next task may decide for the group
                else:
                    home = homes[group] = self._home(group, requested_id)
            if not is_new:
                if submission.requested and around not in home and task.key in submission.keys:
                    submission.elsewhere.append((task.key, submission.requested))
            elif requested_id in home:
                submission.groups[group] += 1
            elif (group, requested_id) in misplaced:
                misplaced[group, requested_id].tasks.append(task)
            else:
                misplaced[group, requested_id] = Misplaced(group, requested_id, _requested_span(annotation), [task])
        stay = splitter.split(misplaced.values(), tasks) if splitter else misplaced.values()
        for each in stay:
            if each.requested:
                submission.elsewhere += [(task.key, each.requested) for task in each.tasks]
        for each in misplaced.values():
            group = each.tasks[0].group
            submission.groups[group] = submission.groups.get(group, 0) + len(each.tasks)

    def _leaked(self, submission: Submission) -> frozenset[str]:
        """Return ids of spans around a submission in which its task is not.

        After ``secede``, Dask leaves the annotations of a task in its thread. A task without a span that starts there
        later submits what it submits in the span of the other one. A span that it opens itself is new when its first
        submission arrives.
        """
        task = self._scheduler.tasks.get(submission.submitter)
        own = self._extension.spans.get(task.group.span_id) if task else None
        if submission.requested is None or own is None or own.name != ("default",):
            return NOTHING  # a task in a span runs with that span's annotation
        leaked = []
        for span_id in submission.requested.ids:
            if span_id not in self._extension.spans:
                self._opened_by[span_id] = submission.submitter
                if len(self._opened_by) > MAX_OPENED:
                    del self._opened_by[next(iter(self._opened_by))]
            elif self._opened_by.get(span_id) != submission.submitter:
                leaked.append(span_id)
        return frozenset(leaked)

    def _home(self, group: Any, requested_id: Any) -> tuple[Any, Any]:
        """Which spans a task of a group may request and be where it belongs."""
        if not group.span_id:  # the group's first task decides
            return requested_id, requested_id
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
        if self._run_times and submission.came:
            self._run_times.graph_taken(stimulus_id, submission.came)
        sizes: Counter[str] = Counter()
        for group, size in submission.groups.items():
            self._inbox.touch(group)
            if group.span_id and size:
                sizes[group.span_id] += size
        if submission.requested:
            self._inbox.request(submission.requested, submission.since)
            sizes.setdefault(submission.requested.id, 0)
        self._follow(submission)
        values = self._values(annotations)
        total = sum(sizes.values())
        for span_id in sizes:
            graph = Graph(
                span_id,
                clients=(submission.client,),
                submitter=submission.described,
                caller=submission.caller,
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
                if submission and parts:
                    self._add_phase(submission, max(parts, key=parts.__getitem__), event["metrics"]["tasks"])
        elif submission:
            self._failed(submission, event["status"])

    def _add_phase(self, submission: Submission, span_id: str, tasks: int) -> None:
        """Append that a graph took long, for the span that requested it or, without one, for that of most tasks."""
        phase = self._phase(submission, self._clock.now(), tasks)
        if phase:
            self._inbox.add_graph(Graph(submission.requested.id if submission.requested else span_id, phase=phase))

    def _phase(
        self, submission: Submission, now: float, tasks: int | None = None, *, failed: bool = False
    ) -> Phase | None:
        if now - submission.since < self._phase_threshold:
            return None
        return Phase(submission.since, now, tasks, submission.size, failed)

    def _failed(self, submission: Submission, status: str) -> None:
        now = self._clock.now()
        span = submission.requested or RequestedSpan(("default",), (str(uuid4()),))
        self._inbox.request(span, submission.since)
        self._inbox.add_graph(
            Graph(
                span.id,
                clients=(submission.client,),
                submitter=submission.described,
                caller=submission.caller,
                collections=submission.collections,
                failure=status,
                prefix=next(map(prefix_of, submission.keys), ""),
                since=submission.since,
                until=now,
                phase=self._phase(submission, now, failed=status == "error"),
            )
        )

    def _follow(self, submission: Submission) -> None:
        """Follow tasks that another span counts."""
        for key, requested in submission.elsewhere:
            task = self._scheduler.tasks[key]
            if task.group.span_id and task.group.span_id != requested.id:
                self._inbox.request(requested, submission.since)
                self._inbox.touch(task.group)
                self._inbox.claims.add(key, task, requested.id, submission.since)

    def _values(self, annotations: Mapping[str, Mapping[Any, Any]]) -> dict[str, dict[str, dict[str, None]]]:
        """Values by span and name, each once."""
        by_span: dict[str, dict[str, dict[str, None]]] = {}
        for name in self._annotations:
            for key, value in annotations.get(name, {}).items():
                span_id = self._scheduler.tasks[key].group.span_id
                if span_id:
                    values = by_span.setdefault(span_id, {}).setdefault(name, {})
                    if len(values) < MAX_ANNOTATION_VALUES:
                        values[str(value)] = None
        return by_span


def _never_ran(task: Any) -> bool:
    """Whether a task looks as if the graph that is being taken in has made it."""
    return task.run_id is None and task.state == "released"


def _clear(submission: Submission, tasks: Iterable[Any], leaked: frozenset[str], new: Collection[Any]) -> None:
    """Take spans out of what a submission and its new tasks request."""
    if submission.requested:
        submission.requested = _without(submission.requested, leaked)
    for task in tasks:
        requested = _requested_span(task.annotations.get("span")) if task.key in new and task.annotations else None
        if requested and not leaked.isdisjoint(requested.ids):
            kept = _without(requested, leaked)
            task.annotations = {name: value for name, value in task.annotations.items() if name != "span"}
            if kept:
                task.annotations["span"] = {"name": kept.tags, "ids": kept.ids}


def _without(requested: RequestedSpan, leaked: frozenset[str]) -> RequestedSpan | None:
    kept = [(tag, id_) for tag, id_ in zip(requested.tags, requested.ids, strict=True) if id_ not in leaked]
    return RequestedSpan(*zip(*kept, strict=True)) if kept else None


def _submission(message: Mapping[str, Any], now: float) -> Submission:
    annotations = message.get("annotations") or {}
    metadata = message.get("span_metadata")
    collections = (metadata or {}).get("collections") or ()
    submitter = Submitter.from_metadata(metadata)
    described = {"service": submitter.service, "user": submitter.user, "host": submitter.host}
    caller = caller_of(submitter.caller)
    frames = getattr(message.get("expr_ser"), "frames", None)
    return Submission(
        since=now,
        client=message["client"],
        described={what: text for what, text in described.items() if text},
        # One that is not sampled has no span to link to.
        caller=caller if caller and caller.is_sampled else None,
        size=sum(map(nbytes, frames)) if frames is not None else None,
        keys=message["keys"],
        requested=_requested_span(annotations.get("span")),
        submitter=message.get("submitting_task"),
        submitter_span=_field(annotations.get(ANNOTATION), PARENT_FIELD),
        collections=tuple(dict.fromkeys(str(entry["type"]) for entry in collections if "type" in entry)),
    )


def _field(carrier: Any, name: str) -> str:
    """Read a field of an annotation ``otel``; empty if it is not there, or the annotation is somebody else's."""
    value = carrier.get(name) if isinstance(carrier, Mapping) else None
    return value if isinstance(value, str) else ""


def _requested_span(annotation: Any) -> RequestedSpan | None:
    """Read an annotation; Dask takes others than its own ``span`` makes, which mean nothing to us."""
    if not isinstance(annotation, Mapping):
        return None
    tags, ids = annotation.get("name"), annotation.get("ids")
    if type(tags) is not tuple or type(ids) is not tuple or not len(tags) == len(ids) > 0:
        return None
    return RequestedSpan(tags, tuple(map(str, ids)))
