"""Phases: graphs that took long to be taken in, as spans below the segment of the span that requested them."""

from __future__ import annotations

import pytest
from support.memory import FACTORY, MemoryExporter
from support.story import Story, segments
from support.trees import check_shape, check_sums, forest

from dask_otel.schema import MAX_PHASES
from dask_otel.spantree.events import Graph, Phase
from dask_otel.spantree.records import Failure, PhaseRecord
from dask_otel.spantree.to_records import Level


def take_in(story, span_id, seconds, **changes):
    """A graph came so many seconds ago."""
    phase = Phase(story.now - seconds, story.now, **({"tasks": 3, "size": 100} | changes))
    story.span_tree.add_graph(Graph(span_id, clients=("Client-1",), phase=phase), story.now)


def phases(records):
    return [record for record in records if isinstance(record, PhaseRecord)]


def lines(records, *attributes):
    """What a backend sees: all of it is well formed."""
    exporter = MemoryExporter()
    exporter.export([FACTORY.span(record) for record in records])
    check_shape(exporter.spans())
    check_sums(exporter.spans())
    return forest(exporter.spans(), *attributes)


def test_a_segment_begins_when_the_graph_came():
    """Dask makes the span, and those around it, only when the graph has been taken in."""
    story = Story()
    story.now += 10.0
    span = story.span("a", "b")
    take_in(story, span, 4.0)
    story.work(span)
    story.pass_time(20)
    assert lines(story.records, "dask.phase", "dask.graph.task.count", "dask.graph.size", "dask.span.queue_time") == [
        "a [span] span.queue_time=4.0",
        "  b [span] span.queue_time=4.0",
        "    take in graph [phase] phase=take_in graph.task.count=3 graph.size=100",
        "    work [group]",
    ]
    (phase,) = phases(story.records)
    b, a = segments(story.records)
    assert [(each.start, each.end) for each in (phase, b, a)] == [(106.0, 110.0), (106.0, 111.0), (106.0, 111.0)]
    assert b.wall["queued"] == 4.0


def test_nothing_else_began():
    """A result that was there already: the graph was taken in all the same."""
    story = Story()
    story.now += 10.0
    take_in(story, story.span("a"), 4.0)
    assert lines(story.close(), "dask.span.result", "dask.task.count") == [
        "a [span] span.result=success task.count=0",
        "  take in graph [phase]",
    ]


def test_a_segment_waits_for_more_from_the_end_of_a_phase():
    """Also one that was open before."""
    story = Story(idle_timeout=5.0)
    story.now += 20.0
    span = story.span("a")
    for _ in range(2):
        take_in(story, span, 10.0)
        story.pass_time(4)
    story.work(span)
    story.pass_time(20)
    assert lines(story.records) == ["a [span]", "  take in graph [phase]", "  take in graph [phase]", "  work [group]"]


def test_a_later_segment_begins_when_the_graph_came():
    story = Story()
    span = story.span("a")
    story.work(span)
    story.pass_time(20)
    take_in(story, span, 4.0)
    story.work(span)
    story.pass_time(20)
    assert [(each.start, each.end) for each in segments(story.records)] == [(100.0, 101.0), (117.0, 122.0)]
    assert [(each.start, each.end) for each in phases(story.records)] == [(117.0, 121.0)]


def test_what_began_before_around_it_cuts_it_off():
    """The segment around it had begun with another graph, which came later and took less long."""
    story = Story()
    story.now += 10.0
    story.work(story.span("a", "quick"), seconds=0.5)
    story.now += 2.5
    slow = story.span("a", "slow")
    take_in(story, slow, 10.0)
    story.work(slow)
    story.pass_time(20)
    assert lines(story.records) == [
        "a [span]",
        "  quick [span]",
        "    work [group]",
        "  slow [span]",
        "    take in graph [phase]",
        "    work [group]",
    ]
    (phase,) = phases(story.records)
    assert (phase.start, phase.end) == (110.0, 113.0)


def test_before_the_bridge():
    """It counts from when it was registered."""
    story = Story()
    story.now += 1.0
    span = story.span("a")
    take_in(story, span, 5.0)
    story.work(span)
    story.pass_time(20)
    assert [(each.start, each.end) for each in phases(story.records)] == [(100.0, 101.0)]


def test_a_segment_that_is_cut():
    """The phase is in the first one only."""
    story = Story(max_segment=10.0)
    story.now += 5.0
    span = story.span("a")
    take_in(story, span, 4.0)
    story.begin(span, "work")
    story.pass_time(12)
    story.finish(span, "work", story.now - 1, story.now)
    story.pass_time(20)
    assert lines(story.records, "dask.span.result", "dask.span.segment") == [
        "a [span] span.result=unfinished span.segment=0",
        "  take in graph [phase]",
        "  work [group]",
        "a [span] span.result=success span.segment=1",
        "  work [group]",
    ]
    story.work(span)
    take_in(story, span, 0.5)
    story.pass_time(20)
    ids = [phase.span_id for phase in phases(story.records)]
    assert len(set(ids)) == len(ids) == 2


def test_the_cluster_closes():
    story = Story()
    story.now += 5.0
    span = story.span("a")
    take_in(story, span, 4.0)
    story.begin(span, "work")
    story.now += 1.0
    assert lines(story.close(), "dask.span.result") == [
        "a [span] span.result=interrupted Error: interrupted: 1 task did not end",
        "  take in graph [phase]",
        "  work [group]",
    ]


def test_a_graph_that_fails():
    story = Story()
    story.now += 5.0
    span = story.span("a")
    phase = Phase(story.now - 4.0, story.now, failed=True)
    story.span_tree.add_graph(
        Graph(span, failure="error", prefix="x", since=phase.start, until=phase.end, phase=phase), story.now
    )
    story.pass_time(20)
    failed = "Error: _OTHER: 1 graph could not be taken in"
    assert lines(story.records) == [f"a [span] {failed}", f"  take in graph [phase] {failed}"]
    assert phases(story.records)[0].failure == Failure("_OTHER", "", graphs=1)


@pytest.mark.parametrize("level", [Level.SPANS, Level.GROUPS])
def test_levels(level):
    story = Story(level=level)
    story.now += 5.0
    for tags in (("a",), ("a", "b")):
        take_in(story, story.span(*tags), 1.0)
    story.pass_time(20)
    assert len(phases(story.records)) == (0 if level is Level.SPANS else 2)
    b, a = segments(story.records)
    assert (b.truncated_phases, a.truncated_phases) == ((1, 2) if level is Level.SPANS else (0, 0))


def test_no_more_than_so_many():
    """Those that failed, then the longest; the others are counted."""
    story = Story()
    span = story.span("a", "b")
    for number in range(MAX_PHASES + 5):
        story.now += 10.0
        take_in(story, span, 9.0 if number % 2 else 1.0 + number / 100, failed=number == 0)
    story.pass_time(20)
    found = phases(story.records)
    assert len(found) == len({each.span_id for each in found}) == MAX_PHASES
    assert sum(each.end - each.start == 9.0 for each in found) == (MAX_PHASES + 5) // 2
    assert found[0].failure
    b, a = segments(story.records)
    assert b.truncated_phases == a.truncated_phases == 5
    lines(story.records)


def test_a_clock_that_is_set_back():
    story = Story()
    story.now += 10.0
    story.clock_offset = 50.0
    span = story.span("a")
    take_in(story, span, 4.0)
    story.work(span)
    story.pass_time(20)
    lines(story.records)
    assert [(each.start, each.end) for each in phases(story.records)] == [(56.0, 60.0)]


def test_a_run_that_is_not_over_shows_its_phases():
    story = Story()
    story.now += 10.0
    span = story.span("a")
    take_in(story, span, 4.0)
    story.begin(span, "work")
    node = story.span_tree.forest.nodes[span]
    shown = list(story.span_tree.open_records(node.segment.trace_id, story.now))
    assert [(type(record).__name__, running) for record, running in shown] == [
        ("SegmentRecord", True),
        ("PhaseRecord", False),
        ("GroupRecord", True),
    ]
    lines([record for record, _ in shown])
