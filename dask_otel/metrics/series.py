"""The series of all metrics, within one cardinality limit.

A series is one combination of values of a metric's attributes. Users and programs invent values of some attributes:
task prefixes, names of root spans, types of exceptions. So many of these are recorded at a time; the others are
recorded as ``other``. All metrics share one limit on series, too.

OpenTelemetry's own rule, a limit on each metric beyond which all is one series ``otel.metric.overflow``, does not fit:
that series has no outcome and no result, so that sums by these would lose tasks; and it never ends, so that a scheduler
that lives for months would record no new prefix. Here, ``other`` stands for the values that were invented only, and a
value that was not recorded for a day makes room for one that is new.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import isfinite
from operator import attrgetter
from typing import Any

from ..schema import (
    ATTRIBUTES,
    MAX_METRIC_VALUE,
    MAX_SERIES,
    METRICS,
    SPAN_DURATION,
    SPAN_ROOT,
    TASK_DURATION,
    UNUSED_AFTER,
    Kind,
    Metric,
)
from .snapshot import AttributeValues, Exemplar, HistogramPoint, MetricPoints, NumberPoint

__all__ = ["MAX_REMEMBERED", "OTHER", "MetricSettings", "OpenAttribute", "Registry", "Rewriting"]

#: Stands for all values of an attribute that there is no room for.
OTHER = "other"
#: Rewritten values that are remembered.
MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class MetricSettings:
    """The settings ``otel.metrics.*``."""

    #: Upper ends of the buckets of task and root durations, seconds.
    task_bounds: tuple[float, ...] = TASK_DURATION.bounds
    span_bounds: tuple[float, ...] = SPAN_DURATION.bounds
    #: Patterns of names of root spans, and what replaces a name; the first that matches all of it is used.
    root_names: tuple[tuple[re.Pattern[str], str], ...] = ()
    #: Names of metrics that are not recorded.
    excluded: frozenset[str] = frozenset()


class Registry:
    """Records values, in place of OpenTelemetry's instruments.

    Values of attributes are given in the order of ``Metric.attributes``, as the program that invented them wrote them.

    Parameters
    ----------
    now
        When recording starts; seconds since the epoch.
    """

    def __init__(self, now: float, settings: MetricSettings) -> None:
        self._now = now
        #: When the previous sweep began: what has not been recorded before was zero then.
        self.since = now
        #: Series that there is room for. One for each combination that values can be folded into is kept free.
        self._room = MAX_SERIES
        rewriting = {SPAN_ROOT: Rewriting(settings.root_names)}
        self._open = {
            name: OpenAttribute(partial(self._forget, name), attribute.max_values, rewriting.get(name) or Rewriting())
            for name, attribute in ATTRIBUTES.items()
            if attribute.max_values
        }
        bounds = {TASK_DURATION.name: settings.task_bounds, SPAN_DURATION.name: settings.span_bounds}
        self._series: dict[str, _Series] = {}
        for name, metric in METRICS.items():
            if name not in settings.excluded:
                series = self._series[name] = _Series(metric, bounds.get(name, metric.bounds), self._open)
                self._room -= metric.folded * series.cost
                for values in metric.zeros:
                    self._cell(series, values)

    def begin_sweep(self, now: float) -> None:
        """Note that a sweep begins."""
        self.since, self._now = self._now, now

    def add(self, metric: Metric, values: AttributeValues, amount: float, since: float | None = None) -> None:
        """Add to a counter. If it is a new series, it was zero at ``since``, or when the previous sweep began."""
        if series := self._series.get(metric.name):
            self._cell(series, values, since).add(amount)

    def set(self, metric: Metric, amounts: Mapping[Any, float]) -> None:
        """Set an updowncounter or gauge, by values of attributes. Series that are not among them are zero."""
        if series := self._series.get(metric.name):
            for cell in series.cells.values():
                cell.value = 0
            for values, amount in amounts.items():
                self._cell(series, values).value += amount

    def clear(self, metric: Metric) -> None:
        """End the series of a metric that has no attributes: its value is not known."""
        if series := self._series.get(metric.name):
            series.cells.clear()
            series.found.clear()

    def observe(self, metric: Metric, values: AttributeValues, value: float) -> None:
        """Add one observation to a histogram."""
        if series := self._series.get(metric.name):
            self._cell(series, values).add_counts({bisect_left(series.bounds, value): 1}, value)

    def add_counts(
        self, metric: Metric, values: AttributeValues, counts: Mapping[int, int], total: float, since: float
    ) -> None:
        """Add observations to a histogram, by number of their bucket, and their sum; ``since`` as for a counter."""
        if series := self._series.get(metric.name):
            self._cell(series, values, since).add_counts(counts, total)

    def exemplify(self, metric: Metric, values: AttributeValues, exemplar: Exemplar) -> None:
        """Keep an observation that was recorded with the same values as an exemplar."""
        if series := self._series.get(metric.name):
            named = self._named(series, values)
            cell = series.cells.get(named) or series.cells.get(series.folded(named))
            if cell:
                cell.exemplars[bisect_left(series.bounds, exemplar.value)] = exemplar

    def collect(self) -> Iterator[MetricPoints]:
        """Return the metrics that have values, one at a time; each is little work. Exemplars are returned once."""
        for series in self._series.values():
            if series.cells:
                points = [series.point(values, cell) for values, cell in series.cells.items()]
                yield MetricPoints(series.metric, series.bounds, points)

    def _cell(self, series: _Series, values: AttributeValues, since: float | None = None) -> _Cell:
        """Return the cell of a series, which is folded if there is no room for a new one."""
        cell = series.found.get(values)
        if cell is None or cell.used != self._now:
            named = self._named(series, values)
            cell = series.cells.get(named)
            if cell is None:
                return self._new_cell(series, named, since)
            if OTHER not in named:  # else there may be room for the values later
                cell.used = self._now
                if len(series.found) >= MAX_REMEMBERED:
                    series.found.clear()
                series.found[values] = cell
        return cell

    def _new_cell(self, series: _Series, named: AttributeValues, since: float | None) -> _Cell:
        folded = series.folded(named)
        if named == folded or not self._take(series.cost):
            named = folded
        start = self.since if since is None else since
        return series.cells.setdefault(named, _Cell(start, len(series.bounds) + 1 if series.bounds else 0))

    def _named(self, series: _Series, values: AttributeValues) -> AttributeValues:
        """Replace the values that somebody invented by what is recorded for them."""
        named = list(values)
        for at, attribute in enumerate(series.open):
            if attribute and named[at] is not None:
                named[at] = attribute.use(str(named[at]), self._now)
        return tuple(named)

    def _take(self, number: int) -> bool:
        if number > self._room:
            for attribute in self._open.values():
                attribute.forget_unused(self._now)
        if number > self._room:
            return False
        self._room -= number
        return True

    def _forget(self, name: str, value: str) -> None:
        """End all series that have a value, but for those that it is folded into."""
        for series in self._series.values():
            self._room += series.forget(name, value)


class OpenAttribute:
    """The values of an attribute that somebody invents.

    Parameters
    ----------
    forget
        Called with each value that makes room for another one.
    limit
        How many values are recorded at a time.
    """

    def __init__(self, forget: Callable[[str], None], limit: int, rewrite: Callable[[str], str] = str) -> None:
        self._forget = forget
        self._limit = limit
        self._rewrite = rewrite
        #: When each value was last recorded, the longest unused first.
        self._used: OrderedDict[str, float] = OrderedDict()

    def use(self, value: str, now: float) -> str:
        """Return what is recorded for a value: itself, rewritten, or ``other`` if there is no room."""
        value = self._rewrite(value)
        if value not in self._used and (value == OTHER or not self._has_room(now)):
            return OTHER
        self._used[value] = now
        self._used.move_to_end(value)
        return value

    def forget_unused(self, now: float) -> None:
        """Forget the values that were not recorded for long."""
        while self._used:
            value, used = next(iter(self._used.items()))
            if now - used < UNUSED_AFTER:
                return
            del self._used[value]
            self._forget(value)

    def _has_room(self, now: float) -> bool:
        if len(self._used) >= self._limit:
            self.forget_unused(now)
        return len(self._used) < self._limit


class Rewriting:
    """Makes values fit for metrics: rewritten by the first pattern that matches all of one, valid text, not too long.

    Long ones are not rewritten: patterns could take long.
    """

    def __init__(self, patterns: Sequence[tuple[re.Pattern[str], str]] = ()) -> None:
        self._patterns = patterns
        self._remembered: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        """Return what a value becomes."""
        if len(value) > MAX_METRIC_VALUE:
            return _valid(value)
        rewritten = self._remembered.get(value)
        if rewritten is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            rewritten = self._remembered[value] = _valid(self._rewrite(value))
        return rewritten

    def _rewrite(self, value: str) -> str:
        for pattern, replacement in self._patterns:
            match = pattern.fullmatch(value)
            if match:
                return match.expand(replacement)
        return value


def _valid(value: str) -> str:
    """Return valid text; what is too long ends in a hash, so that values stay distinct."""
    text = value.encode("utf-8", "replace").decode("utf-8") or "unnamed"
    if len(text) <= MAX_METRIC_VALUE:
        return text
    digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{text[: MAX_METRIC_VALUE - 9]}…{digest}"


class _Cell:
    """The value of one series: a number, or a histogram if it has buckets."""

    __slots__ = ("counts", "exemplars", "highest", "start", "used", "value")

    def __init__(self, start: float, buckets: int) -> None:
        #: When it was zero, and when its attributes were last looked up.
        self.start = self.used = start
        #: Of a histogram, the sum.
        self.value: float = 0
        #: What a counter shows: it must not go down where what it counts does.
        self.highest: float = 0
        self.counts = [0] * buckets
        #: The latest of each bucket since they were last collected.
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, amount: float) -> None:
        total = self.value + amount
        if isfinite(total):  # else it would spoil every sum that it is added to
            self.value = total
            self.highest = max(total, self.highest)

    def add_counts(self, counts: Mapping[int, int], total: float) -> None:
        for number, count in counts.items():
            self.counts[number] += count
        self.add(total)


class _Series:
    """All series of one metric."""

    def __init__(self, metric: Metric, bounds: tuple[float, ...], open_: Mapping[str, OpenAttribute]) -> None:
        self.metric = metric
        self.bounds = bounds
        #: The attributes whose values somebody invents; None for the others.
        self.open = [open_.get(name) for name in metric.attributes]
        #: Series of one cell, as Prometheus counts them: also of the bucket above the last bound, the sum, the count.
        self.cost = len(bounds) + 3 if bounds else 1
        self.cells: dict[AttributeValues, _Cell] = {}
        #: Cells by values of attributes as they were given; they hold for the sweep in which they were used.
        self.found: dict[AttributeValues, _Cell] = {}

    def folded(self, values: AttributeValues) -> AttributeValues:
        """Replace all values that somebody invented."""
        return tuple(
            OTHER if attribute and value is not None else value
            for value, attribute in zip(values, self.open, strict=True)
        )

    def forget(self, name: str, value: str) -> int:
        """Drop the cells that have a value; return for how many series there is room again."""
        if name not in self.metric.attributes:
            return 0
        at = self.metric.attributes.index(name)
        gone = [values for values in self.cells if values[at] == value]
        for values in gone:
            del self.cells[values]
        self.found.clear()
        return len(gone) * self.cost

    def point(self, values: AttributeValues, cell: _Cell) -> NumberPoint | HistogramPoint:
        """Return what a cell holds; its exemplars are handed over."""
        if not self.bounds:
            value = cell.highest if self.metric.kind is Kind.COUNTER else cell.value
            return NumberPoint(values, cell.start, value)
        exemplars = tuple(sorted(cell.exemplars.values(), key=attrgetter("time")))
        cell.exemplars.clear()
        return HistogramPoint(values, cell.start, tuple(cell.counts), cell.value, exemplars)
