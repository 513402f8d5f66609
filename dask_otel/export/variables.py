"""The standard ``OTEL_*`` variables, checked: the exporters would fail at them late, or silently do something else."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ..errors import SettingError
from ..safety import log
from .pipeline import Limits

__all__ = [
    "check_otlp",
    "log_what_is_not_read",
    "make_limits",
    "otlp_compression",
    "otlp_endpoint",
    "otlp_protocol",
    "otlp_timeout",
    "sdk_disabled",
    "shown",
]

PROTOCOLS = ("grpc", "http/protobuf")
_COMPRESSIONS = {True: ("gzip", "none"), False: ("gzip", "deflate", "none")}
#: Seconds; the libraries below cannot count much further.
_LONGEST_TIMEOUT = 3600.0


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` says so."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def log_what_is_not_read() -> None:
    """Say that a declarative configuration has no effect, if there is one."""
    for name in ("OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE"):
        if os.environ.get(name, "").strip():
            log.warning("dask-otel does not read %s; it takes its configuration from the other OTEL_* variables", name)


def make_limits() -> Limits:
    """Read ``OTEL_BSP_*``, as far as they are set; the standard's defaults are too slow and too small for us.

    Raises
    ------
    SettingError
        If one has a value that cannot be used.
    """
    ours = Limits()
    waiting = _whole("OTEL_BSP_MAX_QUEUE_SIZE", 1) or ours.max_waiting
    batch = _whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1) or ours.max_batch
    delay = _whole("OTEL_BSP_SCHEDULE_DELAY", 0)
    return Limits(
        max_waiting=waiting,
        max_batch=min(batch, waiting),
        delay=ours.delay if delay is None else min(delay / 1000, _LONGEST_TIMEOUT),
    )


def otlp_protocol() -> str:
    """Return the protocol of the exporter ``otlp``: ``grpc`` or ``http/protobuf``.

    Raises
    ------
    SettingError
        If the variable says something else.
    """
    name, protocol = variable("PROTOCOL")
    if protocol and protocol not in PROTOCOLS:
        raise SettingError(name, protocol, "one of " + ", ".join(PROTOCOLS))
    return protocol or "grpc"


def otlp_endpoint(*, grpc: bool, given: str | None = None) -> str:
    """Return where OTLP goes: a URL, over HTTP with its path; over gRPC also another target.

    Parameters
    ----------
    given
        Wins over the variables; without path, as the one for all signals.

    Raises
    ------
    SettingError
        If it is none.
    """
    name, value = ("endpoint", given) if given is not None else variable("ENDPOINT")
    if value and not _is_endpoint(value, grpc):
        example = "http://collector:4317" if grpc else "http://collector:4318"
        raise SettingError(name, value, f"a URL like {example}")
    value = value or ("http://localhost:4317" if grpc else "http://localhost:4318")
    if grpc or "_TRACES_" in name:
        return value
    return value.rstrip("/") + "/v1/traces"


def shown(endpoint: str) -> str:
    """Return an endpoint without what may be secret: user, password, query."""
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return "?"
    if not parts.netloc:
        return endpoint.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def otlp_compression(*, grpc: bool) -> str:
    """Return the compression: ``gzip`` unless the variable says ``none`` or, over HTTP, ``deflate``.

    Raises
    ------
    SettingError
        If it says something else.
    """
    name, value = variable("COMPRESSION")
    if value and value not in _COMPRESSIONS[grpc]:
        allowed = ", ".join(_COMPRESSIONS[grpc])
        raise SettingError(name, value, f"one of {allowed} over {'gRPC' if grpc else 'HTTP'}")
    return value or "gzip"


def otlp_timeout() -> float | None:
    """Return the seconds that one request may take, if a variable says; the shorter one of the two that may.

    Raises
    ------
    SettingError
        If one has a value that cannot be used.
    """
    name, value = variable("TIMEOUT")
    given = []
    if value:
        try:
            given.append(float(value))
        except ValueError:
            given.append(0.0)
        if not 0 < given[0] <= _LONGEST_TIMEOUT:
            raise SettingError(name, value, f"a number of seconds above 0, at most {_LONGEST_TIMEOUT:g}")
    batch = _whole("OTEL_BSP_EXPORT_TIMEOUT", 1)
    if batch is not None:
        given.append(min(batch / 1000, _LONGEST_TIMEOUT))
    return min(given, default=None)


def check_otlp() -> None:
    """Check the variables for TLS.

    Raises
    ------
    SettingError
        If one has a value that cannot be used.
    """
    for each in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        name, value = variable(each)
        if value and not (os.path.isfile(value) and os.access(value, os.R_OK)):
            raise SettingError(name, value, "a file that can be read")
    name, key = variable("CLIENT_KEY")
    if key and not variable("CLIENT_CERTIFICATE")[1]:
        raise SettingError(name, key, "given together with OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
    name, value = variable("INSECURE")
    if value and value.lower() not in ("true", "false"):
        raise SettingError(name, value, "true or false")


def variable(name: str) -> tuple[str, str]:
    """Name and value of a variable for traces, else of the one for all signals; empty if neither is set."""
    for each in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(each, "").strip():
            return each, value
    return "", ""


def _whole(name: str, least: int) -> int | None:
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < least:
        raise SettingError(name, value, f"a whole number from {least} up")
    return int(value)


def _is_endpoint(value: str, grpc: bool) -> bool:
    if re.search(r"\s", value):
        return False
    if value.startswith("unix:"):
        return grpc and re.fullmatch(r"unix:(//)?[^/]*/.+", value) is not None
    if "://" not in value:
        # gRPC also takes a bare target, host:port
        return grpc and re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):0*[1-9]\d{0,4}", value) is not None
    try:
        parts = urlsplit(value)
        if parts.port == 0:
            return False
    except ValueError:  # the port is no number
        return False
    if parts.scheme in ("http", "https"):
        return bool(parts.hostname)
    return grpc and parts.scheme in ("dns", "ipv4", "ipv6", "xds")
