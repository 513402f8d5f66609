"""Forgets spans that ended long ago, on schedulers that live long: Dask itself keeps each span for ever.

Only whole roots are forgotten, with all spans below: those whose segments are closed and have left the queues of all
exporters, and none of whose task groups is left on the scheduler. They are taken out of Dask's ``spans`` extension, and
out of the span tree.

A span that has been forgotten can come back under its id. Dask then makes a new ``Span`` that counts from zero, and the
numbers of its segments do not repeat, see ``spantree.forgotten``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from collections.abc import Set as AbstractSet
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ..safety import Safety
from ..spantree.forgotten import ForgottenIds
from ..spantree.lifecycle import SpanTree
from .compat import Tap
from .inbox import Inbox

__all__ = ["Forgetting", "Memory", "memory_of"]

#: Spans and task groups that are checked, or taken out, in one step: about a millisecond.
AT_ONCE = 100
#: Seconds after which a root is checked again that cannot be forgotten yet, at most.
RETRY = 60.0
#: Names of roots of which the latest one is kept, see ``Forgetting``.
KEPT_NAMES = 100


class Memory:
    """What one scheduler must know of the spans that were forgotten, whichever bridge has done it."""

    def __init__(self) -> None:
        self.ids = ForgottenIds()
        #: Numbers of roots and spans that were forgotten, and of metrics that came for them later.
        self.roots = self.spans = self.late_metrics = 0
        #: Whether late metrics are dropped.
        self.is_guarded = False


#: By scheduler. It does not refer to the scheduler, which it would else keep alive.
_memories: WeakKeyDictionary[Any, Memory] = WeakKeyDictionary()


def memory_of(scheduler: Any) -> Memory:
    """Return what a scheduler knows of its forgotten spans."""
    return _memories.setdefault(scheduler, Memory())


class LateMetrics(Tap):
    """Wraps the ``heartbeat`` method of a scheduler's ``SpansSchedulerExtension``: drops metrics of forgotten spans.

    Dask would fail, and so close the worker. A task that was cancelled may run on for hours on its worker, so this
    stays when the bridge ends, if spans were forgotten.
    """

    def __init__(self, extension: Any, memory: Memory, safety: Safety) -> None:
        super().__init__(extension, "heartbeat", safety)
        self._spans = extension.spans
        self._memory = memory

    def install(self) -> None:
        """Begin to drop, unless an earlier one does."""
        if not self._memory.is_guarded:
            super().install()
            self._memory.is_guarded = True

    def remove(self) -> None:
        """Give the extension its own method back, if no span was forgotten."""
        if self._listening and not self._memory.spans:
            super().remove()
            self._memory.is_guarded = False

    def _called(self, ws: Any, data: dict[tuple[Any, ...], float]) -> None:
        try:  # half the time of a guard
            spans = self._spans
            for key in data:
                if key[1] not in spans:
                    known = {key: value for key, value in data.items() if key[1] in spans}
                    self._memory.late_metrics += len(data) - len(known)
                    data = known
                    break
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._safety.caught("heartbeat hook", error)
        self._original(ws, data)


class Output(Protocol):
    """Where records go."""

    def mark(self) -> Any:
        """Say which records have been put so far."""

    def is_settled(self, mark: Any) -> bool:
        """Whether all records up to a ``mark`` are sent, or dropped for good."""


class _Root:
    """A root that is still to be forgotten."""

    __slots__ = ("is_kept", "name", "resting_since", "settled_after", "span_id")

    def __init__(self, span: Any) -> None:
        self.span_id: str = span.id
        self.name: tuple[Any, ...] = span.name
        #: When it was first seen at rest, if it has had no segment.
        self.resting_since: float | None = None
        #: After which segment the queues were seen without any record of it.
        self.settled_after: object = self
        #: Whether it was kept because it is the latest of its name.
        self.is_kept = False


class Forgetting:
    """Forgets the roots of one scheduler.

    The latest root of a name stays, for up to ``KEPT_NAMES`` names: Dask's dashboard selects spans by name, and fails
    if there is none. The latest root of all always stays, since Dask fails without any.

    Parameters
    ----------
    may_change
        Whether a task group may still have something to be counted.
    after
        Seconds from the end of a root until it is forgotten.
    """

    def __init__(
        self,
        scheduler: Any,
        span_tree: SpanTree,
        inbox: Inbox,
        may_change: Callable[[Any], bool],
        output: Output,
        after: float,
        safety: Safety,
    ) -> None:
        self._extension = scheduler.extensions["spans"]
        self._registry = scheduler.task_groups
        self._span_tree = span_tree
        self._inbox = inbox
        self._may_change = may_change
        self._output = output
        self._after = after
        self._retry = min(after, RETRY)
        self._safety = safety
        self._memory = memory_of(scheduler)
        #: How many of the first of ``root_spans`` are in one of the two queues, and the last one of them.
        self._known = 0
        self._newest: Any = None
        #: Roots by the time of their next check.
        self._checks: list[tuple[float, int, _Root]] = []
        self._numbers = count()
        #: Roots that wait until records have been sent, and their last segments.
        self._unsettled: deque[tuple[Any, object, _Root]] = deque()
        #: Names of which the latest root is kept; a set in order of insertion.
        self._kept_names: dict[tuple[Any, ...], None] = {}

    def status(self) -> dict[str, int]:
        """Return how many roots and spans were forgotten, and how many metrics came for them later."""
        memory = self._memory
        return {"roots": memory.roots, "spans": memory.spans, "late_metrics": memory.late_metrics}

    def forget_some(self, now: float) -> Iterator[None]:
        """Forget all roots that are due; lazy. To be called by a sweep when it has sent what has ended."""
        yield from self._find_new(now)
        while self._unsettled and self._output.is_settled(self._unsettled[0][0]):
            _, segment, root = self._unsettled.popleft()
            root.settled_after = segment
            self._check_at(now, root)
        while self._checks and self._checks[0][0] <= now:
            yield from self._forget_due(now)
            yield

    def _find_new(self, now: float) -> Iterator[None]:
        roots = self._extension.root_spans
        if self._known and (self._known > len(roots) or roots[self._known - 1] is not self._newest):
            self._known = 0  # somebody else has taken some out
            self._checks.clear()
            self._unsettled.clear()
        while self._known < len(roots):
            some = roots[self._known : self._known + AT_ONCE]
            self._known += len(some)
            for span in some:
                self._check_at(now, _Root(span))
            self._newest = some[-1]
            yield

    def _check_at(self, at: float, root: _Root) -> None:
        heappush(self._checks, (at, next(self._numbers), root))

    def _forget_due(self, now: float) -> Iterator[None]:
        """Check and forget some roots, without a break from the check to the end unless a root is large."""
        named = self._inbox.spans_named()
        leaving: list[Any] = []
        visited = 0
        while visited < AT_ONCE and self._checks and self._checks[0][0] <= now:
            root = heappop(self._checks)[2]
            span = self._extension.spans.get(root.span_id)
            visited += 1
            if span is None:  # somebody else has taken it out
                continue
            at = self._not_before(root, span, now)
            if at > now:
                self._check_at(at, root)
                continue
            spans, size = _subtree(span, AT_ONCE)
            visited += size
            if size > AT_ONCE:
                self._take_out(leaving)
                large = self._forget_large(root, span, now)
                del leaving, span, spans  # it frees them
                yield
                yield from large
                return
            if not all(self._is_over(each.groups) for each in spans) or not self._is_counted(spans, named, now):
                self._check_at(now + self._retry, root)
            elif self._is_settled(root):
                leaving += reversed(spans)
        self._take_out(leaving)

    def _forget_large(self, root: _Root, span: Any, now: float) -> Iterator[None]:
        """Check and forget a root with many spans or groups, in steps.

        A task group that is gone stays so. Hence whatever happens meanwhile shows in the number of groups or children.
        """
        sizes: dict[Any, tuple[int, int]] = {}
        spans = [span]
        for each in spans:  # which grows
            children, groups = list(each.children), list(each.groups)
            sizes[each] = len(children), len(groups)
            spans += children
            for some in _in_parts(groups):
                if not self._is_over(some):
                    self._check_at(now + self._retry, root)
                    return
                yield
            yield
        if not self._is_counted(spans, self._inbox.spans_named(), now):
            self._check_at(now + self._retry, root)
            return
        if not self._is_settled(root):
            return
        for leaving in _in_parts(list(reversed(spans))):
            named = self._inbox.spans_named()
            for each in leaving:
                if sizes[each] != (len(each.children), len(each.groups)) or each.id in named:
                    # What has been taken out comes back, if it is needed, as what was forgotten before.
                    self._check_at(now + self._retry, root)
                    return
            self._take_out(leaving)
            yield
        # To free thousands at once would take milliseconds. Each span holds its groups and children, so it goes first.
        garbage = [group for each in spans for group in each.groups]
        garbage += reversed(spans)
        del span, spans, sizes, leaving, each, groups, children
        while garbage:
            del garbage[-AT_ONCE:]
            yield

    def _not_before(self, root: _Root, span: Any, now: float) -> float:
        """Return when a root may be forgotten, or is to be checked again."""
        since = self._span_tree.rests_since(root.span_id)
        if since is None:
            return now + self._retry
        if not since:
            since = root.resting_since = now if root.resting_since is None else root.resting_since
        if since + self._after > now:
            return since + self._after
        return now + self._retry if self._keeps(root, span) else now

    def _keeps(self, root: _Root, span: Any) -> bool:
        """Whether a root stays because it is the latest."""
        if self._extension.root_spans[-1] is span:
            return True
        if self._extension.spans_search_by_name[root.name][-1] is not span:
            return False
        if not root.is_kept:
            root.is_kept = True
            self._kept_names.pop(root.name, None)
            self._kept_names[root.name] = None  # to the end
            if len(self._kept_names) > KEPT_NAMES:
                del self._kept_names[next(iter(self._kept_names))]
        return root.name in self._kept_names

    def _is_over(self, groups: Iterable[Any]) -> bool:
        """Whether all tasks of groups are gone, and all that happened to them is counted."""
        for group in groups:
            if self._registry.get(group.name) is group or self._may_change(group) or self._inbox.has_change(group):
                return False
            if any(number for state, number in group.states.items() if state != "forgotten"):
                return False
        return True

    def _is_counted(self, spans: Iterable[Any], named: AbstractSet[str], now: float) -> bool:
        """Whether all is counted and sent that is about a root and the spans below it; else have it sent."""
        ids = [span.id for span in spans]
        if not self._span_tree.is_complete(ids) or not named.isdisjoint(ids):
            return False
        return not self._span_tree.send_held(ids, now)

    def _is_settled(self, root: _Root) -> bool:
        """Whether all records of a root have left the queues; else it is checked again when they have."""
        segment = self._span_tree.last_segment(root.span_id)
        if root.settled_after != segment:
            mark = self._output.mark()
            if not self._output.is_settled(mark):
                self._unsettled.append((mark, segment, root))
                return False
        return True

    def _take_out(self, spans: Iterable[Any]) -> None:
        """Take spans out of Dask's extension and out of the span tree; children come before their parents."""
        extension = self._extension
        leaving = {span: None for span in spans if extension.spans.get(span.id) is span}
        if not leaving:
            return
        names: dict[Any, int] = {}
        tags: dict[Any, int] = {}
        roots = 0
        for span in leaving:
            names[span.name] = names.get(span.name, 0) + 1
            for tag in span.name:
                tags[tag] = tags.get(tag, 0) + 1
            roots += len(span.name) == 1
        _remove(extension.root_spans, leaving, roots)
        self._known -= roots
        self._newest = extension.root_spans[self._known - 1] if self._known else None
        for index, found in ((extension.spans_search_by_name, names), (extension.spans_search_by_tag, tags)):
            for key, number in found.items():
                _remove(index[key], leaving, number)
                if not index[key]:
                    del index[key]
        for span in leaving:
            del extension.spans[span.id]
        self._span_tree.forget(span.id for span in leaving)
        self._memory.roots += roots
        self._memory.spans += len(leaving)


def _subtree(span: Any, most: int) -> tuple[list[Any], int]:
    """Return a span and those below it, parents before children, and their number with that of their groups.

    If there are more than ``most``, the rest is left out.
    """
    spans, size = [span], 0
    for each in spans:  # which grows
        size += 1 + len(each.groups)
        if size > most:
            break
        spans += each.children
    return spans, size


def _in_parts(items: list[Any]) -> Iterator[list[Any]]:
    for begin in range(0, len(items), AT_ONCE):
        yield items[begin : begin + AT_ONCE]


def _remove(items: list[Any], leaving: Container[Any], number: int) -> None:
    """Remove from a list what leaves, so many times; the list may be long, and they are usually the first."""
    kept = []
    end = 0
    for end, each in enumerate(items, 1):  # noqa: B007
        if each in leaving:
            number -= 1
            if not number:
                break
        else:
            kept.append(each)
    items[:end] = kept
