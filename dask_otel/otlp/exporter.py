"""Whether a backend can be reached, since when, and what it said last.

What became of the spans that one exporter was given: counted, and said in the log once a minute at most.

How long closing waits for a collector: only a failure that is known makes it short.

From record to backend: what waits, and a thread, so that the event loop never waits for a collector.

From snapshot to backend, in a thread of its own; the latest one counts, since totals say it all.

Where records go, past the sampler and the budget, and metrics: to every exporter.

Puts the export side together.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, sleep, time
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from ..errors import Remarks, SettingError
from ..metrics.snapshot import ExporterCounts, Snapshot, deltas
from ..privacy import Capture, Redactor
from ..safety import Safety, log
from ..schema import MAX_NAME, Kind, clean
from ..spantree.events import SpanInfo
from ..spantree.records import Record, SegmentRecord
from .environment import (
    METRICS,
    TRACES,
    Limits,
    delta_kinds,
    make_limits,
    make_resource,
    make_span_limits,
    metric_interval,
    not_read,
    sdk_disabled,
)
from .metrics import MetricFactory
from .queue import RateLimiter, SpanQueue
from .sampling import Sampling, make_sampler
from .spans import SpanFactory, kind_of
from .transport import ExportResult, Paced, RetryDecision, Sender, import_exporters, make_senders, shut_down

__all__ = [
    "LAST_CHANCE",
    "NO_METRICS",
    "ExporterState",
    "Found",
    "MetricExportThread",
    "ShutdownDeadline",
    "SpanExportThread",
    "SpanExporterState",
    "TelemetryOutput",
    "connect",
    "import_exporters",
    "read_variables",
]


class ExporterState:
    """What is known of the way to one backend.

    Parameters
    ----------
    name
        Of the exporter.
    target
        Where it sends to; holds no secret.
    warn_every
        Seconds between two lines in the log on one topic.
    proxy
        What the way leads through, for a person; holds no secret.
    """

    def __init__(self, name: str, target: str, warn_every: float, proxy: str = "") -> None:
        self.name = name
        self.target = target
        self.proxy = proxy
        self._warn_every = warn_every
        #: Whether the last request failed; None before there was one, and since when (seconds since the epoch).
        self.is_failing: bool | None = None
        self.since: float | None = None
        #: What the last failure said, and when.
        self.last_error = ""
        self.last_error_at: float | None = None
        #: Set when only the last word is to be logged.
        self.is_silent = False
        #: By topic, when it was last logged.
        self._warned: dict[str, float] = {}

    @property
    def shown_target(self) -> str:
        """Where it sends to, and through which proxy, for a person."""
        return (self.target or "its backend") + self.through

    @property
    def through(self) -> str:
        """What to add to a line if there is a proxy."""
        return f" through {self.proxy}" if self.proxy else ""

    def note(self, *, failing: bool) -> None:
        """Note how a request went."""
        if self.is_failing is not failing:
            self.is_failing, self.since = failing, time()

    def note_error(self, said: str) -> None:
        """Note what was said."""
        self.last_error, self.last_error_at = said, time()

    def may_warn(self, topic: str) -> bool:
        """Whether it is time for another line on a topic; it counts as logged then."""
        if self.is_silent or monotonic() - self._warned.get(topic, -self._warn_every) < self._warn_every:
            return False
        self._warned[topic] = monotonic()
        return True

    def status(self) -> dict[str, Any]:
        """Say all this as plain data."""
        return {
            "name": self.name,
            "target": self.target,
            "proxy": self.proxy,
            "failing": self.is_failing,
            "since": self.since,
            "last_error": self.last_error,
            "last_error_at": self.last_error_at,
        }


#: Seconds between two lines of the same kind.
WARN_EVERY = 60.0


class SpanExporterState(ExporterState):
    """Counts for one exporter."""

    def __init__(self, name: str, target: str = "", proxy: str = "") -> None:
        super().__init__(name, target, WARN_EVERY, proxy)
        #: By kind of span.
        self.sent: Counter[str] = Counter()
        #: By kind of span and reason: queue_full, refused, invalid, too_large, rejected, shutdown, fault.
        self.dropped: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._warned_of = 0

    def count_sent(self, records: list[Record], rejected: int, said: str) -> None:
        """Count a batch that has arrived, of which the collector may have rejected some; which, it does not say."""
        kinds = Counter(map(kind_of, records))
        lost = min(rejected, len(records))
        if 0 < lost < len(records) and len(kinds) > 1:
            kinds = Counter({"unknown": len(records)})
        with self._lock:
            for kind, count in kinds.items():
                gone = min(lost, count)
                self.sent[kind] += count - gone
                if gone:
                    self.dropped[kind, "rejected"] += gone
            if lost or said:
                self.note_error(f"{rejected} spans rejected: {said}" if lost else said)

    def count_lost(self, kinds: Counter[str], reason: str, said: str = "") -> None:
        """Count spans that were given up, and keep what the last answer said."""
        with self._lock:
            for kind, count in kinds.items():
                self.dropped[kind, reason] += count
            if said:
                self.note_error(said)

    def works(self) -> None:
        """Note a request that has succeeded."""
        if self.is_failing:
            log.info("dask-otel sends again with exporter %r, after %.0f s", self.name, time() - (self.since or time()))
        self.note(failing=False)

    def fails(self, said: str, waiting: int) -> None:
        """Note a request that has failed and will be made again."""
        with self._lock:
            self.note_error(said)
        self.note(failing=True)
        if self.may_warn("failing"):
            log.warning(
                "dask-otel cannot send spans with exporter %r to %s (%s); %d wait, and it tries again",
                self.name,
                self.shown_target,
                said,
                waiting,
            )

    def warn_of_losses(self) -> None:
        """Say what was lost, if that is more than when it was said last."""
        total = self.total_dropped
        if total > self._warned_of and self.may_warn("dropped"):
            self._warned_of = total
            said = f"; what was said last: {self.last_error}" if self.last_error else ""
            log.warning("dask-otel has dropped spans of exporter %r: %s%s", self.name, self.summary(), said)

    def summary(self) -> str:
        """Say what was dropped and why, e.g. ``12 task (queue_full), 1 span (invalid)``."""
        with self._lock:
            dropped = sorted(self.dropped.items())
        return ", ".join(f"{count} {kind} ({reason})" for (kind, reason), count in dropped)

    def status(self) -> dict[str, Any]:
        """Say what became of the spans, as plain data."""
        with self._lock:
            dropped = sorted(self.dropped.items())
            return super().status() | {
                "sent": dict(self.sent),
                "dropped": [{"kind": kind, "reason": reason, "count": n} for (kind, reason), n in dropped],
            }

    @property
    def total_sent(self) -> int:
        """Number of spans that have arrived."""
        with self._lock:
            return sum(self.sent.values())

    @property
    def total_dropped(self) -> int:
        """Number of spans that were given up."""
        with self._lock:
            return sum(self.dropped.values())


#: Seconds from the beginning of closing for a collector that had been failing, or cannot be reached any more.
LAST_CHANCE = 0.6
#: Seconds between two attempts in that time: a connection that was idle may have been dropped, and one more will do.
SHORT_PAUSE = 0.1


class ShutdownDeadline:
    """Until when closing waits, and whether another attempt may be made.

    The caller sees to it that only one thread uses it at a time, but for ``left``.
    """

    def __init__(self) -> None:
        #: When closing must end, once it has begun.
        self.deadline: float | None = None
        self._last_chance = 0.0
        #: Whether the collector worked when closing began, or has since.
        self._was_well = False
        #: When closing ends as things are.
        self._until = 0.0

    def begin(self, timeout: float, *, is_failing: bool | None, last_chance: float | None = None) -> None:
        """Closing begins, and may take ``timeout`` seconds.

        Parameters
        ----------
        is_failing
            Whether the last request failed; None if there was none that has ended.
        last_chance
            Seconds for a collector that is failing; ``LAST_CHANCE`` if None.
        """
        now = monotonic()
        self.deadline = now + timeout
        self._last_chance = min(self.deadline, now + (LAST_CHANCE if last_chance is None else last_chance))
        self._was_well = is_failing is False
        # A collector that has not answered its first request yet may only be slow.
        self._until = self._last_chance if is_failing else self.deadline

    def arrived(self) -> None:
        """The collector has taken something, perhaps what was on its way when closing began."""
        self._was_well = True
        self._until = self.deadline or 0.0

    def left(self) -> float:
        """Seconds that closing may still wait, as things are."""
        return max(0.0, self._until - monotonic())

    def pause(self, seconds: float, answer: ExportResult) -> float | None:
        """Seconds to wait before another attempt; None if there is to be none.

        Parameters
        ----------
        seconds
            To wait if there is time.
        answer
            To the last attempt, which was made after closing had begun.
        """
        deadline = self.deadline or 0.0
        if answer.wait is not None or (self._was_well and answer.was_reached):
            until = deadline
        elif self._was_well or (answer.was_reached and answer.decision is RetryDecision.LATER):
            until, seconds = self._last_chance, min(seconds, SHORT_PAUSE)
        else:
            return None
        if monotonic() + seconds >= until:
            return None
        self._until = max(self._until, until)
        return seconds


#: Seconds to wait after a failure: doubled each time, up to the second number.
BACK_OFF = (0.5, 30.0)
#: A batch that is refused for so many seconds is given up; one that the collector is only too busy for is not.
GIVE_UP_AFTER = 600.0
#: Requests that one batch may cost by halving: enough to find three bad spans in 256.
MAX_REQUESTS = 64
#: Bytes of one batch, by ``size_of``; collectors refuse 4 MiB.
MAX_BATCH_BYTES = 3 * 2**20
#: Why spans are counted as lost, by the last answer.
_REASONS = {
    RetryDecision.LATER: "shutdown",
    RetryDecision.REFUSED: "refused",
    RetryDecision.TOO_LARGE: "too_large",
    RetryDecision.INVALID: "invalid",
}

Converted = list[tuple[Record, ReadableSpan]]


class SpanExportThread:
    """Sends records through one exporter, in a thread of its own.

    Parameters
    ----------
    factory
        Makes spans of records; used in the thread.
    """

    def __init__(self, sender: Sender, factory: SpanFactory, safety: Safety, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.delivery = SpanExporterState(sender.name, sender.target, str(sender.proxy or ""))
        self._sender = sender
        self._factory = factory
        self._safety = safety
        self._max_batch = min(limits.max_batch, limits.max_waiting)
        self._delay = limits.delay
        self._waiting = SpanQueue(
            limits.max_waiting, limits.max_bytes, lambda kinds: self.delivery.count_lost(kinds, "queue_full")
        )
        self._in_flight = 0
        self._deadline = ShutdownDeadline()
        #: Whether nothing is to be sent any more.
        self.abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"dask-otel {sender.name}", daemon=True)
        self._thread.start()

    def put(self, records: list[Record]) -> None:
        """Take records that should leave together; never blocks."""
        if records:
            with self._changed:
                self._waiting.put(records)
                self._changed.notify()
            self.delivery.warn_of_losses()

    def close(self, timeout: float) -> None:
        """Send what is left within ``timeout`` seconds, then shut the exporter down."""
        with self._changed:
            self._deadline.begin(timeout, is_failing=self.is_failing)
            self.delivery.is_silent = True  # but for the last word
            self._changed.notify()
        while self._thread.is_alive() and (left := self._deadline.left()):
            self._thread.join(left)
        self._say_last_word()
        is_sending = self._thread.is_alive()
        self.abandoned = self.abandoned or is_sending
        shut_down(self._sender, self._safety, is_sending=is_sending)

    def _say_last_word(self) -> None:
        with self._changed:
            left, dropped, sent = self._left, self.delivery.total_dropped, self.delivery.total_sent
        if left + dropped:
            summary, said = self.delivery.summary(), self.delivery.last_error
            log.warning(
                "dask-otel could not send %d spans with exporter %r%s%s%s; it has sent %d%s",
                left + dropped,
                self.delivery.name,
                self.delivery.through,
                f": {summary}" if summary else "",
                f"; {left} were left when the time was over" if left else "",
                sent,
                f"; what was said last: {said}" if said else "",
            )

    @property
    def is_failing(self) -> bool | None:
        """Whether the last request failed; None before there was one."""
        return self.delivery.is_failing

    @property
    def _left(self) -> int:
        return self._waiting.spans + self._in_flight

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting, on their way, or dropped."""
        with self._changed:
            return self._left + self.delivery.total_dropped

    def status(self) -> dict[str, Any]:
        """Say what became of the records, as plain data for the page."""
        with self._changed:
            queue = self._waiting.status()
            return self.delivery.status() | {"queue": queue, "in_flight": self._in_flight}

    def _run(self) -> None:
        # Else the user's instrumentation of requests or grpc would trace our own requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while True:
            batch: list[Record] | None = None
            with self._safety.guard("exporter thread"):
                batch = self._next_batch()
            if batch:
                with self._safety.guard(f"exporter {self.delivery.name}"):
                    self._deliver(batch)
                if self._in_flight:  # the bridge itself has failed
                    self._lost(batch[-self._in_flight :], "fault")
            elif self._deadline.deadline is not None:
                return
            elif batch is None:
                sleep(BACK_OFF[0])

    def _next_batch(self) -> list[Record]:
        """Wait for records that may leave together; empty when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting.spans or self._deadline.deadline)
            self._changed.wait_for(
                lambda: self._waiting.spans >= self._max_batch or self._deadline.deadline, self._delay
            )
            batch = self._waiting.take(self._max_batch, MAX_BATCH_BYTES)
            self._in_flight = len(batch)
            return batch

    def _deliver(self, batch: list[Record]) -> None:
        """Send a batch, in parts if need be, and count what became of each."""
        if self.abandoned:
            self._lost(batch, "shutdown")
            return
        parts = [self._convert(batch)]
        requests = 0
        while parts:
            part = parts.pop()
            if not part:
                continue
            records = [record for record, _ in part]
            answer = self._send([span for _, span in part])
            requests += 1
            if answer.decision is RetryDecision.SENT:
                self.delivery.works()  # first: closing may begin at any time, and asks whether it does
                with self._changed:
                    self._in_flight -= len(part)
                    self._deadline.arrived()
                    self.delivery.count_sent(records, answer.rejected, answer.said)
                self.delivery.warn_of_losses()
            elif _is_about_the_batch(answer) and len(part) > 1 and requests < MAX_REQUESTS:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                self._lost(records, _REASONS[answer.decision], answer.said)

    def _lost(self, records: list[Record], reason: str, said: str = "") -> None:
        """Count records in flight that are given up."""
        with self._changed:
            self._in_flight -= len(records)
            self._waiting.note_lost(records)
            self.delivery.count_lost(Counter(map(kind_of, records)), reason, said)
        self.delivery.warn_of_losses()

    def _convert(self, batch: list[Record]) -> Converted:
        """Make spans. One that cannot be made costs at most its attributes."""
        spans: Converted = []
        for record in Paced(batch):
            span = self._span_of(record)
            if span:
                spans.append((record, span))
            else:
                self._lost([record], "fault")
        return spans

    def _span_of(self, record: Record) -> ReadableSpan | None:
        for make in (self._factory.span, self._factory.bare):
            with self._safety.guard("conversion"):
                return make(record)
        return None

    def _send(self, spans: list[ReadableSpan]) -> ExportResult:
        """Send a batch, again and again while the collector is away; return the answer that is the last."""
        begin = monotonic()
        longest, wait = BACK_OFF[1], BACK_OFF[0]
        while not self.abandoned:
            closes = self._deadline.deadline is not None
            if closes and self.is_failing:  # the collector may just have come back
                with self._safety.guard(f"exporter {self.delivery.name}"):
                    self._sender.reconnect()
            answer = self._sender.broken
            with self._safety.guard(f"exporter {self.delivery.name}"):
                answer = self._sender.send(Paced(spans))
            if answer.decision not in (RetryDecision.LATER, RetryDecision.REFUSED):
                return answer
            self.delivery.fails(answer.said, self._left)
            if answer.decision is RetryDecision.REFUSED and monotonic() - begin >= GIVE_UP_AFTER:
                return answer
            pause = max(wait * random.uniform(0.5, 1.0), (answer.wait or 0.0) * random.uniform(1.0, 1.1))
            wait = min(2 * wait, longest)
            if not self._wait(pause, answer, closes=closes):
                self.abandoned = True
        return ExportResult(RetryDecision.LATER)

    def _wait(self, seconds: float, answer: ExportResult, *, closes: bool) -> bool:
        """Wait before another attempt; False if none is to be made because the cluster closes.

        Parameters
        ----------
        closes
            Whether closing had begun before the last attempt.
        """
        with self._changed:
            if self._deadline.deadline is None:
                self._changed.wait_for(lambda: self._deadline.deadline, seconds)
                return True  # at once if it closes
            if not closes and answer.wait is None:
                return True
            pause = self._deadline.pause(seconds, answer)
            if pause is not None:
                self._changed.wait(pause)
            return pause is not None


def _is_about_the_batch(answer: ExportResult) -> bool:
    return answer.decision in (RetryDecision.TOO_LARGE, RetryDecision.INVALID)


#: What to do about a backend for traces only.
NO_METRICS = (
    "it seems to take no metrics: OTEL_METRICS_EXPORTER=none switches them off, "
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT sends them elsewhere"
)

#: Seconds before another attempt, and while the cluster closes.
METRICS_PAUSE = 15.0
METRICS_SHORT_PAUSE = 0.5
#: Seconds that closing waits for a collector that had been failing: an idle cluster has nothing else to send.
METRICS_LAST_CHANCE = 0.2
#: Seconds between two lines in the log.
METRICS_WARN_EVERY = 600.0


class MetricExportThread:
    """Sends snapshots through one exporter."""

    def __init__(self, sender: Sender, factory: MetricFactory, safety: Safety) -> None:
        self._sender = sender
        self._factory = factory
        self._safety = safety
        self._next: Snapshot | None = None
        #: The last that has arrived.
        self._arrived: Snapshot | None = None
        self._contact = ExporterState(sender.name, sender.target, METRICS_WARN_EVERY, str(sender.proxy or ""))
        self._exports = self._failures = self._rejected = 0
        self._deadline = ShutdownDeadline()
        #: The one that ends it all: closing follows.
        self._last: Snapshot | None = None
        #: Whether requests failed before that one.
        self._failed_before: bool | None = None
        #: Whether the last snapshot was given up.
        self._lost = False
        #: Whether the backend may take metrics at all.
        self.has_use = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"dask-otel metrics {sender.name}", daemon=True)
        self._thread.start()

    @property
    def is_failing(self) -> bool | None:
        """Whether the last request failed; None before there was one."""
        return self._contact.is_failing

    def put(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Take a snapshot in the place of one that has not left; never blocks.

        Parameters
        ----------
        last
            Whether it is the last one, and ``close`` follows.
        """
        with self._changed:
            self._next = snapshot
            if last:
                self._last, self._failed_before = snapshot, self.is_failing
            self._changed.notify()

    def close(self, timeout: float, *, give_up: bool = False) -> None:
        """Send what is left within ``timeout`` seconds, then shut the exporter down.

        Parameters
        ----------
        give_up
            Whether not to try: nobody is there.
        """
        with self._changed:
            if give_up:
                self._lost = self._lost or self._next is not None or self._contact.is_failing is True
                self._next, timeout = None, 0.0
            # The first attempt to send the last one may have failed already: that is no earlier failure.
            is_failing = self._failed_before if self._last and self.is_failing else self.is_failing
            self._deadline.begin(timeout, is_failing=is_failing, last_chance=METRICS_LAST_CHANCE)
            self._contact.is_silent = True  # but for the last word
            self._changed.notify()
        while self._thread.is_alive() and (left := self._deadline.left()):
            self._thread.join(left)
        if self._lost or (self._thread.is_alive() and self._next):
            said = self._contact.last_error if self._lost else "no answer in time"
            log.warning(
                "dask-otel could not send the last metrics with exporter %r%s: %s",
                self._sender.name,
                self._contact.through,
                said,
            )
        shut_down(self._sender, self._safety, is_sending=self._thread.is_alive())

    def status(self) -> dict[str, Any]:
        """Say what became of the snapshots, as plain data for the page."""
        with self._changed:
            counts = {"exports": self._exports, "failures": self._failures, "rejected": self._rejected}
            return self._contact.status() | counts

    def _run(self) -> None:
        # Else the user's instrumentation of requests or grpc would trace our own requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next or self._deadline.deadline)
                snapshot = self._next
                closes = self._deadline.deadline is not None or self._last is not None
            if snapshot is None:
                return
            if closes and self.is_failing:  # the collector may just have come back
                with self._safety.guard(f"exporter {self._sender.name}"):
                    self._sender.reconnect()
            answer = ExportResult(RetryDecision.INVALID, "it cannot be encoded")
            with self._safety.guard(f"exporter {self._sender.name}"):
                answer = self._send(snapshot)
            with self._safety.guard("metrics"):
                self._take(snapshot, answer, closes=closes)
                continue
            self._next = None  # else it would be taken again at once

    def _send(self, snapshot: Snapshot) -> ExportResult:
        kinds = self._factory.deltas
        shown = deltas(snapshot, self._arrived, kinds) if kinds else snapshot
        return self._sender.send(self._factory.data(shown))

    def _take(self, snapshot: Snapshot, answer: ExportResult, *, closes: bool) -> None:
        """Note what was answered, and wait before another attempt if there is to be one.

        Parameters
        ----------
        closes
            Whether the attempt was made because the cluster closes.
        """
        arrived = answer.decision is RetryDecision.SENT
        with self._changed:
            if arrived:
                self._arrived = snapshot
                self._deadline.arrived()
                self._exports += 1
                self._rejected += answer.rejected
            else:
                self._failures += 1
            if not arrived or answer.said:
                self._contact.note_error(answer.said)
            self.has_use = not answer.is_unsupported
            self._say(answer)
            # Else the next snapshot will tell whether somebody has mended it.
            again = answer.decision is RetryDecision.LATER and self._may_try_again(answer, closes=closes)
            if self._next is snapshot and not again:
                self._next = None
                self._lost = not arrived and not answer.is_unsupported

    def _may_try_again(self, answer: ExportResult, *, closes: bool) -> bool:
        """Wait, unless it closes and there is no time for that; whether to make another attempt."""
        if closes:
            self._changed.wait_for(lambda: self._deadline.deadline)  # it follows at once
        elif self._deadline.deadline is None:
            if answer.wait:  # it wants to be left alone for so long, also with something newer
                self._changed.wait_for(lambda: self._deadline.deadline, answer.wait)
            else:
                waiting = self._next
                self._changed.wait_for(lambda: self._next is not waiting or self._deadline.deadline, METRICS_PAUSE)
            return True
        elif answer.wait is None:
            return True
        pause = self._deadline.pause(max(METRICS_SHORT_PAUSE, answer.wait or 0.0), answer)
        if pause is not None:
            self._changed.wait(pause)
        return pause is not None

    def _say(self, answer: ExportResult) -> None:
        """Log what a person should know, and note how it went."""
        contact, failing = self._contact, answer.decision is not RetryDecision.SENT
        if failing and contact.may_warn("failing"):
            log.warning(
                "dask-otel cannot send metrics with exporter %r to %s (%s); %s",
                contact.name,
                contact.shown_target,
                answer.said,
                NO_METRICS if answer.is_unsupported else "it tries again",
            )
        elif contact.is_failing and not failing:
            log.info("dask-otel sends metrics again with exporter %r", contact.name)
        if answer.rejected and contact.may_warn("rejected"):
            log.warning(
                "dask-otel: %s has rejected %d points of metrics: %s",
                contact.shown_target,
                answer.rejected,
                answer.said,
            )
        contact.note(failing=failing)


#: Finished roots that are remembered.
MAX_FINISHED = 100
#: Seconds from the first snapshot to the second; then twice as long each time, up to the interval.
FIRST_PAUSE = 1.0
#: Seconds kept for the last metrics, which say what became of the last spans; at most a quarter of the time.
FOR_METRICS = 2.0


class TelemetryOutput:
    """Gives the same to several pipelines and meters, so that one that hangs holds up no other.

    Parameters
    ----------
    interval
        Seconds from one snapshot to the next.
    """

    def __init__(
        self,
        pipelines: list[SpanExportThread],
        sampling: Sampling,
        volume: RateLimiter,
        redactor: Redactor,
        meters: Sequence[MetricExportThread] = (),
        interval: float = 60.0,
    ) -> None:
        self._pipelines = pipelines
        self._meters = meters
        self._interval = interval
        #: When the next snapshot is wanted: the first at once, and some soon after, so that what is brief is seen.
        self._due = monotonic()
        self._pause = FIRST_PAUSE
        self._sampling = sampling
        self._rate_limiter = volume
        self._redactor = redactor
        self._unsampled: Counter[str] = Counter()
        self._finished: deque[dict[str, Any]] = deque(maxlen=MAX_FINISHED)

    def put(self, records: list[Record]) -> list[Record]:
        """Give records that should leave together to all, and return them; without what was left out or given up."""
        if not records:
            return []
        last = records[-1]
        sampled = self._sampling.decided(last).takes
        if isinstance(last, SegmentRecord) and last.parent_id is None:
            self._finished.append(self._summary(last, sampled=sampled))
        if not sampled:
            self._unsampled.update(map(kind_of, records))
            return []
        records = self._rate_limiter.admit(records)
        for pipeline in self._pipelines:
            pipeline.put(list(records))
        return records if self._pipelines else []

    def wants_metrics(self, *, last: bool = False) -> bool:
        """Whether it is time for a snapshot, said once.

        For the last one it always is, if there is anybody to send it to; ask when the spans are closed.
        """
        now = monotonic()
        meters = [meter for meter in self._meters if not self._gives_up(meter)] if last else self._meters
        if not meters or (now < self._due and not last):
            return False
        if self._pause < self._interval:
            self._due, self._pause = now + self._pause, 2 * self._pause
        else:  # a late one does not make those after it late
            self._due += self._interval * ((now - self._due) // self._interval + 1)
        return True

    def put_metrics(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Give a snapshot to all; never blocks. After the last one, ``close_metrics`` follows."""
        for meter in self._meters:
            if not (last and self._gives_up(meter)):
                meter.put(snapshot, last=last)

    def exporters(self) -> list[ExporterCounts]:
        """Say what became of the spans so far."""
        over_budget = sum(self._rate_limiter.given_up.values())
        return [_exporter_counts(pipeline, over_budget) for pipeline in self._pipelines]

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting or were dropped, over all exporters."""
        return sum(pipeline.unsent for pipeline in self._pipelines)

    @property
    def is_away(self) -> bool:
        """Whether nobody is known to be there: what was sent last has failed, everywhere."""
        ways_out: list[SpanExportThread | MetricExportThread] = [
            *self._pipelines,
            *(meter for meter in self._meters if meter.has_use),
        ]
        known = [way.is_failing for way in ways_out]
        return any(known) and False not in known

    def _gives_up(self, meter: MetricExportThread) -> bool:
        """Whether closing makes no attempt to send the last metrics, since neither they nor spans have arrived."""
        return bool(meter.is_failing and self._pipelines and all(pipeline.is_failing for pipeline in self._pipelines))

    def close_spans(self, timeout: float) -> None:
        """Send the spans that are left, within ``timeout`` seconds less what the last metrics may need."""
        kept = min(FOR_METRICS, timeout / 4) if any(meter.has_use for meter in self._meters) else 0.0
        _close_all([pipeline.close for pipeline in self._pipelines], timeout, kept)

    def close_metrics(self, timeout: float) -> None:
        """Send the snapshot that is left, within ``timeout`` seconds."""
        _close_all([partial(meter.close, give_up=self._gives_up(meter)) for meter in self._meters], timeout)

    def close(self, timeout: float) -> None:
        """Close all, within ``timeout`` seconds in all."""
        deadline = monotonic() + timeout
        self.close_spans(timeout)
        self.close_metrics(max(0.0, deadline - monotonic()))

    def title(self, span: SpanInfo, name: str) -> str:
        """Return the name of a span's segments as it may be shown."""
        return clean(self._redactor.title(span, name), MAX_NAME)

    def status(self) -> dict[str, Any]:
        """Say what became of all records, as plain data for the page."""
        return {
            "exporters": [pipeline.status() for pipeline in self._pipelines],
            "metrics": [meter.status() for meter in self._meters],
            "unsampled": dict(self._unsampled),
            "over_budget": dict(self._rate_limiter.given_up),
            "finished": list(self._finished),
        }

    def _summary(self, record: SegmentRecord, *, sampled: bool) -> dict[str, Any]:
        return {
            "id": record.span.id,
            "name": self.title(record.span, record.name),
            "trace_id": f"{record.trace_id:032x}" if sampled else None,
            "start": record.start,
            "end": record.end,
            "duration": record.end - record.start,
            "result": record.result,
            "tasks": record.tally.tasks,
        }


def _close_all(closes: Sequence[Callable[[float], None]], timeout: float, kept: float = 0.0) -> None:
    deadline = monotonic() + timeout
    # A little less: each has a last word to say, and the process may end when this returns.
    each = timeout - max(kept, min(1.0, timeout / 5))
    closing = [threading.Thread(target=close, args=(each,), daemon=True) for close in closes]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(max(0.0, deadline - monotonic()))


def _exporter_counts(pipeline: SpanExportThread, over_budget: int) -> ExporterCounts:
    status = pipeline.status()
    lost: dict[str, int] = {}
    for each in status["dropped"]:
        lost[each["reason"]] = lost.get(each["reason"], 0) + each["count"]
    waiting = status["queue"]["spans"] + status["in_flight"]
    if waiting and pipeline.abandoned:  # its thread hangs, and has not counted them yet
        waiting, lost["shutdown"] = 0, lost.get("shutdown", 0) + waiting
    dropped = {"queue_full": lost.pop("queue_full", 0), "over_budget": over_budget}
    return ExporterCounts(
        name=status["name"],
        waiting=waiting,
        capacity=status["queue"]["max_spans"],
        exported=sum(status["sent"].values()),
        dropped={reason: count for reason, count in dropped.items() if count},
        failed=lost,
    )


@dataclass
class Found:
    """What the standard variables say of where spans and metrics go; each signal stands for itself."""

    remarks: Remarks = field(default_factory=Remarks)
    #: Of spans, and what else concerns them alone.
    spans: list[Sender] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    sampler: Sampler | None = None
    span_limits: SpanLimits | None = None
    #: Why there are none.
    spans_error: SettingError | None = None
    #: The same of metrics: seconds between two exports, and the kinds that count from one export to the next.
    metrics: list[Sender] = field(default_factory=list)
    interval: float = 0.0
    deltas: frozenset[Kind] = frozenset()
    metrics_error: SettingError | None = None


def read_variables(endpoint: str | None = None) -> Found:
    """Make the exporters that the standard variables name.

    Parameters
    ----------
    endpoint
        As for ``make_senders``.
    """
    found = Found()
    remarks = found.remarks
    try:
        found.spans = make_senders(endpoint, TRACES, remarks)
        if found.spans:
            found.limits, found.span_limits = make_limits(remarks), make_span_limits(remarks)
            found.sampler = make_sampler(remarks)
    except SettingError as error:
        found.spans_error = error
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
    endpoint: str | None = None,
    capture: Mapping[str, bool],
    max_rate: int,
) -> TelemetryOutput | None:
    """Make the way from records and metrics to the backends that the standard variables name.

    What is wrong with one of the two signals leaves the other one on.

    Parameters
    ----------
    capture
        What may be shown, by the names of ``Capture``'s fields.
    max_rate
        Spans a minute; 0 for no limit.

    Returns
    -------
    None if they say that nothing is to be sent.

    Raises
    ------
    SettingError
        If nothing can be sent because of one of them.
    """
    if sdk_disabled():
        log.info("dask-otel is off: OTEL_SDK_DISABLED is true")
        return None
    found = read_variables(endpoint)
    errors = {"spans": found.spans_error, "metrics": found.metrics_error}
    is_on = found.spans or found.metrics
    why = None if is_on else found.spans_error or found.metrics_error
    for what, error in errors.items():
        if error and (why is None or str(error) != str(why)):
            log.error("dask-otel sends no %s: %s", what, error)
    if why:
        raise why
    for line in found.remarks.readings:
        log.info("dask-otel: %s", line)
    for line in found.remarks.problems:
        log.warning("dask-otel: %s", line)
    if not is_on:
        log.info("dask-otel is off: OTEL_TRACES_EXPORTER is none, and there is nowhere to send metrics to")
        return None
    for name in not_read():
        log.warning("dask-otel does not read %s; it takes its configuration from the other OTEL_* variables", name)
    redactor = Redactor(Capture(**capture))
    sampling = Sampling(found.sampler, redactor.tags, safety)
    resource = make_resource(
        service_name=service_name, instance_id=instance_id, version=version, cluster_name=cluster_name
    )
    scope = InstrumentationScope("dask_otel", __version__)
    # Only OTLP is told of a preference.
    otlp = MetricFactory(resource, scope, redactor.label, found.deltas)
    plain = MetricFactory(resource, scope, redactor.label)
    meters = [MetricExportThread(sender, otlp if sender.target else plain, safety) for sender in found.metrics]
    pipelines = []
    if found.span_limits:
        factory = SpanFactory(resource, scope, found.span_limits, redactor, sampling.known)
        pipelines = [SpanExportThread(sender, factory, safety, found.limits) for sender in found.spans]
    return TelemetryOutput(pipelines, sampling, RateLimiter(max_rate), redactor, meters, found.interval)
