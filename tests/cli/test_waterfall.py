from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
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


def draw(spans, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(waterfall(spans, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


WORKFLOW = [
    span("root", "1", "", 0, 100, kind="span", task__count=3, duration__compute=61.5, efficiency=0.5),
    span("late", "3", "1", 50, 100, kind="span", status="Error", message="1 task erred", task__count=1),
    span("early", "2", "1", 0, 50, kind="span", task__count=2, task__retried=1),
    span("inc", "4", "2", 0, 2, task__count=2, duration__compute=0.02),
    span("inc", "5", "4", 0, 2, kind="task"),
    span("root (running)", "6", "", 0, 20, kind="pending"),
]


def test_draws_a_tree_with_bars():
    assert draw(WORKFLOW, 112) == [
        "what            when                            duration  tasks   compute  busy  what happened",
        "root            ██████████████████████████████  100.00 s      3   61.50 s   50%",
        "├─ early        ███████████████                  50.00 s      2                  1 retried",
        "│  └─ inc       ▋                                 2.00 s      2  20.00 ms",
        "│     └─ ◦ inc  ▋                                 2.00 s",
        f"└─ late        {' ' * 16}███████████████   50.00 s      1                  1 task erred; first: ValueError",
    ]


def test_in_a_narrow_terminal_what_happened_is_below_the_row():
    assert draw(WORKFLOW, 50) == [
        "what            when               duration  tasks",
        "root            █████████████████  100.00 s      3",
        "├─ early        ████████▌           50.00 s      2",
        "│  │  1 retried",
        "│  └─ inc       ▍                    2.00 s      2",
        "│     └─ ◦ inc  ▍                    2.00 s",
        "└─ late                 █████████   50.00 s      1",
        "      1 task erred; first: ValueError",
    ]


MESSAGE = "3 tasks erred; first: the feature store at feature-store.example.com did not answer within 30.0 seconds " * 4


@pytest.mark.parametrize("width", [40, 60, 80, 100, 110, 200])
def test_no_line_is_too_long_and_no_word_is_broken(width):
    failed = {"kind": "span", "status": "Error", "message": MESSAGE, "task__count": 123456, "efficiency": 1.0}
    deep = [
        span(f"a rather long name of level {n}", f"{n}", f"{n - 1}", 0, 10000, duration__compute=99999.0, **failed)
        for n in range(6)
    ]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(waterfall(deep, width))
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert all(len(line.split("a rather")) <= 2 for line in lines)
    known = {*MESSAGE.split(), "ValueError:", "…"}
    below = [line for line in lines[1:] if not re.search(r"[├└█]|^a rather", line)]
    assert len(below) >= 6
    assert {word for line in below for word in line.replace("│", " ").split()} <= known


def test_a_bar_never_vanishes_and_a_span_without_its_parent_is_shown():
    lines = draw([span("instant", "1", "gone", 5, 5), span("other", "2", "gone", 5, 6)])
    assert "▏" in lines[1]
    assert len(lines) == 3


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no spans"):
        waterfall([], 80)


def test_markup_in_names_is_shown_as_it_is():
    assert "[bold]x[/]" in draw([span("[bold]x[/]", "1", "", 0, 1)])[1]
