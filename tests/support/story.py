"""Tells the span tree a story, with a clock that the test turns; no cluster, no OpenTelemetry."""

from __future__ import annotations

from typing import Any

from dask_otel.spantree.counts import FirstError, Load
from dask_otel.spantree.events import Change, SpanInfo
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.records import GroupRecord, Record, SegmentRecord
from dask_otel.spantree.to_records import SpanTreeSettings

WORKER = "tcp://worker"


class Story:
    """A span tree, a clock, and what came out."""

    def __init__(self, *, threads: int = 4, **settings: Any) -> None:
        self.now = 100.0
        self.span_tree = SpanTree(self.now, threads, SpanTreeSettings(**({"pending_span_after": 86400.0} | settings)))
        #: By how much the system's clock has been set back; ``now`` never goes back.
        self.clock_offset = 0.0
        self.join(WORKER)
        self.records: list[Record] = []
        self._ids: dict[tuple[str, ...], str] = {}

    def span(self, *tags: str, id_: str = "") -> str:
        """Add a Dask span; its id is its path, unless another one is given."""
        parent = None
        if above := tags[:-1]:
            parent = self._ids.get(above) or self.span(*above)
        span_id = self._ids[tags] = id_ or "/".join(tags)
        self.span_tree.add_span(SpanInfo(span_id, tags, parent, self.now))
        return span_id

    def change(
        self,
        span_id: str,
        group: str,
        *,
        unfinished: int = 0,
        active: bool = True,
        load: Load | None = None,
        tasks: int = 0,
        run: tuple[float, float] | None = None,
        completed: int = 0,
        error: str = "",
        dependencies=(),
        worker: str = WORKER,
        outcome: str = "",
    ) -> None:
        """Something happened to a group; nobody hears of a run before it has ended."""
        self.now = max(self.now, run[1]) if run else self.now
        change = Change(self.now)
        change.span_id, change.name, change.prefix = span_id, group, group.split("-")[0]
        change.active, change.tasks, change.completed = active, tasks, completed
        change.load, change.unfinished = load or Load(), unfinished
        change.dependencies = tuple(dependencies)
        if run:
            change.hull(*run)
            seconds = run[1] - run[0]
            change.durations = {"compute": round(seconds * 1e6)}
            change.workers = {worker: seconds}
        if error:
            change.count("erred")
            change.error = FirstError("ValueError", error)
        if outcome:
            change.count(outcome)
            change.last_event = self.now
        self.span_tree.add_change(change, self.now)

    def begin(self, span_id: str, group: str, tasks: int = 1, **kwargs) -> None:
        """Tasks enter and are processed."""
        self.change(span_id, group, tasks=tasks, load=Load(processing=tasks), unfinished=tasks, **kwargs)

    def finish(self, span_id: str, group: str, start: float, stop: float, tasks: int = 1, **kwargs) -> None:
        """Tasks that were processed end with a result."""
        self.change(span_id, group, run=(start, stop), completed=tasks, load=Load(processing=-tasks), **kwargs)

    def beat(self, worker: str = WORKER) -> None:
        self.span_tree.add_heartbeats([(worker, 1)], self.now)

    def join(self, worker: str) -> None:
        self.event("joined", worker)

    def leave(self, worker: str) -> None:
        self.event("left", worker)

    def event(self, kind: str, worker: str) -> None:
        for _ in self.span_tree.add_worker_event(kind, worker):
            pass

    def pass_time(self, seconds: float, *, step: float = 1.0, beats: bool = True) -> list[Record]:
        """Sweep once a second."""
        new: list[Record] = []
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step)
            if beats:
                self.beat()
            new += filter(None, self.span_tree.advance(self.now, self.clock_offset))
        self.records += new
        return new

    def work(self, span_id: str, group: str = "work", seconds: float = 1.0, **kwargs) -> None:
        """One task enters, runs and ends."""
        self.begin(span_id, group)
        self.finish(span_id, group, self.now, self.now + seconds, **kwargs)

    def close(self) -> list[Record]:
        new = list(filter(None, self.span_tree.close(self.now, self.clock_offset)))
        self.records += new
        return new


def segments(records: list[Record]) -> list[SegmentRecord]:
    return [record for record in records if isinstance(record, SegmentRecord)]


def groups(records: list[Record]) -> list[GroupRecord]:
    return [record for record in records if isinstance(record, GroupRecord)]
