"""A run as a waterfall: its rows, parents before children, each with a bar for its time.

The rows come as plain data (``otlp/recent_runs.py``). ``rows.html`` draws them: nested ``<details>``, bars as SVG.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import sleep
from typing import Any

from .. import schema
from .reasons import Reasons, reasons
from .texts import duration, number_of, ticks

__all__ = ["FailedLike", "Row", "Waterfall", "waterfall"]

#: Rows that are open at first, about.
MAX_OPEN_ROWS = 40
#: Failures above the waterfall, at first and in all; and of each kind, messages that differ in more than a number.
MAX_ERRORS = 20
MAX_ALL_ERRORS = 100
MESSAGES_OF_A_KIND = 2
#: Beyond so many rows inside another one, all but some are folded.
MAX_CHILDREN = 15
SHOWN_CHILDREN = 10
#: Rows that are drawn at a time, which takes a millisecond and, as pieces of a template, 0.5 MiB; and seconds of rest.
ROWS_AT_ONCE = 12
REST = 0.0005
#: Numbers, addresses and ids in a message.
_NUMBER = re.compile(r"[0-9a-fA-F]*\d[0-9a-fA-F]*")
#: Names of kinds of spans on the page.
_KINDS = {schema.SEGMENT: "span", schema.GROUP: "group", schema.TASK: "task", schema.PHASE: "phase"}


@dataclass
class Row:
    """What the page shows of a span."""

    id: str
    name: str
    #: ``span``, ``group``, ``task`` or ``phase``; ``more`` for rows that are folded.
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
    #: Type of the exception, if it failed.
    error_type: str
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
    #: Whether it has unfinished tasks.
    is_running: bool = False
    #: Of the rows that are folded, how many failed.
    failed: int = 0
    #: Of its failed tasks, how many have no row.
    unseen: int = 0
    #: Groups that have no row, and are included in its numbers.
    unseen_groups: int = 0
    #: How many of the rows around it end with it.
    closes: int = 0

    @property
    def label(self) -> str:
        """The name, without the middle of a long one."""
        return schema.shorten(self.name, 100)

    @property
    def brief_error(self) -> str:
        """How much failed, without the first message, if failed rows below have it."""
        error = self.error or ""
        return error.partition(schema.FIRST)[0] if self.has_failed_child else error

    @property
    def has_failed_child(self) -> bool:
        """Whether a row below it has failed."""
        return any(child.error is not None for child in self.children)


@dataclass
class FailedLike:
    """A row below which nothing failed, and how many others failed alike."""

    row: Row
    #: Others of the same name and type of exception, of which the messages differ in numbers at most.
    same: int
    #: Others of the same name and type, with messages that are not among the failures shown.
    others: int = 0
    #: Failed tasks of the same groups that have no row.
    unseen: int = 0


@dataclass
class Waterfall:
    """A run, ready to be drawn."""

    #: In the order of the page.
    rows: list[Row]
    #: Tasks that failed before groups and spans.
    errors: list[FailedLike]
    #: How many more kinds of failures there are.
    more_errors: int
    #: Round times: where each is, in percent of the bars' width, and its text.
    ticks: list[tuple[float, str]]
    #: Why it took long, as far as that is known.
    reasons: list[Reasons]

    def parts(self) -> Iterator[list[Row]]:
        """Yield some rows at a time, and rest in between: the event loop must not wait for the interpreter lock."""
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            sleep(REST)
            yield self.rows[start : start + ROWS_AT_ONCE]


def waterfall(spans: Sequence[Mapping[str, Any]], show: str = "", until: float = 0.0) -> Waterfall:
    """Arrange the spans of a run.

    Parameters
    ----------
    spans
        At least one.
    show
        Which rows are open: ``all``, ``none``, or by default those around failed spans, and some more.
    until
        Where the axis ends, if that is later than the last end of a span: now, for a run that is not over.
    """
    begin = min(span["start"] for span in spans)
    whole = max(until, *(span["end"] for span in spans)) - begin or 1.0
    names = {span["id"]: span["name"] for span in spans}
    rows = {span["id"]: _row(span, begin, whole, names) for span in spans}
    tops = [span["id"] for span in spans if span["is_top"]]
    roots: list[Row] = []
    for span in spans:
        row, parent = rows[span["id"]], rows.get(span["parent"])
        if parent is None and not span["is_top"] and tops:  # its parent was left out
            parent = rows[tops[0]]
        (parent.children if parent else roots).append(row)
    errors, more_errors = _errors(rows.values())
    shown = {id(each.row) for each in errors}
    for row in rows.values():
        _note_unseen(row)
        _fold(row, shown)
    ordered = list(_ordered(roots))
    for row, following in zip(ordered, [*ordered[1:], ordered[0]], strict=True):
        row.closes = max(0, row.depth - following.depth)
    _open(ordered, roots, [each.row for each in errors], show)
    return Waterfall(ordered, errors, more_errors, ticks(whole), reasons(spans))


def _errors(rows: Iterable[Row]) -> tuple[list[FailedLike], int]:
    """Choose failures to show, so that each name and type is among them, and count the names and types left out."""
    order = {"task": 0, "phase": 1, "group": 1, "span": 2}
    #: By what failed and the type, then by message without numbers. Names of groups often end with a number, too.
    kinds: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    unseen: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: (order[row.kind], row.start)):
        if row.kind == "group" and row.has_failed_child:
            unseen[row.name] = unseen.get(row.name, 0) + row.unseen
        if row.error is not None and not row.has_failed_child:
            name = row.name if row.kind == "task" else _NUMBER.sub("#", row.name)
            messages = kinds.setdefault((row.kind, name, row.error_type), {})
            messages.setdefault(_NUMBER.sub("#", row.error), []).append(row)
    shown = list(kinds.values())[:MAX_ALL_ERRORS]
    room = MAX_ERRORS - len(shown)
    errors = []
    for messages in shown:
        alike = list(messages.values())
        most = 1 + max(0, min(MESSAGES_OF_A_KIND - 1, room, len(alike) - 1))
        room -= most - 1
        errors += [FailedLike(same[0], len(same) - 1) for same in alike[:most]]
        errors[-1].others = sum(map(len, alike[most:]))
        if errors[-1].row.kind == "task":  # of which type they are is not known: once for all types
            errors[-1].unseen = unseen.pop(errors[-1].row.name, 0)
    return errors, len(kinds) - len(shown)


def _fold(row: Row, errors: Collection[int]) -> None:
    """Fold the children of a row but for failures that are shown, other failures, running and long ones."""
    if len(row.children) <= MAX_CHILDREN:
        return

    def rank(child: Row) -> tuple[bool, bool, bool, float]:
        has_error = id(child) in errors or any(id(each) in errors for each in child.children)
        return not has_error, child.error is None, not child.is_running, child.start - child.end

    kept = {id(child) for child in sorted(row.children, key=rank)[:SHOWN_CHILDREN]}
    folded = [child for child in row.children if id(child) not in kept]
    kinds = {child.kind for child in folded}
    start, left = min(child.start for child in folded), min(child.left for child in folded)
    end, right = max(child.end for child in folded), max(child.left + child.width for child in folded)
    row.children = [child for child in row.children if id(child) in kept]
    row.children.append(
        Row(
            id=f"{row.id}more",
            name=number_of(len(folded), f"more {kinds.pop() if len(kinds) == 1 else 'row'}"),
            kind="more",
            depth=0,
            start=start,
            end=end,
            left=left,
            width=right - left,
            result="",
            error=None,
            error_type="",
            duration=duration(end - start),
            tasks="",
            compute="",
            busy="",
            remarks=(),
            attributes=[],
            exception=None,
            links=[],
            children=folded,
            failed=sum(child.error is not None for child in folded),
        )
    )


def _ordered(roots: list[Row]) -> Iterator[Row]:
    """Yield rows before their children, all in order of time, and note how deep in the tree they are."""

    def latest_first(rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: (row.kind == "more", row.start, row.end, row.name), reverse=True)

    waiting = latest_first(roots)
    while waiting:
        row = waiting.pop()
        for child in row.children:
            child.depth = row.depth + 1
        waiting += latest_first(row.children)
        yield row


def _open(ordered: list[Row], roots: list[Row], failed: list[Row], show: str) -> None:
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
        above = row
        while above:
            if above.kind == "more":
                return  # it may hold hundreds of rows
            above = parents.get(id(above))
        while row and not row.is_open:
            row.is_open = True
            room -= len(row.children)
            row = parents.get(id(row))

    for row in roots:
        open_path(row)
    running = [row for row in ordered if row.is_running]
    slow = [row for row in ordered if row.kind == "task" and row.error is None]
    spans = [row for row in ordered if row.kind == "span" and row.children]
    paths = [*(parents.get(id(row)) for row in (*failed, *running)), *spans, *(parents.get(id(row)) for row in slow)]
    for number, path in enumerate(paths):
        if room > 0 or number < min(len(failed), MAX_ERRORS):
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
        error_type=str(attributes.get(schema.ERROR_TYPE, "error")),
        duration=duration(span["end"] - span["start"]),
        tasks=f"{attributes[schema.TASK_COUNT]:,}" if schema.TASK_COUNT in attributes else "",
        compute="" if compute is None else duration(compute),
        busy="" if busy is None else f"{busy:.0%}",
        remarks=tuple(_remarks(span)),
        is_running=span.get("is_running", False),
        unseen=attributes.get(schema.TRUNCATED_TASKS, 0),
        unseen_groups=attributes.get(schema.GROUP_FOLDED, 0) or attributes.get(schema.TRUNCATED_GROUPS, 0),
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
    return schema.typed_error(str(span["attributes"].get(schema.ERROR_TYPE, "error")), span["error"])


def _remarks(span: Mapping[str, Any]) -> Iterator[str]:
    attributes = span["attributes"]
    if span.get("is_running"):
        yield "running"
    if attributes.get(schema.TASK_PICKED) in ("outlier", "slowest"):
        yield "slow"
    for outcome in ("retried", "cancelled", "lost", "recomputed"):
        if count := attributes.get(schema.TASK_OUTCOMES[outcome]):
            yield f"{count:,} {outcome}"


def _note_unseen(row: Row) -> None:
    """Add how much has no row of its own, if no row inside says so."""
    if row.unseen_groups and not any(child.unseen_groups for child in row.children):
        groups = number_of(row.unseen_groups, "smaller group" if row.kind == "group" else "group")
        row.remarks += (f"{groups} summed up here" if row.kind == "group" else f"includes {groups} without a row",)
    if row.unseen and not any(child.unseen for child in row.children):
        row.remarks += (number_of(row.unseen, "more failed task"),)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float) and isfinite(value):
        return f"{value:.6g}"
    return str(value)
