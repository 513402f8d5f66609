"""What is looked at first and told of later comes out as if it had been told at once."""

from __future__ import annotations

import pytest
from support.story import WORKER, Story, groups, segments

from dask_otel.spantree.counts import Load
from dask_otel.spantree.events import Change
from dask_otel.spantree.records import SegmentRecord

OTHER = "tcp://other"


class Work:
    """A group with one task that runs in no time every now and then, and many that wait for a worker."""

    def __init__(self, *, looks: bool) -> None:
        self.looks = looks
        self.story = Story(max_segment=60.0)
        self.span_tree = self.story.span_tree
        self.span_tree.heartbeats.joined(OTHER, self.story.now)
        self.span = self.story.span("a")
        self.story.change(self.span, "g", tasks=9, load=Load(queued=9), unfinished=9)
        self.change: Change | None = None
        self.left = 9

    def second(self, *, runs: float = 0.0, worker: str = WORKER, beats: tuple[str, ...] = (WORKER, OTHER)) -> None:
        """Let a second pass, in which a task ran on a worker, and sweep."""
        self.story.now += 1.0
        for each in beats:
            self.story.beat(each)
        if runs:
            change = self.change = self.change or Change(self.story.now)
            change.span_id, change.name, change.prefix = self.span, "g", "g"
            change.active = True
            change.completed += 1
            change.hull(self.story.now - 0.2 - runs, self.story.now - 0.2)
            change.workers[worker] = change.workers.get(worker, 0.0) + runs
            change.load = Load(queued=-1)
            self.left -= 1
            self.tell(self.looks and self.left > 0)
        self.story.records += filter(None, self.span_tree.advance(self.story.now))

    def tell(self, look: bool) -> None:
        change = self.change
        change.unfinished = self.left
        if look:
            self.span_tree.look(change, self.story.now)
        else:
            self.span_tree.add_change(change, self.story.now)
            self.change = None


@pytest.fixture(params=[False, True], ids=["told", "looked at"])
def work(request):
    return Work(looks=request.param)


def test_time_and_workers(work):
    for second in range(9):
        work.second(runs=0.1, worker=(WORKER, OTHER)[second % 2])
    for _ in range(10):
        work.second()
    (segment,), (group,) = segments(work.story.records), groups(work.story.records)
    assert segment.wall == pytest.approx({"executing": 0.9, "queued": 7.9, "no_worker": 0.0, "idle": 0.0})
    assert (segment.start, segment.end) == (100.0, 108.8)
    assert group.tally.completed == segment.tally.completed == 9
    assert group.tally.workers == pytest.approx({WORKER: 0.5, OTHER: 0.4})
    assert (group.tally.run_start, group.tally.run_stop) == pytest.approx((100.7, 108.8))
    assert segment.metrics_complete


def test_a_worker_that_has_delivered_may_leave(work):
    work.second(runs=0.1, worker=OTHER)
    work.second()
    work.second()
    work.span_tree.worker_left(OTHER)
    for _ in range(8):
        work.second(runs=0.1)
    work.story.pass_time(10)
    (segment,) = segments(work.story.records)
    assert segment.metrics_complete


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_worker_that_has_not_delivered_may_not(work, comes_back):
    work.second(runs=0.1, worker=OTHER)
    work.span_tree.worker_left(OTHER)
    if comes_back:
        work.span_tree.heartbeats.joined(OTHER, work.story.now)
    for _ in range(8):
        work.second(runs=0.1)
    work.story.pass_time(10)
    (segment,) = segments(work.story.records)
    assert not segment.metrics_complete


def test_a_cut_loses_metrics_of_what_is_at_rest():
    story = Story(max_segment=60.0)
    at_rest, at_work = story.span("a", "b"), story.span("a", "c")
    story.begin(at_rest, "g")
    story.begin(at_work, "h", 2)
    story.pass_time(57)
    story.finish(at_rest, "g", 156.0, 157.0)
    story.finish(at_work, "h", 156.0, 157.0, unfinished=1)
    story.pass_time(3, beats=False)
    complete = {segment.name: segment.metrics_complete for segment in segments(story.records)}
    assert complete == {"b": False, "c": True, "a": False}


def test_a_clock_that_is_set_back_in_between(work):
    work.second(runs=0.1)
    work.second(runs=0.1)
    work.story.now -= 60.0
    if work.change:
        work.change.clock_set_back(60.0, work.story.now)
    work.span_tree.clock_set_back(60.0)
    for _ in range(7):
        work.second(runs=0.1)
    work.story.pass_time(10)
    (segment,), (group,) = segments(work.story.records), groups(work.story.records)
    assert (segment.start, segment.end) == pytest.approx((40.0, 48.8))
    assert (group.start, group.end) == pytest.approx((40.7, 48.8))


def test_only_what_has_a_group_may_be_looked_at():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    forest = story.span_tree.forest
    assert (forest.begun(span), forest.begun("unknown")) == (100.0, None)
    assert forest.has_group(span, "g")
    assert not forest.has_group(span, "another")
    assert not forest.has_group("unknown", "g")
    story.finish(span, "g", 100.0, 101.0)
    story.pass_time(20)
    assert forest.begun(span) is None
    assert not forest.has_group(span, "g")


@pytest.mark.parametrize("delivered", [False, True])
def test_a_worker_that_leaves_in_the_middle_of_a_cut(delivered):
    story = Story(max_segment=60.0)
    span = story.span("a", "b")
    story.span_tree.heartbeats.joined(OTHER, story.now)
    story.begin(span, "g", 2)
    story.finish(span, "g", 100.0, 101.0, unfinished=1, worker=OTHER)
    story.now = 161.0
    if delivered:
        story.beat(OTHER)
        story.beat(OTHER)
    for record in story.span_tree.advance(story.now):
        if isinstance(record, SegmentRecord) and record.name == "b":
            story.span_tree.worker_left(OTHER)
    story.finish(span, "g", 161.0, 162.0)
    assert {segment.metrics_complete for segment in segments(story.pass_time(20))} == {delivered}
