"""Where records go: past the sampler and the budget, to every exporter."""

from __future__ import annotations

import threading
from collections import Counter, deque
from time import monotonic
from typing import Any

from ..mirror.model import SpanInfo
from ..mirror.records import Record, SegmentRecord
from .conventions import kind_of
from .pipeline import Pipeline
from .privacy import Redactor
from .sampling import Sampling
from .text import MAX_NAME, clean
from .volume import Volume

__all__ = ["Sink"]

#: Finished roots that are remembered.
MAX_FINISHED = 100


class Sink:
    """Gives the same records to several pipelines, so that one that hangs holds up no other."""

    def __init__(self, pipelines: list[Pipeline], sampling: Sampling, volume: Volume, redactor: Redactor) -> None:
        self._pipelines = pipelines
        self._sampling = sampling
        self._volume = volume
        self._redactor = redactor
        self._unsampled: Counter[str] = Counter()
        self._finished: deque[dict[str, Any]] = deque(maxlen=MAX_FINISHED)

    def put(self, records: list[Record]) -> None:
        """Give records that should leave together to all; never blocks."""
        if not records:
            return
        last = records[-1]
        sampled = self._sampling.decided(last).takes
        if isinstance(last, SegmentRecord) and last.parent_id is None:
            self._finished.append(self._summary(last, sampled=sampled))
        if not sampled:
            self._unsampled.update(map(kind_of, records))
            return
        records = self._volume.admit(records)
        for pipeline in self._pipelines:
            pipeline.put(list(records))

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting or were dropped, over all exporters."""
        return sum(pipeline.unsent for pipeline in self._pipelines)

    def close(self, timeout: float) -> None:
        """Close all, within ``timeout`` seconds in all."""
        deadline = monotonic() + timeout
        # A little less: each has a last word to say, and the process may end when this returns.
        each = timeout - min(0.2, timeout / 10)
        closing = [threading.Thread(target=pipeline.close, args=(each,), daemon=True) for pipeline in self._pipelines]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(0.0, deadline - monotonic()))

    def title(self, span: SpanInfo, name: str) -> str:
        """Return the name of a span's segments as it may be shown."""
        return clean(self._redactor.title(span, name), MAX_NAME)

    def status(self) -> dict[str, Any]:
        """Say what became of all records, as plain data for the page."""
        return {
            "exporters": [pipeline.status() for pipeline in self._pipelines],
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
