"""The standard ``OTEL_*`` variables, checked: the exporters would fail at them late, or silently do something else."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import SettingError
from .limits import Limits
from .targets import is_endpoint, shown

__all__ = [
    "make_limits",
    "not_read",
    "otlp_compression",
    "otlp_endpoint",
    "otlp_headers",
    "otlp_protocol",
    "otlp_timeout",
    "sdk_disabled",
    "variable",
]

PROTOCOLS = ("grpc", "http/protobuf")
_COMPRESSIONS = {True: ("gzip", "none"), False: ("gzip", "deflate", "none")}
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff]*")
#: Seconds for one request, unless a variable says otherwise.
TIMEOUT = 10
#: Seconds; the libraries below cannot count much further.
_LONGEST_TIMEOUT = 3600.0


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` says so."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def not_read() -> list[str]:
    """Name variables that are set and have no effect: those for a declarative configuration."""
    names = ("OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE")
    return [name for name in names if os.environ.get(name, "").strip()]


def make_limits() -> Limits:
    """Read ``OTEL_BSP_*``, as far as they are set; the standard's defaults are too slow and too small for us.

    Raises
    ------
    SettingError
        If one has a value that cannot be used.
    """
    ours = Limits()
    waiting = whole("OTEL_BSP_MAX_QUEUE_SIZE", 1) or ours.max_waiting
    batch = whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1) or ours.max_batch
    delay = whole("OTEL_BSP_SCHEDULE_DELAY", 0)
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
    if protocol and protocol.lower() not in PROTOCOLS:
        raise SettingError(name, protocol, "one of " + ", ".join(PROTOCOLS))
    return protocol.lower() or "grpc"


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
    if value and not is_endpoint(value, grpc=grpc):
        example = "http://collector:4317" if grpc else "http://collector:4318"
        raise SettingError(name, shown(value), f"a URL like {example}")
    if grpc and "@" in value:
        raise SettingError(
            name, shown(value), "without user and password over gRPC; OTEL_EXPORTER_OTLP_HEADERS is for that"
        )
    value = value or ("http://localhost:4317" if grpc else "http://localhost:4318")
    if grpc or "_TRACES_" in name:
        return value
    parts = urlsplit(value)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/v1/traces"))


def otlp_compression(*, grpc: bool) -> str:
    """Return the compression: ``gzip`` unless the variable says ``none`` or, over HTTP, ``deflate``.

    Raises
    ------
    SettingError
        If it says something else.
    """
    name, value = variable("COMPRESSION")
    if value and value.lower() not in _COMPRESSIONS[grpc]:
        allowed = ", ".join(_COMPRESSIONS[grpc])
        raise SettingError(name, value, f"one of {allowed} over {'gRPC' if grpc else 'HTTP'}")
    return value.lower() or "gzip"


def otlp_headers() -> dict[str, str]:
    """Return the headers to send with each request, which may be secrets: names in lower case.

    Raises
    ------
    SettingError
        If they are not written as they should be.
    """
    name, value = variable("HEADERS")
    headers = {}
    for each in filter(None, map(str.strip, value.split(","))):
        key, separator, text = each.partition("=")
        key = unquote(key.strip()).lower()
        text = unquote(text.strip())
        if not separator or not _HEADER_NAME.fullmatch(key) or not _HEADER_VALUE.fullmatch(text):
            raise SettingError(
                name, "(not shown)", "name=value, separated by commas; other characters as in a URL: %20"
            )
        headers[key] = text
    return headers


def otlp_timeout(*, grpc: bool) -> float:
    """Return the seconds that one request may take: by two variables, of which the shorter time counts.

    Raises
    ------
    SettingError
        If one has a value that cannot be used.
    """
    name, value = variable("TIMEOUT")
    per_signal = "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"
    if grpc and not os.environ.get(per_signal, "0").strip():
        raise SettingError(
            per_signal,
            "",
            "a number of seconds or not set at all, since the exporter cannot take an empty one over gRPC",
        )
    try:
        seconds = float(value or TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        raise SettingError(name, value, f"a number of seconds above 0, at most {_LONGEST_TIMEOUT:g}")
    batch = whole("OTEL_BSP_EXPORT_TIMEOUT", 1)
    return seconds if batch is None else min(seconds, batch / 1000)


def variable(name: str) -> tuple[str, str]:
    """Name and value of a variable for traces, else of the one for all signals; empty if neither is set."""
    for each in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(each, "").strip():
            return each, value
    return "", ""


def whole(name: str, least: int) -> int | None:
    """Return the whole number that a variable says; None if it says nothing.

    Raises
    ------
    SettingError
        If it says something else.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isdecimal()) or len(value) > 12 or int(value) < least:
        raise SettingError(name, value[:50], f"a whole number from {least} up, of at most 12 digits")
    return int(value)
