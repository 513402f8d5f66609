"""Sets up a process: in a scheduler, the plugin that reads the settings and connects the bridge with its exporters."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from collections.abc import Awaitable, Mapping
from contextlib import AbstractContextManager, suppress
from os import PathLike
from time import time
from typing import Any, Literal

import distributed
from distributed import Client, Scheduler, Worker

from . import __version__, config, instrument
from .errors import SettingError
from .metrics.series import MetricSettings
from .otlp_options import OtlpOptions
from .registration import ClientProcess, show_when_registered
from .safety import Safety, import_or_log, log, recent, why_off
from .scheduler.plugin import BridgePlugin
from .scheduler.runtime import BridgeSettings, SchedulerBridge
from .scheduler.sweep import Output
from .spantree.to_records import KEEP_REQUESTED, Level, SpanTreeSettings
from .status.handlers import install
from .status.report import OffReport, StatusReport, destination
from .worker.plugin import OTelWorkerPlugin
from .worker.plugin import set_up as set_up_worker

__all__ = ["OTelPlugin", "OTelWorkerPlugin", "set_up"]

_EXPORTER = "dask_otel.otlp.exporter"
_ENVIRONMENT = "dask_otel.otlp.environment"
_LEVELS = {"spans": Level.SPANS, "groups": Level.GROUPS, "tasks": Level.TASKS}
_DEFAULT_LEVELS = {"full": Level.TASKS, "segments": Level.SPANS, "off": Level.NOTHING}


def set_up(server: Any) -> Awaitable[None] | None:
    """Set up the bridge in a Scheduler, the spans of tasks in a Worker, and a Client's process; in a Nanny, log a hint.

    Returns
    -------
    What Dask is to await.
    """
    if isinstance(server, Worker):
        return set_up_worker(server)
    if isinstance(server, Client):
        instrument()
    elif not isinstance(server, Scheduler):
        log.info(
            "dask-otel was preloaded in a %s, where it does nothing yet. The scheduler sends the traces and metrics: "
            "start it with --preload dask_otel",
            type(server).__name__,
        )
    elif OTelPlugin.name not in server.plugins:
        # Dask starts it at the end of the scheduler's own start.
        server.add_plugin(OTelPlugin())
    return None


class OTelPlugin(BridgePlugin):
    """Scheduler plugin that sends Dask's spans as OpenTelemetry traces.

    For a cluster that is running: ``client.register_plugin(dask_otel.OTelPlugin("http://collector:4317"))``. The call
    shows where the scheduler sends to, or raises an exception if the scheduler cannot send. A plugin with other values
    replaces the one that is there.

    What is not given is as in the ``OTEL_*`` variables of the scheduler's process, which may not be those of the
    client's. ``from_env`` gives those of the client's process.

    Parameters
    ----------
    endpoint
        OTLP endpoint for traces and metrics, as ``OTEL_EXPORTER_OTLP_ENDPOINT``. With it, headers, client certificates
        and credential providers of the scheduler's variables are not used: they are meant for another endpoint.
    protocol
        ``grpc`` or ``http/protobuf``.
    headers
        Names and values, e.g. of an API key.
    compression
        ``gzip``, ``none``, or over HTTP ``deflate``.
    timeout
        Seconds for one request.
    certificate, client_certificate, client_key
        PEM files on the scheduler's machine.
    insecure
        Whether gRPC goes without TLS if the endpoint has no scheme. Such an endpoint needs this or a certificate.
    traces, metrics
        A mapping of the options above for one signal, or False to send nothing of it.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        protocol: str | None = None,
        headers: Mapping[str, str] | str | None = None,
        compression: str | None = None,
        timeout: float | None = None,
        certificate: str | PathLike[str] | None = None,
        client_certificate: str | PathLike[str] | None = None,
        client_key: str | PathLike[str] | None = None,
        insecure: bool | None = None,
        traces: Mapping[str, Any] | Literal[False] | None = None,
        metrics: Mapping[str, Any] | Literal[False] | None = None,
    ) -> None:
        super().__init__()
        self._options = OtlpOptions.from_call(
            endpoint=endpoint,
            protocol=protocol,
            headers=headers,
            compression=compression,
            timeout=timeout,
            certificate=certificate,
            client_certificate=client_certificate,
            client_key=client_key,
            insecure=insecure,
            traces=traces,
            metrics=metrics,
        )
        self._settings: config.Settings | None = None
        #: What is wrong with the settings, for the status; and names of those because of which all is hidden.
        self._problems: list[str] = []
        self._hiding: list[str] = []
        #: A setting that keeps the bridge off; empty if there is none.
        self._why_off = ""
        #: Set in the scheduler's process if a client has sent the plugin.
        self._sender: ClientProcess | None = None
        #: Id of the client that registers the plugin; empty in the scheduler's process, and if it is not known.
        self.client_id = ""

    @classmethod
    def from_env(cls) -> OTelPlugin:
        """Make a plugin with the ``OTEL_*`` variables of this process that say where and how to send.

        These are ``OTEL_EXPORTER_OTLP_*``, ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` and the variables for
        credential providers. Files and hosts are those that the scheduler's machine knows by these names.

        Raises
        ------
        ValueError
            If none of ``OTEL_EXPORTER_OTLP_*`` is set, or one cannot be used.
        """
        plugin = cls()
        plugin._options = OtlpOptions.from_env()
        return plugin

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._options!r}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sender": ClientProcess.this(self.client_id, self._options), "client_id": ""}

    async def start(self, scheduler: Any) -> None:
        """Start as ``BridgePlugin.start``; if a client registers the plugin, report to the client.

        Raises
        ------
        RuntimeError
            If a client registers the plugin and the bridge stays off. The scheduler sends the exception to the client.
        """
        sender, begin = self._sender, time()
        await super().start(scheduler)
        if sender:
            if not self.is_on:
                why = self._why_off or why_off(begin) or "see the scheduler's log"
                stays = "; the earlier registration stays active" if _active(scheduler) else ""
                raise RuntimeError(f"dask-otel cannot send from the scheduler on {socket.gethostname()}: {why}{stays}")
            with Safety().guard("report to the client"):
                sink: Any = self.sink
                lines = [line for at, line in recent if at >= begin]
                sender.report(scheduler, sink.status(), self._options, lines)

    def values(self) -> Any:
        """Return what differs if the variables or settings do that ``connect`` reads."""
        return self._options.fingerprint(), config.load(lambda error: None)

    async def prepare(self) -> None:
        """Import OpenTelemetry and its exporters in a thread: it takes at least a tenth of a second."""

        def import_exporters() -> None:
            with suppress(Exception):  # ``connect`` reports what cannot be imported
                exporter = importlib.import_module(_EXPORTER)
                with self._environment():
                    exporter.import_exporters()

        if _EXPORTER not in sys.modules:
            await asyncio.to_thread(import_exporters)

    def _environment(self) -> AbstractContextManager[None]:
        """Have the exporters read the client's options in place of the environment."""
        environment = importlib.import_module(_ENVIRONMENT)
        context: AbstractContextManager[None] = environment.with_variables(self._options.merged())
        return context

    def connect(self, scheduler: Any, safety: Safety) -> tuple[BridgeSettings, Output] | None:
        """Read the settings and make the exporters; None if the bridge stays off."""
        self._problems, self._hiding = [], []

        def report(error: SettingError) -> None:
            log.error("dask-otel %s: %s", config.consequence(error), error)
            self._problems.append(f"{error.public}; dask-otel {config.consequence(error)}")
            if config.hides_all(error):
                self._hiding.append(error.without_value)

        settings = config.load(report)
        self._settings = settings
        safety.logs_messages = all(settings.capture.values())
        try:
            config.check_limits()
            exporter = import_or_log(_EXPORTER)
            if exporter is None:
                return None
            with self._environment():
                sink: Any = exporter.connect(
                    service_name="dask-scheduler",
                    instance_id=scheduler.id,
                    version=distributed.__version__,
                    cluster_name=settings.cluster_name,
                    safety=safety,
                    capture=settings.capture,
                    max_rate=settings.max_rate,
                    recent_runs=settings.page_runs,
                    folder=settings.folder,
                    folder_size=settings.folder_size,
                )
        except SettingError as error:
            self._why_off = str(error)
            log.error("dask-otel is off: %s", error)
            return None
        if sink is None:
            return None
        self.sink = sink
        targets = dict.fromkeys(map(destination, [*sink.status()["exporters"], *sink.status()["metrics"]]))
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
            phase_threshold=settings.phase_threshold,
            verdicts=settings.verdicts,
            # Without the scheduler's spans, those of tasks would have no parents where they are sent.
            gives_worker_plugin=settings.worker_plugin and any(not thread.is_local for thread in sink.span_threads),
            forget_spans=settings.forget_spans,
            hidden=tuple(name for name, is_captured in settings.capture.items() if not is_captured),
            tags_in_group_names=settings.capture["tags"],
            span_tree=SpanTreeSettings(
                idle_timeout=settings.idle_timeout,
                max_segment=settings.max_segment,
                pending_span_after=settings.pending_span_after,
                max_groups=settings.max_groups,
                slowest_tasks=settings.slowest_tasks,
                keep_requested=min(settings.forget_spans or KEEP_REQUESTED, KEEP_REQUESTED),
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
                problems=self._problems,
                hiding=self._hiding,
            )
            install(scheduler, report)

    def stays_off(self, scheduler: Any, why: str) -> None:
        """Add a status page that shows why the bridge is off."""
        install(scheduler, OffReport(scheduler.id, why))


show_when_registered(OTelPlugin)


def _active(scheduler: Any) -> bool:
    return any(isinstance(each, BridgePlugin) and each.is_on for each in scheduler.plugins.values())
