"""A group that works for many sweeps: wall time, workers, and whose fine metrics are known to be lost."""

from __future__ import annotations

import pytest
from support.story import WORKER, Story, groups, segments

from dask_otel.spantree.counts import Load

OTHER = "tcp://other"


class Work:
    """A group with one task that runs every now and then, and many that wait for a worker."""

    def __init__(self) -> None:
        self.story = Story(max_segment=60.0)
        self.story.join(OTHER)
        self.span = self.story.span("a")
        self.story.change(self.span, "g", tasks=9, load=Load(queued=9), unfinished=9)
        self.left = 9

    def second(self, *, runs: float = 0.0, worker: str = WORKER, beats: tuple[str, ...] = (WORKER, OTHER)) -> None:
        """Let a second pass, in which a task ran on a worker, and sweep."""
        self.story.now += 1.0
        for each in beats:
            self.story.beat(each)
        if runs:
            stop = self.story.now - 0.2
            self.left -= 1
            self.story.change(
                self.span,
                "g",
                run=(stop - runs, stop),
                completed=1,
                load=Load(queued=-1),
                unfinished=self.left,
                worker=worker,
            )
        self.story.records += filter(None, self.story.span_tree.advance(self.story.now))


@pytest.fixture
def work():
    return Work()


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
    work.story.leave(OTHER)
    for _ in range(8):
        work.second(runs=0.1)
    work.story.pass_time(10)
    (segment,) = segments(work.story.records)
    assert segment.metrics_complete


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_worker_that_has_not_delivered_may_not(work, comes_back):
    work.second(runs=0.1, worker=OTHER)
    work.story.leave(OTHER)
    if comes_back:
        work.story.join(OTHER)
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
