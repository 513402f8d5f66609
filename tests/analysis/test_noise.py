"""Chance: against all choices counted one by one."""

from __future__ import annotations

from itertools import combinations
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_otel.analysis.noise import MAX_RUNS, chance, is_noise

#: With ties.
samples = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(samples, samples)
def test_chance_is_the_part_of_choices_that_rank_as_high(before, after):
    def rank(value):
        return sum((each < value) + (each <= value) for each in values)

    values = [*before, *after]
    sign = 1 if median(after) > median(before) else -1
    seen = sign * sum(map(rank, after))
    choices = [
        sign * sum(rank(values[place]) for place in chosen) for chosen in combinations(range(len(values)), len(after))
    ]
    expected = 1.0 if median(before) == median(after) else sum(each >= seen for each in choices) / len(choices)
    assert chance(before, after) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0], [2.0], None),
        ([1.0, 2.0], [3.0, 4.0], False),  # the runs do not overlap
        ([1.0, 3.0], [2.0, 4.0], True),
        ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], False),
        ([1.0, 2.0, 4.0], [3.0, 5.0, 6.0], True),
        ([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], False),  # faster
        ([1.0, 2.0, 3.0, 4.0, 5.0, 50.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0], False),  # one run that took long
        ([1.0, 1.0], [1.0, 1.0], True),
    ],
)
def test_what_is_noise(before, after, expected):
    assert is_noise(before, after) is expected


def test_of_many_runs_some_count():
    old, new = [float(each) for each in range(500)], [each + 200.0 for each in range(400)]
    assert 0 < chance(old, new) < 1e-3
    assert chance(old[:: 500 // MAX_RUNS], old) > 0.1
