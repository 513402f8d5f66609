"""A small OTLP receiver for the demo and the tests: the real protocol over gRPC and HTTP, kept in memory."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service

from ..schema import LINK_TYPE

__all__ = ["Receiver", "Span", "Store"]

_PACKAGE = "opentelemetry.proto.collector"
#: By path over HTTP: the service's name over gRPC, its two messages, and the method of ``Store`` that takes a request.
_SERVICES: dict[str, tuple[str, Any, Any, str]] = {
    "/v1/traces": (
        f"{_PACKAGE}.trace.v1.TraceService",
        trace_service.ExportTraceServiceRequest,
        trace_service.ExportTraceServiceResponse,
        "take",
    ),
    "/v1/metrics": (
        f"{_PACKAGE}.metrics.v1.MetricsService",
        metrics_service.ExportMetricsServiceRequest,
        metrics_service.ExportMetricsServiceResponse,
        "take_metrics",
    ),
}


@dataclass(frozen=True)
class Span:
    """A span as it arrived. Ids are hexadecimal; times seconds since the epoch."""

    name: str
    trace_id: str
    span_id: str
    #: Empty for a root.
    parent_id: str
    start: float
    end: float
    attributes: dict[str, Any]
    #: ``(trace id, span id, dask.link.type)``
    links: tuple[tuple[str, str, str], ...]
    #: ``Unset`` or ``Error``
    status: str
    status_message: str
    resource: dict[str, Any]
    #: ``(name, attributes)``
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    dropped_links: int = 0

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.end - self.start


class Store:
    """Keeps the spans of export requests, and requests with metrics as they are."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self.metrics: list[metrics_service.ExportMetricsServiceRequest] = []
        self._arrived = threading.Condition()

    def take(self, request: trace_service.ExportTraceServiceRequest) -> None:
        """Keep the spans of a request."""
        spans = [
            _span(span, _values(by_resource.resource.attributes))
            for by_resource in request.resource_spans
            for by_scope in by_resource.scope_spans
            for span in by_scope.spans
        ]
        with self._arrived:
            self._spans += spans
            self._arrived.notify_all()

    def take_metrics(self, request: metrics_service.ExportMetricsServiceRequest) -> None:
        """Keep a request with metrics."""
        with self._arrived:
            self.metrics.append(request)
            self._arrived.notify_all()

    def wait(self, enough: Callable[[Sequence[Span]], bool], timeout: float) -> list[Span]:
        """Wait until ``enough`` is true of all spans that have arrived, and return them.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: enough(self._spans), timeout):
                names = ", ".join(span.name for span in self._spans) or "nothing"
                raise TimeoutError(f"not all spans arrived within {timeout:g} s, only: {names}")
            return list(self._spans)

    def wait_for_trace(self, trace_id: str, timeout: float) -> list[Span]:
        """Wait for the root of a trace, which is sent last, and return the trace's spans.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        """
        spans = self.wait(
            lambda spans: any(span.trace_id == trace_id and not span.parent_id for span in spans), timeout
        )
        return [span for span in spans if span.trace_id == trace_id]


class Receiver(Store):
    """Receives OTLP on two loopback ports, free ones by default; a context manager."""

    def __init__(self, *, grpc_port: int = 0) -> None:
        super().__init__()
        pool = ThreadPoolExecutor(2, thread_name_prefix="otlp-receiver")
        self._grpc = grpc.server(pool, handlers=[_grpc_handler(self, *service) for service in _SERVICES.values()])
        port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self._http_thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        #: Where to send, by ``OTEL_EXPORTER_OTLP_PROTOCOL``.
        self.endpoints = {
            "grpc": f"http://127.0.0.1:{port}",
            "http/protobuf": f"http://127.0.0.1:{self._http.server_port}",
        }

    def __enter__(self) -> Receiver:
        self._grpc.start()
        self._http_thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._grpc.stop(grace=None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the class that answers requests over HTTP."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path in _SERVICES:
                    _, request_type, _, take = _SERVICES[self.path]
                    getattr(store, take)(request_type.FromString(body))
                self.send_response(200 if self.path in _SERVICES else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        return Handler


def _grpc_handler(store: Store, name: str, request_type: Any, response_type: Any, take: str) -> Any:
    def export(request: Any, context: object) -> Any:
        getattr(store, take)(request)
        return response_type()

    method = grpc.unary_unary_rpc_method_handler(export, request_type.FromString, response_type.SerializeToString)
    return grpc.method_handlers_generic_handler(name, {"Export": method})


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes=_values(span.attributes),
        links=tuple(
            (link.trace_id.hex(), link.span_id.hex(), _values(link.attributes).get(LINK_TYPE, ""))
            for link in span.links
        ),
        status={0: "Unset", 1: "Ok", 2: "Error"}[span.status.code],
        status_message=span.status.message,
        resource=resource,
        events=tuple((event.name, _values(event.attributes)) for event in span.events),
        dropped_links=span.dropped_links_count,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
