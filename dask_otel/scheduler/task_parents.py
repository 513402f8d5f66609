"""Writes into tasks what their workers cannot compute about the parents of the spans that they make.

Workers can compute the trace of a Dask span and the id of a group's first group span. They cannot know that a
``default`` root has filled a trace and goes on in another one, that a group was split, or what the scheduler's sampler
decides. Where that matters, the annotation ``otel`` of new tasks gets two fields more, see ``messages``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from ..identity import Caller, Origin, caller_of, origin_of, place, segment_id
from ..messages import ANNOTATION, GROUP_FIELD, PARENT_FIELD
from ..spantree.lifecycle import SpanTree
from .pace import Clock
from .split_groups import GroupSplitter

__all__ = ["Sampler", "TaskParents"]


class Sampler(Protocol):
    """Decides which traces are sent."""

    def __call__(self, trace_id: int, caller: Caller | None, tags: tuple[str, ...], top: tuple[str, ...]) -> bool:
        """Whether a trace is sent, by the tags of one of its Dask spans and of the one at its top."""


class TaskParents:
    """Writes the annotations of new tasks.

    Parameters
    ----------
    spans
        ``SpansSchedulerExtension.spans``
    splitter
        Knows which groups were split; None if none are.
    sampler
        None if the caller of a trace alone decides.
    """

    def __init__(
        self,
        spans: Mapping[str, Any],
        span_tree: SpanTree,
        splitter: GroupSplitter | None,
        sampler: Sampler | None,
        clock: Clock,
    ) -> None:
        self._spans = spans
        self._span_tree = span_tree
        self._splitter = splitter
        self._sampler = sampler
        self._clock = clock

    def write(self, tasks: Iterable[Any], groups: Mapping[Any, int], new: Collection[Any], submitter: str = "") -> None:
        """Write into those of a graph's tasks that need it, in one pass, once Dask has filed them.

        Parameters
        ----------
        groups
            Number of new tasks by ``TaskGroup``.
        new
            Keys of new tasks.
        submitter
            Span of the task that submits the graph, as the graph's ``PARENT_FIELD`` has it; empty if it names none.
        """
        parents: dict[str, str | None] = {}
        fields: dict[Any, dict[str, str]] = {}
        above = caller_of(submitter)
        for group, number in groups.items():
            if number and (found := self._fields(group, parents, above)):
                fields[group] = found
        if not fields:
            return
        #: By fields and by what the client sent: tasks share the value.
        values: dict[tuple[int, int], dict[Any, Any]] = {}
        for task in tasks:
            added = fields.get(task.group)
            if added is None or task.key not in new:
                continue
            if task.annotations is None:
                task.annotations = {}
            sent = task.annotations.get(ANNOTATION)
            value = values.get((id(added), id(sent)))
            if value is None:
                if not isinstance(sent, Mapping | None):  # an annotation of somebody else's, with the same name
                    continue
                value = values[id(added), id(sent)] = {**(sent or {}), **added}
            task.annotations[ANNOTATION] = value  # each task has a dict of its own

    def _fields(self, group: Any, parents: dict[str, str | None], submitter: Caller | None) -> dict[str, str]:
        span_id = group.span_id
        if not span_id:
            return {}
        if span_id not in parents:
            parents[span_id] = self._parent(self._spans[span_id], submitter)
        parent = parents[span_id]
        fields = {} if parent is None else {PARENT_FIELD: parent}
        if self._splitter and self._splitter.is_part_of(group):
            fields[GROUP_FIELD] = str(group.name)
        return fields

    def _parent(self, span: Any, submitter: Caller | None) -> str | None:
        """Return the parent of the spans of tasks, empty for the group's; None if it is as their workers see it."""
        lineage = [span]
        while lineage[0].parent:
            lineage.insert(0, lineage[0].parent)
        at = self._span_tree.parent_segment(span.id, lineage[0].id, self._clock.of_dask(span.enqueued))
        if at is None and self._sampler is None and submitter is None:
            return None
        origin = origin_of([each.id for each in lineage])
        trace_number, number = at or (0, 0)
        trace_id = origin.trace_id(trace_number)
        if submitter and submitter.trace_id == trace_id:
            return None
        as_caller = is_sampled = origin.caller is None or origin.caller.is_sampled
        if self._sampler:
            top = _top(lineage, trace_id, trace_number)
            is_sampled = self._sampler(trace_id, origin.caller, _tags(span), _tags(top))
        if at is None and is_sampled == as_caller:
            return "" if submitter else None
        return f"00-{trace_id:032x}-{segment_id(span.id, number):016x}-{is_sampled:02x}"


def _top(lineage: list[Any], trace_id: int, trace_number: int) -> Any:
    """Return the Dask span at the top of a trace, of those from the root down to the one at its bottom."""
    origin: Origin | None = None
    top, above = lineage[0], None
    for span in lineage:
        origin = origin.below(span.id) if origin else origin_of([span.id])
        placed = place(origin, trace_number, above)
        above = placed.trace_id, 0
        if placed.is_top:
            top = span
    return top


def _tags(span: Any) -> tuple[str, ...]:
    return tuple(str(tag) for tag in span.name)
