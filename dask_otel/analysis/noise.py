"""Whether a difference between a few runs and a few others can be chance.

The Mann-Whitney test, exact and one-sided: if old and new runs did not differ, each choice of the new ones among all
runs would be equally likely; what counts is in how many of these choices they would rank as high as they do, or higher.
Ranks ask nothing of the times' distribution, and one run that took very long counts no more than the slowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np

__all__ = ["LEVEL", "chance", "is_noise"]

#: What is at most as likely as this by chance is no noise.
LEVEL = 0.05
#: Of more runs a side, only so many count: those at equal distances in the order that they are in.
MAX_RUNS = 60


def is_noise(low: Sequence[float], high: Sequence[float]) -> bool:
    """Return whether it can be chance that the second sample is higher than the first.

    It is no noise if chance alone would give a difference like it in at most ``LEVEL`` of all comparisons. Fewer than
    three values a side can not show that much: for them, the samples must not overlap.
    """
    least = 1 / comb(min(len(low), MAX_RUNS) + min(len(high), MAX_RUNS), min(len(high), MAX_RUNS))
    return chance(low, high) > max(LEVEL, least) * (1 + 1e-9)


def chance(low: Sequence[float], high: Sequence[float]) -> float:
    """Return how likely it is by chance that the second sample is as high as it is, compared with the first."""
    below, above = _some(low), _some(high)
    values = np.concatenate([below, above])
    ordered = np.sort(values)
    # Twice the mean rank of those that are equal, so that it is an integer.
    ranks = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1
    sums = _rank_sums(tuple(np.sort(ranks).tolist()), len(above))
    return float(min(1.0, sums[int(ranks[len(below) :].sum()) :].sum()))


def _some(values: Sequence[float]) -> Any:
    array = np.asarray(values, "float64")
    if len(array) > MAX_RUNS:
        array = array[np.linspace(0, len(array) - 1, MAX_RUNS).round().astype(int)]
    return array


@lru_cache(256)
def _rank_sums(ranks: tuple[int, ...], chosen: int) -> Any:
    """Return how likely each sum of so many ranks is, if all choices are equally likely."""
    ways = np.zeros((chosen + 1, sum(ranks[len(ranks) - chosen :]) + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    return ways[chosen] / comb(len(ranks), chosen)
