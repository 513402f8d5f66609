"""Sets up a process: in a scheduler, the plugin that reads the settings and connects the bridge with its exporters."""

from __future__ import annotations

import asyncio
import importlib
import sys
from contextlib import suppress
from typing import Any

import distributed
from distributed import Scheduler

from . import __version__, config
from .errors import SettingError
from .metrics.series import MetricSettings
from .safety import Safety, import_or_log, log
from .scheduler.plugin import BridgePlugin
from .scheduler.runtime import BridgeSettings, SchedulerBridge
from .scheduler.sweep import Output
from .spantree.to_records import Level, SpanTreeSettings
from .status.handlers import install
from .status.report import OffReport, StatusReport

__all__ = ["OTelPlugin", "set_up"]

_EXPORTER = "dask_otel.otlp.exporter"
_LEVELS = {"spans": Level.SPANS, "groups": Level.GROUPS, "tasks": Level.TASKS}
_DEFAULT_LEVELS = {"full": Level.TASKS, "segments": Level.SPANS, "off": Level.NOTHING}


def set_up(server: Any) -> None:
    """Set up the bridge in a Scheduler; in a Worker, Nanny or Client, log where it belongs."""
    if not isinstance(server, Scheduler):
        log.info(
            "dask-otel was preloaded in a %s, where it does nothing yet. The scheduler sends the traces and metrics: "
            "start it with --preload dask_otel",
            type(server).__name__,
        )
    elif OTelPlugin.name not in server.plugins:
        # Dask starts it at the end of the scheduler's own start.
        server.add_plugin(OTelPlugin())


class OTelPlugin(BridgePlugin):
    """Scheduler plugin that sends Dask's spans as OpenTelemetry traces.

    For a cluster that runs without the preload: ``client.register_plugin(dask_otel.OTelPlugin())``. It counts what
    happens after it has been registered. It reads the settings of the scheduler's process.

    Parameters
    ----------
    endpoint
        Send to this OTLP endpoint, whatever the scheduler's ``OTEL_*`` variables are.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._settings: config.Settings | None = None

    async def prepare(self) -> None:
        """Import OpenTelemetry and its exporters in a thread: it takes at least a tenth of a second."""

        def import_exporters() -> None:
            with suppress(Exception):  # ``connect`` reports what cannot be imported
                importlib.import_module(_EXPORTER).import_exporters(self._endpoint)

        if _EXPORTER not in sys.modules:
            await asyncio.to_thread(import_exporters)

    def connect(self, scheduler: Any, safety: Safety) -> tuple[BridgeSettings, Output] | None:
        """Read the settings and make the exporters; None if the bridge stays off."""
        settings = config.load(lambda error: log.error("dask-otel %s: %s", config.consequence(error), error))
        self._settings = settings
        safety.logs_messages = all(settings.capture.values())
        try:
            config.check_limits()
            exporter = import_or_log(_EXPORTER)
            sink: Any = exporter and exporter.connect(
                service_name="dask-scheduler",
                instance_id=scheduler.id,
                version=distributed.__version__,
                cluster_name=settings.cluster_name,
                safety=safety,
                endpoint=self._endpoint,
                capture=settings.capture,
                max_rate=settings.max_rate,
                recent_runs=settings.page_runs,
            )
        except SettingError as error:
            log.error("dask-otel is off: %s", error)
            return None
        if sink is None:
            return None
        status = sink.status()
        targets = dict.fromkeys(
            (each["target"] or each["name"]) + (f" through {each['proxy']}" if each["proxy"] else "")
            for each in status["exporters"] + status["metrics"]
        )
        log.info(
            "dask-otel %s is on and sends %s; its page is /otel/ beside Dask's dashboard",
            __version__,
            f"to {', '.join(targets)}" if targets else "nothing, as configured",
        )
        bridge = BridgeSettings(
            sweep_interval=settings.sweep_interval,
            shutdown_timeout=settings.shutdown_timeout,
            annotations=settings.annotations,
            split_groups=settings.split_groups,
            tags_in_group_names=settings.capture["tags"],
            span_tree=SpanTreeSettings(
                idle_timeout=settings.idle_timeout,
                max_segment=settings.max_segment,
                pending_span_after=settings.pending_span_after,
                max_groups=settings.max_groups,
                slowest_tasks=settings.slowest_tasks,
                level=_LEVELS[settings.level],
                default_level=_DEFAULT_LEVELS[settings.default_spans],
            ),
            metrics=MetricSettings(
                task_bounds=settings.task_bounds,
                span_bounds=settings.span_bounds,
                root_names=settings.root_names,
                excluded=settings.excluded_metrics,
            ),
        )
        return bridge, sink

    def started(self, scheduler: Any, bridge: SchedulerBridge) -> None:
        """Add the status page to the scheduler's HTTP server."""
        if self._settings:
            report = StatusReport(
                scheduler.id,
                bridge,
                self.sink,
                bridge.safety,
                cluster_name=self._settings.cluster_name,
                trace_url=self._settings.trace_url,
            )
            install(scheduler, report)

    def stays_off(self, scheduler: Any, why: str) -> None:
        """Add a status page that shows why the bridge is off."""
        install(scheduler, OffReport(scheduler.id, why))
