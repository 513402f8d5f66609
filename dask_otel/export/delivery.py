"""What became of the spans that one exporter was given: counted, and said in the log once a minute at most."""

from __future__ import annotations

import threading
from collections import Counter
from time import time
from typing import Any

from ..mirror.records import Record
from ..safety import log
from .contact import Contact
from .conventions import kind_of

__all__ = ["Delivery"]

#: Seconds between two lines of the same kind.
WARN_EVERY = 60.0


class Delivery(Contact):
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
