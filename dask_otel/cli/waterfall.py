"""Draws a trace as a waterfall in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from .receiver import Span

__all__ = ["waterfall"]

#: Eighths of a character cell, for the ends of a bar.
_PARTIAL = " ▏▎▍▌▋▊▉█"
_COLOURS = {"span": "cyan", "group": "green"}


def waterfall(spans: Sequence[Span], width: int = 30) -> Table:
    """Draw the spans of one trace: a row each, in the order of a tree, with a bar where it lies in time.

    Parameters
    ----------
    width
        Of the bars, in characters.

    Raises
    ------
    ValueError
        If there are no spans.
    """
    if not spans:
        raise ValueError("no spans to draw")
    begin = min(span.start for span in spans)
    whole = max(span.end for span in spans) - begin or 1.0
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True)
    table.add_column("span and task groups", no_wrap=True)
    table.add_column("when", no_wrap=True, min_width=width, max_width=width)
    table.add_column("duration", justify="right", no_wrap=True)
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("compute", justify="right", no_wrap=True)
    table.add_column("busy", justify="right", no_wrap=True)
    table.add_column("what happened", ratio=1)
    for indent, span in _tree(spans):
        failed = span.status == "Error"
        colour = "red" if failed else _COLOURS.get(span.attributes.get("dask.kind", ""), "white")
        style = f"bold {colour}" if span.attributes.get("dask.kind") == "span" else colour
        name = Text().append(indent, style="dim").append(span.name, style=style)
        bar = _bar((span.start - begin) / whole, (span.end - begin) / whole, width)
        compute = span.attributes.get("dask.duration.compute")
        efficiency = span.attributes.get("dask.efficiency")
        table.add_row(
            name,
            Text(bar, style=colour),
            _seconds(span.seconds),
            f"{span.attributes.get('dask.task.count', '')}",
            "" if compute is None else _seconds(compute),
            "" if efficiency is None else f"{efficiency:.0%}",
            Text(_remarks(span), style="red" if failed else ""),
        )
    return table


def _tree(spans: Sequence[Span]) -> Iterator[tuple[str, Span]]:
    """Each span with the lines that lead to it, parents before children, in order of time."""
    ids = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start, span.end, span.name)):
        children.setdefault(span.parent_id if span.parent_id in ids else "", []).append(span)

    def below(parent: str, indent: str, *, top: bool = False) -> Iterator[tuple[str, Span]]:
        siblings = children.get(parent, [])
        for number, span in enumerate(siblings, 1):
            last = number == len(siblings)
            yield ("" if top else indent + ("└─ " if last else "├─ ")), span
            yield from below(span.span_id, "" if top else indent + ("   " if last else "│  "))

    yield from below("", "", top=True)


def _bar(start: float, end: float, width: int) -> str:
    """Draw a bar from ``start`` to ``end``, parts of the whole (0…1); never quite nothing."""
    first = min(int(start * width), width - 1)
    eighths = max(1, round(end * width * 8) - first * 8)
    full, rest = divmod(eighths, 8)
    return " " * first + "█" * full + (_PARTIAL[rest] if rest else "")


def _seconds(seconds: float) -> str:
    if seconds >= 60:
        return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _remarks(span: Span) -> str:
    remarks = []
    if span.status == "Error":
        remarks.append(f"{span.attributes.get('error.type')}: {span.status_message}")
    if retried := span.attributes.get("dask.task.retried"):
        remarks.append(f"{retried} retried")
    return ", ".join(remarks)
