"""The proxy is named whenever one applies: in the doctor and in the scheduler's log."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from click.testing import CliRunner
from support.environment import clear_variables
from support.misbehaving import Misbehaving, Says
from support.proxy import Proxy
from support.snapshots import everything, snapshot
from support.standard import running

from dask_otel.cli.main import dask_otel
from dask_otel.cli.receiver import Receiver
from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.series import MetricSettings
from dask_otel.otlp.environment import find_proxy

#: Real proxies, each in front of a real server.
pytestmark = pytest.mark.slow

GRPC, HTTP = "grpc", "http/protobuf"
#: Variables that apply, by protocol and the target's scheme.
APPLY = {
    (GRPC, "http"): ["grpc_proxy", "https_proxy", "http_proxy"],
    (GRPC, "https"): ["grpc_proxy", "https_proxy", "http_proxy"],
    (HTTP, "http"): ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    (HTTP, "https"): ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
}
ALL = ["grpc_proxy", "GRPC_PROXY", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
HOSTS = ["localhost", "collector.invalid"]
FAULTS = ["403", "407", "503", "hang", "refuse"]


@pytest.fixture(autouse=True)
def _only_what_is_said(monkeypatch):
    clear_variables(monkeypatch, proxies=True)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture(scope="module")
def snapshots():
    recorder = Recorder(900.0, MetricSettings())
    everything(recorder)
    return snapshot(recorder)


def doctor(target):
    result = CliRunner().invoke(dask_otel, ["doctor", "--endpoint", target])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def target_of(protocol, scheme, host):
    return f"{scheme}://{host}:{4317 if protocol == GRPC else 4318}"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("protocol", "scheme", "variable"),
    [(protocol, scheme, name) for (protocol, scheme), names in APPLY.items() for name in names],
)
def test_the_doctor_names_a_proxy_that_does_not_let_through(monkeypatch, protocol, scheme, variable, host, fault):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3" if fault == "hang" else "10")
    with Proxy(fault) as proxy:
        monkeypatch.setenv(variable, f"http://me:s3cret@{proxy.address}/")
        code, out = doctor(target_of(protocol, scheme, host))
        assert proxy.asked or fault in ("refuse", "hang")  # one that hangs may not even have read it in time
    assert code == 1
    assert f"through the proxy {proxy.address} ({variable})" in out
    exempting = "no_grpc_proxy" if protocol == GRPC else "NO_PROXY"
    advice = next(line for line in out.splitlines() if "Requests go through" in line)
    assert advice == out.splitlines()[0]
    # What would be reported without a proxy comes after it, if at all.
    assert advice.partition(f"({variable}): ")[2].startswith(
        f"Requests go through the proxy {proxy.address} that {variable} names"
    )
    assert f"add {host} to {exempting}" in advice
    assert "is the collector up" not in out
    assert "s3cret" not in out


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("signal", ["TRACES", "METRICS"])
def test_the_log_names_a_proxy_that_does_not_let_through(monkeypatch, signal, protocol, host, fault, snapshots):
    target, other = target_of(protocol, "http", host), "TRACES" if signal == "METRICS" else "METRICS"
    exporters = {f"{signal}_EXPORTER": "otlp", f"{other}_EXPORTER": "none"}
    timeout = "0.3" if fault == "hang" else "10"
    with Proxy(fault) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:s3cret@{proxy.address}/")
        variables = {"EXPORTER_OTLP_PROTOCOL": protocol, "EXPORTER_OTLP_TIMEOUT": timeout}
        with running(target, **variables, **exporters) as run:
            way_out = {"TRACES": "exporters", "METRICS": "metrics"}[signal]
            run.put(0)
            run.sink.put_metrics(snapshots)
            run.wait_until(lambda: run.sink.status()[way_out][0]["failing"])
            log = run.log.getvalue()
            run.sink.close(0.0)
    (line,) = [line for line in log.splitlines() if "cannot send" in line]
    assert f" to {target}" in line
    assert f"through the proxy {proxy.address} (http_proxy)" in line
    status = run.sink.status()
    assert status[way_out][0]["proxy"] == f"the proxy {proxy.address} (http_proxy)"
    assert "s3cret" not in run.log.getvalue() + repr(status)


@pytest.mark.parametrize("variable", ALL)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_variable_that_does_not_apply_is_not_named(monkeypatch, protocol, scheme, variable):
    """What gRPC and requests really do is seen by the proxy."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
    with Proxy("403") as proxy:
        monkeypatch.setenv(variable, f"http://{proxy.address}")
        _, out = doctor(f"{scheme}://localhost:1")
        assert bool(proxy.asked) is (variable in APPLY[protocol, scheme])
    assert (f"({variable})" in out) is bool(proxy.asked)
    assert ("roxy" in out) is bool(proxy.asked)


VARIABLES = [
    # that apply to http://localhost:1 over HTTP and gRPC: which one is asked, if any
    ({"http_proxy": "A", "HTTP_PROXY": "B"}, ("http_proxy", "http_proxy")),
    ({"http_proxy": "A", "all_proxy": "B", "https_proxy": "B"}, ("http_proxy", "https_proxy")),
    ({"grpc_proxy": "A", "https_proxy": "B", "http_proxy": "B"}, ("http_proxy", "grpc_proxy")),
    ({"grpc_proxy": "", "http_proxy": "A"}, ("http_proxy", None)),
    ({"http_proxy": "A", "no_proxy": "localhost"}, (None, None)),
    ({"http_proxy": "A", "NO_PROXY": "localhost"}, (None, "http_proxy")),
    ({"http_proxy": "A", "no_proxy": "other, localhost"}, (None, None)),
    ({"http_proxy": "A", "no_proxy": "*"}, (None, "http_proxy")),
    ({"http_proxy": "A", "no_proxy": "host"}, ("http_proxy", "http_proxy")),
    ({"http_proxy": "A", "no_proxy": ".localhost"}, (None, None)),
    ({"http_proxy": "A", "no_grpc_proxy": "localhost"}, ("http_proxy", None)),
    ({"http_proxy": "A", "no_grpc_proxy": "x", "no_proxy": "localhost"}, (None, "http_proxy")),
    ({"http_proxy": "A", "no_proxy": "LOCALHOST"}, (None, None)),
    ({"http_proxy": "A", "no_proxy": "localhost:1"}, (None, "http_proxy")),
]


def is_old(protocol):
    """Whether the library reads ``no_proxy`` as older versions do."""
    name, first = ("grpcio", (1, 85)) if protocol == GRPC else ("requests", (2, 34))
    return tuple(map(int, version(name).split(".")[:2])) < first


@pytest.mark.parametrize(("variables", "expected"), VARIABLES)
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_which_variable_applies(monkeypatch, protocol, variables, expected):
    expected = expected[protocol == GRPC]
    if variables.get("no_proxy") in ("host", ".localhost") and is_old(protocol):
        pytest.skip("it compares the ends of names, and takes the dot for a part of one")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with Proxy("403") as one, Proxy("403") as other:
        for name, value in variables.items():
            proxy = {"A": f"http://{one.address}", "B": f"http://{other.address}"}.get(value, value)
            monkeypatch.setenv(name, proxy)
        found = find_proxy("http://localhost:1", grpc=protocol == GRPC)
        doctor("http://localhost:1")
        really = one if one.asked else other if other.asked else None
    assert (found and found.variable) == expected
    assert (found and found.address) == (really and really.address)


@pytest.mark.parametrize(
    ("target", "exempted", "applies"),
    [
        ("127.0.0.1:1", "", True),
        ("127.0.0.1:1", "127.0.0.0/8", False),
        ("127.0.0.1:1", "10.0.0.0/8", True),
        ("dns:///localhost:1", "", True),
        ("dns:///localhost:1", "localhost", False),
        ("ipv4:127.0.0.1:1", "127.0.0.1", False),
        ("unix:///run/no-such-socket", "", False),
    ],
)
def test_targets_of_grpc(monkeypatch, target, exempted, applies):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    with Proxy("403") as proxy:
        monkeypatch.setenv("grpc_proxy", f"http://{proxy.address}")
        monkeypatch.setenv("no_grpc_proxy", exempted)
        _, out = doctor(target)
        assert bool(proxy.asked) is applies
    assert ("(grpc_proxy)" in out) is applies


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_what_arrives_through_a_proxy(monkeypatch, protocol):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with Receiver() as receiver, Proxy("lead", receiver.endpoints[protocol]) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        code, out = doctor("http://collector.invalid:4317")
    assert code == 0, out
    assert f"through the proxy {proxy.address} (http_proxy): a test span has arrived" in out


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_what_the_collector_behind_a_proxy_says(monkeypatch, protocol):
    """It is told apart where it can be: the collector's credentials are not the proxy's."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with (
        Misbehaving(protocol, lambda *_: Says(401, "UNAUTHENTICATED")) as receiver,
        Proxy("lead", receiver.endpoint) as proxy,
    ):
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        code, out = doctor("http://collector.invalid:4317")
    assert code == 1
    assert ": The collector wants credentials: OTEL_EXPORTER_OTLP_HEADERS" in out
    assert f"Requests go through the proxy {proxy.address} that http_proxy names" in out


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("http://proxy:3128", "proxy:3128"),
        ("http://me:s3cret@proxy:3128/", "proxy:3128"),
        ("http://me:s3c%40ret@proxy", "proxy"),
        ("http://me:12/s3cret@proxy:3128", "…"),
        ("http://me:12?s3cret@proxy:3128", "…"),
        ("me:s3cret@proxy:3128", "proxy:3128"),
        ("socks5://me:s3cret@[::1]:1080", "[::1]:1080"),
        ("http://", "…"),
    ],
)
def test_no_password_is_shown(monkeypatch, written, shown):
    monkeypatch.setenv("HTTP_PROXY", written)
    assert find_proxy("http://collector:4318", grpc=False).address == shown


@pytest.mark.parametrize(
    "written", ["127.0.0.1:3128", "https://proxy:1", "socks5://proxy:1", "http://", "http://[", ""]
)
def test_a_proxy_that_grpc_cannot_use_is_none(monkeypatch, written):
    monkeypatch.setenv("http_proxy", written)
    assert find_proxy("http://collector:4317", grpc=True) is None
