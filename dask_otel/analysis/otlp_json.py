"""Spans from OTLP in JSON, as backends and exporters write it.

All forms in use are read: camelCase and snake_case, ids in hexadecimal or base64, 64-bit numbers as text or numbers,
enumerations by name or number.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import LoadError

__all__ = ["PlainSpan", "documents", "is_traces", "spans_of"]

#: Keys of an object that holds an export request, or a trace: what backends put around it.
_WRAPPERS = ("result", "trace")
#: Keys of the list of spans by resource; Tempo's first API calls it ``batches``.
_BY_RESOURCE = ("resourceSpans", "resource_spans", "batches")
#: The collector's file exporter can write other signals to the same file.
_OTHER_SIGNALS = ("resourceMetrics", "resourceLogs", "resourceProfiles")
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "ok", "error")
_DOUBLES = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(slots=True)
class PlainSpan:
    """A span as plain data. Ids are lower-case hexadecimal, times nanoseconds since the epoch, 0 if unknown."""

    trace_id: str
    span_id: str
    #: Empty for a root.
    parent_id: str
    name: str
    #: ``internal``, ``server``, ``client``, ``producer``, ``consumer`` or ``unspecified``.
    kind: str
    start: int
    end: int
    #: ``unset``, ``ok`` or ``error``.
    status: str
    status_message: str
    attributes: dict[str, Any]
    #: Trace id, span id and attributes of each.
    links: tuple[tuple[str, str, dict[str, Any]], ...]
    #: Name, time and attributes of each.
    events: tuple[tuple[str, int, dict[str, Any]], ...]
    #: Attributes of the resource; one object for all spans of a resource.
    resource: dict[str, Any] = field(default_factory=dict)


def documents(text: str) -> Iterator[Any]:
    """Yield the JSON documents that a text consists of, one behind the other, as streaming APIs send them.

    Raises
    ------
    ValueError
        If it is not JSON.
    """
    decoder, at, length = json.JSONDecoder(), 0, len(text)
    while True:
        while at < length and text[at] in " \t\r\n":
            at += 1
        if at == length:
            return
        try:
            document, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        yield document


def is_traces(document: Any) -> bool:
    """Whether an object is OTLP: a request with spans, perhaps wrapped as backends do, or one of another signal."""
    if not isinstance(document, Mapping):
        return False
    keys = (*_BY_RESOURCE, *_OTHER_SIGNALS)
    return any(key in document for key in keys) or any(is_traces(document.get(key)) for key in _WRAPPERS)


def spans_of(document: Any) -> Iterator[PlainSpan]:
    """Yield the spans of an export request, or of an answer of a backend. One of another signal has none.

    Raises
    ------
    LoadError
        If it is neither.
    """
    try:
        if not is_traces(document):
            raise LoadError(f"not OTLP in JSON: {_hint(document)}")
        for key in _WRAPPERS:
            if is_traces(document.get(key)):
                yield from spans_of(document[key])
        for by_resource in _list(document, *_BY_RESOURCE):
            resource = _attributes(_get(by_resource, "resource", default={}))
            for by_scope in _list(by_resource, "scopeSpans", "scope_spans", "instrumentationLibrarySpans"):
                for span in _list(by_scope, "spans"):
                    yield _span(span, resource)
    except LoadError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise LoadError(f"not OTLP in JSON: a span in it cannot be read ({type(error).__name__}: {error})") from error


def _span(span: Mapping[str, Any], resource: dict[str, Any]) -> PlainSpan:
    status = _get(span, "status", default={})
    return PlainSpan(
        trace_id=_id(_get(span, "traceId", "trace_id", default=""), 32),
        span_id=_id(_get(span, "spanId", "span_id", default=""), 16),
        parent_id=_id(_get(span, "parentSpanId", "parent_span_id", default=""), 16),
        name=str(_get(span, "name", default="")),
        kind=_enumerated(_get(span, "kind", default=0), _KINDS, "SPAN_KIND_"),
        start=_time(_get(span, "startTimeUnixNano", "start_time_unix_nano", default=0)),
        end=_time(_get(span, "endTimeUnixNano", "end_time_unix_nano", default=0)),
        status=_enumerated(_get(status, "code", default=0), _STATUSES, "STATUS_CODE_"),
        status_message=str(_get(status, "message", default="")),
        attributes=_attributes(span),
        links=tuple(
            (
                _id(_get(link, "traceId", "trace_id", default=""), 32),
                _id(_get(link, "spanId", "span_id", default=""), 16),
                _attributes(link),
            )
            for link in _list(span, "links")
        ),
        events=tuple(
            (
                str(_get(event, "name", default="")),
                _time(_get(event, "timeUnixNano", "time_unix_nano", default=0)),
                _attributes(event),
            )
            for event in _list(span, "events")
        ),
        resource=resource,
    )


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a span, a link, an event or a resource; one without a value is absent."""
    return _entries(holder.get("attributes") or ())


def _entries(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    values = ((str(entry.get("key", "")), _value(entry.get("value") or {})) for entry in entries)
    return {name: value for name, value in values if value is not None}


def _value(value: Mapping[str, Any]) -> Any:
    """Return an ``AnyValue``: a list is a tuple; None if it is empty, or of a type that later versions may have."""
    for kind, content in value.items():
        if content is not None and (read := _READ.get(kind) or _READ.get(_camel_case(kind))):
            return read(content)
    return None


def _camel_case(key: str) -> str:
    first, *others = key.split("_")
    return first + "".join(map(str.capitalize, others))


def _bool(content: Any) -> bool:
    return content if isinstance(content, bool) else str(content).lower() == "true"


def _double(content: Any) -> float:
    return float(_DOUBLES.get(content, content))


def _array(content: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(map(_value, content.get("values") or ()))


def _mapping(content: Mapping[str, Any]) -> dict[str, Any]:
    return _entries(content.get("values") or ())


#: What reads a value, by its key in ``AnyValue``.
_READ: dict[str, Callable[[Any], Any]] = {
    "stringValue": str,
    "boolValue": _bool,
    "intValue": int,
    "doubleValue": _double,
    "bytesValue": b64decode,
    "arrayValue": _array,
    "kvlistValue": _mapping,
}


def _id(written: Any, digits: int) -> str:
    """Return an id as lower-case hexadecimal; empty if it is all zeros, as some write what is absent.

    Protobuf's own form of JSON has base64 in its place, which Tempo sends; the two differ in length.
    """
    text = str(written or "")
    if not text:
        return ""
    if len(text) != digits and len(text.rstrip("=")) == -(-digits * 2 // 3):
        text = b64decode(text + "=" * (-len(text) % 4)).hex()
    text = text.lower()
    if not text.strip("0"):
        return ""
    int(text, 16)
    return text.rjust(digits, "0")


def _time(written: Any) -> int:
    """Return a time; 0 if it is none that OTLP can have."""
    time = int(written)
    return time if 0 <= time < 2**64 else 0


def _enumerated(code: Any, words: tuple[str, ...], prefix: str) -> str:
    if isinstance(code, str) and not code.isdecimal():
        word = code.removeprefix(prefix).lower()
        return word if word in words else words[0]
    return words[int(code)] if 0 <= int(code) < len(words) else words[0]


def _get(holder: Mapping[str, Any], *keys: str, default: Any) -> Any:
    for key in keys:
        if (value := holder.get(key)) is not None:
            return value
    return default


def _list(holder: Mapping[str, Any], *keys: str) -> Any:
    return _get(holder, *keys, default=())


def _hint(document: Any) -> str:
    """Describe what was found in the place of OTLP."""
    if not isinstance(document, Mapping):
        return f"a {type(document).__name__} in the place of an object with resourceSpans"
    data = document.get("data")
    if isinstance(data, list) and data and isinstance(data[0], Mapping) and "processes" in data[0]:
        return "it is Jaeger's older format, as its page saves it; save /api/v3/traces/<trace id> instead"
    keys = ", ".join(map(str, list(document)[:5])) or "nothing"
    return f"an object with {keys} in the place of resourceSpans"
