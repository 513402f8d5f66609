"""From record to backend: what waits, and a thread, so that the event loop never waits for a collector."""

from __future__ import annotations

import random
import threading
from collections import Counter
from time import monotonic, sleep
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan

from ..mirror.records import Record
from ..safety import Safety, log
from .answers import Answer, Meaning
from .conventions import kind_of
from .delivery import Delivery
from .limits import Limits
from .pacing import Paced
from .patience import Patience
from .senders import Sender, shut_down
from .spans import SpanFactory
from .waiting import Waiting

__all__ = ["Pipeline"]

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
    Meaning.LATER: "shutdown",
    Meaning.REFUSED: "refused",
    Meaning.TOO_LARGE: "too_large",
    Meaning.INVALID: "invalid",
}

Converted = list[tuple[Record, ReadableSpan]]


class Pipeline:
    """Sends records through one exporter, in a thread of its own.

    Parameters
    ----------
    factory
        Makes spans of records; used in the thread.
    """

    def __init__(self, sender: Sender, factory: SpanFactory, safety: Safety, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.delivery = Delivery(sender.name, sender.target, str(sender.proxy or ""))
        self._sender = sender
        self._factory = factory
        self._safety = safety
        self._max_batch = min(limits.max_batch, limits.max_waiting)
        self._delay = limits.delay
        self._waiting = Waiting(
            limits.max_waiting, limits.max_bytes, lambda kinds: self.delivery.count_lost(kinds, "queue_full")
        )
        self._in_flight = 0
        self._patience = Patience()
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
            self._patience.begin(timeout, is_failing=self.is_failing)
            self.delivery.is_silent = True  # but for the last word
            self._changed.notify()
        while self._thread.is_alive() and (left := self._patience.left()):
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
            elif self._patience.deadline is not None:
                return
            elif batch is None:
                sleep(BACK_OFF[0])

    def _next_batch(self) -> list[Record]:
        """Wait for records that may leave together; empty when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting.spans or self._patience.deadline)
            self._changed.wait_for(
                lambda: self._waiting.spans >= self._max_batch or self._patience.deadline, self._delay
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
            if answer.meaning is Meaning.SENT:
                self.delivery.works()  # first: closing may begin at any time, and asks whether it does
                with self._changed:
                    self._in_flight -= len(part)
                    self._patience.arrived()
                    self.delivery.count_sent(records, answer.rejected, answer.said)
                self.delivery.warn_of_losses()
            elif _is_about_the_batch(answer) and len(part) > 1 and requests < MAX_REQUESTS:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                self._lost(records, _REASONS[answer.meaning], answer.said)

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

    def _send(self, spans: list[ReadableSpan]) -> Answer:
        """Send a batch, again and again while the collector is away; return the answer that is the last."""
        begin = monotonic()
        longest, wait = BACK_OFF[1], BACK_OFF[0]
        while not self.abandoned:
            closes = self._patience.deadline is not None
            if closes and self.is_failing:  # the collector may just have come back
                with self._safety.guard(f"exporter {self.delivery.name}"):
                    self._sender.reconnect()
            answer = self._sender.broken
            with self._safety.guard(f"exporter {self.delivery.name}"):
                answer = self._sender.send(Paced(spans))
            if answer.meaning not in (Meaning.LATER, Meaning.REFUSED):
                return answer
            self.delivery.fails(answer.said, self._left)
            if answer.meaning is Meaning.REFUSED and monotonic() - begin >= GIVE_UP_AFTER:
                return answer
            pause = max(wait * random.uniform(0.5, 1.0), (answer.wait or 0.0) * random.uniform(1.0, 1.1))
            wait = min(2 * wait, longest)
            if not self._wait(pause, answer, closes=closes):
                self.abandoned = True
        return Answer(Meaning.LATER)

    def _wait(self, seconds: float, answer: Answer, *, closes: bool) -> bool:
        """Wait before another attempt; False if none is to be made because the cluster closes.

        Parameters
        ----------
        closes
            Whether closing had begun before the last attempt.
        """
        with self._changed:
            if self._patience.deadline is None:
                self._changed.wait_for(lambda: self._patience.deadline, seconds)
                return True  # at once if it closes
            if not closes and answer.wait is None:
                return True
            pause = self._patience.pause(seconds, answer)
            if pause is not None:
                self._changed.wait(pause)
            return pause is not None


def _is_about_the_batch(answer: Answer) -> bool:
    return answer.meaning in (Meaning.TOO_LARGE, Meaning.INVALID)
