"""Which spans are open: the mirror's nodes, and the sets of those that want attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .asked import Asked
from .clock import Happened
from .ledger import Ledger
from .model import NOBODY, SpanInfo
from .tally import Load
from .tree import Node, Segment

__all__ = ["Forest"]

#: Other spans that a ledger names.
MAX_INCLUDES = 256


class Forest:
    """All nodes of a scheduler; parents are opened before their children and taken out after them."""

    def __init__(self, born: float, max_groups: int) -> None:
        self._max_groups = max_groups
        #: When it began to count.
        self.born = born
        self.nodes: dict[str, Node] = {}
        self._asked = Asked()
        # Sets in order of insertion:
        self.open: dict[Node, None] = {}
        self.open_roots: dict[Node, None] = {}
        self.touched: dict[Node, None] = {}
        #: Children before their parents, as in ``touched``.
        self.at_rest: dict[Node, None] = {}
        #: Nodes with entries in a ledger but no open segment.
        self.held: dict[Node, None] = {}
        #: Nodes of which a submission has said something since the last sweep.
        self.noted: dict[Node, None] = {}
        #: Busy thread-seconds of all roots, so far.
        self.busy = 0.0

    def add(self, info: SpanInfo, first_number: int) -> None:
        """Learn of a Dask span; its parent must be known."""
        self._asked.keep(self.nodes.get(info.id) or self._add(info, first_number))

    def add_asked(self, info: SpanInfo, first_number: int, now: float) -> None:
        """Learn of a span that was asked for and that Dask has not made; its parent must be known."""
        if info.id not in self.nodes:
            self._asked.add(self._add(info, first_number + self._asked.first_number(info.id, now)))

    def _add(self, info: SpanInfo, first_number: int) -> Node:
        parent = self.nodes[info.parent_id] if info.parent_id is not None else None
        if parent:
            parent.children_known += 1
        node = self.nodes[info.id] = Node(info, parent, first_number)
        return node

    def knows(self, span_id: str) -> bool:
        """Whether a span has been added, by whichever way."""
        return span_id in self.nodes

    def knows_made(self, span_id: str) -> bool:
        """Whether a span is known as one that Dask has made, not only asked for."""
        return self.knows(span_id) and self.nodes[span_id] not in self._asked

    def root_of(self, span_id: str) -> SpanInfo:
        """Return the root of a span that is known."""
        return self.nodes[span_id].root.info

    def forget(self, now: float) -> None:
        """Let go of spans that were only asked for, long after they have ended."""
        self._asked.forget(self.nodes, self.held, now)

    def is_inside(self, span_id: str, node: Node) -> bool:
        """Whether a span is the node or below it."""
        return span_id in self.nodes and node in self.nodes[span_id].lineage()

    def include(self, ledger: Ledger, askers: Iterable[str]) -> None:
        """Name spans whose tasks are counted in a ledger, and work without a span, as far as there is room."""
        for asker in askers:
            if len(ledger.includes) >= MAX_INCLUDES:
                return
            if asker == NOBODY:
                ledger.includes["default"] = None
            elif asker in self.nodes:
                ledger.includes[self.nodes[asker].info.path] = None

    def name_each_other(self, asker: Node, ledger: Ledger, holder: Node, *, is_shown: bool) -> None:
        """Have the ledger of an asker say who counts its tasks, and the holder's whose they are.

        Parameters
        ----------
        is_shown
            Whether there is anything of the holder to lead to.
        """
        at = (holder.segment.trace_id, holder.segment.id) if holder.segment else holder.previous
        at = at if is_shown else None
        if at or holder.info.id not in ledger.counted_in:
            ledger.counted_in[holder.info.id] = at
        if holder.segment and holder.ledger:
            self.include(holder.ledger, [asker.info.id])

    def ledger(self, node: Node, now: float) -> Ledger:
        """Return a node's ledger, opened if there is none."""
        if not node.segment:
            self.held[node] = None
        return node.begin_ledger(now)

    def open_segment(self, node: Node, at: float, now: float) -> Segment:
        """Return a node's open segment; open one that begins at ``at``, and its parents', if there is none."""
        closed = []
        for each in node.lineage():
            if each.segment:
                break
            closed.append(each)
        for each in reversed(closed):
            self._open_one(each, at, now)
        for each in closed:
            self._look_at(each)
        assert node.segment
        return node.segment

    def _open_one(self, node: Node, at: float, now: float) -> None:
        """Open a node's segment; its parent's is open."""
        above = node.parent.segment if node.parent else None
        is_first = node.next_number == node.first_number and node.info.enqueued >= self.born
        start = max(node.info.enqueued if is_first else at, self.born, node.previous_end)
        start = max(min(start, now), above.start if above else 0.0)  # later than now only if the clock was set back
        node.segment = Segment(node, start, self.busy - node.root.busy, self._max_groups)
        node.stamp_groups(node.begin_ledger(start))
        self.held.pop(node, None)
        self.open[node] = None
        if above:
            above.children[node] = None
        else:
            self.open_roots[node] = None

    def _look_at(self, node: Node) -> None:
        """Have a node looked at by the next ``account``; to be called for children before their parents."""
        self.touched.pop(node, None)
        self.touched[node] = None

    def drop_notes(self) -> Iterator[None]:
        """Let go of what was said of spans in which nothing happens: their results were there already. Lazy."""
        noted, self.noted = self.noted, {}
        for node in noted:
            yield
            if node in self.held and node.ledger and not node.ledger.has_numbers:
                node.ledger = None
                del self.held[node]

    def touch(self, node: Node, happened: Happened | None, load: Load, active: float | None) -> None:
        """Have a node and those above it looked at.

        Parameters
        ----------
        happened
            When something happened to its tasks.
        load
            By how much the load changed.
        active
            When something happened that keeps a segment open, if it did.
        """
        for each in node.lineage():
            each.load = each.load.plus(load)
            if each.segment:
                if happened:
                    each.segment.activity.add(happened)
                if active is not None:
                    each.segment.last_change = active
                self._look_at(each)

    def begun(self, span_id: str) -> float | None:
        """When the root's segment began of a span that is open; None if it is not."""
        node = self.nodes.get(span_id)
        root = node.root.segment if node and node.segment else None
        return root.start if root else None

    def has_group(self, span_id: str, name: str) -> bool:
        """Whether a span that is open has a group."""
        ledger = self._open_ledger(span_id)
        return bool(ledger and (ledger.find(name) or name in ledger.announced))

    def threshold(self, span_id: str, name: str) -> float:
        """Seconds above which a run is slower than all those of a group that its next span can leave out.

        Negative while there are none. It holds for as long as the group has unfinished tasks.
        """
        ledger = self._open_ledger(span_id)
        group = ledger.find(name) if ledger and ledger.is_unfinished(name) else None
        return group.picks.threshold if group and group.picks else -1.0

    def _open_ledger(self, span_id: str) -> Ledger | None:
        node = self.nodes.get(span_id)
        return node.ledger if node and node.segment else None

    def take_out(self, node: Node) -> tuple[Segment, Ledger]:
        """End a node's open segment, and hand over what it held."""
        segment, ledger = node.segment, node.ledger
        assert segment and ledger  # noqa: PT018
        for index in (self.open, self.open_roots, self.touched, self.at_rest):
            index.pop(node, None)
        if not self.open:  # a dict that was large keeps its room, and walking over it its time
            self.open, self.open_roots, self.at_rest = {}, {}, {}
        node.segment = node.ledger = None
        node.next_number += 1
        if node.parent and node.parent.segment:
            node.parent.segment.children.pop(node, None)
        return segment, ledger

    def account(self, now: float) -> Iterator[Node]:
        """Account for the wall time of what changed, and see what is at rest; yield each node that is open."""
        touched, self.touched = self.touched, {}
        for node in touched:
            if node.segment:
                node.segment.account(now, node.load)
                node.segment.others_now = self.busy - node.root.busy
                self.at_rest.pop(node, None)  # to the end: children come before their parents
                if not node.load.unfinished:
                    self.at_rest[node] = None
                yield node

    def shift(self, seconds: float) -> None:
        """Move all times of what has not been sent: the clock was set."""
        self.born += seconds
        for node in self.open:
            if node.segment:
                node.segment.shift(seconds)
        for node in (*self.open, *self.held):
            if node.ledger:
                node.ledger.shift(seconds)
