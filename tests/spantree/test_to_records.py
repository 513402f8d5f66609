"""A trace is bounded, whatever the graph, and says what was left out."""

from __future__ import annotations

import pytest
from support.story import Story, groups, segments

from dask_otel.spantree import to_records as folding
from dask_otel.spantree.counts import bucket
from dask_otel.spantree.events import Change, Dependency, Picks, TaskError, TaskRun
from dask_otel.spantree.records import TaskRecord


def run(key, start, stop, error=None):
    return TaskRun(key, "g", "g", 1, start, stop, stop - start, {}, "tcp://worker", "w", 1, "int", 28, error)


def tasks(records):
    return [record for record in records if isinstance(record, TaskRecord)]


def busy_groups(story, span, number, *, seconds=lambda i: 1.0, error=lambda i: ""):
    for i in range(number):
        story.begin(span, f"g-{i}")
        story.finish(span, f"g-{i}", story.now, story.now + seconds(i), error=error(i))


def test_groups_that_are_too_many_are_folded_and_keep_their_sums():
    story = Story(max_groups=3)
    span = story.span("a", "b")
    busy_groups(story, span, 10, seconds=lambda i: 1.0 + i)
    records = story.close()
    assert [(g.name, g.group, g.folded) for g in groups(records)] == [
        ("g", "g-7", 0),
        ("g", "g-8", 0),
        ("g", "g-9", 0),
        ("other groups", "", 7),
    ]
    b, a = segments(records)
    for segment in (a, b):
        assert segment.tally.tasks == segment.tally.completed == 10
        assert segment.truncated_groups == 7
    assert sum(g.tally.durations["compute"] for g in groups(records)) == a.tally.durations["compute"]
    others = groups(records)[-1]
    assert others.start >= b.start
    assert others.end <= b.end


def test_groups_that_failed_are_not_folded():
    story = Story(max_groups=2)
    span = story.span("a")
    busy_groups(story, span, 10, seconds=lambda i: 10.0 - i, error=lambda i: "bad" if i == 9 else "")
    assert {g.group for g in groups(story.close())} == {"g-0", "g-9", ""}


def test_an_error_among_the_folded_is_theirs():
    story = Story(max_groups=1)
    span = story.span("a")
    busy_groups(story, span, 4, error=lambda i: "bad")
    *_, others, segment = story.close()
    assert others.failure == ("ValueError", "bad", 3, 0, 0, 0)
    assert segment.failure == ("ValueError", "bad", 4, 0, 0, 0)


def test_links_lead_to_what_is_sent():
    story = Story(max_groups=2)
    span = story.span("a")
    busy_groups(story, span, 4, seconds=lambda i: 1.0 + i)
    other = story.span("b")
    story.begin(other, "use", dependencies=[Dependency("a", "g-0")])
    story.finish(other, "use", story.now, story.now + 0.1, dependencies=[Dependency("a", "g-0")])
    story.begin(span, "last", dependencies=[Dependency("a", "g-1"), Dependency("a", "g-3")])
    story.finish(span, "last", story.now, story.now + 9, dependencies=[Dependency("a", "g-1"), Dependency("a", "g-3")])
    records = story.close()
    sent = {record.span_id for record in records}
    last = next(g for g in groups(records) if g.group == "last")
    others = next(g for g in groups(records) if g.folded)
    assert {link.span_id for link in last.links} <= sent
    assert others.span_id in {link.span_id for link in last.links}
    assert all(link.span_id in sent for record in records for link in record.links)


def test_a_segment_that_never_rests_folds_while_it_is_open():
    """A loop of dask.array computations in one span makes new groups for as long as it runs."""
    story = Story(max_groups=10)
    span = story.span("a")
    busy_groups(story, span, 500)
    ledger = story.span_tree.forest.nodes["a"].ledger
    assert len(ledger.groups) <= 20
    records = story.close()
    assert len(groups(records)) == 11
    assert segments(records)[0].tally.completed == 500
    assert segments(records)[0].truncated_groups == 490


def test_a_few_looks_at_each_group_are_enough_to_choose_what_is_folded(monkeypatch):
    """Each new group once sorted all that were unfinished: 12,000 of them took six times as long as without."""
    looks = 0

    def choose(groups, key):
        nonlocal looks
        looks += len(groups)
        return sorted(groups, key=key)

    monkeypatch.setattr(folding, "sorted", choose, raising=False)
    story = Story(max_groups=500)
    span = story.span("a")
    names = [f"g-{number}" for number in range(5000)]
    for name in names:
        story.begin(span, name)
    assert not looks  # unfinished groups are no candidates
    for name in names:
        story.finish(span, name, story.now, story.now + 0.001)
    records = story.close()
    assert len(groups(records)) == 501
    assert segments(records)[0].truncated_groups == groups(records)[-1].folded == 4500
    assert 4000 < looks < 5 * len(names)


def test_a_closing_segment_folds_in_many_little_steps():
    story = Story(max_groups=10)
    span = story.span("a")
    for number in range(1000):
        story.begin(span, f"g-{number}")
    steps = list(story.span_tree.close(story.now))
    assert len([step for step in steps if step is None]) >= 1000
    (segment,) = segments(steps)
    assert (segment.result, segment.tally.tasks, segment.truncated_groups) == ("interrupted", 1000, 990)
    assert len(groups(steps)) == 11


def test_a_group_that_was_folded_stays_folded_until_its_segment_closes():
    """Its numbers are in one place, and it is counted once."""
    story = Story(max_groups=2)
    span = story.span("a")
    busy_groups(story, span, 10, seconds=lambda i: 10.0 - i)
    for _ in range(3):
        story.begin(span, "g-9")
        story.finish(span, "g-9", story.now, story.now + 100)
    records = story.close()
    assert [(g.group, g.tally.tasks, g.folded) for g in groups(records)] == [("g-0", 1, 0), ("g-1", 1, 0), ("", 11, 8)]
    assert segments(records)[0].truncated_groups == 8


def test_a_cut_shows_no_more_groups_than_any_segment_and_all_go_on():
    story = Story(max_groups=3, max_segment=60.0)
    span = story.span("a")
    for number in range(20):
        story.begin(span, f"g-{number}")
    story.pass_time(61)
    (cut,) = segments(story.records)
    assert (cut.result, cut.tally.tasks, cut.truncated_groups) == ("unfinished", 20, 17)
    assert len(groups(story.records)) == 4
    for number in range(20):
        story.finish(span, f"g-{number}", 100.0, 165.0)
    records = story.close()
    (last,) = segments(records)
    assert (last.result, last.tally.completed, last.truncated_groups) == ("success", 20, 17)
    shown = [(g.group, g.span_id) for g in groups(story.records)]
    assert len({span_id for _, span_id in shown}) == len(shown) == 8


def test_the_spans_of_a_trace_are_bounded_over_all_its_segments():
    story = Story()
    for number in range(10):
        busy_groups(story, story.span("root", f"child {number}"), 400, seconds=lambda i: 0.0)
    records = story.close()
    assert len(groups(records)) <= 1000 + 10
    assert segments(records)[-1].tally.completed == 4000
    assert sum(g.tally.completed for g in groups(records)) == 4000


def picked(story, span, group, *, erred=0, slow=()):
    change = Change(story.now)
    change.span_id, change.name, change.prefix, change.active = span, group, group, True
    change.picks = Picks()
    for number in range(erred):
        change.count("erred")
        change.picks.add_erred(run(f"{group}-{number}", 100, 101, TaskError("ValueError", "bad", "")))
    for seconds in slow:
        change.completed += 1
        change.picks.add_slow(run(f"{group}-{seconds}", 100, 100 + seconds))
    change.hull(100, 101)
    change.tasks = change.completed + erred
    story.now = max(story.now, 102)
    story.span_tree.add_change(change, story.now)


def test_twenty_failures_and_the_five_slowest_of_a_group_have_spans():
    story = Story(slowest_tasks=5)
    span = story.span("a")
    for _ in range(3):  # sweeps
        picked(story, span, "g", erred=15, slow=[0.1 * i for i in range(8)])
    records = story.close()
    erred = [t for t in tasks(records) if t.reason == "erred"]
    slow = [t for t in tasks(records) if t.reason == "slowest"]
    assert (len(erred), len(slow)) == (20, 5)
    assert {round(t.run.seconds, 1) for t in slow} == {0.6, 0.7}
    assert {t.parent_id for t in tasks(records)} == {groups(records)[0].span_id}
    assert groups(records)[0].truncated_tasks == segments(records)[0].truncated_tasks == 25


def slow_runs(story, span, group, *seconds):
    """Add a group of as many runs."""
    change = Change(story.now)
    change.span_id, change.name, change.prefix, change.active = span, group, "prefix", True
    change.picks = Picks()
    for number, each in enumerate(seconds):
        change.tasks += 1
        change.completed += 1
        change.buckets[bucket(each)] = change.buckets.get(bucket(each), 0) + 1
        change.hull(100, 100 + each)
        change.picks.add_slow(run(f"{group}-{number}", 100, 100 + each)._replace(group=group, seconds=each))
    story.now = max(story.now, 100 + max(seconds))
    story.span_tree.add_change(change, story.now)


@pytest.mark.parametrize(
    ("seconds", "outliers"),
    [
        pytest.param([1.0], [], id="one alone is as slow as its group"),
        pytest.param([1.0, 1.0, 1.0, 1.9], [], id="less than twice the median"),
        pytest.param([1.0, 1.0, 1.0, 2.2], [2.2], id="more than twice"),
        pytest.param([0.001, 0.001, 0.001, 0.09], [], id="slow for its group, but short"),
        pytest.param([0.001, 0.001, 0.001, 0.11], [0.11], id="not so short"),
        pytest.param([1.0] * 10 + [3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [8.0, 7.0, 6.0, 5.0, 4.0], id="five at most"),
    ],
)
def test_runs_that_stand_out_have_spans(seconds, outliers):
    story = Story()
    slow_runs(story, story.span("a"), "g", *seconds)
    records = story.close()
    assert [(t.reason, t.run.seconds) for t in tasks(records)] == [("outlier", each) for each in outliers]


def test_a_run_that_is_short_for_its_group_does_not_stand_out():
    story = Story()
    span = story.span("a")
    slow_runs(story, span, "g", 0.01, 0.01, 0.01, 0.5)
    story.work(span, "g", seconds=60)
    assert not tasks(story.close())


def test_the_slowest_have_spans_as_many_as_the_setting_says_with_those_that_stand_out():
    story = Story(slowest_tasks=2)
    span = story.span("a")
    slow_runs(story, span, "g", 1.0, 1.0, 1.1, 1.2, 3.0)
    slow_runs(story, span, "h", 1.0, 1.0, 1.0, 1.0, 3.0, 4.0, 5.0)
    picked = sorted((task.run.group, task.reason, task.run.seconds) for task in tasks(story.close()))
    assert picked == [
        ("g", "outlier", 3.0),
        ("g", "slowest", 1.2),
        ("h", "outlier", 3.0),
        ("h", "outlier", 4.0),
        ("h", "outlier", 5.0),
    ]


def test_runs_stand_out_in_their_own_group_if_it_is_folded():
    story = Story(max_groups=1)
    span = story.span("a")
    slow_runs(story, span, "kept", 10.0, 10.0, 10.0)
    story.change(span, "kept", run=(100, 110))
    slow_runs(story, span, "fast", 0.01, 0.01, 0.01, 0.5)
    slow_runs(story, span, "even", 0.4, 0.4, 0.4, 0.4)
    records = story.close()
    assert [(t.reason, t.run.group, t.run.seconds) for t in tasks(records)] == [("outlier", "fast", 0.5)]
    assert tasks(records)[0].parent_id == next(group for group in groups(records) if group.folded).span_id


def test_task_spans_of_a_trace_are_bounded():
    story = Story(slowest_tasks=5)
    for number in range(30):
        picked(story, story.span("root", f"child {number}"), "g", erred=20, slow=[0.1] * 5)
    for number in range(200):
        picked(story, story.span("root", "last"), f"g{number}", slow=[0.2] * 5)
    records = story.close()
    assert sum(t.reason == "erred" for t in tasks(records)) == 200
    assert sum(t.reason == "slowest" for t in tasks(records)) <= 800
    assert segments(records)[-1].truncated_tasks == 600 - 200


def test_tasks_of_folded_groups_are_below_the_others():
    story = Story(max_groups=1)
    span = story.span("a")
    for number in range(3):
        picked(story, span, f"g{number}", erred=1)
    records = story.close()
    others = next(g for g in groups(records) if g.folded)
    below = [t for t in tasks(records) if t.parent_id == others.span_id]
    assert len(below) == 2
