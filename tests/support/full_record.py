"""Everything that happens on a scheduler, kept: what oracles are computed from, by the definitions alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distributed.diagnostics.plugin import SchedulerPlugin

__all__ = ["Arrival", "Cut", "Event", "FullRecord", "Move", "Swept", "WorkerChange"]


class Arrival(NamedTuple):
    """A graph has been taken in; its tasks have not moved yet."""

    at: float
    stimulus: str
    received: float
    #: Of its tasks.
    roots: frozenset[str]


class Move(NamedTuple):
    """A task has changed its state, or only seems to: then both states are equal."""

    at: float
    #: Another one of the same key is another one.
    task: int
    key: str
    start: str
    finish: str
    stimulus: str
    #: Id of the outermost span, id of the span and name of the group; empty for data without a span.
    root: str = ""
    span: str = ""
    group: str = ""
    #: What the worker reported of the run, and by how much its clock is to be corrected.
    startstops: Sequence[Mapping[str, Any]] = ()
    offset: float = 0.0
    worker: str = ""
    thread: int | None = None
    #: Where it is sent to, and whether an input was not there.
    sent_to: str = ""
    lacks_input: bool = False
    #: Whether anybody needs the result, and whether there was one before.
    is_needed: bool = True
    had_result: bool = False


class WorkerChange(NamedTuple):
    """A worker ``joined`` or ``left``, changed its ``status``, or a task ``seceded`` on it or was ``stolen`` by it."""

    at: float
    what: str
    worker: str
    threads: int = 0
    status: str = ""
    task: int = 0


class Swept(NamedTuple):
    """A sweep has looked at everything."""

    at: float


class Cut(NamedTuple):
    """The segment of a root was cut, and with it its lap."""

    at: float
    root: str


Event = Arrival | Move | WorkerChange | Swept | Cut


#: When the graph came that is being taken in.
_came: ContextVar[float] = ContextVar("came")


@dataclass
class _Life:
    """Of a task, from when it is seen first until it is forgotten."""

    number: int
    root: str
    span: str
    group: str


@dataclass
class FullRecord(SchedulerPlugin):  # type: ignore[misc]
    """Notes what hooks tell, and besides, secession and stealing, of which no hook tells.

    Parameters
    ----------
    now
        The clock.
    before
        The same where the bridge has not read it yet.
    """

    scheduler: Any
    now: Callable[[], float]
    before: Callable[[], float]
    events: list[Event] = field(default_factory=list)
    name = "full record"

    def __post_init__(self) -> None:
        self._lives: dict[Any, _Life] = {}
        self._numbers = 0
        self._handlers: dict[str, Any] = {}
        handlers = self.scheduler.stream_handlers
        taps = {"long-running": self._seceded, "steal-response": self._stolen, "update-graph": self._received}
        for name, tap in taps.items():
            self._handlers[name] = handlers[name]
            handlers[name] = tap
        for worker in self.scheduler.workers:
            self.add_worker(self.scheduler, worker)

    async def _received(self, *args: Any, **message: Any) -> Any:
        _came.set(self.now())
        return await self._handlers["update-graph"](*args, **message)

    def update_graph(self, scheduler: Any, *, tasks: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Called by Dask once each task is in a span, before the first transition."""
        roots = frozenset(filter(None, (self._life(key).root for key in tasks)))
        self.events.append(Arrival(self.now(), stimulus_id, _came.get(), roots))

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **details: Any) -> None:
        """Called by Dask."""
        task = self.scheduler.tasks[key]
        life = self._life(key)
        target = task.processing_on if finish == "processing" else None
        self.events.append(
            Move(
                self.now(), life.number, str(key), start, finish, stimulus_id, life.root, life.span, life.group,
                startstops=tuple(details.get("startstops") or ()),
                worker=details.get("worker") or "",
                thread=details.get("thread"),
                sent_to=target.address if target else "",
                lacks_input=any(target and target not in (each.who_has or ()) for each in task.dependencies),
                is_needed=bool(task.who_wants or task.waiters),
                had_result=task.type is not None,
            )
        )  # fmt: skip
        if finish == "forgotten":
            del self._lives[key]

    def _life(self, key: Any) -> _Life:
        if key not in self._lives:
            group = self.scheduler.tasks[key].group
            top = self.scheduler.extensions["spans"].spans.get(group.span_id)
            while top and top.parent:
                top = top.parent
            self._numbers += 1
            self._lives[key] = _Life(self._numbers, top.id if top else "", group.span_id or "", str(group.name))
        return self._lives[key]

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Called by Dask."""
        state = scheduler.workers[worker]
        self._change("joined", worker, threads=state.nthreads, status=state.status.name)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Called by Dask."""

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by Dask for each event."""
        action = msg.get("action") if isinstance(msg, dict) else None
        if action == "worker-status-change":
            self._change("status", topic, status=msg["status"])
        elif action == "remove-worker" and topic == "all":  # the hook comes after all transitions
            self._change("left", msg["worker"])

    def _change(self, what: str, worker: str, **details: Any) -> None:
        self.events.append(WorkerChange(self.now(), what, worker, **details))

    def _seceded(self, **message: Any) -> Any:
        task, number = self.scheduler.tasks.get(message["key"]), len(self.events)
        before = _is_long_running(task)
        answer = self._handlers["long-running"](**message)  # which then sends tasks from the queue
        if task and not before and _is_long_running(task):
            change = WorkerChange(
                self.before(), "seceded", task.processing_on.address, task=self._life(task.key).number
            )
            self.events.insert(number, change)
        return answer

    def _stolen(self, **message: Any) -> Any:
        task = self.scheduler.tasks.get(message["key"])
        before, number = task.processing_on if task else None, len(self.events)
        answer = self._handlers["steal-response"](**message)
        # It may have been rescheduled instead, which the hook tells.
        after = task.processing_on if task and len(self.events) == number else None
        if before and after and after is not before:
            self._change("stolen", after.address, task=self._life(task.key).number)
        return answer


def _is_long_running(task: Any) -> bool:
    return bool(task and task.processing_on and task in task.processing_on.long_running)
