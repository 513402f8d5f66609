"""Any span, in each form of JSON that is in use, is read as what it is."""

from __future__ import annotations

import json
import math
from base64 import b64decode

import pandas as pd
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from dask_otel.analysis import LoadError, load
from dask_otel.analysis.otlp_json import documents, spans_of

TEXT = st.text(max_size=20)
INT64 = st.integers(-(2**63), 2**63 - 1)
PLAIN = st.one_of(TEXT, st.booleans(), INT64, st.floats(), st.binary(max_size=10))
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
ATTRIBUTES = st.dictionaries(TEXT, VALUES, max_size=5)
NANOSECONDS = st.integers(0, 2**63 - 1)


def any_value(value):
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, tuple):
        return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=entries(value)))
    return AnyValue(string_value=value)


def entries(attributes):
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


@st.composite
def requests(draw):
    """A request, and the spans that are in it."""
    request, expected = ExportTraceServiceRequest(), []
    for _ in range(draw(st.integers(1, 2))):
        by_resource = request.resource_spans.add()
        resource = draw(ATTRIBUTES)
        by_resource.resource.attributes.extend(entries(resource))
        for _ in range(draw(st.integers(0, 2))):
            ids = [draw(st.binary(min_size=n, max_size=n).filter(any)) for n in (16, 8)]
            parent = draw(st.just(b"") | st.binary(min_size=8, max_size=8).filter(any))
            times, name, message = draw(st.tuples(NANOSECONDS, NANOSECONDS)), draw(TEXT), draw(TEXT)
            kind, code, attributes, extra = (
                draw(st.integers(0, 5)),
                draw(st.integers(0, 2)),
                draw(ATTRIBUTES),
                draw(TEXT),
            )
            span = Span(
                trace_id=ids[0], span_id=ids[1], parent_span_id=parent, name=name, kind=kind,
                start_time_unix_nano=times[0], end_time_unix_nano=times[1], attributes=entries(attributes),
                events=[Span.Event(name=extra, time_unix_nano=times[0], attributes=entries(attributes))],
                links=[Span.Link(trace_id=ids[0], span_id=ids[1], attributes=entries(resource))],
            )  # fmt: skip
            span.status.code, span.status.message = code, message
            by_resource.scope_spans.add().spans.append(span)
            hexadecimal = [each.hex() for each in (*ids, parent)]
            kinds = ("unspecified", "internal", "server", "client", "producer", "consumer")
            links, events = ((*hexadecimal[:2], resource),), ((extra, times[0], attributes),)
            status = (("unset", "ok", "error")[code], message)
            expected.append((*hexadecimal, name, kinds[kind], *times, *status, attributes, links, events, resource))
    return request, expected


def with_hexadecimal(document, change):
    """OTLP's own JSON has ids in hexadecimal, where protobuf's has base64."""

    def changed(holder):
        for name, value in holder.items():
            if name.lower().replace("_", "") in ("traceid", "spanid", "parentspanid"):
                holder[name] = change(b64decode(value).hex())
        return holder

    return json.loads(json.dumps(document), object_hook=changed)


def same(one, other):
    """Equal, where NaN equals itself, and types count."""
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


@settings(deadline=None, max_examples=50)
@given(requests())
def test_each_form_says_the_same(made):
    request, expected = made
    plain = MessageToDict(request)
    forms = [
        plain,
        MessageToDict(request, preserving_proto_field_name=True),
        MessageToDict(request, use_integers_for_enums=True, always_print_fields_with_no_presence=True),
        with_hexadecimal(plain, str.lower),
        with_hexadecimal(plain, str.upper),
        {"result": plain},
        {"trace": plain},
        {"batches": plain.get("resourceSpans", [])},
    ]
    for form in filter(bool, forms):
        found = [tuple(getattr(span, name) for name in span.__slots__) for span in spans_of(form)]
        assert same(found, expected), form


def nested(document, outer):
    """Put a document into others, so deep that Python gives up."""
    for _ in range(5000):
        document = outer(document)
    return document


def with_attribute(value, key="a", **more):
    """A request with one span, which has one attribute."""
    span = {"traceId": "1" * 32, "spanId": "2" * 16, "attributes": [{"key": key, "value": value}]} | more
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def test_what_is_no_trace_is_described():
    for document, described in (
        ([], "a list in the place of an object with resourceSpans"),
        ({"a": 1, "b": 2}, "an object with a, b in the place of resourceSpans"),
        ({"data": [{"traceID": "a", "spans": [], "processes": {}}]}, "Jaeger's older format"),
        ({"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "nothing"}]}]}]}, "a span in it cannot be read"),
        ({"resourceSpans": [{"scopeSpans": [{"spans": [7]}]}]}, "a span in it cannot be read"),
        (nested({"resourceSpans": []}, lambda inner: {"result": inner}), "a span in it cannot be read"),
        (
            with_attribute(nested({"stringValue": ""}, lambda inner: {"arrayValue": {"values": [inner]}})),
            "a span in it cannot be read",
        ),
    ):
        with pytest.raises(LoadError, match=described):
            list(spans_of(document))
    assert list(spans_of({"resourceMetrics": [{}]})) == []


def test_names_that_are_none_and_times_that_no_clock_has():
    times = {"startTimeUnixNano": "1" + "0" * 400, "endTimeUnixNano": -1}
    (span,) = load(with_attribute({"stringValue": "x"}, 5, **times)).others.to_dict("records")
    assert span["5"] == "x"
    assert span["start"] is span["end"] is pd.NaT
    assert math.isnan(span["duration"])


def test_documents_one_behind_the_other():
    assert list(documents(' {"a": 1}\n\n{"b": [2]} [3]\t')) == [{"a": 1}, {"b": [2]}, [3]]
    with pytest.raises(ValueError, match="Expecting"):
        list(documents('{"a": 1} {'))
    with pytest.raises(ValueError, match="nested too deeply"):
        list(documents("[" * 100_000))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), min_size=1, max_size=5))
def test_attributes_of_any_type_survive_as_columns(rows):
    spans = [
        {
            "traceId": "1".rjust(32, "0"),
            "spanId": f"{number + 1:016x}",
            "startTimeUnixNano": str(number + 1),
            "attributes": MessageToDict(KeyValueList(values=entries(row))).get("values", []),
        }
        for number, row in enumerate(rows)
    ]
    runs = load({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
    for number, row in enumerate(rows):
        for name, value in row.items():
            found = runs.others[name].iloc[number]
            if str(runs.others[name].dtype) == "Float64" and value != value:  # pandas takes it for a missing value
                assert found is runs.others["parent_id"].iloc[0]
            elif str(runs.others[name].dtype) == "object":
                assert same(found, value)
            else:
                assert found == value
    assert list(runs.others["span_id"]) == [span["spanId"] for span in spans]
