"""Hands ``OTelWorkerPlugin`` to all workers of a scheduler, now and later, and takes it off again.

Dask pickles worker plugins, and a worker that cannot unpickle one logs errors, or does not start. What is handed over
is therefore made of its source and of builtins: a worker need not have this package, nor the same version or Python.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .. import __version__
from ..safety import Safety

__all__ = ["WorkerPluginHandout"]

#: Name under which Dask keeps the plugin; as ``OTelWorkerPlugin.name``.
NAME = "dask-otel"
_SOURCE = """
def make(version, hidden):
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
            made = plugin.OTelWorkerPlugin()
            made.hidden = hidden
            return made
        why = "it has version " + dask_otel.__version__ + ", and its scheduler " + version
        level = WARNING
    except Exception as error:
        is_absent = isinstance(error, ImportError) and error.name == "dask_otel"
        level = INFO if is_absent else WARNING
        why = "cannot import it (" + type(error).__name__ + ": " + " ".join(str(error).split()) + ")"
    getLogger("distributed.dask_otel").log(level, "dask-otel is off in this worker: %s", why)
    return NoPlugin()
"""


#: In the pickles of all bridges.
_MARK = b"def make(version, hidden)"


class _Made:
    """Pickles as a call of ``eval``."""

    def __init__(self, hidden: Sequence[str]) -> None:
        self._hidden = tuple(hidden)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        call = f"names['make']({__version__!r}, {self._hidden!r})"
        return eval, (f"(lambda names: exec({_SOURCE!r}, names) or {call})({{}})",)


class WorkerPluginHandout:
    """Gives workers the plugin, between ``hand_out`` and ``take_back``.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    hidden
        Names of what ``otel.capture`` excludes on the scheduler: workers exclude it too.
    """

    def __init__(self, scheduler: Any, hidden: Sequence[str], safety: Safety) -> None:
        self._scheduler = scheduler
        self._safety = safety
        self._pickled = pickle.dumps(_Made(hidden), protocol=4)

    async def hand_out(self) -> None:
        """Give the plugin to all workers, unless a client has; those that come later get it when they register."""
        if _MARK not in self._scheduler.worker_plugins.get(NAME, _MARK):
            return
        with self._safety.guard("worker plugin"), suppress(OSError):  # of a worker that is just leaving
            await self._scheduler.register_worker_plugin(None, plugin=self._pickled, name=NAME, idempotent=False)

    async def take_back(self) -> None:
        """Take it off all workers, unless somebody has registered another one since."""
        with self._safety.guard("worker plugin"), suppress(OSError):
            if self._scheduler.worker_plugins.get(NAME) is self._pickled:
                await self._scheduler.unregister_worker_plugin(None, name=NAME)
