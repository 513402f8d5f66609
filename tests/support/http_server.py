"""A real HTTP server: what requests of tasks reach, and what they said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from typing import NamedTuple

__all__ = ["Received", "Server", "serve"]


class Received(NamedTuple):
    """A request that has arrived."""

    path: str
    #: The header of this name.
    traceparent: str | None


class Server:
    """Answers each request with five bytes, and keeps the requests. Below ``/slow/``, it takes its time."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                received.append(Received(self.path, self.headers["traceparent"]))
                if self.path.startswith("/slow/"):
                    sleep(0.25)
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"hello")

            def log_message(self, *args):
                pass

        class Listening(ThreadingHTTPServer):
            request_queue_size = 128  # tasks of many web requests connect at once

        self._server = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serve() -> Iterator[Server]:
    """Have a server for a while."""
    server = Server()
    try:
        yield server
    finally:
        server.stop()
