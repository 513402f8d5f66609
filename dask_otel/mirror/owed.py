"""Whose metrics are awaited: fine metrics travel on heartbeats, and come after the runs that they are about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .clock import Heartbeats
from .model import Change
from .tree import Node, Segment

__all__ = ["Owed"]

#: Outcomes of runs that end without a word from their worker, whose metrics come all the same.
_WORDLESS = ("retried", "rescheduled", "cancelled", "abandoned")


class Owed:
    """Which workers have metrics to deliver for which open segments.

    Kept in both directions, so that a worker that leaves concerns only the segments that wait for it.
    """

    def __init__(self) -> None:
        self.heartbeats = Heartbeats()
        #: By worker, the nodes whose segment waits for it; sets in order of insertion.
        self._waiting: dict[str, dict[Node, None]] = {}
        #: Workers that have left since the last sweep.
        self._left: list[str] = []

    def after(self, node: Node, runs: Change, now: float) -> bool:
        """Expect metrics of runs that have ended; say whether those who have them are still there."""
        assert node.segment
        if not node.segment.has_wordless_runs and runs.outcomes:
            node.segment.has_wordless_runs = any(runs.outcomes.get(outcome) for outcome in _WORDLESS)
        all_here = True
        for worker in runs.workers:
            if self.heartbeats.is_here(worker):
                self._expect(node, node.segment, worker, now)
            else:
                all_here = False
        return all_here

    def after_wordless(self, node: Node, now: float) -> None:
        """Expect metrics of all workers that were given tasks, if one has ended a run without a word."""
        if node.segment and node.segment.has_wordless_runs:  # by one of these; two heartbeats will tell
            node.segment.has_wordless_runs = False
            self.expect(node, {each: now for each in node.segment.sent_to if self.heartbeats.is_here(each)})

    def expect(self, node: Node, owed: dict[str, float]) -> None:
        """Expect metrics of workers, for runs that ended at some time."""
        assert node.segment
        for worker, since in owed.items():
            self._expect(node, node.segment, worker, since)

    def _expect(self, node: Node, segment: Segment, worker: str, since: float) -> None:
        if worker not in segment.owed:
            segment.overdue.pop(worker, None)
            self._waiting.setdefault(worker, {})[node] = None
        segment.owed[worker] = since

    def is_awaited(self, node: Node, now: float) -> bool:
        """Whether a worker that is still there has metrics to deliver for a node's segment."""
        segment = node.segment
        if segment is None:
            return False
        over = []
        for worker, since in segment.owed.items():
            if self.heartbeats.is_awaited(worker, since, now):
                break
            over.append(worker)
        is_awaited = len(over) < len(segment.owed)
        for worker in over:  # never looked at again
            since = segment.owed.pop(worker)
            self._drop(worker, node)
            if not self.heartbeats.has_delivered(worker, since):
                segment.overdue[worker] = since
        return is_awaited

    def awaited(self, now: float) -> set[str]:
        """Return the workers that are still there and have metrics to deliver for any segment."""
        return {
            worker
            for worker, nodes in self._waiting.items()
            if any(
                self.heartbeats.is_awaited(worker, node.segment.owed[worker], now)
                for node in nodes
                if node.segment and worker in node.segment.owed
            )
        }

    def worker_joined(self, worker: str, now: float) -> None:
        """A worker is new; one that was there before under its address owes nothing any more."""
        if worker in self._left:
            self._left.remove(worker)
            for _ in self._settle(worker):
                pass
        self.heartbeats.joined(worker, now)

    def worker_left(self, worker: str) -> None:
        """A worker is gone: metrics that it owes are lost. The next sweep will see to that."""
        self.heartbeats.left(worker)
        self._left.append(worker)

    def settle_left(self) -> Iterator[None]:
        """Wait no longer for workers that have left; lazy."""
        left, self._left = self._left, []
        for worker in left:
            yield from self._settle(worker)

    def _settle(self, worker: str) -> Iterator[None]:
        for node in self._waiting.pop(worker, {}):
            if node.segment and node.ledger and worker in node.segment.owed:
                since = node.segment.owed.pop(worker)
                node.ledger.metrics_complete &= self.heartbeats.has_delivered(worker, since)
            yield
        self.heartbeats.forget_left(worker)

    def ended(self, node: Node, workers: Iterable[str]) -> None:
        """A node's segment waits no more."""
        for worker in workers:
            self._drop(worker, node)

    def _drop(self, worker: str, node: Node) -> None:
        waiting = self._waiting.get(worker)
        if waiting:
            waiting.pop(node, None)
            if not waiting:
                del self._waiting[worker]
