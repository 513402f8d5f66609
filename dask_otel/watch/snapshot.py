"""Reads task groups and spans of the scheduler into plain data.

Uses only what is public in ``distributed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ..mirror.model import Change, Dependency, SpanInfo
from ..mirror.tally import Load
from .submissions import Ask

__all__ = ["Groups", "span_info", "spans_of"]

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
