"""When segments open and close: the heart of the mirror.

Dask has no event for "span finished", so a segment closes when its subtree has been at rest for a while and the
workers have delivered their metrics. All methods are called by one sweep at a time; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator

from .clock import Heartbeats, Threads
from .closing import close_segment, marker
from .folding import fold_groups
from .forest import Forest
from .ledger import Ledger
from .model import Change, Claim, Dependency, Graph, Metrics, SpanInfo
from .records import Record
from .roots import RootRuns
from .settings import Level, MirrorSettings
from .tally import Tally
from .tree import NO_LOAD, Node

__all__ = ["Mirror"]


class Mirror:
    """A mirror of one scheduler's span tree.

    Parameters
    ----------
    now
        When it begins to count.
    threads
        Number of threads of the cluster.
    """

    def __init__(self, now: float, threads: int, settings: MirrorSettings) -> None:
        self.heartbeats = Heartbeats()
        self.threads = Threads(now, threads)
        self.settings = settings
        #: Which spans are open.
        self.forest = Forest(now, settings.max_groups)
        self.roots = RootRuns()

    # What the sweep tells

    def add_span(self, info: SpanInfo, first_number: int = 0) -> None:
        """Learn of a Dask span; its parent must be known. Its segments and groups count from ``first_number``."""
        self.forest.add(info, first_number)

    def add_asked(self, info: SpanInfo, first_number: int, now: float) -> None:
        """Learn of a span that was asked for and that Dask has not made; its parent must be known."""
        self.forest.add_asked(info, first_number, now)

    def add_change(self, change: Change, now: float) -> None:
        """Count what happened to a group."""
        node = self.forest.nodes[change.span_id]
        if change.active:
            segment = self.forest.open_segment(node, min(change.since, change.run_start or change.since), now)
            change.put_in_time(segment.start, now)
        self._saw(node, change, now)
        if not change.is_empty:
            change.take_back()
            ledger = self.forest.ledger(node, now)
            group = ledger.groups.get(change.name)
            if group is None:
                if len(ledger.groups) >= 2 * self.settings.max_groups:
                    fold_groups(node, ledger, node.next_number, self.settings.max_groups)
                group = node.begin_group(ledger, change.name, change.prefix, change.since)
            self.forest.include(ledger, (asker for askers in change.foreign for asker in askers))
            change.adopt(lambda span_id: self.forest.is_inside(span_id, node))
            ledger.add_change(change, group)
            if change.outcomes.get("lost"):  # and with the worker, the metrics of the run
                ledger.metrics_complete = False
        elif node.ledger and change.name in node.ledger.groups:
            node.ledger.groups[change.name].unfinished = change.unfinished

    def look(self, change: Change, now: float) -> None:
        """Take of what happened to a group only when and where tasks ran, and how many wait for what."""
        node = self.forest.nodes[change.span_id]
        if node.segment:
            change.put_in_time(node.segment.start, now)
        self._saw(node, change, now)
        change.set_aside()

    def add_claim(self, claim: Claim, now: float) -> None:
        """Count what happened to tasks that a span asked for and Dask put in another; both must be known."""
        node, holder = self.forest.nodes[claim.asker], self.forest.nodes[claim.holder]
        segment = self.forest.open_segment(node, claim.since, now)
        claim.put_in_time(segment.start, now)
        segment.claimed[claim.holder] = segment.claimed.get(claim.holder, 0) + claim.load.unfinished
        ledger = self.forest.ledger(node, now)
        self._name_each_other(node, ledger, holder)
        ledger.add_claim(claim, is_inside=self.forest.is_inside(claim.holder, node))
        self.forest.touch(node, claim, claim.load, now)

    def add_metrics(self, span_id: str, metrics: Metrics, now: float) -> float:
        """Count fine metrics, held while there is no open segment; return the busy thread-seconds among them."""
        node = self.forest.nodes[span_id]
        busy = self.forest.ledger(node, now).add_metrics(metrics)
        node.root.busy += busy
        self.forest.busy += busy
        return busy

    def add_graph(self, graph: Graph, now: float) -> None:
        """Note what a submission said about a Dask span."""
        node = self.forest.nodes[graph.span_id]
        if graph.failure:
            self.forest.open_segment(node, graph.since, now)
            if node.info.is_default and graph.prefix and not node.previous:
                node.title = f"default: {graph.prefix}"
        self.forest.ledger(node, now).add_graph(graph)
        self.forest.noted[node] = None
        if graph.failure:
            self.forest.touch(node, Tally(), NO_LOAD, now)

    def worker_left(self, worker: str) -> None:
        """A worker is gone: metrics that it owes are lost."""
        for node in self.forest.open:
            since = node.segment.owed.pop(worker, None) if node.segment else None
            if since is not None and node.ledger and not self.heartbeats.has_delivered(worker, since):
                node.ledger.metrics_complete = False
        self.heartbeats.left(worker)

    def clock_set_back(self, seconds: float) -> None:
        """Move what has not been sent to the clock's new time, so that it keeps its durations."""
        self.forest.shift(-seconds)
        self.heartbeats.shift(-seconds)
        self.threads.shift(-seconds)

    # What comes out

    def advance(self, now: float, *, taking_in_graph: bool = False) -> Iterator[Record | None]:
        """Close what has ended or grown too old.

        Lazy: each step is little work. None comes of a step that makes no record.
        """
        self.forest.drop_notes()
        yield from self.forest.account(now)
        for root in list(self.forest.open_roots):
            age = now - root.segment.start if root.segment else 0.0
            if age >= self.settings.max_segment * (1 if root.load.unfinished else 2):  # in a pause, a run would end
                yield from self._cut(root, now)
            elif age >= self.settings.announce and root.segment and self._wants_marker(root):
                yield marker(root, root.segment, now)
        if not taking_in_graph:
            for node in sorted(self.forest.at_rest, key=lambda node: -node.depth):
                if self._may_close(node, now):
                    yield from self._close(node, now)
                else:
                    yield None
        self.forest.forget(now)
        # A segment may start a little before the sweep that opens it.
        starts = (root.segment.start for root in self.forest.open_roots if root.segment)
        self.threads.forget(min(starts, default=now) - 60.0)

    def owing(self, now: float) -> set[str]:
        """Return the workers that are still there and have metrics to deliver for an open segment."""
        owing: set[str] = set()
        for node in self.forest.open:
            if len(owing) == self.heartbeats.workers:  # all; many segments may await the same
                break
            for worker, since in node.segment.owed.items() if node.segment else ():
                if worker not in owing and self.heartbeats.is_awaited(worker, since, now):
                    owing.add(worker)
        return owing

    def close(self, now: float) -> Iterator[Record | None]:
        """Close everything, because the cluster closes; as ``advance``."""
        yield from self.forest.account(now)
        for node in sorted(self.forest.held, key=lambda node: node.ledger.since if node.ledger else now):
            # Without a segment before, all its work was done before the mirror was there, or never.
            if node.previous and node.ledger and node.ledger.has_numbers:
                if not node.root.segment:
                    self.roots.late(node.root.info)
                self.forest.open_segment(node, node.ledger.since, now)
        for node in sorted(self.forest.open, key=lambda node: -node.depth):
            yield from self._close(node, now, stopped="interrupted")

    # Inside

    def _saw(self, node: Node, change: Change, now: float) -> None:
        """Have a node of which a change tells looked at, and await the metrics of its runs."""
        self.forest.touch(node, change, change.load, now if change.active else None)
        if node.segment:
            node.segment.sent_to.update(change.sent_to)
            if not node.segment.await_metrics(change, self.heartbeats, now):
                self.forest.ledger(node, now).metrics_complete = False

    def _may_close(self, node: Node, now: float) -> bool:
        segment = node.segment
        if segment is None or segment.children or now - segment.last_change < self.settings.settle:
            return False
        return not segment.awaits_metrics(self.heartbeats, now)

    def _close(self, node: Node, now: float, stopped: str = "") -> Iterator[Record]:
        """Close a segment whose child segments are closed; ``stopped`` says why, if its work is not done."""
        # Out of the way first: a segment that cannot be made must not stand in the way of others.
        segment, ledger = self.forest.take_out(node)
        goes_on = stopped == "unfinished" and node.load.unfinished > 0
        ledger.metrics_complete &= segment.end_metrics(self.heartbeats, goes_on=goes_on)
        level = self._level_of(node)
        record, inside = close_segment(node, segment, ledger, now, stopped, self.threads, self._find, level)
        node.previous, node.previous_end = (segment.trace_id, segment.id), record.end
        above = node.parent
        if above is None:
            self.roots.closed(record)
        elif above.segment and above.ledger:
            above.segment.enclose(record.start, record.end)
            above.ledger.add_child(ledger, lambda span_id: self.forest.is_inside(span_id, above))
        if node.load == NO_LOAD:
            node.load = NO_LOAD
        if level > Level.NOTHING:
            yield from inside
            yield record

    def _cut(self, root: Node, now: float) -> Iterator[Record | None]:
        """Close a tree that has grown too old, and go on in the next segments with what is unfinished."""
        nodes = list(root.open_descendants())
        unfinished = {
            node: ([group for group in node.ledger.groups.values() if group.unfinished], node.segment)
            for node in nodes
            if node.ledger and node.segment and node.load.unfinished
        }
        for node in nodes:
            yield from self._close(node, now, stopped="unfinished")
        if root.info.is_default:
            root.trace_number += 1
        for node in reversed(nodes):
            if node in unfinished:
                groups, before = unfinished[node]
                segment = self.forest.open_segment(node, now, now)
                segment.owed.update(before.owed)
                segment.sent_to.update(before.sent_to)
                segment.claimed = {holder: number for holder, number in before.claimed.items() if number > 0}
                ledger = self.forest.ledger(node, now)
                for holder in segment.claimed:
                    self._name_each_other(node, ledger, self.forest.nodes[holder])
                for old in groups:
                    group = node.begin_group(ledger, old.name, old.prefix, now)
                    group.unfinished = old.unfinished
                    group.dependencies = old.dependencies
        yield from self.forest.account(now)

    def _name_each_other(self, asker: Node, ledger: Ledger, holder: Node) -> None:
        self.forest.name_each_other(asker, ledger, holder, is_shown=self._level_of(holder) > Level.NOTHING)

    def _wants_marker(self, root: Node) -> bool:
        is_new = root.segment is not None and not root.segment.announced
        return is_new and root.load.unfinished > 0 and self._level_of(root) > Level.NOTHING

    def _level_of(self, node: Node) -> Level:
        return self.settings.level_of(is_default=node.root.info.is_default)

    def _find(self, to: Dependency) -> tuple[int, int] | None:
        node = self.forest.nodes.get(to.span_id)
        return node.latest_group_span(to.name) if node and self._level_of(node) >= Level.GROUPS else None
