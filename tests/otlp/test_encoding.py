"""Requests are byte for byte what OpenTelemetry's own encoder makes of the SDK's spans; lines of JSON say the same."""

from __future__ import annotations

import json
from base64 import b64encode
from types import MappingProxyType

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceState
from support.large import large_trace
from support.records import CALLER, INFO, group, pending, phase, root_segment, segment, task

from dask_otel.otlp.encoding import SpanEncoder
from dask_otel.otlp.folder import JsonEncoder
from dask_otel.otlp.sampling import Decided
from dask_otel.otlp.spans import SpanFactory
from dask_otel.spantree.events import TaskError
from dask_otel.spantree.records import Failure, Link

RESOURCE = Resource({"service.name": "dask-scheduler", "numbers": [1, 2]}, "https://example.com/schema")
SCOPE = InstrumentationScope("dask_otel", "1.2.3")
RECORDS = [
    *(segment(), group(), root_segment(), task(), phase(), pending()),
    segment(failure=None),
    segment(top=INFO, caller=CALLER, parent_id=CALLER.span_id),
    segment(top=INFO, caller=CALLER._replace(is_sampled=False), parent_id=CALLER.span_id),
    group(top=INFO, caller=CALLER),
]


def check(records, limits=None, decided=None):
    """Compare requests of whole spans and of bare ones."""
    options = {"decided": lambda record: decided} if decided else {}
    factory = SpanFactory(RESOURCE, SCOPE, limits or SpanLimits(), **options)
    encoder, lines = SpanEncoder(factory), JsonEncoder(factory)
    for name in ("span", "bare"):
        request = encoder.request(map(getattr(encoder, name), records))
        expected = encode_spans(list(map(getattr(factory, name), records)))
        assert request == expected
        assert of_line(lines.request(map(getattr(lines, name), records))) == expected
        assert request.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def of_line(line):
    """Read a line as protobuf does, which has base64 in the place of OTLP's hexadecimal ids."""
    assert line.startswith(b'{"resourceSpans"')
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")

    def with_base64(holder):
        for name, value in holder.items():
            if name in ("traceId", "spanId", "parentSpanId"):
                assert value == value.lower()
                holder[name] = b64encode(bytes.fromhex(value)).decode()

        return holder

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(line, object_hook=with_base64, parse_constant=refuse)
    return ParseDict(document, ExportTraceServiceRequest())


def test_each_kind():
    for record in RECORDS:
        check([record])
    check(RECORDS)


def test_a_large_trace():
    check(large_trace()[::20])


@pytest.mark.parametrize("limit", [0, 1, 3, None])
def test_limits(limit):
    limits = SpanLimits(
        max_span_attributes=limit, max_events=limit, max_links=limit, max_event_attributes=limit,
        max_link_attributes=limit, max_attribute_length=limit,
    )  # fmt: skip
    check(RECORDS, limits)


def test_what_a_sampler_adds():
    values = {"a": (1, 2), "c": 1.5, "d": True, "f": ["x", "y"], "i": 2**70, "j": (1.5, 2.5), "k": (True, False)}
    values |= {"nan": float("inf")}
    check(RECORDS, decided=Decided(True, MappingProxyType(values), TraceState([("vendor", "1"), ("other", "2")])))


@given(
    st.text(), st.text(), st.text(), st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**64 - 1), max_size=40), st.floats(0, 2e9), st.dictionaries(st.text(), st.text()),
)  # fmt: skip
def test_any_text_and_number(name, message, type_, trace_id, span_id, links, start, annotations):
    common = {"name": name, "trace_id": trace_id, "span_id": span_id, "start": start, "end": start + 1}
    links = [Link(trace_id, each, "dependency") for each in links]
    error = TaskError(type_, message, name)
    check(
        [
            segment(**common, annotations={each: [value] for each, value in annotations.items()}),
            group(**common, links=links, failure=Failure(type_, message, erred=1)),
            task(**common, failure=Failure(type_, message), run=task().run._replace(key=message, error=error)),
        ]
    )
