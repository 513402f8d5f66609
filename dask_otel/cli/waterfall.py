"""A trace as a waterfall in the terminal: ``dask-otel demo``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dask.utils import format_time
from rich.table import Column, Table
from rich.text import Text

from .. import schema
from .receiver import Span

__all__ = ["waterfall"]

#: Eighths of a character cell, for the ends of a bar.
_PARTIAL = " ▏▎▍▌▋▊▉█"
_COLOURS = {"span": "cyan", "group": "green"}


def waterfall(spans: Sequence[Span], width: int = 30) -> Table:
    """Draw the spans of one trace: one row for each, in the order of a tree, with a bar for its time.

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
    table = Table(
        Column("span and task groups", no_wrap=True),
        Column("when", no_wrap=True, min_width=width, max_width=width),
        *(Column(name, justify="right", no_wrap=True) for name in ("duration", "tasks", "compute", "busy")),
        Column("what happened", ratio=1),
        box=None,
        padding=(0, 1),
        pad_edge=False,
        expand=True,
    )
    for indent, span in _tree(spans):
        attributes = span.attributes
        kind, failed = attributes.get(schema.KIND, ""), span.status == "Error"
        colour = "red" if failed else _COLOURS.get(kind, "white")
        compute, efficiency = attributes.get(schema.DURATION("compute")), attributes.get(schema.EFFICIENCY)
        remarks = [f"{attributes.get('error.type')}: {span.status_message}"] if failed else []
        if retried := attributes.get(schema.TASK_OUTCOMES["retried"]):
            remarks.append(f"{retried} retried")
        table.add_row(
            Text(indent, style="dim").append(span.name, style=f"bold {colour}" if kind == "span" else colour),
            Text(_bar((span.start - begin) / whole, (span.end - begin) / whole, width), style=colour),
            format_time(span.seconds),
            f"{attributes.get(schema.TASK_COUNT, '')}",
            "" if compute is None else format_time(compute),
            "" if efficiency is None else f"{efficiency:.0%}",
            Text(", ".join(remarks), style="red" if failed else ""),
        )
    return table


def _tree(spans: Sequence[Span]) -> Iterator[tuple[str, Span]]:
    """Yield each span with the lines of the tree before its name, parents before children, in order of time."""
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
    """Draw a bar from ``start`` to ``end``, parts of the whole (0…1); at least an eighth of a cell."""
    first = min(int(start * width), width - 1)
    eighths = max(1, round(end * width * 8) - first * 8)
    full, rest = divmod(eighths, 8)
    return " " * first + "█" * full + (_PARTIAL[rest] if rest else "")
