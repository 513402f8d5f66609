"""Wrong set-ups: the first line of ``dask-otel doctor`` names the cause and what to do; the exit code is 1.

With ``--scheduler`` it names the same. Each one is a process of its own, as a person starts it, against real servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

import pytest
from support.environment import environment
from support.misbehaving import Hangs, Misbehaving, Says, Strict
from support.processes import cluster, our_errors
from support.proxy import Proxy
from support.standard import make_certificates
from support.wire import Wire

from dask_otel.cli.doctor_advice import Failure, advice
from dask_otel.cli.probe import Listener, what_listens
from dask_otel.cli.receiver import Receiver

GRPC, HTTP = "grpc", "http/protobuf"
SECRET = "planted-secret"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
pytestmark = pytest.mark.slow
ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
#: Nothing listens there.
DEAD = "http://127.0.0.1:1"


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


class Denying:
    """An HTTP server that wants credentials, for spans and metrics."""

    class _Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(401)

        def log_message(self, *args):
            """Stay silent."""

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def black_hole():
    """An endpoint whose packets are dropped, as by a firewall: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


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
                    "The collector refuses the credentials: OTEL_EXPORTER_OTLP_HEADERS was sent with key (values are "
                    "not shown). Is the key right",
                )
                status = str(fault.http if protocol == HTTP else fault.grpc)
                assert not re.search(rf"\b{status}\b", found[1][0])  # a port may contain these digits
                assert found[1][1].startswith("  reported: "), found[1]
                assert status in found[1][1]
                # A header without a value may be a key without a name.
                for headers in ("", f"{SECRET}="):
                    variables = {ENDPOINT: receiver.endpoint, PROTOCOL: protocol, HEADERS: headers}
                    check(doctor(**variables), "The collector wants credentials: OTEL_EXPORTER_OTLP_HEADERS, e.g.")

    def test_hangs(self, protocol):
        variables = {PROTOCOL: protocol, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        with Wire("http://127.0.0.1:1", "hang") as wire:
            found = doctor(**variables, **{ENDPOINT: wire.endpoint})
        check(found, "The port takes connections and does not answer, neither gRPC, HTTP nor TLS", "restart it")
        with Misbehaving(protocol, lambda *_: Hangs()) as receiver:
            found = doctor(**variables, **{ENDPOINT: receiver.endpoint})
        check(found, "The port speaks the right protocol, but the collector does not answer the request in time")
        with black_hole() as endpoint:
            found = doctor(**variables, **{ENDPOINT: endpoint})
        check(found, "No connection within 2 s: a firewall", "open that port for this machine")

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


def test_nothing_is_set_and_nothing_listens():
    code, lines = doctor(**{"OTEL_EXPORTER_OTLP_PROTOCOL": GRPC}, http_proxy="http://127.0.0.1:1")
    assert code == 1
    assert "No endpoint is set, and this is the default: OTEL_EXPORTER_OTLP_ENDPOINT names another." in lines[0]


def test_no_fault_of_an_endpoint_that_nobody_has_set():
    with Receiver() as receiver:
        code, lines = doctor(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=receiver.endpoints[GRPC])
    assert code == 0, lines
    assert not [line for line in lines if "localhost" in line]
    code, lines = doctor(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:4317", no_grpc_proxy="", http_proxy=DEAD)
    assert [line for line in lines if line.startswith("✗ ")] == lines[:1]
    assert "http://127.0.0.1:4317 through" in lines[0]


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
    check(found, "with double underscores, e.g. DASK_OTEL__CAPTURE__PRESET", "dask-otel hides all")
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
    assert "dask_otel - WARNING" not in log
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
    # Dask itself warns, now and then, of a heartbeat that it reads after the worker has left.
    assert "dask_otel - WARNING" not in log
    assert our_errors(log) == []


def test_a_misspelt_variable_is_in_the_scheduler_s_log_once(tmp_path):
    env = {"OTEL_TRACES_EXPORTER": "none", "OTEL_SERVICE_NAMES": SECRET}
    with cluster(tmp_path, env=env, workers=0) as processes:
        processes.scheduler.wait_for("its page is /otel/")
    log = processes.scheduler.log
    assert log.count("OTEL_SERVICE_NAMES has no effect: did you mean OTEL_SERVICE_NAME?") == 1
    assert SECRET not in log


@pytest.mark.parametrize(
    ("make_receiver", "protocol", "line"),
    [
        (lambda: Misbehaving(GRPC), HTTP, "This is not an HTTP port: use OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        (Strict, HTTP, "This is not an HTTP port: use OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        (lambda: Misbehaving(HTTP), GRPC, "This is not a gRPC port: use OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        (
            lambda: Misbehaving(GRPC, lambda *_: Says(401, "UNAUTHENTICATED")),
            GRPC,
            "refuses the credentials: OTEL_EXPORTER_OTLP_HEADERS was sent with key (values are not shown)",
        ),
        (contextlib.nullcontext, GRPC, "Nothing listens there: is the collector up"),
        (lambda: Misbehaving(HTTP), HTTP, "Requests go through the proxy 127.0.0.1:1 that http_proxy names."),
    ],
    ids=["HTTP to gRPC", "HTTP to Go's gRPC", "gRPC to HTTP", "401", "nobody", "a dead proxy"],
)
def test_a_scheduler_that_cannot_send(tmp_path, make_receiver, protocol, line):
    """The same cause and advice as without ``--scheduler``, in the first line."""
    with make_receiver() as server:
        endpoint = server.endpoint if server else DEAD
        variables = {ENDPOINT: endpoint, PROTOCOL: protocol, HEADERS: f"key={SECRET}", "OTEL_METRICS_EXPORTER": "none"}
        variables |= {"http_proxy": DEAD} if "proxy" in line else {}
        with cluster(tmp_path, env=variables, workers=1) as processes:
            assert processes.client.submit(sum, [1, 2]).result() == 3
            processes.scheduler.wait_for("cannot send spans")
            found = doctor("--scheduler", processes.address)
            plain = doctor(**variables)
    where = f"{endpoint}/v1/traces" if protocol == HTTP else endpoint
    check(found, f"✗ exporter otlp, {where}", line)
    assert found[1][0] == plain[1][0]
    assert re.match(r"  0 spans sent, \d+ waiting; fails since \d{4}-", found[1][1])
    assert found[1][2].startswith("  reported: ")
    assert SECRET not in "".join(found[1])


def test_a_scheduler_whose_metrics_fail_too(tmp_path):
    with cluster(tmp_path, env={ENDPOINT: DEAD}, workers=1) as processes:
        assert processes.client.submit(sum, [1, 2]).result() == 3
        for items in ("spans", "metrics"):
            processes.scheduler.wait_for(f"cannot send {items}")
        code, lines = doctor("--scheduler", processes.address)
    assert code == 1
    assert "Nothing listens there" in lines[0]
    assert f"✗ metrics, exporter otlp, {DEAD}: fail as the spans do" in lines


@pytest.mark.parametrize(
    ("listening", "form", "line"),
    [
        (HTTP, "http://localhost:{}", "This is not a gRPC port: use OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or"),
        (GRPC, "https://localhost:{}", "The port does not speak TLS: write http:// in the endpoint."),
        (GRPC, "localhost:{}", "The port does not speak TLS: write http:// in the endpoint."),
        (
            HTTP,
            "https://localhost:{}",
            "The port does not speak TLS: write http:// in the endpoint, and set "
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf.",
        ),
        (GRPC, "http://localhost:{}", "Something listens there now. Either it has just started, or gRPC reports the"),
        (None, "http://localhost:{}", "Something listens there now. Either it has just started, or gRPC reports the"),
    ],
    ids=["HTTP", "no TLS", "no scheme", "HTTP without TLS", "gRPC, started late", "another program"],
)
def test_a_refusal_at_one_address_of_a_host(listening, form, line):
    """What gRPC reports last may be of ::1, where nothing listens, though a server does at 127.0.0.1."""
    message = (
        "UNAVAILABLE: last error: UNKNOWN: ipv6:%5B::1%5D:4318: Failed to connect to remote host: Connection refused"
    )
    with Misbehaving(listening) if listening else Wire(DEAD) as server:
        endpoint = form.format(server.endpoint.rpartition(":")[2])
        assert advice(Failure(GRPC, endpoint, message)).startswith(line)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_server_that_ends_connections_at_once(monkeypatch, at_once):
    """It does not speak TLS, though no handshake fails over a connection that has already ended.

    The end may come even before ``connect`` has returned, which raises then.
    """
    create_connection = socket.create_connection

    def connect_and_wait(*args):
        connection = create_connection(*args)
        if at_once:
            connection.close()
            raise ConnectionResetError
        poll = select.poll()
        poll.register(connection, select.POLLHUP)
        assert poll.poll(10_000)
        return connection

    with Wire(DEAD) as server:
        monkeypatch.setattr(socket, "create_connection", connect_and_wait)
        assert what_listens(server.endpoint) == Listener()


@pytest.mark.parametrize("target", ["http://localhost:1", "dns:localhost:1", "http://127.0.0.1:1"])
def test_a_refusal_at_all_addresses_of_a_host(target):
    assert advice(Failure(GRPC, target, "UNAVAILABLE: Connection refused")).startswith("Nothing listens there: ")


@pytest.mark.parametrize(
    ("make_receiver", "variables", "line"),
    [
        (lambda: Misbehaving(HTTP), {PROTOCOL: GRPC}, "use OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        (
            lambda: Misbehaving(HTTP),
            {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": GRPC, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": HTTP},
            "use OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf",
        ),
        (
            Denying,
            {PROTOCOL: HTTP},
            "The collector wants credentials: OTEL_EXPORTER_OTLP_HEADERS, e.g.",
        ),
    ],
    ids=["protocol", "protocol of metrics", "headers"],
)
def test_before_any_work_the_variable_of_both_signals_is_named(tmp_path, make_receiver, variables, line):
    with make_receiver() as server:
        env = {ENDPOINT: server.endpoint.replace("127.0.0.1", "localhost")} | variables
        with cluster(tmp_path, env=env, workers=0) as processes:
            processes.scheduler.wait_for("cannot send metrics")
            found = doctor("--scheduler", processes.address)
            port = processes.client.scheduler_info()["services"]["dashboard"]
            html = urlopen(f"http://127.0.0.1:{port}/otel/").read().decode()
    check(found, "✗ metrics, exporter otlp, ", line)
    assert "<code>dask-otel doctor --scheduler &lt;address&gt;</code> names the cause" in html


def test_a_scheduler_with_values_that_cannot_be_used(tmp_path):
    """Only the environment of the scheduler has them: its status, the page and the doctor show them."""
    env = {
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPONT": f"http://u:{SECRET}@host",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_METRIC_EXPORT_INTERVAL": "soon",
        "DASK_OTEL__SWEEP_INTERVAL": "banana",
        "DASK_OTEL__TRACE_URL": f"http://host?key={SECRET}",
        "DASK_OTEL__PASWORD": SECRET,
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http",
    }
    with cluster(tmp_path, env=env, workers=0) as processes:
        code, lines = doctor("--scheduler", processes.address)
        port = processes.client.scheduler_info()["services"]["dashboard"]
        status = urlopen(f"http://127.0.0.1:{port}/otel/status.json").read().decode()
        html = unescape(urlopen(f"http://127.0.0.1:{port}/otel/").read().decode())
    assert code == 1
    problems = [
        "OTEL_EXPORTER_OTLP_ENDPONT has no effect: did you mean OTEL_EXPORTER_OTLP_ENDPOINT?",
        "OTEL_METRIC_EXPORT_INTERVAL = 'soon' cannot be used",
        "otel.sweep-interval = 'banana' cannot be used",
        "otel.trace-url = (not shown) cannot be used",
        "otel.pasword = (not shown) cannot be used",
    ]
    for problem in problems:
        assert [line for line in lines if line.startswith(f"✗ {problem}")], lines
        assert f'<p class="bad">{problem}' in html
    remark = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL = 'http' is taken as http/protobuf"
    assert [line for line in lines if line.startswith(f"· {remark}")], lines
    assert f'<p class="dim">{remark}' in html
    assert SECRET not in html + status
    assert lines[-1] == "Variables and settings are those of the scheduler's process: set them where it is started."


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_scheduler_that_has_no_answer_yet(tmp_path, protocol):
    is_asked = threading.Event()
    with Misbehaving(protocol, lambda *_: is_asked.set() or Hangs()) as receiver:
        env = {ENDPOINT: receiver.endpoint, PROTOCOL: protocol, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        with cluster(tmp_path, env=env | {"OTEL_METRICS_EXPORTER": "none"}, workers=1) as processes:
            _, before = doctor("--scheduler", processes.address)
            assert processes.client.submit(sum, [1, 2]).result() == 3
            assert is_asked.wait(60)
            code, lines = doctor("--scheduler", processes.address)
            processes.scheduler.kill()  # it would wait for the answer
    assert (code, lines[0]) == (0, "✓ is on")
    assert before[1].endswith(": nothing was sent yet")
    assert re.match(r"· exporter otlp, http://\S+: no answer yet since \d{4}-\S+ \S+ UTC, \d+ waiting$", lines[1])


def on_a_terminal(columns, **variables):
    """Run the doctor on a terminal; what it writes there."""
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in environment({"TERM": "xterm"}, variables).items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from dask_otel.cli import main; main()", "doctor"],
        env=env,
        stdin=far,
        stdout=far,
        stderr=far,
    )
    os.close(far)
    written = b""
    with contextlib.suppress(OSError):  # the process has ended
        while data := os.read(near, 4096):
            written += data
    os.close(near)
    return process.wait(60), written.decode()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_gets_whole_words(columns):
    variables = {ENDPOINT: DEAD, "OTEL_SDK_DISABLD": "x", "OTEL_EXPORTER_OTLP_TIMEOUT": "5", HEADERS: f"key={SECRET}"}
    code, written = on_a_terminal(columns, **variables)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written).replace("\r\n", "\n").rpartition("\r")[2].splitlines()
    _, whole = doctor(**variables)
    assert code == 1
    shown = shown[next(n for n, line in enumerate(shown) if line.startswith("✗")) :]
    assert max(map(len, shown)) <= columns
    assert not [line for line in shown if line.startswith(" ") and not line.strip()]
    words = " ".join(shown).split()
    for line in whole[:4]:
        assert " ".join(line.split()) in " ".join(words)


def test_a_terminal_shows_what_is_waited_for():
    with Wire("http://127.0.0.1:1", "hang") as wire:
        code, written = on_a_terminal(200, **{ENDPOINT: wire.endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    assert code == 1
    assert f"waiting for {wire.endpoint}, up to 1 s" in written
    assert f"trying what listens at {wire.endpoint}" in written
