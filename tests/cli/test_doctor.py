"""``dask-otel doctor``, against real receivers that have something wrong with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import dask
import pytest
import trustme
from click.testing import CliRunner
from distributed import Client, LocalCluster
from support.environment import clear_variables
from support.misbehaving import Misbehaving, Says
from support.wire import Wire

from dask_otel.cli.main import dask_otel
from dask_otel.cli.receiver import Receiver

PROTOCOLS = ("grpc", "http/protobuf")


@pytest.fixture
def doctor(monkeypatch):
    clear_variables(monkeypatch, proxies=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(dask_otel, ["doctor", *arguments])
        assert not result.exception or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_test_span_arrives(doctor, protocol):
    with Misbehaving(protocol) as receiver:
        code, out = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
        (sent,) = receiver.wait(lambda spans: spans, timeout=5)
    assert code == 0, out
    assert (sent.name, sent.resource["service.name"]) == ("dask-otel doctor", "dask-otel-doctor")
    assert f"✓ exporter otlp, {receiver.endpoint}" in out
    assert sent.trace_id in out


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_are_taken(doctor, protocol):
    with Receiver() as receiver:
        endpoint = receiver.endpoints[protocol]
        code, out = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    path = "/v1/metrics" if protocol != "grpc" else ""
    assert code == 0, out
    assert f"✓ exporter otlp, {endpoint}{path}: metrics are taken" in out
    assert [list(request.resource_metrics) for request in receiver.metrics] == [[]]  # nobody's charts show it


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_backend_for_traces_only_is_no_fault(doctor, protocol):
    with Misbehaving(protocol) as receiver:
        code, out = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert code == 0, out
    assert re.search(r"^· exporter otlp.*OTEL_METRICS_EXPORTER=none switches them off", out, re.MULTILINE)


def test_metrics_that_go_nowhere(doctor):
    with Receiver() as receiver:
        code, out = doctor(
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoints["grpc"],
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://127.0.0.1:1",
        )
    assert code == 1
    assert "✗ exporter otlp, http://127.0.0.1:1: " in out
    assert "Nothing listens there" in out


def test_metrics_that_go_elsewhere_are_tried_though_traces_fail(doctor):
    with Receiver() as receiver, Misbehaving("http/protobuf") as other:
        code, out = doctor(
            OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=receiver.endpoints["grpc"],
        )
        assert code == 1
        assert f"✓ exporter otlp, {receiver.endpoints['grpc']}: metrics are taken" in out
        # The advice must not break the traces.
        _, out = doctor(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=other.endpoint)
        assert "use OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf" in out


def test_a_wrong_variable_for_metrics_leaves_the_traces(doctor):
    with Receiver() as receiver:
        code, out = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoints["grpc"], OTEL_METRICS_EXPORTER="prometheus")
    assert code == 1
    assert "no metrics are sent" in out
    assert "a test span has arrived" in out


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("variables", "line", "arrives"),
    [
        ({"TRACES_ENDPOINT": "nowhere"}, "✗ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = 'nowhere' cannot be used", "metrics"),
        ({"METRICS_ENDPOINT": "nowhere"}, "✗ OTEL_EXPORTER_OTLP_METRICS_ENDPOINT = 'nowhere' cannot be used", "spans"),
        ({"TRACES_PROTOCOL": "udp"}, "✗ OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = 'udp' cannot be used", "metrics"),
        ({"METRICS_CERTIFICATE": "/no"}, "✗ OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE = '/no' cannot be used", "spans"),
        ({"TRACES_CLIENT_KEY": "/no"}, "✗ OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY = '/no' cannot be used", "metrics"),
        ({"COMPRESSION": "zip"}, "✗ OTEL_EXPORTER_OTLP_COMPRESSION = 'zip' cannot be used", "both"),
        ({"HEADERS": "planted"}, "✗ OTEL_EXPORTER_OTLP_HEADERS = '(not shown)' cannot be used", "both"),
        ({"TIMEOUT": "10000"}, "· OTEL_EXPORTER_OTLP_TIMEOUT = '10000' is taken as milliseconds, i.e. 10 s", "both"),
    ],
)
def test_a_bad_variable_of_one_signal_leaves_the_other(doctor, protocol, variables, line, arrives):
    named = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()}
    with Receiver() as receiver:
        named = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        } | named
        code, out = doctor(**named)
    assert code == ("✗" in line), out
    assert line in out
    assert "planted" not in out
    assert ("a test span has arrived" in out) is (arrives != "metrics")
    assert ("metrics are taken" in out) is (arrives != "spans")


@pytest.mark.parametrize(
    ("value", "code", "line"),
    [
        ("otlp,zipkin", 1, "✗ OTEL_TRACES_EXPORTER = 'otlp,zipkin' cannot be used"),
        ("otlp,logging", 1, "console is its name in Python"),
        ("OTLP", 0, "a test span has arrived"),
    ],
)
def test_an_exporter_that_is_unknown_takes_none_with_it(doctor, value, code, line):
    with Receiver() as receiver:
        endpoint = receiver.endpoints["grpc"]
        found, out = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_TRACES_EXPORTER=value)
    assert (found, line in out) == (code, True), out
    assert "a test span has arrived" in out


@pytest.mark.parametrize("value", ["http/json", "http"])
def test_another_encoding_over_http_is_no_fault(doctor, value):
    with Receiver() as receiver:
        endpoint = receiver.endpoints["http/protobuf"]
        code, out = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=value)
    assert code == 0, out
    assert f"· OTEL_EXPORTER_OTLP_PROTOCOL = '{value}' is taken as http/protobuf" in out


@pytest.mark.parametrize(("signal", "other"), [("TRACES", "METRICS"), ("METRICS", "TRACES")])
def test_an_endpoint_of_one_signal_only_is_no_fault(doctor, signal, other):
    with Receiver() as receiver:
        code, out = doctor(**{f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT": receiver.endpoints["grpc"]})
    assert code == 0, out
    (line,) = [line for line in out.splitlines() if line.startswith("· ")]
    assert f"only OTEL_EXPORTER_OTLP_{signal}_ENDPOINT is set" in line
    assert f"OTEL_EXPORTER_OTLP_{other}_ENDPOINT" in line


def test_where_each_value_comes_from(doctor, tmp_path, monkeypatch):
    (tmp_path / "otel.yaml").write_text("otel: {traces: {idle-timeout: 7s, pending-span-after: 20s}}")
    with Misbehaving("grpc") as receiver:
        monkeypatch.setattr(dask.config, "paths", [str(tmp_path)])
        monkeypatch.setenv("DASK_OTEL__TRACES__PENDING_SPAN_AFTER", "30s")
        with dask.config.set(
            {"otel.traces.idle-timeout": "7s", "otel.traces.pending-span-after": "30s", "otel.traces.max-groups": 7}
        ):
            code, out = doctor(
                "--endpoint",
                receiver.endpoint,
                OTEL_EXPORTER_OTLP_HEADERS="authorization=planted-secret",
                OTEL_EXPORTER_OTLP_ENDPOINT="http://user:planted-secret@elsewhere:4317",
            )
    assert code == 0, out
    assert re.search(rf"otel.traces.idle-timeout +7s +{re.escape(str(tmp_path))}/otel.yaml", out)
    assert re.search(r"otel.traces.pending-span-after +30s +environment, DASK_OTEL__TRACES__PENDING_SPAN_AFTER", out)
    assert re.search(r"otel.traces.max-groups +7 +dask.config.set", out)
    assert "otel.sweep-interval" not in out
    assert re.search(r"OTEL_EXPORTER_OTLP_ENDPOINT +http://elsewhere:4317 +environment", out)
    assert "planted-secret" not in out
    _, out = doctor("--all", "--endpoint", "http://127.0.0.1:1")
    assert re.search(r"otel.sweep-interval +1s +default", out)
    assert "have their default" not in out


@pytest.fixture(scope="module")
def tls():
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    return certificate.private_key_pem.bytes(), chain, None


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestFaults:
    @pytest.fixture(autouse=True)
    def _protocol(self, doctor, monkeypatch, protocol):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)

    def check(self, doctor, endpoint, advice):
        code, out = doctor("--endpoint", endpoint)
        assert code == 1, out
        assert "✗ exporter otlp" in out
        assert advice in out

    def test_the_other_protocol_s_port(self, doctor, protocol):
        other = next(each for each in PROTOCOLS if each != protocol)
        with Misbehaving(other) as receiver:
            self.check(doctor, receiver.endpoint, f"use OTEL_EXPORTER_OTLP_PROTOCOL={other}")

    def test_nobody_listens(self, doctor, protocol):
        self.check(doctor, "http://127.0.0.1:1", "Nothing listens there")

    def test_no_such_host(self, doctor, protocol):
        self.check(doctor, "http://no-such-host.invalid:4317", "has no address here")

    @pytest.mark.slow
    def test_hangs(self, doctor, protocol, monkeypatch):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
        with Wire("http://127.0.0.1:1", "hang") as wire:
            self.check(doctor, wire.endpoint, "does not answer")

    def test_tls_to_a_plain_port(self, doctor, protocol):
        with Misbehaving(protocol) as receiver:
            self.check(doctor, receiver.endpoint.replace("http", "https"), "write http:// in the endpoint")

    def test_plain_to_a_tls_port(self, doctor, protocol, tls):
        with Misbehaving(protocol, tls=tls) as receiver:
            self.check(doctor, receiver.endpoint.replace("https", "http"), "write https:// in the endpoint")

    def test_an_unknown_authority(self, doctor, protocol, tls):
        with Misbehaving(protocol, tls=tls) as receiver:
            self.check(doctor, receiver.endpoint, "OTEL_EXPORTER_OTLP_CERTIFICATE names")

    def test_a_wrong_path(self, doctor, protocol):
        with Misbehaving(protocol, lambda *_: Says(404, "UNIMPLEMENTED")) as receiver:
            self.check(doctor, receiver.endpoint, "must end in /v1/traces")

    def test_no_permission(self, doctor, protocol):
        with Misbehaving(protocol, lambda *_: Says(401, "UNAUTHENTICATED")) as receiver:
            self.check(doctor, receiver.endpoint, "OTEL_EXPORTER_OTLP_HEADERS")


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaegre"}, "OTEL_TRACES_EXPORTER = 'jaegre' cannot be used"),
        ({"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED is true: unset it to send traces and metrics"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER = 'sometimes' cannot be used"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_BSP_MAX_QUEUE_SIZE = '0' cannot be used"),
        ({"OTEL_EXPORTER_OTLP_CLIENT_KEY": "/no/file"}, "a file that can be read"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "OTEL_TRACES_SAMPLER leaves out every trace that was tried"),
        ({"OTEL_CONFIG_FILE": "otel.yaml"}, "OTEL_CONFIG_FILE is set, but not read"),
    ],
)
def test_a_bad_variable(doctor, variables, line):
    code, out = doctor(**variables)
    assert code == 1
    assert f"✗ {line}" in out or line in out


def test_nothing_is_sent_when_the_sdk_is_disabled(doctor):
    with Misbehaving("grpc") as receiver:
        code, _ = doctor("--endpoint", receiver.endpoint, OTEL_SDK_DISABLED="true")
        assert (code, receiver.requests) == (1, [])


def test_a_doubtful_wish_to_hide_something_is_said_to_hide_everything(doctor):
    with Misbehaving("grpc") as receiver, dask.config.set({"otel.capture.keys": "perhaps"}):
        code, out = doctor("--endpoint", receiver.endpoint)
    assert code == 1
    assert "dask-otel hides all that otel.capture is about, until this is mended" in out


def test_what_is_hidden_is_named_here_and_of_a_scheduler(doctor, monkeypatch):
    hidden = "· hidden by otel.capture: message, traceback, keys, code, types, clients"
    local = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0", "scheduler_port": 0}
    preset = {"otel.capture.preset": "strict", "otel.capture.tags": True}
    with Misbehaving("grpc") as receiver, dask.config.set(preset):
        code, out = doctor("--endpoint", receiver.endpoint, "--all")
        assert (code, out.count(hidden)) == (0, 1), out
        assert re.search(r"otel.capture.preset +strict +dask.config.set", out)
        assert re.search(r"otel.capture.keys +preset +default", out)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        with (
            dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}),
            LocalCluster(**local, protocol="tcp") as cluster,
        ):
            code, out = doctor("--scheduler", cluster.scheduler_address)
            assert (code, out.count(hidden)) == (0, 1), out


def test_a_bad_setting_is_named_and_everything_else_is_tried(doctor):
    with Misbehaving("grpc") as receiver, dask.config.set({"otel.traces.idle-timeout": "soon"}):
        code, out = doctor("--endpoint", receiver.endpoint)
    assert code == 1
    assert "otel.traces.idle-timeout = 'soon' cannot be used" in out
    assert "a test span has arrived" in out


def test_asks_a_live_cluster(doctor, monkeypatch):
    local = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0", "scheduler_port": 0}
    with Misbehaving("grpc") as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        with (
            dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}),
            LocalCluster(**local, protocol="tcp") as cluster,
        ):
            code, out = doctor("--scheduler", cluster.scheduler_address)
            assert code == 0, out
            assert "✓ is on" in out
            assert f"· exporter otlp, {receiver.endpoint}: nothing was sent yet" in out
            assert (
                "· whether traces arrive is not known yet: run some work and ask again, or run dask-otel doctor with "
                "the scheduler's environment"
            ) in out
    with LocalCluster(**local, protocol="tcp") as cluster:
        code, out = doctor("--scheduler", cluster.scheduler_address)
    assert code == 1
    assert "runs without dask-otel" in out


def test_no_scheduler_there(doctor, monkeypatch):
    monkeypatch.setattr("dask_otel.cli.doctor_scheduler.TIMEOUT", 0.5)
    code, out = doctor("--scheduler", "tcp://127.0.0.1:1")
    assert code == 1
    assert "no scheduler answers at 'tcp://127.0.0.1:1'" in out


def test_a_worker_s_address(doctor):
    local = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0", "protocol": "tcp"}
    with LocalCluster(**local) as cluster:
        (worker,) = cluster.workers.values()
        code, out = doctor("--scheduler", worker.address)
    assert code == 1
    assert "is a Worker, not a scheduler" in out


def test_nothing_secret_is_shown(doctor):
    _, out = doctor(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://u:planted?1@127.0.0.1:1/a?token=planted#planted",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="a=planted",
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="u:planted@host:4317",
    )
    assert "planted" not in out


@pytest.mark.slow
def test_a_bad_limit_is_named_by_every_command():
    env = os.environ | {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"}
    result = subprocess.run(
        [sys.executable, "-c", "from dask_otel.cli import main; main()", "doctor"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT = 'x' cannot be used")


@pytest.mark.parametrize(
    "link",
    [
        "http://u:planted@jaeger/{trace_id}",
        "http://u:x@planted@jaeger/{trace_id}",
        "http://jaeger/{trace_id}?t=planted",
    ],
)
def test_no_password_of_a_link_is_shown(doctor, link):
    with dask.config.set({"otel.trace-url": link}):
        _, out = doctor("--endpoint", "http://127.0.0.1:1")
    assert "jaeger" in out
    assert "planted" not in out


def test_a_live_cluster_whose_sampler_excludes_all(doctor, monkeypatch):
    local = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0", "protocol": "tcp"}
    settings = {
        "distributed.scheduler.preload": ["dask_otel"],
        "otel.traces.idle-timeout": "50ms",
        "otel.sweep-interval": "50ms",
    }
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with dask.config.set(settings), LocalCluster(**local) as cluster, Client(cluster) as client:
        _, before = doctor("--scheduler", cluster.scheduler_address)
        client.submit(sum, [1, 2]).result()
        while not cluster.scheduler.plugins["dask-otel"].sink.status()["unsampled"]:
            threading.Event().wait(0.01)
        code, out = doctor("--scheduler", cluster.scheduler_address)
    assert code == 0
    assert "· OTEL_TRACES_SAMPLER=always_off excludes every trace" in before
    assert "· the sampler has excluded every span so far: look at OTEL_TRACES_SAMPLER there" in out


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Says(503, "UNAVAILABLE", "busy"), "busy"),
        (Says(400, "INVALID_ARGUMENT"), "span spans dropped: invalid"),
    ],
    ids=["fails", "has dropped"],
)
def test_what_is_wrong_with_a_live_cluster_is_said_and_is_the_exit_code(doctor, monkeypatch, fault, line):
    local = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0", "protocol": "tcp"}
    settings = {
        "distributed.scheduler.preload": ["dask_otel"],
        "otel.traces.idle-timeout": "50ms",
        "otel.sweep-interval": "50ms",
    }
    with Misbehaving("grpc", lambda *_: fault) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        with dask.config.set(settings), LocalCluster(**local) as cluster, Client(cluster) as client:
            client.submit(sum, [1, 2]).result()
            sink = cluster.scheduler.plugins["dask-otel"].sink
            while True:
                (exporter,) = sink.status()["exporters"]
                if exporter["failing"] or "span" in {each["kind"] for each in exporter["dropped"]}:
                    break
                threading.Event().wait(0.01)
            code, out = doctor("--scheduler", cluster.scheduler_address)
    assert code == 1
    assert line in out


def test_a_folder_of_traces(doctor, tmp_path):
    variables = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    with dask.config.set({"otel.traces.folder": str(tmp_path / "traces")}):
        code, out = doctor(**variables)
        assert (code, list((tmp_path / "traces").iterdir())) == (0, [])
        assert f"✓ otel.traces.folder, {tmp_path / 'traces'}: traces can be kept there" in out
        (tmp_path / "traces").rmdir()
        (tmp_path / "traces").touch()
        code, out = doctor()
    assert code == 1
    assert f"✗ otel.traces.folder, {tmp_path / 'traces'}: Traces cannot be kept there: it has to be a folder" in out
    assert "reported: File exists" in out
