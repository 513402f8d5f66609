"""What can be given to ``OTelPlugin``, and that secrets among it are not shown."""

from __future__ import annotations

import copy
import os
import pickle
import pickletools
from pathlib import Path

import pytest
from distributed.protocol.pickle import dumps, loads
from support.environment import clear_variables

from dask_otel import OTelPlugin
from dask_otel.otlp_options import OtlpOptions

SECRET = "s3cr3t-of-mine"


def variables(*arguments, **options):
    return OTelPlugin(*arguments, **options)._options.variables


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    clear_variables(monkeypatch)


def test_all_settings_can_be_given_for_both_signals_and_for_each():
    files = {"certificate": "/ca.pem", "client_certificate": Path("/cert.pem"), "client_key": "/key.pem"}
    for_all = variables(
        " collector:4317",
        protocol="grpc",
        headers={"X-Key": "a=b, c", "y": "é"},
        compression="none",
        timeout=2.5,
        insecure=True,
        traces={"endpoint": "http://tempo:4317", "timeout": 3},
        metrics=files,
    )
    assert for_all == {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_HEADERS": "X-Key=a%3Db%2C%20c,y=%C3%A9",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://tempo:4317",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3",
        "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE": "/ca.pem",
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE": "/cert.pem",
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY": "/key.pem",
    }
    assert variables() == variables(None, protocol=None, headers=None, traces=None) == {}
    assert variables(metrics=False) == {"OTEL_METRICS_EXPORTER": "none"}
    assert variables("http://c:4317", traces=False)["OTEL_TRACES_EXPORTER"] == "none"
    # Which protocol is used, the scheduler's variables may decide.
    assert variables(compression="deflate") == {"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"}


WRONG = [
    ({"endpoint": "nowhere"}, ValueError, "endpoint = 'nowhere' cannot be used: it must be a URL like"),
    ({"endpoint": "http://me:pw@c:4317 x"}, ValueError, "endpoint = "),
    ({"endpoint": ""}, ValueError, "endpoint = '' cannot be used"),
    ({"endpoint": " \n"}, ValueError, "endpoint = "),
    ({"endpoint": 4317}, TypeError, "endpoint must be a str, not a int"),
    ({"endpoint": "c:4317", "protocol": "http/protobuf"}, ValueError, "endpoint = 'c:4317' cannot be used"),
    (
        {"endpoint": "127.0.0.1:4317"},
        ValueError,
        "endpoint = '127.0.0.1:4317' cannot be used: it must be 'http://127.0.0.1:4317', or 'https://127.0.0.1:4317' "
        "for TLS; else also give insecure=True or False",
    ),
    ({"traces": {"endpoint": "c:4317"}}, ValueError, "traces['endpoint'] = 'c:4317' cannot be used: it must be 'http"),
    ({"endpoint": "c:4317", "metrics": {"insecure": True}}, ValueError, "endpoint = 'c:4317' cannot be used"),
    ({"protocol": "grcp"}, ValueError, "protocol = 'grcp' cannot be used: it must be one of grpc, http/protobuf"),
    ({"protocol": "grpc", "compression": "deflate"}, ValueError, "compression = 'deflate' cannot be used"),
    ({"compression": "brotli"}, ValueError, "compression = 'brotli' cannot be used"),
    ({"timeout": 0}, ValueError, "timeout = 0 cannot be used: it must be a number of seconds above 0, at most 3600"),
    ({"timeout": float("nan")}, ValueError, "timeout = nan"),
    ({"timeout": 10_000}, ValueError, "timeout = 10000"),
    ({"timeout": "5"}, TypeError, "timeout must be a number of seconds, not a str"),
    ({"timeout": True}, TypeError, "timeout must be a number of seconds, not a bool"),
    ({"insecure": "yes"}, TypeError, "insecure must be True or False, not a str"),
    ({"headers": {"key": f"{SECRET}\r\nx: y"}}, ValueError, "headers = '(not shown)' cannot be used"),
    (
        {"headers": {"key": f"{SECRET} 日本"}},
        ValueError,
        "it must be a mapping of names to values, in Latin-1 and without",
    ),
    ({"headers": {"a b": SECRET}}, ValueError, "headers = '(not shown)' cannot be used"),
    ({"headers": {"": SECRET}}, ValueError, "headers = '(not shown)' cannot be used"),
    ({"headers": {"key": None}}, TypeError, "headers must be a mapping of names to values"),
    ({"headers": {"key": SECRET.encode()}}, TypeError, "headers must be a mapping of names to values"),
    ({"headers": [("key", SECRET)]}, TypeError, "headers must be a mapping of names to values"),
    ({"headers": SECRET}, ValueError, "headers = '(not shown)' cannot be used"),
    ({"traces": {"headers": {"k": f"{SECRET}\n"}}}, ValueError, "traces['headers'] = '(not shown)' cannot be used"),
    ({"traces": {"endpiont": "http://c"}}, TypeError, "traces takes no option 'endpiont'; it takes endpoint, protocol"),
    ({"traces": "http://c:4317"}, TypeError, "traces must be a mapping of options or False, not a str"),
    ({"metrics": True}, TypeError, "metrics must be a mapping of options or False, not a bool"),
    ({"metrics": {"protocol": "soap"}}, ValueError, "metrics['protocol'] = 'soap' cannot be used"),
    ({"traces": False, "metrics": False}, ValueError, "nothing would be sent"),
    ({"certificate": 5}, TypeError, "certificate must be a str, not a int"),
    ({"endpiont": "http://c:4317"}, TypeError, "endpiont"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG, ids=lambda each: str(each)[:40])
def test_what_cannot_be_used_raises_in_the_client_and_shows_no_secret(options, kind, message):
    with pytest.raises(kind) as raised:
        OTelPlugin(**options)
    assert message in str(raised.value)
    error = raised.value
    while error:
        assert SECRET not in f"{error!r}{error.args}"
        assert "pw" not in str(error)
        assert error.__suppress_context__ or not error.__context__
        error = error.__cause__


def test_secrets_are_neither_shown_nor_readable_in_what_dask_may_log():
    plugin = OTelPlugin("http://me:passw0rd@c:4318", protocol="http/protobuf", headers={"key": SECRET})
    pickled = dumps(plugin)
    for shown in (repr(plugin), str(plugin), repr(plugin._options), repr(pickled), repr(vars(plugin))):
        assert SECRET not in shown
        assert "passw0rd" not in shown
        assert len(shown) > 20
    assert "OTEL_EXPORTER_OTLP_HEADERS" in repr(plugin)
    assert dumps(plugin) != pickled  # the mask is another one each time
    restored = loads(pickled)
    assert restored._options == plugin._options != OtlpOptions()
    assert copy.deepcopy(plugin._options) == plugin._options
    assert loads(dumps(OTelPlugin()))._options == OtlpOptions()


def test_what_dask_logs_of_a_pickle_that_cannot_be_loaded_does_not_suffice_to_unmask():
    """distributed.protocol.pickle.loads logs its first 10,000 bytes, e.g. where the package is not installed."""
    pickled = pickle.dumps(OTelPlugin("http://c:4317", headers={"key": SECRET}))
    ((begin, sealed),) = [
        (at, value) for _, value, at in pickletools.genops(pickled) if isinstance(value, bytes) and len(value) > 1000
    ]
    # The mask is made of all the random bytes at the end.
    assert begin + len(sealed) >= 10_000 + 32


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "c:4317", "insecure": True},
        {"endpoint": "c:4317", "insecure": False},
        {"endpoint": "c:4317", "certificate": "/ca.pem"},
        {"endpoint": "http://c:4317", "traces": {"endpoint": "d:4317", "insecure": True}},
        {"endpoint": "unix:///run/otel.sock"},
        {"endpoint": "dns:///c:4317"},
    ],
    ids=str,
)
def test_an_endpoint_without_a_scheme_is_taken_with_an_option_about_tls(options):
    assert OTelPlugin(**options)._options.has_endpoint


def test_an_endpoint_without_a_scheme_in_a_variable_means_tls(monkeypatch):
    """As OpenTelemetry's specification has it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")
    assert OTelPlugin.from_env()._options.variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "c:4317"


def test_from_env_takes_what_says_where_and_how_to_send(monkeypatch):
    ours = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "key=value",
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": "gcp",
        "OTEL_METRICS_EXPORTER": "none",
    }
    for name, value in (ours | {"OTEL_SERVICE_NAME": "app", "OTEL_RESOURCE_ATTRIBUTES": "a=b"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", " ")
    assert OTelPlugin.from_env()._options.variables == ours | {"OTEL_TRACES_EXPORTER": "otlp"}


def test_from_env_of_one_signal_says_nothing_about_the_other(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317")
    assert set(OTelPlugin.from_env()._options.variables) == {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_TRACES_EXPORTER",
    }


def test_from_env_raises_if_there_is_nothing_or_it_cannot_be_used(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with pytest.raises(ValueError, match="no OTEL_EXPORTER_OTLP_… variable is set in this process"):
        OTelPlugin.from_env()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"{SECRET}")
    with pytest.raises(ValueError, match=r"OTEL_EXPORTER_OTLP_HEADERS = '\(not shown\)' cannot be used") as raised:
        OTelPlugin.from_env()
    assert SECRET not in str(raised.value)


def merged(given, **own):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(f"OTEL_{name}", value)
        before = dict(os.environ)
        found = OtlpOptions(given).merged()
        assert dict(os.environ) == before
    return {name.removeprefix("OTEL_"): value for name, value in found.items()}


def test_options_take_the_place_of_variables():
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4317"}
    own = {
        "EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4317",
        "EXPORTER_OTLP_TIMEOUT": "3",
        "EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
        "SERVICE_NAME": "scheduler",
    }
    kept = {"EXPORTER_OTLP_TIMEOUT": "3", "EXPORTER_OTLP_METRICS_PROTOCOL": "grpc", "SERVICE_NAME": "scheduler"}
    assert merged(endpoint, **own) == kept | {"EXPORTER_OTLP_ENDPOINT": "http://b:4317"}
    assert merged({}, **own) == own


def test_what_authenticates_at_one_endpoint_is_not_sent_to_another_one():
    secrets = {
        "EXPORTER_OTLP_HEADERS": "key=1",
        "EXPORTER_OTLP_METRICS_HEADERS": "key=2",
        "EXPORTER_OTLP_CLIENT_CERTIFICATE": "/cert",
        "EXPORTER_OTLP_TRACES_CLIENT_KEY": "/key",
        "PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": "gcp",
        "PYTHON_EXPORTER_OTLP_GRPC_TRACES_CREDENTIAL_PROVIDER": "gcp",
    }
    other = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4317"}
    assert merged(other, EXPORTER_OTLP_ENDPOINT="http://a:4317", **secrets) == {
        "EXPORTER_OTLP_ENDPOINT": "http://b:4317"
    }
    same = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"}
    own = {"EXPORTER_OTLP_ENDPOINT": "http://a:4317"} | secrets
    assert merged(same, **own) == own
    # Those for both signals stay with the other signal.
    traces = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:4317"}
    assert merged(traces, EXPORTER_OTLP_ENDPOINT="http://a:4317", **secrets) == {
        "EXPORTER_OTLP_ENDPOINT": "http://a:4317",
        "EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:4317",
        "EXPORTER_OTLP_METRICS_HEADERS": "key=2",
        "EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE": "/cert",
        "PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER": "gcp",
    }
