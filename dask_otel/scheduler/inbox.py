"""The inbox: everything that hooks, heartbeats and worker events report between two sweeps.

They only append. A sweep takes all of it at one moment with ``Inbox.take``, and nothing here changes what was taken.
What is kept would be gone from the scheduler's state by the next sweep: outcomes, errors, durations of runs.

The transition hook runs four or five times for every task, so it does as little as possible.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..messages import ACTION, SpanMade
from ..safety import Safety
from ..schema import MAX_ERRED, MAX_TRACEBACK, Metric
from ..spantree.counts import FirstError, Intervals
from ..spantree.events import Change, Claim, Graph, PickedRun, Picks, TaskError, latest_run
from .claims import Claims
from .compat import Tap
from .outcomes import ASKED_FOR, RETRY, UNFINISHED, error_of, outcome_of_release
from .pace import Clock

__all__ = ["NOBODY", "FailedRun", "FailedRunTap", "HeartbeatTap", "Inbox", "RequestedSpan", "Taken", "WorkerEvent"]

#: A transition from a state of rest to one of these changes no number.
_AT_REST, _LET_GO = frozenset(("memory", "erred", "released")), frozenset(("released", "forgotten"))


#: Stands for the requested span if none was requested.
NOBODY = ""


class WorkerEvent(NamedTuple):
    """A worker joined the cluster or left it."""

    #: ``joined`` or ``left``.
    kind: str
    worker: str
    #: Of a worker that left: how many heartbeats it had sent since the last sweep.
    heartbeats: int = 0


class FailedRun(NamedTuple):
    """A failed run as its worker reported it; names of fields as in ``TaskState``."""

    key: Any
    exception: Any
    exception_text: str | None


class RequestedSpan(NamedTuple):
    """A span as a submission names it, from the root down; Dask may not have made it."""

    tags: tuple[Any, ...]
    ids: tuple[str, ...]

    @property
    def id(self) -> str:
        """Id of the span."""
        return self.ids[-1]


class Taken(NamedTuple):
    """Everything that arrived between two sweeps."""

    #: What happened to the tasks of each ``TaskGroup``.
    changes: dict[Any, Change]
    #: ``TaskGroup``s of which tasks were forgotten; a set in order of insertion.
    forgotten: dict[Any, None]
    claims: list[Claim]
    graphs: list[Graph]
    #: Spans that submissions named, and when.
    requested: list[tuple[RequestedSpan, float]]
    #: Events about spans that workers have made, the first one of each parent; anybody can log such an event.
    spans_made: list[Mapping[str, Any]]
    workers: list[WorkerEvent]
    #: Number of heartbeats by worker, without workers that left since.
    heartbeats: dict[str, int]
    #: Fine metrics, to be summed; the key is Dask's: context, span id, and what else Dask puts in it.
    metrics: dict[tuple[Any, ...], list[float]]
    #: What only metrics count, by metric and value of its attribute.
    counts: Counter[tuple[Metric, Any]]


class Inbox:
    """Collects what happens until the next sweep.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    first_failure
        Where the numbers of failures without a run begin: an earlier bridge of the scheduler had others.
    slow_from
        Seconds; no shorter run gets a span because it was slow.
    bounds
        Bounds of the histogram of compute times, seconds.
    on_task, on_task_failed
        Called in the hook with the transition of each task that is not at rest, and if the former raises.
    """

    def __init__(
        self,
        scheduler: Any,
        clock: Clock,
        safety: Safety,
        first_failure: int = 0,
        *,
        slow_from: float = -1.0,
        bounds: tuple[float, ...] = (),
        on_task: Callable[..., None] | None = None,
        on_task_failed: Callable[[], None] = lambda: None,
    ) -> None:
        #: In which compute times are counted.
        self.intervals = Intervals(bounds)
        self._ends = self.intervals.ends
        self._slow_from = slow_from
        self._on_task, self._on_task_failed = on_task, on_task_failed
        self._tasks: Mapping[Any, Any] = scheduler.tasks
        self._workers: Mapping[str, Any] = scheduler.workers
        self._clock = clock
        self._safety = safety
        self._failures = first_failure
        self.claims = Claims(clock)
        self._claimed = self.claims.keys
        #: Keys of tasks that had finished and run again because their results are gone.
        self._provisional: set[Any] = set()
        #: Runs whose spans workers have made, while their tasks are processing: keys and numbers of runs.
        self._with_span: dict[Any, int] = {}
        #: What a worker reports of a failed run, while Dask processes it: a retry's transition does not have it.
        self.failed_run: FailedRun | None = None
        #: Called in the hook when a worker joins or leaves (``joined``, ``left``) or sends a ``heartbeat``.
        self.on_worker_event: Callable[[str, str], None] | None = None
        #: The hook of transitions has these two at hand, so they stay the same objects.
        self._changes: dict[Any, Change] = {}
        self._forgotten: dict[Any, None] = {}
        self._begin()

    def _begin(self) -> None:
        self._graphs: list[Graph] = []
        self._requested: dict[str, tuple[RequestedSpan, float]] = {}
        self._spans_made: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._worker_events: list[WorkerEvent] = []
        self._heartbeats: defaultdict[str, int] = defaultdict(int)
        self._metrics: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
        self._counts: Counter[tuple[Metric, Any]] = Counter()

    def take(self) -> Taken:
        """Return everything since the last call."""
        taken = Taken(
            self._changes.copy(),
            self._forgotten.copy(),
            self.claims.take(),
            self._graphs,
            list(self._requested.values()),
            list(self._spans_made.values()),
            self._worker_events,
            self._heartbeats,
            self._metrics,
            self._counts,
        )
        self._changes.clear()
        self._forgotten.clear()
        self._begin()
        return taken

    @property
    def with_span(self) -> Mapping[Any, int]:
        """Tasks that are processing and whose workers have made spans: keys, and numbers of their runs."""
        return self._with_span

    def take_over(self, with_span: Mapping[Any, int]) -> None:
        """Know of spans that were reported to an earlier bridge."""
        self._with_span.update(with_span)

    def has_change(self, group: Any) -> bool:
        """Whether anything has happened to a ``TaskGroup`` since the last ``take``."""
        return group in self._changes

    def spans_named(self) -> set[str]:
        """Return the ids of all spans of which something else has happened since the last ``take``, or may happen."""
        named = {str(key[1]) for key in self._metrics}
        named.update(graph.span_id for graph in self._graphs)
        for requested, _ in self._requested.values():
            named.update(requested.ids)
        named.update(str(span_id) for _, _, span_id, _ in self._spans_made)  # as ``SpanMade.parent_of`` has it
        named.update(self.claims.spans())
        return named

    # What hooks append

    def touch(self, group: Any) -> Change:
        """Have the next sweep read a ``TaskGroup``; return what has happened to it since the last one."""
        change = self._changes.get(group)
        if change is None:
            change = self._changes[group] = Change(self._clock.now())
            change.slow = self._slow_from
        return change

    def add_graph(self, graph: Graph) -> None:
        """Append what a submission contained for one span."""
        self._graphs.append(graph)

    def request(self, span: RequestedSpan, since: float) -> None:
        """Append a span that a submission named."""
        self._requested.setdefault(span.id, (span, since))

    def span_made(self, event: Mapping[str, Any]) -> None:
        """Append a span that a worker has made, as the worker reports it.

        The sweep reads the event, once for all spans with the same parent.
        """
        try:
            if event["action"] != ACTION:
                return
            key, run_id = event["key"], event["run-id"]
            task = self._tasks.get(key)
            if task is not None and task.run_id == run_id and task.state == "processing":
                self._with_span[key] = task.run_id
            self._spans_made.setdefault(SpanMade.parent_of(event), event)
        except (KeyError, TypeError):  # anybody can log anything
            pass
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._safety.caught("log_event hook", error)

    def count(self, metric: Metric, value: object = None) -> None:
        """Count one, for a metric with at most one attribute."""
        self._counts[metric, value] += 1

    def worker_joined(self, worker: str) -> None:
        """Append that a worker joined."""
        self._worker_event(WorkerEvent("joined", worker))

    def worker_left(self, worker: str) -> None:
        """Append that a worker left. Takes the same time whatever is open: the sweep finds out whom that concerns."""
        self._worker_event(WorkerEvent("left", worker, self._heartbeats.pop(worker, 0)))

    def heartbeat(self, worker: str, data: Mapping[tuple[Any, ...], float]) -> None:
        """Append a heartbeat and the fine metrics in it.

        With many workers there are more heartbeats than tasks, so they are only counted, and their metrics collected
        under Dask's own keys: the sweep reads the clock and the keys, once for all heartbeats.
        """
        metrics = self._metrics
        for key, value in data.items():
            metrics[key].append(value)  # a sum would look the key up twice, and so take half as long again
        self._heartbeats[worker] += 1
        if self.on_worker_event:
            self.on_worker_event("heartbeat", worker)

    def _worker_event(self, event: WorkerEvent) -> None:
        self._worker_events.append(event)
        if self.on_worker_event:
            self.on_worker_event(event.kind, event.worker)

    def make_transition_hook(self) -> Callable[..., None]:
        """Make the function that appends a task's transition.

        What it needs are its variables, and what a worker reports of a run are its parameters: as a method with a
        dictionary of details, it took twice as long.
        """
        tasks, changes, forgotten = self._tasks, self._changes, self._forgotten
        claimed, provisional, with_span = self._claimed, self._provisional, self._with_span
        on_task = self._on_task

        def transition(
            key: Any,
            start: str,
            finish: str,
            *args: Any,
            stimulus_id: str,
            startstops: Any = None,
            worker: Any = None,
            typename: Any = None,
            thread: Any = None,
            nbytes: Any = None,
            type: Any = None,
            metadata: Any = None,
            status: Any = None,
            **details: Any,
        ) -> None:
            # A guard would cost as much as all the rest; and what happens to every task comes first, in few steps.
            try:
                if finish in _LET_GO and start in _AT_REST and not claimed:
                    if finish == "forgotten":  # perhaps the last one of its group
                        forgotten[tasks[key].group] = None
                    return
                task = tasks[key]
                if finish == "forgotten":
                    forgotten[task.group] = None
                if on_task:
                    try:
                        on_task(key, task, start, finish, stimulus_id, startstops, worker, thread)
                    except Exception as error:  # noqa: BLE001 -- the rest of the hook goes on
                        self._on_task_failed()
                        self._safety.caught("run times", error)
                try:
                    change = changes[task.group]
                except KeyError:
                    change = self.touch(task.group)
                outcome = None
                if finish == "memory":
                    if start != "memory":
                        outcome = "completed"
                        change.active = True
                        change.completed += 1
                        seconds = change.ran(startstops, worker, typename)
                        if seconds > change.slow and typename:
                            run = self._run(key, task, seconds, startstops, worker, thread, typename, nbytes)
                            if not startstops:  # its worker had the result already
                                run = self._placed_now(run)
                            change.slow = max(change.pick_slow(run), self._slow_from)
                        if provisional and key in provisional:
                            self._settle_provisional(key, change, recomputed=True)
                elif finish == "processing":
                    change.sent_to[task.processing_on.address] = None
                    if not change.began:
                        change.began = self._clock.now()
                elif finish == "waiting":
                    if task.type is None:
                        change.active = True
                    elif start == "released":
                        self._again(key, change, stimulus_id)
                elif finish == "released":
                    if start != "memory" and start in UNFINISHED:
                        outcome = self._released(key, start, task, change, stimulus_id)
                elif finish == "erred":
                    if task.exception_blame is task:
                        run = self._run(key, task, 0.0, startstops, worker, thread, typename, nbytes)
                        outcome = self._erred(start, task, change, run, details)
                    else:
                        outcome = self._upstream_failed(key, task, change)
                if with_span and start == "processing":
                    with_span.pop(key, None)
                if claimed and key in claimed:
                    retry = finish == "waiting" and stimulus_id.startswith(RETRY)
                    self.claims.follow(key, finish, task, outcome, startstops, asked_again=retry)
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self._safety.caught("transition hook", error)

        return transition

    def _again(self, key: Any, change: Change, stimulus_id: str) -> None:
        """Record that a task that had finished runs again."""
        if stimulus_id.startswith(ASKED_FOR):
            change.active = True
            change.count("recomputed")
        else:  # because a worker left
            self._provisional.add(key)
            change.provisional += 1

    def _erred(self, start: str, task: Any, change: Change, run: PickedRun, details: Mapping[str, Any]) -> str | None:
        if start in ("waiting", "queued", "no-worker") and not (run.startstops or details):
            # The task erred on its way to a worker: it has been counted in a transition inside this one.
            return None
        error = FirstError(*error_of(task))
        change.ran(run.startstops, run.worker, run.type)
        for each in latest_run(run.startstops):
            if each["action"] == "compute":
                seconds = each["stop"] - each["start"]
                change.run_failed(error.type, bisect_left(self._ends, seconds), seconds)
        # Else the worker is gone, and its span with it.
        is_reported = bool(run.startstops) or details.get("exception_text") is not None
        self._pick_erred(change, run, error, details.get("traceback_text") or "", is_reported=is_reported)
        return self._failed("erred", run.key, change, error)

    def _upstream_failed(self, key: Any, task: Any, change: Change) -> str:
        """Record that a task depends on one that erred, whose error is read once for all that depend on it."""
        error = change.error or FirstError(*error_of(task.exception_blame))
        return self._failed("upstream_failed", key, change, error)

    def _failed(self, outcome: str, key: Any, change: Change, error: FirstError) -> str:
        change.active = True
        change.last_event = self._clock.now()
        change.count(outcome)
        change.error = change.error or error
        if key in self._provisional:
            self._settle_provisional(key, change, recomputed=True)
        return outcome

    def _released(self, key: Any, start: str, task: Any, change: Change, stimulus_id: str) -> str | None:
        if key in self._provisional:
            self._settle_provisional(key, change, recomputed=False)
            return None
        outcome = outcome_of_release(task, start, stimulus_id)
        if outcome:
            change.active = True
            change.last_event = self._clock.now()
            change.count(outcome)
            if outcome == "lost" and task.has_lost_dependencies:
                change.lost_for_good += 1
            if outcome == "retried" and self.failed_run and self.failed_run.key == key and not change.retried_error:
                change.retried_error = FirstError(*error_of(self.failed_run))
        return outcome

    def _settle_provisional(self, key: Any, change: Change, *, recomputed: bool) -> None:
        self._provisional.discard(key)
        change.provisional -= 1
        if recomputed:
            change.count("recomputed")

    def _pick_erred(
        self, change: Change, run: PickedRun, error: FirstError, traceback: str, *, is_reported: bool
    ) -> None:
        change.picks = change.picks or Picks()
        if run.has_span and is_reported:
            change.erred_with_span += 1
            return
        if len(change.picks.erred) >= MAX_ERRED:
            return
        if len(traceback) > MAX_TRACEBACK:
            traceback = "…" + traceback[-MAX_TRACEBACK:]
        if not run.startstops:
            # It failed without running, and may do so again under the same run_id: that of an earlier run, or none.
            self._failures += 1
            run = self._placed_now(run)._replace(run_id=-self._failures)
        change.picks.add_erred(run.described(TaskError(*error, traceback)))

    def _placed_now(self, run: PickedRun) -> PickedRun:
        """Put a run of which the worker reported no times at this moment, for no time."""
        now = self._clock.now()
        return run._replace(startstops=[{"action": "", "start": now, "stop": now}], clock_offset=0.0)

    def _run(
        self,
        key: Any,
        task: Any,
        seconds: float,
        startstops: Any,
        worker: Any,
        thread: Any,
        type_: Any,
        nbytes: Any,
    ) -> PickedRun:
        state = self._workers.get(worker) if worker else None
        return PickedRun(
            seconds,
            key,
            task.group.name,
            task.prefix.name,
            task.run_id,
            startstops or (),
            worker,
            state.name if state else None,
            thread,
            type_,
            nbytes,
            self._clock.offset,
            bool(self._with_span) and self._with_span.get(key) == task.run_id,
        )


class FailedRunTap(Tap):
    """Wraps ``Scheduler.stimulus_task_erred``, which drops the exception of a run if its task is to be retried."""

    def __init__(self, scheduler: Any, inbox: Inbox, safety: Safety) -> None:
        super().__init__(scheduler, "stimulus_task_erred", safety)
        self._inbox = inbox

    def _called(self, *args: Any, **message: Any) -> Any:
        if self._listening:
            with self._safety.guard("task_erred hook"):
                self._inbox.failed_run = FailedRun(
                    message.get("key"), message.get("exception"), message.get("exception_text")
                )
        try:
            return self._original(*args, **message)
        finally:
            self._inbox.failed_run = None


class HeartbeatTap(Tap):
    """Wraps the ``heartbeat`` method of a scheduler's ``SpansSchedulerExtension``: Dask's own first, then the inbox.

    Fine performance metrics travel on heartbeats, and Dask adds them up per span there and then.
    """

    def __init__(self, extension: Any, inbox: Inbox, safety: Safety) -> None:
        super().__init__(extension, "heartbeat", safety)
        self._inbox = inbox

    def _called(self, ws: Any, data: dict[tuple[Any, ...], float]) -> None:
        self._original(ws, data)
        if self._listening:
            try:  # half the time of a guard
                self._inbox.heartbeat(ws.address, data)
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self._safety.caught("heartbeat hook", error)
