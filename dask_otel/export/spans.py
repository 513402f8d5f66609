"""Records to OTel spans, one pure function.

``ReadableSpan`` is built directly: a tracer's ``start_span`` takes no span id and costs eight times as much. A test
compares the result with what a tracer makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ..mirror.records import Record
from .conventions import Attributes, attributes, error_description, exception_event, identity
from .sampling import Decided
from .text import MAX_NAME, clean, clean_items

__all__ = ["SpanFactory"]

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
#: What else a group depends on is named in an attribute.
MAX_LINKS = 32


class SpanFactory:
    """Makes OTel spans of one process.

    Parameters
    ----------
    resource
        What process.
    scope
        Who made the spans: this package.
    limits
        The standard ``OTEL_*_LIMIT`` variables.
    redact
        Takes out of a record what must not be shown.
    decided
        Says what the sampler decided of a trace, by its id.
    """

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        limits: SpanLimits,
        redact: Callable[[Record], Record] = lambda record: record,
        decided: Callable[[int], Decided] = lambda trace_id: Decided(takes=True),
    ) -> None:
        self._redact = redact
        self._decided = decided
        self._resource = resource
        self._scope = scope
        self._limits = limits

    def span(self, record: Record) -> ReadableSpan:
        """Make a span of a record."""
        record = self._redact(record)
        failure = record.failure
        status = Status(StatusCode.ERROR, clean(error_description(failure))) if failure else Status(StatusCode.UNSET)
        return self._make(record, attributes(record), self._events(record), self._links(record), status)

    def bare(self, record: Record) -> ReadableSpan:
        """Make a span of what identifies a record: something in the rest cannot be converted, and it has children."""
        record = self._redact(record)
        values = identity(record) | {"dask.dropped.attributes": True}
        return self._make(record, values, (), (), Status(StatusCode.ERROR if record.failure else StatusCode.UNSET))

    def _make(
        self, record: Record, values: Attributes, events: Sequence[Event], links: Sequence[Link], status: Status
    ) -> ReadableSpan:
        limits = self._limits
        _, extra, state = self._decided(record.trace_id)
        if record.parent_id is None:
            values = values | dict(extra)
        return ReadableSpan(
            name=clean(record.name, MAX_NAME) or "(no name)",
            context=_context(record.trace_id, record.span_id, state),
            parent=None if record.parent_id is None else _context(record.trace_id, record.parent_id, state),
            resource=self._resource,
            attributes=_bounded(values, limits.max_span_attributes, limits.max_span_attribute_length),
            events=events,
            links=links,
            kind=SpanKind.INTERNAL,
            status=status,
            start_time=_nanoseconds(record.start),
            end_time=_nanoseconds(record.end),
            instrumentation_scope=self._scope,
        )

    def _links(self, record: Record) -> Sequence[Link]:
        limits = self._limits
        most = MAX_LINKS if limits.max_links is None else min(MAX_LINKS, limits.max_links)
        links: BoundedList[Link] = BoundedList(most)
        for link in record.links[:most]:
            attributes = _bounded(
                {"dask.link.type": link.kind}, limits.max_link_attributes, limits.max_attribute_length
            )
            links.append(Link(_context(link.trace_id, link.span_id), attributes))
        links.dropped = len(record.links) - len(links)
        return links

    def _events(self, record: Record) -> Sequence[Event]:
        limits = self._limits
        events: BoundedList[Event] = BoundedList(limits.max_events)
        exception = exception_event(record)
        if exception:
            attributes = _bounded(exception, limits.max_event_attributes, limits.max_attribute_length)
            events.append(Event("exception", attributes, _nanoseconds(record.end)))
        return events


def _bounded(values: Attributes, limit: int | None, longest: int | None) -> BoundedAttributes:
    """Clean the values and keep the first ``limit`` of them; the SDK alone would keep the last."""
    kept = list(values.items())[:limit]
    bounded = BoundedAttributes(
        limit,
        # Cut here: the SDK warns of each value that it cuts.
        {clean(name, MAX_NAME): _clean(value, longest) for name, value in kept},
        max_value_len=longest,
    )
    bounded.dropped = len(values) - len(kept)
    return bounded


def _context(trace_id: int, span_id: int, state: TraceState | None = None) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state)


def _clean(value: str | bool | int | float | list[str], longest: int | None) -> str | bool | int | float | list[str]:
    if isinstance(value, str):
        return clean(value)[:longest]
    if isinstance(value, list):
        return [item[:longest] for item in clean_items(value)]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # OTLP's ints have 64 bits
        return float(value)
    return value


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
