"""An OTLP receiver that does as it is told: over gRPC and HTTP, with and without TLS."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from dask_otel.cli.receiver import Store


@dataclass(frozen=True)
class Says:
    """An answer that is no success; ``http`` and ``grpc`` name the same thing in each protocol."""

    http: int
    grpc: str
    message: str = "no"
    #: Seconds to wait, as Retry-After and as RetryInfo.
    wait: int | None = None
    #: Take the spans all the same: the answer is what goes wrong.
    takes: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rejects:
    """Partial success: so many spans, the first ones, are not taken."""

    spans: int
    message: str = "too old"


@dataclass(frozen=True)
class Hangs:
    """No answer until the receiver ends."""


Fault = Says | Rejects | Hangs | None
#: Called with the number of the request (0, 1 …) and the names of its spans.
Rule = Callable[[int, Sequence[str]], Fault]


def in_turn(*faults: Fault) -> Rule:
    """One after the other, then none."""
    return lambda number, names: faults[number] if number < len(faults) else None


NO_FAULT = in_turn()


class Misbehaving(Store, TraceServiceServicer):
    """A receiver for one protocol; a context manager.

    Parameters
    ----------
    tls
        PEM texts: private key, certificate chain, and the authority of clients' certificates or None.
    """

    def __init__(self, protocol: str, rule: Rule = NO_FAULT, *, tls: Any = None, max_bytes: int = 4 * 2**20) -> None:
        super().__init__()
        self.rule = rule
        self.protocol = protocol
        #: When each request came, and what it held.
        self.requests: list[tuple[float, list[str]]] = []
        self.headers: list[dict[str, str]] = []
        #: How often each span was taken.
        self.taken: Counter[str] = Counter()
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._ended = threading.Event()
        scheme = "https" if tls else "http"
        if protocol == "grpc":
            self._grpc = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", max_bytes)])
            add_TraceServiceServicer_to_server(self, self._grpc)
            port = self._grpc.add_secure_port("127.0.0.1:0", _credentials(*tls)) if tls else None
            port = port or self._grpc.add_insecure_port("127.0.0.1:0")
        else:
            self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
            self._http.daemon_threads = True
            if tls:
                self._http.socket = _context(*tls).wrap_socket(self._http.socket, server_side=True)
            port = self._http.server_port
        self.endpoint = f"{scheme}://localhost:{port}" if tls else f"{scheme}://127.0.0.1:{port}"

    def __enter__(self) -> Misbehaving:
        if self.protocol == "grpc":
            self._grpc.start()
        else:
            threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self.protocol == "grpc":
            self._grpc.stop(grace=None).wait()
        else:
            self._http.shutdown()
            self._http.server_close()

    def _judge(self, request: ExportTraceServiceRequest) -> Fault:
        spans = [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        names = [span.name for span in spans]
        with self._lock:
            number = len(self.requests)
            self.requests.append((monotonic(), names))
        fault = self.rule(number, names)
        if isinstance(fault, Hangs):
            self._ended.wait()
        if fault is None or (isinstance(fault, Says) and fault.takes):
            self._keep(request, names)
        elif isinstance(fault, Rejects):
            self._keep(None, names[fault.spans :])
        return fault

    def _keep(self, request: ExportTraceServiceRequest | None, names: list[str]) -> None:
        with self._lock:
            self.taken.update(names)
        if request is not None:
            self.take(request)

    def Export(self, request, context):
        self.headers.append({key: str(value) for key, value in context.invocation_metadata()})
        fault = self._judge(request)
        response = ExportTraceServiceResponse()
        if isinstance(fault, Says):
            if fault.wait is not None:
                info = RetryInfo(retry_delay=Duration(seconds=fault.wait)).SerializeToString()
                context.set_trailing_metadata((("google.rpc.retryinfo-bin", info),))
            context.abort(grpc.StatusCode[fault.grpc], fault.message)
        if isinstance(fault, Rejects):
            response.partial_success.rejected_spans = fault.spans
            response.partial_success.error_message = fault.message
        return response

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits 40 ms after its headers

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.endswith("/v1/metrics"):  # as over gRPC: a backend for traces
                    return self._answer(404, b"no such path")
                receiver.headers.append(dict(self.headers) | {":path": self.path})
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if len(body) > receiver.max_bytes:
                    return self._answer(413, b"request body too large")
                fault = receiver._judge(ExportTraceServiceRequest.FromString(body))
                if isinstance(fault, Says):
                    headers = dict(fault.headers)
                    if fault.wait is not None:
                        headers["Retry-After"] = str(fault.wait)
                    return self._answer(fault.http, fault.message.encode(), headers)
                response = ExportTraceServiceResponse()
                if isinstance(fault, Rejects):
                    response.partial_success.rejected_spans = fault.spans
                    response.partial_success.error_message = fault.message
                return self._answer(200, response.SerializeToString())

            def _answer(self, status, body, headers=()):
                self.send_response(status)
                for name, value in ({"Content-Type": "application/x-protobuf"} | dict(headers)).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                """Stay silent."""

        return Handler


def _credentials(key, chain, client_authority):
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=client_authority, require_client_auth=client_authority is not None
    )


def _context(key, chain, client_authority):
    import tempfile

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(key + chain)
        file.flush()
        context.load_cert_chain(file.name)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_authority.decode())
    return context


class Strict:
    """A gRPC server as one in Go: it ends a connection that does not begin with HTTP/2, without an answer.

    It counts the others, which get settings and nothing else.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.greetings = 0
        self._host = host

    def __enter__(self) -> Strict:
        self._socket = socket.create_server((socket.gethostbyname(self._host), 0))
        self.endpoint = f"http://{self._host}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with suppress(OSError), connection:
                    if connection.recv(100).startswith(b"PRI * HTTP/2.0"):
                        self.greetings += 1
                        connection.sendall(b"\0\0\0\4\0\0\0\0\0")  # empty settings
