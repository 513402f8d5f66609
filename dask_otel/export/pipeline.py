"""From record to backend: what waits, and a thread, so that the event loop never waits for a collector."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan

from ..mirror.records import Record
from ..safety import Safety, log
from .answers import Answer, Meaning
from .conventions import kind_of
from .delivery import Delivery
from .pacing import Paced
from .senders import Sender
from .spans import SpanFactory
from .waiting import Waiting

__all__ = ["Limits", "Pipeline"]

#: Seconds to wait after a failure: doubled each time, up to the second number.
BACK_OFF = (0.5, 30.0)
#: A batch that is refused for so many seconds is given up; one that the collector is only too busy for is not.
GIVE_UP_AFTER = 600.0
#: Requests that one batch may cost by halving: enough to find three bad spans in 512.
MAX_REQUESTS = 64
#: Bytes of one batch, by ``size_of``; collectors refuse 4 MiB.
MAX_BATCH_BYTES = 3 * 2**20

Converted = list[tuple[Record, ReadableSpan]]


@dataclass(frozen=True)
class Limits:
    """How much may wait and leave at once; the standard ``OTEL_BSP_*`` variables change it."""

    #: Records that may wait, and bytes by ``size_of``: with everything else, less than 64 MiB.
    max_waiting: int = 50_000
    max_bytes: int = 48 * 2**20
    #: Spans in one request.
    max_batch: int = 512
    #: Seconds that records wait for others to share a request with.
    delay: float = 0.2


class Pipeline:
    """Sends records through one exporter, in a thread of its own.

    Parameters
    ----------
    factory
        Makes spans of records; used in the thread.
    """

    def __init__(self, sender: Sender, factory: SpanFactory, safety: Safety, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.delivery = Delivery(sender.name, sender.target)
        self._sender = sender
        self._factory = factory
        self._safety = safety
        self._max_batch = min(limits.max_batch, limits.max_waiting)
        self._delay = limits.delay
        self._waiting = Waiting(
            limits.max_waiting, limits.max_bytes, lambda kinds: self.delivery.lost(kinds, "queue_full")
        )
        self._in_flight = 0
        #: When closing must end, once it has begun; whether nothing is to be sent any more.
        self._deadline: float | None = None
        self._was_well = False
        self._abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"dask-otel {sender.name}", daemon=True)
        self._thread.start()

    def put(self, records: list[Record]) -> None:
        """Take records that should leave together; never blocks."""
        if records:
            with self._changed:
                self._waiting.put(records)
                self._changed.notify()

    def close(self, timeout: float) -> None:
        """Send what is left within ``timeout`` seconds, then shut the exporter down."""
        with self._changed:
            self._deadline = monotonic() + timeout
            self._was_well = self.delivery.is_failing is False
            self._changed.notify()
        self._thread.join(timeout)
        self._say_last_word()
        if self._thread.is_alive():
            self._abandoned = True
            # Shutting down ends an exporter's own waiting, but may itself wait.
            threading.Thread(target=self._shut_down, name="dask-otel shutdown", daemon=True).start()
        else:
            self._shut_down()

    def _say_last_word(self) -> None:
        self.delivery.is_silent = True
        left = self._waiting.spans + self._in_flight
        if left + self.delivery.total_dropped:
            summary = self.delivery.summary()
            log.warning(
                "dask-otel could not send %d spans with exporter %r%s%s; it has sent %d",
                left + self.delivery.total_dropped,
                self.delivery.name,
                f": {summary}" if summary else "",
                f"; {left} were left when the time was over" if left else "",
                self.delivery.total_sent,
            )

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting, on their way, or dropped."""
        return self._waiting.spans + self._in_flight + self.delivery.total_dropped

    def status(self) -> dict[str, Any]:
        """Say what became of the records, as plain data for the page."""
        waiting, delivery = self._waiting, self.delivery
        return {
            "name": delivery.name,
            "target": delivery.target,
            "failing": delivery.is_failing,
            "since": delivery.since,
            "last_error": delivery.last_error,
            "last_error_at": delivery.last_error_at,
            "sent": dict(delivery.sent),
            "dropped": [
                {"kind": kind, "reason": reason, "count": count}
                for (kind, reason), count in sorted(delivery.dropped.items())
            ],
            "queue": {
                "spans": waiting.spans + self._in_flight,
                "bytes": waiting.bytes,
                "max_spans": waiting.max_spans,
                "max_bytes": waiting.max_bytes,
            },
        }

    def _shut_down(self) -> None:
        with self._safety.guard("exporter shutdown"):
            self._sender.shutdown()

    def _run(self) -> None:
        # Else the user's instrumentation of requests or grpc would trace our own requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while True:
            batch: list[Record] | None = None
            with self._safety.guard("exporter thread"):
                batch = self._next_batch()
            if batch is None and self._deadline is None:
                sleep(BACK_OFF[0])
                continue
            if not batch:
                return
            with self._safety.guard(f"exporter {self.delivery.name}"):
                self._deliver(batch)
            if self._in_flight:  # the bridge itself has failed
                self.delivery.lost(Counter(map(kind_of, batch[-self._in_flight :])), "fault")
                self._in_flight = 0

    def _next_batch(self) -> list[Record]:
        """Wait for records that may leave together; empty when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting.spans or self._deadline)
            self._changed.wait_for(lambda: self._waiting.spans >= self._max_batch or self._deadline, self._delay)
            batch = self._waiting.take(self._max_batch, MAX_BATCH_BYTES)
            self._in_flight = len(batch)
            return batch

    def _deliver(self, batch: list[Record]) -> None:
        """Send a batch, in parts if need be, and count what became of each."""
        if self._abandoned:
            self.delivery.gave_up(batch, Answer(Meaning.LATER))
            self._in_flight = 0
            return
        parts = [self._convert(batch)]
        requests = 0
        while parts:
            part = parts.pop()
            records = [record for record, _ in part]
            answer = self._send([span for _, span in part]) if part else Answer(Meaning.SENT)
            requests += 1
            if answer.meaning is Meaning.SENT:
                self.delivery.succeeded(records, answer.rejected, answer.said)
            elif _is_about_the_batch(answer) and len(part) > 1 and requests < MAX_REQUESTS:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
                continue
            else:
                self.delivery.gave_up(records, answer)
            self._in_flight -= len(part)

    def _convert(self, batch: list[Record]) -> Converted:
        """Make spans. One that cannot be made costs at most its attributes."""
        spans: Converted = []
        for record in Paced(batch):
            span = self._span_of(record)
            if span:
                spans.append((record, span))
            else:
                self.delivery.lost(Counter([kind_of(record)]), "fault")
                self._in_flight -= 1
        return spans

    def _span_of(self, record: Record) -> ReadableSpan | None:
        for make in (self._factory.span, self._factory.bare):
            with self._safety.guard("conversion"):
                return make(record)
        return None

    def _send(self, spans: list[ReadableSpan]) -> Answer:
        """Send a batch, again and again while the collector is away; return the answer that is the last."""
        begin = monotonic()
        longest, wait = BACK_OFF[1], BACK_OFF[0]
        while not self._abandoned:
            answer = self._sender.broken
            with self._safety.guard(f"exporter {self.delivery.name}"):
                answer = self._sender.send(Paced(spans))
            if answer.meaning not in (Meaning.LATER, Meaning.REFUSED):
                return answer
            self.delivery.failed(answer.said, self._waiting.spans + self._in_flight)
            if answer.meaning is Meaning.REFUSED and monotonic() - begin >= GIVE_UP_AFTER:
                return answer
            pause = wait * random.uniform(0.5, 1.0) if answer.wait is None else answer.wait * random.uniform(1.0, 1.1)
            wait = min(2 * wait, longest)
            if not self._wait(pause, asked=answer.wait is not None):
                self._abandoned = True
        return Answer(Meaning.LATER)

    def _wait(self, seconds: float, *, asked: bool) -> bool:
        """Wait before another attempt; False if none is to be made because the cluster closes.

        Parameters
        ----------
        asked
            Whether the collector itself asked for the wait.
        """
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline, seconds)
                return True  # at once if it closes: the collector may just have come back
            # Closing must not take long for a collector that is not there.
            if not (self._was_well or asked) or monotonic() + seconds >= self._deadline:
                return False
            self._changed.wait(seconds)
            return True


def _is_about_the_batch(answer: Answer) -> bool:
    return answer.meaning in (Meaning.TOO_LARGE, Meaning.INVALID)
