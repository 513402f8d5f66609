"""Keeps the last finished runs for the page, whether or not their traces are sampled and sent.

The event loop only appends records to a list. A thread makes rows of them, with the attributes that are sent, and
compresses the rows. What is kept is bounded by number and bytes; what is worth least is left out first, and counted.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .. import schema
from ..privacy import Redactor
from ..safety import Safety
from ..schema import MAX_LINKS, MAX_NAME, clean, shorten
from ..spantree.records import GroupRecord, PendingRecord, PhaseRecord, Record, SegmentRecord, StandInRecord
from .queue import size_of
from .spans import attributes, cleaned, error_description, exception_event, identity, kind_of
from .transport import Paced

__all__ = ["RecentRuns", "RunId"]

#: Bytes of compressed rows, of all runs and of one.
MAX_BYTES = 3 * 2**20
MAX_RUN_BYTES = 2**20
#: What all may take of the scheduler's memory, with what Python needs to hold it.
MAX_MEMORY = 8 * 2**20
#: Rows of a run.
MAX_SPANS = 1000
#: Bytes of records that wait for the thread, about; and so many that it does not wait for more.
MAX_WAITING_BYTES = 9 * 2**19
ENOUGH_BYTES = 2**20
#: Records of which the size is estimated, to estimate the size of many.
SAMPLE = 32
#: Runs that have not finished, of which rows are kept.
MAX_OPEN = 100
#: Rows that are compressed, and left out, together.
CHUNK = 50
#: Seconds that the thread waits for more: of many short runs, only the last ones are worth the work. Whoever reads does
#: not wait.
DELAY = 60.0
#: What rows have in common: the compression of a few of them refers to it.
_COMMON = json.dumps([*reversed(schema.ATTRIBUTES), "id", "parent", "links", "exception", "error", "end"]).encode()


class RunId(NamedTuple):
    """Ids of a run's trace and of its top span."""

    trace_id: int
    span_id: int

    @property
    def path(self) -> str:
        """Where the page shows the run."""
        return f"run/{self.trace_id:032x}/{self.span_id:016x}"


class _Run:
    """Rows of a run: chunks of compressed JSON with their number of rows, by rank."""

    __slots__ = ("bytes", "chunks", "left_out", "spans")

    def __init__(self) -> None:
        self.chunks: tuple[list[tuple[int, bytes]], ...] = ([], [], [], [])
        self.spans = self.bytes = self.left_out = 0

    def add(self, rank: int, rows: list[dict[str, Any]]) -> None:
        """Add rows, those that are worth most first; rows that begin with the top are worth most of all."""
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            compressor = zlib.compressobj(3, zdict=_COMMON)
            text = json.dumps(part, ensure_ascii=False, separators=(",", ":"))
            data = compressor.compress(text.encode("utf-8", "replace")) + compressor.flush()
            place = 0 if part[0]["is_top"] else len(self.chunks[rank])
            self.chunks[rank].insert(place, (len(part), data))
            self.spans += len(part)
            self.bytes += len(data)

    def reduce(self, most_spans: int, most_bytes: int) -> None:
        """Leave out what is worth least, of the same rank the latest; the chunk that begins with the top stays."""
        while self.spans > most_spans or self.bytes > most_bytes:
            last = next(chunks for chunks in reversed(self.chunks) if chunks)
            if len(last) == 1 and last is self.chunks[0]:
                return
            count, data = last.pop()
            self.spans -= count
            self.bytes -= len(data)
            self.left_out += count
            if not any(self.chunks):
                return

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the rows."""
        for chunks in self.chunks:
            for _, data in chunks:
                yield from json.loads(zlib.decompressobj(zdict=_COMMON).decompress(data))


class _Waiting(NamedTuple):
    """Records that leave together."""

    records: list[Record]
    #: How many more there were.
    left_out: int
    #: Bytes, about.
    size: int


class RecentRuns:
    """The last finished runs, and what is there of those that have not finished.

    Parameters
    ----------
    most
        Number of finished runs that are kept.
    redact
        Removes what must not be shown from a record.
    """

    def __init__(self, most: int, redact: Redactor, safety: Safety) -> None:
        self._most = most
        self._redact = redact
        self._safety = safety
        #: Guards what the event loop changes, and is never held for long.
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        #: Of what waits, and of what the thread has taken and not packed yet.
        self._bytes_waiting = 0
        #: Of rows, when the thread last added some.
        self._bytes_packed = 0
        #: The ids of finished runs that are kept, the oldest first, with the id of the Dask span at the top.
        self._ids: dict[RunId, str] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        #: Guards the rows, and is held while they are made.
        self._packing = threading.Lock()
        #: By trace and id of the top Dask span.
        self._open: dict[tuple[int, str], _Run] = {}
        self._finished: dict[RunId, _Run] = {}

    def add(self, records: Sequence[Record]) -> None:
        """Take records that leave together: groups and tasks, then their segment. Call it on the event loop."""
        if not isinstance(records[-1], PendingRecord | StandInRecord):
            with self._safety.guard("page"):
                self._add(records)

    def _add(self, records: Sequence[Record]) -> None:
        last = records[-1]
        size = sum(map(size_of, records[:: -(len(records) // SAMPLE) - 1])) * (len(records) // SAMPLE + 1)
        kept = list(records)
        with self._changed:
            room = MAX_WAITING_BYTES - self._bytes_waiting
            if size > room:
                kept = [*sorted(records[:-1], key=_rank)[: max(0, int(len(records) * room / size) - 1)], last]
                size = size * len(kept) // len(records)
            if self._waiting and room < -MAX_WAITING_BYTES // 16:  # segments alone are too many
                self._bytes_waiting -= self._waiting.popleft().size
            self._waiting.append(_Waiting(kept, len(records) - len(kept), size))
            self._bytes_waiting += size
            if last.is_top:
                self._ids[RunId(last.trace_id, last.span_id)] = last.top.id
                if len(self._ids) > self._most:
                    del self._ids[next(iter(self._ids))]
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._pack_regularly, name="dask-otel runs", daemon=True)
                self._thread.start()
            self._changed.notify()

    def is_like(self, other: RecentRuns) -> bool:
        """Whether another one would keep the same of the same records."""
        return (self._most, self._redact.capture) == (other._most, other._redact.capture)

    def usage(self) -> dict[str, int]:
        """Return how many finished runs and bytes are kept, and how many may be; never waits for the thread."""
        with self._changed:
            kept = {"runs": len(self._ids), "bytes": self._bytes_waiting + self._bytes_packed}
        return kept | {"max_runs": self._most, "max_bytes": MAX_MEMORY}

    def has(self, run: RunId) -> bool:
        """Whether a finished run is kept."""
        with self._changed:
            return run in self._ids

    def latest(self, trace_id: int, top: str | None = None) -> RunId | None:
        """Return the run that finished last in a trace, or there with this Dask span at its top."""
        with self._changed:
            for run, id_ in reversed(self._ids.items()):
                if run.trace_id == trace_id and top in (None, id_):
                    return run
        return None

    def latest_of(self, top: str) -> RunId | None:
        """Return the run that finished last of those with a Dask span at their top, in any trace."""
        with self._changed:
            return next((run for run, id_ in reversed(self._ids.items()) if id_ == top), None)

    def read(self, trace_id: int, span_id: int | None) -> dict[str, Any] | None:
        """Return a run as plain data; None if it is not kept. Blocks; call it in a thread.

        Parameters
        ----------
        span_id
            Of the run's top span; None for what has finished of runs in the trace that have not finished.

        Returns
        -------
        ``rows``, of each run those that are worth most first; ``left_out``, a number of rows; ``others``, the ids of
        other finished runs of the trace.
        """
        self._pack()
        with self._packing:
            if span_id is None:
                runs = [run for (trace, _), run in self._open.items() if trace == trace_id]
            else:
                runs = [run] if (run := self._finished.get(RunId(trace_id, span_id))) else []
            others = [run for run in self._finished if run.trace_id == trace_id and run.span_id != span_id]
            if not runs:
                return None
            rows = [row for run in runs for row in run.rows()]
            return {"rows": rows, "left_out": sum(run.left_out for run in runs), "others": others}

    def close(self) -> None:
        """End the thread once nothing waits; what is kept can still be read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _pack_regularly(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._is_closed)
                self._changed.wait_for(lambda: self._is_closed or self._bytes_waiting > ENOUGH_BYTES, DELAY)
                if self._is_closed and not self._waiting:
                    return
            self._pack()

    def _pack(self) -> None:
        """Make rows of all that waits."""
        with self._packing:
            with self._changed:
                waiting, self._waiting = self._waiting, deque()
            worth = self._worth_packing(waiting)
            while waiting:
                each = waiting.popleft()  # freed one by one
                if worth.popleft():
                    with self._safety.guard("page"):
                        self._pack_one(each.records, each.left_out)
                with self._changed:
                    self._bytes_waiting -= each.size
            self._forget_oldest()
            packed = _size(self._open) + _size(self._finished)
            with self._changed:
                self._bytes_packed = packed

    def _worth_packing(self, waiting: Sequence[_Waiting]) -> deque[bool]:
        """Return which records are worth it: not those of runs after which so many others finish that none is kept."""
        worth: deque[bool] = deque()
        finished = 0
        #: By run, whether the records before are worth it.
        kept: dict[tuple[int, str], bool] = {}
        for each in reversed(waiting):
            last = each.records[-1]
            if last.is_top:
                finished += 1
                kept[_key(last)] = finished <= self._most
                if finished > self._most:
                    self._open.pop(_key(last), None)
            worth.appendleft(kept.get(_key(last), True))
        return worth

    def _pack_one(self, records: list[Record], left_out: int) -> None:
        last = records[-1]
        run = self._open.setdefault(_key(last), _Run())
        run.left_out += left_out
        by_rank: tuple[list[Record], ...] = ([], [], [], [])
        for record in records:
            # The top is what all others are shown in.
            by_rank[0 if record.is_top else _rank(record)].append(record)
        for rank, ranked in enumerate(by_rank):
            ranked.sort(key=lambda record: (not record.is_top, _KIND_RANKS[kind_of(record)], record.start - record.end))
            run.add(rank, [row for record in Paced(ranked) if (row := self.row(record))])
        if last.is_top:
            del self._open[_key(last)]
            self._finished[RunId(last.trace_id, last.span_id)] = run
        run.reduce(MAX_SPANS, MAX_RUN_BYTES)

    def _forget_oldest(self) -> None:
        while len(self._finished) > self._most:
            del self._finished[next(iter(self._finished))]
        while len(self._open) > MAX_OPEN:
            del self._open[next(iter(self._open))]
        half = MAX_BYTES // 2
        while (size := _size(self._open)) > half:
            del self._open[next(iter(self._open))]
        while _size(self._finished) + size > MAX_BYTES:
            run_id = next(iter(self._finished))
            del self._finished[run_id]
            with self._changed:
                self._ids.pop(run_id, None)

    def row(self, record: Record) -> dict[str, Any] | None:
        """Make a row, without what must not be shown; if a record cannot be converted, at most without attributes."""
        for values in (attributes, _bare):
            with self._safety.guard("page"):
                return _row(self._redact(record), values)
        return None


#: Kinds of spans, those that are worth most first.
_KIND_RANKS = {schema.SEGMENT: 1, schema.PHASE: 2, schema.GROUP: 2, schema.TASK: 3, schema.PENDING: 3}


def _rank(record: Record) -> int:
    """0 for what failed, and otherwise the less a record is worth, the more."""
    if record.failure:
        return 0
    return 1 if isinstance(record, SegmentRecord) else 2 if isinstance(record, GroupRecord | PhaseRecord) else 3


def _size(runs: Mapping[Any, _Run]) -> int:
    return sum(run.bytes for run in runs.values())


def _key(record: Record) -> tuple[int, str]:
    return record.trace_id, record.top.id


def _bare(record: Record) -> dict[str, Any]:
    return identity(record) | {schema.DROPPED_ATTRIBUTES: True}


def _row(record: Record, values: Callable[[Record], dict[str, Any]]) -> dict[str, Any]:
    exception = exception_event(record)
    return {
        "id": f"{record.span_id:016x}",
        "parent": "" if record.parent_id is None else f"{record.parent_id:016x}",
        "is_top": record.is_top,
        "kind": kind_of(record),
        "name": shorten(record.name, MAX_NAME) or "(no name)",
        "start": record.start,
        "end": record.end,
        "error": clean(error_description(record.failure)) if record.failure else None,
        "attributes": cleaned(values(record)),
        "links": [[f"{link.trace_id:032x}", f"{link.span_id:016x}", link.kind] for link in record.links[:MAX_LINKS]],
        "exception": cleaned(exception) if exception else None,
    }
