"""The life of the bridge on a scheduler: start, the rhythm of sweeps, and shutdown.

When the scheduler closes (SIGTERM, SIGINT, ``Scheduler.close``), the bridge requests the metrics that workers still
owe, closes all segments, and gives the export threads what is left of ``otel.shutdown-timeout``, but for what Dask and
the interpreter need to end.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import dask
from distributed.scheduler import heartbeat_interval

from ..diagnosis.evidence import ClusterEvidence
from ..metrics.series import MetricSettings
from ..safety import Safety, log
from ..spantree.ledger import OUTLIER_SECONDS
from ..spantree.lifecycle import Progress, SpanTree, open_runs
from ..spantree.records import Record
from ..spantree.to_records import Level, SpanTreeSettings
from ..threads import HURRY, in_thread
from .cluster import ClusterMetrics, Delay, Departures
from .compat import can_forget, can_judge, can_split
from .evidence import Evidence, Mark
from .forgetting import Forgetting, LateMetrics, memory_of
from .inbox import FailedRunTap, HeartbeatTap, Inbox
from .pace import Clock
from .run_times import RunTimesHooks
from .split_groups import splitter_of
from .submissions import Submissions
from .sweep import Output, Sweep
from .task_groups import TaskGroupReader
from .task_parents import TaskParents
from .worker_plugin import WorkerPluginHandout

__all__ = ["BridgeSettings", "SchedulerBridge"]

#: Seconds of the timeout for what follows, at most a fifth: Dask's own closing, and the interpreter's exit. That takes
#: 0.2 to 0.3 s of CPU time, nearly all of it also without the bridge: 3 s on a machine where it gets a tenth of a core.
FOR_EXIT = 2.0
#: Seconds that closing may take when the interpreter exits: Dask gives itself 10 s, of which workers may take 4.
AT_EXIT = 4.0
#: Seconds to wait for what usually takes a moment.
MOMENT = 0.2
#: Workers of which metrics are requested at a time.
ASKED_AT_A_TIME = 100
#: The part of the time that sweeps may take, and by how many times the interval is longer then at most.
MAX_SHARE = 1 / 300
MAX_STRETCH = 5
#: Why a bridge ends that takes nothing back from workers.
_CLOSES, _LOOP_ENDS = "the scheduler closes", "the event loop ends"
#: Open roots in the status.
MAX_ROOTS = 100
#: The clock of all bridges of this process: the system's clock is the same for all.
CLOCK = Clock()


@dataclass(frozen=True)
class BridgeSettings:
    """Settings of the bridge; times in seconds."""

    sweep_interval: float = 1.0
    shutdown_timeout: float = 10.0
    #: Names of Dask annotations that may be shown.
    annotations: tuple[str, ...] = ()
    #: Whether each task counts in the span in which it was requested, and whether Dask may show that span's tags.
    split_groups: bool = True
    #: What takes at least so long to be taken in is a phase.
    phase_threshold: float = 0.05
    tags_in_group_names: bool = True
    #: Whether roots have waterfalls, critical paths and verdicts.
    verdicts: bool = True
    #: Whether all workers get ``OTelWorkerPlugin``.
    gives_worker_plugin: bool = False
    #: How long after its end a root is forgotten; None: never.
    forget_spans: float | None = None
    #: Names of what ``otel.capture`` excludes.
    hidden: tuple[str, ...] = ()
    span_tree: SpanTreeSettings = field(default_factory=SpanTreeSettings)
    metrics: MetricSettings = field(default_factory=MetricSettings)


class SchedulerBridge:
    """What runs on one scheduler between start and close.

    Parameters
    ----------
    is_registered
        Whether the scheduler still has the plugin.
    stopped
        Called once, when the bridge listens to nothing any more.
    """

    def __init__(
        self,
        scheduler: Any,
        safety: Safety,
        settings: BridgeSettings,
        output: Output,
        *,
        is_registered: Callable[[], bool],
        stopped: Callable[[SchedulerBridge], None],
    ) -> None:
        self._is_registered = is_registered
        self._stopped = stopped
        self._scheduler = scheduler
        self._settings = settings
        self.output = output
        self.safety = safety
        self.clock = CLOCK
        first_number = _first_number(scheduler)
        memory = memory_of(scheduler)
        self.span_tree = SpanTree(
            self.clock.now(), scheduler.total_nthreads, settings.span_tree, first_number, memory.ids
        )
        #: None if verdicts are off.
        self.run_times: RunTimesHooks | None = None
        self.evidence: Evidence | None = None
        self._delay = Delay(scheduler, safety)
        if settings.verdicts and can_judge():
            with safety.guard("verdict"):  # a bridge without them is better than none
                self._explain()
        self.inbox = Inbox(
            scheduler,
            self.clock,
            safety,
            first_number,
            slow_from=_slow_from(settings.span_tree),
            bounds=settings.metrics.task_bounds,
            on_task=self.run_times.make_task_hook() if self.run_times else None,
            on_task_failed=self.run_times.distrust if self.run_times else lambda: None,
        )
        splitter = splitter_of(scheduler) if can_split() else None
        spans = scheduler.extensions["spans"].spans
        self.submissions = Submissions(
            scheduler,
            self.inbox,
            settings.annotations,
            splitter,
            TaskParents(spans, self.span_tree, splitter, output.sampler, self.clock),
            splits=settings.split_groups,
            shows_tags=settings.tags_in_group_names,
            phase_threshold=settings.phase_threshold,
            run_times=self.run_times,
            clock=self.clock,
            safety=safety,
        )
        self.departures = Departures(scheduler.workers)
        self.cluster_metrics = ClusterMetrics(
            scheduler, self.span_tree, settings.metrics, self._delay, output.exporters, self.clock, safety
        )
        groups = TaskGroupReader(scheduler.task_groups, self.clock)
        self._forgetting: Forgetting | None = None
        if settings.forget_spans is not None and can_forget():
            self._forgetting = Forgetting(
                scheduler, self.span_tree, self.inbox, groups.may_change, output, settings.forget_spans, safety
            )
        self.sweep = Sweep(
            scheduler,
            self.span_tree,
            self.inbox,
            groups,
            self.cluster_metrics,
            self.run_times,
            self.evidence,
            self._forgetting,
            output,
            self.clock,
            safety,
        )
        self.sweep.read_baseline()
        self._closing: asyncio.Task[None] | None = None
        #: Empty while it is on.
        self.why_ended = ""
        self._loop_ends = False
        # Last: what comes before may fail.
        self._taps: tuple[Any, ...] = (
            *([LateMetrics(scheduler.extensions["spans"], memory, safety)] if self._forgetting else []),
            HeartbeatTap(scheduler.extensions["spans"], self.inbox, safety),
            FailedRunTap(scheduler, self.inbox, safety),
            self.submissions,
            self._delay,
            *([self.run_times] if self.run_times else []),
        )
        for tap in self._taps:
            tap.install()
        self._sweeping = asyncio.create_task(self._sweep_regularly(), name="dask-otel sweep")
        self._handout: WorkerPluginHandout | None = None
        if settings.gives_worker_plugin:
            self._handout = WorkerPluginHandout(scheduler, settings.hidden, safety)
            self._handing_out = asyncio.create_task(self._handout.hand_out(), name="dask-otel worker plugin")

    def status(self) -> dict[str, Any]:
        """Return the open roots and the cost of the last sweep; call it on the event loop."""
        return {
            "open_segments": len(self.span_tree.forest.open),
            "open": list(self.open_runs()),
            "sweep": self.sweep.cost,
            "forgotten": self._forgetting.status() if self._forgetting else None,
        }

    def open_runs(self, trace_id: int | None = None) -> Iterator[Progress]:
        """Describe the open roots, or those of one trace, the oldest first."""
        return open_runs(self.span_tree.forest, MAX_ROOTS, self.clock.offset, trace_id)

    def open_records(self, trace_id: int) -> Iterator[tuple[Record, bool]]:
        """Describe the open runs of a trace as if they ended now, see ``SpanTree.open_records``."""
        return self.span_tree.open_records(trace_id, self.clock.now(), self.clock.offset)

    def close(self, why: str = _CLOSES) -> asyncio.Task[None]:
        """Stop, wait for the workers' last metrics, send everything; always the same task."""
        if self._closing is None:
            self.why_ended = why
            self._closing = asyncio.create_task(self._close(), name="dask-otel close")
        return self._closing

    def _explain(self) -> None:
        """Find out from now on why roots take as long as they do."""
        evidence = Evidence(self._scheduler, self._delay, self.safety)
        self.run_times = RunTimesHooks(self._scheduler, self.clock, self.safety)
        self.evidence = evidence
        self.span_tree.lap_start = self.run_times.lap_start
        self.span_tree.explaining = partial(self.safety.guard, "verdict")

        def mark() -> Mark | None:
            with self.safety.guard("evidence"):
                return evidence.mark()
            return None

        def since(mark: Mark | None) -> ClusterEvidence:
            with self.safety.guard("evidence"):
                if mark:
                    return evidence.since(mark)
            return ClusterEvidence()

        self.span_tree.forest.mark, self.span_tree.evidence_since = mark, since

    def hand_over(self, heir: Output | None) -> asyncio.Task[None]:
        """End now, between two sweeps, so that another bridge can count what follows; what is counted is sent.

        Parameters
        ----------
        heir
            Gets what cannot be sent: the earlier endpoint may have been wrong.
        """
        with self.safety.guard("closing"):
            self.sweep.count_until_now()
        with self.safety.guard("closing"):
            if heir:
                self.output.leave_to(heir)
        self.detach()
        closing = self.close("another registration has taken its place")
        self._sweeping.cancel()
        return closing

    def detach(self) -> None:
        """Stop listening to the scheduler."""
        for tap in reversed(self._taps):  # one may lie on top of another
            with self.safety.guard("closing"):
                tap.remove()

    async def _close(self) -> None:
        begin, timeout = perf_counter(), self._timeout()
        deadline = begin + timeout
        for step in (partial(self._await_metrics, begin + timeout / 2), self.sweep.close):
            with self.safety.guard("closing"):
                try:
                    await step()
                except asyncio.CancelledError:  # somebody is in a hurry: a second Ctrl-C
                    deadline = min(deadline, perf_counter() + HURRY)
        # Only now: cancelled in the middle of a sweep, it would lose what it had taken.
        if not self._loop_ends:
            self._sweeping.cancel()
        self.detach()
        if self._handout and self.why_ended not in (_CLOSES, _LOOP_ENDS):  # else the workers close, too
            with self.safety.guard("worker plugin"), suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._handout.take_back(), HURRY)
        with self.safety.guard("closing"):
            self._stopped(self)
        with self.safety.guard("closing"):
            if not await in_thread(self.output.close_spans, max(0.0, deadline - perf_counter())):
                deadline = min(deadline, perf_counter() + HURRY / 4)  # it has waited for that long
        with self.safety.guard("closing"):
            await self.sweep.send_last_metrics()
        with self.safety.guard("closing"):
            await in_thread(self.output.close_metrics, max(0.0, deadline - perf_counter()))

    def _timeout(self) -> float:
        """Seconds from now to the end of closing."""
        timeout = self._settings.shutdown_timeout
        timeout -= min(FOR_EXIT, timeout / 5)
        return timeout if threading.main_thread().is_alive() else min(timeout, AT_EXIT)

    async def _sweep_regularly(self) -> None:
        try:
            while not (why := self._why_to_end()):
                await asyncio.sleep(self._pause())
                with self.safety.guard("sweep"):
                    await self.sweep.sweep()
                self.safety.check_streaks()
        except asyncio.CancelledError:
            if self._closing is None:  # the event loop ends without closing the scheduler; it still waits for this
                self._loop_ends = True
                await asyncio.shield(self.close(_LOOP_ENDS))
            raise
        log.info("dask-otel stops: %s", why)
        self.close(why)

    def _pause(self) -> float:
        """Seconds to the next sweep: more if the last one held the event loop for long, so that sweeps cost little."""
        interval = self._settings.sweep_interval
        held = self.sweep.cost.get("seconds", 0.0)
        return min(max(interval, held / MAX_SHARE), MAX_STRETCH * interval)

    def _why_to_end(self) -> str:
        if not self._is_registered():
            return "its plugin is no longer registered with the scheduler"
        return "it has failed too often in a row, see the log" if self.safety.gave_up else ""

    async def _await_metrics(self, latest: float) -> None:
        """Request the metrics that workers owe; if a worker does not answer, wait for its next two heartbeats.

        Parameters
        ----------
        latest
            When to stop waiting; a sweep comes first, which takes as long as it needs.
        """
        if self.sweep.counted_until is not None:  # another bridge gets them
            return
        await self.sweep.sweep()
        owing = dict.fromkeys(self.span_tree.owing(self.clock.now()), 2)
        if not owing:
            return
        deadline = min(latest, perf_counter() + self._wait_for_metrics())
        delivered = asyncio.Event()

        def done(worker: str) -> None:
            owing.pop(worker, None)
            if not owing:
                delivered.set()

        def on_worker_event(kind: str, worker: str) -> None:
            if worker not in owing or kind == "joined":
                return
            owing[worker] -= 1
            # The first heartbeat may have been made before the last task ended.
            if kind == "left" or not owing[worker]:
                done(worker)

        async def ask(worker: str) -> None:
            async with at_a_time:
                if worker in owing and await ask_for_heartbeats(self._scheduler, worker):
                    done(worker)

        self.inbox.on_worker_event = on_worker_event
        at_a_time = asyncio.Semaphore(ASKED_AT_A_TIME)
        asked = [asyncio.create_task(ask(worker)) for worker in owing]
        try:
            await asyncio.wait_for(delivered.wait(), max(0.0, deadline - perf_counter()))
            # A heartbeat arrives before its worker gets the answer, without which it logs that the scheduler is gone.
            await asyncio.wait(asked, timeout=MOMENT)
        except asyncio.TimeoutError:
            pass
        finally:
            self.inbox.on_worker_event = None
            for each in asked:
                each.cancel()
            await asyncio.wait(asked, timeout=MOMENT)

    def _wait_for_metrics(self) -> float:
        """Seconds in which workers may deliver their metrics."""
        if self.output.is_away:  # it is not worth a wait: most likely they would go nowhere
            return MOMENT
        # A worker's first heartbeat comes after 1 s, whatever the interval.
        interval: float = heartbeat_interval(len(self._scheduler.workers))
        return 1.5 * max(1.0, interval)


def _slow_from(settings: SpanTreeSettings) -> float:
    """Seconds; no shorter run gets a span because it was slow."""
    if settings.level < Level.TASKS:
        return inf
    return -1.0 if settings.slowest_tasks else OUTLIER_SECONDS


#: How many bridges a scheduler has had.
_generations: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _first_number(scheduler: Any) -> int:
    """Where segment numbers begin for spans that an earlier bridge may have sent: no id may repeat."""
    earlier = _generations.get(scheduler, 0)
    _generations[scheduler] = earlier + 1
    return earlier * 1_000_000


#: Dask has no message that requests a heartbeat, so a worker runs this function, as with ``Client.run``. It is made of
#: its source and of Python's own names: a worker need not have this package, nor the same Python. Two heartbeats, since
#: one that is being sent may have been made before the last task ended; none while a worker leaves, which would be an
#: error. The function's name is in the worker's log, at level INFO.
_SOURCE = """
async def dask_otel_asks_for_heartbeat(dask_worker):
    for _ in range(2):
        if dask_worker.status.name in ("running", "paused"):
            await dask_worker.heartbeat()
"""


class _Function:
    """Pickles as a call of ``eval``."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"(lambda names: exec({_SOURCE!r}, names) or names['dask_otel_asks_for_heartbeat'])({{}})",)


_FUNCTION = pickle.dumps(_Function(), protocol=4)


async def ask_for_heartbeats(scheduler: Any, worker: str) -> bool:
    """Have a worker send its fine metrics; return whether it has. Takes as long as the worker needs."""
    if "run" in dask.config.get("distributed.worker.blocked-handlers", ()):  # it would log an error
        return False
    try:
        response = await scheduler.rpc(worker).run(function=_FUNCTION)
    except asyncio.CancelledError:
        raise
    except Exception:  # noqa: BLE001 -- it is gone, or takes no functions (distributed.worker.blocked-handlers)
        return False
    return isinstance(response, dict) and response.get("status") == "OK"
