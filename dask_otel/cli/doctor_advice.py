"""What is probably wrong when an export fails, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..otlp.environment import TRACES, Proxy, Signal
from .probe import GRPC, HTTP, TIMEOUT, Listener, what_listens

__all__ = ["FOLDER_ADVICE", "Failure", "advice", "is_loopback", "server"]

#: For the folder of traces.
FOLDER_ADVICE = (
    "Traces cannot be kept there: it has to be a folder, or the path of a new one, in which the scheduler's user may "
    "write, on a disk with room."
)
_USE_HTTP = "This is not a gRPC port: use {PROTOCOL}=http/protobuf, or the gRPC port, usually 4317."
_USE_GRPC = "This is not an HTTP port: use {PROTOCOL}=grpc, or the HTTP port, usually 4318."
_NO_TLS = "The port does not speak TLS: write http:// in the endpoint"
#: A collector that refuses credentials; and the advice if some were sent.
_DENIED = r"HTTP 40[13]|UNAUTHENTICATED|PERMISSION_DENIED"
_REFUSED = (
    "The collector refuses the credentials: {HEADERS} was sent with {NAMES} (values are not shown). Is the key right, "
    "and meant for this endpoint?"
)
#: Patterns of ``<protocol>: <message>`` and the advice; the first that matches counts.
_ADVICE: tuple[tuple[str, str], ...] = (
    (r"^grpc: .*(Failed parsing HTTP/2|http1)", _USE_HTTP),
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", f"{_NO_TLS}."),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "The collector's certificate is not trusted: OTEL_EXPORTER_OTLP_CERTIFICATE names the file of its authority.",
    ),
    (
        r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|alert certificate",
        "The collector wants a client certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY.",
    ),
    (r"ALPN", _USE_HTTP),
    (
        r"Domain name not found|resolv|Name or service not known|getaddrinfo",
        "The endpoint's host has no address {HERE}: is it spelled right, and known in this network?",
    ),
    (r"HTTP 407", "A proxy on the way asks for a user and password, but no variable names a proxy."),
    (r"[Cc]onnection refused", "Nothing listens there: is the collector up, and host and port right?"),
    (
        r"HTTP 404|UNIMPLEMENTED",
        "The server has no such path. {ENDPOINT} is used as it is and must end in {path}; "
        "OTEL_EXPORTER_OTLP_ENDPOINT gets it appended.",
    ),
    (
        r"HTTP 405|HTTP 200|HTTP 3\d\d",
        "This is a web server, or a proxy's page, and no OTLP receiver. Prometheus takes metrics at "
        "/api/v1/otlp/v1/metrics, if it is started with --web.enable-otlp-receiver.",
    ),
    (_DENIED, "The collector wants credentials: {HEADERS}, e.g. authorization=Bearer%20<token>."),
    (
        r"DEADLINE_EXCEEDED|timed out",
        "No answer in time: the collector hangs or is overloaded, or a firewall drops the connection. {NEXT}",
    ),
    (r"HTTP (429|50[234])|RESOURCE_EXHAUSTED", "The collector is overloaded; dask-otel tries again."),
    (r"[Cc]losed|reset|RemoteDisconnected", "{ENDED}"),
    (r"^grpc: .*(ProtocolError|BadStatusLine)", _USE_HTTP),
    (r"ProtocolError|BadStatusLine", _USE_GRPC),
    ("", "Ask whoever runs the collector, and show them this message."),
)
#: Messages where a connection ends early, for one of several reasons, or where nothing comes back.
_ENDS_EARLY = r"[Cc]losed|reset|RemoteDisconnected|EOF|ProtocolError|BadStatusLine"
_HANGS = r"DEADLINE_EXCEEDED|timed out"
#: A refusal. gRPC tries all addresses of a host, such as ::1 and 127.0.0.1, and reports the error of the last one only.
_REFUSED_AT_ONE = r"[Cc]onnection refused"
#: The advice for it if the scheduler's port cannot be tried from here.
_EITHER = (
    "Nothing listens there, or the port does not speak gRPC as configured, with or without TLS: gRPC reports the error "
    "of one address of {HOST} only. {NEXT}"
)
#: Messages that come from the collector, also through a proxy, and those of them that a proxy may send itself.
_OF_COLLECTOR = (
    r"HTTP \d|UNIMPLEMENTED|UNAUTHENTICATED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|INVALID_ARGUMENT|INTERNAL"
    r"|CERTIFICATE|certificate|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HANDSHAKE_FAILURE|ALPN|HTTP/2|http1"
)
_OF_EITHER = r"HTTP (40[0357]|5\d\d|3\d\d|200)"


@dataclass(frozen=True)
class Failure:
    """An export that failed."""

    #: ``grpc`` or ``http/protobuf``.
    protocol: str
    target: str
    #: What the collector or the connection reported: ``ExportResult.message``.
    message: str
    #: What requests use.
    proxy: Proxy | None = None
    #: What could not be sent; advice must not break the other.
    signal: Signal = TRACES
    #: Whether the other signal is sent in the same way, so that the variables for both signals are to be corrected.
    is_shared: bool = False
    #: Names of the headers that were sent.
    headers: tuple[str, ...] = ()
    #: Name of the machine that sends; empty if it is this one.
    machine: str = ""


def advice(failure: Failure) -> str:
    """Describe in one line what is probably wrong when an export fails, and what to do."""
    message, proxy = failure.message, failure.proxy
    line = next(line for pattern, line in _ADVICE if re.search(pattern, f"{failure.protocol}: {message}"))
    if line == "{ENDED}":
        line = _ended(failure)
    elif failure.headers and re.search(_DENIED, message):
        line = _REFUSED
    if not proxy and (re.search(f"{_ENDS_EARLY}|{_HANGS}", message) or _may_listen(failure)):
        line = _by_probe(failure) or line
    if failure.machine and is_loopback(failure.target) and re.search("[Cc]onnection refused", message) and not proxy:
        line += f" {_host(failure.target)} is {failure.machine} itself: name the collector's host if it is another."
    if proxy:
        line = _with_proxy(proxy, failure.target, message, line)
    infix = "" if failure.signal is TRACES or failure.is_shared else f"{failure.signal.name}_"
    endpoint = failure.target.removesuffix(failure.signal.path)
    values = {
        "PROTOCOL": f"OTEL_EXPORTER_OTLP_{infix}PROTOCOL",
        "HEADERS": f"OTEL_EXPORTER_OTLP_{infix}HEADERS",
        "NAMES": ", ".join(failure.headers),
        "ENDPOINT": f"OTEL_EXPORTER_OTLP_{failure.signal.name}_ENDPOINT",
        "path": failure.signal.path,
        "HOST": _host(failure.target),
        "HERE": f"on {failure.machine}" if failure.machine else "here",
        "NEXT": f"To find out which, run dask-otel doctor --endpoint {endpoint} on {failure.machine}."
        if failure.machine
        else "Look at the collector's log.",
    }
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], line)


def is_loopback(target: str) -> bool:
    """Whether a target is the machine itself that sends to it."""
    return re.fullmatch(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0", _host(target)) is not None


def server(target: str) -> str:
    """Host and port of a target."""
    return urlsplit(target if "://" in target else f"//{target}").netloc or target


def _host(target: str) -> str:
    return urlsplit(target if "://" in target else f"//{target}").hostname or target


def _may_listen(failure: Failure) -> bool:
    """Whether something may listen in spite of a refusal: at another address of the host."""
    return failure.protocol == GRPC and re.search(_REFUSED_AT_ONE, failure.message) is not None


def _ended(failure: Failure) -> str:
    """Describe what may be wrong if the connection ends without an answer, and it is not known what listens."""
    if failure.target.startswith("https://"):
        return (
            "The server ends the connection. It may want a client certificate: "
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY."
        )
    tls = "The port may speak TLS: write https:// in the endpoint."
    return tls if failure.protocol != HTTP else f"{tls} Or it is a port for gRPC: use {{PROTOCOL}}=grpc."


def _by_probe(failure: Failure) -> str | None:
    """Describe what is wrong by what the port speaks; None if that is not known, or is what was expected.

    The port is opened from here. That means nothing if the target is another machine itself.
    """
    if failure.machine and is_loopback(failure.target):
        return _EITHER if _may_listen(failure) and _host(failure.target) == "localhost" else None
    found = what_listens(failure.target)
    line = found and _by_listener(failure, found)
    return f"{line} The port was tried from here, not from {failure.machine}." if line and failure.machine else line


def _by_listener(failure: Failure, found: Listener) -> str | None:
    protocol, hangs, is_refused = failure.protocol, re.search(_HANGS, failure.message), _may_listen(failure)
    # gRPC uses TLS if the endpoint has no scheme, unless a variable forbids it.
    uses_tls = failure.target.startswith("https://") or (is_refused and "://" not in failure.target)
    if found.is_tls and not uses_tls:
        other = " and set {PROTOCOL}=grpc" if found.protocol not in (None, protocol) and protocol == HTTP else ""
        return f"The port speaks TLS: write https:// in the endpoint{other}."
    if is_refused and uses_tls and found.protocol and not found.is_tls:
        return f"{_NO_TLS}." if found.protocol == protocol else f"{_NO_TLS}, and set {{PROTOCOL}}={found.protocol}."
    if found.protocol not in (None, protocol):
        return _USE_HTTP if found.protocol == HTTP else _USE_GRPC
    if is_refused and found.is_connected:
        return (
            "Something listens there now. Either it has just started, or gRPC reports the error of another address of "
            "{HOST}: ask again."
        )
    if not hangs:
        return None
    if not found.is_connected:
        if failure.machine:  # a firewall may make a difference between machines
            return None
        return (
            f"No connection within {TIMEOUT:g} s: a firewall, security group or network policy drops it, or the host "
            "is down. Is host and port right? If so, open that port for this machine."
        )
    if found.protocol:
        return (
            "The port speaks the right protocol, but the collector does not answer the request in time: look at its "
            "log, and at what it sends to. OTEL_EXPORTER_OTLP_TIMEOUT is the time in seconds."
        )
    if found.is_silent:
        return (
            "The port takes connections and does not answer, neither gRPC, HTTP nor TLS: the collector hangs, or "
            "another program listens there. Look at its log and restart it, or correct the port."
        )
    return None


def _with_proxy(proxy: Proxy, target: str, message: str, line: str) -> str:
    """Name the proxy, before or behind the advice that would be given without one, or instead of it."""
    exempt = f"add {_host(target)} to {proxy.exempting} to go without it"
    named = f"Requests go through the proxy {proxy.address} that {proxy.variable} names"
    if not re.search(_OF_COLLECTOR, message) or "HTTP 407" in message:
        return f"{named}. Look there first: is it up, and does it let them through? Or {exempt}."
    # Over TLS, a proxy only passes on what the collector answers.
    if target.startswith("http://") and re.search(_OF_EITHER, message):
        first = f"{named}, which may be what answers so: look there first, or {exempt}."
        return f"{first} If the collector itself answers so: {line}"
    return f"{line} {named}; {exempt}."
