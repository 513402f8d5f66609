"""Traces and metrics, by what the standard calls them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METRICS", "TRACES", "Signal"]


@dataclass(frozen=True)
class Signal:
    """One kind of data."""

    #: As in the variables' names, ``OTEL_EXPORTER_OTLP_<NAME>_ENDPOINT``.
    name: str
    #: What an endpoint for all signals gets appended over HTTP.
    path: str
    #: Entry points of exporters.
    group: str
    #: Variable with the names of exporters, and the one with the ms that a request may take.
    exporter: str
    timeout: str
    #: Names of exporters that cannot be used, and what to do instead.
    unusable: tuple[str, str] = ("", "")


TRACES = Signal(
    "TRACES", "/v1/traces", "opentelemetry_traces_exporter", "OTEL_TRACES_EXPORTER", "OTEL_BSP_EXPORT_TIMEOUT"
)
METRICS = Signal(
    "METRICS",
    "/v1/metrics",
    "opentelemetry_metrics_exporter",
    "OTEL_METRICS_EXPORTER",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    # It would open a port of its own.
    ("prometheus", "otlp; Prometheus takes OTLP at /api/v1/otlp if it is started with --web.enable-otlp-receiver"),
)
