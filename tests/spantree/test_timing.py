"""Clocks that are off, and clocks that are set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.story import Story, groups, segments

from dask_otel.spantree.counts import Load
from dask_otel.spantree.events import Change, Claim
from dask_otel.spantree.records import PendingRecord
from dask_otel.spantree.timing import Threads, fit

times = st.floats(0, 1000)


@given(times, times, times, times)
def test_fit_is_always_inside_and_keeps_a_duration(start, length, low, room):
    high = low + room
    begin, end = fit(start, start + length, low, high)
    assert low <= begin <= end <= high
    if length and room and (start + length <= low or start >= high):
        assert end - begin == pytest.approx(min(length, room))


@given(st.floats(-60, 60), st.floats(0.01, 5))
def test_a_worker_whose_clock_is_off(skew, seconds):
    """The scheduler hears of a run only after it has ended, and after it was submitted."""
    story = Story()
    span = story.span("a", "b")
    story.begin(span, "g")
    start = story.now + 0.1
    story.now = start + seconds
    received = story.now
    story.change(span, "g", completed=1, load=Load(processing=-1))
    change_run(story, span, start + skew, seconds)
    records = story.close()
    (group,) = groups(records)
    b, a = segments(records)
    assert a.start <= b.start <= group.start < group.end <= b.end <= a.end <= received
    assert group.end - group.start <= seconds + 0.1
    if skew > 0:
        assert group.end - group.start == pytest.approx(seconds)


def change_run(story, span, start, seconds):
    change = Change(story.now)
    change.span_id, change.name, change.prefix, change.active = span, "g", "g", True
    change.hull(start, start + seconds)
    change.durations = {"compute": round(seconds * 1e6)}
    story.span_tree.add_change(change, story.now)


def set_back(story, seconds):
    story.clock_offset += seconds


def test_a_clock_that_is_set_back_leaves_durations_true_and_holds_nothing_up():
    story = Story()
    span = story.span("a", "b")
    story.begin(span, "g", 2)
    story.pass_time(10)  # 110
    story.finish(span, "g", 105, 109)
    set_back(story, 50)
    story.pass_time(5)
    story.finish(span, "g", 111, 114)
    story.pass_time(7)
    (group,) = groups(story.records)
    b, a = segments(story.records)
    assert a.start == b.start == 100 - 50
    assert (a.end - a.start) == (b.end - b.start) == pytest.approx(114 - 100)
    assert (group.start, group.end) == (105 - 50, 114 - 50)
    assert sum(a.wall.values()) == pytest.approx(a.end - a.start)
    assert a.threads_available == pytest.approx(4 * 14)


def test_what_was_sent_before_the_clock_was_set_back_stays_enclosed():
    story = Story()
    quick, slow = story.span("a", "quick"), story.span("a", "slow")
    story.begin(slow, "s")
    story.begin(quick, "q")
    story.finish(quick, "q", 101, 102)
    story.pass_time(10)
    assert [segment.name for segment in segments(story.records)] == ["quick"]
    set_back(story, 60)
    story.pass_time(5)
    story.finish(slow, "s", 112, 116)
    story.pass_time(10)
    sent, _, root = segments(story.records)
    assert root.start <= sent.start
    assert sent.end <= root.end


def test_a_span_that_goes_on_after_the_clock_was_set_back():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(10)
    set_back(story, 60)
    story.begin(span, "g")
    story.pass_time(5)
    story.finish(span, "g", story.now - 4, story.now)
    story.pass_time(10)
    _, second = segments(story.records)
    assert second.end - second.start == pytest.approx(5, abs=1)


def test_a_group_that_only_failed_has_the_times_of_its_runs():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.pass_time(3)
    story.change(span, "g", error="bad", run=(101, 102.5), load=Load(processing=-1))
    story.pass_time(10)
    (group,) = groups(story.records)
    assert (group.start, group.end) == (101, 102.5)


def test_pending_spans_say_how_far_a_run_is_and_come_again():
    story = Story(pending_span_after=15, max_segment=86400)
    first, second = story.span("a", "first"), story.span("a", "second")
    story.begin(first, "g", 3)
    story.pass_time(10)
    story.finish(first, "g", 100, 105, 2)
    story.begin(second, "h", 4)
    pending = story.pass_time(2 * 3600 + 100)
    ages = [15, 60, 300, 900, 3600, 7200]
    assert [record.end for record in pending] == [100 + age for age in ages]
    assert {record.start for record in pending} == {100}
    assert len({record.span_id for record in pending}) == len(ages)
    for record in pending:
        assert (record.tasks, record.completed) == (7, 2)
        assert record.active == (("a", "first"), ("a", "second"))
    story.finish(first, "g", 100, story.now)
    (last,) = (record for record in story.pass_time(3600) if isinstance(record, PendingRecord))
    assert (last.completed, last.active) == (3, (("a", "second"),))


def test_pending_spans_of_a_run_that_waits_are_not_made_up_for():
    story = Story(pending_span_after=15, idle_timeout=10_000, max_segment=86400)
    span = story.span("a")
    story.work(span, "g")
    assert story.pass_time(1000) == []
    story.begin(span, "g")
    assert [record.end for record in story.pass_time(3000)] == [1102, 3700]


def test_a_pending_span_lies_in_its_segment():
    story = Story(pending_span_after=15)
    span = story.span("a", "b")
    story.begin(span, "g")
    assert story.pass_time(14) == []
    (marker,) = story.pass_time(20)
    assert (marker.name, marker.start, marker.end) == ("a (running)", 100, 115)
    story.finish(span, "g", 101, 134.9)
    story.pass_time(10)
    root = segments(story.records)[-1]
    assert marker.parent_id == root.span_id
    assert marker.trace_id == root.trace_id
    assert root.start <= marker.start
    assert marker.end <= root.end


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=20), st.floats(-10, 1100), st.floats(0, 1100)
)
def test_threads_of_a_time_are_those_of_each_of_its_parts(changes, begin, length):
    threads, counts = Threads(0.0, 4), [(0.0, 4)]
    for pause, count in changes:
        counts.append((counts[-1][0] + pause, count))
        threads.add(*counts[-1])
    ends = [*(at for at, _ in counts[1:]), float("inf")]
    end = begin + length
    expected = sum(max(0.0, min(end, stop) - max(begin, at)) * n for (at, n), stop in zip(counts, ends, strict=True))
    within = [(max(begin, at), min(end, stop), n) for (at, n), stop in zip(counts, ends, strict=True) if stop > begin]
    within = [(at, stop, n) for at, stop, n in within if at < end]
    most = max((n for _, _, n in within), default=0)
    grown = next((at for at, _, n in within if n == most), begin)
    lacked = sum((stop - at) * (most - n) for at, stop, n in within if n and stop <= grown)
    for _ in range(2):
        assert threads.available(begin, end) == pytest.approx(expected, abs=1e-6)
        assert threads.lacked(begin, end) == pytest.approx(lacked, abs=1e-6)
        threads.forget(begin)


@pytest.mark.parametrize("began", [0.2, 0.5, 0.9])
def test_a_task_that_runs_at_the_first_sweep_was_queued_until_it_was_sent_to_a_worker(began):
    """Once all until the first sweep was queued: up to a second, and always in favour of the queue."""
    story = Story()
    change = Change(100.0)
    change.span_id = story.span("a")
    change.name = change.prefix = "g"
    change.active, change.tasks, change.began = True, 1, 100.0 + began
    change.load, change.unfinished = Load(processing=1), 1
    story.pass_time(1)
    story.span_tree.add_change(change, story.now)
    story.pass_time(3)
    story.finish("a", "g", 100.0 + began, 104.0)
    story.pass_time(20)
    (a,) = segments(story.records)
    assert a.wall == pytest.approx({"queued": began, "executing": 4.0 - began, "no_worker": 0.0, "idle": 0.0})


def test_what_ends_a_time_of_idleness_is_idle_until_then():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100.0, 101.0)
    story.pass_time(2)
    change = Change(103.25)
    change.span_id, change.name, change.prefix = span, "g", "g"
    change.active, change.tasks, change.began = True, 1, 103.75
    change.load, change.unfinished = Load(processing=1), 1
    story.pass_time(1)
    story.span_tree.add_change(change, story.now)
    story.pass_time(1)
    story.finish(span, "g", 103.75, 105.0)
    story.pass_time(20)
    (a,) = segments(story.records)
    assert a.wall == pytest.approx({"executing": 2.25, "queued": 0.5, "no_worker": 0.0, "idle": 2.25})


def test_a_root_at_rest_is_not_announced():
    story = Story(pending_span_after=3, idle_timeout=30)
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    assert story.pass_time(20) == []


def test_the_requesting_span_lasts_until_its_tasks_end_elsewhere():
    story = Story()
    owning, requesting = story.span("owning"), story.span("requesting")
    story.begin(owning, "g", 2)
    claim = Claim(requesting, owning, 100.5)
    claim.tasks, claim.load = 1, Load(processing=1)
    story.span_tree.add_claim(claim, story.now)
    story.pass_time(20)
    assert story.records == []
    story.finish(owning, "g", 101, 119, 2)
    claim = Claim(requesting, owning, story.now)
    claim.completed, claim.load = 1, Load(processing=-1)
    claim.hull(110, 119)
    story.span_tree.add_claim(claim, story.now)
    story.pass_time(10)
    asked = next(s for s in segments(story.records) if s.name == "requesting")
    assert (asked.start, asked.end, asked.result) == (100, 119, "success")
    counted = next(s for s in segments(story.records) if s.name == "owning")
    assert [(link.span_id, link.kind) for link in asked.links] == [(counted.span_id, "counted_in")]
