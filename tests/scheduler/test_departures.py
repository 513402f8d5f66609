"""Which workers are lost."""

from __future__ import annotations

import pytest

from dask_otel.scheduler.cluster import Departures

WORKER = "tcp://worker"


@pytest.mark.parametrize("reason", ["worker-close", "restart-1", None, 5, ["a"]])
def test_who_says_that_it_closes_is_not_lost(reason):
    departures = Departures({WORKER: ...})
    departures.announced(WORKER, reason)
    assert departures.is_expected(WORKER, False)
    assert not departures.is_expected(WORKER, False)  # the next one at this address


@pytest.mark.parametrize("reason", ["worker-execute-fail-hard", "worker-heartbeat-error"])
def test_who_closes_because_it_cannot_go_on_is_lost(reason):
    departures = Departures({WORKER: ...})
    departures.announced(WORKER, reason)
    assert not departures.is_expected(WORKER, False)


def test_what_dask_expects_is_expected():
    departures = Departures({})
    departures.announced("tcp://unknown", "worker-close")
    assert departures.is_expected("tcp://unknown", True)
    assert not departures.is_expected("tcp://unknown", False)
    assert not departures.is_expected(["odd"], False)
