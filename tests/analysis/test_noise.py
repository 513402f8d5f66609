"""Chance: against all choices counted one by one."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_otel.analysis.noise import MAX_RUNS, chance, is_noise

#: With ties.
samples = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(samples, samples)
def test_chance_is_the_part_of_choices_that_rank_as_high(low, high):
    def rank(value):
        return sum((each < value) + (each <= value) for each in values)

    values = [*low, *high]
    seen = sum(map(rank, high))
    choices = [sum(rank(values[place]) for place in chosen) for chosen in combinations(range(len(values)), len(high))]
    assert chance(low, high) == pytest.approx(sum(each >= seen for each in choices) / len(choices))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([1.0, 2.0], [3.0, 4.0], False),  # the runs do not overlap
        ([1.0, 3.0], [2.0, 4.0], True),
        ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], False),
        ([1.0, 2.0, 4.0], [3.0, 5.0, 6.0], True),
        ([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], True),  # it is lower
        ([1.0, 2.0, 3.0, 4.0, 5.0, 50.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0], False),  # one run that took long
        ([1.0, 1.0], [1.0, 1.0], True),
    ],
)
def test_what_is_noise(low, high, expected):
    assert is_noise(low, high) is expected


def test_of_many_runs_some_count():
    old, new = [float(each) for each in range(500)], [each + 200.0 for each in range(400)]
    assert 0 < chance(old, new) < 1e-3
    assert chance(old[:: 500 // MAX_RUNS], old) > 0.1
