"""A real Jaeger: a process of our own, or one that DASK_OTEL_TEST_JAEGER_URL names, e.g. of the compose file."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from dask_otel.cli.receiver import Span
from support.backends import free_port

PATIENCE = 60.0

_CONFIG = """
extensions:
  healthcheckv2: {{use_v2: true, http: {{endpoint: "127.0.0.1:{health}"}}}}
  jaeger_storage: {{backends: {{main: {{memory: {{max_traces: 10000}}}}}}}}
  jaeger_query:
    storage: {{traces: main}}
    http: {{endpoint: "127.0.0.1:{ui}"}}
    grpc: {{endpoint: "127.0.0.1:{query}"}}
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{grpc}"}}, http: {{endpoint: "127.0.0.1:{http}"}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: main}}
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}}}
"""
#: Others than dask-otel also say that all is well.
_STATUS = {None: "Unset", 1: "Ok", "STATUS_CODE_OK": "Ok", 2: "Error", "STATUS_CODE_ERROR": "Error"}


class Jaeger:
    """Where a Jaeger listens, and what it says it has."""

    def __init__(self, ui: str, endpoints: dict[str, str]) -> None:
        self.ui = ui
        #: By OTEL_EXPORTER_OTLP_PROTOCOL.
        self.endpoints = endpoints

    def trace(self, trace_id: str, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Ask the API for a trace until it has enough. Jaeger has no event to wait for."""
        deadline = monotonic() + PATIENCE
        spans: list[Span] = []
        while monotonic() < deadline:
            try:
                with urlopen(f"{self.ui}/api/v3/traces/{trace_id}", timeout=10) as answer:
                    spans = _spans(json.load(answer))
                if enough(spans):
                    return spans
            except HTTPError as error:
                if error.code != 404:  # not there yet
                    raise
            sleep(0.1)
        raise AssertionError(f"Jaeger has only {[span.name for span in spans]} of trace {trace_id}")

    def find(self, service: str, enough: Callable[[list[Span]], bool], patience: float = PATIENCE) -> list[Span]:
        """Ask for the traces of a service until one has enough, and return that one."""
        now = datetime.now(timezone.utc)
        times = {"min": now - timedelta(hours=1), "max": now + timedelta(hours=1)}
        query = {f"query.start_time_{name}": f"{time:%Y-%m-%dT%H:%M:%SZ}" for name, time in times.items()}
        query |= {"query.service_name": service, "query.num_traces": "100"}
        by_trace: dict[str, list[Span]] = {}
        deadline = monotonic() + patience
        while monotonic() < deadline:
            try:
                with urlopen(f"{self.ui}/api/v3/traces?{urlencode(query)}", timeout=10) as answer:
                    found = _spans(json.load(answer))
            except HTTPError as error:
                if error.code != 404:  # not there yet
                    raise
                found = []
            by_trace = {}
            for span in found:
                by_trace.setdefault(span.trace_id, []).append(span)
            for spans in by_trace.values():
                if enough(spans):
                    return spans
            sleep(0.1)
        raise AssertionError(f"Jaeger has only {[[span.name for span in spans] for spans in by_trace.values()]}")


class OwnJaeger(Jaeger):
    """A Jaeger process of our own, that can be killed and started again."""

    def __init__(self, binary: Path, folder: Path) -> None:
        ports = {name: free_port() for name in ("health", "ui", "query", "grpc", "http")}
        super().__init__(
            f"http://127.0.0.1:{ports['ui']}",
            {"grpc": f"http://127.0.0.1:{ports['grpc']}", "http/protobuf": f"http://127.0.0.1:{ports['http']}"},
        )
        self._health = f"http://127.0.0.1:{ports['health']}/status"
        self._config = folder / "jaeger.yaml"
        self._config.write_text(_CONFIG.format(**ports))
        self._log = folder / "jaeger.log"
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--config", str(self._config)], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline:
            try:
                with urlopen(self._health, timeout=5) as answer:
                    if json.load(answer)["healthy"]:
                        return
            except (URLError, OSError):
                pass
            assert self._process.poll() is None, self._log.read_text()
            sleep(0.05)
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


def find_running() -> Jaeger | None:
    """A Jaeger with its usual ports, given by the address of its pages."""
    url = os.environ.get("DASK_OTEL_TEST_JAEGER_URL")
    if not url:
        return None
    host = url.rpartition(":")[0]
    return Jaeger(url, {"grpc": f"{host}:4317", "http/protobuf": f"{host}:4318"})


def _spans(answer: dict[str, Any]) -> list[Span]:
    return [
        Span(
            name=span["name"],
            trace_id=span["traceId"],
            span_id=span["spanId"],
            parent_id=span.get("parentSpanId", ""),
            start=int(span["startTimeUnixNano"]) / 1e9,
            end=int(span["endTimeUnixNano"]) / 1e9,
            attributes=_values(span.get("attributes", [])),
            links=tuple(
                (link["traceId"], link["spanId"], _values(link.get("attributes", [])).get("dask.link.type", ""))
                for link in span.get("links", [])
            ),
            status=_STATUS[span.get("status", {}).get("code")],
            status_message=span.get("status", {}).get("message", ""),
            resource=_values(by_resource["resource"]["attributes"]),
        )
        for by_resource in answer["result"]["resourceSpans"]
        for by_scope in by_resource["scopeSpans"]
        for span in by_scope["spans"]
    ]


def _values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {attribute["key"]: _value(attribute["value"]) for attribute in attributes}


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_value(item) for item in content.get("values", [])]
    return int(content) if kind == "intValue" else float(content) if kind == "doubleValue" else content
