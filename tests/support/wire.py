"""A wire between two ports that can be down, dead or cut: what happens to connections, whatever the protocol."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from urllib.parse import urlsplit, urlunsplit


class Wire:
    """Leads from a port of its own to an endpoint; a context manager.

    Attributes
    ----------
    mode
        ``up``; ``hang``: takes connections and never answers; ``cut``: resets them after ``cut_after`` bytes.
    """

    def __init__(self, endpoint: str, mode: str = "up", *, cut_after: int = 20_000) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname, parts.port)
        self.mode = mode
        self.cut_after = cut_after
        self._listener: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.port = 0
        self.start()
        self.endpoint = urlunsplit(parts._replace(netloc=f"127.0.0.1:{self.port}"))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on, and end those that are there."""
        with self._lock:
            listener, self._listener = self._listener, None
            sockets, self._sockets = self._sockets, []
        if listener:
            with contextlib.suppress(OSError):  # wakes the thread up
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for each in sockets:
            _reset(each)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if self._listener is not listener:
                    near.close()
                    return
                self._sockets.append(near)
            if self.mode != "hang":
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except OSError:
            _reset(near)
            return
        with self._lock:
            self._sockets.append(far)
        threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()
        self._pump(near, far, True)

    def _pump(self, source: socket.socket, sink: socket.socket, outwards: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                passed += len(data)
                if outwards and self.mode == "cut" and passed > self.cut_after:
                    break
                sink.sendall(data)
        _reset(source)
        _reset(sink)


def _reset(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.shutdown(socket.SHUT_RDWR)
    each.close()
