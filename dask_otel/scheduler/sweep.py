"""What the watch gives away, and to whom.

The sweep: the periodic pass over what is active, from latches and snapshots to records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol
from uuid import uuid4

from distributed.metrics import time

from ..metrics.snapshot import ExporterCounts, Snapshot
from ..safety import Safety, log
from ..spantree.events import NOBODY
from ..spantree.lifecycle import SpanTree
from ..spantree.records import PendingRecord, Record, SegmentRecord
from .cluster import ClusterMetrics
from .inbox import HeartbeatTap, Inbox
from .pace import Clock, Pace
from .submissions import Ask, Graphs
from .task_groups import Deferral, Groups, entered_only, span_info, spans_of

__all__ = ["Output", "Sweep"]


class Output(Protocol):
    """Where records and metrics go; nothing here blocks but closing."""

    def put(self, records: list[Record]) -> list[Record]:
        """Take records that should leave together; return those that are on their way to a backend."""

    def wants_metrics(self, *, last: bool = False) -> bool:
        """Whether it is time for a snapshot, said once.

        For the last one it always is, if there is anybody to send it to; ask when the spans are closed.
        """

    def put_metrics(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Take a snapshot. After the last one, ``close_metrics`` follows."""

    @property
    def is_away(self) -> bool:
        """Whether nobody is known to be there: what was sent last has failed, everywhere."""

    def exporters(self) -> Iterable[ExporterCounts]:
        """Say what became of the records so far."""

    def close(self, timeout: float) -> None:
        """Send what is left of all, within ``timeout`` seconds; blocks."""

    def close_spans(self, timeout: float) -> None:
        """Send the records that are left, within ``timeout`` seconds; blocks."""

    def close_metrics(self, timeout: float) -> None:
        """Send the last snapshot, within ``timeout`` seconds; blocks."""


#: Fine metrics that are added in one step, within a tenth of a slice.
METRICS_AT_ONCE = 1000
#: So many segments may fail to be made while a scheduler closes before it goes on without the rest.
MAX_FAILURES = 100


class Sweep:
    """Feeds the span tree and passes on what comes out.

    Parameters
    ----------
    sink
        Takes the records of one segment at a time: its groups, then itself.
    first_number
        Of the segments of spans that are older than the watch: another one may have sent those before.
    """

    def __init__(
        self,
        scheduler: Any,
        span_tree: SpanTree,
        inbox: Inbox,
        graphs: Graphs,
        metrics: HeartbeatTap,
        cluster_metrics: ClusterMetrics,
        sink: Output,
        safety: Safety,
        first_number: int,
    ) -> None:
        self._scheduler = scheduler
        self._spans = scheduler.extensions["spans"].spans
        self._span_tree = span_tree
        self._inbox = inbox
        self._graphs = graphs
        self._metrics = metrics
        self._cluster_metrics = cluster_metrics
        self._sink = sink
        self._safety = safety
        self._first_number = first_number
        self._born = time()
        self._groups = Groups(scheduler.task_groups)
        self._deferral = Deferral(span_tree, inbox, self._groups)
        self._clock = Clock()
        #: Of the last sweep: when it ended, and for how many seconds it held the event loop, in all and at a stretch.
        self.cost: dict[str, float] = {}
        #: How much of ``Scheduler.total_nthreads_history`` has been read.
        self._threads_read = len(scheduler.total_nthreads_history)
        self._wants_metrics = False
        #: Sweeps never overlap.
        self._lock = asyncio.Lock()

    def learn(self) -> None:
        """Take the scheduler as it is for the zero from which to count."""
        self._cluster_metrics.learn()
        now = time()
        for worker in self._scheduler.workers:
            self._span_tree.heartbeats.joined(worker, now)
        for group in self._scheduler.task_groups.values():
            if group.span_id:
                self._add_span(group.span_id)
                self._span_tree.add_change(self._groups.learn(group), now)

    async def sweep(self, *, may_defer: bool = True) -> None:
        """Look at what changed and send what ended.

        Parameters
        ----------
        may_defer
            Whether a part of what happened to groups that are at work may be left for a later sweep.
        """
        async with self._lock:
            pace = Pace()
            was_set_back = self._check_clock()
            self._wants_metrics = self._wants_metrics or self._sink.wants_metrics()
            told = await self._collect(pace, may_defer=may_defer and not was_set_back and not self._wants_metrics)
            busy = self._scheduler._active_graph_updates > 0
            await self._send(self._span_tree.advance(time(), taking_in_graph=busy), pace)
            await self._cluster_metrics.count_ended(pace)
            if self._wants_metrics:
                self._wants_metrics = False
                await self._measure(pace)
            await self._deferral.raise_thresholds(told, pace)
            pace.stop()
            self._cluster_metrics.swept(pace.held)
            self.cost = {"at": time(), "seconds": pace.held, "longest_hold": pace.longest}
            pace.raise_if_cancelled()

    async def close(self) -> None:
        """Look at what changed, and send all spans."""
        async with self._lock:
            pace = Pace()
            # Data can be scattered into a group without any hook being called.
            for group in self._groups.known():
                self._inbox.touch(group)
                await pace.rest()
            await self._collect(pace, may_defer=False)
            # A segment that cannot be made must not take the others with it.
            for _ in range(MAX_FAILURES):
                with self._safety.guard("closing of segments"):
                    await self._send(self._span_tree.close(time()), pace)
                    break
            await self._cluster_metrics.count_ended(pace)
            pace.raise_if_cancelled()

    async def measure_last(self) -> None:
        """Give away the last snapshot; it says what became of the spans, if the sink has closed them."""
        async with self._lock:
            if self._sink.wants_metrics(last=True):
                self._read_threads()
                self._cluster_metrics.begin_sweep()
                await self._measure(Pace(), last=True)

    async def _collect(self, pace: Pace, *, may_defer: bool) -> list[Any]:
        """Feed the span tree; return the groups of which it has been told in full."""
        # Drained together, at one moment. Graphs before changes: a segment knows who submitted it when it opens.
        (graphs, asks), claims = self._graphs.drain(), self._inbox.claims.drain()
        changes, metrics = self._inbox.drain(), self._metrics.drain()
        for _ in self._groups.forget(
            lambda group: group in changes or self._inbox.is_latched(group),
            self._inbox.drain_forgotten(),
            self._inbox.touch,
        ):
            await pace.rest()
        self._read_threads()
        self._cluster_metrics.begin_sweep()
        for ask, since in asks:
            with self._safety.guard("sweep"):
                self._add_asked(ask, since)
            await pace.rest()
        for graph in graphs:
            with self._safety.guard("sweep"):
                self._add_span(graph.span_id)
                self._span_tree.add_graph(graph, time())
            await pace.rest()
        due = self._deferral.begin_sweep(len(changes), may_defer=may_defer)
        told = []
        for group in [*changes, *due.left, *due.entered]:
            is_due = group in due.groups
            # Freed one by one: thousands at once would take milliseconds.
            change = changes.pop(group, None) or due.left.pop(group, None)
            if change is None:
                if group not in self._groups.entered:  # told of just now
                    continue
                change = entered_only(time())
            with self._safety.guard("sweep"):
                # Without a span, it is scattered data that no graph has used yet.
                if group.span_id and not (
                    self._groups.is_as_known(group, change)
                    or (due.may_defer and not is_due and self._deferral.defer(group, change))
                ):
                    told.append(group)
                    self._groups.complete(group, change)
                    change.sort_runs(self._inbox.intervals)
                    self._cluster_metrics.change(change)
                    self._add_span(group.span_id)
                    self._span_tree.add_change(change, time())
            await pace.rest()
        nobody = Ask(("default",), (str(uuid4()),))
        for claim in claims:  # after the changes: the segments that count these tasks are open now
            with self._safety.guard("sweep"):
                self._add_span(claim.holder)
                if claim.asker == NOBODY:  # a failure that is no other span's
                    claim.asker = nobody.id
                    self._add_asked(nobody, claim.since)
                if self._span_tree.forest.knows(
                    claim.asker
                ):  # else it ended long ago, but for a task that needed not run
                    self._span_tree.add_claim(claim, time())
            await pace.rest()
        for span_id, values in metrics.items():
            with self._safety.guard("sweep"):
                self._add_span(span_id)
            entries = iter(values.items())
            while some := dict(islice(entries, METRICS_AT_ONCE)):
                with self._safety.guard("sweep"):
                    self._cluster_metrics.busy(span_id, self._span_tree.add_metrics(span_id, some, time()))
                await pace.rest()
        return told

    async def _send(self, records: Iterator[Record | None], pace: Pace) -> None:
        together: list[Record] = []
        for record in records:
            if record:
                together.append(record)
            if isinstance(record, (SegmentRecord, PendingRecord)):  # the last of what leaves together
                with self._safety.guard("sink"):  # one that fails must not take the others with it
                    self._cluster_metrics.sent(self._sink.put(together))
                together = []
            await pace.rest()

    async def _measure(self, pace: Pace, *, last: bool = False) -> None:
        with self._safety.guard("metrics"):
            snapshot = await self._cluster_metrics.snapshot(pace)
            if snapshot:
                self._sink.put_metrics(snapshot, last=last)

    def _add_span(self, span_id: str) -> None:
        unknown = []
        span = self._spans.get(span_id)  # None if it was only asked for; then it has been added
        while span and not self._span_tree.forest.knows_made(span.id):
            unknown.append(span)
            span = span.parent
        for span in reversed(unknown):
            info = span_info(span)
            self._span_tree.add_span(info, self._first_number if info.enqueued < self._born else 0)

    def _add_asked(self, ask: Ask, since: float) -> None:
        """Learn of a span that a submission named, though Dask may not have made it."""
        for info in spans_of(ask, since):
            if info.id in self._spans:
                self._add_span(info.id)
            else:
                self._span_tree.add_asked(info, self._first_number, time())

    def _check_clock(self) -> bool:
        seconds = self._clock.set_back()
        if seconds:
            log.warning("dask-otel: the clock was set back by %.1f s; times of open spans move with it", seconds)
            self._inbox.clock_set_back(seconds)
            self._deferral.clock_set_back(seconds)
            self._span_tree.clock_set_back(seconds)
            self._cluster_metrics.clock_set_back(seconds)
        return seconds > 0.0

    def _read_threads(self) -> None:
        history = self._scheduler.total_nthreads_history
        for at, count in history[self._threads_read :]:
            self._span_tree.threads.add(at, count)
        self._threads_read = len(history)
