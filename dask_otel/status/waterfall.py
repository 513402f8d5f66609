"""A run as a waterfall: its rows, parents before children, each with a bar for its time.

The rows come as plain data (``otlp/recent_runs.py``). ``rows.html`` draws them: nested ``<details>``, bars as SVG.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import sleep
from typing import Any

from dask.utils import format_time

from .. import schema

__all__ = ["Row", "Waterfall", "waterfall"]

#: Rows that are open at first, about, and messages of failed spans above the waterfall.
MAX_OPEN_ROWS = 40
MAX_ERRORS = 20
#: Rows that are drawn at a time, which takes a millisecond and, as pieces of a template, 0.5 MiB; and seconds of rest.
ROWS_AT_ONCE = 12
REST = 0.0005
#: Names of kinds of spans on the page.
_KINDS = {schema.SEGMENT: "span", schema.GROUP: "group", schema.TASK: "task"}


@dataclass
class Row:
    """What the page shows of a span."""

    id: str
    name: str
    #: ``span``, ``group`` or ``task``.
    kind: str
    #: Number of rows around it.
    depth: int
    start: float
    end: float
    #: Begin and width of the bar, in percent.
    left: float
    width: float
    #: ``dask.span.result`` of a segment.
    result: str
    #: None if the status is not Error.
    error: str | None
    #: Texts for columns; empty if not known.
    duration: str
    tasks: str
    compute: str
    busy: str
    #: What else is worth a remark: ``slow``, ``3 retried``.
    remarks: tuple[str, ...]
    attributes: list[tuple[str, str]]
    #: Type, message and stack trace of the exception of a failed task.
    exception: tuple[str, str, str] | None
    #: Kind of the link, id of the row if the run has it, and its name or the id of the trace.
    links: list[tuple[str, str, str]]
    children: list[Row] = field(default_factory=list)
    is_open: bool = False
    #: How many of the rows around it end with it.
    closes: int = 0

    @property
    def brief_error(self) -> str:
        """How much failed, without the first message, if failed rows below have it."""
        error = self.error or ""
        return error.partition("; first: ")[0] if self.has_failed_child else error

    @property
    def has_failed_child(self) -> bool:
        """Whether a row below it has failed."""
        return any(child.error is not None for child in self.children)


@dataclass
class Waterfall:
    """A run, ready to be drawn."""

    #: In the order of the page.
    rows: list[Row]
    #: Failed spans below which nothing failed, tasks before groups and spans: the first of each message, and how many
    #: others have the same.
    errors: list[tuple[Row, int]]
    #: How many more messages there are.
    more_errors: int
    #: Times at equal distances, the first and the last at the ends.
    ticks: list[str]

    def parts(self) -> Iterator[list[Row]]:
        """Yield some rows at a time, and rest in between: the event loop must not wait for the interpreter lock."""
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            sleep(REST)
            yield self.rows[start : start + ROWS_AT_ONCE]


def waterfall(spans: Sequence[Mapping[str, Any]], show: str = "") -> Waterfall:
    """Arrange the spans of a run.

    Parameters
    ----------
    spans
        At least one.
    show
        Which rows are open: ``all``, ``none``, or by default those around failed spans, and some more.
    """
    begin = min(span["start"] for span in spans)
    whole = max(span["end"] for span in spans) - begin or 1.0
    names = {span["id"]: span["name"] for span in spans}
    rows = {span["id"]: _row(span, begin, whole, names) for span in spans}
    tops = [span["id"] for span in spans if span["is_top"]]
    roots: list[Row] = []
    for span in spans:
        row, parent = rows[span["id"]], rows.get(span["parent"])
        if parent is None and not span["is_top"] and tops:  # its parent was left out
            parent = rows[tops[0]]
        (parent.children if parent else roots).append(row)
    ordered = list(_ordered(roots))
    for row, following in zip(ordered, [*ordered[1:], ordered[0]], strict=True):
        row.closes = max(0, row.depth - following.depth)
    _open(ordered, roots, show)
    order = {"task": 0, "group": 1, "span": 2}
    by_message: dict[str, list[Row]] = {}
    for row in sorted(ordered, key=lambda row: (order[row.kind], row.start)):
        if row.error is not None and not row.has_failed_child:
            by_message.setdefault(row.error, []).append(row)
    errors = [(same[0], len(same) - 1) for same in by_message.values()]
    ticks = [format_time(whole * part / 4) if part else "0" for part in range(5)]
    return Waterfall(ordered, errors[:MAX_ERRORS], max(0, len(errors) - MAX_ERRORS), ticks)


def _ordered(roots: list[Row]) -> Iterator[Row]:
    """Yield rows before their children, all in order of time, and note how deep in the tree they are."""

    def latest_first(rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: (row.start, row.end, row.name), reverse=True)

    waiting = latest_first(roots)
    while waiting:
        row = waiting.pop()
        for child in row.children:
            child.depth = row.depth + 1
        waiting += latest_first(row.children)
        yield row


def _open(ordered: list[Row], roots: list[Row], show: str) -> None:
    """Choose which rows are open."""
    parents = {id(child): row for row in ordered for child in row.children}
    if show == "all":
        for row in ordered:
            row.is_open = bool(row.children)
    if show:
        return
    room = MAX_OPEN_ROWS

    def open_path(row: Row | None) -> None:
        nonlocal room
        while row and not row.is_open:
            row.is_open = True
            room -= len(row.children)
            row = parents.get(id(row))

    for row in roots:
        open_path(row)
    failed = [row for row in ordered if row.error is not None and not row.has_failed_child][:MAX_ERRORS]
    slow = [row for row in ordered if row.kind == "task" and row.error is None]
    spans = [row for row in ordered if row.kind == "span" and row.children]
    paths = [*(parents.get(id(row)) for row in failed), *spans, *(parents.get(id(row)) for row in slow)]
    for number, path in enumerate(paths):
        if room > 0 or (failed and number == 0):
            open_path(path)


def _row(span: Mapping[str, Any], begin: float, whole: float, names: Mapping[str, str]) -> Row:
    attributes = span["attributes"]
    left = min(max(0.0, 100 * (span["start"] - begin) / whole), 100.0)
    compute, busy = attributes.get(schema.DURATION("compute")), attributes.get(schema.EFFICIENCY)
    exception = span["exception"]
    return Row(
        id=span["id"],
        name=span["name"],
        kind=_KINDS.get(span["kind"], "span"),
        depth=0,
        start=span["start"],
        end=span["end"],
        left=left,
        width=min(max(0.0, 100 * (span["end"] - span["start"]) / whole), 100.0 - left),
        result=str(attributes.get(schema.SPAN_RESULT, "")),
        error=_error(span),
        duration=format_time(span["end"] - span["start"]),
        tasks=str(attributes.get(schema.TASK_COUNT, "")),
        compute="" if compute is None else format_time(compute),
        busy="" if busy is None else f"{busy:.0%}",
        remarks=tuple(_remarks(attributes)),
        attributes=[(name, _text(value)) for name, value in attributes.items()],
        exception=(
            exception.get(schema.EXCEPTION_TYPE, ""),
            exception.get(schema.EXCEPTION_MESSAGE, ""),
            exception.get(schema.EXCEPTION_STACKTRACE, ""),
        )
        if exception
        else None,
        links=[
            (kind, span_id if span_id in names else "", names.get(span_id, f"trace {trace_id}"))
            for trace_id, span_id, kind in span["links"]
        ],
    )


def _error(span: Mapping[str, Any]) -> str | None:
    if span["error"] is None:
        return None
    type_ = span["attributes"].get(schema.ERROR_TYPE, "error")
    return f"{type_}: {span['error']}" if span["error"] else str(type_)


def _remarks(attributes: Mapping[str, Any]) -> Iterator[str]:
    if attributes.get(schema.TASK_PICKED) in ("outlier", "slowest"):
        yield "slow"
    for outcome in ("retried", "cancelled", "lost", "recomputed"):
        if count := attributes.get(schema.TASK_OUTCOMES[outcome]):
            yield f"{count} {outcome}"
    for name, what in ((schema.TRUNCATED_GROUPS, "groups"), (schema.TRUNCATED_TASKS, "failed tasks")):
        if count := attributes.get(name):
            yield f"{count} {what} without a span"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float) and isfinite(value):
        return f"{value:.6g}"
    return str(value)
