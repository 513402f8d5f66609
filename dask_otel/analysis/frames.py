"""Spans to tidy data frames: a row for each span, a column for each attribute, with the types of ``schema/``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from .. import schema
from .errors import LoadError
from .otlp_json import PlainSpan

__all__ = ["FRAMES", "make_frames", "without_repeats"]

#: Kinds of attributes by frame, as ``schema.Attribute.on`` has them. A frame has a column for each of them whose name
#: has no placeholder, even where no span has it.
FRAMES: dict[str, tuple[str, ...]] = {
    "spans": (schema.SEGMENT,),
    "groups": (schema.GROUP,),
    "tasks": (schema.TASK,),
    "phases": (schema.PHASE, schema.CLIENT_PHASE),
    "others": (),
}
#: Frame by ``dask.kind``.
_FRAME_OF = {
    schema.SEGMENT: "spans",
    schema.PENDING: "spans",
    schema.GROUP: "groups",
    schema.TASK: "tasks",
    schema.ACTOR_CALL: "tasks",
    schema.PHASE: "phases",
}
#: Ints have 64 bits; a time beyond is none.
_LEAST, _GREATEST = -(2**63), 2**63 - 1
_SERVICE = "service.name"

#: Extension types of pandas, whose missing values are ``NA``.
_STRING, _INT, _DOUBLE, _BOOL = "string", "Int64", "Float64", "boolean"
#: Of lists, as tuples, and of values of several types.
_TUPLE = _ANY = "object"
_DTYPES: dict[str, str] = {
    "string": _STRING,
    "int": _INT,
    "double": _DOUBLE,
    "bool": _BOOL,
}
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def without_repeats(spans: Iterable[PlainSpan]) -> list[PlainSpan]:
    """Return each span once, and no pending span of a segment that is there.

    A batch whose answer was lost is sent again. Of the pending spans of a segment that is not there, the last one is
    kept: the others say less.
    """
    once: dict[tuple[str, str], PlainSpan] = {}
    for span in spans:
        once.setdefault((span.trace_id, span.span_id), span)
    last: dict[tuple[str, str], PlainSpan] = {}
    for span in once.values():
        key = (span.trace_id, span.parent_id)
        if _kind(span) == schema.PENDING and (key not in last or last[key].end < span.end):
            last[key] = span
    return [
        span
        for span in once.values()
        if _kind(span) != schema.PENDING
        or ((span.trace_id, span.parent_id) not in once and last[span.trace_id, span.parent_id] is span)
    ]


def make_frames(spans: Sequence[PlainSpan]) -> dict[str, Any]:
    """Return a data frame for each name in ``FRAMES``, and one named ``links``.

    Raises
    ------
    LoadError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise LoadError(
            f"pandas is needed to load traces, and cannot be imported ({error}): pip install 'dask-otel[analysis]'"
        ) from error
    rows: dict[str, list[PlainSpan]] = {name: [] for name in FRAMES}
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        rows[_frame_of(span)].append(span)
    frames = {name: _frame(pd, name, each) for name, each in rows.items()}
    frames["links"] = _links(pd, spans)
    return frames


def _kind(span: PlainSpan) -> Any:
    return span.attributes.get(schema.KIND)


def _frame_of(span: PlainSpan) -> str:
    kind = _kind(span)
    if kind is None and schema.PHASE_NAME in span.attributes:  # of an instrumented client
        return "phases"
    return _FRAME_OF.get(kind, "others") if isinstance(kind, str) else "others"


def _frame(pd: Any, name: str, spans: Sequence[PlainSpan]) -> Any:
    ids = {
        "trace_id": [span.trace_id for span in spans],
        "span_id": [span.span_id for span in spans],
        "parent_id": [span.parent_id or None for span in spans],
        "name": [span.name for span in spans],
        "service": [_text(span.resource.get(_SERVICE)) for span in spans],
        "kind": [span.kind for span in spans],
    }
    columns = {column: pd.array(values, dtype=_STRING) for column, values in ids.items()}
    for column, times in (("start", [span.start for span in spans]), ("end", [span.end for span in spans])):
        columns[column] = _times(pd, times)
    columns["duration"] = pd.array(
        [(span.end - span.start) / 1e9 if span.start and span.end else float("nan") for span in spans], dtype="float64"
    )
    columns["status"] = pd.array([span.status for span in spans], dtype=_STRING)
    columns["status_message"] = pd.array([span.status_message or None for span in spans], dtype=_STRING)
    attributes = [_all_attributes(span, with_resource=name == "spans") for span in spans]
    columns |= {
        attribute: _column(pd, attribute, values)
        for attribute, values in _by_attribute(FRAMES[name], attributes).items()
        if attribute not in columns
    }
    return pd.DataFrame(columns)


def _all_attributes(span: PlainSpan, *, with_resource: bool) -> dict[str, Any]:
    """Return the attributes of a span, of its exception, and of its resource."""
    found: dict[str, Any] = {}
    if with_resource:
        found |= {name: value for name, value in span.resource.items() if name != _SERVICE}
    for event, _, values in span.events:
        if event == "exception":
            found |= values
            break
    return found | span.attributes


def _by_attribute(kinds: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Values by attribute, in the order of the schema, then those it does not have by name; None where it is absent."""
    names = {
        name: None
        for name, attribute in schema.ATTRIBUTES.items()
        if "<" not in name and not {*kinds}.isdisjoint(attribute.on)
    }
    there = {name for row in rows for name in row} - names.keys()
    order = {name: number for number, name in enumerate(schema.ATTRIBUTES)}
    for name in sorted(there, key=lambda name: (order.get(_schema_name(name) or "", len(order)), name)):
        names[name] = None
    return {name: [row.get(name) for row in rows] for name in names}


@lru_cache(4096)
def _schema_name(name: str) -> str | None:
    """Name of an attribute in the schema, where it may have placeholders; None if it is not in there."""
    if name in schema.ATTRIBUTES:
        return name
    return next((known for known, pattern in _patterns() if pattern.fullmatch(name)), None)


@lru_cache(1)
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [
        # Names of annotations are the user's, and may have any character.
        (name, re.compile(re.sub(r"<(\w+)>", lambda found: ".+" if found[1] == "name" else "[^.]+", re.escape(name))))
        for name in schema.ATTRIBUTES
        if "<" in name
    ]


def _dtype(name: str) -> str | None:
    """Type of the column of an attribute of the schema."""
    known = _schema_name(name)
    if known is None:
        return None
    type_ = schema.ATTRIBUTES[known].type
    if type_.endswith("[]"):
        return _TUPLE
    if type_ in _DTYPES:
        return _DTYPES[type_]
    return _INT if name.endswith((".bytes", ".count")) else _DOUBLE  # by unit


def _column(pd: Any, name: str, values: Sequence[Any]) -> Any:
    """Make a column of the values of an attribute, None where it is absent.

    A value that does not fit the schema's type is absent. What is not in the schema has the type of its values, if they
    have one.
    """
    dtype = _dtype(name)
    if dtype is None:
        return pd.Series(values, dtype=_inferred(values)).array
    convert = _CONVERT[dtype]
    converted = [None if value is None else convert(value) for value in values]
    return pd.Series(converted, dtype=dtype).array


def _inferred(values: Iterable[Any]) -> str:
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
        return _BOOL
    if types == {int}:
        return _INT if all(value is None or _LEAST <= value <= _GREATEST for value in values) else _ANY
    if types and types <= {int, float}:
        return _DOUBLE
    return _STRING if types == {str} else _ANY


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else str(value)


def _int(value: Any) -> int | None:
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return number if _LEAST <= number <= _GREATEST and (isinstance(value, str) or number == value) else None


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return None


def _bool(value: Any) -> bool | None:
    word = str(value).lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    _STRING: _text,
    _INT: _int,
    _DOUBLE: _float,
    _BOOL: _bool,
    _TUPLE: _tuple,
}


def _times(pd: Any, nanoseconds: Sequence[int]) -> Any:
    least = -(2**63)  # pandas' number for no time
    known = [number if 0 < number <= _GREATEST else least for number in nanoseconds]
    return pd.DatetimeIndex(pd.array(known, dtype="int64"), tz="UTC").as_unit("ns").array


def _links(pd: Any, spans: Sequence[PlainSpan]) -> Any:
    rows = [
        (span.trace_id, span.span_id, trace_id, span_id, _text(attributes.get(schema.LINK_TYPE)))
        for span in spans
        for trace_id, span_id, attributes in span.links
    ]
    columns = ("trace_id", "span_id", "linked_trace_id", "linked_span_id", "type")
    return pd.DataFrame(
        {column: pd.array([row[number] for row in rows], dtype=_STRING) for number, column in enumerate(columns)}
    )
