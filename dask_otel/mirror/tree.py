"""The mirror's copy of Dask's span tree: one node per Dask span, one segment per node that is open."""

from __future__ import annotations

from collections.abc import Iterator

from .clock import Activity, Heartbeats, Wall
from .groups import Budget, GroupLedger
from .ids import group_id, others_id, segment_id, trace_id
from .ledger import Ledger
from .model import SpanInfo
from .tally import Load

__all__ = ["Node", "Segment"]

#: Shared by all nodes at rest: a finished span should cost little.
NO_LOAD = Load()


class Segment:
    """An open segment: an episode of a Dask span that has not ended yet."""

    __slots__ = (
        "activity",
        "announced",
        "budget",
        "children",
        "claimed",
        "enclosed_from",
        "enclosed_until",
        "has_wordless_runs",
        "id",
        "last_change",
        "number",
        "others_at_start",
        "others_now",
        "overdue",
        "owed",
        "parent_id",
        "sent_to",
        "start",
        "trace_id",
        "wall",
    )

    def __init__(self, node: Node, start: float, others: float, max_groups: int) -> None:
        self.number = node.next_number
        self.id = segment_id(node.info.id, self.number)
        self.trace_id = trace_id(node.root.info.id, node.root.trace_number)
        self.parent_id = node.parent.segment.id if node.parent and node.parent.segment else None
        self.start = start
        self.wall = Wall(start)
        #: Latest sweep that saw something happen.
        self.last_change = start
        #: Nodes of child segments that are open; a set in order of insertion.
        self.children: dict[Node, None] = {}
        #: Earliest start and latest end of what has been sent of its children: it must enclose them.
        self.enclosed_from = float("inf")
        self.enclosed_until = float("-inf")
        #: A root only: whether a marker has been sent.
        self.announced = False
        #: What the trace may still hold; one for the root and all below it.
        above = node.root.segment
        self.budget: Budget = above.budget if above else Budget(max_groups)
        #: Workers that were given tasks; a set in order of insertion.
        self.sent_to: dict[str, None] = {}
        #: Unfinished tasks that it asked for and another span counts, by that span's id.
        self.claimed: dict[str, int] = {}
        #: Workers whose metrics are awaited, and since when.
        self.owed: dict[str, float] = {}
        #: The same of workers that are no longer waited for, though their metrics have not come.
        self.overdue: dict[str, float] = {}
        #: Whether a run has ended without a word from its worker, whose metrics come all the same.
        self.has_wordless_runs = False
        #: Thread-seconds used by other roots, as known when the segment began and when it last changed.
        self.others_at_start = self.others_now = others
        #: What happened since the wall time was last accounted for.
        self.activity = Activity()

    def enclose(self, start: float, end: float) -> None:
        """Note that a child was sent."""
        self.enclosed_from = min(self.enclosed_from, start)
        self.enclosed_until = max(self.enclosed_until, end)

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set. What was sent stays enclosed."""
        self.start = min(self.start + seconds, self.enclosed_from)
        self.last_change += seconds
        self.owed = {worker: since + seconds for worker, since in self.owed.items()}
        self.overdue = {worker: since + seconds for worker, since in self.overdue.items()}
        self.activity.shift(seconds)
        self.wall.shift(seconds)

    def end_metrics(self, heartbeats: Heartbeats, *, goes_on: bool) -> bool:
        """Await only what has not come; say whether nothing is known to be lost.

        Parameters
        ----------
        goes_on
            Whether another segment will await the rest.
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
        "children_known",
        "depth",
        "first_number",
        "group_numbers",
        "group_traces",
        "info",
        "ledger",
        "load",
        "next_number",
        "parent",
        "previous",
        "previous_end",
        "root",
        "segment",
        "title",
        "trace_number",
    )

    def __init__(self, info: SpanInfo, parent: Node | None, first_number: int = 0) -> None:
        self.info = info
        self.parent = parent
        self.root: Node = parent.root if parent else self
        #: Number of nodes that have this one for their parent.
        self.children_known = 0
        self.depth: int = parent.depth + 1 if parent else 0
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
        #: How many traces this root has filled.
        self.trace_number = 0
        #: Busy thread-seconds of this root's tree, so far.
        self.busy = 0.0
        #: Name of the segments.
        self.title: str = info.tags[-1]

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

    def latest_group_span(self, name: str) -> tuple[int, int] | None:
        """Trace id and span id of a group's latest group span, if it has one or will have one."""
        if self.ledger and name in self.ledger.announced:
            self.begin_group(self.ledger, name, *self.ledger.announced[name])
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
        return trace_id(self.root.info.id, trace_number), group_id(self.info.id, name, number)

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
