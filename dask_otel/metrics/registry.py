"""What is measured, and how finely.

The series of one metric: its values by label. All of them share so much room.

Names that people invent, as labels: so many at a time, so that tomorrow's have a place, too.

All series and the names that label them: who has a place, who counts under ``other``, who gives up a place.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from operator import attrgetter
from typing import Any

from ..schema import METRICS, OPEN_LABELS, ZEROS, Kind, Metric
from .snapshot import Exemplar, HistogramPoint, Labels, MetricPoints, NumberPoint

__all__ = [
    "MAX_ACTIVITIES",
    "MAX_CONTEXTS",
    "MAX_ERRORS",
    "MAX_NAMES",
    "MAX_SERIES",
    "OTHER",
    "SPAN_BOUNDS",
    "SWEEP_BOUNDS",
    "TASK_BOUNDS",
    "UNUSED",
    "CardinalityLimit",
    "HistogramSeries",
    "MetricSettings",
    "Names",
    "NumberSeries",
    "Registry",
    "Rewriting",
    "Series",
]

#: Seconds; of ``dask.task.duration``, ``dask.span.duration``, ``dask_otel.sweep.duration``.
TASK_BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0, 10800.0, 43200.0)
SPAN_BOUNDS = (0.01, 0.1, 0.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0, 43200.0)
SWEEP_BOUNDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


@dataclass(frozen=True)
class MetricSettings:
    """Of the metrics."""

    #: Upper ends of the buckets of task and root durations, seconds.
    task_bounds: tuple[float, ...] = TASK_BOUNDS
    span_bounds: tuple[float, ...] = SPAN_BOUNDS
    #: What names of roots become, by the first pattern that matches all of one.
    root_names: tuple[tuple[re.Pattern[str], str], ...] = ()
    #: Names of metrics that are not wanted.
    excluded: frozenset[str] = frozenset()


#: Series of one scheduler, counted as Prometheus does: a histogram is one for each bucket, and its sum and count.
MAX_SERIES = 3000
#: Stands for all values of a label that there is no room for.
OTHER = "other"


class CardinalityLimit:
    """How many series there may still be. What is folded has its place from the start."""

    def __init__(self, now: float, most: int = MAX_SERIES) -> None:
        self._left = most
        #: When the sweep before this one began: what is counted for the first time came after it.
        self.since = now
        #: Called when there is none left.
        self.make_some: Callable[[], None] = lambda: None

    def reserve(self, number: int) -> None:
        """Keep places."""
        self._left -= number

    def take(self, number: int) -> bool:
        """Take places, if there are as many."""
        if number > self._left:
            self.make_some()
        if number > self._left:
            return False
        self._left -= number
        return True

    def give_back(self, number: int) -> None:
        """Give places back."""
        self._left += number


class Series:
    """What numbers and histograms have in common.

    Parameters
    ----------
    cost
        Series, as Prometheus counts them, of one combination of labels.
    """

    def __init__(self, metric: Metric, room: CardinalityLimit, cost: int) -> None:
        self.metric = metric
        self._room = room
        self._cost = cost
        self._open = [name in OPEN_LABELS for name in metric.labels]
        #: By labels, when they were first seen; before, their value was zero.
        self._starts: dict[Labels, float] = {}
        room.reserve(cost * metric.closed)

    def _place(self, labels: Labels, since: float | None = None) -> Labels:
        """Return labels, or what they are folded into if there is no room for more; ``since`` when they were zero."""
        if labels in self._starts:
            return labels
        folded = tuple(
            OTHER if is_open and value is not None else value for value, is_open in zip(labels, self._open, strict=True)
        )
        if labels != folded and not self._room.take(self._cost):
            labels = folded
        self._starts.setdefault(labels, self._room.since if since is None else since)
        return labels

    def _folded(self, labels: Labels) -> Labels:
        return tuple(
            OTHER if is_open and value is not None else value for value, is_open in zip(labels, self._open, strict=True)
        )

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self._starts = {labels: start + seconds for labels, start in self._starts.items()}

    def forget(self, name: str, value: str) -> None:
        """Drop the series whose label ``name`` has a value, but for what is folded into it."""
        if name not in self.metric.labels or value == OTHER:
            return
        at = self.metric.labels.index(name)
        for labels in [labels for labels in self._starts if labels[at] == value]:
            del self._starts[labels]
            self._drop(labels)
            self._room.give_back(self._cost)

    def _drop(self, labels: Labels) -> None:
        raise NotImplementedError

    def measured(self) -> MetricPoints:
        """Return all points as they are now."""
        raise NotImplementedError


class NumberSeries(Series):
    """A counter, updowncounter or gauge."""

    def __init__(self, metric: Metric, room: CardinalityLimit) -> None:
        super().__init__(metric, room, 1)
        self._values: dict[Labels, float] = {}
        #: What a counter shows: its value, held at its maximum.
        self._shown: dict[Labels, float] = {}
        #: Of counts that are told as totals, what has been added; by labels as they were given.
        self._totals: dict[Labels, float] = {}

    def add(self, labels: Labels, value: float, since: float | None = None) -> None:
        """Add to a counter; what is shown never goes down. ``since`` when, if not since the latest sweep."""
        labels = self._place(labels, since)
        total = self._values.get(labels, 0) + value
        if isfinite(total):  # else it would spoil every sum that it enters
            self._values[labels] = total
            self._shown[labels] = max(total, self._shown.get(labels, 0))

    def reach(self, labels: Labels, total: float, since: float) -> None:
        """Say to how much somebody else's count has come, since when it was last said."""
        change = total - self._totals.get(labels, 0)
        if change or labels not in self._totals:
            self._totals[labels] = total
            self.add(labels, change, since)

    def begin_totals(self) -> None:
        """Expect that somebody else's counts begin anew; what they had come to stays."""
        self._totals.clear()

    def set(self, values: Mapping[Any, float]) -> None:
        """Say how it is now; what was there before and is not named is zero."""
        folded: dict[Labels, float] = {}
        for labels, value in values.items():
            labels = self._place(labels)
            folded[labels] = folded.get(labels, 0) + value
        self._values = dict.fromkeys(self._values, 0) | folded

    def clear(self) -> None:
        """Say that nothing is known."""
        self._values.clear()

    def measured(self) -> MetricPoints:
        """Return all points as they are now."""
        shown = self._shown if self.metric.kind is Kind.COUNTER else self._values
        return MetricPoints(
            self.metric, (), [NumberPoint(labels, self._starts[labels], value) for labels, value in shown.items()]
        )

    def _drop(self, labels: Labels) -> None:
        self._values.pop(labels, None)
        self._shown.pop(labels, None)


class _Cell:
    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum = 0.0
        #: The latest of each bucket since they were last handed over.
        self.exemplars: dict[int, Exemplar] = {}


class HistogramSeries(Series):
    """A histogram; ``bounds`` are the upper ends of its buckets, each included."""

    def __init__(self, metric: Metric, room: CardinalityLimit, bounds: Sequence[float]) -> None:
        # A bucket for what is beyond the last bound, the sum, the count.
        super().__init__(metric, room, len(bounds) + 3)
        self._bounds = tuple(bounds)
        self._cells: dict[Labels, _Cell] = {}

    def add(self, labels: Labels, value: float) -> None:
        """Add one observation."""
        self.add_counts(labels, {bisect_left(self._bounds, value): 1}, value)

    def add_counts(self, labels: Labels, counts: Mapping[int, int], total: float, since: float | None = None) -> None:
        """Add observations by number of their bucket, and what they sum to; ``since`` as for a counter."""
        cell = self._cell(self._place(labels, since))
        for number, count in counts.items():
            cell.counts[number] += count
        cell.sum += total if isfinite(total) else 0.0

    def exemplify(self, labels: Labels, exemplar: Exemplar) -> None:
        """Keep an observation that was counted under the same labels as an example."""
        cell = self._cells.get(labels) or self._cells.get(self._folded(labels))
        if cell:
            cell.exemplars[bisect_left(self._bounds, exemplar.value)] = exemplar

    def measured(self) -> MetricPoints:
        """Return all points as they are now, and hand the exemplars over."""
        points = []
        for labels, cell in self._cells.items():
            exemplars = tuple(sorted(cell.exemplars.values(), key=attrgetter("time")))
            cell.exemplars.clear()
            points.append(HistogramPoint(labels, self._starts[labels], tuple(cell.counts), cell.sum, exemplars))
        return MetricPoints(self.metric, self._bounds, points)

    def _cell(self, labels: Labels) -> _Cell:
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = _Cell(len(self._bounds) + 1)
        return cell

    def _drop(self, labels: Labels) -> None:
        self._cells.pop(labels, None)


#: Names at a time; what is beyond is ``other``.
MAX_NAMES = 50
#: Seconds after which a name that was not used gives its place up, if another one wants it.
UNUSED = 86_400.0
#: Characters of a label.
MAX_LABEL = 200
#: Names whose rewriting is remembered.
MAX_REMEMBERED = 10_000


class Names:
    """The values of one label.

    Parameters
    ----------
    forget
        Told of each name that gives its place up.
    """

    def __init__(self, forget: Callable[[str], None], most: int = MAX_NAMES) -> None:
        self._forget = forget
        self._most = most
        #: When each was last used, the longest unused first.
        self._used: OrderedDict[str, float] = OrderedDict()

    def use(self, name: str, now: float) -> str:
        """Return what a name is called in metrics: itself, or ``other`` if there is no place."""
        if name not in self._used and (name == OTHER or not self._has_place(now)):
            return OTHER
        self._used[name] = now
        self._used.move_to_end(name)
        return name

    def known(self, name: str) -> str:
        """Return what a name is called that was used before."""
        return name if name in self._used else OTHER

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        for name in self._used:
            self._used[name] += seconds

    def forget_unused(self, now: float) -> None:
        """Have the names that were not used for long give their places up."""
        while self._used:
            oldest, used = next(iter(self._used.items()))
            if now - used < UNUSED:
                return
            del self._used[oldest]
            self._forget(oldest)

    def _has_place(self, now: float) -> bool:
        if len(self._used) >= self._most:
            self.forget_unused(now)
        return len(self._used) < self._most


class Rewriting:
    """Replaces names by patterns: the first that matches all of a name says what it becomes; not of very long ones."""

    def __init__(self, patterns: Sequence[tuple[re.Pattern[str], str]] = ()) -> None:
        self._patterns = patterns
        self._remembered: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the label for a name: rewritten, valid text, not too long."""
        if len(name) > MAX_LABEL:
            return _valid_label(name)
        label = self._remembered.get(name)
        if label is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            label = self._remembered[name] = _valid_label(self._rewrite(name))
        return label

    def _rewrite(self, name: str) -> str:
        for pattern, replacement in self._patterns:
            match = pattern.fullmatch(name)
            if match:
                return match.expand(replacement)
        return name


def _valid_label(name: str) -> str:
    """Return valid text; what is too long ends in a hash, so that names stay apart."""
    data = name.encode("utf-8", "replace")
    text = data.decode("utf-8") or "unnamed"
    if len(text) <= MAX_LABEL:
        return text
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{text[: MAX_LABEL - 9]}…{digest}"


#: Names at a time, other than of prefixes and roots.
MAX_CONTEXTS = 16
MAX_ACTIVITIES = 32
MAX_ERRORS = 32


class Registry:
    """The series of all metrics, by name.

    Parameters
    ----------
    now
        When they begin to count; seconds since the epoch.
    """

    def __init__(self, now: float, settings: MetricSettings) -> None:
        self._now = now
        self._room = CardinalityLimit(now)
        self._room.make_some = self._forget_unused
        #: Of metrics that are not wanted: counted like the others, but never shown.
        self._elsewhere = CardinalityLimit(now)
        self._excluded = settings.excluded
        self._all: dict[str, Series] = {}
        for metric in METRICS.values():
            room = self._elsewhere if metric.name in settings.excluded else self._room
            if metric.kind is Kind.HISTOGRAM:
                bounds = {"dask.task.duration": settings.task_bounds, "dask.span.duration": settings.span_bounds}
                self._all[metric.name] = HistogramSeries(metric, room, bounds.get(metric.name, SWEEP_BOUNDS))
            else:
                self._all[metric.name] = NumberSeries(metric, room)
        self.rewrite = Rewriting(settings.root_names)
        self.label = Rewriting()
        self.prefixes = self._names("dask.task.prefix")
        self.roots = self._names("dask.span.root")
        self.errors = self._names("error.type", MAX_ERRORS)
        self.contexts = self._names("dask.context", MAX_CONTEXTS)
        self.activities = self._names("dask.activity", MAX_ACTIVITIES)
        self._open_names = (self.prefixes, self.roots, self.errors, self.contexts, self.activities)
        for name, labels in ZEROS:
            self.numbers(name).add(labels, 0)

    def begin_sweep(self, now: float) -> None:
        """Note that a sweep begins."""
        self._room.since = self._elsewhere.since = self._now
        self._now = now

    def zero_at(self, since: float) -> float:
        """When a new series was zero that counts what happened after a time, and after the latest sweep."""
        return min(since, self._room.since)

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self._now += seconds
        self._room.since += seconds
        self._elsewhere.since += seconds
        for series in self._all.values():
            series.shift(seconds)
        for names in self._open_names:
            names.shift(seconds)

    def begin_totals(self) -> None:
        """Expect that the exporters' counts begin anew."""
        for series in self._all.values():
            if isinstance(series, NumberSeries):
                series.begin_totals()

    def numbers(self, name: str) -> NumberSeries:
        """Return a counter, updowncounter or gauge."""
        series = self._all[name]
        assert isinstance(series, NumberSeries)
        return series

    def histogram(self, name: str) -> HistogramSeries:
        """Return a histogram."""
        series = self._all[name]
        assert isinstance(series, HistogramSeries)
        return series

    def prefix(self, name: str) -> str:
        """Return the label for a task prefix that is counted now."""
        return self.prefixes.use(self.label(name), self._now)

    def root(self, name: str) -> str:
        """Return the label for a root span that is counted now, by its first tag."""
        return self.roots.use(self.rewrite(name), self._now)

    def error(self, name: str) -> str:
        """Return the label for a type of errors that is counted now."""
        return self.errors.use(self.label(name), self._now)

    def activity(self, context: str, name: str, prefix: str | None) -> tuple[str, str, str | None]:
        """Return the labels for an activity that is counted now."""
        return (
            self.contexts.use(context, self._now),
            self.activities.use(name, self._now),
            None if prefix is None else self.prefix(prefix),
        )

    def measured(self) -> Iterator[MetricPoints]:
        """Return the metrics that have values, one at a time; each is little work."""
        for name, series in self._all.items():
            if name not in self._excluded:
                measured = series.measured()
                if measured.points:
                    yield measured

    def _names(self, label: str, *most: int) -> Names:
        def forget(name: str) -> None:
            for series in self._all.values():
                series.forget(label, name)

        return Names(forget, *most)

    def _forget_unused(self) -> None:
        for names in self._open_names:
            names.forget_unused(self._now)
