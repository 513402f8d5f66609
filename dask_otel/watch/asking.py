"""Asks workers for a heartbeat: fine metrics travel on it, and a scheduler that closes need not wait for the next one.

Dask has no message for that, so the worker is asked to run a function, as ``Client.run`` does. It is made of its source
with nothing but Python's own names: a worker need not have this package, nor the same Python.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import dask

__all__ = ["ask_for_heartbeats"]

#: The function's name is in the worker's log, at level INFO. A heartbeat may be on its way that was drawn up before
#: the last task had ended, and one that a worker sends while it leaves would be an error.
_SOURCE = """
async def dask_otel_asks_for_heartbeat(dask_worker):
    for _ in range(2):
        if dask_worker.status.name in ("running", "paused"):
            await dask_worker.heartbeat()
"""


class _Function:
    """Pickles as a call of ``eval``."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"(lambda names: exec({_SOURCE!r}, names) or names['dask_otel_asks_for_heartbeat'])({{}})",)


_FUNCTION = pickle.dumps(_Function(), protocol=4)


async def ask_for_heartbeats(scheduler: Any, worker: str) -> bool:
    """Have a worker send what it knows; return whether it has. Takes as long as the worker likes."""
    if "run" in dask.config.get("distributed.worker.blocked-handlers", ()):  # it would log an error
        return False
    try:
        response = await scheduler.rpc(worker).run(function=_FUNCTION)
    except asyncio.CancelledError:
        raise
    except Exception:  # noqa: BLE001 -- it is gone, or takes no functions (distributed.worker.blocked-handlers)
        return False
    return isinstance(response, dict) and response.get("status") == "OK"
