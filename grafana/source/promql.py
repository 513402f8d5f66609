"""Expressions that read right for a cluster of 20 seconds as well as for a week of one that lives long.

``increase()`` and ``rate()`` lose the first value of a series and extrapolate: of a cluster that exports three times
they make anything but what it did.
"""

from __future__ import annotations

__all__ = ["at_most", "count", "latest", "or_zero", "part_of", "per_second", "quantile", "ratio", "select"]

#: What is chosen at the top of each dashboard.
CLUSTER = "dask_cluster_name=~`${cluster:regex}`"
#: How far back the value before a range is looked for: metrics may be exported this rarely.
BEFORE = "1h"
#: One bar of a chart, and all that is shown.
STEP, RANGE = "$__interval", "$__range"


def select(metric: str, *matchers: str) -> str:
    """Return a selector of the chosen clusters' series."""
    return f"{metric}{{{', '.join((CLUSTER, *matchers))}}}"


def count(selector: str, window: str, by: str = "") -> str:
    """Return by how much counters rose: their last value less the one before the range; all of it if there is none."""
    last = f"max_over_time({selector}[{window}])"
    return f"sum{_by(by)} ({last} - last_over_time({selector}[{BEFORE}] offset {window}) or {last})"


def latest(selector: str, by: str = "") -> str:
    """Return what gauges say now; a cluster that is gone is gone after a few exports, not after five minutes."""
    return f"sum{_by(by)} (last_over_time({selector}[$__rate_interval]))"


def at_most(number: str, limit: str) -> str:
    """Return the sum of the smaller of two numbers, each by the same labels."""
    return f"sum ({number} < {limit} or {limit} and {number})"


def quantile(q: float, histogram: str, window: str, by: str = "", *matchers: str) -> str:
    """Return a quantile of what a histogram counted."""
    buckets = count(select(f"{histogram}_bucket", *matchers), window, f"le, {by}" if by else "le")
    return f"histogram_quantile({q}, {buckets})"


def ratio(part: str, whole: str) -> str:
    """Return a part of a whole, and nothing where the whole is nothing."""
    return f"{part} / ({whole} > 0)"


def or_zero(expression: str, label: str = "", value: str = "") -> str:
    """Return an expression that is zero where it would be nothing: what has never happened has no series."""
    zero = f'label_replace(vector(0), "{label}", "{value}", "", "")' if label else "vector(0)"
    return f"({expression} or {zero})"


def part_of(part: str, whole: str) -> str:
    """Return a count by label that is zero for labels of which there is a whole, but no such part."""
    return f"({part} or 0 * {whole})"


def per_second(expression: str) -> str:
    """Return what was counted in each step, by the second."""
    return f"{expression} / ($__interval_ms / 1000)"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
