"""Reads task groups and spans of the scheduler into plain data, with what is public in ``distributed`` only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ..schema import MAX_DEPENDENCIES
from ..spantree.counts import Load
from ..spantree.events import Change, Dependency, SpanInfo
from .inbox import RequestedSpan
from .pace import Clock

__all__ = ["TaskGroupReader", "requested_spans", "span_info"]


class _Known:
    """The numbers of a group when it was last read."""

    __slots__ = ("dependencies", "durations", "load", "nbytes", "tasks")

    def __init__(self) -> None:
        self.tasks = 0
        self.nbytes = 0
        self.durations: dict[str, int] = {}
        self.load = Load()
        self.dependencies: tuple[Dependency, ...] = ()


class TaskGroupReader:
    """Turns the running totals of ``TaskGroup``s into changes since the last time.

    Parameters
    ----------
    registry
        ``Scheduler.task_groups``
    """

    def __init__(self, registry: dict[str, Any], clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._known: dict[Any, _Known] = {}
        #: Groups that Dask had forgotten when they were last read.
        self._gone: list[Any] = []

    def read_baseline(self, group: Any) -> Change:
        """Take a group's numbers as they are for the zero from which to count.

        Returns
        -------
        A change with nothing but the number of unfinished tasks.
        """
        full = Change(0.0)
        self.read_delta(group, full)
        change = Change(0.0)
        change.span_id, change.load = full.span_id, full.load
        return change

    def read_delta(self, group: Any, change: Change) -> None:
        """Add to a change what can be read from its ``TaskGroup``, and convert the times of runs."""
        known = self._known.get(group)
        if known is None:
            known = self._known[group] = _Known()
        change.span_id = group.span_id
        # Dask takes keys like (1, 2), whose group is named 1.
        change.name = str(group.name)
        change.prefix = str(group.prefix.name)
        change.run_start, change.run_stop = self._clock.of_dask(change.run_start), self._clock.of_dask(change.run_stop)
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
        self._check_gone(group)

    def is_unchanged(self, group: Any, change: Change) -> bool:
        """Whether a change comes to nothing: results were released, or tasks forgotten."""
        known = self._known.get(group)
        if known is None or not change.is_trivial:
            return False
        if (len(group), group.nbytes_total) != (known.tasks, known.nbytes):
            return False
        if _load(group, known.load.provisional) != known.load:
            return False
        self._check_gone(group)
        return True

    def known(self) -> list[Any]:
        """Return all groups that may still change."""
        return list(self._known)

    def may_change(self, group: Any) -> bool:
        """Whether a group may still have something to be read."""
        return group in self._known

    def forget_gone(
        self, forgotten: Iterable[Any], has_changed: Callable[[Any], bool], touch: Callable[[Any], object]
    ) -> Iterator[None]:
        """Let go of groups that Dask has forgotten and that have not changed since they were read; lazy.

        A group that changed while a sweep was running is read by the next one.

        Parameters
        ----------
        forgotten
            Groups of which tasks were forgotten.
        has_changed
            Whether something has happened to a group that is still to be read.
        touch
            Has the next sweep read a group: data may have been scattered into it without any hook.
        """
        gone, self._gone = self._gone, []
        for group in chain(gone, forgotten):
            if self._registry.get(group.name) is not group and not has_changed(group):
                known = self._known.get(group)
                if known and (known.tasks, known.nbytes) != (len(group), group.nbytes_total):
                    touch(group)
                else:
                    self._known.pop(group, None)
            yield

    def _check_gone(self, group: Any) -> None:
        if self._registry.get(group.name) is not group:
            self._gone.append(group)


def _load(group: Any, provisional: int) -> Load:
    states = group.states
    return Load(states["processing"], states["queued"], states["no-worker"], states["waiting"], provisional)


def _dependencies(group: Any) -> tuple[Dependency, ...]:
    return tuple(
        Dependency(dependency.span_id or "", str(dependency.name))
        for dependency in islice(group.dependencies, MAX_DEPENDENCIES)
        if dependency is not group
    )


def requested_spans(span: RequestedSpan, since: float) -> Iterator[SpanInfo]:
    """Describe a span that a submission named, and its parents, from the root down."""
    tags = tuple(str(tag) for tag in span.tags)
    for depth, span_id in enumerate(span.ids, 1):
        yield SpanInfo(span_id, tags[:depth], span.ids[depth - 2] if depth > 1 else None, since)


def span_info(span: Any, clock: Clock) -> SpanInfo:
    """Describe a ``distributed.spans.Span``."""
    parent = span.parent
    # Dask accepts tags that are not strings.
    tags = tuple(str(tag) for tag in span.name)
    return SpanInfo(span.id, tags, parent.id if parent else None, clock.of_dask(span.enqueued))
