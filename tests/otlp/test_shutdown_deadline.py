"""How long closing waits, by what is known of the collector and by what it answers: a clock that stands still."""

from __future__ import annotations

import pytest

from dask_otel.otlp import exporter as module
from dask_otel.otlp.exporter import LAST_CHANCE, ShutdownDeadline
from dask_otel.otlp.transport import ExportResult, RetryDecision

BUSY = ExportResult(RetryDecision.LATER, "HTTP 503")
ASKS = ExportResult(RetryDecision.LATER, "HTTP 503", wait=2.0)
REFUSES = ExportResult(RetryDecision.REFUSED, "HTTP 401")
NOBODY = ExportResult(RetryDecision.LATER, "Connection refused", was_reached=False)
TIMEOUT = 10.0


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("is_failing", "left"), [(False, TIMEOUT), (None, TIMEOUT), (True, LAST_CHANCE)], ids=["well", "unknown", "failing"]
)
def test_an_attempt_on_its_way_is_given_up_early_only_where_a_failure_is_known(is_failing, left, clock):
    deadline = ShutdownDeadline()
    deadline.begin(TIMEOUT, is_failing=is_failing)
    assert deadline.left() == pytest.approx(left)
    deadline.arrived()
    assert deadline.left() == TIMEOUT


@pytest.mark.parametrize(
    ("is_failing", "answer", "until"),
    [
        (False, BUSY, TIMEOUT),
        (False, ASKS, TIMEOUT),
        (False, REFUSES, TIMEOUT),
        (False, NOBODY, LAST_CHANCE),
        (None, BUSY, LAST_CHANCE),
        (None, ASKS, TIMEOUT),
        (None, REFUSES, 0.0),
        (None, NOBODY, 0.0),
        (True, BUSY, LAST_CHANCE),
        (True, ASKS, TIMEOUT),
        (True, REFUSES, 0.0),
        (True, NOBODY, 0.0),
    ],
)
def test_until_when_it_is_tried_again(is_failing, answer, until, clock):
    deadline = ShutdownDeadline()
    deadline.begin(TIMEOUT, is_failing=is_failing)
    granted = 0.0
    while (pause := deadline.pause(0.01, answer)) is not None:
        clock[0] += pause
        granted += pause
        assert deadline.left() > 0.0  # else nobody would wait for that attempt
    assert granted == pytest.approx(until, abs=0.02)


def test_what_is_short_is_not_longer_than_the_timeout(clock):
    deadline = ShutdownDeadline()
    deadline.begin(0.1, is_failing=True)
    assert deadline.left() == pytest.approx(0.1)
    assert deadline.pause(0.5, BUSY) is None
