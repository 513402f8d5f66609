"""What is wrong with a variable of one signal costs that signal at most: by what arrives. ``OTEL_`` is left out."""

from __future__ import annotations

import threading
from time import monotonic

import pytest
from distributed.utils_test import captured_logger
from support.environment import clear_variables
from support.records import segment
from support.snapshots import everything, snapshot
from support.standard import PATIENCE, make_sink, running

from dask_otel.cli.receiver import Receiver
from dask_otel.errors import SettingError
from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.series import MetricSettings

pytestmark = pytest.mark.slow  # real receivers, for a long table of settings

GRPC, HTTP = "grpc", "http/protobuf"
SIGNALS = ["TRACES", "METRICS"]
BOTH = set(SIGNALS)


@pytest.fixture(autouse=True)
def _only_what_is_said(monkeypatch):
    clear_variables(monkeypatch)


@pytest.fixture(scope="module")
def snapshots():
    recorder = Recorder(900.0, MetricSettings())
    everything(recorder)
    return snapshot(recorder)


def arrivals(receiver, run, taken):
    """Give spans and metrics to a sink, and wait until what is on has arrived; which of the two it was."""
    run.sink.put([segment()])
    run.sink.put_metrics(taken)
    deadline = monotonic() + PATIENCE
    while True:
        status = run.sink.status()
        exports = [each["sent"] for each in status["exporters"]] + [each["exports"] for each in status["metrics"]]
        if all(exports):
            break
        assert monotonic() < deadline, status
        threading.Event().wait(0.005)
    spans = receiver.wait(lambda spans: True, 1)
    return {name for name, some in (("TRACES", spans), ("METRICS", receiver.metrics)) if some}


#: Of each signal: variables that it cannot do without.
COST_THE_SIGNAL = [
    ("EXPORTER_OTLP_{}_ENDPOINT", ["nowhere", "http://", "ftp://host"]),
    ("EXPORTER_OTLP_{}_PROTOCOL", ["udp", "https"]),
    ("EXPORTER_OTLP_{}_CERTIFICATE", ["/no/file", "/", __file__]),
    ("EXPORTER_OTLP_{}_CLIENT_CERTIFICATE", ["/no/file", __file__]),
    ("EXPORTER_OTLP_{}_CLIENT_KEY", ["/no/file", __file__]),
    ("{}_EXPORTER", ["jaegre", "zipkin", "logging", "logging,zipkin", ","]),
]
#: Those that fall back to something, as in other SDKs; the last ones are read by one signal only.
COST_NOTHING = [
    ("EXPORTER_OTLP_{}_HEADERS", ["s3cret", "=s3cret", "a=b,s3cret", "api-key=s3cret%0A", "api-key=s3cret%E2%82%AC"]),
    ("EXPORTER_OTLP_{}_COMPRESSION", ["zip", "zstd"]),
    ("EXPORTER_OTLP_{}_TIMEOUT", ["soon", "0", "-1", "nan", "inf", "10000", "3600000", "1e9"]),
    ("EXPORTER_OTLP_{}_INSECURE", ["yes", "1"]),
    ("{}_EXPORTER", ["otlp,zipkin", "zipkin,OTLP", "otlp,logging", "none,otlp"]),
    ("TRACES_SAMPLER", ["jaeger_remote", "parentbased_jaeger_remote", "xray", "half"]),
    ("TRACES_SAMPLER_ARG", ["1.5", "-0.1", "nan", "some"]),
    ("BSP_SCHEDULE_DELAY", ["-1", "1s"]),
    ("BSP_EXPORT_TIMEOUT", ["0", "1.5"]),
    ("BSP_MAX_QUEUE_SIZE", ["0", "many"]),
    ("BSP_MAX_EXPORT_BATCH_SIZE", ["0", "-5"]),
    ("SPAN_LINK_COUNT_LIMIT", ["-1", "x"]),
    ("ATTRIBUTE_VALUE_LENGTH_LIMIT", ["none"]),
    ("METRIC_EXPORT_INTERVAL", ["0", "1m"]),
    ("METRIC_EXPORT_TIMEOUT", ["0", "soon"]),
    ("EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", ["sometimes"]),
]


def cases(table):
    for name, values in table:
        for signal in SIGNALS if "{}" in name else ["METRICS" if "METRIC" in name else "TRACES"]:
            for value in values:
                yield name.format(signal), value, signal


def the_line(run, name):
    (line,) = [line for line in run.log.getvalue().splitlines() if f"OTEL_{name}" in line]
    assert "s3cret" not in run.log.getvalue() + repr(run.sink.status())
    return line


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize(("name", "value", "signal"), list(cases(COST_THE_SIGNAL)))
def test_a_bad_variable_costs_its_signal_at_most(protocol, name, value, signal, snapshots):
    variables = {"EXPORTER_OTLP_PROTOCOL": protocol, name: value}
    with Receiver() as receiver, running(receiver.endpoints[protocol], **variables) as run:
        assert arrivals(receiver, run, snapshots) == BOTH - {signal}
    line = the_line(run, name)
    assert f"sends no {'spans' if signal == 'TRACES' else 'metrics'}: OTEL_{name} = '{value}' cannot be used" in line


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize(("name", "value", "signal"), list(cases(COST_NOTHING)))
def test_a_variable_that_can_fall_back_does(protocol, name, value, signal, snapshots):
    variables = {"EXPORTER_OTLP_PROTOCOL": protocol, name: value}
    if name == "TRACES_SAMPLER_ARG":
        variables["TRACES_SAMPLER"] = "traceidratio"
    with Receiver() as receiver, running(receiver.endpoints[protocol], **variables) as run:
        assert arrivals(receiver, run, snapshots) == BOTH
    if protocol == HTTP and "INSECURE" in name:
        assert run.log.getvalue() == ""  # not read: the endpoint has a scheme
        return
    line = the_line(run, name)
    assert "cannot be used: it must be " in line or "is taken as milliseconds" in line


@pytest.mark.parametrize("value", ["http/json", "HTTP/JSON", "http"])
@pytest.mark.parametrize("signal", ["", "TRACES_", "METRICS_"])
def test_another_encoding_over_http_falls_back_to_protobuf(signal, value, snapshots):
    name = f"EXPORTER_OTLP_{signal}PROTOCOL"
    variables = {"EXPORTER_OTLP_PROTOCOL": HTTP, name: value}
    with Receiver() as receiver, running(receiver.endpoints[HTTP], **variables) as run:
        assert arrivals(receiver, run, snapshots) == BOTH
    assert f"OTEL_{name} = '{value}' is taken as http/protobuf" in the_line(run, name)


@pytest.mark.parametrize(
    ("value", "seconds", "line"),
    [
        ("10", 10, ""),
        ("3600", 3600, ""),
        ("10000", 10, "'10000' is taken as milliseconds, i.e. 10 s; Python's exporters count seconds: write 10"),
        ("3601", 3.601, "write 3.601"),
        ("3600000", 3600, "write 3600"),
        ("3600001", 10, "10 s are used"),
        ("10s", 10, "10 s are used"),
    ],
)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_timeout_that_must_be_milliseconds(protocol, value, seconds, line, snapshots):
    variables = {"EXPORTER_OTLP_PROTOCOL": protocol, "EXPORTER_OTLP_TIMEOUT": value}
    with Receiver() as receiver, running(receiver.endpoints[protocol], **variables) as run:
        for sender in [each._sender for each in (*run.sink.span_threads, *run.sink.metric_threads)]:
            assert sender.settings.timeout == seconds
        assert arrivals(receiver, run, snapshots) == BOTH
    said = [each for each in run.log.getvalue().splitlines() if "TIMEOUT" in each]
    assert len(said) == bool(line)
    assert line in "".join(said)


def test_headers_beside_a_bad_one_arrive(snapshots):
    """One that cannot be sent takes no other with it."""
    from support.misbehaving import Misbehaving

    written = "api-key=kept,s3cret,broken=s3cret%0A,tenant=7"
    for protocol in (GRPC, HTTP):
        variables = {"EXPORTER_OTLP_PROTOCOL": protocol, "EXPORTER_OTLP_HEADERS": written}
        with Misbehaving(protocol) as receiver, running(receiver.endpoint, **variables) as run:
            run.put(0)
            run.wait_until(lambda run=run: run.first["sent"])
            found = {name.lower(): value for name, value in receiver.headers[0].items()}
        assert (found["api-key"], found["tenant"], "broken" in found) == ("kept", "7", False)
        said = [line for line in run.log.getvalue().splitlines() if "HEADERS" in line]
        assert [line.partition("; entry")[2] for line in said] == [
            f" {number} is left out, and requests lack that header" for number in (2, 3)
        ]


def test_what_other_libraries_log_of_headers_holds_no_secret(caplog):
    for protocol in (GRPC, HTTP):
        with Receiver() as receiver:
            variables = {"EXPORTER_OTLP_PROTOCOL": protocol, "EXPORTER_OTLP_HEADERS": "s3cret"}
            with running(receiver.endpoints[protocol], **variables):
                pass
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"EXPORTER_OTLP_ENDPOINT": "nowhere"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"EXPORTER_OTLP_PROTOCOL": "udp"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"EXPORTER_OTLP_CERTIFICATE": "/no/file"}, "OTEL_EXPORTER_OTLP_CERTIFICATE"),
        ({"TRACES_EXPORTER": "jaegre", "METRICS_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER"),
        ({"TRACES_EXPORTER": "none", "METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER"),
    ],
)
def test_a_variable_that_leaves_nothing_switches_all_off(monkeypatch, variables, named):
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    with captured_logger("distributed.dask_otel") as log, pytest.raises(SettingError) as info:
        make_sink()
    assert (info.value.setting, log.getvalue()) == (named, "")


def test_a_general_variable_that_is_bad_costs_nothing_where_both_signals_have_their_own(snapshots):
    with Receiver() as receiver:
        own = {f"EXPORTER_OTLP_{signal}_ENDPOINT": receiver.endpoints[GRPC] for signal in SIGNALS}
        with running("nowhere", **own) as run:
            assert arrivals(receiver, run, snapshots) == BOTH


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("signal", SIGNALS)
def test_an_endpoint_of_one_signal_only(protocol, signal, snapshots):
    """The other one does not go to a localhost where nobody is."""
    other = next(each for each in SIGNALS if each != signal)
    path = f"/v1/{signal.lower()}" if protocol == HTTP else ""
    with Receiver() as receiver:
        own = {f"EXPORTER_OTLP_{signal}_ENDPOINT": receiver.endpoints[protocol] + path}
        with running(EXPORTER_OTLP_PROTOCOL=protocol, **own) as run:
            assert arrivals(receiver, run, snapshots) == {signal}
            assert not run.sink.status()["exporters" if signal == "METRICS" else "metrics"]
    (line,) = run.log.getvalue().splitlines()
    assert f"only OTEL_EXPORTER_OTLP_{signal}_ENDPOINT is set" in line
    assert f"Set OTEL_EXPORTER_OTLP_{other}_ENDPOINT to send" in line


@pytest.mark.parametrize(
    ("signal", "variables", "target"),
    [
        ("METRICS", {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://far:4317"}, None),
        ("METRICS", {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://far:4317", "METRICS_EXPORTER": "otlp"}, "localhost:4317"),
        ("METRICS", {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317"}, None),
        ("METRICS", {"EXPORTER_OTLP_TRACES_ENDPOINT": "127.0.0.1:4317"}, None),
        ("METRICS", {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:9999"}, None),
        (
            "METRICS",
            {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://far:4317", "EXPORTER_OTLP_ENDPOINT": "http://h:1"},
            "h:1",
        ),
        ("METRICS", {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://far:4317", "METRICS_EXPORTER": "console"}, ""),
        ("METRICS", {}, "localhost:4317"),
        ("TRACES", {"EXPORTER_OTLP_METRICS_ENDPOINT": "http://far:4317"}, None),
        ("TRACES", {"EXPORTER_OTLP_METRICS_ENDPOINT": "http://far:4317", "TRACES_EXPORTER": "otlp"}, "localhost:4317"),
        ("TRACES", {"EXPORTER_OTLP_METRICS_ENDPOINT": "http://localhost:4317"}, None),
        ("TRACES", {"EXPORTER_OTLP_METRICS_ENDPOINT": "http://p:9090/api/v1/otlp/v1/metrics"}, None),
        ("TRACES", {}, "localhost:4317"),
    ],
)
def test_where_a_signal_goes_that_has_no_endpoint_of_its_own(monkeypatch, signal, variables, target):
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    sink = make_sink()
    ways_out = sink.status()["metrics" if signal == "METRICS" else "exporters"]
    sink.close(0)
    found = [each["target"].removeprefix("http://") for each in ways_out]
    assert found == ([] if target is None else [target])
