"""Finds out what listens on a port, for the doctor.

The errors of a connection that ends early, or where nothing comes back, do not name the cause.
"""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["GRPC", "HTTP", "TIMEOUT", "Listener", "what_listens"]

#: Seconds for each step.
TIMEOUT = 2.0
GRPC, HTTP = "grpc", "http/protobuf"
#: How a client begins HTTP/2: the preface and empty settings. A server of HTTP/2 answers with its own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4


class Listener(NamedTuple):
    """What listens on a port."""

    #: Whether a connection could be made.
    is_connected: bool = True
    #: ``GRPC``, ``HTTP`` or None (unknown), and whether it is spoken over TLS.
    protocol: str | None = None
    is_tls: bool = False
    #: Whether nothing came back, whatever was sent.
    is_silent: bool = False


def what_listens(endpoint: str) -> Listener | None:
    """Find out the protocol of a port, with up to four connections, at the first address of its host that takes one.

    Returns
    -------
    None if all addresses refuse the connection, or the endpoint is not understood.

    Parameters
    ----------
    endpoint
        A URL, or ``host:port``.
    """
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # a name for gRPC only, such as dns:host:4317
        return None
    if not host:
        return None
    address = (host, port)
    try:
        socket.create_connection(address, TIMEOUT).close()
    except TimeoutError:
        return Listener(is_connected=False)
    except ConnectionRefusedError:
        return None
    except ConnectionError:  # something listens, and ends connections at once
        pass
    except OSError:
        return None
    try:
        return _over_tls(address) or _in_plain(address)
    except TimeoutError:
        return Listener(is_silent=True)
    except OSError:
        return Listener()


def _over_tls(address: tuple[str, int]) -> Listener | None:
    try:
        if _handshake(address, ["h2"]) == "h2":
            is_both = _handshake(address, ["http/1.1"]) == "http/1.1"
            return Listener(protocol=None if is_both else GRPC, is_tls=True)
        return Listener(protocol=HTTP, is_tls=True) if _handshake(address, []) is not None else None
    except TimeoutError:  # a server without TLS may wait for the end of a line
        return None


def _in_plain(address: tuple[str, int]) -> Listener:
    with socket.create_connection(address, TIMEOUT) as connection:
        connection.sendall(_PREFACE)
        answer = connection.recv(9)
    # Python's server answers with a page, and without a status, to a version of HTTP that it does not know.
    if answer.startswith((b"HTTP/", b"<")):
        return Listener(protocol=HTTP)
    if len(answer) > 3 and answer[3] == _SETTINGS:
        return Listener(protocol=GRPC)
    return Listener()


def _handshake(address: tuple[str, int], protocols: list[str]) -> str | None:
    """Shake hands over TLS, and send nothing: the chosen protocol, empty if there is none; None if it fails.

    Raises
    ------
    TimeoutError
        If nothing comes back.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    try:
        with (
            socket.create_connection(address, TIMEOUT) as connection,
            context.wrap_socket(connection, server_hostname=address[0]) as wrapped,
        ):
            # Nothing is handshaken, and nothing raised, over a connection that the server has already ended.
            return wrapped.selected_alpn_protocol() or "" if wrapped.version() else None
    except TimeoutError:
        raise
    except OSError:
        return None
