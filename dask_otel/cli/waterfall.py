"""A trace as a waterfall in the terminal: ``dask-otel demo``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dask.utils import format_time
from rich.cells import cell_len
from rich.text import Text

from .. import schema
from .receiver import Span

__all__ = ["SINGLE_TASK", "waterfall"]

#: Before the name of a single task.
SINGLE_TASK = "◦ "
#: Eighths of a character cell, for the ends of a bar.
_PARTIAL = " ▏▎▍▌▋▊▉█"
_COLOURS = {schema.SEGMENT: "cyan", schema.GROUP: "green", schema.PHASE: "magenta"}
#: Heads of the columns with numbers; narrow terminals have only the first two.
_NUMBERS = ("duration", "tasks", "compute", "busy")
_MIN_BAR, _MAX_BAR = 10, 30
_GAP = "  "
#: Lines of what happened in one span.
_MAX_LINES = 4


@dataclass(frozen=True)
class _Row:
    span: Span
    #: Lines of the tree before the name, and before further lines of this span.
    indent: str
    below: str

    @property
    def label(self) -> str:
        name = " ".join(self.span.name.split())
        return f"{SINGLE_TASK}{name}" if self.span.attributes.get(schema.KIND) == schema.TASK else name

    @property
    def numbers(self) -> tuple[str, ...]:
        attributes = self.span.attributes
        compute, efficiency = attributes.get(schema.DURATION("compute")), attributes.get(schema.EFFICIENCY)
        return (
            format_time(self.span.seconds),
            f"{attributes.get(schema.TASK_COUNT, '')}",
            "" if compute is None else format_time(compute),
            "" if efficiency is None else f"{efficiency:.0%}",
        )

    @property
    def remark(self) -> str:
        """What happened, besides taking time."""
        attributes = self.span.attributes
        error = schema.typed_error(str(attributes.get("error.type")), self.span.status_message) if self.failed else ""
        retried = attributes.get(schema.TASK_OUTCOMES["retried"])
        return ", ".join(filter(None, (" ".join(error.split()), f"{retried} retried" if retried else "")))

    @property
    def failed(self) -> bool:
        return self.span.status == "Error"


def waterfall(spans: Sequence[Span], width: int) -> Text:
    """Draw the spans of one trace: one row for each, in the order of a tree, with a bar for its time.

    Pending spans are left out: they show a workflow that was still running.

    Parameters
    ----------
    width
        The largest length of a line, in characters. What happened in a span is at the end of its row if there is room
        for the longest such text, else below the row.

    Raises
    ------
    ValueError
        If there are no spans.
    """
    spans = [span for span in spans if span.attributes.get(schema.KIND) != schema.PENDING]
    if not spans:
        raise ValueError("no spans to draw")
    begin = min(span.start for span in spans)
    whole = max(span.end for span in spans) - begin or 1.0
    rows = list(_tree(spans))
    longest = max(cell_len(row.indent + row.label) for row in rows)
    # The widest set of columns that leaves room for the names, or for two fifths of the line.
    names = max(len("what"), min(longest, width * 2 // 5))
    columns = [
        (title, max(len(title), *(len(row.numbers[place]) for row in rows))) for place, title in enumerate(_NUMBERS)
    ]
    while len(columns) > 2 and width - names - _width(columns) < len(_GAP) + _MIN_BAR:
        columns = columns[:-2]
    bar = max(_MIN_BAR, min(_MAX_BAR, width - names - _width(columns) - len(_GAP)))
    names = max(8, min(longest, width - _width(columns) - len(_GAP) - bar))
    used = names + len(_GAP) + bar + _width(columns)
    beside = used + len(_GAP) + max(len(row.remark) for row in rows) <= width

    head = [_fit(Text("what", style="bold"), names), Text("when".ljust(bar), style="bold")]
    head += [Text(title.rjust(size), style="bold") for title, size in columns]
    lines = [Text(_GAP).join(head)]
    if beside and any(row.remark for row in rows):
        lines[0].append(f"{_GAP}what happened", style="bold")
    for row in rows:
        kind = row.span.attributes.get(schema.KIND, "")
        colour = "red" if row.failed else _COLOURS.get(kind, "default")
        style = f"bold {colour}" if kind == schema.SEGMENT else colour
        name = Text().append(row.indent, style="dim").append(row.label, style=style)
        first, last = ((at - begin) / whole for at in (row.span.start, row.span.end))
        cells = [_fit(name, names), Text(_bar(first, last, bar).ljust(bar), style=colour)]
        cells += [Text(value.rjust(size)) for value, (_, size) in zip(row.numbers, columns, strict=False)]
        lines.append(Text(_GAP).join(cells))
        style = "red" if row.failed else "yellow"
        if beside:
            lines[-1].append(f"{_GAP}{row.remark}" if row.remark else "", style=style)
        else:
            lines += [
                _fit(Text().append(row.below, style="dim").append(part, style=style), width)
                for part in textwrap.wrap(
                    row.remark, max(10, width - len(row.below)), break_long_words=False, break_on_hyphens=False,
                    max_lines=_MAX_LINES, placeholder=" …",
                )
            ]  # fmt: skip
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def _width(columns: Sequence[tuple[str, int]]) -> int:
    return sum(size + len(_GAP) for _, size in columns)


def _fit(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def _tree(spans: Sequence[Span]) -> Iterator[_Row]:
    """Yield a row for each span, parents before children, in order of time."""
    ids = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start, span.end, span.name)):
        children.setdefault(span.parent_id if span.parent_id in ids else "", []).append(span)

    def rows(parent: str, indent: str, *, top: bool = False) -> Iterator[_Row]:
        siblings = children.get(parent, [])
        for number, span in enumerate(siblings, 1):
            last = number == len(siblings)
            inside = "" if top else indent + ("   " if last else "│  ")
            yield _Row(
                span,
                indent="" if top else indent + ("└─ " if last else "├─ "),
                below=inside + ("│  " if span.span_id in children else "   "),
            )
            yield from rows(span.span_id, inside)

    yield from rows("", "", top=True)


def _bar(start: float, end: float, width: int) -> str:
    """Draw a bar from ``start`` to ``end``, parts of the whole (0…1); at least an eighth of a cell."""
    first = min(int(start * width), width - 1)
    eighths = max(1, round(end * width * 8) - first * 8)
    full, rest = divmod(eighths, 8)
    return " " * first + "█" * full + (_PARTIAL[rest] if rest else "")
