"""The sweep's clocks."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dask_otel.scheduler import pace


@pytest.fixture
def clocks(monkeypatch):
    class Clocks:
        wall, steady = 1000.0, 5.0

        def pass_(self, seconds, step=0.0):
            self.wall, self.steady = self.wall + seconds + step, self.steady + seconds

    clocks = Clocks()
    monkeypatch.setattr(pace, "time", lambda: clocks.wall)
    monkeypatch.setattr(pace, "monotonic", lambda: clocks.steady)
    return clocks


def test_a_clock_that_is_set_back_goes_on_and_its_offset_says_by_how_much(clocks):
    clock = pace.Clock()
    seen, offsets = [clock.now()], []
    for step in (0.0, -50.0, 0.0, 3600.0, 0.0, -0.1, -0.5):
        clocks.pass_(1.0, step)
        seen.append(clock.now())
        offsets.append(clock.offset)
    assert offsets == pytest.approx([0.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.5])
    passed = [later - earlier for earlier, later in pairwise(seen)]
    assert passed == pytest.approx([1.0, 1.0, 1.0, 3601.0, 1.0, 0.9, 1.0])
    assert (clock.of_dask(clocks.wall), clock.of_dask(0.0)) == (pytest.approx(clock.now()), 0.0)


def test_a_thread_that_is_held_up_between_two_clocks_has_not_been_set_back(clocks, monkeypatch):
    clock = pace.Clock()
    stalls = [5.0, 0.0, 0.0]

    def held_up():
        clocks.pass_(stalls.pop(0) if stalls else 0.0)
        return clocks.steady

    monkeypatch.setattr(pace, "monotonic", held_up)
    clock.now()
    clock.now()
    assert clock.offset == 0.0
