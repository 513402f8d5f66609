"""Spans that were only requested are forgotten, since nothing of Dask's bounds their number."""

from __future__ import annotations

from support.story import Story, segments

from dask_otel.spantree.counts import Load
from dask_otel.spantree.events import Claim, SpanInfo


def request(story, number, *, parent=None, load=None, completed=0):
    span_id = f"requesting-{number}"
    tags = ("requesting",) if parent is None else ("requesting", "child")
    if parent is not None:
        story.span_tree.add_requested(SpanInfo(parent, ("requesting",), None, story.now))
    story.span_tree.add_requested(SpanInfo(span_id, tags, parent, story.now))
    claim = Claim(span_id, "owning", story.now)
    claim.tasks, claim.completed, claim.load, claim.last_event = 1, completed, load or Load(), story.now
    story.span_tree.add_claim(claim, story.now)


def test_they_are_forgotten_and_their_ids_are_not_used_again():
    story = Story()
    story.begin(story.span("owning"), "g")
    for number in range(300):
        request(story, number, completed=1)
    request(story, "child", parent="parent", completed=1)
    request(story, "waiting", load=Load(waiting=1))
    story.pass_time(10)
    nodes = story.span_tree.forest.nodes
    assert len(nodes) == 304
    story.pass_time(4000, step=100)
    assert set(nodes) == {"owning", "requesting-waiting"}
    sent = {record.span_id for record in story.records}
    request(story, 7, completed=1)
    request(story, "new", completed=1)
    story.pass_time(10)
    again, new = sorted(segments(story.records)[-2:], key=lambda segment: segment.span.id)
    assert again.span_id not in sent
    assert again.number > 0
    assert new.number == 0


def test_those_that_dask_makes_after_all_are_kept():
    story = Story()
    story.begin(story.span("owning"), "g")
    request(story, 1, completed=1)
    story.span_tree.add_span(SpanInfo("requesting-1", ("requesting",), None, story.now))
    assert story.span_tree.forest.knows_made("requesting-1")
    story.pass_time(8000, step=100)
    assert story.span_tree.forest.knows("requesting-1")


def test_the_ids_of_one_that_dask_makes_once_it_is_forgotten_are_not_used_again():
    story = Story()
    story.begin(story.span("owning"), "g")
    request(story, 1, completed=1)
    story.pass_time(8000, step=100)
    assert not story.span_tree.forest.knows("requesting-1")
    _, number = story.span_tree.parent_segment("requesting-1", "requesting-1", story.now)
    story.work(story.span("requesting", id_="requesting-1"))
    story.pass_time(10)
    numbers = [segment.number for segment in segments(story.records) if segment.span.id == "requesting-1"]
    assert numbers == [0, number]
    sent = [record.span_id for record in story.records]
    assert len(sent) == len(set(sent))
