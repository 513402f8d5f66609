from __future__ import annotations

import io

import pytest
from rich.console import Console

from dask_otel.cli.receiver import Span
from dask_otel.cli.waterfall import waterfall


def span(name, span_id, parent, start, end, *, kind="group", status="Unset", message="", **attributes):
    return Span(
        name=name,
        trace_id="t",
        span_id=span_id,
        parent_id=parent,
        start=start,
        end=end,
        attributes={"dask.kind": kind, **{f"dask.{n.replace('__', '.')}": v for n, v in attributes.items()}}
        | ({"error.type": "ValueError"} if status == "Error" else {}),
        links=(),
        status=status,
        status_message=message,
        resource={},
    )


def draw(spans, width=20):
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(waterfall(spans, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_draws_a_tree_with_bars():
    spans = [
        span("root", "1", "", 0, 100, kind="span", task__count=3, duration__compute=61.5, efficiency=0.5),
        span("late", "3", "1", 50, 100, kind="span", status="Error", message="1 task erred", task__count=1),
        span("early", "2", "1", 0, 50, kind="span", task__count=2, task__retried=1),
        span("inc", "4", "2", 0, 2, task__count=2, duration__compute=0.02),
    ]
    assert draw(spans) == [
        "span and task groups  when                  duration  tasks   compute  busy  what happened",
        "root                  ████████████████████  100.00 s      3   61.50 s   50%",
        "├─ early              ██████████             50.00 s      2                  1 retried",
        "│  └─ inc             ▍                       2.00 s      2  20.00 ms",
        "└─ late                         ██████████   50.00 s      1                  ValueError: 1 task erred",
    ]


def test_a_bar_never_vanishes_and_a_span_without_its_parent_is_shown():
    lines = draw([span("instant", "1", "gone", 5, 5), span("other", "2", "gone", 5, 6)])
    assert "▏" in lines[1]
    assert len(lines) == 3


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no spans"):
        waterfall([])


def test_markup_in_names_is_shown_as_it_is():
    assert "[bold]x[/]" in draw([span("[bold]x[/]", "1", "", 0, 1)])[1]
