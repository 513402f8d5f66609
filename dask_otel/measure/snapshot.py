"""What comes out: metrics as plain data, at one moment. Nothing changes it any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .catalog import Metric

__all__ = ["Distribution", "Exemplar", "Labels", "Measured", "Number", "Snapshot"]

#: Values in the order of the metric's labels; None where a label does not apply.
Labels = tuple["str | bool | None", ...]


class Exemplar(NamedTuple):
    """An observation that a trace shows."""

    value: float
    #: Seconds since the epoch.
    time: float
    trace_id: int
    span_id: int


class Number(NamedTuple):
    """A point of a counter, updowncounter or gauge."""

    labels: Labels
    #: When it was zero; seconds since the epoch.
    start: float
    value: float


class Distribution(NamedTuple):
    """A point of a histogram."""

    labels: Labels
    start: float
    #: Observations up to and including each bound, and beyond the last; not cumulative.
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar, ...]


class Measured(NamedTuple):
    """All points of one metric."""

    metric: Metric
    #: Of a histogram.
    bounds: tuple[float, ...]
    points: Sequence[Number | Distribution]


class Snapshot(NamedTuple):
    """All metrics."""

    #: Seconds since the epoch.
    at: float
    measured: list[Measured]
