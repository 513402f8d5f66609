"""The exporters that the standard variables name, each with somebody who listens to what the collector answers.

Nothing global is touched: the process's own tracer provider belongs to the user.
"""

from __future__ import annotations

import importlib
import inspect
import os
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from ..errors import SettingError
from .senders import GrpcSender, HttpSender, Sender
from .signals import METRICS, TRACES, Signal
from .targets import shown
from .tls import is_insecure, read_tls
from .variables import otlp_compression, otlp_endpoint, otlp_headers, otlp_protocol, otlp_timeout, sdk_disabled

__all__ = ["import_exporters", "make_senders"]

Exporter = SpanExporter | MetricExporter

_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
#: Seconds between two attempts of gRPC's own to connect; its default grows to two minutes, in which all requests fail.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000))
#: Channels to one target share the connection, and the wait after it could not be made. One with this shares nothing.
_UNSHARED = (("grpc.use_local_subchannel_pool", 1),)


def make_senders(endpoint: str | None = None, signal: Signal = TRACES) -> list[Sender]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER``, or ``OTEL_METRICS_EXPORTER``, names.

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
    return [_make(signal, name, point, endpoint) for name, point in _named(signal, endpoint)]


def import_exporters(endpoint: str | None = None) -> None:
    """Import what ``make_senders`` will need; raises as that does, and does nothing else."""
    for signal in () if sdk_disabled() else (TRACES, METRICS):
        for name, point in _named(signal, endpoint):
            _load(signal, name, point)
            if point.name == _OTLP["http/protobuf"]:
                importlib.import_module("requests")  # the exporter waits for its first use


def _named(signal: Signal, endpoint: str | None) -> list[tuple[str, EntryPoint]]:
    """Name the exporters, with where they are found."""
    if endpoint is not None:
        return [("otlp", _entry_point(signal, "otlp", "otlp"))]
    setting = os.environ.get(signal.exporter, "").strip() or "otlp"
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if names == ["none"]:
        return []
    if not names or "none" in names:
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    return [(name, _entry_point(signal, name, setting)) for name in dict.fromkeys(names)]


def _entry_point(signal: Signal, name: str, setting: str) -> EntryPoint:
    installed = {point.name: point for point in entry_points(group=signal.group)}
    unusable, instead = signal.unusable
    if name == unusable:
        raise SettingError(signal.exporter, setting, instead)
    resolved = _OTLP[otlp_protocol(signal)] if name == "otlp" else name
    if resolved not in installed:
        allowed = ", ".join(sorted({"none", "otlp"} | set(installed) - {unusable}))
        raise SettingError(signal.exporter, setting, f"one or more of {allowed}, separated by commas")
    return installed[resolved]


def _make(signal: Signal, name: str, point: EntryPoint, endpoint: str | None = None) -> Sender:
    exporter = _load(signal, name, point)
    if point.name not in _OTLP.values():
        return Sender(name, _start(signal, name, exporter))
    grpc = point.name == _OTLP["grpc"]
    target, tls = otlp_endpoint(signal, grpc=grpc, given=endpoint), read_tls(signal)
    timeout = otlp_timeout(signal, grpc=grpc)
    # Exporters report on themselves to the user's global meter provider, unless they are given another.
    parameters = inspect.signature(exporter).parameters
    options: dict[str, Any] = {"meter_provider": NoOpMeterProvider()} if "meter_provider" in parameters else {}
    options |= {
        "endpoint": target,
        "timeout": timeout,
        "compression": _compression(signal, grpc),
        "headers": otlp_headers(signal),
    }
    if grpc:
        options["insecure"] = is_insecure(target, signal)
        if not options["insecure"] and not any(map(os.environ.get, _credential_providers(signal, "GRPC"))):
            options["credentials"] = tls.credentials()
        start = partial(_start, signal, name, exporter, **options)
        again = partial(start, channel_options=_CHANNEL + _UNSHARED)
        return GrpcSender(name, start(channel_options=_CHANNEL), shown(target), again)
    session = _session(signal)
    verify = tls.authorities or session.verify
    options |= {
        "certificate_file": tls.authorities,
        "client_certificate_file": tls.certificate,
        "client_key_file": tls.key,
        "session": session,
    }
    return HttpSender(name, _start(signal, name, exporter, **options), shown(target), session, verify, timeout)


def _load(signal: Signal, name: str, point: EntryPoint) -> type[Exporter]:
    try:
        exporter: type[Exporter] = point.load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that can be imported, but this one says {said}") from error
    return exporter


def _start(signal: Signal, name: str, exporter: type[Exporter], **options: Any) -> Exporter:
    try:
        return exporter(**options)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that starts, but this one says {said}") from error


def _compression(signal: Signal, grpc: bool) -> Any:
    name = otlp_compression(signal, grpc=grpc)
    if grpc:
        from grpc import Compression

        return Compression.Gzip if name == "gzip" else Compression.NoCompression
    from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression

    return HttpCompression(name)


def _session(signal: Signal) -> Any:
    """Return the session to send with, from a credential provider if one is named, as the standard exporter would."""
    from requests import Session

    for variable in _credential_providers(signal, "HTTP"):
        if name := os.environ.get(variable):
            return _provided(variable, name, Session)
    return Session()


def _credential_providers(signal: Signal, protocol: str) -> list[str]:
    """Name the variables that may name one, the first wins."""
    names = (protocol, f"{protocol}_{signal.name}")
    return [f"OTEL_PYTHON_EXPORTER_OTLP_{name}_CREDENTIAL_PROVIDER" for name in names]


def _provided(variable: str, name: str, wanted: type) -> Any:
    for point in entry_points(group="opentelemetry_otlp_credential_provider", name=name):
        try:
            session = point.load()()
        except Exception as error:
            raise SettingError(variable, name, f"one that works, but this one says: {error}") from error
        if isinstance(session, wanted):
            return session
    raise SettingError(variable, name, "a credential provider that is installed and gives a requests.Session")
