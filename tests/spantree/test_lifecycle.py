"""When segments open, close, are cut and go on: with no cluster and a clock of our own."""

from __future__ import annotations

import pytest
from support.story import WORKER, Story, groups, segments

from dask_otel.diagnosis.parts import CriticalPath, GroupKey, Lap, OnPath
from dask_otel.identity import group_id, segment_id, trace_id
from dask_otel.spantree.counts import Load
from dask_otel.spantree.events import Dependency, Graph
from dask_otel.spantree.records import Link


def test_closes_when_settled_with_the_time_the_work_ended():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    assert story.pass_time(2) == []
    story.finish(span, "g", 100.5, 101.5)
    assert story.pass_time(4.9) == []
    group, segment = story.pass_time(2)
    assert (group.name, group.start, group.end) == ("g", 100.5, 101.5)
    assert (segment.name, segment.start, segment.end) == ("a", 100.0, 101.5)
    assert segment.result == "success"
    assert segment.trace_id == group.trace_id == trace_id("a")
    assert segment.span_id == segment_id("a", 0) == group.parent_id
    assert group.span_id == group_id("a", "g", 0)


def test_a_pause_shorter_than_settle_does_not_split():
    story = Story()
    span = story.span("a")
    for _ in range(10):
        story.begin(span, "g")
        story.finish(span, "g", story.now, story.now)
        story.pass_time(4)
    assert story.records == []
    story.pass_time(3)
    (segment,) = segments(story.records)
    assert segment.tally.tasks == segment.tally.completed == 10


def test_parents_open_before_and_close_after_their_children_and_count_them():
    story = Story()
    inner = story.span("a", "b", "c")
    story.begin(inner, "g", 2)
    story.pass_time(1)
    story.finish(inner, "g", 100.0, 101.0, 2)
    story.pass_time(10)
    assert [segment.name for segment in segments(story.records)] == ["c", "b", "a"]
    assert {segment.tally.tasks for segment in segments(story.records)} == {2}
    c, b, a = segments(story.records)
    assert (c.parent_id, b.parent_id, a.parent_id) == (b.span_id, a.span_id, None)


def test_parent_stays_open_while_one_child_works():
    story = Story()
    quick, slow = story.span("a", "quick"), story.span("a", "slow")
    story.begin(quick, "q")
    story.begin(slow, "s")
    story.finish(quick, "q", 100, 101)
    story.pass_time(20)
    assert [segment.name for segment in segments(story.records)] == ["quick"]
    story.finish(slow, "s", 100, 120)
    story.pass_time(10)
    assert [segment.name for segment in segments(story.records)] == ["quick", "slow", "a"]


def test_a_verdict_rests_on_spans_that_closed_before_the_first_lap_of_the_root_ended():
    story, judged = Story(), []
    story.span_tree.judge = judged.append
    quick, slow = story.span("a", "quick"), story.span("a", "slow")
    story.span_tree.lap_start = lambda root_id: 100.0
    story.begin(quick, "q")
    story.begin(slow, "s")
    story.finish(quick, "q", 100, 101)
    story.pass_time(20)
    story.finish(slow, "s", 100, 120)
    story.pass_time(1)
    story.span_tree.lap_start = lambda root_id: None
    path = CriticalPath(100.0, 120.0, {GroupKey(quick, "q"): OnPath(1.0), GroupKey(slow, "s"): OnPath(19.0)})
    story.span_tree.add_lap(Lap("a", 100.0, 120.0, 21.0, 0.0, 0.0, {}, path))
    story.pass_time(10)
    (facts,) = judged
    assert {str(group.title) for group in facts.groups} == {"a / quick / q", "a / slow / s"}
    # The span of the first was sent before that was known.
    assert {group.name: group.critical for group in groups(story.records)} == {"q": None, "s": OnPath(19.0)}


def test_waits_for_two_heartbeats_of_the_workers_that_took_part():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    assert story.pass_time(20, beats=False) == []
    story.beat()
    assert story.pass_time(1, beats=False) == []
    story.beat()
    assert len(story.pass_time(1, beats=False)) == 2


def test_does_not_wait_for_a_silent_worker_for_ever():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    assert story.pass_time(29, beats=False) == []
    records = story.pass_time(5, beats=False)
    assert len(records) == 2
    assert [segment.metrics_complete for segment in segments(records)] == [False]


def test_metrics_that_have_not_come_when_the_cluster_closes_are_a_loss():
    story = Story()
    span = story.span("a", "b")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    assert [segment.metrics_complete for segment in segments(story.close())] == [False, False]


def test_a_worker_that_leaves_before_it_delivered_is_a_known_loss():
    story = Story()
    span = story.span("a", "b")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.leave(WORKER)
    story.pass_time(10, beats=False)
    assert [segment.metrics_complete for segment in segments(story.records)] == [False, False]


def test_a_worker_that_leaves_after_it_delivered_is_no_loss():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(2)
    story.leave(WORKER)
    story.pass_time(10, beats=False)
    assert [segment.metrics_complete for segment in segments(story.records)] == [True]


def test_does_not_close_while_a_graph_is_taken_in():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(4)
    story.now += 10
    assert list(filter(None, story.span_tree.advance(story.now, taking_in_graph=True))) == []
    assert len(list(filter(None, story.span_tree.advance(story.now)))) == 2


def test_later_work_opens_the_next_segment_of_the_same_trace():
    story = Story()
    root, child = story.span("a"), story.span("a", "b")
    for _ in range(2):
        story.begin(child, "g")
        story.finish(child, "g", story.now, story.now + 1)
        story.pass_time(20)
    first_b, first_a, second_b, second_a = segments(story.records)
    assert first_a.trace_id == second_a.trace_id
    assert (first_a.number, second_a.number, second_a.span_id) == (0, 1, segment_id(root, 1))
    # The root has no parent: a link into its own trace would confuse Jaeger.
    assert (second_a.links, second_a.previous_id) == ((), first_a.span_id)
    assert second_b.links == (Link(first_b.trace_id, first_b.span_id, "continues"),)
    assert second_b.previous_id is None
    assert [g.span_id for g in groups(story.records)] == [group_id(child, "g", 0), group_id(child, "g", 1)]


def test_late_metrics_are_held_for_the_next_segment():
    story = Story()
    span = story.span("a")
    key = ("execute", "g", "thread-cpu", "seconds")
    story.begin(span, "g")
    story.span_tree.add_metrics(span, {key: 1.0}, story.now)
    story.finish(span, "g", 100, 101)
    story.pass_time(10)
    story.span_tree.add_metrics(span, {key: 4.0}, story.now)
    assert story.pass_time(10) == []
    story.begin(span, "g")
    story.finish(span, "g", story.now, story.now)
    story.pass_time(10)
    total = ("execute", None, "thread-cpu", "seconds")
    assert [segment.metrics for segment in segments(story.records)] == [{total: 1.0}, {total: 4.0}]


def test_metrics_still_held_at_the_end_get_a_last_segment():
    story = Story()
    child = story.span("a", "b")
    story.begin(child, "g")
    story.finish(child, "g", 100, 101)
    story.pass_time(10)
    key = ("execute", "g", "cancelled", "seconds")
    story.span_tree.add_metrics(child, {key: 4.0}, story.now)
    story.now += 1
    last_child, last_root = segments(story.close())
    assert last_child.metrics == last_root.metrics == {("execute", None, "cancelled", "seconds"): 4.0}
    assert last_child.parent_id == last_root.span_id
    assert (last_child.result, last_child.number) == ("success", 1)


def test_a_default_span_whose_groups_never_ran_is_no_segment():
    story = Story()
    span = story.span("default")
    story.change(span, "scattered", tasks=1, active=False)
    story.pass_time(20)
    assert story.close() == []


def test_scattered_data_is_counted_when_its_default_span_has_other_work():
    story = Story()
    span = story.span("default")
    story.change(span, "scattered", tasks=1, active=False)
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(20)
    (segment,) = segments(story.records)
    assert segment.name == "default: scattered"
    assert segment.tally.tasks == 2 == sum(group.tally.tasks for group in groups(story.records))


def test_cut_by_age_goes_on_in_a_linked_segment():
    story = Story(max_segment=60)
    root, child = story.span("a"), story.span("a", "b")
    story.begin(child, "g", 2)
    story.pass_time(30)
    story.finish(child, "g", 100, 130, unfinished=1)
    records = story.pass_time(31)
    assert [(r.name, r.end) for r in records] == [("g", 160.0), ("b", 160.0), ("a", 160.0)]
    assert {s.result for s in segments(records)} == {"unfinished"}
    story.pass_time(10)
    story.finish(child, "g", 100, 170)
    story.pass_time(20)
    group, segment_b, segment_a = story.records[3:]
    assert (segment_a.start, segment_b.start, segment_a.end) == (160.0, 160.0, 170.0)
    assert (segment_b.result, segment_a.result) == ("success", "success")
    assert (group.start, group.span_id) == (160.0, group_id(child, "g", 1))
    assert segment_a.trace_id == trace_id(root)
    assert segment_b.links == (Link(segment_b.trace_id, segment_id(child, 0), "continues"),)
    assert segment_a.tally.tasks + segments(records)[-1].tally.tasks == 2


def test_a_cut_waits_for_the_end_of_a_pause():
    """Else what goes on after it would be another run; a root that only ever pauses is cut all the same."""
    story = Story(max_segment=60, idle_timeout=5.0)
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 159)
    assert story.pass_time(3) == []
    story.begin(span, "g")
    assert [segment.result for segment in segments(story.pass_time(1))] == ["unfinished"]
    story.finish(span, "g", 162, 170)
    story.pass_time(20)
    (run,) = story.span_tree.roots.drain()
    assert (run.start, run.end) == (100.0, 170.0)
    begin = story.now
    while story.now < begin + 130:
        story.begin(span, "g")
        story.finish(span, "g", story.now, story.now)
        story.pass_time(1)
    assert segments(story.records)[-1].end <= begin + 125


def test_cut_of_a_default_root_starts_a_new_trace():
    story = Story(max_segment=60)
    span = story.span("default")
    story.begin(span, "g")
    story.pass_time(61)
    story.begin(span, "h")
    story.finish(span, "h", 162, 163, dependencies=[Dependency(span, "g")])
    story.finish(span, "g", 100, 164)
    story.pass_time(20)
    first, second = segments(story.records)
    assert (first.trace_id, second.trace_id) == (trace_id(span, 0), trace_id(span, 1))
    assert second.links == (Link(first.trace_id, first.span_id, "continues"),)
    assert second.name == "default: g"
    h = next(group for group in groups(story.records) if group.name == "h")
    assert Link(trace_id(span, 1), group_id(span, "g", 1), "dependency") in h.links


def test_groups_link_to_the_groups_they_depend_on_also_in_other_traces():
    story = Story()
    a, b = story.span("a"), story.span("b")
    story.begin(a, "load")
    story.begin(b, "use", dependencies=[Dependency(a, "load"), Dependency("", "scattered"), Dependency(b, "nowhere")])
    story.finish(a, "load", 100, 101)
    story.finish(b, "use", 101, 102, dependencies=[Dependency(a, "load"), Dependency("", "scattered")])
    story.pass_time(20)
    use = next(group for group in groups(story.records) if group.name == "use")
    assert use.links == (Link(trace_id(a), group_id(a, "load", 0), "dependency"),)
    assert use.dependencies == ("load", "scattered")


def test_a_finished_workflow_stays_finished_when_the_workers_leave_first():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(3)
    story.leave(WORKER)
    # memory → released → waiting → no-worker, because the worker left
    story.change(span, "g", active=False, load=Load(no_worker=1, provisional=1))
    story.now += 1
    (segment,) = segments(story.close())
    assert (segment.result, segment.end) == ("success", 101.0)


def test_a_recomputation_that_finishes_reopens():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(20)
    story.change(span, "g", active=False, load=Load(waiting=1, provisional=1))
    assert story.pass_time(20) == []
    story.change(span, "g", run=(140, 141), completed=1, outcome="recomputed", load=Load(waiting=-1, provisional=-1))
    _, segment = story.pass_time(20)
    assert (segment.start, segment.end, segment.tally.outcomes) == (140.0, 141.0, {"recomputed": 1})


def test_work_that_is_not_done_when_the_cluster_closes_is_interrupted():
    story = Story()
    done, busy = story.span("a", "done"), story.span("a", "busy")
    story.begin(done, "g")
    story.finish(done, "g", 100, 101)
    story.begin(busy, "h")
    story.now += 2
    results = {segment.name: (segment.result, segment.end) for segment in segments(story.close())}
    assert results == {"done": ("success", 101.0), "busy": ("interrupted", 103.0), "a": ("interrupted", 103.0)}


@pytest.mark.parametrize(
    ("outcomes", "completed", "result"),
    [
        (["erred", "cancelled"], 1, "error"),
        (["upstream_failed"], 1, "error"),
        (["cancelled"], 1, "cancelled"),
        (["abandoned"], 0, "cancelled"),
        (["abandoned"], 1, "success"),
        (["retried", "recomputed", "rescheduled"], 1, "success"),
    ],
)
def test_result(outcomes, completed, result):
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.change(span, "g", run=(100, 101), completed=completed, load=Load(processing=-1))
    for outcome in outcomes:
        story.change(span, "g", outcome=outcome)
    (segment,) = segments(story.close())
    assert segment.result == result


def test_first_error_reaches_the_parents():
    story = Story()
    span = story.span("a", "b")
    story.begin(span, "g", 2)
    story.change(span, "g", error="first", load=Load(processing=-1))
    story.change(span, "g", error="second", load=Load(processing=-1))
    records = story.close()
    assert {record.failure for record in records} == {("ValueError", "first", 2, 0, 0, 0)}


def test_wall_time_parts_sum_to_the_duration():
    story = Story()
    span = story.span("a")
    story.change(span, "g", tasks=1, load=Load(no_worker=1), unfinished=1)
    story.pass_time(3)
    story.change(span, "g", load=Load(no_worker=-1, processing=1), unfinished=1)
    story.pass_time(5)
    story.finish(span, "g", 103, 108)
    story.pass_time(2)  # think time
    story.begin(span, "g")
    story.finish(span, "g", 110, 111)
    story.pass_time(20)
    (segment,) = segments(story.records)
    assert sum(segment.wall.values()) == pytest.approx(segment.end - segment.start)
    assert segment.wall["executing"] == pytest.approx(6, abs=1)
    assert segment.wall["no_worker"] == pytest.approx(3, abs=1.01)
    assert segment.wall["idle"] == pytest.approx(2, abs=1)


def test_thread_time_available_and_of_others():
    story = Story(threads=4)
    mine, theirs = story.span("mine"), story.span("theirs")
    story.span_tree.add_metrics(theirs, {("execute", "x", "thread-cpu", "seconds"): 50.0}, story.now)  # before
    story.begin(mine, "g")
    story.pass_time(5)
    story.span_tree.threads.add(105.0, 2)
    story.span_tree.add_metrics(theirs, {("execute", "x", "thread-cpu", "seconds"): 7.0}, story.now)
    story.span_tree.add_metrics(mine, {("execute", "g", "thread-cpu", "seconds"): 9.0}, story.now)
    story.pass_time(5)
    story.finish(mine, "g", 100, 110)
    story.pass_time(20)
    segment = next(segment for segment in segments(story.records) if segment.name == "mine")
    assert segment.threads_available == 5 * 4 + 5 * 2
    assert segment.threads_others == 7.0


def test_fine_metrics_of_a_group_only_when_it_is_alone_with_its_prefix():
    story = Story()
    span = story.span("a")
    for name in ("alone", "twin-1", "twin-2"):
        story.begin(span, name)
        story.finish(span, name, 100, 101)
    keys = {prefix: ("execute", prefix, "thread-cpu", "seconds") for prefix in ("alone", "twin")}
    story.span_tree.add_metrics(span, {keys["alone"]: 1.0, keys["twin"]: 2.0}, story.now)
    story.pass_time(20)
    found = {group.group: group.metrics for group in groups(story.records)}
    assert found == {"alone": {keys["alone"]: 1.0}, "twin-1": None, "twin-2": None}


def test_a_worker_clock_that_is_off_moves_nothing_outside_the_parents():
    story = Story()
    early, late = story.span("a", "early"), story.span("a", "late")
    story.begin(early, "g")
    story.finish(early, "g", 50, 60)
    story.begin(late, "h")
    story.finish(late, "h", 500, 600)
    story.pass_time(20)
    by_id = {record.span_id: record for record in story.records}
    for record in story.records:
        assert record.start <= record.end <= story.now
        if record.parent_id:
            parent = by_id[record.parent_id]
            assert parent.start <= record.start
            assert record.end <= parent.end


def test_metrics_of_work_that_was_done_before_the_mirror_was_there_are_no_segment():
    story = Story()
    span = story.span("default")
    story.span_tree.add_metrics(span, {("execute", "g", "thread-cpu", "seconds"): 4.0}, story.now)
    story.pass_time(20)
    assert story.close() == []


KEY = ("execute", "g", "thread-cpu", "seconds")
#: The same of a segment, which sums over prefixes.
TOTAL = ("execute", None, *KEY[2:])


def test_a_metric_that_is_no_number_spoils_no_sum():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.span_tree.add_metrics(span, {KEY: 1.0, ("execute", "g", "loss", "count"): float("nan")}, story.now)
    story.finish(span, "g", 100, 101)
    story.pass_time(20)
    (segment,) = segments(story.records)
    assert (segment.metrics, segment.metrics_complete) == ({TOTAL: 1.0}, False)


def test_metrics_held_for_a_child_and_then_for_its_parent_open_the_parent_once():
    story = Story()
    parent, child = story.span("a"), story.span("a", "b")
    story.begin(child, "g")
    story.finish(child, "g", 100, 101)
    story.pass_time(20)
    story.span_tree.add_metrics(child, {KEY: 1.0}, story.now)
    story.now += 5
    story.span_tree.add_metrics(parent, {KEY: 2.0}, story.now)
    last_child, last_parent = segments(story.close())
    assert last_parent.start <= last_child.start <= last_child.end <= last_parent.end
    assert last_parent.metrics == {TOTAL: 3.0}


def test_a_clock_that_steps_back_leaves_children_inside():
    story = Story()
    parent, child = story.span("a"), story.span("a", "b")
    story.begin(parent, "h")
    story.begin(child, "g")
    story.now = 110
    story.finish(child, "g", 100, 110)
    story.pass_time(8)
    story.now = 108
    story.close()
    child_segment, parent_segment = segments(story.records)
    assert child_segment.end == 110 <= parent_segment.end


def test_a_span_older_than_the_mirror_starts_with_its_first_activity():
    story = Story()
    span = story.span("service")
    story.span_tree.forest.born = story.now + 1  # the span was there before
    story.now = 7300
    story.begin(span, "g")
    story.finish(span, "g", 7300, 7301)
    story.pass_time(20)
    (segment,) = segments(story.records)
    assert (segment.start, segment.end) == (7300, 7301)


def test_a_cut_remembers_who_owes_metrics():
    story = Story(max_segment=60)
    span = story.span("a")
    story.begin(span, "g", 2)
    story.pass_time(59.5)
    story.finish(span, "g", 100, 159.4, unfinished=1)
    story.pass_time(1, step=0.6, beats=False)
    story.leave(WORKER)
    story.finish(span, "g", 100, 161, worker="tcp://other")
    assert [segment.metrics_complete for segment in segments(story.records + story.close())][-1] is False


def test_a_segment_that_cannot_be_made_takes_no_other_with_it():
    story = Story()
    for name in ("bad", "good"):
        story.begin(story.span(name), "g")
        story.finish(name, "g", 100, 101)
    story.pass_time(1)
    story.span_tree.forest.nodes["bad"].load = None  # breaks close_segment
    with pytest.raises(AttributeError):
        story.close()
    assert [segment.name for segment in segments(story.close())] == ["good"]


def test_what_was_said_of_a_span_in_which_nothing_happens_is_not_kept():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(10)
    story.span_tree.add_graph(Graph(span, clients=("Client-x",)), story.now)  # its results are there already
    story.pass_time(1)
    node = story.span_tree.forest.nodes["a"]
    assert node.ledger is None
    assert not story.span_tree.forest.held


def test_a_worker_that_leaves_concerns_only_the_segments_that_wait_for_it():
    """With 20,000 spans open, each worker that left once took a look at all of them, on the event loop."""
    story = Story()
    story.join("other")
    for number in range(100):
        story.begin(story.span("root", f"span {number}"), "g", 2)
    story.finish("root/span 7", "g", 100, 101, worker="other", unfinished=1)
    steps = list(story.span_tree.add_worker_event("left", "other"))
    assert len(steps) == 2  # the one segment that waits for it, and the worker
    assert story.span_tree.owed._waiting == {}
    incomplete = {segment.name for segment in segments(story.close()) if not segment.metrics_complete}
    assert incomplete == {"span 7", "root"}


def test_a_worker_that_comes_back_under_its_address_owes_for_what_it_runs_then():
    story = Story()
    span = story.span("a")
    story.begin(span, "g")
    story.finish(span, "g", 100, 101)
    story.pass_time(3)
    story.leave(WORKER)
    story.join(WORKER)
    story.begin(span, "g")
    story.finish(span, "g", 101, 102)
    story.pass_time(20)
    (segment,) = segments(story.records)
    assert segment.metrics_complete


def test_the_parent_of_new_tasks_while_a_default_root_is_cut():
    """Tasks may be submitted between two steps of the cut: their segment is named in the trace in which it opens."""
    story = Story(max_segment=10.0)
    root = story.span("default")
    story.change(root, "load", tasks=1, unfinished=1, load=Load(processing=1))
    named = set()
    for _ in range(2):
        story.now += 11.0
        steps = story.span_tree.advance(story.now)
        named |= {story.span_tree.parent_segment(root, root, story.now) for _ in steps}
    assert story.span_tree.forest.nodes[root].segment.trace_id == trace_id(root, 2)
    assert named == {None, (1, 1), (2, 2)}
