"""The rows of a run's waterfall."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from dask_otel import schema
from dask_otel.spantree.to_records import MAX_OPEN_GROUPS, MAX_OPEN_SEGMENTS, MAX_OPEN_TASKS
from dask_otel.status.waterfall import (
    MAX_ALL_ERRORS,
    MAX_CHILDREN,
    MAX_ERRORS,
    MAX_OPEN_ROWS,
    SHOWN_CHILDREN,
    waterfall,
)


def a_span(id_, parent="", kind="span", start=0.0, end=1.0, error=None, **attributes):
    return {
        "id": id_,
        "parent": parent,
        "is_top": not parent,
        "kind": kind,
        "name": id_,
        "start": start,
        "end": end,
        "error": error,
        "attributes": attributes,
        "links": [],
        "exception": None,
    }


def test_the_documentation_names_the_limits_that_hold():
    text = " ".join((Path(__file__).parents[2] / "docs/health.md").read_text(encoding="utf-8").split())
    assert f"up to {MAX_ERRORS} of them, and up to {MAX_ALL_ERRORS} if you open it" in text
    assert f"contains more than {MAX_CHILDREN} others, the page shows {SHOWN_CHILDREN} of them" in text
    assert f"up to {MAX_OPEN_SEGMENTS} spans, {MAX_OPEN_GROUPS} groups and {MAX_OPEN_TASKS} failed tasks" in text


def test_parents_before_children_in_order_of_time():
    random = Random(7)
    spans = [a_span("0", end=100.0)]
    for number in range(1, 300):
        parent = random.choice(spans)
        start = random.uniform(parent["start"], parent["end"])
        spans.append(a_span(f"{number}", parent["id"], start=start, end=random.uniform(start, parent["end"])))
    random.shuffle(spans)
    drawn = waterfall(spans)
    by_id = {span["id"]: span for span in spans}
    path = []  # what is around the row
    starts = {}
    for row, following in zip(drawn.rows, [*drawn.rows[1:], None], strict=True):
        assert [each.id for each in path][-1:] == [each for each in [by_id[row.id]["parent"]] if each]
        assert row.depth == len(path)
        assert starts.get(row.depth, 0.0) <= row.start
        starts[row.depth], starts[row.depth + 1] = row.start, 0.0
        assert 0 <= row.left <= row.left + row.width <= 100.001
        if row.children:
            path.append(row)
        else:
            assert row.closes == row.depth - (following.depth if following else 0)
            del path[len(path) - row.closes :]
    assert path == []
    assert len(drawn.rows) == 300


def test_what_has_lost_its_parent_is_below_the_top():
    rows = waterfall([a_span("top"), a_span("lost", "left-out"), a_span("other", "top")]).rows
    assert [(row.id, row.depth) for row in rows] == [("top", 0), ("lost", 1), ("other", 1)]


def test_a_caller_s_run_whose_parent_is_elsewhere():
    span = a_span("top", "of-the-caller") | {"is_top": True}
    assert [(row.id, row.depth) for row in waterfall([span]).rows] == [("top", 0)]


def test_a_run_without_any_duration():
    (row,) = waterfall([a_span("top", start=1.0, end=1.0)]).rows
    assert (row.left, row.width) == (0, 0)


def failed_task(id_, parent, name, message, type_="ValueError", start=0.0):
    span = a_span(id_, parent, schema.TASK, start, error=message, **{schema.ERROR_TYPE: type_})
    return span | {"name": name}


def listed(drawn):
    return [(each.row.id, each.same, each.others, each.unseen) for each in drawn.errors]


def test_failed_tasks_before_groups_that_failed_alone():
    top = a_span("top", error="3 tasks erred; first: no", **{schema.ERROR_TYPE: "ValueError"})
    group = a_span("group", "top", schema.GROUP, error="3 tasks erred; first: no", **{schema.ERROR_TYPE: "ValueError"})
    tasks = [
        failed_task(f"task {n}", "group", "fit", each, start=n / 10) for n, each in enumerate(("no", "never", "no"))
    ]
    upstream = {"error": "2 tasks failed upstream", schema.ERROR_TYPE: "ValueError"}
    alone = [a_span(f"alone {n}", "top", schema.GROUP, n / 10, **upstream) for n in (1, 2)]
    drawn = waterfall([top, group, *tasks, *alone])
    assert listed(drawn) == [("task 0", 1, 0, 0), ("task 1", 0, 0, 0), ("alone 1", 1, 0, 0)]
    assert {row.brief_error for row in drawn.rows if row.children} == {"3 tasks erred"}


def test_a_graph_that_could_not_be_taken_in():
    failed = {"error": "1 graph could not be taken in", schema.ERROR_TYPE: "_OTHER"}
    drawn = waterfall([a_span("top", **failed), a_span("phase", "top", schema.PHASE, 0.1, **failed)])
    assert [(row.kind, row.depth, row.error) for row in drawn.rows] == [
        ("span", 0, "_OTHER: 1 graph could not be taken in"),
        ("phase", 1, "_OTHER: 1 graph could not be taken in"),
    ]
    assert listed(drawn) == [("phase", 0, 0, 0)]


def test_many_failures_of_a_kind_do_not_hide_another():
    """Messages that differ only in numbers are alike; of others, two of a name and type are listed."""
    top = a_span("top", error="41 tasks erred", **{schema.ERROR_TYPE: "ValueError"})
    groups = [a_span(f"group {n}", "top", schema.GROUP, error="erred") | {"name": "load"} for n in range(4)]
    groups[1]["attributes"][schema.TRUNCATED_TASKS] = 7
    rows = [
        failed_task(f"row {n}", f"group {n % 3}", "load", f"row {n} at 0x7f{n:02x}", start=n / 50) for n in range(40)
    ]
    odd = [failed_task(f"odd {n}", "group 2", "load", f"{'abcd'[n] * 3}!", start=0.9) for n in range(4)]
    real = failed_task("key", "group 3", "load", "the real reason", "KeyError", start=0.99)
    drawn = waterfall([top, *groups, *rows, *odd, real])
    assert listed(drawn) == [("row 0", 39, 0, 0), ("odd 0", 0, 3, 7), ("key", 0, 0, 0)]
    by_id = {row.id: row for row in drawn.rows}
    assert by_id["group 3"].is_open
    assert by_id["group 0"].is_open
    assert sum(len(row.children) for row in drawn.rows if row.is_open) <= MAX_OPEN_ROWS


@pytest.mark.parametrize("number", [MAX_ERRORS + 7, MAX_ALL_ERRORS + 7])
def test_every_kind_of_failure_is_listed_or_counted(number):
    top = a_span("top")
    drawn = waterfall([top, *(failed_task(f"{n}", "top", f"function {n}", "no") for n in range(number))])
    assert len(drawn.errors) == min(number, MAX_ALL_ERRORS)
    assert drawn.more_errors == max(0, number - MAX_ALL_ERRORS)
    assert [row.kind for row in drawn.rows if row.depth == 1] == ["task"] * SHOWN_CHILDREN + ["more"]
    folded = next(row for row in drawn.rows if row.kind == "more")
    assert (folded.failed, folded.is_open) == (number - SHOWN_CHILDREN, False)


def test_many_groups_are_folded_but_for_failed_running_and_long_ones():
    spans = [a_span("top", end=1000.0)]
    spans += [a_span(f"{n:03}", "top", schema.GROUP, n, n + 1 + n * 7 % 500 / 500) for n in range(500)]
    spans[11] |= {"error": "no"}
    spans[21] |= {"is_running": True}
    drawn = waterfall(spans)
    shown = [row for row in drawn.rows if row.depth == 1]
    longest = [f"{n:03}" for n in range(500) if n * 7 % 500 >= 492]
    assert [row.id for row in shown] == [*sorted(["010", "020", *longest]), "topmore"]
    drawn = waterfall(spans, "all")
    folded = next(row for row in drawn.rows if row.kind == "more")
    assert (folded.name, len(folded.children), folded.is_open) == ("490 more groups", 490, True)
    assert sum(row.closes for row in drawn.rows if not row.children) == sum(bool(row.children) for row in drawn.rows)
    assert waterfall([spans[0], *spans[1:16]]).rows[-1].kind == "group"


@pytest.mark.parametrize("show", ["", "all", "none", "<other>"])
def test_what_is_open(show):
    spans = [a_span("top")]
    for number in range(100):
        failure = {"error": "no"} if number == 70 else {}
        spans += [
            a_span(f"span {number:02}", "top", start=number / 100, **failure),
            a_span(f"group {number:02}", f"span {number:02}", schema.GROUP, start=number / 100, **failure),
            a_span(f"task {number:02}", f"group {number:02}", schema.TASK, start=number / 100, **failure),
        ]
    opened = {row.id for row in waterfall(spans, show).rows if row.is_open}
    if show == "all":
        assert len(opened) == 202  # one holds those that are folded
    elif show:
        assert opened == set()
    else:
        assert {"top", "span 70", "group 70"} <= opened
        assert MAX_OPEN_ROWS / 2 < len(opened) <= MAX_OPEN_ROWS


def test_remarks_and_numbers():
    attributes = {
        schema.TASK_COUNT: 7,
        schema.TASK_OUTCOMES["retried"]: 2,
        schema.TRUNCATED_TASKS: 3,
        schema.DURATION("compute"): 1.5,
        schema.EFFICIENCY: 0.876,
        "a list": ["x", "y"],
        "bad": float("nan"),
    }
    (row,) = waterfall([a_span("top", **attributes)]).rows
    assert row.remarks == ("2 retried", "3 more failed tasks")
    assert (row.tasks, row.compute, row.busy, row.duration) == ("7", "1.5 s", "88%", "1 s")
    assert dict(row.attributes)["a list"] == "x, y"
    assert dict(row.attributes)["bad"] == "nan"
    truncated = {schema.TRUNCATED_GROUPS: 700, schema.TRUNCATED_TASKS: 1}
    (row,) = waterfall([a_span("top", **truncated)]).rows
    assert row.remarks == ("includes 700 groups without a row", "1 more failed task")
    below = a_span("other groups", "top", schema.GROUP, **{schema.GROUP_FOLDED: 700, schema.TRUNCATED_TASKS: 1})
    top, group = waterfall([a_span("top", **truncated), below]).rows
    assert (top.remarks, group.remarks) == ((), ("700 smaller groups summed up here", "1 more failed task"))


def test_the_axis_of_a_run_that_is_not_over_ends_now():
    drawn = waterfall([a_span("top", end=2.0)], until=4.0)
    assert drawn.rows[0].width == 50
    assert drawn.ticks == [(0, "0"), (25, "1 s"), (50, "2 s"), (75, "3 s"), (100, "4 s")]
