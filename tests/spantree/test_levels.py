"""How much of what happened is shown; what is counted is the same at every level."""

from __future__ import annotations

import pytest
from support.large import large_trace
from support.story import Story

from dask_otel.spantree.counts import Load
from dask_otel.spantree.events import Claim, Dependency
from dask_otel.spantree.records import GroupRecord, PendingRecord, SegmentRecord, TaskRecord
from dask_otel.spantree.to_records import Level

KINDS = {SegmentRecord: "span", GroupRecord: "group", TaskRecord: "task", PendingRecord: "pending"}


def kinds(records):
    return {KINDS[type(record)] for record in records}


def numbers(record):
    return record.name, record.result, record.start, record.end, record.tally.tasks, record.tally.durations


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (Level.TASKS, {"span", "group", "task"}),
        (Level.GROUPS, {"span", "group"}),
        (Level.SPANS, {"span"}),
    ],
)
def test_levels(level, shown):
    full = large_trace(groups=60, tasks=3000)
    records = large_trace(groups=60, tasks=3000, level=level)
    assert kinds(records) == shown
    segments, expected = ([r for r in each if isinstance(r, SegmentRecord)] for each in (records, full))
    assert [numbers(each) for each in segments] == [numbers(each) for each in expected]
    root = segments[-1]
    failed = 6 * 25
    assert root.truncated_tasks == (failed - 6 * 20 if level == Level.TASKS else failed)
    assert root.truncated_groups == (60 if level == Level.SPANS else 0)


def default(level, default_level):
    story = Story(level=level, default_level=default_level, pending_span_after=1.0)
    span = story.span("default")
    story.begin(span, "inc-1")
    story.pass_time(2)
    story.finish(span, "inc-1", story.now - 1, story.now)
    story.close()
    return story.records


@pytest.mark.parametrize(
    ("level", "default_level", "shown"),
    [
        (Level.TASKS, Level.TASKS, {"span", "group", "pending"}),
        (Level.SPANS, Level.TASKS, {"span", "pending"}),
        (Level.TASKS, Level.SPANS, {"span", "pending"}),
        (Level.TASKS, Level.NOTHING, set()),
    ],
)
def test_work_without_a_span(level, default_level, shown):
    assert kinds(default(level, default_level)) == shown


def test_no_link_leads_to_a_group_that_is_not_shown():
    story = Story(default_level=Level.SPANS)
    hidden, shown = story.span("default"), story.span("root")
    story.change(hidden, "load", tasks=1, run=(100.0, 101.0))
    story.change(shown, "sum", tasks=1, run=(100.0, 101.0), dependencies=(Dependency(hidden, "load"),))
    (group,) = [each for each in story.close() if isinstance(each, GroupRecord)]
    assert (group.links, group.dependencies) == ((), ("load",))


@pytest.mark.parametrize(("default_level", "linked"), [(Level.SPANS, True), (Level.NOTHING, False)])
def test_no_link_leads_to_a_span_that_is_not_shown(default_level, linked):
    """A span that requests a task which the default one counts."""
    story = Story(default_level=default_level)
    requesting, owning = story.span("requesting"), story.span("default")
    story.begin(owning, "g")
    claim = Claim(requesting, owning, story.now)
    claim.tasks, claim.load, claim.last_event = 1, Load(waiting=1), story.now
    story.span_tree.add_claim(claim, story.now)
    (found,) = [each for each in story.close() if isinstance(each, SegmentRecord) and each.span.id == requesting]
    assert found.counted_in == (owning,)
    assert bool(found.links) == linked
