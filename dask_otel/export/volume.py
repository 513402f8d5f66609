"""A budget of spans a minute: when it is used up, task spans go first, then groups of segments that did not fail."""

from __future__ import annotations

from collections import Counter
from time import monotonic

from ..mirror.records import GroupRecord, Record, SegmentRecord, TaskRecord
from .waiting import Bundle

__all__ = ["Volume"]


class Volume:
    """A bucket that holds one minute's spans and fills up steadily. Segments may overdraw it, since none is given up.

    Parameters
    ----------
    per_minute
        Spans; 0 for no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._room = float(per_minute)
        self._filled = monotonic()
        #: Spans that were given up, by kind.
        self.given_up: Counter[str] = Counter()

    def admit(self, records: list[Record]) -> list[Record]:
        """Return what may be sent of records that should leave together."""
        if not self._per_minute:
            return records
        now = monotonic()
        self._room = min(self._per_minute, self._room + (now - self._filled) * self._per_minute / 60)
        self._filled = now
        if len(records) > self._room:
            records = self._reduced(records)
        self._room = max(-float(self._per_minute), self._room - len(records))
        return records

    def _reduced(self, records: list[Record]) -> list[Record]:
        bundle = Bundle(records)
        if count := bundle.give_up(TaskRecord):
            self.given_up["task"] += count
        last = records[-1]
        if len(bundle.records) > self._room and isinstance(last, SegmentRecord) and not last.failure:
            self.given_up["group"] += bundle.give_up(GroupRecord)
        return bundle.records
