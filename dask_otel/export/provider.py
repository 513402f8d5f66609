"""The exporters that the standard variables name, each with somebody who listens to what the collector answers.

Nothing global is touched: the process's own tracer provider belongs to the user.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from ..errors import Remarks, SettingError
from .proxies import find_proxy
from .senders import GrpcSender, HttpSender, Sender
from .signals import METRICS, TRACES, Signal
from .targets import shown
from .tls import is_insecure, read_tls
from .variables import (
    nowhere_to_go,
    otlp_compression,
    otlp_endpoint,
    otlp_headers,
    otlp_protocol,
    otlp_timeout,
    sdk_disabled,
)

__all__ = ["import_exporters", "make_senders"]

Exporter = SpanExporter | MetricExporter

_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
#: Names in other languages, or of what has gone, and what to write instead.
_HINTS = {
    "logging": "console is its name in Python",
    "stdout": "console is its name in Python",
    "jaeger": "Jaeger takes what otlp sends",
}
#: Seconds between two attempts of gRPC's own to connect; its default grows to two minutes, in which all requests fail.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000))
#: Channels to one target share the connection, and the wait after it could not be made. One with this shares nothing.
_UNSHARED = (("grpc.use_local_subchannel_pool", 1),)


def make_senders(endpoint: str | None = None, signal: Signal = TRACES, remarks: Remarks | None = None) -> list[Sender]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER``, or ``OTEL_METRICS_EXPORTER``, names.

    Parameters
    ----------
    endpoint
        Send here over OTLP, whatever the variables for exporter and endpoint say. Without a path, as
        ``OTEL_EXPORTER_OTLP_ENDPOINT``.
    remarks
        Gets what is worth knowing and stops nothing, such as the exporters that cannot be used beside others that can.

    Returns
    -------
    None of them if the variable says ``none``, or if only the other signal has somewhere to go.

    Raises
    ------
    SettingError
        If no exporter can be used.
    """
    remarks = remarks or Remarks()
    if endpoint is not None:
        return [_make(signal, "otlp", _entry_point(signal, "otlp", "otlp", remarks), remarks, endpoint)]
    setting = os.environ.get(signal.exporter, "").strip()
    if not setting and (why := nowhere_to_go(signal)):
        remarks.reading(why)
        return []
    setting = setting or "otlp"
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if {name.lower() for name in names} == {"none"}:
        return []
    if not names:
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    senders: list[Sender] = []
    errors: list[SettingError] = []
    for name in dict.fromkeys(names):
        try:
            point = _entry_point(signal, name, setting, remarks)
            senders.append(_make(signal, "otlp" if name.lower() == "otlp" else point.name, point, remarks))
        except SettingError as error:
            errors.append(error)
    if not senders:
        raise errors[0]
    for unused in errors:
        remarks.fall_back(unused, f"it goes on with {', '.join(sender.name for sender in senders)}")
    return senders


def import_exporters(endpoint: str | None = None) -> None:
    """Import what ``make_senders`` will need, and do nothing else; that says what cannot be imported."""
    for signal in () if sdk_disabled() else (TRACES, METRICS):
        setting = "otlp" if endpoint is not None else os.environ.get(signal.exporter, "").strip()
        if not setting and nowhere_to_go(signal):
            continue
        for name in filter(None, map(str.strip, (setting or "otlp").split(","))):
            with suppress(SettingError):
                point = _entry_point(signal, name, setting, Remarks())
                _load(signal, name, point)
                if point.name == _OTLP["http/protobuf"]:
                    importlib.import_module("requests")  # the exporter waits for its first use


def _entry_point(signal: Signal, name: str, setting: str, remarks: Remarks) -> EntryPoint:
    installed = {point.name: point for point in entry_points(group=signal.group)}
    known = name if name in installed else name.lower()
    unusable, instead = signal.unusable
    if known == unusable:
        raise SettingError(signal.exporter, setting, instead)
    if known == "none":
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    resolved = _OTLP[otlp_protocol(remarks, signal)] if known == "otlp" else known
    if resolved not in installed:
        allowed = ", ".join(sorted({"none", "otlp"} | set(installed) - {unusable}))
        hint = _HINTS.get(known, f"there is no {name!r} here")
        raise SettingError(signal.exporter, setting, f"one or more of {allowed}, separated by commas ({hint})")
    return installed[resolved]


def _make(signal: Signal, name: str, point: EntryPoint, remarks: Remarks, endpoint: str | None = None) -> Sender:
    exporter = _load(signal, name, point)
    if point.name not in _OTLP.values():
        return Sender(name, _start(signal, name, exporter))
    grpc = point.name == _OTLP["grpc"]
    target, tls = otlp_endpoint(signal, grpc=grpc, given=endpoint), read_tls(signal)
    timeout = otlp_timeout(remarks, signal, grpc=grpc)
    headers = otlp_headers(remarks, signal)
    proxy = find_proxy(target, grpc=grpc)
    # Exporters report on themselves to the user's global meter provider, unless they are given another.
    parameters = inspect.signature(exporter).parameters
    options: dict[str, Any] = {"meter_provider": NoOpMeterProvider()} if "meter_provider" in parameters else {}
    options |= {
        "endpoint": target,
        "timeout": timeout,
        "compression": _compression(signal, grpc, remarks),
        "headers": headers,
    }
    if grpc:
        options["insecure"] = is_insecure(target, remarks, signal)
        if not options["insecure"] and not any(map(os.environ.get, _credential_providers(signal, "GRPC"))):
            options["credentials"] = tls.credentials()
        start = partial(_start, signal, name, exporter, **options)
        again = partial(start, channel_options=_CHANNEL + _UNSHARED)
        return GrpcSender(name, start(channel_options=_CHANNEL), shown(target), proxy, again)
    session = _session(signal)
    verify = tls.authorities or session.verify
    options |= {
        "certificate_file": tls.authorities,
        "client_certificate_file": tls.certificate,
        "client_key_file": tls.key,
        "session": session,
    }
    started = _start(signal, name, exporter, **options)
    return HttpSender(name, started, shown(target), session, verify, timeout, proxy, headers.skipped)


def _load(signal: Signal, name: str, point: EntryPoint) -> type[Exporter]:
    try:
        exporter: type[Exporter] = point.load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that can be imported, but this one says {said}") from error
    return exporter


def _start(signal: Signal, name: str, exporter: type[Exporter], **options: Any) -> Exporter:
    try:
        with _header_warnings_left_out():
            return exporter(**options)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that starts, but this one says {said}") from error


@contextmanager
def _header_warnings_left_out() -> Iterator[None]:
    """Keep a secret out of the log: exporters read the variable, too, and show an entry that they cannot use."""
    thread, log = threading.get_ident(), logging.getLogger("opentelemetry.util.re")

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(is_of_others)
    try:
        yield
    finally:
        log.removeFilter(is_of_others)


def _compression(signal: Signal, grpc: bool, remarks: Remarks) -> Any:
    name = otlp_compression(remarks, signal, grpc=grpc)
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
