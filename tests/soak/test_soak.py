from __future__ import annotations

import pytest

from soak.run import soak

pytestmark = pytest.mark.slow


def test_nothing_is_lost_while_workers_and_the_collector_come_and_go():
    found = soak(20)
    end = found.bridge.end
    assert end["roots"] > 12
    assert found.traces == end["roots"]
    assert found.spans == end["sent"]
    assert (end["dropped"], end["waiting"], end["errors"]) == (0, 0, 0)


def test_roots_are_forgotten_meanwhile():
    found = soak(30, forget="5s")
    end = found.bridge.end
    assert found.traces == end["roots"]
    assert found.spans == end["sent"]
    assert (end["dropped"], end["waiting"], end["errors"]) == (0, 0, 0)
    last, plain = found.bridge.samples[-1], found.plain.samples[-1]
    assert plain["spans"] == 3 * plain["roots"]
    assert last["spans"] + last["forgotten"]["spans"] == 3 * last["roots"]
    assert last["forgotten"]["roots"] > 0
