"""Picks the runs of tasks that get a span of their own.

What the hooks latch: facts that would have vanished from the scheduler's state by the next sweep.

The transition hook runs four or five times for every task, so it does next to nothing.

Fine performance metrics: they reach the scheduler with heartbeats, added up per span there and then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any

from distributed.metrics import time

from ..safety import Safety
from ..spantree.counts import FirstError, Intervals
from ..spantree.events import MAX_ERRED, Change, Metrics, PickedRun, Picks, TaskError, latest_run
from ..spantree.timing import Heartbeats
from .compat import wrap
from .outcomes import UNFINISHED, error_of, outcome_of_release
from .submissions import Claims

__all__ = ["HeartbeatTap", "Inbox", "RunPicker"]

#: Characters kept of a traceback: its end, where the error was raised.
MAX_TRACEBACK = 1900


class RunPicker:
    """Describes runs.

    Parameters
    ----------
    workers
        ``Scheduler.workers``
    first_failure
        Where the numbers of failures without a run begin; an earlier watch of the scheduler had others.
    """

    def __init__(self, workers: Mapping[str, Any], first_failure: int) -> None:
        self._workers = workers
        self._failures = first_failure

    def slow(self, key: Any, task: Any, change: Change, seconds: float, details: Mapping[str, Any]) -> None:
        """Pick a run that is slower than those that its group has shown."""
        change.picks = change.picks or Picks()
        change.picks.add_slow(self._run(key, task, details, seconds))
        change.slow = max(change.slow, change.picks.threshold)

    def erred(self, key: Any, task: Any, change: Change, error: FirstError, details: Mapping[str, Any]) -> None:
        """Pick a failure."""
        change.picks = change.picks or Picks()
        if len(change.picks.erred) < MAX_ERRED:
            traceback = details.get("traceback_text") or ""
            if len(traceback) > MAX_TRACEBACK:
                traceback = "…" + traceback[-MAX_TRACEBACK:]
            run = self._run(key, task, details, 0.0)
            if not details.get("startstops"):
                # It failed without running, and may do so again under the same run_id: that of an earlier run, or none.
                self._failures += 1
                run = run._replace(run_id=-self._failures)
            change.picks.add_erred(run.described(TaskError(*error, traceback)))

    def _run(self, key: Any, task: Any, details: Mapping[str, Any], seconds: float) -> PickedRun:
        worker = details.get("worker")
        state = self._workers.get(worker) if worker else None
        return PickedRun(
            seconds,
            key,
            task.group.name,
            task.prefix.name,
            task.run_id,
            details.get("startstops") or _instant(time()),
            worker,
            state.name if state else None,
            details.get("thread"),
            details.get("typename"),
            details.get("nbytes"),
        )


def _instant(now: float) -> Sequence[Mapping[str, Any]]:
    """What a worker would have said of a run that took no time."""
    return [{"action": "", "start": now, "stop": now}]


#: Stimuli by which a person asks for a task to run again.
_ASKED_FOR = ("update-graph", "stimulus-retry")
#: To let go of a task that is at rest changes no number.
_SETTLED, _LET_GO = ("memory", "erred", "released"), ("released", "forgotten")


class Inbox:
    """Changes by task group since the last sweep."""

    def __init__(
        self,
        scheduler: Any,
        safety: Safety,
        first_failure: int,
        *,
        picks_slow: bool = True,
        bounds: tuple[float, ...] = (),
    ) -> None:
        #: In which compute times are counted; what is told of them later, and what is looked up for each run.
        self.intervals = Intervals(bounds)
        self._ends = self.intervals.ends
        #: Whether the slowest runs of each group are picked.
        self.picks_slow = picks_slow
        #: Seconds above which a run is picked, until it is known what others of its group took; then by TaskGroup.
        self._slow = -1.0 if picks_slow else inf
        self._thresholds: dict[Any, float] = {}
        self._tasks: Mapping[Any, Any] = scheduler.tasks
        self._safety = safety
        self._runs = RunPicker(scheduler.workers, first_failure)
        self.claims = Claims()
        self._claimed = self.claims.keys
        #: By TaskGroup.
        self._changes: dict[Any, Change] = {}
        #: Changes that a sweep has left for a later one, of groups to which nothing has happened since.
        self._later: dict[Any, Change] = {}
        #: Groups of which tasks were forgotten; a set in order of insertion.
        self._forgotten: dict[Any, None] = {}
        #: Keys of tasks that had finished and run again because their results are gone.
        self._provisional: set[Any] = set()

    def touch(self, group: Any) -> Change:
        """Have the next sweep look at a group."""
        change = self._changes.get(group)
        if change is None:
            change = self._later.pop(group, None) if self._later else None
            if change is None:
                change = Change(time())
                change.slow = self._thresholds.get(group, self._slow)
            self._changes[group] = change
        return change

    def drain_forgotten(self) -> dict[Any, None]:
        """Hand over the groups of which tasks were forgotten."""
        forgotten, self._forgotten = self._forgotten, {}
        return forgotten

    def drain(self) -> dict[Any, Change]:
        """Hand over what was latched."""
        changes, self._changes = self._changes, {}
        self._thresholds = {}
        return changes

    def clock_set_back(self, seconds: float) -> None:
        """Move what was latched to the clock's new time."""
        for change in (*self._changes.values(), *self._later.values()):
            change.clock_set_back(seconds, time())

    def is_latched(self, group: Any) -> bool:
        """Whether anything was latched of a group since the last drain."""
        return group in self._changes

    def leave_for_later(self, group: Any, change: Change) -> None:
        """Keep a change that was handed over until something happens to its group again; there is no new one."""
        self._later[group] = change

    def take_all_left(self) -> dict[Any, Change]:
        """Hand over all changes that were left for later."""
        later, self._later = self._later, {}
        return later

    def take_left(self, groups: Iterable[Any]) -> dict[Any, Change]:
        """Hand over, of some groups, the changes that were left for later."""
        return {group: self._later.pop(group) for group in groups if group in self._later}

    @property
    def left(self) -> Collection[Any]:
        """Groups whose changes were left for later."""
        return self._later.keys()

    def raise_threshold(self, group: Any, seconds: float) -> None:
        """Pick no run of a group that took no longer, until the next drain: it would not have a span."""
        self._thresholds[group] = seconds
        change = self._changes.get(group)
        if change is not None:
            change.slow = max(change.slow, seconds)

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **details: Any) -> None:
        """Note a task's transition; ``details`` is what the worker said of the run."""
        # A guard would cost as much as all the rest.
        try:
            task = self._tasks[key]
            if start in _SETTLED and finish in _LET_GO and not self._claimed:
                if finish == "forgotten":  # perhaps the last one of its group
                    self._forgotten[task.group] = None
                return
            change = self._changes.get(task.group)
            if change is None:
                change = self.touch(task.group)
            outcome = None
            if finish == "memory":
                if start != "memory":
                    outcome = "completed"
                    change.active = True
                    change.completed += 1
                    self._ran(key, task, change, details)
                    if self._provisional and key in self._provisional:
                        self._settle_provisional(key, change, recomputed=True)
            elif finish == "processing":
                change.sent_to[task.processing_on.address] = None
                if not change.began:
                    change.began = time()
            elif finish == "waiting":
                if task.type is None:
                    change.active = True
                elif start == "released":
                    self._again(key, change, stimulus_id)
            elif finish == "released":
                if start != "memory" and start in UNFINISHED:
                    outcome = self._released(key, start, task, change, stimulus_id)
            elif finish == "erred":
                outcome = self._erred(key, start, task, change, details)
            if self._claimed and key in self._claimed:
                retry = finish == "waiting" and stimulus_id.startswith("stimulus-retry")
                self.claims.follow(key, finish, task, outcome, change, details, asked_again=retry)
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._safety.caught("transition hook", error)

    def _ran(self, key: Any, task: Any, change: Change, details: Mapping[str, Any]) -> None:
        """Note when, where and for how long a task ran, and what came of it."""
        seconds = 0.0
        runs = details.get("startstops") or ()
        for run in runs if len(runs) < 2 else latest_run(runs):  # a call less
            start, stop = run["start"], run["stop"]
            if start < change.run_start or not change.run_start:
                change.run_start = start
            if stop > change.run_stop:
                change.run_stop = stop
            if run["action"] == "compute":
                seconds = stop - start
                number = bisect_left(self._ends, seconds)
                intervals = change.intervals
                intervals[number] = intervals[number] + 1 if number in intervals else 1
        worker = details.get("worker")
        if worker:
            workers = change.workers
            workers[worker] = workers[worker] + seconds if worker in workers else seconds
        type_ = details.get("typename")
        if type_:
            types = change.types
            types[type_] = types[type_] + 1 if type_ in types else 1
            if seconds > change.slow:
                self._runs.slow(key, task, change, seconds, details)

    def _again(self, key: Any, change: Change, stimulus_id: str) -> None:
        """A task that had finished is to run again."""
        if stimulus_id.startswith(_ASKED_FOR):
            change.active = True
            change.count("recomputed")
        else:  # because a worker left
            self._provisional.add(key)
            change.provisional += 1

    def _erred(self, key: Any, start: str, task: Any, change: Change, details: Mapping[str, Any]) -> str | None:
        blame = task.exception_blame
        if blame is task and start in ("waiting", "queued", "no-worker") and not details:
            # The task erred on its way to a worker: it has been counted in a transition inside this one.
            return None
        change.active = True
        change.last_event = time()
        if blame is task:
            outcome = "erred"
            error = FirstError(*error_of(blame))
            self._ran(key, task, change, details)
            for run in latest_run(details.get("startstops")):
                if run["action"] == "compute":
                    seconds = run["stop"] - run["start"]
                    change.run_failed(error.type, bisect_left(self._ends, seconds), seconds)
            self._runs.erred(key, task, change, error, details)
        else:  # it depends on a task that erred
            outcome = "upstream_failed"
            error = change.error or FirstError(*error_of(blame))  # read once for all that depend on it
        change.count(outcome)
        if not change.error and not self.claims.is_foreign(key):
            change.error = error
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
            change.last_event = time()
            change.count(outcome)
        return outcome

    def _settle_provisional(self, key: Any, change: Change, *, recomputed: bool) -> None:
        self._provisional.discard(key)
        change.provisional -= 1
        if recomputed:
            change.count("recomputed")


class HeartbeatTap:
    """Listens in on the spans extension's ``heartbeat``: Dask's own runs first, untouched, then a note of ours.

    Parameters
    ----------
    extension
        The scheduler's ``SpansSchedulerExtension``.
    heartbeats
        To be told of each heartbeat.
    """

    def __init__(self, extension: Any, heartbeats: Heartbeats, safety: Safety) -> None:
        self._extension = extension
        self._heartbeats = heartbeats
        self._safety = safety
        self._metrics: dict[str, Metrics] = {}
        #: Called after each heartbeat, with the worker's address.
        self.on_heartbeat: Callable[[str], None] | None = None
        self._listening = False
        self._original = extension.heartbeat
        self._undo: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._original = self._extension.heartbeat
        self._undo = wrap(self._extension, "heartbeat", self._heartbeat)

    def remove(self) -> None:
        """Stop listening, and give the extension its own method back, unless somebody wrapped it after us."""
        self._listening = False
        self._undo()

    def drain(self) -> dict[str, Metrics]:
        """Hand over what came in, by span id."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _heartbeat(self, ws: Any, data: dict[tuple[Any, ...], float]) -> None:
        self._original(ws, data)
        if not self._listening:
            return
        with self._safety.guard("heartbeat hook"):
            self._heartbeats.beat(ws.address, time())
            metrics: Metrics = {}
            last = None
            for (context, span_id, *rest), value in data.items():
                if span_id != last:  # those of a span come one after the other, mostly
                    metrics, last = self._metrics.setdefault(span_id, {}), span_id
                key = (context, *rest)
                metrics[key] = metrics.get(key, 0) + value
            if self.on_heartbeat:
                self.on_heartbeat(ws.address)
