"""All series and the names that label them: who has a place, who counts under ``other``, who gives up a place."""

from __future__ import annotations

from collections.abc import Iterator

from .catalog import METRICS, ZEROS, Kind
from .names import Names, Rewriting
from .series import Histogram, Numbers, Room, Series
from .settings import SWEEP_BOUNDS, MeasureSettings
from .snapshot import Measured

__all__ = ["MAX_ACTIVITIES", "MAX_CONTEXTS", "MAX_ERRORS", "Tables"]

#: Names at a time, other than of prefixes and roots.
MAX_CONTEXTS = 16
MAX_ACTIVITIES = 32
MAX_ERRORS = 32


class Tables:
    """The series of all metrics, by name.

    Parameters
    ----------
    now
        When they begin to count; seconds since the epoch.
    """

    def __init__(self, now: float, settings: MeasureSettings) -> None:
        self._now = now
        self._room = Room(now)
        self._room.make_some = self._forget_unused
        #: Of metrics that are not wanted: counted like the others, but never shown.
        self._elsewhere = Room(now)
        self._excluded = settings.excluded
        self._all: dict[str, Series] = {}
        for metric in METRICS.values():
            room = self._elsewhere if metric.name in settings.excluded else self._room
            if metric.kind is Kind.HISTOGRAM:
                bounds = {"dask.task.duration": settings.task_bounds, "dask.span.duration": settings.span_bounds}
                self._all[metric.name] = Histogram(metric, room, bounds.get(metric.name, SWEEP_BOUNDS))
            else:
                self._all[metric.name] = Numbers(metric, room)
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
            if isinstance(series, Numbers):
                series.begin_totals()

    def numbers(self, name: str) -> Numbers:
        """Return a counter, updowncounter or gauge."""
        series = self._all[name]
        assert isinstance(series, Numbers)
        return series

    def histogram(self, name: str) -> Histogram:
        """Return a histogram."""
        series = self._all[name]
        assert isinstance(series, Histogram)
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

    def measured(self) -> Iterator[Measured]:
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
