"""The exporters that the standard variables name, each with somebody who listens to what the collector answers.

Nothing global is touched: the process's own tracer provider belongs to the user.
"""

from __future__ import annotations

import inspect
import os
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace.export import SpanExporter

from ..errors import SettingError
from .senders import GrpcSender, HttpSender, Sender
from .targets import shown
from .tls import is_insecure, read_tls
from .variables import otlp_compression, otlp_endpoint, otlp_headers, otlp_protocol, otlp_timeout

__all__ = ["make_senders"]

_GROUP = "opentelemetry_traces_exporter"
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
#: Variables that name a credential provider, the first wins.
_PROVIDERS = {
    protocol: [f"OTEL_PYTHON_EXPORTER_OTLP_{each}_CREDENTIAL_PROVIDER" for each in names]
    for protocol, names in {"grpc": ("GRPC", "GRPC_TRACES"), "http/protobuf": ("HTTP", "HTTP_TRACES")}.items()
}
#: Seconds between two attempts of gRPC's own to connect; its default grows to two minutes, in which all requests fail.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 5000))


def make_senders(endpoint: str | None = None) -> list[Sender]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER`` names.

    Parameters
    ----------
    endpoint
        Send here over OTLP, whatever the variables for exporter and endpoint say. Without a path, as
        ``OTEL_EXPORTER_OTLP_ENDPOINT``.

    Returns
    -------
    None of them if the variable says ``none``.

    Raises
    ------
    SettingError
        If a standard variable has a value that cannot be used.
    """
    if endpoint is not None:
        return [_make("otlp", _entry_point("otlp", "otlp"), endpoint)]
    setting = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if names == ["none"]:
        return []
    if not names or "none" in names:
        raise SettingError("OTEL_TRACES_EXPORTER", setting, "none alone, or exporters separated by commas")
    return [_make(name, _entry_point(name, setting)) for name in dict.fromkeys(names)]


def _entry_point(name: str, setting: str) -> EntryPoint:
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    resolved = _OTLP[otlp_protocol()] if name == "otlp" else name
    if resolved not in installed:
        allowed = ", ".join(sorted({"none", "otlp"} | set(installed)))
        raise SettingError("OTEL_TRACES_EXPORTER", setting, f"one or more of {allowed}, separated by commas")
    return installed[resolved]


def _make(name: str, point: EntryPoint, endpoint: str | None = None) -> Sender:
    exporter = _load(name, point)
    if point.name not in _OTLP.values():
        return Sender(name, _start(name, exporter))
    grpc = point.name == _OTLP["grpc"]
    target, tls, timeout = otlp_endpoint(grpc=grpc, given=endpoint), read_tls(), otlp_timeout(grpc=grpc)
    # Exporters report on themselves to the user's global meter provider, unless they are given another.
    parameters = inspect.signature(exporter).parameters
    options: dict[str, Any] = {"meter_provider": NoOpMeterProvider()} if "meter_provider" in parameters else {}
    options |= {
        "endpoint": target,
        "timeout": timeout,
        "compression": _compression(grpc),
        "headers": otlp_headers(),
    }
    if grpc:
        options |= {"insecure": is_insecure(target), "channel_options": _CHANNEL}
        if not options["insecure"] and not any(map(os.environ.get, _PROVIDERS["grpc"])):
            options["credentials"] = tls.credentials()
        return GrpcSender(name, _start(name, exporter, **options), shown(target))
    session = _session()
    verify = tls.authorities or session.verify
    options |= {
        "certificate_file": tls.authorities,
        "client_certificate_file": tls.certificate,
        "client_key_file": tls.key,
        "session": session,
    }
    return HttpSender(name, _start(name, exporter, **options), shown(target), session, verify, timeout)


def _load(name: str, point: EntryPoint) -> type[SpanExporter]:
    try:
        exporter: type[SpanExporter] = point.load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(
            "OTEL_TRACES_EXPORTER", name, f"one that can be imported, but this one says {said}"
        ) from error
    return exporter


def _start(name: str, exporter: type[SpanExporter], **options: Any) -> SpanExporter:
    try:
        return exporter(**options)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError("OTEL_TRACES_EXPORTER", name, f"one that starts, but this one says {said}") from error


def _compression(grpc: bool) -> Any:
    name = otlp_compression(grpc=grpc)
    if grpc:
        from grpc import Compression

        return Compression.Gzip if name == "gzip" else Compression.NoCompression
    from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression

    return HttpCompression(name)


def _session() -> Any:
    """Return the session to send with, from a credential provider if one is named, as the standard exporter would."""
    from requests import Session

    for variable in _PROVIDERS["http/protobuf"]:
        if name := os.environ.get(variable):
            return _provided(variable, name, Session)
    return Session()


def _provided(variable: str, name: str, wanted: type) -> Any:
    for point in entry_points(group="opentelemetry_otlp_credential_provider", name=name):
        try:
            session = point.load()()
        except Exception as error:
            raise SettingError(variable, name, f"one that works, but this one says: {error}") from error
        if isinstance(session, wanted):
            return session
    raise SettingError(variable, name, "a credential provider that is installed and gives a requests.Session")
