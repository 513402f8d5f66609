"""The standard OpenTelemetry configuration: resource, limits and exporters, from the ``OTEL_*`` variables.

Nothing global is touched: the process's own tracer provider belongs to the user.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, ProcessResourceDetector, Resource
from opentelemetry.sdk.trace.export import SpanExporter

from ..errors import SettingError
from .text import clean

__all__ = ["make_exporters", "make_resource", "otlp_protocol", "sdk_disabled"]

_GROUP = "opentelemetry_traces_exporter"
_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_COMPRESSIONS = {True: ("gzip", "none"), False: ("gzip", "deflate", "none")}
#: Seconds; the libraries below cannot count much further.
_LONGEST_TIMEOUT = 3600.0


def otlp_protocol() -> str:
    """Return the protocol of the exporter ``otlp``: ``grpc`` or ``http/protobuf``.

    Raises
    ------
    SettingError
        If the variable says something else.
    """
    variable, protocol = _variable("PROTOCOL")
    if protocol and protocol not in _PROTOCOLS:
        raise SettingError(variable, protocol, "one of " + ", ".join(_PROTOCOLS))
    return protocol or "grpc"


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` says so."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def make_resource(*, service_name: str, instance_id: str, version: str, cluster_name: str | None) -> Resource:
    """Describe the process. What the ``OTEL_*`` variables say wins."""
    values: dict[str, Any] = {
        "service.name": service_name,
        "service.instance.id": instance_id,
        "service.version": version,
        "host.name": socket.gethostname(),
    }
    # Only these: command lines may hold secrets.
    detected = ProcessResourceDetector().detect().attributes
    values |= {
        name: value for name, value in detected.items() if name == "process.pid" or name.startswith("process.runtime.")
    }
    if cluster_name:
        values["dask.cluster.name"] = cluster_name
    sdk = {name: value for name, value in Resource.create().attributes.items() if name.startswith("telemetry.sdk.")}
    values |= sdk | dict(OTELResourceDetector().detect().attributes)
    return Resource({name: clean(value) if isinstance(value, str) else value for name, value in values.items()})


def make_exporters(endpoint: str | None = None) -> dict[str, SpanExporter]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER`` names, by name.

    Parameters
    ----------
    endpoint
        Send here over OTLP, whatever the variables for exporter and endpoint say. Without a path, as
        ``OTEL_EXPORTER_OTLP_ENDPOINT``.

    Returns
    -------
    Empty if the variable says ``none``.

    Raises
    ------
    SettingError
        If a standard variable has a value that cannot be used.
    """
    if endpoint is not None:
        return {"otlp": _make(_entry_point("otlp", "otlp"), endpoint)}
    setting = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if names == ["none"]:
        return {}
    if not names or "none" in names:
        raise SettingError("OTEL_TRACES_EXPORTER", setting, "none alone, or exporters separated by commas")
    return {name: _make(_entry_point(name, setting)) for name in names}


def _entry_point(name: str, setting: str) -> EntryPoint:
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    resolved = _PROTOCOLS[otlp_protocol()] if name == "otlp" else name
    if resolved not in installed:
        allowed = ", ".join(sorted({"none", "otlp"} | set(installed)))
        raise SettingError("OTEL_TRACES_EXPORTER", setting, f"one or more of {allowed}, separated by commas")
    return installed[resolved]


def _make(point: EntryPoint, endpoint: str | None = None) -> SpanExporter:
    exporter: type[SpanExporter] = point.load()
    if point.name not in _PROTOCOLS.values():
        return _start(point.name, exporter)
    grpc = point.name == _PROTOCOLS["grpc"]
    _check_endpoint(grpc, endpoint)
    _check_timeout()
    _check_files()
    # Exporters report on themselves to the user's global meter provider, unless they are given another.
    parameters = inspect.signature(exporter).parameters
    options: dict[str, Any] = {"meter_provider": NoOpMeterProvider()} if "meter_provider" in parameters else {}
    variable, compression = _variable("COMPRESSION")
    if not compression:
        options["compression"] = _gzip(grpc)
    elif compression not in _COMPRESSIONS[grpc]:
        allowed = ", ".join(_COMPRESSIONS[grpc])
        raise SettingError(variable, compression, f"one of {allowed} over {'gRPC' if grpc else 'HTTP'}")
    if endpoint is not None:
        options["endpoint"] = endpoint if grpc else endpoint.rstrip("/") + "/v1/traces"
    return _start(point.name, exporter, **options)


def _start(name: str, exporter: type[SpanExporter], **options: Any) -> SpanExporter:
    try:
        return exporter(**options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # a certificate that is not there
        raise SettingError("OTEL_TRACES_EXPORTER", name, f"one that starts, but this one says: {error}") from error


def _gzip(grpc: bool) -> Any:
    if grpc:
        from grpc import Compression

        return Compression.Gzip
    from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression

    return HttpCompression.Gzip


def _variable(name: str) -> tuple[str, str]:
    """Name and value of a variable for traces, else of the one for all signals; empty if neither is set."""
    for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(variable, "").strip():
            return variable, value
    return "", ""


def _check_timeout() -> None:
    variable, value = _variable("TIMEOUT")
    if value:
        try:
            good = 0 < float(value) <= _LONGEST_TIMEOUT
        except ValueError:
            good = False
        if not good:
            raise SettingError(variable, value, f"a number of seconds above 0, at most {_LONGEST_TIMEOUT:g}")


def _check_files() -> None:
    for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        variable, value = _variable(name)
        if value and not (os.path.isfile(value) and os.access(value, os.R_OK)):
            raise SettingError(variable, value, "a file that can be read")


def _check_endpoint(grpc: bool, endpoint: str | None) -> None:
    variable, value = ("endpoint", endpoint) if endpoint is not None else _variable("ENDPOINT")
    if value and not _is_endpoint(value, grpc):
        example = "http://collector:4317" if grpc else "http://collector:4318"
        raise SettingError(variable, value, f"a URL like {example}")


def _is_endpoint(value: str, grpc: bool) -> bool:
    if re.search(r"\s", value):
        return False
    if "://" not in value:
        # gRPC also takes a bare target: host:port, unix:path
        return grpc and re.fullmatch(r"(unix:.+|(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):\d{1,5})", value) is not None
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 -- raises if it is no number
    except ValueError:
        return False
    if parts.scheme in ("http", "https"):
        return bool(parts.hostname)
    return grpc and parts.scheme in ("dns", "unix", "ipv4", "ipv6", "xds")
