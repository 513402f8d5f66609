"""What is probably wrong when spans cannot be sent, in one line, from what the way there says."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ..export.proxies import Proxy
from ..export.signals import TRACES, Signal

__all__ = ["advice"]

_OTHER = {
    "grpc": "This is not a gRPC port: use {PROTOCOL}=http/protobuf, or the gRPC port, usually 4317.",
    "http/protobuf": "This is not an HTTP port: use {PROTOCOL}=grpc, or the HTTP port, usually 4318.",
}
_TLS = (
    "The port may speak TLS: write https:// in the endpoint. If that is there, the collector may want a client "
    "certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY."
)
#: Pattern of what was said, and advice; the first that matches.
_KNOWN: tuple[tuple[str, str], ...] = (
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", "The port does not speak TLS: write http:// in the endpoint."),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "The collector's certificate is not trusted: OTEL_EXPORTER_OTLP_CERTIFICATE names the file of its authority.",
    ),
    (
        r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|alert certificate",
        "The collector wants a client certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY.",
    ),
    (r"ALPN", _OTHER["grpc"]),
    (
        r"Domain name not found|resolv|Name or service not known|getaddrinfo",
        "The endpoint's host has no address here: is it spelled right, and known in this network?",
    ),
    (r"HTTP 407", "A proxy on the way wants to know who you are, but no variable names one."),
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
    (
        r"HTTP 40[13]|UNAUTHENTICATED|PERMISSION_DENIED",
        "The collector wants to know who you are: OTEL_EXPORTER_OTLP_HEADERS, e.g. authorization=Bearer%20<token>.",
    ),
    (
        r"DEADLINE_EXCEEDED|timed out",
        "Something takes the connection and does not answer: a firewall, an overloaded collector, or another protocol.",
    ),
    (
        r"HTTP (429|50[234])|RESOURCE_EXHAUSTED",
        "The collector has too much to do; the bridge tries again.",
    ),
)


#: What only the collector says, or what a proxy says too, of a request that came through one.
_OF_COLLECTOR = (
    r"HTTP \d|UNIMPLEMENTED|UNAUTHENTICATED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|INVALID_ARGUMENT|INTERNAL"
    r"|CERTIFICATE|certificate|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HANDSHAKE_FAILURE|ALPN|HTTP/2|http1"
)
_OF_EITHER = r"HTTP (40[0357]|5\d\d|3\d\d|200)"


def advice(protocol: str, target: str, said: str, proxy: Proxy | None = None, signal: Signal = TRACES) -> str:
    """Say what is probably wrong.

    Parameters
    ----------
    protocol
        ``grpc`` or ``http/protobuf``.
    said
        As ``Answer.said``.
    proxy
        What requests go through.
    signal
        What could not be sent; advice must not break the other.
    """
    line = _line(protocol, said)
    if proxy:
        line = _with_proxy(proxy, target, said, line)
    of = "" if signal is TRACES else f"{signal.name}_"
    names = {
        "{PROTOCOL}": f"OTEL_EXPORTER_OTLP_{of}PROTOCOL",
        "{ENDPOINT}": f"OTEL_EXPORTER_OTLP_{signal.name}_ENDPOINT",
        "{path}": signal.path,
    }
    for name, value in names.items():
        line = line.replace(name, value)
    return line


def _with_proxy(proxy: Proxy, target: str, said: str, line: str) -> str:
    """Name the proxy, before or behind the advice that would be given without one, or instead of it."""
    host = urlsplit(target if "://" in target else f"//{target}").hostname or target
    exempt = f"add {host} to {proxy.exempting} to go without it"
    named = f"Requests go through the proxy {proxy.address} that {proxy.variable} names"
    if not re.search(_OF_COLLECTOR, said) or "HTTP 407" in said:
        return f"{named}. Look there first: is it up, and does it let them through? Or {exempt}."
    # Over TLS, a proxy only passes on what the collector says.
    if target.startswith("http://") and re.search(_OF_EITHER, said):
        first = f"{named}, which may be what answers so: look there first, or {exempt}."
        return f"{first} If the collector itself says so: {line}"
    return f"{line} {named}; {exempt}."


def _line(protocol: str, said: str) -> str:
    if protocol == "grpc" and re.search(r"Failed parsing HTTP/2|http1", said):
        return _OTHER["grpc"]
    for pattern, line in _KNOWN:
        if re.search(pattern, said):
            return line
    if re.search(r"[Cc]losed|reset|RemoteDisconnected", said):
        return _TLS
    if re.search(r"ProtocolError|BadStatusLine", said):
        return _OTHER[protocol]
    return "Ask whoever runs the collector, and show them this message."
