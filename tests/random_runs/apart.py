"""Workers in processes of their own, which can be killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import dask
from distributed import Worker
from opentelemetry import trace

from . import uses
from .plan import Inside
from .sending import set_provider
from .submissions import note_submissions

__all__ = ["Apart", "Spares", "busy_keys", "heartbeat", "send_spans"]

#: Forked, which takes a moment, from the process of the run while it has no threads yet.
_processes = multiprocessing.get_context("fork")


@dataclass(eq=False)
class Apart:
    """A worker in a process of its own."""

    process: Any
    address: str

    @property
    def instance(self) -> str:
        """``service.instance.id`` of its spans."""
        return str(self.process.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return bool(self.process.is_alive())


class Spares:
    """Processes that wait until they are to be workers; all end with the process that has made them."""

    def __init__(self, number: int) -> None:
        lifeline, self._end = os.pipe()
        self._waiting = []
        for _ in range(number):
            ours, theirs = _processes.Pipe()
            process = _processes.Process(target=_serve, args=(theirs, lifeline, self._end), daemon=True)
            process.start()
            self._waiting.append((process, ours))

    async def start(self, message: dict[str, Any], options: dict[str, Any]) -> Apart:
        """Have one of them start a worker, with its options."""
        process, connection = self._waiting.pop()
        connection.send(message | {"options": options})
        return Apart(process, await asyncio.to_thread(connection.recv))


def _serve(connection: Connection, lifeline: int, end: int) -> None:
    os.close(end)
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()
    asyncio.run(_work(connection, **connection.recv()))


def _follow(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(0)


async def _work(
    connection: Connection, inside: Inside, endpoints: dict[str, str], settings: dict[str, Any], options: dict[str, Any]
) -> None:
    dask.config.set(settings)
    random.seed(options["name"])
    set_provider(inside, endpoints, str(os.getpid()))
    note_submissions()
    uses.begin()
    async with Worker(
        **options, dashboard=False, dashboard_address=":0", validate=True, local_directory=tempfile.gettempdir()
    ) as worker:
        connection.send(worker.address)
        await worker.finished()
    trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]
    os._exit(0)  # tasks that go on hold it no longer


# What clients have these workers run


async def heartbeat(dask_worker: Any) -> None:
    """Send a heartbeat."""
    await dask_worker.heartbeat()


def busy_keys(dask_worker: Any) -> list[str]:
    """Return what is still going on."""
    return list(map(str, [*dask_worker.active_keys, *dask_worker.state.in_flight_tasks]))


async def send_spans(dask_worker: Any) -> list[str]:
    """Wait for all spans of this process, and have them sent; return what has failed."""
    spans = dask_worker.plugins["dask-otel"]._spans

    def send() -> bool:
        provider: Any = trace.get_tracer_provider()
        return uses.at_rest(10) and spans.stop(10) and provider.force_flush()

    is_sent = await asyncio.to_thread(send)
    spans._report()  # which else is done a little later
    return [*map(str, spans.safety.failures), *([] if is_sent else ["sending"])]
