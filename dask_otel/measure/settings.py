"""What is measured, and how finely."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SPAN_BOUNDS", "SWEEP_BOUNDS", "TASK_BOUNDS", "MeasureSettings"]

#: Seconds; of ``dask.task.duration``, ``dask.span.duration``, ``dask_otel.sweep.duration``.
TASK_BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0, 10800.0, 43200.0)
SPAN_BOUNDS = (0.01, 0.1, 0.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0, 43200.0)
SWEEP_BOUNDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


@dataclass(frozen=True)
class MeasureSettings:
    """Of the metrics."""

    #: Upper ends of the buckets of task and root durations, seconds.
    task_bounds: tuple[float, ...] = TASK_BOUNDS
    span_bounds: tuple[float, ...] = SPAN_BOUNDS
    #: What names of roots become, by the first pattern that matches all of one.
    root_names: tuple[tuple[re.Pattern[str], str], ...] = ()
    #: Names of metrics that are not wanted.
    excluded: frozenset[str] = frozenset()
