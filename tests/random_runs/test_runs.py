from __future__ import annotations

import pytest

from random_runs.run import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(1, 17))
def test_numbers_equal_those_of_dask(seed):
    assert run(seed).differences == []


@pytest.mark.parametrize("seed", [103, 105, 106, 114, 121])
def test_spans_of_workers_are_below_those_of_the_scheduler(seed):
    """With the levels ``tasks``, ``spans`` and ``groups``, the limits on rates, a sampler, and processes killed."""
    assert run(seed, inside=True).differences == []


@pytest.mark.parametrize("seed", [35, 108])
def test_work_is_in_the_trace_of_its_caller_or_linked_with_it(seed):
    """With instrumented clients: ``link`` and requests inside blocks, and blocks whose span is made current again."""
    assert run(seed, inside=True).differences == []
