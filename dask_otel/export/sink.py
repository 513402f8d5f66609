"""Where records go, past the sampler and the budget, and metrics: to every exporter."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from ..measure.snapshot import Snapshot
from ..measure.state import Exporter
from ..mirror.model import SpanInfo
from ..mirror.records import Record, SegmentRecord
from .conventions import kind_of
from .meter import Meter
from .pipeline import Pipeline
from .privacy import Redactor
from .sampling import Sampling
from .text import MAX_NAME, clean
from .volume import Volume

__all__ = ["Sink"]

#: Finished roots that are remembered.
MAX_FINISHED = 100
#: Seconds from the first snapshot to the second; then twice as long each time, up to the interval.
FIRST_PAUSE = 1.0
#: Seconds kept for the last metrics, which say what became of the last spans; at most a quarter of the time.
FOR_METRICS = 2.0


class Sink:
    """Gives the same to several pipelines and meters, so that one that hangs holds up no other.

    Parameters
    ----------
    interval
        Seconds from one snapshot to the next.
    """

    def __init__(
        self,
        pipelines: list[Pipeline],
        sampling: Sampling,
        volume: Volume,
        redactor: Redactor,
        meters: Sequence[Meter] = (),
        interval: float = 60.0,
    ) -> None:
        self._pipelines = pipelines
        self._meters = meters
        self._interval = interval
        #: When the next snapshot is wanted: the first at once, and some soon after, so that what is brief is seen.
        self._due = monotonic()
        self._pause = FIRST_PAUSE
        self._sampling = sampling
        self._volume = volume
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
        records = self._volume.admit(records)
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

    def exporters(self) -> list[Exporter]:
        """Say what became of the spans so far."""
        over_budget = sum(self._volume.given_up.values())
        return [_counts(pipeline, over_budget) for pipeline in self._pipelines]

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting or were dropped, over all exporters."""
        return sum(pipeline.unsent for pipeline in self._pipelines)

    @property
    def is_away(self) -> bool:
        """Whether nobody is known to be there: what was sent last has failed, everywhere."""
        ways_out: list[Pipeline | Meter] = [*self._pipelines, *(meter for meter in self._meters if meter.has_use)]
        known = [way.is_failing for way in ways_out]
        return any(known) and False not in known

    def _gives_up(self, meter: Meter) -> bool:
        """Whether closing makes no attempt to send the last metrics, since neither they nor spans have arrived."""
        return bool(meter.is_failing and self._pipelines and all(pipeline.is_failing for pipeline in self._pipelines))

    def close_spans(self, timeout: float) -> None:
        """Send the spans that are left, within ``timeout`` seconds less what the last metrics may need."""
        kept = min(FOR_METRICS, timeout / 4) if any(meter.has_use for meter in self._meters) else 0.0
        _close([pipeline.close for pipeline in self._pipelines], timeout, kept)

    def close_metrics(self, timeout: float) -> None:
        """Send the snapshot that is left, within ``timeout`` seconds."""
        _close([partial(meter.close, give_up=self._gives_up(meter)) for meter in self._meters], timeout)

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
            "over_budget": dict(self._volume.given_up),
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


def _close(closes: Sequence[Callable[[float], None]], timeout: float, kept: float = 0.0) -> None:
    deadline = monotonic() + timeout
    # A little less: each has a last word to say, and the process may end when this returns.
    each = timeout - max(kept, min(1.0, timeout / 5))
    closing = [threading.Thread(target=close, args=(each,), daemon=True) for close in closes]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(max(0.0, deadline - monotonic()))


def _counts(pipeline: Pipeline, over_budget: int) -> Exporter:
    status = pipeline.status()
    lost: dict[str, int] = {}
    for each in status["dropped"]:
        lost[each["reason"]] = lost.get(each["reason"], 0) + each["count"]
    waiting = status["queue"]["spans"] + status["in_flight"]
    if waiting and pipeline.abandoned:  # its thread hangs, and has not counted them yet
        waiting, lost["shutdown"] = 0, lost.get("shutdown", 0) + waiting
    dropped = {"queue_full": lost.pop("queue_full", 0), "over_budget": over_budget}
    return Exporter(
        name=status["name"],
        waiting=waiting,
        capacity=status["queue"]["max_spans"],
        exported=sum(status["sent"].values()),
        dropped={reason: count for reason, count in dropped.items() if count},
        failed=lost,
    )
