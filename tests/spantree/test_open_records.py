"""What is known of a run that is not over, as the page shows it."""

from __future__ import annotations

import pytest
from support.large import large_trace

from dask_otel.otlp.spans import attributes
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.records import GroupRecord, SegmentRecord, TaskRecord
from dask_otel.spantree.to_records import MAX_OPEN_GROUPS, MAX_OPEN_TASKS, Level

SIZE = {"groups": 90, "tasks": 3000, "max_groups": 15}


def described(records):
    return [(record.span_id, record.name, record.start, record.end, attributes(record)) for record in records]


def peek_after_changes(monkeypatch):
    """Describe the open run after each change; return the list that gets what was found."""
    found, add_change = [], SpanTree.add_change

    def add_and_peek(self, change, now):
        add_change(self, change, now)
        for top in self.forest.open_tops:
            found.append([record for record, _ in self.open_records(top.segment.trace_id, now)])
            assert list(self.open_records(7, now)) == []

    monkeypatch.setattr(SpanTree, "add_change", add_and_peek)
    return found


@pytest.fixture
def peeks(monkeypatch):
    return peek_after_changes(monkeypatch)


def test_describing_an_open_run_changes_nothing(monkeypatch):
    plain = described(large_trace(**SIZE))
    found = peek_after_changes(monkeypatch)
    assert described(large_trace(**SIZE)) == plain
    assert len(found) == SIZE["groups"]


def test_parents_before_what_is_in_them_within_limits_and_with_the_ids_that_are_sent(peeks):
    sent = {record.span_id: record for record in large_trace(**SIZE)}
    for records in peeks:
        ids = {record.span_id: place for place, record in enumerate(records)}
        assert len(ids) == len(records)
        for place, record in enumerate(records[1:], 1):
            assert ids[record.parent_id] < place
        assert sum(isinstance(record, GroupRecord) for record in records) <= MAX_OPEN_GROUPS
        assert sum(isinstance(record, TaskRecord) for record in records) <= MAX_OPEN_TASKS
    last = peeks[-1]
    assert all(record.span_id in sent for record in last if isinstance(record, SegmentRecord))
    top = next(record for record in sent.values() if record.is_top)
    assert last[0].span_id == top.span_id
    assert last[0].tally.tasks == top.tally.tasks  # of children that are open, too
    assert last[0].failure == top.failure


@pytest.mark.parametrize("level", list(Level)[1:])
def test_the_level_of_traces_applies(peeks, level):
    large_trace(**SIZE, level=level)
    kinds = {type(record) for records in peeks for record in records}
    assert kinds == set([SegmentRecord, GroupRecord, TaskRecord][:level])
