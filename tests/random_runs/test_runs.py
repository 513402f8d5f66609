from __future__ import annotations

import pytest

from random_runs.run import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(1, 17))
def test_numbers_equal_those_of_dask(seed):
    assert run(seed).differences == []
