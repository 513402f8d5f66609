"""A small HTTP proxy: it leads to one receiver, whatever host it is asked for, or does something else instead."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Listens on a loopback port; a context manager.

    Parameters
    ----------
    does
        ``lead``, ``hang``, ``refuse``, or the status that it answers with: ``403``.
    endpoint
        Where it leads to.

    Attributes
    ----------
    asked
        First lines of the requests: ``CONNECT host:443 HTTP/1.1``.
    """

    def __init__(self, does: str = "lead", endpoint: str = "") -> None:
        self.does = does
        self.asked: list[str] = []
        parts = urlsplit(endpoint)
        self._target = (parts.hostname, parts.port)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))  # without listening, it refuses
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        if self.does != "refuse":
            self._socket.listen()
            threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for each in [self._socket, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                self._open.append(near)
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = near.recv(4096)
                if not data:
                    return
                head += data
            self.asked.append(head.split(b"\r\n")[0].decode())
            if self.does == "hang":
                return
            if self.does != "lead":
                near.sendall(f"HTTP/1.1 {self.does} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                near.close()
                return
            far = socket.create_connection(self._target)
            self._open.append(far)
            if head.startswith(b"CONNECT "):
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far.sendall(re.sub(rb"^(\w+) http://[^/]*", rb"\1 ", head))
            threading.Thread(target=_pump, args=(far, near), daemon=True).start()
            _pump(near, far)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(4096):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
