"""What became of the spans that one exporter was given: counted, and said in the log once a minute at most."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from time import monotonic, time

from ..mirror.records import Record
from ..safety import log
from .answers import Answer, Meaning
from .conventions import kind_of

__all__ = ["Delivery"]

#: Seconds between two lines of the same kind.
WARN_EVERY = 60.0
_REASONS = {
    Meaning.LATER: "shutdown",
    Meaning.REFUSED: "refused",
    Meaning.TOO_LARGE: "too_large",
    Meaning.INVALID: "invalid",
}


class Delivery:
    """Counts for one exporter.

    Parameters
    ----------
    name
        Of the exporter.
    target
        Where it sends to; holds no secret.
    """

    def __init__(self, name: str, target: str = "") -> None:
        self.name = name
        self.target = target
        #: By kind of span.
        self.sent: Counter[str] = Counter()
        #: By kind of span and reason: queue_full, refused, invalid, too_large, rejected, shutdown, fault.
        self.dropped: Counter[tuple[str, str]] = Counter()
        #: Whether the last request failed; None before there was one, and since when (seconds since the epoch).
        self.is_failing: bool | None = None
        self.since: float | None = None
        #: What the last failure said, and when.
        self.last_error = ""
        self.last_error_at: float | None = None
        #: Set when the last word on it has been said.
        self.is_silent = False
        self._lock = threading.Lock()
        self._warned = {"failing": -WARN_EVERY, "dropped": -WARN_EVERY}

    def succeeded(self, records: list[Record], rejected: int, said: str) -> None:
        """Count a batch that has arrived, of which the collector may have rejected some; which, it does not say."""
        kinds = Counter(map(kind_of, records))
        if rejected:
            lost = min(rejected, len(records))
            if lost < len(records) and len(kinds) > 1:
                kinds = Counter({"unknown": len(records)})
            with self._lock:
                self._error(f"{rejected} spans rejected: {said}")
            self.lost(Counter({kind: min(lost, count) for kind, count in kinds.items()}), "rejected")
            kinds = (
                Counter() if lost == len(records) else Counter({kind: count - lost for kind, count in kinds.items()})
            )
        with self._lock:
            self.sent.update(kinds)
        if self.is_failing:
            log.info("dask-otel sends again with exporter %r, after %.0f s", self.name, time() - (self.since or time()))
        self._now(failing=False)

    def failed(self, said: str, waiting: int) -> None:
        """Note a request that failed and will be made again."""
        with self._lock:
            self._error(said)
        self._now(failing=True)
        if self._may_warn("failing"):
            log.warning(
                "dask-otel cannot send spans with exporter %r to %s (%s); %d wait, and it tries again",
                self.name,
                self.target or "its backend",
                said,
                waiting,
            )

    def gave_up(self, records: Iterable[Record], answer: Answer) -> None:
        """Count a batch that was given up because of the last answer to it."""
        if answer.said:
            with self._lock:
                self._error(answer.said)
        self.lost(Counter(map(kind_of, records)), _REASONS[answer.meaning])

    def lost(self, kinds: Counter[str], reason: str) -> None:
        """Count spans that were given up."""
        if not kinds:
            return
        with self._lock:
            for kind, count in kinds.items():
                self.dropped[kind, reason] += count
        if self._may_warn("dropped"):
            said = f"; it was told: {self.last_error}" if reason not in ("queue_full", "fault") else ""
            log.warning("dask-otel has dropped spans of exporter %r: %s%s", self.name, self.summary(), said)

    def summary(self) -> str:
        """Say what was dropped and why, e.g. ``12 task (queue_full), 1 span (invalid)``."""
        return ", ".join(f"{count} {kind} ({reason})" for (kind, reason), count in sorted(self.dropped.items()))

    @property
    def total_sent(self) -> int:
        """Number of spans that have arrived."""
        return sum(self.sent.values())

    @property
    def total_dropped(self) -> int:
        """Number of spans that were given up."""
        return sum(self.dropped.values())

    def _error(self, said: str) -> None:
        self.last_error, self.last_error_at = said, time()

    def _now(self, *, failing: bool) -> None:
        if self.is_failing is not failing:
            self.is_failing, self.since = failing, time()

    def _may_warn(self, topic: str) -> bool:
        if self.is_silent or monotonic() - self._warned[topic] < WARN_EVERY:
            return False
        self._warned[topic] = monotonic()
        return True
