"""From snapshot to backend, in a thread of its own; the latest one counts, since totals say it all."""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value

from ..measure.deltas import deltas
from ..measure.snapshot import Snapshot
from ..safety import Safety, log
from .answers import Answer, Meaning
from .contact import Contact
from .metrics import MetricFactory
from .patience import Patience
from .senders import Sender, shut_down

__all__ = ["NO_METRICS", "Meter"]

#: What to do about a backend for traces only.
NO_METRICS = (
    "it seems to take no metrics: OTEL_METRICS_EXPORTER=none switches them off, "
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT sends them elsewhere"
)

#: Seconds before another attempt, and while the cluster closes.
PAUSE = 15.0
SHORT_PAUSE = 0.5
#: Seconds that closing waits for a collector that had been failing: an idle cluster has nothing else to send.
LAST_CHANCE = 0.2
#: Seconds between two lines in the log.
WARN_EVERY = 600.0


class Meter:
    """Sends snapshots through one exporter."""

    def __init__(self, sender: Sender, factory: MetricFactory, safety: Safety) -> None:
        self._sender = sender
        self._factory = factory
        self._safety = safety
        self._next: Snapshot | None = None
        #: The last that has arrived.
        self._arrived: Snapshot | None = None
        self._contact = Contact(sender.name, sender.target, WARN_EVERY, str(sender.proxy or ""))
        self._exports = self._failures = self._rejected = 0
        self._patience = Patience()
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
            self._patience.begin(timeout, is_failing=is_failing, last_chance=LAST_CHANCE)
            self._contact.is_silent = True  # but for the last word
            self._changed.notify()
        while self._thread.is_alive() and (left := self._patience.left()):
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
                self._changed.wait_for(lambda: self._next or self._patience.deadline)
                snapshot = self._next
                closes = self._patience.deadline is not None or self._last is not None
            if snapshot is None:
                return
            if closes and self.is_failing:  # the collector may just have come back
                with self._safety.guard(f"exporter {self._sender.name}"):
                    self._sender.reconnect()
            answer = Answer(Meaning.INVALID, "it cannot be encoded")
            with self._safety.guard(f"exporter {self._sender.name}"):
                answer = self._send(snapshot)
            with self._safety.guard("metrics"):
                self._take(snapshot, answer, closes=closes)
                continue
            self._next = None  # else it would be taken again at once

    def _send(self, snapshot: Snapshot) -> Answer:
        kinds = self._factory.deltas
        shown = deltas(snapshot, self._arrived, kinds) if kinds else snapshot
        return self._sender.send(self._factory.data(shown))

    def _take(self, snapshot: Snapshot, answer: Answer, *, closes: bool) -> None:
        """Note what was answered, and wait before another attempt if there is to be one.

        Parameters
        ----------
        closes
            Whether the attempt was made because the cluster closes.
        """
        arrived = answer.meaning is Meaning.SENT
        with self._changed:
            if arrived:
                self._arrived = snapshot
                self._patience.arrived()
                self._exports += 1
                self._rejected += answer.rejected
            else:
                self._failures += 1
            if not arrived or answer.said:
                self._contact.note_error(answer.said)
            self.has_use = not answer.knows_no_such_thing
            self._say(answer)
            # Else the next snapshot will tell whether somebody has mended it.
            again = answer.meaning is Meaning.LATER and self._may_try_again(answer, closes=closes)
            if self._next is snapshot and not again:
                self._next = None
                self._lost = not arrived and not answer.knows_no_such_thing

    def _may_try_again(self, answer: Answer, *, closes: bool) -> bool:
        """Wait, unless it closes and there is no time for that; whether to make another attempt."""
        if closes:
            self._changed.wait_for(lambda: self._patience.deadline)  # it follows at once
        elif self._patience.deadline is None:
            if answer.wait:  # it wants to be left alone for so long, also with something newer
                self._changed.wait_for(lambda: self._patience.deadline, answer.wait)
            else:
                waiting = self._next
                self._changed.wait_for(lambda: self._next is not waiting or self._patience.deadline, PAUSE)
            return True
        elif answer.wait is None:
            return True
        pause = self._patience.pause(max(SHORT_PAUSE, answer.wait or 0.0), answer)
        if pause is not None:
            self._changed.wait(pause)
        return pause is not None

    def _say(self, answer: Answer) -> None:
        """Log what a person should know, and note how it went."""
        contact, failing = self._contact, answer.meaning is not Meaning.SENT
        if failing and contact.may_warn("failing"):
            log.warning(
                "dask-otel cannot send metrics with exporter %r to %s (%s); %s",
                contact.name,
                contact.shown_target,
                answer.said,
                NO_METRICS if answer.knows_no_such_thing else "it tries again",
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
