"""Dask spans whose id is the ``traceparent`` of a caller: whole traces, by what a backend would see."""

from __future__ import annotations

import pytest
from support.callers import anchored
from support.memory import FACTORY, MemoryExporter
from support.story import Story, groups, segments
from support.trees import check_shape, check_sums, trees

from dask_otel.identity import Caller, trace_id
from dask_otel.schema import MAX_CALLERS, MAX_SUBMITTERS
from dask_otel.spantree.events import Dependency, Graph
from dask_otel.spantree.ledger import Budget
from dask_otel.spantree.lifecycle import open_runs, trace_of
from dask_otel.spantree.records import Link, PendingRecord


def traces(story):
    """The tree of each trace, by its id; everything has ended and adds up."""
    story.pass_time(20)
    exporter = MemoryExporter()
    exporter.export([FACTORY.span(record) for record in story.records])
    spans = exporter.spans()
    check_shape(spans)
    check_sums(spans)
    return {int(id_, 16): lines for id_, lines in trees(spans).items()}


def runs(story):
    return [(run.span.tags[-1], run.start, run.end, run.result) for run in story.span_tree.roots.drain()]


@pytest.mark.parametrize("nonce", ["", "1"])
@pytest.mark.parametrize("sampled", [True, False])
def test_alone(nonce, sampled):
    story = Story()
    story.work(story.span("a", id_=anchored(7, 8, nonce, sampled=sampled)))
    assert traces(story) == {7: ["a [span] <- caller", "  work [group]"]}
    assert {record.caller for record in story.records} == {Caller(7, 8, is_sampled=sampled)}
    assert [record.is_top for record in story.records] == [False, True]
    assert runs(story) == [("a", 100.0, 101.0, "success")]


def test_malformed_is_an_ordinary_id():
    story = Story()
    id_ = anchored(7, 8).upper().replace("00-", "FF-", 1)
    story.work(story.span("a", id_=id_))
    assert traces(story) == {trace_id(id_): ["a [span]", "  work [group]"]}
    assert {record.caller for record in story.records} == {None}


def test_nested_in_ordinary_spans():
    """The caller's trace has what was asked for there; sums of the spans around it are Dask's."""
    story = Story()
    story.work(story.span("a"))
    story.work(story.span("a", "b", "c", id_=anchored(7, 8)))
    assert traces(story) == {
        trace_id("a"): ["a [span]", "  b [span]", "  work [group]"],
        7: ["c [span] within -> b in another trace <- caller", "  work [group]"],
    }
    c, b, a = segments(story.records)
    assert c.links == (Link(b.trace_id, b.span_id, "within"),)
    assert (a.tally.tasks, b.tally.tasks, c.tally.tasks) == (2, 1, 1)
    assert runs(story) == [("c", 101.0, 102.0, "success"), ("a", 100.0, 102.0, "success")]
    assert c.span.tags == ("a", "b", "c")


def test_ordinary_spans_in_a_called_one():
    story = Story()
    story.span("a", id_=anchored(7, 8))
    story.work(story.span("a", "b", "c"))
    assert traces(story) == {7: ["a [span] <- caller", "  b [span]", "    c [span]", "      work [group]"]}
    assert {record.caller for record in story.records} == {Caller(7, 8, is_sampled=True)}
    assert runs(story) == [("a", 100.0, 101.0, "success")]


def test_spans_that_one_caller_nests_are_one_trace():
    """Each is anchored at its own span of the caller; the top's decides whether they are sampled."""
    story = Story()
    story.span("a", id_=anchored(7, 8))
    story.work(story.span("a", "b", id_=anchored(7, 9, sampled=False)))
    assert traces(story) == {7: ["a [span] <- caller", "  b [span]", "    work [group]"]}
    assert {record.caller for record in story.records} == {Caller(7, 8, is_sampled=True)}
    assert [name for name, *_ in runs(story)] == ["a"]


def test_two_traces_below_one_root():
    story = Story()
    story.work(story.span("service", "one", id_=anchored(7, 8)))
    story.work(story.span("service", "two", id_=anchored(9, 10)))
    story.work(story.span("service", "two", "inner"))
    lines = traces(story)
    assert lines == {
        trace_id("service"): ["service [span]"],
        7: ["one [span] within -> service in another trace <- caller", "  work [group]"],
        9: [
            "two [span] within -> service in another trace <- caller",
            "  inner [span]",
            "    work [group]",
            "  work [group]",
        ],
    }
    service = next(segment for segment in segments(story.records) if segment.name == "service")
    assert service.tally.tasks == 3
    assert [name for name, *_ in runs(story)] == ["one", "two", "service"]


def test_one_caller_of_two_spans():
    """The nonce keeps them apart: one trace, two runs, ids that differ."""
    story = Story()
    for nonce in ("1", "2"):
        story.work(story.span(f"a{nonce}", id_=anchored(7, 8, nonce)))
    assert traces(story) == {
        7: ["a1 [span] <- caller", "  work [group]", "a2 [span] <- caller", "  work [group]"],
    }
    assert [name for name, *_ in runs(story)] == ["a1", "a2"]


def test_back_in_the_first_trace():
    """Its Dask parent is in another trace: then the caller's span is the parent."""
    story = Story()
    story.span("a", id_=anchored(7, 8))
    story.span("a", "b", id_=anchored(9, 10))
    story.work(story.span("a", "b", "c", id_=anchored(7, 11)))
    assert traces(story) == {
        7: ["a [span] <- caller", "c [span] within -> b in another trace <- caller", "  work [group]"],
        9: ["b [span] within -> a in another trace <- caller"],
    }


def test_work_that_goes_on_later():
    """Whatever has a parent may link into its own trace."""
    story = Story()
    span = story.span("a", id_=anchored(7, 8))
    story.work(span)
    story.pass_time(20)
    story.work(span)
    assert traces(story) == {
        7: [
            "a [span] <- caller",
            "  work [group]",
            "a [span] continues -> a <- caller",
            "  work [group]",
        ]
    }
    assert [segment.previous_id for segment in segments(story.records)] == [None, None]


def test_a_tree_is_cut_with_the_traces_below_it():
    story = Story(max_segment=60)
    story.span("a")
    span = story.span("a", "b", id_=anchored(7, 8))
    story.begin(span, "work")
    story.pass_time(61)
    story.finish(span, "work", 100, story.now)
    assert traces(story) == {
        trace_id("a"): ["a [span]", "a [span]"],
        7: [
            "b [span] within -> a in another trace <- caller",
            "  work [group]",
            "b [span] within -> a in another trace continues -> b <- caller",
            "  work [group]",
        ],
    }
    assert [segment.result for segment in segments(story.records)] == ["unfinished", "unfinished", "success", "success"]
    assert runs(story) == [("b", 100.0, 161.0, "success"), ("a", 100.0, 161.0, "success")]


def test_a_default_root_that_rolls_over_leaves_the_caller_its_trace():
    """Dask's own default span has no children; a person's may."""
    story = Story(max_segment=60)
    story.begin(story.span("default"), "own")
    span = story.span("default", "b", id_=anchored(7, 8))
    story.begin(span, "work")
    story.pass_time(61)
    story.finish("default", "own", 100, story.now)
    story.finish(span, "work", 100, story.now, dependencies=[Dependency("default", "own")])
    lines = traces(story)
    assert lines.keys() == {trace_id("default"), 7, trace_id("default", 1)}
    last = [group for group in groups(story.records) if group.name == "work"][-1]
    assert last.trace_id == 7
    assert [link.trace_id for link in last.links] == [trace_id("default", 1)]


def test_groups_link_to_groups_of_other_traces():
    story = Story()
    load, use = story.span("a", "load", id_=anchored(7, 8)), story.span("a", "use", id_=anchored(9, 10))
    story.work(load, "load")
    story.pass_time(20)
    story.work(use, "use", dependencies=[Dependency(load, "load")])
    traces(story)
    loaded, used = groups(story.records)
    assert used.links == (Link(7, loaded.span_id, "dependency"),)


def test_runs_are_found_while_they_go_on():
    story = Story(pending_span_after=15)
    span = story.span("a", "b", id_=anchored(7, 8))
    story.span("a", "b", "c")
    story.begin(span, "work")
    story.begin("a/b/c", "work")
    progress = {each.name: each for each in open_runs(story.span_tree.forest, 10)}
    assert {name: (each.trace_id, each.tasks) for name, each in progress.items()} == {
        "a": (trace_id("a"), 2),
        "b": (7, 2),
    }
    pending = [record for record in story.pass_time(20) if isinstance(record, PendingRecord)]
    assert {(record.name, record.trace_id) for record in pending} == {
        ("a (running)", trace_id("a")),
        ("b (running)", 7),
    }
    for each in (span, "a/b/c"):
        story.finish(each, "work", 100, 110)
        assert trace_of(story.span_tree.forest, each) == 7
    assert trace_of(story.span_tree.forest, "a") == trace_id("a")
    traces(story)
    assert not list(open_runs(story.span_tree.forest, 10))


def test_each_trace_may_hold_as_much_as_any(monkeypatch):
    monkeypatch.setattr("dask_otel.spantree.tree.Budget", lambda max_groups: Budget(max_groups, groups=2))
    story = Story()
    spans = [story.span("a"), story.span("a", "b", id_=anchored(7, 8)), story.span("a", "b", "c")]
    for span in spans:
        for name in ("g-1", "g-2", "g-3"):
            story.begin(span, name)
    for span in spans:
        for name in ("g-1", "g-2", "g-3"):
            story.finish(span, name, 100, 101)
    lines = traces(story)
    shown = {id_: sum(line.strip().startswith("g [group]") for line in each) for id_, each in lines.items()}
    assert shown == {trace_id("a"): 2, 7: 2}


def test_numbers_that_come_late_are_no_run():
    story = Story()
    story.span("a")
    span = story.span("a", "b", id_=anchored(7, 8))
    story.work(span)
    story.pass_time(20)
    assert len(runs(story)) == 2
    story.span_tree.add_metrics(span, {("execute", "work", "thread-cpu", "seconds"): 1.0}, story.now)
    story.close()
    assert [segment.number for segment in segments(story.records)] == [0, 0, 1, 1]
    assert runs(story) == []


# Who submitted


def submit(story, span_id, caller=None, **submitter):
    story.span_tree.add_graph(Graph(span_id, submitter=submitter, caller=caller), story.now)


def linked(story):
    """By segment, who submitted, and links to callers."""
    links = {each.name: [link for link in each.links if link.kind == "caller"] for each in segments(story.records)}
    return {each.name: (dict(each.submitters), links[each.name]) for each in segments(story.records)}


@pytest.mark.parametrize("opens", ["before", "after"])
def test_the_top_of_a_trace_says_who_submitted(opens):
    """Also for what is inside it, in whatever trace; each value once."""
    story = Story()
    own, called = story.span("a", "b"), story.span("a", "c", id_=anchored(7, 8))
    if opens == "before":
        story.begin(own, "work")
    for span_id, user in ((own, "alice"), (called, "bob"), (called, "bob")):
        submit(story, span_id, service="web", user=user)
    if opens == "before":
        story.finish(own, "work", story.now, story.now + 1)
    else:
        story.work(own)
    story.work(called)
    traces(story)
    bobs = {"service": ("web",), "user": ("bob",)}
    found = linked(story)
    assert (found["b"], found["c"]) == (({}, []), (bobs, []))
    assert {what: set(values) for what, values in found["a"][0].items()} == {
        "service": {"web"},
        "user": {"alice", "bob"},
    }


@pytest.mark.parametrize("opens", ["before", "after"])
def test_a_top_is_linked_to_its_callers(opens):
    story = Story()
    span = story.span("a", "b")
    if opens == "before":
        story.begin(span, "work")
    for number in (8, 9, 8):
        submit(story, span, Caller(7, number, is_sampled=True))
    if opens == "before":
        story.finish(span, "work", story.now, story.now + 1)
    else:
        story.work(span)
    assert traces(story) == {
        trace_id("a"): [
            "a [span] caller -> ? in another trace caller -> ? in another trace",
            "  b [span]",
            "    work [group]",
        ]
    }
    assert linked(story) == {"b": ({}, []), "a": ({}, [Link(7, 8, "caller"), Link(7, 9, "caller")])}


def test_no_link_into_the_same_trace():
    story = Story()
    for span_id in (story.span("a"), story.span("b", id_=anchored(7, 8))):
        for trace in (trace_id("a"), 7):
            submit(story, span_id, Caller(trace, 9, is_sampled=True))
        story.work(span_id)
    assert traces(story) == {
        trace_id("a"): ["a [span] caller -> ? in another trace", "  work [group]"],
        7: ["b [span] caller -> ? in another trace <- caller", "  work [group]"],
    }


def test_what_goes_on_after_a_cut_is_linked_to_what_was_before():
    story = Story(max_segment=10.0)
    span = story.span("a")
    submit(story, span, Caller(7, 8, is_sampled=True), service="web")
    story.begin(span, "work")
    story.pass_time(12)
    story.finish(span, "work", story.now - 1, story.now)
    traces(story)
    first, second = segments(story.records)
    assert [link.kind for link in first.links] == ["caller"]
    assert (second.links, second.previous_id, dict(second.submitters)) == ((), first.span_id, {})


def test_many_submitters_and_callers():
    story = Story()
    span = story.span("a")
    for number in range(100):
        submit(story, span, Caller(7, 1 + number, is_sampled=True), service=f"s{number}", user="alice")
    story.work(span)
    traces(story)
    submitters, links = linked(story)["a"]
    assert {what: len(values) for what, values in submitters.items()} == {"service": MAX_SUBMITTERS, "user": 1}
    assert len(links) == MAX_CALLERS
