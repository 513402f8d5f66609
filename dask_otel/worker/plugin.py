"""The worker plugin, and what ``--preload dask_otel`` does in a worker."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary, ref

import distributed
from distributed.diagnostics.plugin import WorkerPlugin

from .. import config
from ..errors import SettingError
from ..privacy import Capture, Redactor
from ..safety import Safety, import_or_log, log
from ..threads import in_thread

__all__ = ["OTelWorkerPlugin", "set_up"]

_EXECUTION = "dask_otel.worker.execution"
#: Seconds that a closing worker waits for span processors.
MAX_WAIT = 2.0

#: What wraps each worker, which it must not keep alive.
_installed: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()


class OTelWorkerPlugin(WorkerPlugin):  # type: ignore[misc]
    """Worker plugin that makes the task the current OpenTelemetry span inside of it.

    ``client.register_plugin(dask_otel.OTelWorkerPlugin())`` does on all workers of a cluster, now and later, what
    ``dask worker --preload dask_otel`` does on one. Each worker needs this package. Spans are made with the global
    tracer provider of the worker's process; without one, tasks make none.

    The settings ``otel.workers.*`` and ``otel.capture.*`` are those of the worker's process. If the scheduler gives the
    plugin to its workers, they also exclude what its own ``otel.capture.*`` excludes.
    """

    name = "dask-otel"

    def __init__(self) -> None:
        #: Names of what ``otel.capture`` excludes, besides what the settings of the worker's process exclude.
        self.hidden: Collection[str] = ()
        #: What wraps the worker, once it is set up there.
        self._spans: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_spans": None, "hidden": self.hidden}

    def setup(self, worker: Any) -> None:
        """Wrap the worker; called by Dask. Never raises."""
        safety = Safety()
        with safety.guard("start"):
            self._spans = _install(worker, self.hidden, safety)

    async def teardown(self, worker: Any) -> None:
        """Undo it, and have the spans of finished runs ended; called by Dask when the worker closes. Never raises."""
        spans, self._spans = self._spans, None
        if spans is not None:
            with Safety().guard("closing"):
                spans.remove()
                if not spans.stop(0.0):
                    await in_thread(spans.stop, MAX_WAIT)


async def set_up(worker: Any) -> None:
    """Add the plugin to a worker that is starting. Never raises."""
    with Safety().guard("set-up"):
        # Dask removes it when the worker closes, and replaces it by one that a client registers.
        await worker.plugin_add(plugin=OTelWorkerPlugin())


def _install(worker: Any, hidden: Collection[str], safety: Safety) -> Any:
    earlier = _installed.get(worker, lambda: None)()
    if earlier is not None:
        earlier.remove()  # two would make two spans for each run
    execution = import_or_log(_EXECUTION)
    if execution is None:
        return None
    if lacking := execution.missing(worker):
        log.error(
            "dask-otel is off in this worker: distributed %s lacks %s. Upgrade dask-otel, or use a distributed that "
            "it supports.",
            distributed.__version__,
            ", ".join(lacking),
        )
        return None

    def report(error: SettingError) -> None:
        log.error("dask-otel %s: %s", config.consequence(error), error)

    settings = config.load(report)
    capture = settings.capture | dict.fromkeys(hidden, False)
    safety.logs_messages = all(capture.values())
    spans = execution.TaskSpans(
        worker,
        spans=settings.worker_spans,
        max_rate=settings.worker_max_rate,
        redactor=Redactor(Capture(**capture)),
        safety=safety,
    )
    spans.install()
    _installed[worker] = ref(spans)
    return spans
