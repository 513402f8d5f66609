"""Exports spans and metrics: a thread for each exporter, with retries, a deadline at shutdown, and counts.

The layers are those of the OpenTelemetry Collector's ``exporterhelper``: a sending queue, a batcher, retry on failure,
a timeout. ``ExportThread`` retries and waits; an ``ExportQueue`` makes requests of what waits, and counts. What an
answer means is in ``transport``; ``docs/delivery.md`` has the promises.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import partial
from time import monotonic, sleep, time
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from ..diagnosis.parts import PARTS
from ..errors import Remarks, SettingError
from ..identity import client_names
from ..metrics.snapshot import ExporterCounts, Snapshot, deltas
from ..privacy import Capture, Redactor
from ..safety import Safety, log
from ..schema import MAX_NAME, Kind, clean, shorten, typed_error
from ..spantree.events import SpanInfo
from ..spantree.records import ENDS, Record, SegmentRecord
from .environment import (
    METRICS,
    TRACES,
    Limits,
    delta_kinds,
    is_default_endpoint,
    make_limits,
    make_resource,
    make_span_limits,
    metric_interval,
    not_read,
    sdk_disabled,
)
from .folder import FolderSender
from .metrics import MetricFactory
from .misspelt import misspelt
from .packing import Packed, Packer, Place, count_of, kind_of_item, places, records_at, unpacked
from .queue import RateLimiter, SpanQueue, size_of
from .recent_runs import RecentRuns, RunId
from .sampling import Sampling, make_sampler
from .spans import KINDS, SpanFactory, SpanForm, error_description, kind_of
from .transport import ExportResult, Pacer, RetryDecision, Sender, import_exporters, make_senders, shut_down

__all__ = [
    "DISABLED",
    "LAST_CHANCE",
    "NO_METRICS",
    "ExportQueue",
    "ExportThread",
    "Found",
    "MetricExportQueue",
    "ShutdownDeadline",
    "SpanExportQueue",
    "TelemetryOutput",
    "connect",
    "import_exporters",
    "read_variables",
]

#: Seconds to wait after a failure, at first and at most; doubled each time, less up to a half at random.
BACK_OFF = (0.5, 30.0)
#: The same for metrics: only the latest snapshot is worth a retry, and the next one is sent anyway.
METRICS_BACK_OFF = (15.0, 15.0)
#: Seconds after which spans are given up if they are refused; not if the collector is only overloaded or away.
GIVE_UP_AFTER = 600.0
#: Requests that one batch may cost by halving: enough to find three invalid spans in 256.
MAX_REQUESTS = 64
#: Bytes of one batch, by ``size_of``; collectors refuse 4 MiB.
MAX_BATCH_BYTES = 3 * 2**20
#: Seconds between two log lines on one topic.
LOG_EVERY = 60.0
METRICS_LOG_EVERY = 600.0
FOLDER_LOG_EVERY = 3600.0
#: Seconds until a backend that takes no metrics gets a snapshot again: at first, doubled each time, and at most. It may
#: be a collector that has a pipeline for metrics after its next restart.
UNSUPPORTED_BACK_OFF = (60.0, 600.0)
#: Seconds at shutdown for a collector that was failing, or cannot be reached any more. For metrics less: an idle
#: cluster has nothing else to send.
LAST_CHANCE = 0.6
METRICS_LAST_CHANCE = 0.2
#: Seconds between two attempts in that time: a connection that was idle may have been dropped, and one more will do.
SHORT_PAUSE = 0.1
#: Seconds between two attempts at shutdown, at most, unless the collector asks for more.
SHUTDOWN_BACK_OFF = 0.5
#: Seconds kept for the last metrics, which count what became of the last spans; at most a quarter of the time.
FOR_METRICS = 1.0
#: Seconds kept for the last line of the log, at most a fifth of the time.
FOR_LAST_LINE = 0.2
#: Seconds from the first snapshot to the second; then twice as long each time, up to the interval.
FIRST_PAUSE = 1.0
#: Records that wait as they are; those beyond are packed.
KEPT_LOOSE = 200
#: Finished roots that are remembered.
MAX_FINISHED = 100

DISABLED = "OTEL_SDK_DISABLED is true: unset it to send traces and metrics"
#: What to do about a backend for traces only.
NO_METRICS = (
    "it seems to take no metrics: OTEL_METRICS_EXPORTER=none switches them off, "
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT sends them elsewhere"
)
#: Reason why spans are counted as dropped, by the last decision on them.
_REASONS = {
    RetryDecision.LATER: "shutdown",
    RetryDecision.REFUSED: "refused",
    RetryDecision.TOO_LARGE: "too_large",
    RetryDecision.INVALID: "invalid",
}


class ShutdownDeadline:
    """Until when shutdown waits, and whether another attempt may be made; the caller locks, but for ``left``.

    Parameters
    ----------
    last_chance
        Seconds for a collector that is failing.
    """

    def __init__(self, last_chance: float = LAST_CHANCE) -> None:
        #: When shutdown must end; None before it begins.
        self.deadline: float | None = None
        self._last_chance_seconds = last_chance
        self._last_chance = 0.0
        #: Whether the collector worked when shutdown began, or has since.
        self._was_well = False
        #: When shutdown ends as things are.
        self._until = 0.0

    def begin(self, timeout: float, *, is_failing: bool | None) -> None:
        """Begin a shutdown of ``timeout`` seconds at most.

        Parameters
        ----------
        is_failing
            Whether the last request failed; None if none has ended yet.
        """
        now = monotonic()
        self.deadline = now + timeout
        self._last_chance = min(self.deadline, now + self._last_chance_seconds)
        self._was_well = is_failing is False
        # A collector that has not answered its first request yet may only be slow.
        self._until = self._last_chance if is_failing else self.deadline

    def arrived(self) -> None:
        """Note that the collector has taken something, perhaps what was on its way when shutdown began."""
        self._was_well = True
        self._until = self.deadline or 0.0

    def left(self) -> float:
        """Seconds that shutdown may still wait, as things are."""
        return max(0.0, self._until - monotonic())

    def pause(self, seconds: float, result: ExportResult) -> float | None:
        """Seconds to wait before another attempt; None if there is to be none.

        Parameters
        ----------
        seconds
            To wait if there is time.
        result
            Of the last attempt, which was made after shutdown had begun.
        """
        deadline = self.deadline or 0.0
        if result.wait is not None or (self._was_well and result.was_reached):
            until = deadline
        elif self._was_well or (result.was_reached and result.decision is RetryDecision.LATER):
            until, seconds = self._last_chance, min(seconds, SHORT_PAUSE)
        else:
            return None
        if monotonic() + seconds >= until:
            return None
        self._until = max(self._until, until)
        return seconds


@dataclass(frozen=True)
class RetrySettings:
    """How an export thread retries; times in seconds."""

    #: After a failure, at first and at most.
    back_off: tuple[float, float]
    #: After this, what the collector refuses is given up.
    give_up_after: float
    #: At shutdown, for a collector that was failing.
    last_chance: float
    #: Between two log lines on one topic.
    log_every: float
    #: Whether data can be split: then "too large" and "invalid" are about the data, and no failure of the collector.
    can_split: bool


#: For a disk: what it cannot take is not kept in memory until it can.
FOLDER_RETRY = RetrySettings(BACK_OFF, 0.0, LAST_CHANCE, FOLDER_LOG_EVERY, can_split=True)


class ExportQueue(ABC):
    """What waits for one export thread, and the counts of what became of the rest.

    ``changed`` guards all that changes. Nothing is logged while it is held: the event loop's ``put`` takes it too, and
    a logging handler may block.
    """

    #: What is exported, for a person.
    items: str
    retry: RetrySettings
    #: Items that are exported at once, and seconds to wait for as many.
    max_batch = 1
    delay = 0.0
    #: Seconds from one request to the next, at least, unless a batch is full.
    spacing = 0.0
    #: Whether what waits replaces what is being exported.
    is_latest_only = False
    #: Whether it is no failure if the backend has no place for the signal.
    is_optional = False

    def __init__(self) -> None:
        self.changed = threading.Condition()
        #: Items of the batch that is being exported.
        self.in_flight = 0
        #: Failed requests.
        self.failures = 0
        #: Number of what was taken by the collector, by kind.
        self.sent: Counter[str] = Counter()
        #: Number of what is lost, by kind and reason: queue_full, refused, invalid, too_large, rejected, shutdown,
        #: fault.
        self.dropped: Counter[tuple[str, str]] = Counter()

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Number of items that wait."""

    @property
    def added(self) -> int:
        """Number of calls of ``put`` so far; the caller locks."""
        return 0

    @property
    def settled(self) -> int:
        """How many calls of ``put``, the first ones, added nothing that is still to be sent; the caller locks."""
        return 0

    @abstractmethod
    def put(self, items: Any) -> None:
        """Add items; the caller locks."""

    @abstractmethod
    def take(self) -> Any:
        """Take out a batch, which is then in flight; empty or None if nothing waits. The caller locks."""

    def packing(self) -> Iterator[None]:
        """Make what waits smaller, if that is much; lazy, each step takes a quarter of a millisecond. Locks."""
        return iter(())

    @abstractmethod
    def export(self, batch: Any, send: Callable[[Any], ExportResult]) -> None:
        """Export a batch by one or more requests, and count what became of it."""

    @abstractmethod
    def drop(self, batch: Any, reason: str) -> None:
        """Count what is still in flight of a batch as dropped."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Return what became of the items, as plain data; the caller locks."""

    @abstractmethod
    def last_line(self, last_error: str, *, timed_out: bool) -> tuple[str, str] | None:
        """Return how the last line of the log begins and ends; None if all has arrived. The caller locks."""

    def losses(self) -> str:
        """Return what was dropped and why, e.g. ``12 task (queue_full), 1 span (invalid)``; the caller locks."""
        return ", ".join(f"{count} {kind} ({reason})" for (kind, reason), count in sorted(self.dropped.items()))


class SpanExportQueue(ExportQueue):
    """Batches of records, made into spans when they are exported.

    Parameters
    ----------
    form
        Makes spans of records, and requests of spans, as the exporter takes them.
    """

    items = "spans"

    def __init__(
        self, form: SpanForm, safety: Safety, limits: Limits | None = None, retry: RetrySettings | None = None
    ) -> None:
        super().__init__()
        limits = limits or Limits()
        self.retry = retry or RetrySettings(BACK_OFF, GIVE_UP_AFTER, LAST_CHANCE, LOG_EVERY, can_split=True)
        self.delay = limits.delay
        self.spacing = limits.spacing
        #: Takes records that cannot be sent until the shutdown ends; None if they are lost.
        self.heir: Callable[[list[Record]], object] | None = None
        self._form = form
        self._safety = safety
        self.max_batch = min(limits.max_batch, limits.max_waiting)
        self._queue = SpanQueue(limits.max_waiting, limits.max_bytes, partial(self._count_dropped, "queue_full"))
        #: Number of bundles that were sent or dropped before the batch that is in flight.
        self._settled = 0
        self._packer = Packer(size_of)

    @property
    def waiting(self) -> int:
        """Number of records that wait."""
        return self._queue.spans

    def put(self, items: list[Record]) -> None:
        """Add records that should leave together."""
        self._queue.put(items)

    @property
    def added(self) -> int:
        """Number of calls of ``put`` so far."""
        return self._queue.added

    @property
    def settled(self) -> int:
        """How many calls of ``put``, the first ones, added nothing that is still to be sent."""
        return self._settled if self.in_flight else self._queue.removed

    def take(self) -> list[Record | Packed]:
        """Take out records that may leave together."""
        self._settled = self._queue.removed
        batch = self._queue.take(self.max_batch, MAX_BATCH_BYTES)
        self.in_flight = sum(map(count_of, batch))
        return batch

    def packing(self) -> Iterator[None]:
        """Pack what waits beyond ``KEPT_LOOSE``."""
        while True:
            with self.changed:
                bundle = self._queue.to_pack(KEPT_LOOSE)
                items = bundle.items if bundle else ()
            if bundle is None:
                return
            packed: list[Packed] = []
            for each in self._packer.pack(items):
                packed.append(each)
                yield
            with self.changed:
                self._queue.pack(bundle, items, packed)  # unless another thread was faster

    def export(self, batch: list[Record | Packed], send: Callable[[Any], ExportResult]) -> None:
        """Convert and send a batch, and halve it while that may save a part of it."""
        parts = [self._convert(batch)]
        requests = 0
        while parts:
            part = parts.pop()
            if not part:
                continue
            sent = [place for place, _ in part]
            result = send(self._form.request(span for _, span in part))
            requests += 1
            is_about_spans = result.decision in (RetryDecision.TOO_LARGE, RetryDecision.INVALID)
            if result.decision is RetryDecision.SENT:
                self._count_sent(sent, result.rejected)
            elif is_about_spans and len(part) > 1 and requests < MAX_REQUESTS:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                self._lose(sent, _REASONS[result.decision])

    def drop(self, batch: list[Record | Packed], reason: str) -> None:
        """Count the records that are still in flight, the last ones, as dropped."""
        self._lose(places(batch)[-self.in_flight :], reason)

    def status(self) -> dict[str, Any]:
        """Return counts of spans."""
        dropped = sorted(self.dropped.items())
        return {
            "sent": dict(self.sent),
            "dropped": [{"kind": kind, "reason": reason, "count": n} for (kind, reason), n in dropped],
            "queue": self._queue.status(),
            "in_flight": self.in_flight,
        }

    def last_line(self, last_error: str, *, timed_out: bool) -> tuple[str, str] | None:
        """Return how many spans are lost, and why."""
        left, dropped = self.waiting + self.in_flight, self.dropped.total()
        if not left + dropped:
            return None
        losses = self.losses()
        return (
            f"could not send {left + dropped} spans",
            (f": {losses}" if losses else "")
            + (f"; {left} were left when the time was over" if left else "")
            + f"; it has sent {self.sent.total()}"
            + (f"; last error: {last_error}" if last_error else ""),
        )

    def _convert(self, batch: list[Record | Packed]) -> list[tuple[Place, Any]]:
        """Make spans. A record that cannot be converted costs at most its attributes.

        The records of a batch are unpacked some at a time, and let go: with hundreds of them in memory while the
        request is sent, there would soon be enough for a full garbage collection.
        """
        spans = []
        pacer = Pacer()
        for item in batch:
            for number, record in enumerate(unpacked([item])):
                pacer.rest()
                place, span = Place(item, number), self._span_of(record)
                if span:
                    spans.append((place, span))
                else:
                    self._lose([place], "fault")
        return spans

    def _span_of(self, record: Record) -> Any:
        for make in (self._form.span, self._form.bare):
            with self._safety.guard("conversion"):
                return make(record)
        return None

    def _count_sent(self, sent: list[Place], rejected: int) -> None:
        """Count records that have arrived, of which the collector may have rejected some, unknown which."""
        kinds = _kinds(sent)
        lost = min(rejected, len(sent))
        if 0 < lost < len(sent) and len(kinds) > 1:
            kinds = Counter({"unknown": len(sent)})
        with self.changed:
            self.in_flight -= len(sent)
            for kind, count in kinds.items():
                gone = min(lost, count)
                self.sent[kind] += count - gone
                if gone:
                    self.dropped[kind, "rejected"] += gone

    def _lose(self, lost: list[Place], reason: str) -> None:
        heir = self.heir if reason == "shutdown" else None
        records = records_at(lost) if heir else []
        with self.changed:
            self.in_flight -= len(lost)
            if heir is None:
                self._queue.note_lost(Counter(item.trace_id for item, _ in lost))
                self._count_dropped(reason, _kinds(lost))
        if heir and records:
            heir(records)

    def _count_dropped(self, reason: str, kinds: Counter[str]) -> None:
        for kind, count in kinds.items():
            self.dropped[kind, reason] += count


def _kinds(places: Iterable[Place]) -> Counter[str]:
    """Count records by kind."""
    return Counter(KINDS[kind_of_item(item)] for item, _ in places)


class MetricExportQueue(ExportQueue):
    """The latest snapshot: one place, since a newer snapshot holds all that an older one does.

    Parameters
    ----------
    is_optional
        The metrics are sent to the backend of the spans because nothing else is configured: it may take spans only.
    """

    items = "metrics"
    is_latest_only = True

    def __init__(self, factory: MetricFactory, *, is_optional: bool = False) -> None:
        super().__init__()
        self.is_optional = is_optional
        self.retry = RetrySettings(METRICS_BACK_OFF, 0.0, METRICS_LAST_CHANCE, METRICS_LOG_EVERY, can_split=False)
        self._factory = factory
        self._latest: Snapshot | None = None
        #: The last one that has arrived.
        self._arrived: Snapshot | None = None
        #: Whether the last one that was taken out is lost.
        self._is_lost = False

    @property
    def waiting(self) -> int:
        """Whether a snapshot waits."""
        return int(self._latest is not None)

    def put(self, items: Snapshot) -> None:
        """Put a snapshot in the place of one that waits."""
        self._latest = items

    def take(self) -> Snapshot | None:
        """Take out the snapshot."""
        snapshot, self._latest = self._latest, None
        self.in_flight = int(snapshot is not None)
        return snapshot

    def export(self, batch: Snapshot, send: Callable[[Any], ExportResult]) -> None:
        """Send a snapshot, or what has changed since the last one that has arrived."""
        kinds = self._factory.deltas
        result = send(self._factory.data(deltas(batch, self._arrived, kinds) if kinds else batch))
        with self.changed:
            self.in_flight = 0
            self._is_lost = result.decision is not RetryDecision.SENT and not result.is_unsupported
            if result.decision is RetryDecision.SENT:
                self._arrived = batch
                self.sent["exports"] += 1
            if result.rejected:
                self.dropped["points", "rejected"] += result.rejected

    def drop(self, batch: Snapshot, reason: str) -> None:
        """Note that the snapshot is lost."""
        with self.changed:
            self.in_flight, self._is_lost = 0, True

    def status(self) -> dict[str, Any]:
        """Return counts of exports."""
        rejected = self.dropped["points", "rejected"]
        return {"exports": self.sent["exports"], "failures": self.failures, "rejected": rejected}

    def last_line(self, last_error: str, *, timed_out: bool) -> tuple[str, str] | None:
        """Return why the last snapshot is lost."""
        is_lost = self._is_lost or self.waiting or self.in_flight
        why = "no answer in time" if timed_out else last_error
        return ("could not send the last metrics", f": {why}") if is_lost else None


class ExportThread:
    """Exports what a queue holds through one exporter, in a thread of its own: one that hangs holds up no other."""

    def __init__(self, sender: Sender, queue: ExportQueue, safety: Safety) -> None:
        self.name = sender.name
        self.queue = queue
        #: Whether the last request failed, None before there was one; and since when (seconds since the epoch).
        self.is_failing: bool | None = None
        self.failing_since: float | None = None
        #: Message of the last failure, and when it was (seconds since the epoch).
        self.last_error = ""
        self.last_error_at: float | None = None
        #: When the request was made that has no answer yet (seconds since the epoch); None if there is none.
        self.requested_at: float | None = None
        #: What a backend without a place for this signal answered; empty for every other backend.
        self.unsupported = ""
        #: Whether nothing is to be sent any more.
        self.abandoned = False
        self._sender = sender
        self._safety = safety
        self._changed = queue.changed
        self._deadline = ShutdownDeadline(queue.retry.last_chance)
        #: By topic, when it was last logged; and how many losses have been logged.
        self._logged_at: dict[str, float] = {}
        self._logged_losses = 0
        #: When the last request began.
        self._requested = 0.0
        #: When a backend that takes no metrics gets the next snapshot, and seconds until the one after it.
        self._due = 0.0
        self._unsupported_pause = UNSUPPORTED_BACK_OFF[0]
        self._thread = threading.Thread(target=self._run, name=f"dask-otel {queue.items} {sender.name}", daemon=True)
        self._thread.start()

    def put(self, items: Any) -> None:
        """Add items to the queue: records that should leave together, or a snapshot. Never waits for the exporter."""
        if items:
            with self._changed:
                self.queue.put(items)
                self._changed.notify()
                is_loss = self.queue.dropped.total() > self._logged_losses
            if is_loss:
                self._log_losses()

    def close(self, timeout: float, *, last: Any = None, give_up: bool = False) -> None:
        """Send what is left within ``timeout`` seconds, then shut the exporter down.

        Parameters
        ----------
        last
            Added to the queue before. In one step with the shutdown, so that the first attempt already belongs to it.
        give_up
            Make no attempt: nobody is there.
        """
        with self._changed:
            if last:
                self.queue.put(last)
            self.abandoned = give_up
            is_failing = self.is_failing if self.is_supported else True
            self._deadline.begin(0.0 if give_up else timeout, is_failing=is_failing)
            self._changed.notify()
        while self._thread.is_alive() and (left := self._deadline.left()):
            self._thread.join(left)
        with self._changed:
            is_sending = self._thread.is_alive()
            line = self.queue.last_line(self.last_error, timed_out=is_sending and not self.abandoned)
            self.abandoned = self.abandoned or is_sending
        if line:
            begin, end = line
            log.warning("dask-otel %s with exporter %r%s%s", begin, self.name, self._through, end)
        shut_down(self._sender, self._safety, is_sending=is_sending)

    @property
    def mark(self) -> int:
        """Which items have been added so far, see ``is_settled``."""
        with self._changed:
            return self.queue.added

    def is_settled(self, mark: int) -> bool:
        """Whether all items up to a ``mark`` are sent, or dropped for good."""
        with self._changed:
            return self.queue.settled >= mark

    @property
    def is_local(self) -> bool:
        """Whether it writes to this machine's disk."""
        return self._sender.is_local

    @property
    def is_supported(self) -> bool:
        """False for a backend without a place for this signal."""
        return not self.unsupported

    @property
    def is_due(self) -> bool:
        """Whether data may be sent: always, unless the backend takes none and was asked a short time ago."""
        return self.is_supported or monotonic() >= self._due

    @property
    def unsent(self) -> int:
        """Number of items that wait, are in flight, or were dropped."""
        with self._changed:
            return self.queue.waiting + self.queue.in_flight + self.queue.dropped.total()

    def status(self) -> dict[str, Any]:
        """Return what became of the items, as plain data for the page."""
        sender = self._sender
        with self._changed:
            return (
                {
                    "name": self.name,
                    "target": sender.target,
                    "protocol": sender.protocol,
                    "headers": list(sender.header_names),
                    "proxy": str(sender.proxy or ""),
                    "via": sender.proxy._asdict() if sender.proxy else None,
                    "requested_at": self.requested_at,
                    "failing": self.is_failing,
                    "since": self.failing_since,
                    "last_error": self.last_error,
                    "last_error_at": self.last_error_at,
                }
                | self.queue.status()
                | ({"unsupported": self.unsupported} if self.queue.is_latest_only else {})
            )

    def _run(self) -> None:
        # Else the user's instrumentation of requests or grpc would trace our own requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while True:
            has_failed = True
            batch = None
            with self._safety.guard("exporter thread"):
                batch = self._next_batch()
                has_failed = False
            if batch:
                if not self.abandoned:
                    with self._guard():
                        self.queue.export(batch, self._send)
                if self.queue.in_flight:  # nothing was tried, or the bridge itself has failed
                    self.queue.drop(batch, "shutdown" if self.abandoned else "fault")
                self._log_losses()
            elif self._is_closing:
                return
            elif has_failed:
                sleep(BACK_OFF[0])

    def _next_batch(self) -> Any:
        """Wait for a batch; empty if there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self.queue.waiting or self._is_closing)
        self._pack()
        with self._changed:
            self._changed.wait_for(
                lambda: self.queue.waiting >= self.queue.max_batch or self._is_closing,
                max(self.queue.delay, self._requested + self.queue.spacing - monotonic()),
            )
            return self.queue.take()

    def _send(self, data: Any) -> ExportResult:
        """Send data in one request, again and again while it may still arrive; return the last result."""
        retry, begin = self.queue.retry, monotonic()
        back_off, longest = retry.back_off
        while not self.abandoned:
            is_closing = self._is_closing
            if is_closing and self.is_failing:  # the collector may just have come back
                with self._guard():
                    self._sender.reconnect()
            result = self._sender.broken
            self.requested_at = time()
            self._requested = monotonic()
            with self._guard():
                result = self._sender.send(data)
            self.requested_at = None
            self._note(result)
            is_refused = result.decision is RetryDecision.REFUSED and monotonic() - begin >= retry.give_up_after
            if is_refused or result.decision not in (RetryDecision.LATER, RetryDecision.REFUSED):
                return result
            if not self._wait(back_off * random.uniform(0.5, 1.0), result, is_closing=is_closing):
                break
            back_off = min(2 * back_off, longest)
        return ExportResult(RetryDecision.LATER)

    def _wait(self, seconds: float, result: ExportResult, *, is_closing: bool) -> bool:
        """Wait before another attempt; False if none is to be made.

        Parameters
        ----------
        is_closing
            Whether shutdown had begun before the last attempt.
        """
        asked = (result.wait or 0.0) * random.uniform(1.0, 1.1)
        with self._changed:
            if not self._is_closing:
                # A collector that asks to be left alone is, also with something newer.
                self._pause(max(seconds, asked), result)
            elif is_closing or result.wait is not None:
                pause = self._deadline.pause(max(min(seconds, SHUTDOWN_BACK_OFF), asked), result)
                if pause is not None:
                    self._changed.wait(pause)
                elif not self._is_superseded:  # else the last snapshot has an attempt of its own
                    self.abandoned = True
            return not (self.abandoned or self._is_superseded)

    def _pause(self, seconds: float, result: ExportResult) -> None:
        """Wait for seconds, for shutdown, or for something newer, and pack what comes meanwhile; the caller locks."""
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            if self._is_closing or (result.wait is None and self._is_superseded):
                return
            self._changed.release()
            try:
                self._pack()
            finally:
                self._changed.acquire()
            self._changed.wait(left)

    def _pack(self) -> None:
        pacer = Pacer()
        with self._guard():
            for _ in self.queue.packing():
                if self._is_closing:
                    return
                pacer.rest()

    def _note(self, result: ExportResult) -> None:
        """Note the result of a request, and log what a person should know."""
        items, failed = self.queue.items, result.decision is not RetryDecision.SENT
        # A backend that has taken metrics before has a place for them.
        if result.is_unsupported and self.queue.is_optional and not self.queue.sent:
            self._note_unsupported(result)
            return
        is_about_data = result.decision in (RetryDecision.TOO_LARGE, RetryDecision.INVALID)
        with self._changed:
            if failed or result.message or result.rejected:
                self.last_error, self.last_error_at = result.message or f"{result.rejected} rejected", time()
            if is_about_data and self.queue.retry.can_split:
                return
            was_failing, since = self.is_failing, self.failing_since or time()
            if was_failing is not failed:
                self.is_failing, self.failing_since = failed, time()
            was_supported = self.is_supported
            if not failed:
                self.unsupported = ""
            self.queue.failures += failed
            if not failed:
                self._deadline.arrived()
            left = self.queue.waiting + self.queue.in_flight
        if failed and self._may_log("failing"):
            target = (self._sender.target or "its backend") + self._through
            is_unsupported = result.is_unsupported and self.queue.is_latest_only
            hint = NO_METRICS if is_unsupported else f"it tries again; {left} {'waits' if left == 1 else 'wait'}"
            if self.is_local:
                hint = "they are lost there; it tries again with the next ones. Nothing else is affected"
            log.warning(
                "dask-otel cannot send %s with exporter %r to %s (%s); %s",
                items,
                self.name,
                target,
                result.message,
                hint,
            )
        elif not failed and not was_supported:
            log.info("dask-otel: the backend of exporter %r takes %s now", self.name, items)
        elif was_failing and not failed:
            log.info("dask-otel sends %s again with exporter %r, after %.0f s", items, self.name, time() - since)
        self._log_losses()

    def _note_unsupported(self, result: ExportResult) -> None:
        """Note that the backend has no place for the signal, which is no failure; log it once."""
        with self._changed:
            is_first = not self.unsupported
            self.unsupported = result.message
            if self.is_failing is not False:
                self.is_failing, self.failing_since = False, time()
            self._due = monotonic() + self._unsupported_pause
            self._unsupported_pause = min(2 * self._unsupported_pause, UNSUPPORTED_BACK_OFF[1])
        if is_first:
            log.info(
                "dask-otel: exporter %r, %s takes no %s (%s): only spans are sent. OTEL_METRICS_EXPORTER=none switches "
                "metrics off, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT sends them elsewhere",
                self.name,
                self._sender.target + self._through,
                self.queue.items,
                result.message,
            )

    def _log_losses(self) -> None:
        """Log what was dropped, if that is more than when it was logged last."""
        with self._changed:
            total, losses, last_error = self.queue.dropped.total(), self.queue.losses(), self.last_error
        if total > self._logged_losses and self._may_log("dropped"):
            self._logged_losses = total
            why = f"; last error: {last_error}" if last_error else ""
            log.warning("dask-otel has dropped %s of exporter %r: %s%s", self.queue.items, self.name, losses, why)

    def _may_log(self, topic: str) -> bool:
        """Whether it is time for another line on a topic, which then counts as logged; not during shutdown."""
        every = self.queue.retry.log_every
        if self._is_closing or monotonic() - self._logged_at.get(topic, -every) < every:
            return False
        self._logged_at[topic] = monotonic()
        return True

    def _guard(self) -> AbstractContextManager[None, bool]:
        return self._safety.guard(f"exporter {self.name}")

    @property
    def _is_superseded(self) -> bool:
        return self.queue.is_latest_only and self.queue.waiting > 0

    @property
    def _is_closing(self) -> bool:
        return self._deadline.deadline is not None

    @property
    def _through(self) -> str:
        return f" through {self._sender.proxy}" if self._sender.proxy else ""


class TelemetryOutput:
    """Gives records, past the sampler and the rate limit, and snapshots to all export threads.

    Parameters
    ----------
    interval
        Seconds from one snapshot to the next.
    recent_runs
        Takes the records too, whether or not they are sent.
    problems, remarks
        Lines about the variables, for the status: as ``Found.problems``, and about what is no fault.
    """

    def __init__(
        self,
        span_threads: Sequence[ExportThread],
        sampling: Sampling,
        rate_limiter: RateLimiter,
        redactor: Redactor,
        metric_threads: Sequence[ExportThread] = (),
        interval: float = 60.0,
        recent_runs: RecentRuns | None = None,
        problems: Sequence[str] = (),
        remarks: Sequence[str] = (),
    ) -> None:
        self.span_threads = span_threads
        self.metric_threads = metric_threads
        self.recent_runs = recent_runs
        self._sampling = sampling
        self._rate_limiter = rate_limiter
        self._redactor = redactor
        self._problems = problems
        self._remarks = remarks
        self._interval = interval
        #: When the next snapshot is due: the first at once, and some soon after, so that what is brief is seen.
        self._due = monotonic()
        self._pause = FIRST_PAUSE
        self._last_snapshot: Snapshot | None = None
        self._unsampled: Counter[str] = Counter()
        self._finished: deque[dict[str, Any]] = deque(maxlen=MAX_FINISHED)
        #: Another output that gets what this one cannot send any more.
        self._heir: Any = None

    def put(self, records: list[Record]) -> list[Record]:
        """Give records that should leave together to all span threads; return those that were not left out."""
        if not records:
            return []
        last = records[-1]
        sampled = self._sampling.decided(last).takes
        if self.recent_runs:
            self.recent_runs.add(records)
        if isinstance(last, SegmentRecord) and last.is_top:
            self._finished.append(self._summary(last, sampled=sampled))
        if not sampled:
            self._unsampled.update(map(kind_of, records))
            return []
        records = self._rate_limiter.admit(records)
        for thread in self.span_threads:
            thread.put(list(records))
        return records if self.span_threads else []

    @property
    def sampler(self) -> Callable[..., bool] | None:
        """Return what decides which traces are sent; None if their callers alone do."""
        sampling = self._sampling
        return (lambda *trace: sampling.decide(*trace).takes) if sampling.has_sampler else None

    def packing(self) -> Iterator[None]:
        """Pack what waits for all span threads, if that is much; lazy, each step takes a quarter of a millisecond."""
        for thread in self.span_threads:
            yield from thread.queue.packing()

    def leave_to(self, heir: Any) -> None:
        """Give spans that cannot be sent until the shutdown ends to another ``TelemetryOutput``; each only once.

        From now on, both keep the same runs for the page.
        """
        self._heir = heir
        heir.share_runs(self._finished, self.recent_runs)
        for thread in self.span_threads[:1]:
            if isinstance(thread.queue, SpanExportQueue):
                thread.queue.heir = heir.put_again

    def share_runs(self, finished: deque[dict[str, Any]], recent_runs: RecentRuns | None) -> None:
        """Continue the runs of another output for the page, unless other settings of the page or privacy apply."""
        if self.recent_runs and recent_runs and recent_runs.is_like(self.recent_runs):
            self._finished, self.recent_runs = finished, recent_runs

    def put_again(self, records: list[Record]) -> None:
        """Give records that have passed the sampler and the rate limit of another output to all span threads."""
        if self._heir:
            self._heir.put_again(records)
            return
        for thread in self.span_threads:
            thread.put(list(records))

    def mark(self) -> tuple[int, ...]:
        """Return which records have been put so far, see ``is_settled``."""
        return tuple(thread.mark for thread in self.span_threads)

    def is_settled(self, mark: tuple[int, ...]) -> bool:
        """Whether all records up to a ``mark`` have left every queue: they are sent, or dropped for good."""
        return all(thread.is_settled(each) for thread, each in zip(self.span_threads, mark, strict=True))

    def wants_metrics(self, *, last: bool = False) -> bool:
        """Whether a snapshot is due; if so, the next one is due later.

        The last one always is, if any exporter may take it; ask when the spans are closed.
        """
        if last:
            return not all(map(self._gives_up, self.metric_threads))
        now = monotonic()
        if not self.metric_threads or now < self._due:
            return False
        if self._pause < self._interval:
            self._due, self._pause = now + self._pause, 2 * self._pause
        else:  # a late one does not make those after it late
            self._due += self._interval * ((now - self._due) // self._interval + 1)
        return any(thread.is_due for thread in self.metric_threads)

    def put_metrics(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Give a snapshot to all metric threads; the last one leaves with ``close_metrics``, which follows."""
        if last:
            self._last_snapshot = snapshot
        else:
            for thread in self.metric_threads:
                if thread.is_due:
                    thread.put(snapshot)

    def exporters(self) -> list[ExporterCounts]:
        """Return what became of the spans so far."""
        over_limit = sum(self._rate_limiter.given_up.values())
        return [_exporter_counts(thread, over_limit) for thread in self.span_threads]

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting or were dropped, over all exporters."""
        return sum(thread.unsent for thread in self.span_threads)

    @property
    def is_away(self) -> bool:
        """Whether the last request of every exporter that has made one has failed."""
        threads = [*self.span_threads, *(thread for thread in self.metric_threads if thread.is_supported)]
        known = [thread.is_failing for thread in threads]
        return any(known) and False not in known

    def close_spans(self, timeout: float) -> None:
        """Send the spans that are left, within ``timeout`` seconds less what the last metrics may need."""
        if self.recent_runs and not (self._heir and self._heir.recent_runs is self.recent_runs):
            self.recent_runs.close()
        kept = min(FOR_METRICS, timeout / 4) if any(thread.is_supported for thread in self.metric_threads) else 0.0
        _close_all([thread.close for thread in self.span_threads], timeout, kept)

    def close_metrics(self, timeout: float) -> None:
        """Send the last snapshot, within ``timeout`` seconds."""
        _close_all(
            [
                partial(thread.close, last=self._last_snapshot, give_up=self._gives_up(thread))
                for thread in self.metric_threads
            ],
            timeout,
        )

    def close(self, timeout: float) -> None:
        """Close all, within ``timeout`` seconds in all."""
        deadline = monotonic() + timeout
        self.close_spans(timeout)
        self.close_metrics(max(0.0, deadline - monotonic()))

    def title(self, span: SpanInfo, name: str) -> str:
        """Return the name of a span's segments as it may be shown."""
        return shorten(self._redactor.title(span, name), MAX_NAME)

    @property
    def hidden(self) -> list[str]:
        """Return what is not recorded, by the names under ``otel.capture``."""
        return [each.name for each in fields(Capture) if not getattr(self._redactor.capture, each.name)]

    def clients(self, ids: tuple[str, ...]) -> list[str]:
        """Return the names in ids of clients as they may be shown."""
        return client_names(self._redactor.clients(ids))

    def status(self) -> dict[str, Any]:
        """Return what became of everything, as plain data for the page."""
        return {
            "exporters": [thread.status() for thread in self.span_threads],
            "metrics": [thread.status() for thread in self.metric_threads],
            "problems": list(self._problems),
            "remarks": list(self._remarks),
            "unsampled": dict(self._unsampled),
            "over_budget": dict(self._rate_limiter.given_up),
            "finished": [each | {"run": self._path(each["run"])} for each in self._finished],
        }

    def _path(self, run: RunId) -> str | None:
        return run.path if self.recent_runs and self.recent_runs.has(run) else None

    def _gives_up(self, thread: ExportThread) -> bool:
        """Whether the last metrics are not worth an attempt, since neither metrics nor spans have arrived."""
        is_lost = thread.is_failing or not thread.is_supported
        sending = [each for each in self.span_threads if not each.is_local]
        return bool(is_lost and sending and all(each.is_failing for each in sending))

    def _error(self, record: SegmentRecord) -> str | None:
        failure = self._redactor.failure(record.failure)
        if failure is None:
            return None
        description = clean(error_description(failure), MAX_NAME)
        return description if failure.type in ENDS else typed_error(failure.type, description)

    def _summary(self, record: SegmentRecord, *, sampled: bool) -> dict[str, Any]:
        return {
            "id": record.span.id,
            "name": self.title(record.span, record.name),
            "trace_id": f"{record.trace_id:032x}" if sampled else None,
            "run": RunId(record.trace_id, record.span_id),
            "start": record.start,
            "end": record.end,
            "duration": record.end - record.start,
            "result": record.result,
            "error": self._error(record),
            "clients": self.clients(record.clients),
            "tasks": record.tally.tasks,
            **self._reasons(record),
        }

    def _reasons(self, record: SegmentRecord) -> dict[str, Any]:
        """Why it took as long as it did."""
        verdict = record.verdict and self._redactor.verdict(record.verdict)
        first = verdict.findings[0] if verdict and verdict.findings else None
        waterfall = record.waterfall
        return {
            "verdict": [finding.id for finding in verdict.findings] if verdict else None,
            "verdict_text": clean(verdict.text) if verdict else "",
            "verdict_withheld": clean(verdict.withheld) if verdict else "",
            "at_most": first.at_most if first else None,
            "waterfall": {part: waterfall.wall(part) for part in PARTS if waterfall.wall(part)} if waterfall else None,
        }


def _close_all(closes: Sequence[Callable[[float], None]], timeout: float, kept: float = 0.0) -> None:
    deadline = monotonic() + timeout
    each = timeout - max(kept, min(FOR_LAST_LINE, timeout / 5))
    closing = [threading.Thread(target=close, args=(each,), daemon=True) for close in closes]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(max(0.0, deadline - monotonic()))


def _exporter_counts(thread: ExportThread, over_limit: int) -> ExporterCounts:
    status = thread.status()
    lost: Counter[str] = Counter()
    for each in status["dropped"]:
        lost[each["reason"]] += each["count"]
    waiting = status["queue"]["spans"] + status["in_flight"]
    if waiting and thread.abandoned:  # it hangs, and has not counted them yet
        waiting, lost["shutdown"] = 0, lost["shutdown"] + waiting
    dropped = {"queue_full": lost.pop("queue_full", 0), "over_budget": over_limit}
    return ExporterCounts(
        name=status["name"],
        waiting=waiting,
        capacity=status["queue"]["max_spans"],
        exported=sum(status["sent"].values()),
        dropped={reason: count for reason, count in dropped.items() if count},
        failed=dict(lost),
    )


@dataclass
class Found:
    """The exporters and options that the standard variables name; each signal stands for itself."""

    remarks: Remarks = field(default_factory=Remarks)
    #: Exporters of spans, and what else concerns them alone.
    spans: list[Sender] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    sampler: Sampler | None = None
    span_limits: SpanLimits | None = None
    #: Why no spans are sent.
    spans_error: SettingError | None = None
    #: The same of metrics: seconds between two exports, and the kinds that count from one export to the next.
    metrics: list[Sender] = field(default_factory=list)
    interval: float = 0.0
    deltas: frozenset[Kind] = frozenset()
    metrics_error: SettingError | None = None

    def problems(self) -> list[str]:
        """Describe what is wrong with the variables, and its consequence; without secrets."""
        lines = [*self.remarks.problems]
        lines += [f"{name} is set, but not read; use the other OTEL_* variables" for name in not_read()]
        if self.spans_error and str(self.spans_error) == str(self.metrics_error) and not self.spans:
            return [*lines, f"{self.spans_error}; dask-otel stays off"]
        errors = ((self.spans_error, "spans"), (self.metrics_error, "metrics"))
        return lines + [f"{error}; no {what} are sent" for error, what in errors if error]


def read_variables(endpoint: str | None = None, folder: FolderSender | None = None) -> Found:
    """Make the exporters that the standard variables name.

    Parameters
    ----------
    endpoint
        As for ``make_senders``.
    folder
        Another exporter of spans, which needs no variable.
    """
    found = Found()
    remarks = found.remarks
    remarks.problems += misspelt()
    try:
        found.spans = make_senders(endpoint, TRACES, remarks)
    except SettingError as error:
        found.spans_error = error
    if folder:
        found.spans.append(folder)
    if found.spans:
        found.limits, found.span_limits = make_limits(remarks), make_span_limits(remarks)
        found.sampler = make_sampler(remarks)
    try:
        found.metrics = make_senders(endpoint, METRICS, remarks)
        if found.metrics:
            found.interval, found.deltas = metric_interval(remarks), delta_kinds(remarks)
    except SettingError as error:
        found.metrics_error = error
    return found


def connect(
    *,
    service_name: str,
    instance_id: str,
    version: str,
    cluster_name: str | None,
    safety: Safety,
    capture: Mapping[str, bool],
    max_rate: int,
    recent_runs: int = 0,
    folder: str | None = None,
    folder_size: int = 0,
) -> TelemetryOutput | None:
    """Make what exports records and metrics to the backends that the standard variables name.

    An error in the variables of one signal leaves the other one on.

    Parameters
    ----------
    capture
        What may be shown, by the names of ``Capture``'s fields.
    max_rate
        Spans a minute; 0 for no limit.
    recent_runs
        Number of finished runs that are kept for the page.
    folder, folder_size
        Where spans are kept in files, and their bytes at most; None if they are not.

    Returns
    -------
    None if OpenTelemetry is switched off. If no signal has an exporter, the output only keeps what the page shows.

    Raises
    ------
    SettingError
        If nothing can be sent because of a variable.
    """
    if sdk_disabled():
        log.info("dask-otel is off: %s", DISABLED)
        return None
    found = read_variables(folder=FolderSender(folder, folder_size, instance_id) if folder else None)
    errors = {"spans": found.spans_error, "metrics": found.metrics_error}
    why = None if found.spans or found.metrics else found.spans_error or found.metrics_error
    for what, error in errors.items():
        if error and (why is None or str(error) != str(why)):
            log.error("dask-otel sends no %s: %s", what, error)
    if why:
        raise why
    for line in found.remarks.readings:
        log.info("dask-otel: %s", line)
    for line in found.remarks.problems:
        log.warning("dask-otel: %s", line)
    for name in not_read():
        log.warning("dask-otel does not read %s; it takes its configuration from the other OTEL_* variables", name)
    redactor = Redactor(Capture(**capture), instance_id)
    sampling = Sampling(found.sampler, redactor.tags, safety)
    resource = make_resource(
        service_name=service_name, instance_id=instance_id, version=version, cluster_name=cluster_name
    )
    scope = InstrumentationScope("dask_otel", __version__)
    # The preference for deltas is a variable of OTLP.
    otlp = MetricFactory(resource, scope, redactor.metric_attribute, found.deltas)
    plain = MetricFactory(resource, scope, redactor.metric_attribute)
    metric_threads = [
        ExportThread(
            sender,
            MetricExportQueue(
                otlp if sender.target else plain,
                is_optional=any(not each.is_local for each in found.spans) and is_default_endpoint(METRICS),
            ),
            safety,
        )
        for sender in found.metrics
    ]
    span_threads = []
    if found.span_limits:
        factory = SpanFactory(resource, scope, found.span_limits, redactor, sampling.known)
        span_threads = [
            ExportThread(
                sender,
                SpanExportQueue(sender.form(factory), safety, found.limits, FOLDER_RETRY if sender.is_local else None),
                safety,
            )
            for sender in found.spans
        ]
    return TelemetryOutput(
        span_threads,
        sampling,
        RateLimiter(max_rate),
        redactor,
        metric_threads,
        interval=found.interval,
        recent_runs=RecentRuns(recent_runs, redactor, safety) if recent_runs else None,
        problems=found.problems(),
        remarks=found.remarks.readings,
    )
