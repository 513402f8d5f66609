"""Traces and metrics, by what the standard calls them.

Endpoints as people write them.

How much may wait, and how much leaves at once.

The standard ``OTEL_*`` variables, checked: the exporters would fail at them late, or silently do something else.

As the specification wants it, a number or a word that cannot be used is ignored with a warning, here a remark. Where
ignoring it would send data to the wrong place, or unprotected, it is an error instead, which costs one signal.

TLS by the standard variables, checked before an exporter reads them.

gRPC ends the whole process when it gets a client certificate without its key, or an empty file. The gRPC exporter does
not find what is given half for all signals and half for traces; older HTTP exporters take an empty variable for "do not
verify".

Which proxy requests to a target go through; neither gRPC nor requests says so when the proxy fails.

Which process the spans come from.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from opentelemetry.sdk.resources import OTELResourceDetector, ProcessResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits

from ..errors import Remarks, SettingError
from ..schema import CLUSTER_NAME, Kind, clean

__all__ = [
    "METRICS",
    "TRACES",
    "Headers",
    "Limits",
    "Proxy",
    "Signal",
    "Tls",
    "delta_kinds",
    "find_proxy",
    "is_endpoint",
    "is_insecure",
    "make_limits",
    "make_resource",
    "make_span_limits",
    "metric_interval",
    "not_read",
    "nowhere_to_go",
    "otlp_compression",
    "otlp_endpoint",
    "otlp_headers",
    "otlp_protocol",
    "otlp_timeout",
    "read_tls",
    "sdk_disabled",
    "shown",
    "variable",
]


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


def is_endpoint(value: str, *, grpc: bool) -> bool:
    """Whether somebody could be there: a URL; over gRPC also ``host:port`` or another target of gRPC's."""
    if re.search(r"\s", value):
        return False
    if value.startswith("unix:"):
        return grpc and re.fullmatch(r"unix:(//)?[^/]*/.+", value) is not None
    if "://" not in value:
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


def shown(endpoint: str) -> str:
    """Return an endpoint without what may be secret: user, password, query, fragment."""
    if endpoint.startswith("unix:"):
        return endpoint
    scheme, separator, rest = endpoint.partition("://") if "://" in endpoint else ("", "", endpoint)
    authority = re.split("[/?#]", rest)[0]
    host = authority.rpartition("@")[2]
    if not re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?", host):
        host = "…"  # it may be part of a password
    path = rest[len(authority) :]
    return f"{scheme}{separator}{host}" + ("" if "@" in path else re.split("[?#]", path)[0])


@dataclass(frozen=True)
class Limits:
    """How much may wait and leave at once; the standard ``OTEL_BSP_*`` variables change it."""

    #: Records that may wait, and bytes by ``size_of``: with everything else, less than 64 MiB.
    max_waiting: int = 50_000
    max_bytes: int = 48 * 2**20
    #: Spans in one request: putting together 512 holds the interpreter lock for 2 ms at a stretch, three times.
    max_batch: int = 256
    #: Seconds that records wait for others to share a request with.
    delay: float = 0.2


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


@dataclass(frozen=True)
class Tls:
    """Files in PEM form; None where none is named."""

    authorities: str | None = None
    certificate: str | None = None
    #: Of the certificate; None if its file holds it too.
    key: str | None = None

    def credentials(self) -> Any:
        """Return them for gRPC."""
        from grpc import ssl_channel_credentials

        def read(path: str | None) -> bytes | None:
            return Path(path).read_bytes() if path else None

        return ssl_channel_credentials(
            read(self.authorities), read(self.key or self.certificate), read(self.certificate)
        )


def read_tls(signal: Signal = TRACES) -> Tls:
    """Read the variables.

    Raises
    ------
    SettingError
        If a file cannot be read, or does not hold what it should.
    """
    authority_name, authorities = _file("CERTIFICATE", signal)
    name, certificate = _file("CLIENT_CERTIFICATE", signal)
    key_name, key = _file("CLIENT_KEY", signal)
    if key and not certificate:
        raise SettingError(key_name, key, "given together with OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities:
        try:
            context.load_verify_locations(authorities)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise SettingError(authority_name, authorities, f"a file of certificates in PEM form ({error})") from error
    if certificate:
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            allowed = (
                f"a certificate in PEM form whose key, without password, is in OTEL_EXPORTER_OTLP_CLIENT_KEY ({error})"
            )
            raise SettingError(name, certificate, allowed) from error
    return Tls(authorities or None, certificate or None, key or None)


def is_insecure(endpoint: str, remarks: Remarks, signal: Signal = TRACES) -> bool:
    """Whether gRPC goes without TLS: the endpoint's scheme says, and where there is none, the variable."""
    name, value = variable("INSECURE", signal)
    if value and value.lower() not in ("true", "false"):
        remarks.fall_back(SettingError(name, value, "true or false"), "false is used")
    if endpoint.startswith(("http://", "https://")):
        return endpoint.startswith("http://")
    return value.lower() == "true"


def _file(what: str, signal: Signal) -> tuple[str, str]:
    name, path = variable(what, signal)
    if path and not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise SettingError(name, path, "a file that can be read")
    return name, path


def _no_password() -> str:
    raise ValueError("it has a password")


class Proxy(NamedTuple):
    """A proxy that applies to a target."""

    #: Name of the variable.
    variable: str
    #: Host and port, without user and password.
    address: str
    #: Name of the variable in which a host is exempted.
    exempting: str

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.variable})"


def find_proxy(target: str, *, grpc: bool) -> Proxy | None:
    """Find the proxy for a target.

    Parameters
    ----------
    target
        As an exporter gets it.
    grpc
        gRPC reads other variables than requests, which the exporter over HTTP uses.
    """
    return _of_grpc(target) if grpc else _of_requests(target)


def _of_requests(target: str) -> Proxy | None:
    from requests.utils import get_environ_proxies, select_proxy

    try:
        proxy = select_proxy(target, get_environ_proxies(target))
    except ValueError:
        return None
    if not proxy:
        return None
    scheme = urlsplit(target).scheme
    variable = _set(f"{scheme}_proxy") or _set("all_proxy") or "settings of this system"
    return Proxy(variable, _address(proxy), "no_proxy" if os.environ.get("no_proxy") else "NO_PROXY")


def _set(name: str) -> str:
    """Name of a variable as it is spelled: of several, the lower-case one counts."""
    found = [each for each, value in os.environ.items() if each.lower() == name and value]
    return name if name in found else next(iter(found), "")


def _of_grpc(target: str) -> Proxy | None:
    """Do as gRPC's core: the first variable that is set counts, even if it is empty, for any target but a socket file.

    Unlike for requests, only the lower-case names count, and only proxies that are spoken to in plain HTTP. An exempted
    name stands for all below it, too; for older versions of gRPC, for any name that ends so.
    """
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    variable = next((name for name in names if name in os.environ), "")
    try:
        parts = urlsplit(os.environ.get(variable, ""))
        if parts.scheme != "http" or not parts.hostname:
            return None
    except ValueError:
        return None
    if target.startswith(("unix:", "vsock:")):
        return None
    exempting = "no_proxy" if "no_proxy" in os.environ and "no_grpc_proxy" not in os.environ else "no_grpc_proxy"
    host = _host(target).lower()
    for each in os.environ.get(exempting, "").lower().split(","):
        name = each.strip().lstrip(".")
        if name and (host == name or host.endswith(f".{name}") or _is_in(host, name)):
            return None
    return Proxy(variable, _address(os.environ[variable]), exempting)


def _host(target: str) -> str:
    rest = target.rpartition("/")[2] if target.startswith(("dns:", "xds:")) else target.partition("://")[2] or target
    rest = re.sub(r"^(dns|ipv4|ipv6):", "", rest)
    return urlsplit(f"//{rest}").hostname or ""


def _is_in(host: str, network: str) -> bool:
    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _address(proxy: str) -> str:
    """Host and port, if they can be told apart from a password."""
    rest = proxy.partition("://")[2] if "://" in proxy else proxy
    authority = re.split("[/?#]", rest)[0]
    # A proxy has no path, so an @ behind the first slash belongs to a password.
    return "…" if "@" in rest[len(authority) :] else shown(authority) or "…"


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
        values[CLUSTER_NAME] = cluster_name
    sdk = {name: value for name, value in Resource.create().attributes.items() if name.startswith("telemetry.sdk.")}
    values |= sdk | dict(OTELResourceDetector().detect().attributes)
    return Resource({name: clean(value) if isinstance(value, str) else value for name, value in values.items()})
