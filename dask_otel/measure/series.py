"""The series of one metric: its values by label. All of them share so much room."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from operator import attrgetter
from typing import Any

from .catalog import OPEN_LABELS, Kind, Metric
from .snapshot import Distribution, Exemplar, Labels, Measured, Number

__all__ = ["MAX_SERIES", "OTHER", "Histogram", "Numbers", "Room", "Series"]

#: Series of one scheduler, counted as Prometheus does: a histogram is one for each bucket, and its sum and count.
MAX_SERIES = 3000
#: Stands for all values of a label that there is no room for.
OTHER = "other"


class Room:
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

    def __init__(self, metric: Metric, room: Room, cost: int) -> None:
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

    def measured(self) -> Measured:
        """Return all points as they are now."""
        raise NotImplementedError


class Numbers(Series):
    """A counter, updowncounter or gauge."""

    def __init__(self, metric: Metric, room: Room) -> None:
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

    def measured(self) -> Measured:
        """Return all points as they are now."""
        shown = self._shown if self.metric.kind is Kind.COUNTER else self._values
        return Measured(
            self.metric, (), [Number(labels, self._starts[labels], value) for labels, value in shown.items()]
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


class Histogram(Series):
    """A histogram; ``bounds`` are the upper ends of its buckets, each included."""

    def __init__(self, metric: Metric, room: Room, bounds: Sequence[float]) -> None:
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

    def measured(self) -> Measured:
        """Return all points as they are now, and hand the exemplars over."""
        points = []
        for labels, cell in self._cells.items():
            exemplars = tuple(sorted(cell.exemplars.values(), key=attrgetter("time")))
            cell.exemplars.clear()
            points.append(Distribution(labels, self._starts[labels], tuple(cell.counts), cell.sum, exemplars))
        return Measured(self.metric, self._bounds, points)

    def _cell(self, labels: Labels) -> _Cell:
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = _Cell(len(self._bounds) + 1)
        return cell

    def _drop(self, labels: Labels) -> None:
        self._cells.pop(labels, None)
