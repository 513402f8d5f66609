"""A slow network between workers: a proxy before each of them, which lets few bytes through."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from time import monotonic

from support.backends import free_port

CHUNK = 1 << 17


class SlowNetwork:
    """Passes connections on to a port of this machine.

    What comes back is limited to ``rate`` bytes a second, for all connections together. What is sent to the port is
    not: a worker gets requests there, and answers with its data.

    Parameters
    ----------
    rate
        Bytes a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        #: Where a server is to listen.
        self.port = free_port()
        #: Where clients are to connect.
        self.address = ""
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> SlowNetwork:
        self._thread.start()
        self.address = f"tcp://127.0.0.1:{self._started.result()}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stopped, self._free = asyncio.get_running_loop(), asyncio.Event(), 0.0
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, limit=CHUNK)
        self._started.set_result(server.sockets[0].getsockname()[1])
        await self._stopped.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.port, limit=CHUNK)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._pass_on(reader, inner_writer, limited=False), self._pass_on(inner_reader, writer, limited=True)
        )

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool) -> None:
        try:
            while data := await reader.read(CHUNK):
                if limited:
                    self._free = max(self._free, monotonic()) + len(data) / self._rate
                    # The timer of the event loop is no finer than a millisecond.
                    if (delay := self._free - monotonic()) > 0.002:
                        await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # One of the two has gone.
        finally:
            writer.close()
