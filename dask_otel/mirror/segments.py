"""When segments open and close: the heart of the mirror.

Dask has no event for "span finished", so a segment closes when its subtree has been at rest for a while and the
workers have delivered their metrics. All methods are called by one sweep at a time; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator

from .clock import Heartbeats, Threads
from .closing import close_groups, close_segment
from .ledger import Ledger
from .model import Change, Dependency, Graph, Metrics, SpanInfo
from .records import Record
from .tree import NO_LOAD, Node, Segment

__all__ = ["Mirror"]


class Mirror:
    """A mirror of one scheduler's span tree.

    Parameters
    ----------
    now
        When it begins to count.
    threads
        Number of threads of the cluster.
    settle
        Seconds that a subtree must be at rest before its segment closes.
    max_segment
        Age in seconds at which a segment is cut.
    """

    def __init__(self, now: float, threads: int, *, settle: float, max_segment: float) -> None:
        self.heartbeats = Heartbeats()
        self.threads = Threads(now, threads)
        self._born = now
        self._settle = settle
        self._max_segment = max_segment
        self._nodes: dict[str, Node] = {}
        # Sets in order of insertion:
        self._open: dict[Node, None] = {}
        self._open_roots: dict[Node, None] = {}
        self._touched: dict[Node, None] = {}
        self._at_rest: dict[Node, None] = {}
        #: Nodes with entries in a ledger but no open segment.
        self._held: dict[Node, None] = {}
        #: Busy thread-seconds of all roots, so far.
        self._busy = 0.0

    # What the sweep tells

    def add_span(self, info: SpanInfo, first_number: int = 0) -> None:
        """Learn of a Dask span; its parent must be known. Its segments and groups count from ``first_number``."""
        if info.id not in self._nodes:
            parent = self._nodes[info.parent_id] if info.parent_id is not None else None
            self._nodes[info.id] = Node(info, parent, first_number)

    def knows(self, span_id: str) -> bool:
        """Whether a Dask span has been added."""
        return span_id in self._nodes

    def add_change(self, change: Change, now: float) -> None:
        """Count what happened to a group."""
        node = self._nodes[change.span_id]
        if not change.is_empty:
            if change.active and not node.segment:
                self._open_segment(node, min(change.since, change.run_start or change.since))
            ledger = self._ledger(node, now)
            group = ledger.groups.get(change.name)
            if group is None:
                group = node.begin_group(ledger, change.name, change.prefix, change.since)
            group.add(change)
            ledger.tally.add(change)
            if change.outcomes.get("lost"):  # and with the worker, the metrics of the run
                ledger.metrics_complete = False
            self._await_metrics(node, ledger, change, now)
        elif node.ledger and change.name in node.ledger.groups:
            node.ledger.groups[change.name].unfinished = change.unfinished
        for each in node.lineage():
            each.load = each.load.plus(change.load)
            if each.segment:
                each.segment.saw_run(change.run_start, change.run_stop)
                if change.active:
                    each.segment.last_change = now
                self._touched[each] = None

    def add_metrics(self, span_id: str, metrics: Metrics, now: float) -> None:
        """Count fine metrics that came with a heartbeat; held while the Dask span has no open segment."""
        node = self._nodes[span_id]
        ledger = self._ledger(node, now)
        busy = ledger.add_metrics(metrics)
        node.root.busy += busy
        self._busy += busy

    def add_graph(self, graph: Graph, now: float) -> None:
        """Note what a submission said about a Dask span."""
        self._ledger(self._nodes[graph.span_id], now).add_graph(graph)

    def worker_left(self, worker: str) -> None:
        """A worker is gone: metrics that it owes are lost."""
        for node in self._open:
            since = node.segment.owed.pop(worker, None) if node.segment else None
            if since is not None and node.ledger and not self.heartbeats.has_delivered(worker, since):
                node.ledger.metrics_complete = False
        self.heartbeats.left(worker)

    # What comes out

    def advance(self, now: float, *, taking_in_graph: bool = False) -> Iterator[Record | None]:
        """Close what has ended or grown too old.

        Lazy: each step is little work. None comes of a step that makes no record.
        """
        yield from self._account(now)
        for root in list(self._open_roots):
            if root.segment and now - root.segment.start < self._max_segment:
                break
            yield from self._cut(root, now)
        if not taking_in_graph:
            for node in sorted(self._at_rest, key=lambda node: -node.depth):
                if self._may_close(node, now):
                    yield from self._close(node, now)
                else:
                    yield None
        # A segment may start a little before the sweep that opens it.
        self.threads.forget(min((root.segment.start for root in self._open_roots if root.segment), default=now) - 60.0)

    def owes_metrics(self, now: float) -> bool:
        """Whether a worker that is still there has metrics to deliver for an open segment."""
        return any(node.segment and node.segment.awaits_metrics(self.heartbeats, now) for node in self._open)

    def close(self, now: float) -> Iterator[Record | None]:
        """Close everything, because the cluster closes; as ``advance``."""
        yield from self._account(now)
        for node in sorted(self._held, key=lambda node: node.ledger.since if node.ledger else now):
            # Without a segment before, all its work was done before the mirror was there, or never.
            if node.previous and not node.segment and node.ledger and node.ledger.has_numbers:
                self._open_segment(node, node.ledger.since)
        for node in sorted(self._open, key=lambda node: -node.depth):
            yield from self._close(node, now, stopped="interrupted")

    # Opening

    def _ledger(self, node: Node, now: float) -> Ledger:
        if not node.segment:
            self._held[node] = None
        return node.begin_ledger(now)

    def _open_segment(self, node: Node, at: float) -> None:
        """Open a segment, and its parents'."""
        if node.parent and not node.parent.segment:
            self._open_segment(node.parent, at)
        above = node.parent.segment if node.parent else None
        is_first = node.next_number == node.first_number and node.info.enqueued >= self._born
        start = max(
            node.info.enqueued if is_first else at, self._born, node.previous_end, above.start if above else 0.0
        )
        node.segment = Segment(node, start, self._busy - node.root.busy)
        node.begin_ledger(start)
        self._held.pop(node, None)
        self._open[node] = self._touched[node] = None
        if above:
            above.children[node] = None
        else:
            self._open_roots[node] = None

    def _await_metrics(self, node: Node, ledger: Ledger, change: Change, now: float) -> None:
        if not node.segment:
            return
        for worker in change.workers:
            if self.heartbeats.is_here(worker):
                node.segment.owed[worker] = now
            else:
                ledger.metrics_complete = False

    # Closing

    def _account(self, now: float) -> Iterator[None]:
        """Account for the wall time of what changed, and see what is at rest."""
        touched, self._touched = self._touched, {}
        for node in touched:
            yield None
            if node.segment:
                node.segment.account(now, node.load)
                node.segment.others_now = self._busy - node.root.busy
                if node.load.unfinished:
                    self._at_rest.pop(node, None)
                else:
                    self._at_rest[node] = None

    def _may_close(self, node: Node, now: float) -> bool:
        segment = node.segment
        if segment is None or segment.children or now - segment.last_change < self._settle:
            return False
        return not segment.awaits_metrics(self.heartbeats, now)

    def _close(self, node: Node, now: float, stopped: str = "") -> Iterator[Record]:
        """Close a segment whose child segments are closed; ``stopped`` says why, if its work is not done."""
        segment, ledger = node.segment, node.ledger
        assert segment and ledger  # noqa: PT018
        # Out of the way first: a segment that cannot be made must not stand in the way of others.
        for index in (self._open, self._open_roots, self._touched, self._at_rest):
            index.pop(node, None)
        node.segment = node.ledger = None
        node.next_number += 1
        above = node.parent.segment if node.parent else None
        if above:
            above.children.pop(node, None)
        record = close_segment(node, segment, ledger, now, stopped, self.threads)
        node.previous, node.previous_end = (segment.trace_id, segment.id), record.end
        if above and node.parent and node.parent.ledger:
            above.children_end = max(above.children_end, record.end)
            node.parent.ledger.add_child(ledger)
        if node.load == NO_LOAD:
            node.load = NO_LOAD
        yield from close_groups(node.info, segment, ledger, record, self._link)
        yield record

    def _cut(self, root: Node, now: float) -> Iterator[Record | None]:
        """Close a tree that has grown too old, and go on in the next segments with what is unfinished."""
        nodes = list(root.open_descendants())
        unfinished = {
            node: ([group for group in node.ledger.groups.values() if group.unfinished], node.segment.owed)
            for node in nodes
            if node.ledger and node.segment and node.load.unfinished
        }
        for node in nodes:
            yield from self._close(node, now, stopped="unfinished")
        if root.info.is_default:
            root.trace_number += 1
        for node in reversed(nodes):
            if node in unfinished:
                if not node.segment:
                    self._open_segment(node, now)
                groups, owed = unfinished[node]
                if node.segment:
                    node.segment.owed.update(owed)
                ledger = self._ledger(node, now)
                for old in groups:
                    group = node.begin_group(ledger, old.name, old.prefix, now)
                    group.unfinished = old.unfinished
                    group.dependencies = old.dependencies
        yield from self._account(now)

    def _link(self, to: Dependency) -> tuple[int, int] | None:
        return self._nodes[to.span_id].latest_group_span(to.name) if to.span_id in self._nodes else None
