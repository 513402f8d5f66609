"""Wrong set-ups: the first line of ``dask-otel doctor`` names the cause and what to do; the exit code is 1.

Each one is a process of its own, as a person starts it, against real servers.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from urllib.request import urlopen

import pytest
from support.environment import environment
from support.misbehaving import Misbehaving, Says
from support.processes import cluster
from support.proxy import Proxy
from support.standard import make_certificates

GRPC, HTTP = "grpc", "http/protobuf"
SECRET = "planted-secret"
pytestmark = pytest.mark.slow
ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
_SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"


def doctor(*arguments, **variables):
    """Run the command in a process without variables for proxies; the exit code and the lines."""
    given = environment({"OTEL_EXPORTER_OTLP_TIMEOUT": "5", "OTEL_EXPORTER_OTLP_HEADERS": f"key={SECRET}"}, variables)
    env = {name: value for name, value in given.items() if name in variables or not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", "from dask_otel.cli import main; main()", "doctor", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout.splitlines()


def check(lines_and_code, *parts):
    """Check the exit code, and that the first line is about a fault and has all parts, the cause before the details."""
    code, lines = lines_and_code
    assert code == 1, lines
    assert lines[0].startswith("✗ "), lines
    for part in parts:
        assert part in lines[0], lines[0]


class Strict:
    """A gRPC server as one in Go: it ends a connection that does not begin with HTTP/2, without an answer."""

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with contextlib.suppress(OSError), connection:
                    if connection.recv(100).startswith(b"PRI * HTTP/2.0"):
                        connection.sendall(_SETTINGS_FRAME)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
class TestCollector:
    def test_is_down(self, protocol):
        found = doctor(**{ENDPOINT: "http://127.0.0.1:1", PROTOCOL: protocol})
        check(found, "http://127.0.0.1:1", "Nothing listens there: is the collector up")

    def test_wants_another_header(self, protocol):
        for fault in (Says(401, "UNAUTHENTICATED"), Says(403, "PERMISSION_DENIED")):
            with Misbehaving(protocol, lambda *_, fault=fault: fault) as receiver:
                found = doctor(**{ENDPOINT: receiver.endpoint, PROTOCOL: protocol})
            check(
                found,
                "The collector wants credentials: OTEL_EXPORTER_OTLP_HEADERS",
                str(fault.http if protocol == HTTP else fault.grpc),
            )

    def test_tls_to_a_plain_port(self, protocol):
        with Misbehaving(protocol) as receiver:
            found = doctor(**{ENDPOINT: receiver.endpoint.replace("http", "https"), PROTOCOL: protocol})
        check(found, "The port does not speak TLS: write http:// in the endpoint")

    def test_plain_to_a_port_with_tls(self, protocol, certificates):
        with Misbehaving(protocol, tls=certificates.server) as receiver:
            found = doctor(**{ENDPOINT: receiver.endpoint.replace("https", "http"), PROTOCOL: protocol})
        check(found, "The port speaks TLS: write https:// in the endpoint")
        assert "PROTOCOL" not in found[1][0]

    def test_a_proxy_in_the_way(self, protocol):
        for does in ("refuse", "403", "407"):
            with Proxy(does) as proxy, Misbehaving(protocol) as receiver:
                variables = {ENDPOINT: receiver.endpoint, PROTOCOL: protocol}
                found = doctor(**variables, http_proxy=f"http://user:{SECRET}@{proxy.address}")
            check(found, f"Requests go through the proxy {proxy.address} that http_proxy names", "add 127.0.0.1 to")
            assert "is the collector up" not in found[1][0]
            assert "TLS" not in found[1][0]

    def test_a_misspelt_variable(self, protocol):
        found = doctor(
            OTEL_EXPORTER_OTLP_ENDPONT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_HEADRS=SECRET, **{PROTOCOL: protocol}
        )
        check(found, "OTEL_EXPORTER_OTLP_ENDPONT has no effect: did you mean OTEL_EXPORTER_OTLP_ENDPOINT?")


@pytest.mark.parametrize("receiver", [lambda: Misbehaving(GRPC), Strict], ids=["Python's", "Go's"])
def test_http_to_the_grpc_port(receiver):
    with receiver() as server:
        found = doctor(**{ENDPOINT: server.endpoint, PROTOCOL: HTTP})
    check(found, "This is not an HTTP port: use OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or the HTTP port, usually 4318")
    assert "TLS" not in found[1][0]


def test_http_to_the_grpc_port_with_tls(certificates):
    with Misbehaving(GRPC, tls=certificates.server) as server:
        trusted = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificates.authority)}
        found = doctor(**{ENDPOINT: server.endpoint, PROTOCOL: HTTP}, **trusted)
        check(found, "This is not an HTTP port: use OTEL_EXPORTER_OTLP_PROTOCOL=grpc")
        found = doctor(**{ENDPOINT: server.endpoint.replace("https", "http"), PROTOCOL: HTTP})
        check(found, "The port speaks TLS: write https:// in the endpoint and set OTEL_EXPORTER_OTLP_PROTOCOL=grpc")


def test_grpc_to_the_http_port():
    with Misbehaving(HTTP) as server:
        found = doctor(**{ENDPOINT: server.endpoint, PROTOCOL: GRPC})
    check(found, "This is not a gRPC port: use OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or the gRPC port")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTEL_TRACE_EXPORTER", "OTEL_TRACES_EXPORTER"),
        ("otel_exporter_otlp_endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("DASK_OTEL_SWEEP_INTERVAL", "DASK_OTEL__SWEEP_INTERVAL"),
        ("DASK_OTEL__TRACES__IDEL_TIMEOUT", "otel.traces.idle-timeout"),
    ],
)
def test_misspelt(name, meant):
    check(doctor(**{name: "1s", "OTEL_METRICS_EXPORTER": "none"}), f"did you mean {meant}?")


def test_a_misspelt_preset():
    found = doctor(DASK_OTEL_CAPTURE_PRESET="strict", OTEL_METRICS_EXPORTER="none")
    check(found, "with double underscores, e.g. DASK_OTEL__CAPTURE__PRESET", "the bridge hides all")
    assert any("did you mean DASK_OTEL__CAPTURE__PRESET?" in line for line in found[1])


def test_variables_of_others_are_not_misspelt():
    variables = {
        "OTEL_BLRP_SCHEDULE_DELAY": "1",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs",
        "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT": "http://profiles",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_PYTHON_LOG_CORRELATION": "true",
        "OTEL_JAVAAGENT_ENABLED": "false",
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT": "http://zipkin",
        "OTEL_TRACES_EXPORTER": "none",
    }
    code, lines = doctor(**variables)
    assert code == 0, lines
    assert "did you mean" not in "\n".join(lines)


def test_only_the_page_is_no_fault():
    code, lines = doctor(OTEL_TRACES_EXPORTER="none")
    assert code == 0
    assert lines[0] == "✓ nothing is sent, as configured; the page /otel/ on the scheduler shows the runs"
    assert lines[1] == "· OTEL_TRACES_EXPORTER is none: no spans are sent"


#: Run in the scheduler's process before anything else.
_WITHOUT_PACKAGE = "import sys; sys.modules['dask_otel'] = None"
_OLD_DASK = """
import distributed.scheduler as module
del module.Scheduler.stimulus_task_erred
"""


@pytest.mark.parametrize(
    ("options", "variables", "patch", "parts", "page"),
    [
        ([], {}, "", ["nothing there preloads it: start it with --preload dask_otel"], None),
        ([], {}, _WITHOUT_PACKAGE, ["dask-otel is not installed there", "install it with that Python"], None),
        (
            ["--preload", "dask_otel"],
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/file"},
            "",
            ["it is off: OTEL_EXPORTER_OTLP_CERTIFICATE = '/no/file' cannot be used: it must be a file"],
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
        ),
        (
            ["--preload", "dask_otel"],
            {},
            _OLD_DASK,
            ["it is off: distributed ", "lacks distributed.scheduler.Scheduler.stimulus_task_erred", "Upgrade"],
            "lacks distributed.scheduler.Scheduler.stimulus_task_erred",
        ),
    ],
    ids=["no preload", "no package", "bad variable", "old distributed"],
)
def test_a_scheduler_without(tmp_path, options, variables, patch, parts, page):
    (tmp_path / "sitecustomize.py").write_text(patch)
    env = {"PYTHONPATH": f"{tmp_path}", "OTEL_EXPORTER_OTLP_HEADERS": f"key={SECRET}"} | variables
    with cluster(tmp_path, env=env, options=options, workers=0) as processes:
        found = doctor("--scheduler", processes.address)
        check(found, f"the scheduler at {processes.address} runs without dask-otel: ", *parts)
        if page:
            port = processes.client.scheduler_info()["services"]["dashboard"]
            status = json.load(urlopen(f"http://127.0.0.1:{port}/otel/status.json"))
            assert (status["on"], status["started"], page in status["why"]) == (False, False, True)
            html = urlopen(f"http://127.0.0.1:{port}/otel/").read().decode()
            assert "dask-otel is off: " in html
            assert page in html
            assert SECRET not in html + json.dumps(status)
        assert SECRET not in processes.scheduler.log


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_backend_for_traces_only_is_no_fault(tmp_path, protocol):
    with Misbehaving(protocol) as receiver:
        variables = {ENDPOINT: receiver.endpoint, PROTOCOL: protocol}
        code, lines = doctor(**variables)
        assert code == 0, lines
        assert lines[0].startswith("✓ ")
        assert any(line.startswith("· ") and "it seems to take no metrics" in line for line in lines)
        with cluster(tmp_path, env=variables, workers=0) as processes:
            processes.scheduler.wait_for("takes no metrics")
            code, lines = doctor("--scheduler", processes.address)
            port = processes.client.scheduler_info()["services"]["dashboard"]
            html = urlopen(f"http://127.0.0.1:{port}/otel/").read().decode()
        log = processes.scheduler.log
    assert code == 0, lines
    assert lines[0] == "✓ is on"
    assert any(line.startswith("· metrics, exporter otlp") and "takes no metrics" in line for line in lines)
    assert "takes no metrics, reported once" in html
    assert 'class="bad"' not in html
    assert "WARNING" not in log
    assert log.count("takes no metrics") == 1


def test_a_scheduler_that_sends_nothing_is_no_fault(tmp_path):
    with cluster(tmp_path, env={"OTEL_TRACES_EXPORTER": "none"}, workers=1) as processes:
        assert processes.client.submit(sum, [1, 2]).result() == 3
        code, lines = doctor("--scheduler", processes.address)
        port = processes.client.scheduler_info()["services"]["dashboard"]
        html = urlopen(f"http://127.0.0.1:{port}/otel/").read().decode()
    log = processes.scheduler.log
    assert code == 0, lines
    assert lines[:2] == ["✓ is on", "· no spans are sent, as configured there; its page /otel/ shows the runs"]
    assert 'class="bad"' not in html
    assert "is on and sends nothing, as configured" in log
    assert "WARNING" not in log
    assert "ERROR" not in log


def test_a_misspelt_variable_is_in_the_scheduler_s_log_once(tmp_path):
    env = {"OTEL_TRACES_EXPORTER": "none", "OTEL_SERVICE_NAMES": SECRET}
    with cluster(tmp_path, env=env, workers=0) as processes:
        processes.scheduler.wait_for("its page is /otel/")
    log = processes.scheduler.log
    assert log.count("OTEL_SERVICE_NAMES has no effect: did you mean OTEL_SERVICE_NAME?") == 1
    assert SECRET not in log
