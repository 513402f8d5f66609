"""Threads that an event loop waits for, also while the interpreter exits; standard library only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["HURRY", "in_thread"]

#: Seconds for the rest of closing once it has been cancelled, e.g. by a second Ctrl-C.
HURRY = 2.0


async def in_thread(function: Callable[..., None], *arguments: Any) -> bool:
    """Call a function that blocks in a thread of its own: executors accept nothing when the interpreter exits.

    Returns
    -------
    False if the wait was cancelled; then the function may not have ended yet.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(None)

    def run() -> None:
        failed: Exception | None = None
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 -- raised again where it is awaited
            failed = error
        with suppress(RuntimeError):  # the loop is closed: whoever waited is gone
            loop.call_soon_threadsafe(settle, failed)

    threading.Thread(target=run, name="dask-otel close", daemon=True).start()
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({done}, timeout=HURRY)
        return False
    return True
