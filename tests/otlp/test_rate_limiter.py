"""The budget of spans a minute, with a clock that the test turns."""

from __future__ import annotations

import pytest
from support.records import group, phase, segment, task

from dask_otel.otlp import queue as module
from dask_otel.otlp.queue import RateLimiter


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def bundle(failure=None, groups=3, tasks=4):
    last = segment(name="s", failure=failure, result="error" if failure else "success")
    return [*(task(name=f"t{i}") for i in range(tasks)), *(group(name=f"g{i}") for i in range(groups)), last]


def names(records):
    return "".join(sorted({record.name[0] for record in records}))


def test_tasks_go_first_then_groups_of_what_did_not_fail(clock):
    volume = RateLimiter(per_minute=12)
    failure = segment().failure
    assert names(volume.admit(bundle())) == "gst"  # 8 of 12
    assert names(volume.admit(bundle())) == "gs"  # 4 of 4
    assert names(volume.admit(bundle())) == "s"
    assert names(volume.admit(bundle(failure))) == "gs"  # groups of what failed are kept
    assert volume.given_up == {"task": 12, "group": 3}


def test_phases_of_what_did_not_fail_go_before_groups(clock):
    volume = RateLimiter(per_minute=7)
    failure = segment().failure
    with_phases = [phase(name="p1"), phase(name="p2"), *bundle(tasks=0)]
    assert names(volume.admit(with_phases)) == "gps"  # 6 of 7
    assert names(volume.admit([phase(name="p"), *bundle(failure, groups=0, tasks=0)])) == "ps"  # kept
    clock.now = 60.0
    assert names(volume.admit(bundle(tasks=2, groups=0))) == "st"  # 3 of 6: there was an overdraft of one
    assert names(volume.admit([*with_phases[:1], *bundle(groups=2, tasks=0)])) == "gs"  # 3 of 3
    assert names(volume.admit([*with_phases[:1], *bundle(groups=2, tasks=0)])) == "s"
    assert volume.given_up == {"phase": 2, "group": 2}


def test_what_was_given_up_is_said_on_the_segment(clock):
    volume = RateLimiter(per_minute=1)
    (kept,) = volume.admit([phase(), *bundle()])
    assert (kept.dropped_tasks, kept.dropped_phases, kept.dropped_groups) == (4, 1, 3)


def test_the_budget_comes_back_within_a_minute(clock):
    volume = RateLimiter(per_minute=16)
    for _ in range(100):
        volume.admit(bundle())  # segments overdraw it, but no further than by a minute's spans
    clock.now += 60 + 30
    assert names(volume.admit(bundle())) == "gst"


def test_no_limit(clock):
    volume = RateLimiter(per_minute=0)
    assert all(names(volume.admit(bundle())) == "gst" for _ in range(1000))
