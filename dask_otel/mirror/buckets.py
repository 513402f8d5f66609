"""Durations in logarithmic buckets, so that quantiles cost a dict entry and not a list of all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, floor, log

__all__ = ["BUCKETS", "GROWTH", "SHORTEST", "bucket", "quantile"]

#: Each bucket is this much wider than the one before; a quantile is its bucket's geometric middle, hence
#: off by at most sqrt(GROWTH) - 1 = 4.9 %.
GROWTH = 1.1

#: Buckets per e-fold.
BUCKETS = 1.0 / log(GROWTH)
#: Dask rounds durations to microseconds; what is shorter falls in the first bucket.
SHORTEST = 1e-6


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
