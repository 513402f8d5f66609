"""The sweep: the periodic pass over what is active, from the inbox and the task groups to records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from distributed.metrics import time

from ..messages import SpanMade
from ..metrics.snapshot import ExporterCounts, Snapshot
from ..safety import Safety
from ..spantree.events import Change, Claim, Metrics, WorkerSpan
from ..spantree.lifecycle import SpanTree
from ..spantree.records import GroupRecord, PendingRecord, Record, SegmentRecord, StandInRecord
from .cluster import ClusterMetrics, in_parts
from .evidence import Evidence
from .forgetting import Forgetting
from .inbox import Inbox, RequestedSpan
from .outcomes import prefix_of
from .pace import Clock, Pace, Unpaced
from .run_times import RunTimesHooks
from .task_groups import TaskGroupReader, requested_spans, span_info
from .task_parents import Sampler

__all__ = ["Output", "Sweep"]


class Output(Protocol):
    """Where records and metrics go; nothing here blocks but closing."""

    def put(self, records: list[Record]) -> list[Record]:
        """Take records that should leave together; return those that are on their way to a backend."""

    @property
    def sampler(self) -> Sampler | None:
        """What decides which traces are sent; None if their callers alone do."""

    def packing(self) -> Iterator[None]:
        """Make what waits smaller, if that is much; lazy, each step is little work.

        A thread does so, too. But many records come at once: until the thread has packed them, each garbage collection
        of the interpreter would look at them all.
        """

    def mark(self) -> Any:
        """Say which records have been put so far."""

    def is_settled(self, mark: Any) -> bool:
        """Whether all records up to a ``mark`` are sent, or dropped for good. Marks are settled in their order."""

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

    def leave_to(self, heir: Output) -> None:
        """Give spans that cannot be sent until the shutdown ends to another output."""

    def close(self, timeout: float) -> None:
        """Send what is left of all, within ``timeout`` seconds; blocks."""

    def close_spans(self, timeout: float) -> None:
        """Send the records that are left, within ``timeout`` seconds; blocks."""

    def close_metrics(self, timeout: float) -> None:
        """Send the last snapshot, within ``timeout`` seconds; blocks."""


#: Fine metrics that are added in one step, within a tenth of a slice.
METRICS_AT_ONCE = 200
#: Attempts to close the segments of a scheduler that closes: one segment that fails must not take the others with it.
MAX_FAILURES = 100


class Sweep:
    """Feeds the span tree and passes on its records.

    Parameters
    ----------
    output
        Takes the records of one segment at a time: its groups, then itself.
    """

    def __init__(
        self,
        scheduler: Any,
        span_tree: SpanTree,
        inbox: Inbox,
        groups: TaskGroupReader,
        cluster_metrics: ClusterMetrics,
        run_times: RunTimesHooks | None,
        evidence: Evidence | None,
        forgetting: Forgetting | None,
        output: Output,
        clock: Clock,
        safety: Safety,
    ) -> None:
        self._scheduler = scheduler
        self._spans = scheduler.extensions["spans"].spans
        self._span_tree = span_tree
        self._inbox = inbox
        self._cluster_metrics = cluster_metrics
        self._output = output
        self._clock = clock
        self._safety = safety
        self._groups = groups
        self._run_times = run_times
        self._evidence = evidence
        self._forgetting = forgetting
        #: Of the last sweep: when it ended, and for how many seconds it held the event loop, in all and at a stretch.
        self.cost: dict[str, float] = {}
        #: How much of ``Scheduler.total_nthreads_history`` has been read.
        self._threads_read = len(scheduler.total_nthreads_history)
        #: Sweeps never overlap.
        self._lock = asyncio.Lock()
        #: Up to when everything has been counted; None if the sweep goes on counting.
        self.counted_until: float | None = None

    def read_baseline(self) -> None:
        """Take the scheduler as it is for the zero from which to count."""
        self._cluster_metrics.read_baseline()
        now = self._clock.now()
        for worker in self._scheduler.workers:
            self._span_tree.heartbeats.joined(worker)
        for group in self._scheduler.task_groups.values():
            if group.span_id:
                self._add_span(group.span_id)
                self._span_tree.add_change(self._groups.read_baseline(group), now)

    async def sweep(self) -> None:
        """Count what has changed and send what has ended."""
        async with self._lock:
            if self.counted_until is not None:
                return
            pace = Pace()
            now = await self._collect(pace)
            await self._cut_laps(self._span_tree.roots_to_cut(now), pace)
            is_busy = self._scheduler._active_graph_updates > 0
            await self._send(self._span_tree.advance(now, self._clock.offset, taking_in_graph=is_busy), pace)
            await self._cluster_metrics.count_ended(pace)
            if self._run_times:
                with self._safety.guard("run times"):
                    for _ in self._run_times.times.forget(self._span_tree.is_over):
                        await pace.rest()
            if self._forgetting:
                with self._safety.guard("forgetting"):
                    for _ in self._forgetting.forget_some(now):
                        await pace.rest()
            if self._output.wants_metrics():  # last: a sweep that fails before leaves it to the next one
                await self._send_metrics(pace)
            pace.stop()
            self._cluster_metrics.swept(pace.held)
            self.cost = {"at": time(), "seconds": pace.held, "longest_hold": pace.longest}
            pace.raise_if_cancelled()

    async def wait(self) -> None:
        """Wait for the end of a sweep that has begun; until the caller gives the event loop back, none begins."""
        async with self._lock:
            pass

    def count_until_now(self) -> None:
        """Count everything up to this moment in one step, and no more: another bridge counts what follows.

        It may hold the event loop for longer than a sweep does: 5 µs a group, and 0.4 µs a run that is not counted yet.
        Call it between two sweeps.
        """
        try:
            self._collect_all(Unpaced()).send(None)
        except StopIteration as done:
            self.counted_until = done.value

    async def close(self) -> None:
        """Count what has changed, and send all spans."""
        async with self._lock:
            pace = Pace()
            now, stopped = self.counted_until, "unfinished"
            if now is None:
                now, stopped = await self._collect_all(pace), "interrupted"
            await self._cut_laps([top.info.id for top in self._span_tree.forest.open_tops], pace)
            for _ in range(MAX_FAILURES):
                with self._safety.guard("closing of segments"):
                    await self._send(self._span_tree.close(now, self._clock.offset, stopped=stopped), pace)
                    break
            await self._cluster_metrics.count_ended(pace)
            pace.raise_if_cancelled()

    async def send_last_metrics(self) -> None:
        """Send the last snapshot. It reports what happened to the spans, if the output has closed them."""
        async with self._lock:
            if self._output.wants_metrics(last=True):
                self._read_threads()
                self._cluster_metrics.begin_sweep()
                await self._send_metrics(Pace(), last=True)

    async def _collect_all(self, pace: Pace) -> float:
        """As ``_collect``, with all groups: data can be scattered into one without any hook being called."""
        for group in self._groups.known():
            self._inbox.touch(group)
            await pace.rest()
        return await self._collect(pace)

    async def _collect(self, pace: Pace) -> float:
        """Feed the span tree with everything that has happened up to one moment; return that moment."""
        now, taken = self._clock.now(), self._inbox.take()
        if self._run_times:
            with self._safety.guard("run times"):  # at the same moment
                self._run_times.times.take()
        if self._evidence:
            with self._safety.guard("evidence"):
                self._evidence.begin_sweep()
        self._read_threads()
        self._cluster_metrics.begin_sweep()
        self._cluster_metrics.count(taken.counts)
        for event in taken.workers:
            with self._safety.guard("sweep"):
                if event.heartbeats:
                    self._span_tree.add_heartbeats([(event.worker, event.heartbeats)], now)
                for _ in self._span_tree.add_worker_event(event.kind, event.worker):
                    await pace.rest()
        for heartbeats in in_parts(taken.heartbeats.items()):
            with self._safety.guard("sweep"):
                self._span_tree.add_heartbeats(heartbeats, now)
            await pace.rest()
        with self._safety.guard("sweep"):
            for _ in self._groups.forget_gone(
                taken.forgotten,
                lambda group: group in taken.changes or self._inbox.has_change(group),
                self._inbox.touch,
            ):
                await pace.rest()
        # Submissions before changes: a segment knows who submitted it when it opens.
        for span, since in taken.requested:
            with self._safety.guard("sweep"):
                self._add_requested(span, since)
            await pace.rest()
        for graph in taken.graphs:
            with self._safety.guard("sweep"):
                self._add_span(graph.span_id)
                self._span_tree.add_graph(graph, now)
            await pace.rest()
        for group in list(taken.changes):
            with self._safety.guard("sweep"):
                # Removed one by one: to free thousands at once would take milliseconds.
                change = taken.changes.pop(group)
                for _ in change.count_runs(self._inbox.intervals):
                    await pace.rest()
                self._add_change(group, change, now)
            await pace.rest()
        if self._evidence:
            with self._safety.guard("evidence"):
                await self._evidence.sample(pace, is_needed=bool(self._span_tree.forest.open_tops))
        # After changes: the segments of which they are laps are open now.
        if self._run_times:
            with self._safety.guard("run times"):
                self._run_times.forget(taken.forgotten)
                for lap in self._run_times.times.laps(now):
                    if lap:
                        self._span_tree.add_lap(lap)
                    await pace.rest()
        # After changes: the group is known now. Before anything is closed: the parent is to be sent.
        for reported in taken.spans_made:
            with self._safety.guard("sweep"):
                made = SpanMade.from_event(reported)
                if made and made.dask_span_id in self._spans:
                    self._add_span(made.dask_span_id)
                    prefix = prefix_of(made.key)
                    worker_span = WorkerSpan(made.dask_span_id, made.group, prefix, made.trace_id, made.parent_id)
                    self._span_tree.add_worker_span(worker_span, now)
            await pace.rest()
        # Claims after changes: the segments that count their tasks are open now.
        for claim in taken.claims:
            with self._safety.guard("sweep"):
                self._add_claim(claim, now)
            await pace.rest()
        entries = iter(taken.metrics.items())
        while some := list(islice(entries, METRICS_AT_ONCE)):
            by_span: dict[str, Metrics] = {}
            with self._safety.guard("sweep"):
                for (context, span_id, *rest), values in some:
                    key = (context, *rest)
                    by_span.setdefault(span_id, {})[key] = sum(values)
            for span_id, metrics in by_span.items():
                with self._safety.guard("sweep"):
                    self._add_span(span_id)
                    if not self._span_tree.forest.knows(span_id):  # it is forgotten
                        continue
                    self._cluster_metrics.busy(span_id, self._span_tree.add_metrics(span_id, metrics, now))
                await pace.rest()
        return now

    async def _cut_laps(self, root_ids: Iterable[str], pace: Pace) -> None:
        """End the laps of roots whose segments are about to close."""
        for root_id in root_ids if self._run_times else ():
            with self._safety.guard("run times"):
                lap = self._run_times.times.cut(root_id, self._clock.now()) if self._run_times else None
                if lap:
                    self._span_tree.add_lap(lap)
            await pace.rest()

    def _add_change(self, group: Any, change: Change, now: float) -> None:
        # Without a span, it is scattered data that no graph has used yet.
        if group.span_id and not self._groups.is_unchanged(group, change):
            self._groups.read_delta(group, change)
            self._cluster_metrics.change(change)
            self._add_span(group.span_id)
            self._span_tree.add_change(change, now)

    def _add_claim(self, claim: Claim, now: float) -> None:
        self._add_span(claim.owning)
        # A span that is not known ended long ago, but for a task that never had to run.
        if self._span_tree.forest.knows(claim.requesting):
            self._span_tree.add_claim(claim, now)

    async def _send(self, records: Iterator[Record | None], pace: Pace) -> None:
        together: list[Record] = []
        for record in records:
            if record:
                together.append(record)
            # The last of what leaves together, or what leaves alone.
            if isinstance(record, (SegmentRecord, PendingRecord, StandInRecord)):
                with self._safety.guard("sink"):  # one that fails must not take the others with it
                    sent = self._output.put(together)
                    self._cluster_metrics.sent(sent)
                    if 0 < len(sent) < len(together):  # beyond the rate limit
                        self._note_given_up(together, sent)
                together = []
                with self._safety.guard("sink"):
                    for _ in self._output.packing():
                        await pace.rest()
            await pace.rest()

    def _note_given_up(self, records: list[Record], sent: list[Record]) -> None:
        kept = set(map(id, sent))
        for record in records:
            if isinstance(record, GroupRecord) and id(record) not in kept:
                self._span_tree.given_up(record)

    async def _send_metrics(self, pace: Pace, *, last: bool = False) -> None:
        with self._safety.guard("metrics"):
            snapshot = await self._cluster_metrics.snapshot(pace)
            if snapshot:
                self._output.put_metrics(snapshot, last=last)

    def _add_span(self, span_id: str) -> None:
        unknown = []
        span = self._spans.get(span_id)  # None if it was only requested; then it has been added
        while span and not self._span_tree.forest.knows_made(span.id):
            unknown.append(span)
            span = span.parent
        for span in reversed(unknown):
            self._span_tree.add_span(span_info(span, self._clock))

    def _add_requested(self, requested: RequestedSpan, since: float) -> None:
        """Add a span that a submission named, though Dask may not have made it."""
        for info in requested_spans(requested, since):
            if info.id in self._spans:
                self._add_span(info.id)
            else:
                self._span_tree.add_requested(info)

    def _read_threads(self) -> None:
        history = self._scheduler.total_nthreads_history
        for at, count in history[self._threads_read :]:
            self._span_tree.threads.add(self._clock.of_dask(at), count)
        self._threads_read = len(history)
