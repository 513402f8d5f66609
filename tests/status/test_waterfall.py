"""The rows of a run's waterfall."""

from __future__ import annotations

from random import Random

import pytest

from dask_otel import schema
from dask_otel.status.waterfall import MAX_ERRORS, MAX_OPEN_ROWS, waterfall


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


def test_errors_first_the_first_of_each_message():
    top = a_span("top", error="3 tasks erred; first: no", **{schema.ERROR_TYPE: "ValueError"})
    group = a_span("group", "top", schema.GROUP, error="3 tasks erred; first: no", **{schema.ERROR_TYPE: "ValueError"})
    tasks = [
        a_span(f"task {n}", "group", schema.TASK, n / 10, error=message, **{schema.ERROR_TYPE: "ValueError"})
        for n, message in enumerate(("no", "never", "no"))
    ]
    alone = a_span("alone", "top", schema.GROUP, error="failed upstream", **{schema.ERROR_TYPE: "ValueError"})
    drawn = waterfall([top, group, *tasks, alone])
    assert [(row.id, same) for row, same in drawn.errors] == [("task 0", 1), ("task 1", 0), ("alone", 0)]
    assert {row.brief_error for row in drawn.rows if row.children} == {"ValueError: 3 tasks erred"}
    many = [a_span(f"{n}", "top", schema.TASK, error=f"{n}") for n in range(MAX_ERRORS + 7)]
    drawn = waterfall([top, *many])
    assert (len(drawn.errors), drawn.more_errors) == (MAX_ERRORS, 7)


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
        assert len(opened) == 201
    elif show:
        assert opened == set()
    else:  # the top has more children than are to be open; still, what failed is seen
        assert opened == {"top", "span 70", "group 70"}
        assert len(opened) <= MAX_OPEN_ROWS


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
    assert row.remarks == ("2 retried", "3 failed tasks without a span")
    assert (row.tasks, row.compute, row.busy, row.duration) == ("7", "1.50 s", "88%", "1.00 s")
    assert dict(row.attributes)["a list"] == "x, y"
    assert dict(row.attributes)["bad"] == "nan"
