"""Bounds what is exported: the span queue by number and bytes, the rate limiter by spans a minute.

What is worth least is dropped first: task spans, group spans, then segments.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from time import monotonic

from ..spantree.counts import Tally
from ..spantree.records import GroupRecord, Record, SegmentRecord, TaskRecord
from .spans import kind_of

__all__ = ["Bundle", "RateLimiter", "SpanQueue", "size_of"]

#: Bytes of an entry of a dict with a number in it, of a string beside its text, and of the rest of each kind of record.
ENTRY = 120
STRING = 60
RECORD = 700
#: Records of tasks or groups that are dropped at a time.
AT_ONCE = 32
#: Traces whose losses are remembered.
MAX_TRACES = 1000


def size_of(record: Record) -> int:
    """Bytes that a record takes in memory, or at most as OTLP, whichever is more; a rough and quick estimate."""
    size = RECORD + len(record.name) + 90 * len(record.links) + sum(map(len, record.span.tags))
    if record.failure:
        size += 2 * len(record.failure.message) + STRING  # as the status, and as an event
    if isinstance(record, TaskRecord):
        run = record.run
        size += RECORD + len(run.key) + len(run.group) + ENTRY * len(run.durations)
        if run.error:
            size += len(run.error.message) + len(run.error.traceback)
    elif isinstance(record, GroupRecord):
        size += _tally_size(record.tally) + _strings_size(record.dependencies) + _strings_size(record.types)
        size += ENTRY * (len(record.buckets) // 2 + len(record.metrics or ()))
    elif isinstance(record, SegmentRecord):
        size += 2 * RECORD + _tally_size(record.tally) + ENTRY * len(record.metrics)
        size += _strings_size(record.clients) + _strings_size(record.collections) + _strings_size(record.counted_in)
        if record.elsewhere:
            size += _tally_size(record.elsewhere)
        for values in record.annotations.values():
            size += _strings_size(values)
    return size


def _tally_size(tally: Tally) -> int:
    return RECORD + ENTRY * (len(tally.outcomes) + len(tally.durations) + len(tally.workers))


def _strings_size(texts: Iterable[str]) -> int:
    return sum(len(text) + STRING for text in texts)


class Bundle:
    """Records that should leave together: tasks and groups, then their segment; or a pending span."""

    __slots__ = ("records", "size")

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.size = sum(map(size_of, records))

    def give_up(self, kind: type[Record], spans: float = inf, size: float = inf) -> int:
        """Take out records of a kind until so many, and bytes, are gone, and count them on their segment.

        Returns
        -------
        How many they were.
        """
        kept: list[Record] = []
        count = freed = 0
        for record in self.records:
            if isinstance(record, kind) and (count < spans or freed < size):
                count += 1
                freed += size_of(record)
            else:
                kept.append(record)
        if count and kept and isinstance(kept[-1], SegmentRecord):
            segment = kept[-1]
            name = "dropped_tasks" if kind is TaskRecord else "dropped_groups"
            # A copy: another exporter may have it too.
            kept[-1] = replace(segment, **{name: getattr(segment, name) + count})
        self.records = kept
        self.size -= freed
        return count


class SpanQueue:
    """The sending queue of one exporter: bundles, the oldest first.

    Parameters
    ----------
    max_spans, max_bytes
        How much may wait.
    dropped
        Called with the number of records of each kind that had to go.
    """

    def __init__(self, max_spans: int, max_bytes: int, dropped: Callable[[Counter[str]], None]) -> None:
        self.max_spans = max_spans
        self.max_bytes = max_bytes
        self.spans = 0
        self.bytes = 0
        self._dropped = dropped
        self._queue: deque[Bundle] = deque()
        #: Bundles that may still have records of a kind, oldest first.
        self._with: dict[type[Record], deque[Bundle]] = {TaskRecord: deque(), GroupRecord: deque()}
        #: By trace, spans that are lost and that no root segment counts yet.
        self._uncounted: dict[int, int] = {}

    def status(self) -> dict[str, int]:
        """Return how much waits, and how much may."""
        return {"spans": self.spans, "bytes": self.bytes, "max_spans": self.max_spans, "max_bytes": self.max_bytes}

    def put(self, records: list[Record]) -> None:
        """Add records that should leave together; what is worth least is dropped if need be."""
        bundle = Bundle(records)
        self._queue.append(bundle)
        self.spans += len(records)
        self.bytes += bundle.size
        for kind, bundles in self._with.items():
            if any(isinstance(record, kind) for record in records):
                bundles.append(bundle)
        if self._is_too_much():
            self._make_place()

    def note_lost(self, records: list[Record]) -> None:
        """Have the top segments of traces that are still to leave count these records as dropped."""
        for record in records:
            self._uncounted[record.trace_id] = self._uncounted.get(record.trace_id, 0) + 1
        while len(self._uncounted) > MAX_TRACES:
            del self._uncounted[next(iter(self._uncounted))]

    def take(self, max_spans: int, max_bytes: int) -> list[Record]:
        """Take what may leave in one batch, whole bundles where they fit; empty if nothing waits."""
        return [self._with_losses(record) for record in self._take(max_spans, max_bytes)]

    def _with_losses(self, record: Record) -> Record:
        if self._uncounted and isinstance(record, SegmentRecord) and record.is_top:
            return replace(record, dropped_spans=self._uncounted.pop(record.trace_id, 0))
        return record

    def _take(self, max_spans: int, max_bytes: int) -> list[Record]:
        batch: list[Record] = []
        size = 0
        while self._queue:
            first = self._queue[0]
            if batch and (len(batch) + len(first.records) > max_spans or size + first.size > max_bytes):
                break
            if len(first.records) > max_spans or first.size > max_bytes:
                return self._take_part(first, max_spans, max_bytes)
            self._forget(self._queue.popleft())
            batch += first.records
            size += first.size
        return batch

    def _take_part(self, bundle: Bundle, max_spans: int, max_bytes: int) -> list[Record]:
        """Take the first records of a bundle that is too large for a batch; at least one."""
        size = count = 0
        for record in bundle.records[:max_spans]:
            size += size_of(record)
            if count and size > max_bytes:
                break
            count += 1
        part, bundle.records = bundle.records[:count], bundle.records[count:]
        taken = sum(map(size_of, part))
        bundle.size -= taken
        self.spans -= count
        self.bytes -= taken
        if not bundle.records:
            self._queue.popleft()
        return part

    def _forget(self, bundle: Bundle) -> None:
        self.spans -= len(bundle.records)
        self.bytes -= bundle.size
        for bundles in self._with.values():
            while bundles and (bundles[0] is bundle or not bundles[0].records):
                bundles.popleft()

    def _is_too_much(self) -> bool:
        return self.spans > self.max_spans or self.bytes > self.max_bytes

    def _make_place(self) -> None:
        gone: Counter[str] = Counter()
        for kind, bundles in self._with.items():
            while bundles and self._is_too_much():
                bundle, before = bundles[0], bundles[0].size
                # Some more than need be, so that a full queue does not look for some at each record that comes.
                spans = max(AT_ONCE, self.spans - self.max_spans)
                count = bundle.give_up(kind, spans, self.bytes - self.max_bytes)
                self.spans -= count
                self.bytes -= before - bundle.size
                gone["task" if kind is TaskRecord else "group"] += count
                if self._is_too_much() or count < spans:
                    bundles.popleft()
        while self._queue and self._is_too_much():
            bundle = self._queue.popleft()
            gone.update(map(kind_of, bundle.records))
            self.note_lost(bundle.records)
            self._forget(bundle)
            bundle.records = []
        self._dropped(+gone)


class RateLimiter:
    """A token bucket of one minute's spans. Segments may overdraw it, since none is dropped.

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
