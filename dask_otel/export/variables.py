"""The standard ``OTEL_*`` variables, checked: the exporters would fail at them late, or silently do something else.

As the specification wants it, a number or a word that cannot be used is ignored with a warning, here a remark. Where
ignoring it would send data to the wrong place, or unprotected, it is an error instead, which costs one signal.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit

from opentelemetry.sdk.trace import SpanLimits

from ..errors import Remarks, SettingError
from ..measure.catalog import Kind
from .limits import Limits
from .signals import METRICS, TRACES, Signal
from .targets import is_endpoint, shown

__all__ = [
    "Headers",
    "delta_kinds",
    "make_limits",
    "make_span_limits",
    "metric_interval",
    "not_read",
    "nowhere_to_go",
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
#: By variable, the parameter of ``SpanLimits`` and its default.
_SPAN_LIMITS = {
    "OTEL_ATTRIBUTE_COUNT_LIMIT": ("max_attributes", 128),
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": ("max_attribute_length", SpanLimits.UNSET),
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": ("max_span_attribute_length", SpanLimits.UNSET),
    "OTEL_SPAN_EVENT_COUNT_LIMIT": ("max_events", 128),
    "OTEL_SPAN_LINK_COUNT_LIMIT": ("max_links", 128),
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": ("max_event_attributes", 128),
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": ("max_link_attributes", 128),
}
_LOCAL = ("localhost", "127.0.0.1", "::1")


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


def make_limits(remarks: Remarks) -> Limits:
    """Read ``OTEL_BSP_*``, as far as they are set; the standard's defaults are too slow and too small for us."""
    ours = Limits()
    waiting = whole("OTEL_BSP_MAX_QUEUE_SIZE", 1, remarks) or ours.max_waiting
    batch = whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1, remarks) or ours.max_batch
    delay = whole("OTEL_BSP_SCHEDULE_DELAY", 0, remarks)
    return Limits(
        max_waiting=waiting,
        max_batch=min(batch, waiting),
        delay=ours.delay if delay is None else min(delay / 1000, _LONGEST_TIMEOUT),
    )


def make_span_limits(remarks: Remarks) -> SpanLimits:
    """Read ``OTEL_*_LIMIT`` as the SDK does, which fails at one that is no number."""
    defaults = {}
    for name, (parameter, default) in _SPAN_LIMITS.items():
        value = os.environ.get(name, "").strip()
        if value and not value.isdecimal():
            error = SettingError(name, value, "a whole number from 0 up, or empty for the default")
            remarks.fall_back(error, "the default is used")
            defaults[parameter] = default
    return SpanLimits(**defaults)


def metric_interval(remarks: Remarks) -> float:
    """Return the seconds between two exports of metrics."""
    interval = whole("OTEL_METRIC_EXPORT_INTERVAL", 100, remarks)
    return 60.0 if interval is None else interval / 1000


def delta_kinds(remarks: Remarks) -> frozenset[Kind]:
    """Return the kinds of metrics that are to count from one export to the next; none unless a variable says so."""
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    preference = os.environ.get(name, "").strip()
    kinds = _DELTAS.get(preference.lower() or "cumulative")
    if kinds is None:
        remarks.fall_back(SettingError(name, preference, "one of " + ", ".join(_DELTAS)), "cumulative is used")
        return _DELTAS["cumulative"]
    return kinds


def otlp_protocol(remarks: Remarks, signal: Signal = TRACES) -> str:
    """Return the protocol of the exporter ``otlp``: ``grpc`` or ``http/protobuf``.

    Raises
    ------
    SettingError
        If the variable says something else, and not at least HTTP.
    """
    name, written = variable("PROTOCOL", signal)
    protocol = written.lower() or "grpc"
    if protocol in PROTOCOLS:
        return protocol
    if re.fullmatch(r"http(/.*)?", protocol):
        remarks.reading(
            f"{name} = {written!r} is taken as http/protobuf, which has the same port and path; "
            "Python's exporters speak no other over HTTP"
        )
        return "http/protobuf"
    raise SettingError(name, written, "one of " + ", ".join(PROTOCOLS))


def nowhere_to_go(signal: Signal) -> str:
    """Say that an endpoint is set for the other signal only; empty if this one has its own, or the default is right.

    Sending to a collector on this machine would be wrong then: the only one that is known is elsewhere. It may take one
    signal only, and want headers that are set for that signal only.
    """
    other = METRICS if signal is TRACES else TRACES
    name, value = variable("ENDPOINT", other)
    if variable("ENDPOINT", signal)[1] or not value:
        return ""
    try:
        default = "4317" if otlp_protocol(Remarks(), signal) == "grpc" else "4318"
        parts = urlsplit(value if "://" in value else f"//{value}")
        if parts.hostname in _LOCAL and str(parts.port) == default:
            return ""
    except ValueError:  # one of the two is wrong, which is said elsewhere
        pass
    what = "spans" if signal is TRACES else "metrics"
    return (
        f"no {what} are sent: only {name} is set. OTEL_EXPORTER_OTLP_{signal.name}_ENDPOINT says where {what} go, "
        "OTEL_EXPORTER_OTLP_ENDPOINT where both go"
    )


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


def otlp_compression(remarks: Remarks, signal: Signal = TRACES, *, grpc: bool) -> str:
    """Return the compression: ``gzip`` unless the variable says ``none`` or, over HTTP, ``deflate``."""
    name, value = variable("COMPRESSION", signal)
    if value and value.lower() not in _COMPRESSIONS[grpc]:
        allowed = f"one of {', '.join(_COMPRESSIONS[grpc])} over {'gRPC' if grpc else 'HTTP'}"
        remarks.fall_back(SettingError(name, value, allowed), "gzip is used")
        return "gzip"
    return value.lower() or "gzip"


class Headers(dict[str, str]):
    """Headers to send with each request, which may be secrets: names in lower case."""

    #: Names whose values cannot be sent. Exporters read the variable, too, and some take them.
    skipped: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether exporters are to take these and leave the variable: also if there are none."""
        return True


def otlp_headers(remarks: Remarks, signal: Signal = TRACES) -> Headers:
    """Return the headers to send with each request; what is not written as it should be is left out."""
    name, value = variable("HEADERS", signal)
    headers, skipped = Headers(), set()
    for number, each in enumerate(filter(None, map(str.strip, value.split(","))), 1):
        key, separator, text = each.partition("=")
        key = unquote(key.strip()).lower()
        text = unquote(text.strip())
        if separator and _HEADER_NAME.fullmatch(key) and _HEADER_VALUE.fullmatch(text):
            headers[key] = text
            continue
        skipped.add(key)
        allowed = "name=value, separated by commas; other characters as in a URL: %20"
        remarks.fall_back(
            SettingError(name, "(not shown)", allowed), f"entry {number} is left out, and requests lack that header"
        )
    headers.skipped = frozenset(skipped - set(headers))
    return headers


def otlp_timeout(remarks: Remarks, signal: Signal = TRACES, *, grpc: bool) -> float:
    """Return the seconds that one request may take: by two variables, of which the shorter time counts.

    Raises
    ------
    SettingError
        If the exporter would fail at one, though it is told the time.
    """
    name, value = variable("TIMEOUT", signal)
    per_signal = f"OTEL_EXPORTER_OTLP_{signal.name}_TIMEOUT"
    if grpc and not os.environ.get(per_signal, "0").strip():
        raise SettingError(
            per_signal,
            "",
            "a number of seconds or not set at all, since the exporter cannot take an empty one over gRPC",
        )
    error = SettingError(name, value, f"a number of seconds above 0, at most {_LONGEST_TIMEOUT:g}")
    try:
        seconds = float(value or TIMEOUT)
    except ValueError:
        if grpc and name == per_signal:
            raise error from None
        seconds = 0.0
    if _LONGEST_TIMEOUT < seconds <= 1000 * _LONGEST_TIMEOUT:
        remarks.reading(
            f"{name} = {value!r} is taken as milliseconds, i.e. {seconds / 1000:g} s; Python's exporters count "
            f"seconds: write {seconds / 1000:g}"
        )
        seconds /= 1000
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        remarks.fall_back(error, f"{TIMEOUT} s are used")
        seconds = float(TIMEOUT)
    export = whole(signal.timeout, 1, remarks)
    return seconds if export is None else min(seconds, export / 1000)


def variable(name: str, signal: Signal) -> tuple[str, str]:
    """Name and value of a variable for a signal, else of the one for all; empty if neither is set."""
    for each in (f"OTEL_EXPORTER_OTLP_{signal.name}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := os.environ.get(each, "").strip():
            return each, value
    return "", ""


def whole(name: str, least: int, remarks: Remarks) -> int | None:
    """Return the whole number that a variable says; None if it says nothing, or something else."""
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isdecimal()) or len(value) > 12 or int(value) < least:
        error = SettingError(name, value[:50], f"a whole number from {least} up, of at most 12 digits")
        remarks.fall_back(error, "the default is used")
        return None
    return int(value)
