"""Runs of root spans: from the first task to the last, however many segments they were cut into."""

from __future__ import annotations

from typing import NamedTuple

from .model import SpanInfo
from .records import SegmentRecord

__all__ = ["RootRun", "RootRuns"]


class RootRun(NamedTuple):
    """A run that has ended, whether or not a trace shows it; ids of its last segment, or of the first that failed."""

    span: SpanInfo
    start: float
    end: float
    #: As ``dask.span.result``, but ``error`` if any of its segments failed.
    result: str
    trace_id: int
    span_id: int


class RootRuns:
    """Joins what was cut."""

    def __init__(self) -> None:
        #: By id of a root that was cut and goes on: when it began, and the trace and span id of a segment that failed.
        self._cut: dict[str, tuple[float, tuple[int, int] | None]] = {}
        self._ended: list[RootRun] = []
        #: Ids of roots whose segment is there for numbers that came late.
        self._late: set[str] = set()

    def late(self, root: SpanInfo) -> None:
        """Note that the next segment of a root is no run."""
        self._late.add(root.id)

    def closed(self, record: SegmentRecord) -> None:
        """Note that a segment of a root has closed."""
        if record.span.id in self._late:
            self._late.discard(record.span.id)
            return
        at = record.trace_id, record.span_id
        start, failed = self._cut.pop(record.span.id, (record.start, None))
        failed = failed or (at if record.failure else None)
        if record.result == "unfinished":
            self._cut[record.span.id] = start, failed
            return
        result = "error" if failed and record.result != "interrupted" else record.result
        self._ended.append(RootRun(record.span, start, record.end, result, *(failed or at)))

    def drain(self) -> list[RootRun]:
        """Hand over the runs that have ended."""
        ended, self._ended = self._ended, []
        return ended
