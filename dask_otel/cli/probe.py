"""Finds out what listens on a port, for the doctor: errors of a connection that ends early do not name the cause."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

__all__ = ["GRPC", "HTTP", "what_listens"]

#: Seconds for each step.
TIMEOUT = 2.0
GRPC, HTTP = "grpc", "http/protobuf"
#: How a client begins HTTP/2: the preface and empty settings. A server of HTTP/2 answers with its own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4


def what_listens(endpoint: str) -> tuple[str | None, bool] | None:
    """Find out the protocol of a port.

    Parameters
    ----------
    endpoint
        A URL, or ``host:port``.

    Returns
    -------
    ``GRPC``, ``HTTP`` or None (unknown), and whether it is spoken over TLS; None if nothing is known.
    """
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    if not host:
        return None
    address = (host, port)
    if _chooses(address, "h2"):
        return GRPC if not _chooses(address, "http/1.1") else None, True
    if _speaks_tls(address):
        return HTTP, True
    with suppress(OSError), socket.create_connection(address, TIMEOUT) as connection:
        connection.sendall(_PREFACE)
        answer = connection.recv(9)
        if answer.startswith(b"HTTP/"):
            return HTTP, False
        if len(answer) > 3 and answer[3] == _SETTINGS:
            return GRPC, False
    return None


def _chooses(address: tuple[str, int], protocol: str) -> bool:
    """Whether a server of TLS chooses an application protocol, if it is the only one."""
    return _handshake(address, [protocol]) == protocol


def _speaks_tls(address: tuple[str, int]) -> bool:
    return _handshake(address, []) is not None


def _handshake(address: tuple[str, int], protocols: list[str]) -> str | None:
    """Shake hands over TLS, and send nothing: the chosen protocol, empty if there is none; None if it fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    with (
        suppress(OSError),
        socket.create_connection(address, TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=address[0]) as wrapped,
    ):
        return wrapped.selected_alpn_protocol() or ""
    return None
