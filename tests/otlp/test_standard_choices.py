"""What is sent, by the standard variables: by what arrives at a receiver. ``OTEL_`` is left out of the names."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from distributed.utils_test import captured_logger
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from support.environment import clear_variables
from support.misbehaving import Misbehaving
from support.records import INFO, ROOT, group, root_segment, segment, task
from support.standard import arrives, make_sink, otlp, running

from dask_otel import config
from dask_otel.errors import SettingError
from dask_otel.identity import Caller, trace_id


@pytest.fixture(autouse=True)
def _only_what_is_said(monkeypatch):
    clear_variables(monkeypatch)


@pytest.fixture
def receiver():
    with Misbehaving("grpc") as receiver:
        yield receiver


def test_off(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    assert make_sink() is None


def test_nothing_is_sent(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    sink = make_sink()
    assert (sink.span_threads, sink.metric_threads) == ([], [])
    sink.close(1)


def test_several_exporters(receiver, capfd):
    with Misbehaving("http/protobuf") as other:
        endpoints = otlp("TRACES_", ENDPOINT=other.endpoint) | {"TRACES_EXPORTER": "otlp_proto_http, console"}
        with running(receiver.endpoint, **endpoints) as run:
            arrives(other, run)
        assert [exporter["sent"] for exporter in run.sink.status()["exporters"]] == [{"span": 1}] * 2
        assert receiver.requests == []


MODULE = """
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

names = []

class Exporter(SpanExporter):
    def export(self, spans):
        names.extend(span.name for span in spans)

class Broken:
    def __init__(self):
        raise KeyError("API_KEY")

class Second(Sampler):
    "Every second trace that it is asked about: a sampler that would decide otherwise the next time."
    def __init__(self, argument):
        self.argument, self.asked = argument, 0
    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        self.asked += 1
        decision = Decision.RECORD_AND_SAMPLE if self.asked % 2 else Decision.RECORD_ONLY
        return SamplingResult(decision, {"sampler.argument": self.argument, "sampler.name": name})
    def get_description(self):
        return "Second"
"""
ENTRY_POINTS = """
[opentelemetry_traces_exporter]
ours = dask_otel_test_plugins:Exporter
broken = dask_otel_test_plugins:Broken
missing = no_such_module:Exporter
[opentelemetry_traces_sampler]
second = dask_otel_test_plugins:Second
broken = dask_otel_test_plugins:Broken
missing = no_such_module:Sampler
not_one = dask_otel_test_plugins:len
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    info = tmp_path / "dask_otel_test_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dask-otel-test-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "dask_otel_test_plugins.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dask_otel_test_plugins", raising=False)


def test_an_exporter_that_is_installed(plugins):
    with running(TRACES_EXPORTER="ours") as run:
        run.put(1, 2)
    import dask_otel_test_plugins

    assert dask_otel_test_plugins.names == ["1", "2"]


def test_a_sampler_that_is_installed(plugins, receiver):
    with running(receiver.endpoint, TRACES_SAMPLER="second", TRACES_SAMPLER_ARG="42") as run:
        for _ in range(3):
            for number in range(4):
                run.sink.put([group(trace_id=number), root_segment(trace_id=number, name=f"{number}")])
        run.wait_until(lambda: run.first["sent"] == {"span": 6, "group": 6})
    found = {span.name: span.attributes for span in receiver.wait(bool, 1) if not span.parent_id}
    assert set(found) == {"0", "2"}
    assert {(each["sampler.argument"], each["sampler.name"]) for each in found.values()} == {("42", "Alice's workflow")}
    assert run.sink.status()["unsampled"] == {"span": 6, "group": 6}


@pytest.mark.parametrize("name", ["broken", "missing", "not_one", "nowhere"])
def test_an_exporter_that_does_not_start_is_named(plugins, monkeypatch, name):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", name)
    with pytest.raises(SettingError, match=f"OTEL_TRACES_EXPORTER = '{name}'"):
        make_sink()


@pytest.mark.parametrize("name", ["broken", "missing", "not_one", "nowhere"])
def test_an_exporter_that_does_not_start_leaves_the_others(plugins, receiver, name):
    with running(receiver.endpoint, TRACES_EXPORTER=f"{name},otlp") as run:
        arrives(receiver, run)
    (line,) = [line for line in run.log.getvalue().splitlines() if "OTEL_TRACES_EXPORTER" in line]
    assert "cannot be used" in line
    assert line.endswith("the others are used: otlp")


@pytest.mark.parametrize("name", ["broken", "missing", "not_one", "nowhere"])
def test_a_sampler_that_does_not_start_is_named_and_everything_is_sent(plugins, receiver, name):
    with running(receiver.endpoint, TRACES_SAMPLER=name) as run:
        arrives(receiver, run)
    (line,) = [line for line in run.log.getvalue().splitlines() if "OTEL_TRACES_SAMPLER" in line]
    assert f"OTEL_TRACES_SAMPLER = '{name}' cannot be used" in line
    assert line.endswith("parentbased_always_on is used, the default")


@pytest.mark.parametrize(
    ("name", "argument", "same_as"),
    [
        ("always_on", "", ALWAYS_ON),
        ("always_off", "", ALWAYS_OFF),
        ("parentbased_always_on", "0", ALWAYS_ON),
        ("parentbased_always_off", "1", ALWAYS_OFF),
        (" Always_Off ", "", ALWAYS_OFF),
        ("traceidratio", "", ALWAYS_ON),
        ("traceidratio", "0", ALWAYS_OFF),
        ("parentbased_traceidratio", "1.0", ALWAYS_ON),
        pytest.param("traceidratio", "0.1", TraceIdRatioBased(0.1), marks=pytest.mark.slow),
        pytest.param("parentbased_traceidratio", "2.5e-1", TraceIdRatioBased(0.25), marks=pytest.mark.slow),
    ],
)
def test_a_sampler_decides_once_for_a_whole_trace(receiver, name, argument, same_as):
    """Its pieces leave at different times; what another process's SDK would decide of the same id is decided here."""
    ids = [trace_id(f"root-{number}") for number in range(4000 if isinstance(same_as, TraceIdRatioBased) else 100)]
    expected = {id for id in ids if same_as.should_sample(None, id, "").decision.is_sampled()}
    with running(receiver.endpoint, TRACES_SAMPLER=name, TRACES_SAMPLER_ARG=argument) as run:
        for number in range(3):
            for id in ids:
                cut = segment(trace_id=id, span_id=100 + number, number=number, metrics={}, elsewhere=None)
                run.sink.put([task(trace_id=id, span_id=200 + number), cut])
    found = Counter(int(span.trace_id, 16) for span in receiver.wait(lambda spans: True, 1))
    assert found == dict.fromkeys(expected, 6)
    if isinstance(same_as, TraceIdRatioBased):
        tolerance = 5 * (len(ids) * same_as.rate * (1 - same_as.rate)) ** 0.5
        assert abs(len(found) - same_as.rate * len(ids)) < tolerance


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("", {(1, True), (2, True)}),
        ("parentbased_always_on", {(1, True), (2, True)}),
        ("parentbased_always_off", {(1, True), (2, True)}),
        ("parentbased_traceidratio", {(1, True), (2, True)}),
        ("always_on", {(1, True), (1, False), (2, True), (3, False)}),
        ("always_off", set()),
        ("traceidratio", set()),
    ],
)
def test_samplers_are_asked_with_the_caller(receiver, name, sent):
    """Those based on the parent do what it did; callers in one trace need not agree."""
    callers = [Caller(1, 10, is_sampled=True), Caller(1, 11, is_sampled=False)]
    callers += [Caller(2, 12, is_sampled=True), Caller(3, 13, is_sampled=False)]
    variables = {"TRACES_SAMPLER": name} | ({"TRACES_SAMPLER_ARG": "0"} if name.endswith("ratio") else {})
    with running(receiver.endpoint, **variables) as run:
        for caller in callers:
            common = {"trace_id": caller.trace_id, "caller": caller, "span": ROOT}
            inside = group(**common, span_id=100 * caller.span_id, parent_id=caller.span_id * 1000)
            top = root_segment(**common, span_id=1000 * caller.span_id, parent_id=caller.span_id)
            assert bool(run.sink.put([inside, top])) is ((caller.trace_id, caller.is_sampled) in sent)
    found = {(int(span.trace_id, 16), span.parent_id) for span in receiver.wait(lambda spans: True, 1)}
    tops = {(c.trace_id, f"{c.span_id:016x}") for c in callers if (c.trace_id, c.is_sampled) in sent}
    assert {each for each in found if each in tops} == tops
    assert len(found) == 2 * len(tops)
    finished = run.sink.status()["finished"]
    assert [each["trace_id"] is not None for each in finished] == [(c.trace_id, c.is_sampled) in sent for c in callers]


def test_a_sampler_knows_the_run_by_its_name(plugins, receiver):
    """A run below another Dask root: its own name, the root's tag, and its attributes are on its top only."""
    caller = Caller(5, 13, is_sampled=False)
    with running(receiver.endpoint, TRACES_SAMPLER="second") as run:
        common = {"trace_id": caller.trace_id, "caller": caller, "top": INFO}
        run.sink.put([group(**common, parent_id=2), segment(**common, parent_id=13, name="top")])
        run.wait_until(lambda: run.first["sent"] == {"span": 1, "group": 1})
    top, inside = sorted(receiver.wait(lambda spans: len(spans) == 2, 1), key=lambda span: span.name != "top")
    assert top.attributes["sampler.name"] == "data load"
    assert "sampler.name" not in inside.attributes


@pytest.mark.parametrize(("name", "is_sent"), [("parentbased_always_on", True), ("parentbased_always_off", False)])
@pytest.mark.parametrize("flags", [0, 1])
def test_whatever_span_is_current_has_no_say(receiver, name, is_sent, flags):
    """The scheduler's own loop may be traced by somebody; our roots are roots."""
    current = NonRecordingSpan(SpanContext(7, 7, is_remote=True, trace_flags=TraceFlags(flags)))
    with running(receiver.endpoint, TRACES_SAMPLER=name) as run, use_span(current):
        run.put(1)
    assert bool(receiver.taken) is is_sent


BAD = {
    "TRACES_EXPORTER": ["jaegre", ","],
    "EXPORTER_OTLP_ENDPOINT": ["nowhere", "http://", "ftp://host"],
    "EXPORTER_OTLP_PROTOCOL": ["udp"],
    "EXPORTER_OTLP_CERTIFICATE": ["/no/file", "/", __file__],
    "EXPORTER_OTLP_CLIENT_CERTIFICATE": ["/no/file"],
    "EXPORTER_OTLP_CLIENT_KEY": ["/no/file"],
    "SPAN_ATTRIBUTE_COUNT_LIMIT": ["-1", "1e3"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_that_leaves_nothing_is_named(monkeypatch, name, value):
    if name == "TRACES_EXPORTER":
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv(f"OTEL_{name}", value)
    with captured_logger("distributed.dask_otel") as log, pytest.raises(SettingError) as info:
        make_sink() if not name.endswith("_LIMIT") else config.check_limits()
    assert info.value.setting == f"OTEL_{name}"
    assert log.getvalue() == ""  # who calls it says it


def test_resource(receiver):
    said = "team=red%20%2C,service.name=less,host.name=h"
    with running(receiver.endpoint, SERVICE_NAME="more", RESOURCE_ATTRIBUTES=said) as run:
        arrives(receiver, run)
    resource = receiver.wait(bool, 1)[0].resource
    assert (resource["service.name"], resource["team"], resource["host.name"]) == ("more", "red ,", "h")
    assert resource["telemetry.sdk.language"] == "python"


PATH, TYPE = "Alice's workflow / data load", "ValueError"


@pytest.mark.parametrize(
    ("limits", "seen"),
    [
        ({"SPAN_ATTRIBUTE_COUNT_LIMIT": 3}, (3, PATH, 1, TYPE)),
        ({"SPAN_ATTRIBUTE_COUNT_LIMIT": 3, "ATTRIBUTE_COUNT_LIMIT": 9}, (3, PATH, 1, TYPE)),
        ({"ATTRIBUTE_COUNT_LIMIT": 3}, (3, PATH, 1, TYPE)),
        ({"SPAN_LINK_COUNT_LIMIT": 0}, (17, PATH, 0, TYPE)),
        ({"SPAN_EVENT_COUNT_LIMIT": 0}, (17, PATH, 1, None)),
        ({"ATTRIBUTE_VALUE_LENGTH_LIMIT": 3}, (17, "Ali", 1, "Val")),
        ({"SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": 3}, (17, "Ali", 1, TYPE)),
        ({"SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": 99, "ATTRIBUTE_VALUE_LENGTH_LIMIT": 3}, (17, PATH, 1, "Val")),
        ({"SPAN_ATTRIBUTE_COUNT_LIMIT": "", "SPAN_LINK_COUNT_LIMIT": ""}, (17, PATH, 1, TYPE)),
    ],
)
def test_limits(receiver, limits, seen):
    with running(receiver.endpoint, **limits) as run:
        run.sink.put([task(links=segment().links)])
    (span,) = receiver.wait(bool, 1)
    event = span.events[0][1]["exception.type"] if span.events else None
    assert (len(span.attributes), span.attributes.get("dask.span.path"), len(span.links), event) == seen
    assert len(span.links) + span.dropped_links == 1


def test_a_declarative_configuration_is_not_read_and_said_once(receiver):
    with running(receiver.endpoint, CONFIG_FILE="/etc/otel.yaml") as run:
        arrives(receiver, run)
    (line,) = run.log.getvalue().splitlines()
    assert "does not read OTEL_CONFIG_FILE" in line
