"""When segments open and close: the heart of the mirror.

Dask has no event for "span finished", so a segment closes when its subtree has been at rest for a while and the
workers have delivered their metrics. All methods are called by one sweep at a time; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator

from .clock import Threads
from .closing import close_segment, marker
from .folding import fold_for_closing, fold_some
from .forest import Forest
from .ledger import Ledger
from .model import Change, Claim, Dependency, Graph, Metrics, SpanInfo
from .owed import Owed
from .records import Record
from .roots import RootRuns
from .settings import Level, MirrorSettings
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
        #: Whose fine metrics are still to come.
        self.owed = Owed()
        self.heartbeats = self.owed.heartbeats
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
            if not node.segment:
                self.forest.open_segment(node, min(change.since, change.run_start or change.since), now)
            if change.run_stop and node.segment:
                change.put_in_time(node.segment.start, now)
        self._saw(node, change, now)
        if not change.is_empty:
            change.take_back()
            ledger = self.forest.ledger(node, now)
            group = ledger.find(change.name) or ledger.begin_among_others(change)
            if group is None:
                group = node.begin_group(ledger, change.name, change.prefix, change.since)
            if change.foreign:
                self.forest.include(ledger, (asker for askers in change.foreign for asker in askers))
                change.adopt(lambda span_id: self.forest.is_inside(span_id, node))
            ledger.add_change(change, group)
            fold_some(node, ledger, self.settings.max_groups)
            if change.outcomes.get("lost"):  # and with the worker, the metrics of the run
                ledger.metrics_complete = False
        elif node.ledger:
            node.ledger.note_unfinished(change)

    def look(self, change: Change, now: float) -> None:
        """Take of what happened to a group only when and where tasks ran, how many entered, and how many wait for what.

        The span must be open.
        """
        node = self.forest.nodes[change.span_id]
        if node.segment and change.run_stop:
            change.put_in_time(node.segment.start, now)
        self._saw(node, change, now)
        ledger = self.forest.ledger(node, now)
        ledger.tally.tasks += change.tasks
        if not ledger.find(change.name):
            ledger.announced[change.name] = change.prefix, change.since
        change.set_aside()

    def add_claim(self, claim: Claim, now: float) -> None:
        """Count what happened to tasks that a span asked for and Dask put in another; both must be known."""
        node, holder = self.forest.nodes[claim.asker], self.forest.nodes[claim.holder]
        segment = self.forest.open_segment(node, claim.since, now)
        if node.ledger and not node.ledger.groups:
            node.begin_with(claim.prefix)
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
            node.begin_with(graph.prefix)
        self.forest.ledger(node, now).add_graph(graph)
        self.forest.noted[node] = None
        if graph.failure:
            self.forest.touch(node, None, NO_LOAD, now)

    def worker_joined(self, worker: str, now: float) -> None:
        """A worker is new."""
        self.owed.worker_joined(worker, now)

    def worker_left(self, worker: str) -> None:
        """A worker is gone: metrics that it owes are lost."""
        self.owed.worker_left(worker)

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
        yield from self.owed.settle_left()
        yield from self.forest.drop_notes()
        yield from self._account(now)
        earliest = now
        for root in list(self.forest.open_roots):
            yield None
            earliest = min(earliest, root.segment.start if root.segment else now)
            age = now - root.segment.start if root.segment else 0.0
            if age >= self.settings.max_segment * (1 if root.load.unfinished else 2):  # in a pause, a run would end
                yield from self._cut(root, now)
            elif age >= self.settings.announce and root.segment and self._wants_marker(root):
                yield marker(root, root.segment, now)
        if not taking_in_graph:
            for node in list(self.forest.at_rest):  # children before their parents
                if self._may_close(node, now):
                    yield from self._close(node, now)
                else:
                    yield None
        self.forest.forget(now)
        # A segment may start a little before the sweep that opens it.
        self.threads.forget(earliest - 60.0)

    def owing(self, now: float) -> set[str]:
        """Return the workers that are still there and have metrics to deliver for an open segment."""
        return self.owed.awaited(now)

    def close(self, now: float) -> Iterator[Record | None]:
        """Close everything, because the cluster closes; as ``advance``."""
        yield from self.owed.settle_left()
        yield from self._account(now)
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
            if not self.owed.after(node, change, now):
                self.forest.ledger(node, now).metrics_complete = False

    def _may_close(self, node: Node, now: float) -> bool:
        segment = node.segment
        if segment is None or segment.children or now - segment.last_change < self.settings.settle:
            return False
        return not self.owed.is_awaited(node, now)

    def _account(self, now: float) -> Iterator[None]:
        """Account for what changed."""
        for node in self.forest.account(now):
            self.owed.after_wordless(node, now)
            yield None

    def _close(self, node: Node, now: float, stopped: str = "") -> Iterator[Record | None]:
        """Close a segment whose child segments are closed; ``stopped`` says why, if its work is not done."""
        # Out of the way first: a segment that cannot be made must not stand in the way of others.
        segment, ledger = self.forest.take_out(node)
        self.owed.ended(node, segment.owed)
        goes_on = stopped == "unfinished" and node.load.unfinished > 0
        ledger.metrics_complete &= segment.end_metrics(self.heartbeats, goes_on=goes_on)
        level = self._level_of(node)
        yield from fold_for_closing(node, segment, ledger)
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
        nodes = list(root.open_below())
        unfinished = {
            node: (node.ledger, node.segment) for node in nodes if node.ledger and node.segment and node.load.unfinished
        }
        for node in reversed(nodes):
            yield from self._close(node, now, stopped="unfinished")
        if root.info.is_default:
            root.trace_number += 1
        for node in nodes:
            if node in unfinished:
                closed, before = unfinished[node]
                segment = self.forest.open_segment(node, now, now)
                self.owed.expect(node, before.owed)
                segment.sent_to.update(before.sent_to)
                segment.claimed = {holder: number for holder, number in before.claimed.items() if number > 0}
                ledger = self.forest.ledger(node, now)
                for holder in segment.claimed:
                    self._name_each_other(node, ledger, self.forest.nodes[holder])
                for each in closed.unfinished_groups():
                    group = node.begin_group(ledger, each.name, each.prefix, now)
                    group.dependencies, group.unfinished = each.dependencies, each.tasks
                    ledger.note_unfinished(group)
                    yield None
        yield from self._account(now)

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
