"""Durations in logarithmic buckets, so that quantiles cost a dict entry and not a list of all tasks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import exp, floor, inf, log, sqrt

__all__ = ["GROWTH", "Intervals", "bucket", "quantile"]

#: Each bucket is this much wider than the one before; a quantile is its bucket's geometric middle, hence
#: off by at most sqrt(GROWTH) - 1 = 4.9 %.
GROWTH = 1.1

#: Buckets per e-fold.
BUCKETS = 1.0 / log(GROWTH)
#: Dask rounds durations to microseconds; what is shorter falls in the first bucket.
SHORTEST = 1e-6
#: Seconds; what is longer falls in the last one.
LONGEST = 1e7


def bucket(seconds: float) -> int:
    """Bucket number of a duration in seconds."""
    return floor(log(seconds if seconds > SHORTEST else SHORTEST) * BUCKETS)


def quantile(buckets: Mapping[int, int], q: float) -> float:
    """Duration in seconds below which a part ``q`` (0…1) of the tasks lie, within ±4.9 %.

    Raises
    ------
    ValueError
        If there is nothing in the buckets.
    """
    rank = q * sum(buckets.values())
    seen = 0
    for number in sorted(buckets):
        seen += buckets[number]
        if seen and seen >= rank:
            return exp((number + 0.5) / BUCKETS)
    raise ValueError("quantile of nothing")


class Intervals:
    """Durations divided both at the ends of buckets and at the bounds of a histogram: one look-up for the two.

    Parameters
    ----------
    bounds
        Upper ends of the histogram's bars, seconds, rising.
    """

    def __init__(self, bounds: Iterable[float]) -> None:
        bounds = list(bounds)
        steps = (exp(number / BUCKETS) for number in range(bucket(SHORTEST) + 1, bucket(LONGEST) + 1))
        #: Upper ends; the number of a duration's interval is ``bisect_left(ends, seconds)``.
        self.ends = sorted({*steps, *bounds})
        middles = [SHORTEST, *map(_middle, self.ends, self.ends[1:]), self.ends[-1] * sqrt(GROWTH)]
        #: By number of an interval, the bucket and the bar of which it is a part.
        self.buckets = [bucket(middle) for middle in middles]
        self.bars = [bisect_left(bounds, end) for end in (*self.ends, inf)]


def _middle(low: float, high: float) -> float:
    return sqrt(low * high)
