"""Reads task groups and spans of the scheduler into plain data.

Uses only what is public in ``distributed``.

What a sweep need not tell of many groups at work: each has done little since the last one.

To tell of a little costs much the same as of a lot. It is told at every fifth sweep, and before anything depends on it:
the end of a segment, a cut, metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice
from math import inf
from typing import Any, NamedTuple

from distributed.metrics import time

from ..spantree.counts import Load
from ..spantree.events import Change, Dependency, SpanInfo
from ..spantree.lifecycle import SpanTree
from .inbox import Inbox
from .pace import Pace
from .submissions import Ask

__all__ = ["Deferral", "Due", "Groups", "entered_only", "span_info", "spans_of"]

#: A group span names at most this many of the groups it depends on.
MAX_DEPENDENCIES = 128
#: Sweeps in a row that may leave what happened to a group for later.
MAX_DEFERRED = 4


class _Known:
    """What a group's numbers were when it was last looked at."""

    __slots__ = ("deferred", "dependencies", "durations", "entered", "load", "nbytes", "since", "tasks", "waits")

    def __init__(self) -> None:
        self.tasks = 0
        self.nbytes = 0
        self.durations: dict[str, int] = {}
        self.load = Load()
        self.dependencies: tuple[Dependency, ...] = ()
        #: How often in a row the rest of a change has been left for later.
        self.deferred = 0
        #: Whether a change waits that holds more than that tasks have entered.
        self.waits = False
        #: If it holds no more, that is all that is kept of it: number of tasks, and since when.
        self.entered = 0
        self.since = 0.0


class Groups:
    """Turns the running totals of task groups into what has changed."""

    def __init__(self, registry: dict[str, Any]) -> None:
        #: ``Scheduler.task_groups``
        self._registry = registry
        self._known: dict[Any, _Known] = {}
        #: Groups that Dask had forgotten when they were last looked at.
        self._gone: list[Any] = []
        #: Groups of which only that tasks have entered was left for later; a set in order of insertion.
        self.entered: dict[Any, None] = {}

    def is_as_known(self, group: Any, change: Change) -> bool:
        """Whether a change comes to nothing: results were released, or tasks forgotten."""
        known = self._known.get(group)
        if known is None or known.entered or change.active or change.sent_to or not change.is_plain:
            return False
        if (len(group), group.nbytes_total) != (known.tasks, known.nbytes):
            return False
        if _load(group, known.load.provisional) != known.load:
            return False
        self._look_whether_gone(group)
        return True

    def complete(self, group: Any, change: Change) -> None:
        """Add to a change what can be read from its TaskGroup."""
        known = self._known.get(group)
        if known is None:
            known = self._known[group] = _Known()
        self._take_entered(group, known, change)
        _name(group, change)
        tasks, nbytes = len(group), group.nbytes_total
        change.tasks, known.tasks = tasks - known.tasks, tasks
        change.nbytes, known.nbytes = nbytes - known.nbytes, nbytes
        if change.completed or change.outcomes or not change.active:  # else tasks have only entered
            durations = {action: round(seconds * 1e6) for action, seconds in group.all_durations.items()}
            change.durations = {
                action: micros - known.durations.get(action, 0)
                for action, micros in durations.items()
                if micros != known.durations.get(action, 0)
            }
            known.durations = durations
        load = _load(group, known.load.provisional + change.provisional)
        change.load, change.unfinished = load.minus(known.load), load.unfinished
        known.load = load
        if len(known.dependencies) != min(len(group.dependencies), MAX_DEPENDENCIES):
            known.dependencies = _dependencies(group)
        change.dependencies = known.dependencies
        self._look_whether_gone(group)
        known.deferred, known.waits = 0, False

    def look(self, group: Any, change: Change) -> bool:
        """Add to a change only how many of its group's tasks entered, and wait for what, if the rest can be told later.

        Returns
        -------
        Whether that was so. If not, all should be told now: the group has come to rest, or was until now, or something
        has happened to it other than that tasks entered and completed; or it is new and has done more than to enter.
        """
        known = self._known.get(group)
        if not change.is_plain:
            return False
        if known is None:
            if change.completed:
                return False
        elif known.deferred >= MAX_DEFERRED or not known.load.unfinished:
            return False
        load = _load(group, known.load.provisional if known else 0)
        if not load.unfinished:
            return False
        if known is None:
            known = self._known[group] = _Known()
        known.deferred += 1
        self._take_entered(group, known, change)
        _name(group, change)
        tasks = len(group)
        change.tasks, known.tasks = tasks - known.tasks, tasks
        change.load, known.load = load.minus(known.load), load
        return True

    def knows(self, group: Any) -> bool:
        """Whether a group has been looked at."""
        return group in self._known

    def begins_to_wait(self, group: Any) -> bool:
        """Note that the rest of a change is left for later; whether it is the first one since all was told."""
        known = self._known[group]
        begins, known.waits = not known.waits, True
        return begins

    def clock_set_back(self, seconds: float, now: float) -> None:
        """Move what was kept to the clock's new time."""
        for group in self.entered:
            known = self._known[group]
            known.since -= seconds if known.since > now else 0.0

    def keep_entered(self, group: Any, change: Change) -> None:
        """Keep of a change that holds no more how many tasks entered, and since when."""
        if change.entered:
            known = self._known[group]
            known.entered, known.since = change.entered, change.since
            self.entered[group] = None

    def _take_entered(self, group: Any, known: _Known, change: Change) -> None:
        if known.entered:
            change.entered += known.entered
            change.since = min(change.since, known.since)
            known.entered = 0
            self.entered.pop(group, None)

    def _look_whether_gone(self, group: Any) -> None:
        if self._registry.get(group.name) is not group:
            self._gone.append(group)

    def forget(
        self, has_changed: Callable[[Any], bool], forgotten: Iterable[Any], touch: Callable[[Any], object]
    ) -> Iterator[None]:
        """Let go of groups that Dask has forgotten and that have not changed since they were looked at; lazy.

        Parameters
        ----------
        has_changed
            Whether something has happened to a group, also while this goes on: then it is still to be told of.
        forgotten
            Groups of which tasks were forgotten.
        touch
            Has the next sweep look at a group: data may have been scattered into it without a word.

        Not at once: what happened to a group while a sweep was on its way is seen by the next one.
        """
        gone, self._gone = self._gone, []
        for group in chain(gone, forgotten):
            if self._registry.get(group.name) is not group and not has_changed(group):
                known = self._known.get(group)
                if known and (known.entered or (known.tasks, known.nbytes) != (len(group), group.nbytes_total)):
                    touch(group)
                else:
                    self._known.pop(group, None)
            yield

    def known(self) -> list[Any]:
        """All groups that may still change."""
        return list(self._known)

    def learn(self, group: Any) -> Change:
        """Take a group's numbers as they are for the zero from which to count.

        Returns
        -------
        A change that says nothing but how many of its tasks are unfinished.
        """
        full = Change(0.0)
        self.complete(group, full)
        change = Change(0.0)
        change.span_id, change.load = full.span_id, full.load
        return change


def _name(group: Any, change: Change) -> None:
    change.span_id = group.span_id
    # Dask takes keys like (1, 2), whose group is named 1.
    change.name = str(group.name)
    change.prefix = str(group.prefix.name)


def _load(group: Any, provisional: int) -> Load:
    states = group.states
    return Load(states["processing"], states["queued"], states["no-worker"], states["waiting"], provisional)


def _dependencies(group: Any) -> tuple[Dependency, ...]:
    return tuple(
        Dependency(dependency.span_id or "", str(dependency.name))
        for dependency in islice(group.dependencies, MAX_DEPENDENCIES)
        if dependency is not group
    )


def spans_of(ask: Ask, since: float) -> Iterator[SpanInfo]:
    """Describe a span that a submission named, and its parents, from the root down."""
    tags = tuple(str(tag) for tag in ask.tags)
    for depth, span_id in enumerate(ask.ids, 1):
        yield SpanInfo(span_id, tags[:depth], ask.ids[depth - 2] if depth > 1 else None, since)


def span_info(span: Any) -> SpanInfo:
    """Describe a ``distributed.spans.Span``."""
    parent = span.parent
    # Dask accepts tags that are not strings.
    tags = tuple(str(tag) for tag in span.name)
    return SpanInfo(span.id, tags, parent.id if parent else None, span.enqueued)


#: Groups that have changed; of fewer, all is told at once.
MANY_GROUPS = 50
#: Before a segment is cut, the part of its life, and the seconds at least, in which nothing is left for later.
BEFORE_CUT, SECONDS_BEFORE_CUT = 0.1, 5.0


class Deferral:
    """Leaves what happened to groups for a later sweep, and the hooks without work that would come to nothing."""

    def __init__(self, span_tree: SpanTree, inbox: Inbox, groups: Groups) -> None:
        self._span_tree = span_tree
        self._inbox = inbox
        self._groups = groups
        #: Number of this sweep; and by number of a sweep, the groups of which it is to tell in full.
        self._number = 0
        self._due: dict[int, list[Any]] = {}
        #: When the oldest root began of which a group was left: it is the first one that is cut.
        self._oldest = inf

    def begin_sweep(self, changed: int, *, may_defer: bool) -> Due:
        """Begin a sweep; say what earlier ones have left for this one.

        Parameters
        ----------
        changed
            Number of groups to which something has happened.
        """
        self._number += 1
        due = self._due.pop(self._number, [])
        may_defer = may_defer and changed + len(self._inbox.left) > MANY_GROUPS
        is_cut_soon = self._is_cut_soon(self._oldest, time())
        if may_defer and not is_cut_soon:
            return Due(may_defer, frozenset(due), self._inbox.take_left(due), [])
        self._due = {}
        left = self._inbox.take_all_left()
        entered: list[Any] = []
        if is_cut_soon:
            self._oldest = inf
            entered = list(self._groups.entered)
        return Due(may_defer, left.keys(), left, entered)

    def clock_set_back(self, seconds: float) -> None:
        """Move what was kept to the clock's new time, as roots move."""
        self._oldest -= seconds
        self._groups.clock_set_back(seconds, time())

    def defer(self, group: Any, change: Change) -> bool:
        """Tell of a group in an open span only how many of its tasks wait for what, if the rest can be told later.

        Returns
        -------
        Whether that was so; what is left is kept.
        """
        now = time()
        begun = self._span_tree.forest.begun(group.span_id)
        if begun is None or self._is_cut_soon(begun, now):
            return False
        if self._groups.knows(group) and not self._span_tree.forest.has_group(group.span_id, str(group.name)):
            return False
        if self._inbox.is_latched(group):  # there is a new change already
            return False
        if not self._groups.look(group, change):
            return False
        self._oldest = min(self._oldest, begun)
        self._span_tree.look(change, now)
        if not change.completed:
            self._groups.keep_entered(group, change)
            return True
        self._inbox.leave_for_later(group, change)
        if self._groups.begins_to_wait(group):
            self._due.setdefault(self._number + MAX_DEFERRED, []).append(group)
        return True

    def _is_cut_soon(self, begun: float, now: float) -> bool:
        longest = self._span_tree.settings.max_segment
        return now - begun >= longest - max(BEFORE_CUT * longest, SECONDS_BEFORE_CUT)

    async def raise_thresholds(self, groups: Iterable[Any], pace: Pace) -> None:
        """Have no run picked of groups at work that would not be among the slowest in the end."""
        if self._inbox.picks_slow:
            for group in groups:
                threshold = self._span_tree.forest.threshold(group.span_id, str(group.name))
                if threshold >= 0.0:
                    self._inbox.raise_threshold(group, threshold)
                await pace.rest()


class Due(NamedTuple):
    """What a sweep has to tell of besides what has just happened."""

    #: Whether anything may be left for a later sweep.
    may_defer: bool
    #: Groups of which all is to be told, whatever has happened to them.
    groups: Collection[Any]
    #: Changes that were left for this sweep.
    left: dict[Any, Change]
    #: Groups of which only that tasks have entered is to be told.
    entered: list[Any]


def entered_only(now: float) -> Change:
    """Say nothing more of a group than that tasks have entered, which has been kept."""
    change = Change(now)
    change.active = True
    return change
