"""The standard ``OTEL_*`` variables: read, checked, and put into words where a value cannot be used.

As the OpenTelemetry specification asks for, a number or a keyword that cannot be used is ignored with a warning
(``Remarks``). Where ignoring it would send data to the wrong place, or unprotected, ``SettingError`` is raised instead
and switches one signal off. To read one more variable of OTLP, add a field to ``OtlpSettings``.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from opentelemetry.sdk.resources import OTELResourceDetector, ProcessResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits

from ..errors import Remarks, SettingError
from ..schema import CLUSTER_NAME, Kind, clean

__all__ = [
    "METRICS",
    "TRACES",
    "Limits",
    "OtlpSettings",
    "Proxy",
    "Signal",
    "Tls",
    "check_given",
    "credential_provider",
    "delta_kinds",
    "exporter_names",
    "find_proxy",
    "is_default_endpoint",
    "make_limits",
    "make_resource",
    "make_span_limits",
    "metric_interval",
    "not_read",
    "otlp_protocol",
    "read_otlp",
    "read_variable",
    "sdk_disabled",
    "shown",
    "with_variables",
]

#: Seconds for one request, unless a variable is set, and at most: gRPC and requests cannot count much further.
TIMEOUT = 10
MAX_TIMEOUT = 3600.0
#: Seconds between two exports of metrics, as in the specification.
METRIC_INTERVAL = 60.0
#: Seconds from one request with spans to the next, if OTEL_BSP_SCHEDULE_DELAY is not set.
SPACING = 1.5

PROTOCOLS = ("grpc", "http/protobuf")
_COMPRESSIONS = {"grpc": ("gzip", "none"), "http/protobuf": ("gzip", "deflate", "none")}
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff]*")
#: Kinds of metrics that are exported as deltas, by preference. ``lowmemory`` spares instruments that would have to
#: remember totals; our counters need not.
_DELTAS = {
    "cumulative": frozenset[Kind](),
    "delta": frozenset({Kind.COUNTER, Kind.HISTOGRAM}),
    "lowmemory": frozenset({Kind.HISTOGRAM}),
}
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
#: Variables that the specification has and that have no effect here.
_NOT_READ = (
    "OTEL_CONFIG_FILE",
    "OTEL_EXPERIMENTAL_CONFIG_FILE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_METRICS_EXEMPLAR_FILTER",
)


@dataclass(frozen=True)
class Signal:
    """Traces or metrics, and the names of what concerns one of them."""

    #: As in the variables' names, ``OTEL_EXPORTER_OTLP_<NAME>_ENDPOINT``.
    name: str
    #: What is exported, for a person.
    items: str
    #: Path appended to an endpoint for all signals over HTTP.
    path: str
    #: Group of entry points of exporters.
    group: str
    #: Variable that names exporters, and the one with the milliseconds that a request may take.
    exporter: str
    timeout: str
    #: Exporter that cannot be used, and what to do instead.
    unusable: tuple[str, str] = ("", "")


TRACES = Signal(
    "TRACES", "spans", "/v1/traces", "opentelemetry_traces_exporter", "OTEL_TRACES_EXPORTER", "OTEL_BSP_EXPORT_TIMEOUT"
)
METRICS = Signal(
    "METRICS",
    "metrics",
    "/v1/metrics",
    "opentelemetry_metrics_exporter",
    "OTEL_METRICS_EXPORTER",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    # It would open a port of its own.
    ("prometheus", "otlp; Prometheus takes OTLP at /api/v1/otlp if it is started with --web.enable-otlp-receiver"),
)


@dataclass(frozen=True)
class Limits:
    """Sizes of the sending queue and of one batch; the standard ``OTEL_BSP_*`` variables change them."""

    #: Records that may wait, and bytes that they take: with everything else, less than 64 MiB.
    max_waiting: int = 500_000
    max_bytes: int = 48 * 2**20
    #: Spans in one request. Encoding 512 holds the interpreter lock for 2 ms at a stretch, three times.
    max_batch: int = 256
    #: Seconds that records wait for others to share a request with.
    delay: float = 0.2
    #: Seconds from one request to the next, unless a batch is full: a request costs as much as 30 spans in it.
    spacing: float = 0.0


@dataclass(frozen=True)
class Tls:
    """Files in PEM form; None where none is named."""

    authorities: str | None = None
    certificate: str | None = None
    #: Of the certificate; None if its file holds it too.
    key: str | None = None


@dataclass(frozen=True)
class OtlpSettings:
    """How one signal is sent over OTLP."""

    #: ``grpc`` or ``http/protobuf``.
    protocol: str
    #: A URL, over HTTP with its path; over gRPC also another target. May hold a password.
    endpoint: str = field(repr=False)
    #: ``gzip``, ``deflate`` or ``none``.
    compression: str
    #: Names in lower case; values may be secrets.
    headers: dict[str, str] = field(repr=False)
    #: Seconds for one request.
    timeout: float
    tls: Tls
    #: Whether a gRPC channel goes without TLS.
    is_insecure: bool
    proxy: Proxy | None


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


#: What is read in place of the environment; None for the environment itself.
_variables: ContextVar[Mapping[str, str] | None] = ContextVar("dask_otel_variables", default=None)


@contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Have all functions of this module read these variables and not the environment, which is not changed."""
    token = _variables.set(variables)
    try:
        yield
    finally:
        _variables.reset(token)


def check_given(given: Mapping[str, str]) -> None:
    """Check variables as far as that is possible in another process than the one that will send.

    Raises
    ------
    SettingError
        At a value that cannot be used, also where the same value in the environment would only be ignored.
    """
    errors: list[SettingError] = []
    for protocol in PROTOCOLS:  # which one is used may depend on the other process
        try:
            with with_variables({"OTEL_EXPORTER_OTLP_PROTOCOL": protocol} | dict(given)):
                for signal in (TRACES, METRICS):
                    _check(signal, _Strict())
        except SettingError as error:
            errors.append(error)
    if len(errors) == len(PROTOCOLS):
        raise errors[-1]


class _Strict(Remarks):
    def fall_back(self, error: SettingError, instead: str) -> None:
        raise error


def _check(signal: Signal, remarks: Remarks) -> None:
    protocol = otlp_protocol(remarks, signal)
    endpoint = _endpoint(signal, protocol, None)
    _timeout(signal, remarks)
    _headers(signal, remarks)
    _compression(signal, protocol, remarks)
    _is_insecure(endpoint, signal, remarks)


def sdk_disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` is true."""
    return read_variable("OTEL_SDK_DISABLED").lower() == "true"


def not_read() -> list[str]:
    """Name the variables that are set and have no effect."""
    return [name for name in _NOT_READ if read_variable(name)]


def is_default_endpoint(signal: Signal) -> bool:
    """Whether a signal is sent to the endpoint of all signals: nobody has named a backend for this one."""
    return not read_variable(f"OTEL_EXPORTER_OTLP_{signal.name}_ENDPOINT")


def exporter_names(signal: Signal, remarks: Remarks) -> list[str]:
    """Return the exporters that ``OTEL_TRACES_EXPORTER`` or ``OTEL_METRICS_EXPORTER`` names.

    Returns
    -------
    None of them if the variable is ``none``, or if it is not set and only the other signal has an endpoint.

    Raises
    ------
    SettingError
        If the variable holds nothing but commas.
    """
    setting = read_variable(signal.exporter)
    if not setting and (why := _why_not_sent(signal) or _why_page_only(signal)):
        remarks.reading(why)
        return []
    names = [name.strip() for name in (setting or "otlp").split(",") if name.strip()]
    if not names:
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    return [] if {name.lower() for name in names} == {"none"} else list(dict.fromkeys(names))


def otlp_protocol(remarks: Remarks, signal: Signal = TRACES) -> str:
    """Return the protocol of the exporter ``otlp``: ``grpc`` or ``http/protobuf``.

    Raises
    ------
    SettingError
        If the variable names another one, unless that is another encoding over HTTP.
    """
    name, value = _variable("PROTOCOL", signal)
    protocol = value.lower() or "grpc"
    if protocol in PROTOCOLS:
        return protocol
    if re.fullmatch(r"http(/.*)?", protocol):
        remarks.reading(
            f"{name} = {value!r} is taken as http/protobuf, which has the same port and path; no other encoding is "
            "supported over HTTP"
        )
        return "http/protobuf"
    raise SettingError(name, value, "one of " + ", ".join(PROTOCOLS))


def read_otlp(signal: Signal, protocol: str, remarks: Remarks, endpoint: str | None = None) -> OtlpSettings:
    """Read the ``OTEL_EXPORTER_OTLP_*`` variables of a signal.

    Parameters
    ----------
    endpoint
        Wins over the variables for endpoints; as the one for all signals, without a path.

    Raises
    ------
    SettingError
        If the endpoint is none, or a file for TLS cannot be used.
    """
    endpoint = _endpoint(signal, protocol, endpoint)
    return OtlpSettings(
        protocol=protocol,
        endpoint=endpoint,
        tls=_tls(signal),
        timeout=_timeout(signal, remarks),
        headers=_headers(signal, remarks),
        compression=_compression(signal, protocol, remarks),
        is_insecure=protocol == "grpc" and _is_insecure(endpoint, signal, remarks),
        proxy=find_proxy(endpoint, grpc=protocol == "grpc"),
    )


def credential_provider(signal: Signal, protocol: str) -> tuple[str, str]:
    """Name and value of the variable that names a credential provider; empty if none is set."""
    transport = "GRPC" if protocol == "grpc" else "HTTP"
    for scope in (transport, f"{transport}_{signal.name}"):  # in the order of OpenTelemetry's own exporters
        name = f"OTEL_PYTHON_EXPORTER_OTLP_{scope}_CREDENTIAL_PROVIDER"
        if value := read_variable(name):
            return name, value
    return "", ""


def make_limits(remarks: Remarks) -> Limits:
    """Read ``OTEL_BSP_*``. The specification's defaults are too slow and too small for a scheduler."""
    ours = Limits()
    waiting = _whole("OTEL_BSP_MAX_QUEUE_SIZE", 1, remarks) or ours.max_waiting
    batch = _whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1, remarks) or ours.max_batch
    delay = _whole("OTEL_BSP_SCHEDULE_DELAY", 0, remarks)
    return Limits(
        max_waiting=waiting,
        max_batch=min(batch, waiting),
        delay=ours.delay if delay is None else min(delay / 1000, MAX_TIMEOUT),
        spacing=SPACING if delay is None else 0.0,
    )


def make_span_limits(remarks: Remarks) -> SpanLimits:
    """Read ``OTEL_*_LIMIT``, as the SDK does, which fails at one that is not a number."""
    defaults = {}
    for name, (parameter, default) in _SPAN_LIMITS.items():
        value = read_variable(name)
        if value and not value.isdecimal():
            error = SettingError(name, value, "a whole number from 0 up, or empty for the default")
            remarks.fall_back(error, "the default is used")
            defaults[parameter] = default
    return SpanLimits(**defaults)


def metric_interval(remarks: Remarks) -> float:
    """Return the seconds between two exports of metrics."""
    interval = _whole("OTEL_METRIC_EXPORT_INTERVAL", 100, remarks)
    return METRIC_INTERVAL if interval is None else interval / 1000


def delta_kinds(remarks: Remarks) -> frozenset[Kind]:
    """Return the kinds of metrics that are exported as deltas; none unless a variable is set."""
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    preference = read_variable(name)
    kinds = _DELTAS.get(preference.lower() or "cumulative")
    if kinds is None:
        remarks.fall_back(SettingError(name, preference, "one of " + ", ".join(_DELTAS)), "cumulative is used")
        return _DELTAS["cumulative"]
    return kinds


def make_resource(*, service_name: str, instance_id: str, version: str, cluster_name: str | None) -> Resource:
    """Describe the process that the data comes from; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win."""
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


def read_variable(name: str) -> str:
    """Return the value of a variable without blanks around it; empty if it is not set."""
    variables = _variables.get()
    return (os.environ if variables is None else variables).get(name, "").strip()


def _variable(name: str, signal: Signal) -> tuple[str, str]:
    """Name and value of a variable for a signal, else of the one for all signals; empty if neither is set."""
    for each in (f"OTEL_EXPORTER_OTLP_{signal.name}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if value := read_variable(each):
            return each, value
    return "", ""


def _whole(name: str, least: int, remarks: Remarks) -> int | None:
    """Return the whole number that a variable holds; None if it is not set, or holds something else."""
    value = read_variable(name)
    if not value:
        return None
    if not (value.isascii() and value.isdecimal()) or len(value) > 12 or int(value) < least:
        error = SettingError(name, value[:50], f"a whole number from {least} up, of at most 12 digits")
        remarks.fall_back(error, "the default is used")
        return None
    return int(value)


def _why_not_sent(signal: Signal) -> str:
    """Explain that an endpoint is set for the other signal only; empty if this one has its own, or neither has.

    The specification's default, a collector on this machine, would be wrong then, also if the endpoint is on this
    machine: the backend may take one signal only, as Jaeger does, or require headers that are set for that signal only.
    """
    name, value = _variable("ENDPOINT", METRICS if signal is TRACES else TRACES)
    if _variable("ENDPOINT", signal)[1] or not value:
        return ""
    items = signal.items
    return (
        f"no {items} are sent: only {name} is set. Set OTEL_EXPORTER_OTLP_{signal.name}_ENDPOINT to send {items}, or "
        "OTEL_EXPORTER_OTLP_ENDPOINT for both signals"
    )


def _why_page_only(signal: Signal) -> str:
    """Say that metrics have no endpoint while spans are only shown on the page: a collector is nowhere named."""
    if signal is TRACES or read_variable(TRACES.exporter).lower() != "none" or _variable("ENDPOINT", signal)[1]:
        return ""
    return (
        "no metrics are sent: OTEL_TRACES_EXPORTER is none, and no endpoint is set. Set OTEL_METRICS_EXPORTER=otlp or "
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT to send metrics"
    )


def _endpoint(signal: Signal, protocol: str, given: str | None) -> str:
    grpc = protocol == "grpc"
    default = "http://localhost:4317" if grpc else "http://localhost:4318"
    name, value = ("endpoint", given) if given is not None else _variable("ENDPOINT", signal)
    if value and not _is_endpoint(value, grpc=grpc):
        raise SettingError(name, shown(value), f"a URL like {default.replace('localhost', 'collector')}")
    if grpc and "@" in value:
        raise SettingError(
            name, shown(value), "without user and password over gRPC; OTEL_EXPORTER_OTLP_HEADERS is for that"
        )
    value = value or default
    if grpc or f"_{signal.name}_" in name:
        return value
    parts = urlsplit(value)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + signal.path))


def _is_endpoint(value: str, *, grpc: bool) -> bool:
    """Whether it is a URL; over gRPC also ``host:port`` or another target of gRPC's."""
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
    except ValueError:  # the port is not a number
        return False
    if parts.scheme in ("http", "https"):
        return bool(parts.hostname)
    return grpc and parts.scheme in ("dns", "ipv4", "ipv6", "xds")


def _compression(signal: Signal, protocol: str, remarks: Remarks) -> str:
    name, value = _variable("COMPRESSION", signal)
    if value and value.lower() not in _COMPRESSIONS[protocol]:
        over = "gRPC" if protocol == "grpc" else "HTTP"
        error = SettingError(name, value, f"one of {', '.join(_COMPRESSIONS[protocol])} over {over}")
        remarks.fall_back(error, "gzip is used")
        return "gzip"
    return value.lower() or "gzip"


def _headers(signal: Signal, remarks: Remarks) -> dict[str, str]:
    name, value = _variable("HEADERS", signal)
    headers: dict[str, str] = {}
    for number, each in enumerate(filter(None, map(str.strip, value.split(","))), 1):
        key, separator, text = each.partition("=")
        key = unquote(key.strip()).lower()
        text = unquote(text.strip())
        if separator and _HEADER_NAME.fullmatch(key) and _HEADER_VALUE.fullmatch(text):
            headers[key] = text
            continue
        allowed = "name=value, separated by commas; other characters as in a URL: %20"
        remarks.fall_back(
            SettingError(name, "(not shown)", allowed), f"entry {number} is left out, and requests lack that header"
        )
    return headers


def _timeout(signal: Signal, remarks: Remarks) -> float:
    """Seconds for one request, by two variables; the shorter time counts."""
    name, value = _variable("TIMEOUT", signal)
    try:
        seconds = float(value or TIMEOUT)
    except ValueError:
        seconds = 0.0
    if MAX_TIMEOUT < seconds <= 1000 * MAX_TIMEOUT:
        remarks.reading(
            f"{name} = {value!r} is taken as milliseconds, i.e. {seconds / 1000:g} s; Python's exporters count "
            f"seconds: write {seconds / 1000:g}"
        )
        seconds /= 1000
    if not 0 < seconds <= MAX_TIMEOUT:
        error = SettingError(name, value, f"a number of seconds above 0, at most {MAX_TIMEOUT:g}")
        remarks.fall_back(error, f"{TIMEOUT} s are used")
        seconds = float(TIMEOUT)
    export = _whole(signal.timeout, 1, remarks)
    return seconds if export is None else min(seconds, export / 1000)


def _tls(signal: Signal) -> Tls:
    """Read the variables for TLS, and load the files once.

    gRPC ends the whole process if it gets a certificate without its key, or an empty file.
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


def _file(what: str, signal: Signal) -> tuple[str, str]:
    name, path = _variable(what, signal)
    if path and not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise SettingError(name, path, "a file that can be read")
    return name, path


def _no_password() -> str:
    raise ValueError("it has a password")


def _is_insecure(endpoint: str, signal: Signal, remarks: Remarks) -> bool:
    """Whether gRPC goes without TLS: the endpoint's scheme decides, and where there is none, the variable."""
    name, value = _variable("INSECURE", signal)
    if value and value.lower() not in ("true", "false"):
        remarks.fall_back(SettingError(name, value, "true or false"), "false is used")
    if endpoint.startswith(("http://", "https://")):
        return endpoint.startswith("http://")
    return value.lower() == "true"


def find_proxy(target: str, *, grpc: bool) -> Proxy | None:
    """Find the proxy for an endpoint; neither gRPC nor requests names it when it fails.

    Parameters
    ----------
    grpc
        gRPC reads other variables than requests, which sends over HTTP.
    """
    return _grpc_proxy(target) if grpc else _http_proxy(target)


def _http_proxy(target: str) -> Proxy | None:
    from requests.utils import get_environ_proxies, select_proxy

    try:
        proxy = select_proxy(target, get_environ_proxies(target))
    except ValueError:
        return None
    if not proxy:
        return None
    scheme = urlsplit(target).scheme
    variable = _as_spelled(f"{scheme}_proxy") or _as_spelled("all_proxy") or "settings of this system"
    return Proxy(variable, _proxy_address(proxy), "no_proxy" if os.environ.get("no_proxy") else "NO_PROXY")


def _as_spelled(name: str) -> str:
    """Name of a variable as it is spelled: of several, the lower-case one counts."""
    found = [each for each, value in os.environ.items() if each.lower() == name and value]
    return name if name in found else next(iter(found), "")


def _grpc_proxy(target: str) -> Proxy | None:
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
    return Proxy(variable, _proxy_address(os.environ[variable]), exempting)


def _host(target: str) -> str:
    rest = target.rpartition("/")[2] if target.startswith(("dns:", "xds:")) else target.partition("://")[2] or target
    rest = re.sub(r"^(dns|ipv4|ipv6):", "", rest)
    return urlsplit(f"//{rest}").hostname or ""


def _is_in(host: str, network: str) -> bool:
    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _proxy_address(proxy: str) -> str:
    """Host and port, if they cannot be part of a password."""
    rest = proxy.partition("://")[2] if "://" in proxy else proxy
    authority = re.split("[/?#]", rest)[0]
    # A proxy has no path, so an @ behind the first slash belongs to a password.
    return "…" if "@" in rest[len(authority) :] else shown(authority) or "…"
