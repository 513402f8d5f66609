"""Runs of root spans: from the first task to the last, however many segments they were cut into."""

from __future__ import annotations

from typing import NamedTuple

from .model import SpanInfo
from .records import SegmentRecord

__all__ = ["RootRun", "RootRuns"]


class RootRun(NamedTuple):
    """A run that has ended, whether or not a trace shows it; ids are those of its last segment."""

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
        #: By id of a root that was cut and goes on: when it began, and whether it has failed.
        self._cut: dict[str, tuple[float, bool]] = {}
        self._ended: list[RootRun] = []

    def closed(self, record: SegmentRecord) -> None:
        """Note that a segment of a root has closed."""
        start, failed = self._cut.pop(record.span.id, (record.start, False))
        failed = failed or record.failure is not None
        if record.result == "unfinished":
            self._cut[record.span.id] = start, failed
            return
        result = "error" if failed and record.result != "interrupted" else record.result
        self._ended.append(RootRun(record.span, start, record.end, result, record.trace_id, record.span_id))

    def drain(self) -> list[RootRun]:
        """Hand over the runs that have ended."""
        ended, self._ended = self._ended, []
        return ended
