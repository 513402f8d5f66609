"""The standard ``OTEL_*`` variables, checked: the exporters would fail at them late, or silently do something else."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import SettingError
from ..measure.catalog import Kind
from .limits import Limits
from .signals import TRACES, Signal
from .targets import is_endpoint, shown

__all__ = [
    "delta_kinds",
    "make_limits",
    "metric_interval",
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
#: By preference; ``lowmemory`` is for instruments that would have to remember totals, and our counters need not.
_DELTAS = {
    "cumulative": frozenset[Kind](),
    "delta": frozenset({Kind.COUNTER, Kind.HISTOGRAM}),
    "lowmemory": frozenset({Kind.HISTOGRAM}),
}
#: Seconds for one request, unless a variable says otherwise.
TIMEOUT = 10
#: Seconds; the libraries below cannot count much further.
_LONGEST_TIMEOUT = 3600.0


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` says so."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def not_read() -> list[str]:
    """Name variables that are set and have no effect: those for a declarative configuration, and other histograms."""
    names = [
        "OTEL_CONFIG_FILE",
        "OTEL_EXPERIMENTAL_CONFIG_FILE",
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        "OTEL_METRICS_EXEMPLAR_FILTER",
    ]
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


def metric_interval() -> float:
    """Return the seconds between two exports of metrics.

    Raises
    ------
    SettingError
        If the variable has a value that cannot be used.
    """
    interval = whole("OTEL_METRIC_EXPORT_INTERVAL", 100)
    return 60.0 if interval is None else interval / 1000


def delta_kinds() -> frozenset[Kind]:
    """Return the kinds of metrics that are to count from one export to the next; ``cumulative`` unless a variable says.

    Raises
    ------
    SettingError
        If it says something else.
    """
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    preference = os.environ.get(name, "").strip()
    kinds = _DELTAS.get(preference.lower() or "cumulative")
    if kinds is None:
        raise SettingError(name, preference, "one of " + ", ".join(_DELTAS))
    return kinds


def otlp_protocol(signal: Signal = TRACES) -> str:
    """Return the protocol of the exporter ``otlp``: ``grpc`` or ``http/protobuf``.

    Raises
    ------
    SettingError
        If the variable says something else.
    """
    name, protocol = variable("PROTOCOL", signal)
    if protocol and protocol.lower() not in PROTOCOLS:
        raise SettingError(name, protocol, "one of " + ", ".join(PROTOCOLS))
    return protocol.lower() or "grpc"


def otlp_endpoint(signal: Signal = TRACES, *, grpc: bool, given: str | None = None) -> str:
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
    name, value = ("endpoint", given) if given is not None else variable("ENDPOINT", signal)
    if value and not is_endpoint(value, grpc=grpc):
        example = "http://collector:4317" if grpc else "http://collector:4318"
        raise SettingError(name, shown(value), f"a URL like {example}")
    if grpc and "@" in value:
        raise SettingError(
            name, shown(value), "without user and password over gRPC; OTEL_EXPORTER_OTLP_HEADERS is for that"
        )
    value = value or ("http://localhost:4317" if grpc else "http://localhost:4318")
    if grpc or f"_{signal.name}_" in name:
        return value
    parts = urlsplit(value)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + signal.path))


def otlp_compression(signal: Signal = TRACES, *, grpc: bool) -> str:
    """Return the compression: ``gzip`` unless the variable says ``none`` or, over HTTP, ``deflate``.

    Raises
    ------
    SettingError
        If it says something else.
    """
    name, value = variable("COMPRESSION", signal)
    if value and value.lower() not in _COMPRESSIONS[grpc]:
        allowed = ", ".join(_COMPRESSIONS[grpc])
        raise SettingError(name, value, f"one of {allowed} over {'gRPC' if grpc else 'HTTP'}")
    return value.lower() or "gzip"


def otlp_headers(signal: Signal = TRACES) -> dict[str, str]:
    """Return the headers to send with each request, which may be secrets: names in lower case.

    Raises
    ------
    SettingError
        If they are not written as they should be.
    """
    name, value = variable("HEADERS", signal)
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


def otlp_timeout(signal: Signal = TRACES, *, grpc: bool) -> float:
    """Return the seconds that one request may take: by two variables, of which the shorter time counts.

    Raises
    ------
    SettingError
        If one has a value that cannot be used.
    """
    name, value = variable("TIMEOUT", signal)
    per_signal = f"OTEL_EXPORTER_OTLP_{signal.name}_TIMEOUT"
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
    export = whole(signal.timeout, 1)
    return seconds if export is None else min(seconds, export / 1000)


def variable(name: str, signal: Signal) -> tuple[str, str]:
    """Name and value of a variable for a signal, else of the one for all; empty if neither is set."""
    for each in (f"OTEL_EXPORTER_OTLP_{signal.name}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
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
