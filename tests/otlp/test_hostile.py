"""Servers, sessions and exporters that do what none should."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
import types
from time import monotonic

import grpc
import pytest
import requests
from distributed.utils_test import captured_logger
from support.memory import FACTORY
from support.misbehaving import Misbehaving, Says
from support.records import segment
from support.standard import make_certificates

from dask_otel import __version__
from dask_otel.errors import SettingError
from dask_otel.otlp import exporter as module
from dask_otel.otlp.environment import Limits
from dask_otel.otlp.exporter import ExportThread, SpanExportQueue
from dask_otel.otlp.transport import MAX_BODY, RetryDecision, Sender, make_senders
from dask_otel.safety import Safety

SECRET = "planted-secret"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n"


def one_span(sender):
    form = sender.form(FACTORY)
    return form.request([form.span(segment())])


def send(endpoint=None):
    """Send one span, once."""
    (sender,) = make_senders(endpoint)
    try:
        return sender.send(one_span(sender))
    finally:
        sender.shutdown()


def export_thread(sender, **limits):
    safety = Safety()
    return ExportThread(sender, SpanExportQueue(sender.form(FACTORY), safety, Limits(**limits)), safety)


@contextlib.contextmanager
def raw_server(parts, pause=0.0):
    """Answer any request with bytes, one part after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(100_000)
                    for part in parts():
                        connection.sendall(part)
                        if over.wait(pause):
                            break

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def http(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")


def endless(part):
    def parts():
        yield HEAD + b"\r\n"
        while True:
            yield part

    return parts


def test_an_answer_that_never_ends_takes_no_memory(http, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    with raw_server(endless(b"x" * 65536)) as endpoint:
        begin = monotonic()
        assert send(endpoint).decision is RetryDecision.SENT  # the status said so
        assert monotonic() - begin < 30


@pytest.mark.slow
def test_an_answer_that_comes_byte_by_byte_takes_no_longer_than_the_timeout(http, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with raw_server(endless(b"x"), pause=0.05) as endpoint:
        begin = monotonic()
        assert send(endpoint).decision is RetryDecision.SENT
        assert monotonic() - begin < 30  # the whole of it would take 200 s


@pytest.mark.parametrize("body", [b"\x1f\x8b junk", b"\xff" * MAX_BODY, b"{}", b""])
def test_an_answer_that_cannot_be_read_is_no_failure(http, body):
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with raw_server(lambda: [head + body]) as endpoint:
        assert send(endpoint).decision is RetryDecision.SENT


def test_what_a_server_says_is_one_printable_line(http):
    with raw_server(lambda: [b"HTTP/1.1 503 \x1b[31mred" + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"]) as endpoint:
        said = send(endpoint).message
    assert said.isprintable()
    assert len(said) < 1000


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_asks_for_no_wait_is_not_asked_without_end(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setattr(module, "BACK_OFF", (0.1, 0.1))
    with (
        Misbehaving(protocol, lambda *_: Says(503, "RESOURCE_EXHAUSTED", wait=0)) as receiver,
        captured_logger("distributed.dask_otel"),
    ):
        (sender,) = make_senders(receiver.endpoint)
        pipeline = export_thread(sender, delay=0.0)
        begin = monotonic()
        pipeline.put([segment()])
        while len(receiver.requests) < 5:
            threading.Event().wait(0.01)
        assert monotonic() - begin > 4 * 0.05
        pipeline.close(0.1)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("header", ["authorization=a%0A{}", "x-bin={}", "a b={}", "authorization=%C4%80{}"])
def test_headers_that_cannot_be_sent_are_never_shown(protocol, header, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", header.format(SECRET))
    with Misbehaving(protocol) as receiver:
        try:
            answer = send(receiver.endpoint)
            said = answer.message
            assert answer.decision in (RetryDecision.SENT, RetryDecision.REFUSED)  # not the spans' fault
        except SettingError as error:
            said = str(error)
    assert SECRET not in said


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    "endpoint",
    ["http://user:{}@127.0.0.1:1", "http://u:{}@a..b:4318", "http://u:{}@host:99999", "u:{}@host:4317"],
)
def test_a_password_in_the_endpoint_is_never_shown(protocol, endpoint, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    try:
        said = send(endpoint.format(SECRET)).message
    except SettingError as error:
        said = str(error)
    assert said
    assert SECRET not in said


class Session(requests.Session):
    """What a credential provider may give."""

    error: Exception | None = None

    def request(self, *args, **options):
        if self.error:
            raise self.error
        return super().request(*args, **options)


def test_no_redirect_is_followed(http):
    """The POST would become a GET."""
    fault = Says(302, "UNKNOWN", headers=(("Location", "/elsewhere"),))
    with Misbehaving("http/protobuf", lambda *_: fault) as receiver:
        answer = send(receiver.endpoint)
    assert answer.decision is RetryDecision.REFUSED
    assert answer.message.startswith("HTTP 302")


class OfTheProvider(Exception):
    """An error that is not of ``requests``."""


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    """Install a credential provider, and return what sets what it gives."""
    info = tmp_path / "dask_otel_test_credentials-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dask-otel-test-credentials\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[opentelemetry_otlp_credential_provider]\nours = dask_otel_test_credentials:provide\n"
    )
    module = types.ModuleType("dask_otel_test_credentials")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def give(transport, given):
        monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_{transport}_CREDENTIAL_PROVIDER", "ours")
        module.provide = lambda: given
        return given

    return give


def test_a_credential_provider_that_fails_for_a_while_loses_nothing(http, monkeypatch, credentials):
    credentials("HTTP", Session())
    monkeypatch.setattr(Session, "error", OfTheProvider(SECRET))
    with Misbehaving("http/protobuf") as receiver:
        answer = send(receiver.endpoint)
        assert answer.decision is RetryDecision.REFUSED  # tried again for ten minutes
        assert SECRET not in answer.message
        monkeypatch.setattr(Session, "error", None)
        assert send(receiver.endpoint).decision is RetryDecision.SENT


def test_a_session_that_others_use_too_is_theirs(http, monkeypatch, credentials):
    shared = credentials("HTTP_TRACES", Session())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={SECRET}")
    with Misbehaving("http/protobuf", lambda *_: Says(503, "UNAVAILABLE")) as receiver:
        (sender,) = make_senders(receiver.endpoint)
        theirs = shared.post(f"{receiver.endpoint}/v1/traces", data=b"")  # no exception of ours
        assert theirs.status_code == 503
        assert sender.send(one_span(sender)).decision is RetryDecision.LATER
    assert shared.headers == requests.Session().headers
    assert [SECRET in repr(headers) for headers in receiver.headers] == [False, True]


@pytest.mark.parametrize("name", ["GRPC", "GRPC_TRACES"])
def test_a_credential_provider_over_grpc(name, monkeypatch, credentials, tmp_path):
    files = make_certificates(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with Misbehaving("grpc", tls=files.server) as receiver:
        assert send(receiver.endpoint).decision is RetryDecision.LATER
        credentials(name, grpc.ssl_channel_credentials(files.authority.read_bytes()))
        assert send(receiver.endpoint).decision is RetryDecision.SENT


@pytest.mark.parametrize("transport", ["HTTP", "GRPC_TRACES"])
def test_a_credential_provider_that_gives_something_else_is_named(transport, monkeypatch, credentials):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc" if "GRPC" in transport else "http/protobuf")
    credentials(transport, object())
    with pytest.raises(SettingError, match=f"OTEL_PYTHON_EXPORTER_OTLP_{transport}_CREDENTIAL_PROVIDER = 'ours'"):
        send("https://localhost:1")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_learns_who_sends(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with Misbehaving(protocol) as receiver:
        send(receiver.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "User-Agent=mine")
        send(receiver.endpoint)
    ours, theirs = ({name.lower(): value for name, value in each.items()}["user-agent"] for each in receiver.headers)
    assert re.match(rf"dask-otel/{re.escape(__version__)} OTel-OTLP-Exporter-Python/\d", ours)
    assert protocol == "grpc" or theirs == "mine"


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr)
def test_an_exporter_that_would_end_its_thread_does_not(error, monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", (0.01, 0.01))

    class Rude:
        calls = 0

        def export(self, spans):
            self.calls += 1
            if self.calls < 3:
                raise error

        def shutdown(self):
            pass

    rude = Rude()
    with captured_logger("distributed.dask_otel"):
        pipeline = export_thread(Sender("rude", rude), delay=0.0)
        pipeline.put([segment()])
        while pipeline.unsent:
            threading.Event().wait(0.01)
        pipeline.close(30)
    assert rude.calls == 3


def test_a_queue_that_becomes_empty_while_the_thread_waits_does_not_end_it():
    """The only record is dropped for one that does not fit either."""
    sent = threading.Event()

    class Exporter:
        def export(self, spans):
            sent.set()

        def shutdown(self):
            pass

    with captured_logger("distributed.dask_otel"):
        pipeline = export_thread(Sender("test", Exporter()), max_bytes=30_000, delay=0.1)
        large = segment(metrics={("execute", str(n), "x", "seconds"): 1.0 for n in range(1000)})
        pipeline.put([segment()])
        pipeline.put([large])
        assert pipeline.queue.waiting == 0
        threading.Event().wait(0.2)
        pipeline.put([segment()])
        assert sent.wait(10)
        pipeline.close(30)


ABORTS = [
    {"OTEL_EXPORTER_OTLP_CERTIFICATE": "ca", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "cert"},
    {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "cert", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "empty"},
    {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "empty", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "key"},
    {"OTEL_EXPORTER_OTLP_CERTIFICATE": "empty"},
    {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "cert", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "other"},
    {"OTEL_EXPORTER_OTLP_CLIENT_KEY": "key"},
]


@pytest.mark.slow
@pytest.mark.parametrize("variables", ABORTS, ids=lambda each: "-".join(each.values()))
def test_wrong_files_for_tls_are_named_and_do_not_end_the_process(variables, tmp_path):
    """gRPC would: in a process of its own, so that the tests would live to tell."""
    code = f"""
import os, trustme
from pathlib import Path
folder = Path({str(tmp_path)!r})
authority, other = trustme.CA(), trustme.CA()
mine = authority.issue_cert("localhost")
(folder / "ca").write_bytes(authority.cert_pem.bytes())
(folder / "cert").write_bytes(mine.cert_chain_pems[0].bytes())
(folder / "key").write_bytes(mine.private_key_pem.bytes())
(folder / "other").write_bytes(other.issue_cert("localhost").private_key_pem.bytes())
(folder / "empty").write_bytes(b"")
os.environ |= {{name: f" {{folder / value}} " for name, value in {variables!r}.items()}}
from dask_otel.errors import SettingError
from dask_otel.otlp.transport import make_senders
try:
    make_senders("https://localhost:4317")
except SettingError as error:
    print("named", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("named OTEL_EXPORTER_OTLP_C")
