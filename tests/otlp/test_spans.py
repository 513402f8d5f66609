from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from support.records import CALLER, INFO, group, pending, phase, root_segment, segment, task

from dask_otel.otlp.spans import SpanFactory, attributes, error_description, exception_event

RESOURCE = Resource({"service.name": "test"})
SCOPE = InstrumentationScope("dask_otel", "1.0")


def made_by_a_tracer(record, limits):
    """The same span, made the way the SDK wants it."""

    class Ids(IdGenerator):
        def generate_trace_id(self):
            return record.trace_id

        def generate_span_id(self):
            return record.span_id

    def context(trace_id, span_id):
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1))

    exporter = InMemorySpanExporter()
    provider = TracerProvider(ALWAYS_ON, RESOURCE, id_generator=Ids(), span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent, kind = None, SpanKind.INTERNAL
    if record.parent_id is not None:
        above = context(record.trace_id, record.parent_id)
        if record.is_top:
            kind = SpanKind.SERVER
            above = SpanContext(*CALLER[:2], is_remote=True, trace_flags=TraceFlags(record.caller.is_sampled))
        parent = set_span_in_context(NonRecordingSpan(above))
    span = provider.get_tracer("dask_otel", "1.0").start_span(
        record.name,
        context=parent,
        kind=kind,
        attributes=attributes(record),
        links=[Link(context(link.trace_id, link.span_id), {"dask.link.type": link.kind}) for link in record.links],
        start_time=round(record.start * 1e9),
    )
    exception = exception_event(record)
    if exception:
        span.add_event("exception", exception, round(record.end * 1e9))
    if record.failure:
        span.set_status(Status(StatusCode.ERROR, error_description(record.failure)))
    span.end(round(record.end * 1e9))
    (finished,) = exporter.get_finished_spans()
    provider.shutdown()
    return finished


@pytest.mark.parametrize(
    "record",
    [
        *(segment(), group(), root_segment(), task(), phase(), pending()),
        segment(top=INFO, caller=CALLER, parent_id=CALLER.span_id),
        segment(top=INFO, caller=CALLER._replace(is_sampled=False), parent_id=CALLER.span_id),
        group(top=INFO, caller=CALLER),
    ],
    ids=["segment", "group", "root", "task", "phase", "pending", "called", "called unsampled", "in a called one"],
)
def test_is_what_a_tracer_would_have_made(record):
    limits = SpanLimits()
    ours = SpanFactory(RESOURCE, SCOPE, limits).span(record)
    theirs = made_by_a_tracer(record, limits)
    assert encode_spans([ours]) == encode_spans([theirs])
    assert ours.to_json() == theirs.to_json()


def test_limits_keep_the_first_and_count_the_rest():
    record = segment()
    factory = SpanFactory(RESOURCE, SCOPE, SpanLimits(max_span_attributes=4, max_links=0, max_span_attribute_length=5))
    span = factory.span(record)
    assert span.attributes == {
        "dask.kind": "span", "dask.span.id": "dask-", "dask.span.path": "Alice", "dask.span.root": "Alice",
    }  # fmt: skip
    assert span.dropped_attributes == len(attributes(record)) - 4
    assert span.dropped_links == 1


def test_success_leaves_the_status_unset():
    span = SpanFactory(RESOURCE, SCOPE, SpanLimits()).span(segment(failure=None))
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("name", ["", "\ud800", "x" * 10_000, "🙂" * 3000, "\x00\x1b[31m"])
def test_any_name_can_be_sent(name):
    span = SpanFactory(RESOURCE, SCOPE, SpanLimits()).span(segment(name=name))
    data = encode_spans([span]).SerializeToString()
    assert 0 < len(data) < 10_000
    assert span.name
