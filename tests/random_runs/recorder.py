"""An account of its own: what clients requested, and from Dask's hooks alone, how tasks ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.utils import key_split_group

from dask_otel.messages import TOPIC, SpanMade

from .submissions import Ids, Submission, submission_of

__all__ = ["Id", "Life", "Recorder", "Report"]

_UNFINISHED = ("waiting", "queued", "no-worker", "processing")
_NOTHING = Submission((), {})
#: Trace and span id, hexadecimal.
Id = tuple[str, str]
#: The graph that is being taken in.
_current: ContextVar[Submission] = ContextVar("current", default=_NOTHING)


@dataclass(eq=False)
class Life:
    """A task, from when it is made until it is forgotten; another one may follow under its key."""

    task: Any
    #: The span that requested it as new; None if no graph made it, as for scattered data.
    requested: Ids | None = None
    #: Spans that requested it, as new or again.
    requesting: set[str] = field(default_factory=set)
    #: Those of them that don't count it and requested it while there was no result.
    followers: set[str] = field(default_factory=set)
    #: Those of the latter for which it has not ended yet.
    claims: set[str] = field(default_factory=set)
    has_completed: bool = False
    #: Finish of its latest transition.
    state: str = ""

    @property
    def has_collided(self) -> bool:
        """Whether Dask alone would have it in another group than it is in."""
        return bool(self.task.group.name != key_split_group(self.task.key))


@dataclass(frozen=True)
class Report:
    """A worker has reported the span of a run."""

    made: SpanMade
    #: Address of the worker that runs the task; None if none does by now.
    worker: str | None

    @property
    def id(self) -> Id:
        """Of the span."""
        return f"{self.made.trace_id:032x}", f"{self.made.span_id:016x}"

    @property
    def parent(self) -> Id:
        """Of its parent."""
        return f"{self.made.trace_id:032x}", f"{self.made.parent_id:016x}"


class Recorder(SchedulerPlugin):  # type: ignore[misc]
    """Notes every transition as it comes.

    Parameters
    ----------
    submissions
        Whether clients say in submissions what they request, see ``note_submissions``.
    """

    name = "recorder"

    def __init__(self, scheduler: Scheduler, *, submissions: bool = False, split_groups: bool = True) -> None:
        self._scheduler = scheduler
        self._split_groups = split_groups
        #: By id of a span, the key of the task that named it first; None if that was no task, or Dask knows none.
        self._named_by: dict[str, Any] = {}
        self._submissions = submissions
        #: Of the instrumented clients, but for those in tasks.
        self.submitted: list[Submission] = []
        #: Ids of each span that was requested, from its root down.
        self.lineage: dict[str, Ids] = {}
        #: How tasks ended, by TaskGroup.
        self.outcomes: dict[Any, Counter[str]] = defaultdict(Counter)
        #: Keys of tasks that raised, by TaskGroup; without those whose worker has reported the span of the failed run.
        self.erred: dict[Any, list[str]] = defaultdict(list)
        #: How many tasks that ended have a reported span, by TaskGroup and outcome.
        self.with_span: dict[Any, Counter[str]] = defaultdict(Counter)
        self.reports: list[Report] = []
        #: Addresses of workers that have left.
        self.left: set[str] = set()
        #: How runs ended that their worker has ended (``completed`` or ``erred``), and their group, by key and number.
        self.runs: dict[tuple[str, int], tuple[str, Any]] = {}
        #: Keys and numbers of runs in ``reports``.
        self._reported: set[tuple[Any, Any]] = set()
        #: How tasks ended that one span requested and another one counts, by their ids.
        self.elsewhere: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        #: Graphs that were not taken in: ``error`` or ``cancelled``, by span, empty for none.
        self.graphs: dict[str, Counter[str]] = defaultdict(Counter)
        #: All graphs, by span, empty for none.
        self.graphs_of: Counter[str] = Counter()
        self.lives: list[Life] = []
        #: New tasks that are not in the span that requested them, and submissions of tasks outside the task's span.
        self.misplaced: list[str] = []
        #: Spans that must be Error, that may be, and of which something did not come to its end.
        self.must_fail: set[str] = set()
        self.may_fail: set[str] = set()
        self.unclean: set[str] = set()
        #: By key. Tasks of Dask's with the same key are equal, whatever lies between them.
        self._living: dict[Any, Life] = {}
        #: Keys of tasks that the graph which is being taken in has made.
        self._new: set[Any] = set()
        self._handler = scheduler.stream_handlers["update-graph"]
        scheduler.stream_handlers["update-graph"] = self._update_graph
        #: All Dask spans there have been, the latest of an id last: some are forgotten, and may be made again.
        self.spans: list[Any] = []
        self._ensure_span = scheduler.extensions["spans"]._ensure_span
        scheduler.extensions["spans"]._ensure_span = self._note_span
        self._new_task = scheduler.new_task
        scheduler.new_task = self._note_new_task

    # What was requested

    async def _update_graph(self, *args: Any, **message: Any) -> None:
        if self._submissions:
            submission = submission_of(message)
            by = message["submitting_task"]
            for span_id in submission.around:
                self._named_by.setdefault(span_id, by)
            outer = self._living.get(by)
            if outer and not outer.requested and self._split_groups:
                # In a thread that another task has left, it finds that one's span; not so one that it opens itself.
                submission = submission.only(lambda span_id: self._named_by.get(span_id) == by)
            _current.set(submission)
            if submission.outside:
                self.submitted.append(submission)
            self._learn(submission.around)
            if outer and outer.requested and outer.requested[-1] not in submission.around:
                self.misplaced.append(f"{outer.task.key} of {outer.requested} submits in {submission.around}")
        await self._handler(*args, **message)

    def _note_new_task(self, key: Any, spec: Any, state: Any, computation: Any = None) -> Any:
        task = self._new_task(key, spec, state, computation)
        self._living[key] = life = Life(task)
        self.lives.append(life)
        if computation is not None:
            self._new.add(key)
        return task

    def _note_span(self, name: Any, ids: Any) -> Any:
        is_new = ids[-1] not in self._scheduler.extensions["spans"].spans
        made = self._ensure_span(name, ids)  # which calls this method for those above
        if is_new:
            self.spans.append(made)
        return made

    @property
    def known(self) -> dict[str, Any]:
        """All Dask spans there have been, by id; the latest of each."""
        return {each.id: each for each in self.spans}

    def _learn(self, ids: Ids) -> None:
        for depth, span_id in enumerate(ids, 1):
            self.lineage[span_id] = ids[:depth]

    def update_graph(self, scheduler: Scheduler, *, keys: Any, tasks: Any, **kwargs: Any) -> None:
        """Called by Dask once each task is in a span, before the first transition."""
        new, self._new = self._new, set()
        if not self._submissions:
            return
        submission = _current.get()
        for key in tasks:
            life = self._living[key]
            if key in new:
                self._request(life, submission.spans[key], is_new=True)
            elif key in keys:
                self._request(life, submission.around)

    def _request(self, life: Life, ids: Ids, *, is_new: bool = False) -> None:
        self._learn(ids)
        if is_new:
            life.requested = ids
        owner = life.task.group.span_id
        if not ids and self._scheduler.extensions["spans"].spans[owner].name == ("default",):
            ids = (owner,)
        if is_new and owner not in ids[-1:]:
            self.misplaced.append(f"{life.task.key} of {ids} is in {owner}")
        for span_id in ids[-1:]:
            life.requesting.add(span_id)
            if span_id != owner:
                self._claim(life, span_id, owner)

    def _claim(self, life: Life, requesting: str, owner: str) -> None:
        task = life.task
        if task.state == "memory":
            self.elsewhere[requesting, owner]["completed"] += 1
            return
        life.followers.add(requesting)
        if task.state == "erred":
            self.elsewhere[requesting, owner]["erred" if task.exception_blame is task else "upstream_failed"] += 1
            for failed in (self.must_fail, self.may_fail, self.unclean):
                failed.add(requesting)
        else:
            self.elsewhere.setdefault((requesting, owner), Counter())
            life.claims.add(requesting)

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by Dask for each event."""
        if topic == TOPIC:
            made = SpanMade.from_event(msg)
            assert made
            task = self._scheduler.tasks.get(made.key)
            worker = task.processing_on if task and task.run_id == made.run_id else None
            self.reports.append(Report(made, worker and worker.address))
            self._reported.add((made.key, made.run_id))
        if topic == "scheduler" and msg.get("action") == "update-graph":
            around = "".join(_current.get().around[-1:])
            self.graphs_of[around] += 1
            if msg["status"] == "OK":
                return
            self.graphs[around][msg["status"]] += 1
            self.unclean.add(around)
            if msg["status"] == "error":
                self.must_fail.add(around)
                self.may_fail.add(around)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Called by Dask."""
        self.left.add(worker)

    # What came of it

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Called by Dask."""
        task = self._scheduler.tasks[key]
        life = self._living.get(key)
        if life is None:
            return  # Dask may report a transition within another one twice
        if finish == "waiting" and kwargs["stimulus_id"].startswith("stimulus-retry") and not life.claims:
            life.claims = set(life.followers)  # a person has it run again: once more for all of them
        if life.state != finish:
            if finish == "memory" and start != "memory":
                life.has_completed = True
                self._ended(life, "completed", by_worker=start == "processing")
            elif finish == "erred":
                # The scheduler's own errors, such as ``KilledWorker``, have no text.
                by_worker = start == "processing" and task.exception_text is not None
                self._failed(life, "erred" if task.exception_blame is task else "upstream_failed", by_worker=by_worker)
            elif start in _UNFINISHED and finish in ("released", "forgotten") and _is_given_up(task):
                self.unclean |= life.requesting | {task.group.span_id}
                life.claims.clear()
        life.state = finish
        if finish == "forgotten":
            del self._living[key]

    def _failed(self, life: Life, outcome: str, *, by_worker: bool) -> None:
        group = life.task.group
        if outcome == "erred" and not (by_worker and self._has_span(life.task)):
            self.erred[group].append(str(life.task.key))
        failed = life.claims | {group.span_id}  # so every failure is some root's
        self.must_fail |= failed
        self.may_fail |= failed | life.requesting
        self.unclean |= failed | life.requesting
        self._ended(life, outcome, by_worker=by_worker)

    def _has_span(self, task: Any) -> bool:
        return (task.key, task.run_id) in self._reported

    def _ended(self, life: Life, outcome: str, *, by_worker: bool) -> None:
        task = life.task
        self.outcomes[task.group][outcome] += 1
        if by_worker and outcome != "upstream_failed":
            self.runs[str(task.key), task.run_id] = outcome, task.group
            self.with_span[task.group][outcome] += self._has_span(task)
        for span_id in life.claims:
            self.elsewhere[span_id, life.task.group.span_id][outcome] += 1
        life.claims.clear()


def _is_given_up(task: Any) -> bool:
    """Whether nobody wants a task that was released; what is blamed on another one is on its way to erred."""
    return not (task.who_wants or task.waiters or task.exception_blame)
