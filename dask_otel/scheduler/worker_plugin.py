"""Hands ``OTelWorkerPlugin`` to all workers of a scheduler, now and later, and takes it off again.

Dask pickles worker plugins, and a worker that cannot unpickle one logs errors, or does not start. What is handed over
is therefore made of its source and of builtins: a worker need not have this package, nor the same version or Python.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import Any

from .. import __version__
from ..safety import Safety

__all__ = ["WorkerPluginHandout"]

#: Name under which Dask keeps the plugin; as ``OTelWorkerPlugin.name``.
NAME = "dask-otel"
_SOURCE = """
def make(version):
    from logging import INFO, WARNING, getLogger
    from distributed.diagnostics.plugin import WorkerPlugin

    class NoPlugin(WorkerPlugin):
        name = "dask-otel"

    try:
        import dask_otel
        if dask_otel.__version__ == version:
            # If one is broken, the plugin would log an error; "propagate", about a broken "trace", a traceback.
            import opentelemetry.trace
            from dask_otel.worker import execution, plugin
            return plugin.OTelWorkerPlugin()
        why = "it has version " + dask_otel.__version__ + ", and its scheduler " + version
        level = WARNING
    except Exception as error:
        is_absent = isinstance(error, ImportError) and error.name == "dask_otel"
        level = INFO if is_absent else WARNING
        why = "cannot import it (" + type(error).__name__ + ": " + " ".join(str(error).split()) + ")"
    getLogger("distributed.dask_otel").log(level, "dask-otel is off in this worker: %s", why)
    return NoPlugin()
"""


class _Made:
    """Pickles as a call of ``eval``."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"(lambda names: exec({_SOURCE!r}, names) or names['make']({__version__!r}))({{}})",)


class WorkerPluginHandout:
    """Gives workers the plugin, between ``hand_out`` and ``take_back``.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    """

    def __init__(self, scheduler: Any, safety: Safety) -> None:
        self._scheduler = scheduler
        self._safety = safety
        self._pickled = pickle.dumps(_Made(), protocol=4)

    async def hand_out(self) -> None:
        """Give the plugin to all workers, unless a client has; those that come later get it when they register."""
        if self._scheduler.worker_plugins.get(NAME, self._pickled) != self._pickled:  # an earlier bridge's is equal
            return
        with self._safety.guard("worker plugin"), suppress(OSError):  # of a worker that is just leaving
            await self._scheduler.register_worker_plugin(None, plugin=self._pickled, name=NAME, idempotent=False)

    async def take_back(self) -> None:
        """Take it off all workers, unless somebody has registered another one since."""
        with self._safety.guard("worker plugin"), suppress(OSError):
            if self._scheduler.worker_plugins.get(NAME) is self._pickled:
                await self._scheduler.unregister_worker_plugin(None, name=NAME)
