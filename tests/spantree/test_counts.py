from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.spantree.counts import GROWTH, LONGEST, SHORTEST, Intervals, bucket, quantile

durations = st.lists(st.floats(1e-5, 1e6), min_size=1, max_size=200)


@given(durations, st.sampled_from([0.5, 0.95, 1.0]))
def test_quantile_is_within_the_stated_error(seconds, q):
    exact = sorted(seconds)[ceil(q * len(seconds)) - 1]
    found = quantile(Counter(map(bucket, seconds)), q)
    assert exact / GROWTH**0.5 * (1 - 1e-9) <= found <= exact * GROWTH**0.5 * (1 + 1e-9)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9])
def test_what_dask_rounds_to_nothing_is_one_bucket(seconds):
    assert bucket(seconds) == bucket(1e-6)


def test_quantile_of_nothing():
    with pytest.raises(ValueError, match="nothing"):
        quantile({}, 0.5)


@given(
    st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=30, unique=True).map(sorted),
    st.lists(st.floats(0.0, 2 * LONGEST), min_size=1),
)
def test_intervals_tell_bucket_and_bar(bounds, durations):
    """The bar exactly, the bucket but for its very ends, which are rounded."""
    intervals = Intervals(bounds)
    for seconds in [*bounds, *durations]:
        number = bisect_left(intervals.ends, seconds)
        assert intervals.bars[number] == bisect_left(bounds, seconds)
        if SHORTEST < seconds < LONGEST:
            assert intervals.buckets[number] in {bucket(seconds * (1 - 1e-9)), bucket(seconds * (1 + 1e-9))}
