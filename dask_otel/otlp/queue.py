"""Bounds what is exported: the span queue by number and bytes, the rate limiter by spans a minute.

What is worth least is dropped first: task spans, phases, group spans, then segments.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from time import monotonic
from typing import Any

from ..spantree.counts import Tally
from ..spantree.records import GroupRecord, PhaseRecord, Record, SegmentRecord, TaskRecord
from .packing import AT_ONCE, Packed, count_of, kind_of_item, unpacked
from .spans import KINDS

__all__ = ["Bundle", "RateLimiter", "SpanQueue", "size_of"]

#: Bytes of an entry of a dict with a number in it, of a string beside its text, and of the rest of each kind of record.
ENTRY = 120
STRING = 60
RECORD = 700
#: Kinds of records that are given up before segments, the first of these first; and where their segment counts them.
GIVEN_UP: dict[type[Record], str] = {
    TaskRecord: "dropped_tasks",
    PhaseRecord: "dropped_phases",
    GroupRecord: "dropped_groups",
}
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
        for values in (*record.annotations.values(), *record.submitters.values()):
            size += _strings_size(values)
        if record.waterfall:
            size += ENTRY * len(record.waterfall.parts)
        if record.critical:
            size += ENTRY * (len(record.critical.gaps) + 3 * len(record.critical.groups))
        if record.verdict:
            size += sum(RECORD + len(finding.text) for finding in record.verdict.findings)
    return size


def _tally_size(tally: Tally) -> int:
    return RECORD + ENTRY * (len(tally.outcomes) + len(tally.durations) + len(tally.workers))


def _strings_size(texts: Iterable[str]) -> int:
    return sum(len(text) + STRING for text in texts)


class Bundle:
    """Records that should leave together: tasks and groups, then their segment; or a pending span."""

    __slots__ = ("items", "loose", "size", "spans", "wire")

    def __init__(self, items: Sequence[Record | Packed]) -> None:
        self.items: Sequence[Record | Packed] = ()
        #: Number of records, and of those that are not packed.
        self.spans = self.loose = 0
        #: Bytes in memory, and as OTLP at most.
        self.size = self.wire = 0
        self.replace(items)

    def replace(self, items: Sequence[Record | Packed]) -> None:
        """Put others in the place of its records."""
        self.items = items
        self.spans = self.loose = self.size = self.wire = 0
        for item in items:
            self._measure(item)

    def _measure(self, item: Record | Packed, sign: int = 1) -> None:
        if isinstance(item, Packed):
            self.spans += sign * item.count
            self.size += sign * item.size
            self.wire += sign * item.wire
        else:
            size = size_of(item)
            self.spans += sign
            self.loose += sign
            self.size += sign * size
            self.wire += sign * size

    def has(self, kind: type[Record]) -> bool:
        """Whether records of a kind are in it."""
        return any(kind_of_item(item) is kind for item in self.items)

    def give_up(self, kind: type[Record], spans: float = inf, size: float = inf) -> int:
        """Take out records of a kind until so many, and bytes, are gone, and count them on their segment.

        Returns
        -------
        How many they were.
        """
        kept: list[Record | Packed] = []
        before, enough = self.spans, self.size - size
        for item in self.items:
            if kind_of_item(item) is kind and (before - self.spans < spans or self.size > enough):
                self._measure(item, -1)
            else:
                kept.append(item)
        count = before - self.spans
        if count and kept and kind_of_item(kept[-1]) is SegmentRecord:
            # A copy: another exporter may have it too.
            kept[-1] = _adding(kept[-1], **{GIVEN_UP[kind]: count})
        self.items = kept
        return count

    def take(self, max_spans: int, max_bytes: int) -> list[Record | Packed]:
        """Take out the first records, as many as fit; at least one."""
        part: list[Record | Packed] = []
        rest = deque(self.items)
        spans = size = 0
        while rest:
            item = rest[0]
            fits = spans + count_of(item) <= max_spans and size + _wire(item) <= max_bytes
            if not fits and not part and isinstance(item, Packed) and item.count > 1:
                self._measure(item, -1)
                records = item.unpack()
                rest.popleft()
                rest.extendleft(reversed(records))
                for record in records:
                    self._measure(record)
            elif fits or not part:
                self._measure(item, -1)
                part.append(rest.popleft())
                spans += count_of(item)
                size += _wire(item)
            else:
                break
        self.items = list(rest)
        return part


def _wire(item: Record | Packed) -> int:
    """Bytes of an item as OTLP, at most."""
    return item.wire if isinstance(item, Packed) else size_of(item)


def _adding(segment: Record | Packed, **losses: int) -> Record | Packed:
    if isinstance(segment, Packed):
        return segment.adding(**losses)
    changes: dict[str, Any] = {name: getattr(segment, name) + more for name, more in losses.items()}
    return replace(segment, **changes)


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
        #: Of the spans, those that are not packed.
        self.loose = 0
        #: Number of bundles that were ever added.
        self.added = 0
        self._dropped = dropped
        self._queue: deque[Bundle] = deque()
        #: Bundles that may not be packed yet, oldest first.
        self._to_pack: deque[Bundle] = deque()
        #: Bundles that may still have records of a kind, oldest first.
        self._with: dict[type[Record], deque[Bundle]] = {kind: deque() for kind in GIVEN_UP}
        #: By trace, spans that are lost and that no root segment counts yet.
        self._uncounted: dict[int, int] = {}

    def status(self) -> dict[str, int]:
        """Return how much waits, and how much may."""
        return {"spans": self.spans, "bytes": self.bytes, "max_spans": self.max_spans, "max_bytes": self.max_bytes}

    def put(self, records: list[Record]) -> None:
        """Add records that should leave together; what is worth least is dropped if need be."""
        bundle = Bundle(records)
        self._queue.append(bundle)
        self.added += 1
        self._to_pack.append(bundle)
        self._count(bundle)
        for kind, bundles in self._with.items():
            if bundle.has(kind):
                bundles.append(bundle)
        if self._is_too_much():
            self._make_place()

    @property
    def removed(self) -> int:
        """Number of bundles of which nothing is left: the oldest ones that were added."""
        return self.added - len(self._queue)

    def to_pack(self, keep: int) -> Bundle | None:
        """Return the oldest bundle with records that are not packed, if there are more of these than are to be kept."""
        self._skip_packed()
        return self._to_pack[0] if self._to_pack and self.loose > keep else None

    def _skip_packed(self) -> None:
        while self._to_pack and not self._to_pack[0].loose:
            self._to_pack.popleft()

    def pack(self, bundle: Bundle, before: Sequence[Record | Packed], packed: Sequence[Packed]) -> None:
        """Put packed records in the place of those of a bundle, if they are still the same."""
        if bundle.items is before:
            self._count(bundle, -1)
            bundle.replace(packed)
            self._count(bundle)

    def note_lost(self, losses: Mapping[int, int]) -> None:
        """Have the top segments of traces that are still to leave count records as dropped; so many by trace."""
        for trace_id, count in losses.items():
            self._uncounted[trace_id] = self._uncounted.get(trace_id, 0) + count
        while len(self._uncounted) > MAX_TRACES:
            del self._uncounted[next(iter(self._uncounted))]

    def take(self, max_spans: int, max_bytes: int) -> list[Record | Packed]:
        """Take what may leave in one batch, whole bundles where they fit; empty if nothing waits."""
        return [self._with_losses(item) for item in self._take(max_spans, max_bytes)]

    def _with_losses(self, item: Record | Packed) -> Record | Packed:
        if self._uncounted and kind_of_item(item) is SegmentRecord and item.is_top:
            lost = self._uncounted.pop(item.trace_id, 0)
            return _adding(item, dropped_spans=lost) if lost else item
        return item

    def _take(self, max_spans: int, max_bytes: int) -> list[Record | Packed]:
        batch: list[Record | Packed] = []
        spans = size = 0
        while self._queue:
            first = self._queue[0]
            if batch and (spans + first.spans > max_spans or size + first.wire > max_bytes):
                break
            if first.spans > max_spans or first.wire > max_bytes:
                self._count(first, -1)
                batch = first.take(max_spans, max_bytes)
                self._count(first)
                if not first.items:
                    self._queue.popleft()
                elif first.loose:  # some of those that were packed together are left
                    self._skip_packed()
                    if not self._to_pack or self._to_pack[0] is not first:
                        self._to_pack.appendleft(first)
                break
            batch += first.items
            spans += first.spans
            size += first.wire
            self._forget(self._queue.popleft())
        return batch

    def _forget(self, bundle: Bundle) -> None:
        """Do what follows when a bundle has left the queue."""
        self._count(bundle, -1)
        bundle.replace([])
        for bundles in self._with.values():
            while bundles and not bundles[0].items:
                bundles.popleft()

    def _count(self, bundle: Bundle, sign: int = 1) -> None:
        self.spans += sign * bundle.spans
        self.loose += sign * bundle.loose
        self.bytes += sign * bundle.size

    def _is_too_much(self) -> bool:
        return self.spans > self.max_spans or self.bytes > self.max_bytes

    def _make_place(self) -> None:
        gone: Counter[str] = Counter()
        for kind, bundles in self._with.items():
            while bundles and self._is_too_much():
                bundle = bundles[0]
                # Some more than need be, so that a full queue does not look for some at each record that comes.
                spans = max(AT_ONCE, self.spans - self.max_spans)
                self._count(bundle, -1)
                count = bundle.give_up(kind, spans, self.bytes + bundle.size - self.max_bytes)
                self._count(bundle)
                gone[KINDS[kind]] += count
                if self._is_too_much() or count < spans:
                    bundles.popleft()
        while self._queue and self._is_too_much():
            bundle = self._queue.popleft()
            lost: Counter[int] = Counter()
            for item in bundle.items:
                gone[KINDS[kind_of_item(item)]] += count_of(item)
                lost[item.trace_id] += count_of(item)
            self.note_lost(lost)
            self._forget(bundle)
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
        if isinstance(last, SegmentRecord) and not last.failure:
            for kind in (PhaseRecord, GroupRecord):
                if bundle.spans > self._room and (count := bundle.give_up(kind)):
                    self.given_up[KINDS[kind]] += count
        return unpacked(bundle.items)
