"""Who the caller is, and what its Dask span is called."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, set_span_in_context
from support.inside import Person

from dask_otel.client import callers
from dask_otel.client.callers import MAX_CARRIER, MAX_NAMES, OTHER, Here, carrier_of, find_caller, periods_of, tag_of
from dask_otel.client.submitting import safety

PERSON = Person()
TRACER, FASTAPI = PERSON.provider.get_tracer("web"), PERSON.provider.get_tracer("fastapi")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(callers, "_routes", callers._Names())
    monkeypatch.setattr(callers, "_others", callers._Names())
    monkeypatch.setattr(callers, "_latest", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr("sys.argv", ["/some/where/nightly.py"])
    propagator = propagate.get_global_textmap()
    yield
    propagate.set_global_textmap(propagator)


def here(span, **context):
    return Here(Context(context), None, span)


def request(route, method="GET", *, kind=SpanKind.SERVER, name="GET"):
    return TRACER.start_span(name, kind=kind, attributes={"http.route": route, "http.request.method": method})


def test_a_web_request_has_the_name_of_its_route():
    assert tag_of(here(request("/items/{id}"))) == "GET /items/{id}"
    old = TRACER.start_span("GET", kind=SpanKind.SERVER, attributes={"http.route": "/old", "http.method": "PUT"})
    assert tag_of(here(old)) == "PUT /old"
    assert tag_of(here(request("/other", kind=SpanKind.CLIENT, name="GET /other/7"))) == "GET /other/7"
    assert tag_of(here(TRACER.start_span("GET", kind=SpanKind.SERVER))) == "GET"


def test_fastapis_own_spans_inside_of_a_request():
    endpoint = FASTAPI.start_span("fastapi.endpoint", attributes={"code.function.name": "app.read_item"})
    assert tag_of(here(endpoint, request=SimpleNamespace(span=request("/items/{id}")))) == "GET /items/{id}"
    assert tag_of(here(endpoint, request=SimpleNamespace(span=None), other=7)) == "app.read_item"
    assert tag_of(here(FASTAPI.start_span("fastapi.dependencies"))) == "fastapi.dependencies"


def test_names_are_limited_and_routes_have_a_limit_of_their_own():
    for n in range(MAX_NAMES + 10):
        name = tag_of(here(TRACER.start_span(f"flow-{n}")))
        assert name == (f"flow-{n}" if n < MAX_NAMES else OTHER)
    assert tag_of(here(TRACER.start_span("flow-3"))) == "flow-3"
    for n in range(MAX_NAMES + 10):
        assert tag_of(here(request(f"/{n}"))) == (f"GET /{n}" if n < MAX_NAMES else OTHER)


@given(st.text(alphabet=st.characters(), max_size=300))
def test_any_name(name):
    tag = tag_of(here(TRACER.start_span(name)))
    assert 0 < len(tag) <= callers.MAX_NAME + 10
    assert tag.encode()
    assert tag != "default"


def test_a_caller_elsewhere_has_the_name_of_this_service(monkeypatch):
    assert tag_of(here(None)) == "nightly.py"
    for argument in ("-c", "-m", ""):
        monkeypatch.setattr("sys.argv", [argument])
        assert tag_of(here(None)) == "caller"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "batch")
    assert tag_of(here(None)) == "batch"
    provider = TracerProvider(resource=Resource({"service.name": "web"}), shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    assert tag_of(here(None)) == "web"
    unnamed = TracerProvider(resource=Resource({"service.name": "unknown_service:python"}), shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", unnamed)
    assert callers.service_name() == ""


PARENT = f"00-{7:032x}-{8:016x}-01"


def test_the_environment(monkeypatch):
    assert find_caller().caller is None
    monkeypatch.setenv("TRACEPARENT", PARENT)
    monkeypatch.setenv("TRACESTATE", "a=b")
    found = find_caller()
    assert (found.caller, found.span, found.is_environment) == ((7, 8, 1), None, True)
    assert carrier_of(found.context) == {"traceparent": PARENT, "tracestate": "a=b"}
    assert find_caller().context == found.context
    monkeypatch.setenv("TRACEPARENT", PARENT.replace("7-", "9-"))
    assert find_caller().caller[:2] == (9, 8)
    monkeypatch.setenv("TRACEPARENT", "")
    assert find_caller() == (Context(), None, None, False)


def test_the_current_span_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT)
    with TRACER.start_as_current_span("request") as span:
        found = find_caller()
    assert found.span is span
    assert found.caller.traceparent("n") == carrier_of(found.context)["traceparent"] + ";n"


@pytest.mark.parametrize("variable", ["TRACEPARENT", "TRACESTATE", "BAGGAGE"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"nonsense", b"a=\xff", b"00-0-0-0", b"=,=;", b"x" * 100_000])
def test_any_environment(variable, value):
    os.environb[variable.encode()] = value
    try:
        found = find_caller()
        assert found.caller is None
        carrier_of(found.context)
    finally:
        del os.environ[variable]


class Odd:
    """A propagator that does as it is told."""

    def __init__(self, written=(), fields=("traceparent",), error=None):
        self.written, self.fields, self.error, self.asked = dict(written), fields, error, 0

    def inject(self, carrier, context=None, setter=None):
        carrier.update(self.written)

    def extract(self, carrier, context=None, getter=None):
        self.asked += 1
        raise self.error


def test_what_propagators_write():
    context = Context({"any": "thing"})
    propagate.set_global_textmap(Odd({"a": "b", "c": 1, 2: "d", None: None, "e": "\ud800", "\udcff": "f"}))
    assert carrier_of(context) == {"a": "b"}
    assert carrier_of(Context()) == {}
    propagate.set_global_textmap(Odd({str(n): "" for n in range(1000)}))
    with pytest.raises(ValueError, match="1,000 fields"):
        carrier_of(context)
    propagate.set_global_textmap(Odd({"a": "b" * MAX_CARRIER}))
    with pytest.raises(ValueError, match="characters"):
        carrier_of(context)


@pytest.mark.parametrize("fields", [("traceparent", 7), None])
def test_a_propagator_that_fails_is_not_asked_again(fields, monkeypatch):
    odd = Odd(fields=fields, error=RuntimeError("odd"))
    propagate.set_global_textmap(odd)
    monkeypatch.setenv("TRACEPARENT", PARENT)
    failures = safety.failures.total()
    for _ in range(3):
        assert find_caller() == (Context(), None, None, False)
    assert odd.asked == bool(fields)
    assert safety.failures.total() == failures + 1
    safety._failures.clear()


def test_periods():
    begun = TRACER.start_span("x", start_time=callers.time_ns() - int(7.5e9))
    assert [periods_of(here(begun), seconds) for seconds in (1, 2, 7, 8)] == [7, 3, 1, 0]
    assert periods_of(here(TRACER.start_span("x", start_time=2**62)), 1) == 0
    assert periods_of(here(None), 1e-6) == 0
    assert periods_of(Here(Context(), None, None, is_environment=True), 1e-6) > 0


def test_a_current_span_that_is_not_valid(monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT)
    token = callers.opentelemetry.context.attach(set_span_in_context(trace.INVALID_SPAN, Context({"own": "value"})))
    try:
        found = find_caller()
    finally:
        callers.opentelemetry.context.detach(token)
    assert found.caller[:2] == (7, 8)
    assert found.context["own"] == "value"
