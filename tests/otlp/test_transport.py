from __future__ import annotations

import os

import pytest
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from support.environment import clear_variables

from dask_otel.errors import SettingError
from dask_otel.otlp.environment import make_resource, sdk_disabled
from dask_otel.otlp.transport import GrpcSender, HttpSender, make_senders


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    clear_variables(monkeypatch)


def made(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    senders = make_senders()
    try:
        return {sender.name: type(sender.exporter or sender) for sender in senders}
    finally:
        for sender in senders:
            sender.shutdown()


def test_default_is_otlp_over_grpc(monkeypatch):
    assert made(monkeypatch) == {"otlp": GrpcSender}


def test_protocol(monkeypatch):
    assert made(monkeypatch, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf") == {"otlp": HttpSender}
    assert made(monkeypatch, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc") == {"otlp": GrpcSender}


def test_none_and_several(monkeypatch):
    assert made(monkeypatch, OTEL_TRACES_EXPORTER="none") == {}
    assert made(monkeypatch, OTEL_TRACES_EXPORTER="otlp_proto_http, console") == {
        "otlp_proto_http": HttpSender,
        "console": ConsoleSpanExporter,
    }


@pytest.mark.parametrize(
    ("variables", "named", "allowed"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaegre"}, "OTEL_TRACES_EXPORTER = 'jaegre'", "console, none, otlp"),
        ({"OTEL_TRACES_EXPORTER": ","}, "OTEL_TRACES_EXPORTER = ','", "none alone"),
        ({"OTEL_TRACES_EXPORTER": "logging"}, "OTEL_TRACES_EXPORTER = 'logging'", "console is its name in Python"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER = 'zipkin'", "there is no 'zipkin' here"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "udp"}, "OTEL_EXPORTER_OTLP_PROTOCOL = 'udp'", "grpc, http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/file"}, "OTEL_EXPORTER_OTLP_CERTIFICATE", "a file that can be read"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http:/collector:4317"},
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://collector:4317",
        ),
    ],
)
def test_a_bad_value_is_named(monkeypatch, variables, named, allowed):
    with pytest.raises(SettingError) as info:
        made(monkeypatch, **variables)
    assert named in str(info.value)
    assert allowed in str(info.value)


@pytest.mark.parametrize(
    "endpoint",
    ["http://", "collector", "http://host:port", "http://host:99999", "ftp://host:4317", "http://a b:1", "://host"],
)
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_bad_endpoint_is_named(monkeypatch, endpoint, protocol):
    with pytest.raises(SettingError, match="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        made(monkeypatch, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [
        ("http://collector:4317", "grpc"),
        ("https://collector", "grpc"),
        ("collector:4317", "grpc"),
        ("[::1]:4317", "grpc"),
        ("dns:///collector:4317", "grpc"),
        ("http://collector:4318", "http/protobuf"),
        ("https://[::1]:4318/some/path", "http/protobuf"),
    ],
)
def test_a_good_endpoint(monkeypatch, endpoint, protocol):
    assert len(made(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)) == 1


def test_an_endpoint_that_is_given_wins(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://elsewhere:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    (sender,) = make_senders("http://here:4318")
    assert sender.settings.endpoint == sender.target == "http://here:4318/v1/traces"
    sender.shutdown()
    with pytest.raises(SettingError, match="endpoint = 'nowhere'"):
        make_senders("nowhere")


def resource(cluster_name=None):
    made = make_resource(service_name="dask-scheduler", instance_id="id", version="1", cluster_name=cluster_name)
    return dict(made.attributes)


def test_resource(monkeypatch):
    assert resource("prod") == resource() | {"dask.cluster.name": "prod"}
    assert resource()["process.pid"] == os.getpid()
    assert not [name for name in resource() if "command" in name or "owner" in name]


def test_what_the_variables_say_of_the_resource_wins(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=h,team=red")
    found = resource()
    assert (found["service.name"], found["host.name"], found["team"]) == ("mine", "h", "red")


@pytest.mark.parametrize(("value", "disabled"), [("true", True), ("TRUE", True), ("1", False), ("", False)])
def test_sdk_disabled(monkeypatch, value, disabled):
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    assert sdk_disabled() is disabled
