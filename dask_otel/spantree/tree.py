"""The tree of Dask spans: one ``Node`` for each Dask span, one ``Segment`` for each node that is open.

``Forest`` holds all nodes of a scheduler, and the sets of those that the next sweep has to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import NamedTuple

from ..diagnosis.evidence import ClusterEvidence
from ..identity import Caller, Origin, group_id, origin_of, others_id, place, segment_id
from ..schema import MAX_PROGRESS_SPANS
from .counts import Load
from .events import SpanInfo
from .facts import Groups
from .forgotten import ForgottenIds
from .ledger import Budget, GroupLedger, Ledger
from .timing import Activity, Happened, Heartbeats, Wall

__all__ = ["MAX_SEGMENTS", "NO_LOAD", "Asked", "Forest", "Node", "OpenSums", "Segment", "sum_open"]

#: Shared by all nodes at rest: a finished span should cost little.
NO_LOAD = Load()


class Segment:
    """An open segment: an episode of a Dask span that has not ended yet."""

    __slots__ = (
        "activity",
        "budget",
        "children",
        "claimed",
        "cluster",
        "enclosed_from",
        "enclosed_until",
        "facts",
        "has_wordless_runs",
        "id",
        "is_parent",
        "last_change",
        "mark",
        "number",
        "others_at_start",
        "others_now",
        "overdue",
        "owed",
        "parent_id",
        "pending_after",
        "pending_sent",
        "sent_to",
        "start",
        "top",
        "trace_id",
        "wall",
    )

    def __init__(self, node: Node, start: float, others: float, max_groups: int) -> None:
        self.number = node.next_number
        self.id = segment_id(node.info.id, self.number)
        above = node.parent.segment if node.parent else None
        placed = place(node.origin, node.root.trace_number, (above.trace_id, above.id) if above else None)
        self.trace_id: int = placed.trace_id
        self.parent_id = placed.parent_id
        self.start = start
        self.wall = Wall(start)
        #: Latest sweep that saw something happen.
        self.last_change = start
        #: Nodes of child segments that are open; a set in order of insertion.
        self.children: dict[Node, None] = {}
        #: Earliest start and latest end of what has been sent of its children: it must enclose them.
        self.enclosed_from = float("inf")
        self.enclosed_until = float("-inf")
        #: A top only: how many pending spans it has sent, and its age when the next one is due.
        self.pending_sent = 0
        self.pending_after = 0.0
        shares = above if above and not placed.is_top else None
        #: The top of its trace.
        self.top: Node = shares.top if shares else node
        #: What the trace may still hold; one for the top and all below it.
        self.budget: Budget = shares.budget if shares else Budget(max_groups)
        #: Workers that were given tasks; a set in order of insertion.
        self.sent_to: dict[str, None] = {}
        #: Unfinished tasks that it requested and another span counts, by that span's id.
        self.claimed: dict[str, int] = {}
        #: Workers whose metrics are awaited, and since when.
        self.owed: dict[str, float] = {}
        #: The same of workers that are no longer waited for, though their metrics have not come.
        self.overdue: dict[str, float] = {}
        #: Whether a run has ended without a report of its worker; its metrics arrive all the same.
        self.has_wordless_runs = False
        #: Whether spans of workers are below it: it is sent though others are left out.
        self.is_parent = False
        #: Thread-seconds used by other roots, as known when the segment began and when it last changed.
        self.others_at_start = self.others_now = others
        #: What happened since the wall time was last accounted for.
        self.activity = Activity()
        #: Of a root: the groups of its tree whose segments have closed; a mark of what was known of the cluster when it
        #: began, and what has been seen from then until its last lap ended.
        self.facts: Groups | None = None
        self.mark: object = None
        self.cluster = ClusterEvidence()

    def enclose(self, start: float, end: float) -> None:
        """Note that a child was sent."""
        self.enclosed_from = min(self.enclosed_from, start)
        self.enclosed_until = max(self.enclosed_until, end)

    def end_metrics(self, heartbeats: Heartbeats, *, goes_on: bool) -> bool:
        """Keep in ``owed`` only what has not arrived; return whether no metrics are known to be lost.

        Parameters
        ----------
        goes_on
            Whether another segment will wait for the rest.
        """
        self.owed = {
            worker: since
            for worker, since in (*self.owed.items(), *self.overdue.items())
            if not heartbeats.has_delivered(worker, since)
        }
        return goes_on or all(heartbeats.was_heard(worker, since) for worker, since in self.owed.items())

    def account(self, now: float, load: Load) -> None:
        """Account for the wall time until now."""
        self.wall.advance(now, load, self.activity)
        self.activity.clear()


class Node:
    """One Dask span. At rest it holds only what later segments need: ids must never repeat."""

    __slots__ = (
        "busy",
        "caller",
        "children_known",
        "first_number",
        "group_numbers",
        "group_traces",
        "info",
        "ledger",
        "load",
        "next_number",
        "parent",
        "parents",
        "previous",
        "previous_end",
        "root",
        "segment",
        "title",
        "trace_number",
        "unsent_groups",
    )

    def __init__(self, info: SpanInfo, parent: Node | None, first_number: int = 0) -> None:
        self.info = info
        self.parent = parent
        self.root: Node = parent.root if parent else self
        #: The caller of its trace, see ``Origin``.
        self.caller: Caller | None = (parent.origin.below(info.id) if parent else origin_of([info.id])).caller
        #: Number of nodes that have this one for their parent.
        self.children_known = 0
        self.segment: Segment | None = None
        self.ledger: Ledger | None = None
        #: Unfinished tasks of the subtree.
        self.load = NO_LOAD
        self.first_number = first_number
        #: Number of the next segment; that of the open one while there is one.
        self.next_number = first_number
        #: Trace and span id of the segment before.
        self.previous: tuple[int, int] | None = None
        self.previous_end = 0.0
        #: By group name, the number of the next group span.
        self.group_numbers: dict[str, int] = {}
        #: By group name, the trace of its last group span; only for default roots that have rolled over.
        self.group_traces: dict[str, int] | None = None
        #: Names of groups of which spans of workers have the first group span for a parent: it is sent.
        self.parents: set[str] | None = None
        #: Names of groups whose first group span was given up, or is in a later trace than the first.
        self.unsent_groups: set[str] | None = None
        #: How many traces this root has filled.
        self.trace_number = 0
        #: Busy thread-seconds of this root's tree, so far.
        self.busy = 0.0
        #: Name of the segments.
        self.title: str = info.tags[-1]

    @property
    def depth(self) -> int:
        """Number of nodes above it."""
        return len(self.info.tags) - 1

    @property
    def origin(self) -> Origin:
        """What decides in which trace it is; made when it is needed, since there may be many nodes at rest."""
        return Origin(self.root.info.id, self.caller)

    @property
    def top(self) -> Node:
        """The top of the trace of its segments."""
        if self.segment:
            return self.segment.top
        trace_id = self.origin.trace_id()
        return list(takewhile(lambda node: node.origin.trace_id() == trace_id, self.lineage()))[-1]

    def lineage(self) -> Iterator[Node]:
        """This node and its ancestors, from here up."""
        node: Node | None = self
        while node:
            yield node
            node = node.parent

    def open_below(self) -> Iterator[Node]:
        """This node and all below it with an open segment, parents before children; lazy."""
        level = [self] if self.segment else []
        while level:
            below: list[dict[Node, None]] = []
            for node in level:
                yield node
                if node.segment:
                    below.append(node.segment.children)
            level = [node for children in below for node in children]

    def reserve_group_span(self, name: str) -> tuple[int, int] | None:
        """Ensure that a group's latest group span is sent; return its trace id and span id, or None if it cannot be."""
        number = self.group_numbers.get(name, self.first_number) - 1
        groups = self.ledger.groups if self.ledger else {}
        if self.segment and self.ledger and name in self.ledger.others_names:
            return self.segment.trace_id, others_id(self.info.id, self.segment.number)
        if not self.segment and name in groups:
            number -= 1  # only held; nobody knows whether it will be sent
            if self.group_traces and name in self.group_traces:
                return None  # nor in which trace the one before was
        if number < self.first_number:
            return None
        if self.segment and self.ledger and name in groups and not self.ledger.pin(name, self.segment.budget):
            return None  # it may have to be folded
        trace_number = (self.group_traces or {}).get(name, 0)
        return self.origin.trace_id(trace_number), group_id(self.info.id, name, number)

    def begin_group(self, ledger: Ledger, name: str, prefix: str, since: float) -> GroupLedger:
        """Open the ledger of a group, under the next number of its name."""
        number = self.group_numbers.get(name, self.first_number)
        group = ledger.group(name, prefix, number, since)
        self.group_numbers[name] = number + 1
        self._stamp(group)
        if len(ledger.groups) == 1:
            self.begin_with(prefix)
        return group

    def begin_with(self, prefix: str) -> None:
        """Have the segments of work without a span named by its first tasks."""
        if self.info.is_default and prefix and not self.previous:
            self.title = f"default: {prefix}"

    def stamp_groups(self, ledger: Ledger) -> None:
        """Note in which trace groups will be sent that were held while the root may have rolled over."""
        for group in ledger.groups.values():
            self._stamp(group)

    def _stamp(self, group: GroupLedger) -> None:
        if self.root.trace_number:
            self.group_traces = self.group_traces or {}
            if group.trace_before is None:
                group.trace_before = self.group_traces.get(group.name, 0)
            self.group_traces[group.name] = self.root.trace_number
            if not group.number:
                self.note_unsent(group.name)

    def add_parent(self, name: str) -> None:
        """Note that a group's first group span is the parent of spans of workers."""
        self.parents = self.parents or set()
        self.parents.add(name)

    def note_unsent(self, name: str) -> None:
        """Note that a group's first group span is not in the first trace."""
        self.unsent_groups = self.unsent_groups or set()
        self.unsent_groups.add(name)

    def withdraw_group(self, group: GroupLedger) -> None:
        """Take a group's number back: its span will not be sent."""
        if group.number > self.first_number:
            self.group_numbers[group.name] = group.number
        else:
            del self.group_numbers[group.name]
        if self.group_traces and group.name in self.group_traces:
            self.group_traces[group.name] = group.trace_before or 0

    def begin_ledger(self, now: float) -> Ledger:
        """Return the ledger, opened if there is none."""
        if self.ledger is None:
            self.ledger = Ledger(now)
        return self.ledger


#: Open segments over which numbers are summed in one step; beyond, the sums are absent.
MAX_SEGMENTS = 2000


class OpenSums(NamedTuple):
    """Sums over the open segments of a run, closed child segments included."""

    tasks: int
    completed: int
    #: Tasks that erred or failed upstream.
    failed: int
    #: Tags of the Dask spans that have unfinished tasks of their own, parents before children.
    active: tuple[tuple[str, ...], ...]
    #: Ids of the clients that submitted.
    clients: tuple[str, ...]
    #: How many more segments might have been visited; if 0, the sums are too small.
    room: int


def sum_open(top: Node, room: int) -> OpenSums:
    """Sum over a run that is open, visiting at most ``room`` segments."""
    tasks = completed = failed = 0
    active: list[tuple[str, ...]] = []
    clients: dict[str, None] = {}
    for node in islice(top.open_below(), room):
        room -= 1
        if node.ledger:
            tasks += node.ledger.tally.tasks
            completed += node.ledger.tally.completed
            failed += node.ledger.tally.failed_tasks
            clients |= node.ledger.clients
        below = sum(child.load.unfinished for child in node.segment.children) if node.segment else 0
        if node.load.unfinished > below and len(active) < MAX_PROGRESS_SPANS:
            active.append(node.info.tags)
    return OpenSums(tasks, completed, failed, tuple(active), tuple(clients), room)


#: Requested spans that one sweep checks.
FORGOTTEN_AT_ONCE = 200


class Asked:
    """Requested spans that Dask has not made, the next to be checked first.

    Nothing of Dask bounds their number, hence they are forgotten some time after their last segment: until then they
    may request more.
    """

    def __init__(self, kept_for: float) -> None:
        self._kept_for = kept_for
        self._nodes: dict[Node, None] = {}

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def add(self, node: Node) -> None:
        """Add a span that was only requested."""
        self._nodes[node] = None

    def keep(self, node: Node) -> None:
        """Keep a span that Dask has made after all."""
        self._nodes.pop(node, None)

    def outdated(self, now: float) -> Iterator[Node]:
        """Take out and yield some of those that have been at rest for long."""
        for node in list(islice(self._nodes, FORGOTTEN_AT_ONCE)):
            del self._nodes[node]
            if node.segment or node.children_known or now - node.previous_end < self._kept_for:
                self._nodes[node] = None  # to the end
            else:
                yield node


class Forest:
    """All nodes of a scheduler; parents are opened before their children and taken out after them."""

    def __init__(
        self, born: float, max_groups: int, first_number: int, keep_requested: float, forgotten: ForgottenIds
    ) -> None:
        self._max_groups = max_groups
        #: Of the segments and groups of spans that are older: another bridge may have sent those before.
        self._first_number = first_number
        #: When it began to count.
        self.born = born
        self.nodes: dict[str, Node] = {}
        self._asked = Asked(keep_requested)
        self._forgotten = forgotten
        # Sets in order of insertion:
        self.open: dict[Node, None] = {}
        self.open_tops: dict[Node, None] = {}
        self.touched: dict[Node, None] = {}
        #: Children before their parents, as in ``touched``.
        self.at_rest: dict[Node, None] = {}
        #: Nodes with entries in a ledger but no open segment.
        self.held: dict[Node, None] = {}
        #: Nodes that a submission has named since the last sweep.
        self.noted: dict[Node, None] = {}
        #: Returns a mark of what is known of the cluster now, see ``Segment.mark``.
        self.mark: Callable[[], object] = lambda: None
        #: Busy thread-seconds of all roots, so far.
        self.busy = 0.0

    def add(self, info: SpanInfo) -> None:
        """Add a Dask span; its parent must be known."""
        self._asked.keep(self.nodes.get(info.id) or self._add(info, self.first_number_of(info.id, info.enqueued)))

    def first_number_of(self, span_id: str, enqueued: float) -> int:
        """Where to begin to number the segments and groups of a span that appeared at some time."""
        again = self._forgotten.first_number(span_id, max(enqueued, self.born))
        return again or (self._first_number if enqueued < self.born else 0)

    def add_requested(self, info: SpanInfo) -> None:
        """Add a span that was requested and that Dask has not made; its parent must be known."""
        if info.id not in self.nodes:
            again = self._forgotten.first_number(info.id, max(info.enqueued, self.born))
            self._asked.add(self._add(info, again or self._first_number))

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
        """Whether a span is known as one that Dask has made, not only as requested."""
        return self.knows(span_id) and self.nodes[span_id] not in self._asked

    def root_of(self, span_id: str) -> SpanInfo:
        """Return the root of a span that is known."""
        return self.nodes[span_id].root.info

    def forget_requested(self, now: float) -> None:
        """Forget spans that were only requested, long after they have ended."""
        for node in self._asked.outdated(now):
            self.forget(node)

    def forget(self, node: Node) -> None:
        """Forget a span that has neither an open segment nor children."""
        del self.nodes[node.info.id]
        for index in (self.held, self.noted, self.touched, self.at_rest):
            index.pop(node, None)
        self._asked.keep(node)
        if node.parent:
            node.parent.children_known -= 1
        # Dask names each default span anew.
        if not node.info.is_default and (node.previous or node.first_number):
            self._forgotten.add(node.info.id)

    def is_inside(self, span_id: str, node: Node) -> bool:
        """Whether a span is the node or below it."""
        return span_id in self.nodes and node in self.nodes[span_id].lineage()

    def ledger(self, node: Node, now: float) -> Ledger:
        """Return a node's ledger, opened if there is none."""
        if not node.segment:
            self.held[node] = None
        return node.begin_ledger(now)

    def open_segment(self, node: Node, at: float, now: float, *, is_early: bool = False) -> Segment:
        """Return a node's open segment; open one that begins at ``at``, and its parents', if there is none.

        Parameters
        ----------
        is_early
            Whether a first segment may begin before Dask made the span.
        """
        closed = []
        for each in node.lineage():
            if each.segment:
                break
            closed.append(each)
        for each in reversed(closed):
            self._open_one(each, at, now, is_early=is_early)
        for each in closed:
            self._look_at(each)
        assert node.segment
        return node.segment

    def _open_one(self, node: Node, at: float, now: float, *, is_early: bool) -> None:
        """Open a node's segment; its parent's is open."""
        above = node.parent.segment if node.parent else None
        is_first = node.next_number == node.first_number and node.info.enqueued >= self.born
        if is_first:
            at = min(at, node.info.enqueued) if is_early else node.info.enqueued
        start = max(at, self.born, node.previous_end)
        start = max(min(start, now), above.start if above else 0.0)  # later than now only if the clock was set back
        node.segment = Segment(node, start, self.busy - node.root.busy, self._max_groups)
        if node.parent is None:
            node.segment.mark = self.mark()
        node.stamp_groups(node.begin_ledger(start))
        self.held.pop(node, None)
        self.open[node] = None
        if above:
            above.children[node] = None
        if node.segment.top is node:
            self.open_tops[node] = None

    def _look_at(self, node: Node) -> None:
        """Have the next ``account`` visit a node; to be called for children before their parents."""
        self.touched.pop(node, None)
        self.touched[node] = None

    def drop_notes(self) -> Iterator[None]:
        """Forget submissions to spans in which nothing happens, because their results were there already. Lazy."""
        noted, self.noted = self.noted, {}
        for node in noted:
            yield
            if node in self.held and node.ledger and not node.ledger.has_numbers:
                node.ledger = None
                del self.held[node]

    def touch(self, node: Node, happened: Happened | None, load: Load, active: float | None) -> None:
        """Add to the load of a node and of those above it, and have the next ``account`` visit them.

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

    def take_out(self, node: Node) -> tuple[Segment, Ledger]:
        """End a node's open segment, and hand over what it held."""
        segment, ledger = node.segment, node.ledger
        assert segment and ledger  # noqa: PT018
        for index in (self.open, self.open_tops, self.touched, self.at_rest):
            index.pop(node, None)
        if not self.open:  # a dict that was large keeps its room, and walking over it its time
            self.open, self.open_tops, self.at_rest = {}, {}, {}
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
