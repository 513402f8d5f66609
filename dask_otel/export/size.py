"""How much room a record takes, roughly and quickly: it is asked for each record, on the event loop."""

from __future__ import annotations

from collections.abc import Iterable

from ..mirror.records import GroupRecord, Record, SegmentRecord, TaskRecord
from ..mirror.tally import Tally

__all__ = ["size_of"]

#: Bytes of an entry of a dict with a number in it, of a string beside its text, and of the rest of each kind of record.
ENTRY = 120
STRING = 60
RECORD = 700


def size_of(record: Record) -> int:
    """Bytes that a record takes in memory and at most takes as OTLP, whichever is more."""
    size = RECORD + len(record.name) + 90 * len(record.links) + sum(map(len, record.span.tags))
    if record.failure:
        size += 2 * len(record.failure.message) + STRING  # as the status, and as an event
    if isinstance(record, TaskRecord):
        run = record.run
        size += RECORD + len(run.key) + len(run.group) + ENTRY * len(run.durations)
        if run.error:
            size += len(run.error.message) + len(run.error.traceback)
    elif isinstance(record, GroupRecord):
        size += _tally(record.tally) + _strings(record.dependencies) + _strings(record.types)
        size += ENTRY * (len(record.buckets) // 2 + len(record.metrics or ()))
    elif isinstance(record, SegmentRecord):
        size += 2 * RECORD + _tally(record.tally) + ENTRY * len(record.metrics) + _strings(record.includes)
        size += _strings(record.clients) + _strings(record.collections) + _strings(record.counted_in)
        if record.elsewhere:
            size += _tally(record.elsewhere)
        for values in record.annotations.values():
            size += _strings(values)
    return size


def _tally(tally: Tally) -> int:
    return RECORD + ENTRY * (len(tally.outcomes) + len(tally.durations) + len(tally.workers))


def _strings(texts: Iterable[str]) -> int:
    return sum(len(text) + STRING for text in texts)
