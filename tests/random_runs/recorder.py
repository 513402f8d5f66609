"""An account of its own, from Dask's hooks alone: how tasks ended, and for which spans."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

__all__ = ["NOBODY", "Recorder"]

#: Stands for the span that was asked for where none was.
NOBODY = ""
_UNFINISHED = ("waiting", "queued", "no-worker", "processing")
#: Id of the span around the graph that is being taken in.
_around: ContextVar[str] = ContextVar("around", default=NOBODY)


@dataclass(eq=False)
class Life:
    """A task, from when it is made until it is forgotten; another one may follow under its key."""

    task: Any
    #: Spans that asked for it.
    asked: set[str] = field(default_factory=set)
    #: Those of them that don't count it and that don't know yet what became of it.
    claims: set[str] = field(default_factory=set)
    is_observed: bool = False
    has_completed: bool = False
    #: Finish of its latest transition.
    state: str = ""


class Recorder(SchedulerPlugin):  # type: ignore[misc]
    """Notes every transition as it comes."""

    name = "recorder"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: Ids of each span that was asked for, from its root down.
        self.lineage: dict[str, tuple[str, ...]] = {}
        #: How tasks ended, by TaskGroup.
        self.outcomes: dict[Any, Counter[str]] = defaultdict(Counter)
        #: Keys of tasks that raised, by TaskGroup.
        self.erred: dict[Any, list[str]] = defaultdict(list)
        #: How tasks ended that one span asked for and another one counts, by their ids.
        self.elsewhere: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        #: Graphs that were not taken in: ``error`` or ``cancelled``, by span.
        self.graphs: dict[str, Counter[str]] = defaultdict(Counter)
        self.lives: list[Life] = []
        #: Spans that must be Error, that may be, and of which something did not come to its end.
        self.must_fail: set[str] = set()
        self.may_fail: set[str] = set()
        self.unclean: set[str] = set()
        #: By key. Tasks of Dask's with the same key are equal, whatever lies between them.
        self._living: dict[Any, Life] = {}
        self._observed: list[tuple[Life, str, bool]] = []
        self._handler = scheduler.stream_handlers["update-graph"]
        scheduler.stream_handlers["update-graph"] = self._update_graph
        self._observe = scheduler.extensions["spans"].observe_tasks
        scheduler.extensions["spans"].observe_tasks = self._observe_tasks

    # What was asked for

    async def _update_graph(self, *args: Any, **message: Any) -> None:
        annotation = (message.get("annotations") or {}).get("span")
        _around.set(self._learn(annotation) if annotation else NOBODY)
        await self._handler(*args, **message)

    def _observe_tasks(self, tasks: Any, *args: Any, **details: Any) -> Any:
        """Note the annotations before Dask overwrites them."""
        for task in tasks:
            life = self._life(task)
            is_new = not life.is_observed and task.state == "released"
            annotation = (task.annotations or {}).get("span") if is_new else None
            self._observed.append((life, self._learn(annotation) if annotation else NOBODY, is_new))
            life.is_observed = True
        return self._observe(tasks, *args, **details)

    def _life(self, task: Any) -> Life:
        life = self._living.get(task.key)
        if life is None or life.task is not task:
            life = self._living[task.key] = Life(task)
            self.lives.append(life)
        return life

    def _learn(self, annotation: Any) -> str:
        ids = tuple(annotation["ids"])
        for depth, span_id in enumerate(ids, 1):
            self.lineage[span_id] = ids[:depth]
        return str(ids[-1])

    def update_graph(self, scheduler: Scheduler, *, keys: Any, **kwargs: Any) -> None:
        """Called by Dask in the same tick as ``_observe_tasks``, before the first transition."""
        observed, self._observed = self._observed, []
        for life, asked, is_new in observed:
            if is_new or life.task.key in keys:
                holder = life.task.group.span_id
                asker = asked if is_new else _around.get()
                if asker == NOBODY and scheduler.extensions["spans"].spans[holder].name == ("default",):
                    asker = holder
                life.asked.add(asker)
                if asker not in (NOBODY, holder):
                    self._claim(life, asker, holder)

    def _claim(self, life: Life, asker: str, holder: str) -> None:
        task = life.task
        if task.state == "memory":
            self.elsewhere[asker, holder]["completed"] += 1
        elif task.state == "erred":
            self.elsewhere[asker, holder]["erred" if task.exception_blame is task else "upstream_failed"] += 1
            for failed in (self.must_fail, self.may_fail, self.unclean):
                failed.add(asker)
        else:
            self.elsewhere.setdefault((asker, holder), Counter())
            life.claims.add(asker)

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by Dask for each event."""
        if topic == "scheduler" and msg.get("action") == "update-graph" and msg["status"] != "OK":
            self.graphs[_around.get()][msg["status"]] += 1
            self.unclean.add(_around.get())
            if msg["status"] == "error":
                self.must_fail.add(_around.get())
                self.may_fail.add(_around.get())

    # What came of it

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Called by Dask."""
        task = self._scheduler.tasks[key]
        life = self._life(task)
        if finish == "waiting" and kwargs["stimulus_id"].startswith("stimulus-retry") and not life.claims:
            life.claims = life.asked - {NOBODY, task.group.span_id}  # a person has it run again: they hear of it again
        # Dask may report a transition within another one twice.
        if life.state != finish:
            if finish == "memory" and start != "memory":
                life.has_completed = True
                self._ended(life, "completed")
            elif finish == "erred":
                self._failed(life, "erred" if task.exception_blame is task else "upstream_failed")
            elif start in _UNFINISHED and finish in ("released", "forgotten") and _is_given_up(task):
                self.unclean |= life.asked
                life.claims.clear()
        life.state = finish
        if finish == "forgotten":
            del self._living[key]

    def _failed(self, life: Life, outcome: str) -> None:
        group = life.task.group
        if outcome == "erred":
            self.erred[group].append(str(life.task.key))
        if not (life.claims or group.span_id in life.asked):
            # Others were told what became of it when it ended first, or nobody has asked: every failure is some root's.
            life.claims = (life.asked - {NOBODY}) or {NOBODY}
        self.may_fail |= life.asked
        self.unclean |= life.asked
        self.must_fail |= life.claims | (life.asked & {group.span_id})
        self._ended(life, outcome)

    def _ended(self, life: Life, outcome: str) -> None:
        self.outcomes[life.task.group][outcome] += 1
        for asker in life.claims:
            self.elsewhere[asker, life.task.group.span_id][outcome] += 1
        life.claims.clear()


def _is_given_up(task: Any) -> bool:
    """Whether nobody wants a task that was released; what is blamed on another one is on its way to erred."""
    return not (task.who_wants or task.waiters or task.exception_blame)
