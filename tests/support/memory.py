"""The bridge with an exporter that keeps spans in memory instead of sending them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import distributed
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dask_otel.cli.receiver import Span, Store
from dask_otel.otlp.environment import Limits, make_resource
from dask_otel.otlp.exporter import ExportThread, SpanExportQueue, TelemetryOutput
from dask_otel.otlp.queue import RateLimiter
from dask_otel.otlp.sampling import Sampling
from dask_otel.otlp.spans import SpanFactory
from dask_otel.otlp.transport import Sender
from dask_otel.preload import OTelPlugin
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import Safety
from dask_otel.scheduler.runtime import BridgeSettings
from dask_otel.spantree.to_records import SpanTreeSettings

MIRROR = {field.name for field in fields(SpanTreeSettings)}
#: Seconds; how long the scheduler takes for a graph is a matter of chance.
NO_PHASES = 86400.0
SCOPE = InstrumentationScope("dask_otel", "test")
#: Makes spans as they are, for tests of the way out.
FACTORY = SpanFactory(Resource({"service.name": "test"}), SCOPE, SpanLimits())


def make_sink(
    *senders_and_safety: Any,
    resource: Resource | None = None,
    limits: Limits | None = None,
    sampler: Any = None,
    max_rate: int = 0,
    capture: Capture | None = None,
) -> TelemetryOutput:
    """What ``connect`` makes of the variables, made of parts: senders, then the safety."""
    *senders, safety = senders_and_safety
    redactor = Redactor(capture or Capture())
    sampling = Sampling(sampler, redactor.tags, safety)
    factory = SpanFactory(resource or Resource({"service.name": "test"}), SCOPE, SpanLimits(), redactor, sampling.known)
    limits = limits or Limits(delay=0.0)
    threads = [
        ExportThread(sender, SpanExportQueue(sender.form(factory), safety, limits), safety) for sender in senders
    ]
    return TelemetryOutput(threads, sampling, RateLimiter(max_rate), redactor)


class MemoryExporter(SpanExporter):
    """Encodes spans as for OTLP and reads them back, so that tests see what a backend would."""

    def __init__(self) -> None:
        self._store = Store()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._store.take(encode_spans(spans))
        return SpanExportResult.SUCCESS

    def wait(self, enough: Callable[[Sequence[Span]], bool]) -> list[Span]:
        return self._store.wait(enough, timeout=30)

    def wait_for_trace(self, trace_id: str) -> list[Span]:
        return self._store.wait_for_trace(trace_id, timeout=30)

    def spans(self) -> list[Span]:
        return self._store.wait(lambda spans: True, timeout=1)


class MemoryPlugin(OTelPlugin):
    """The plugin as it is, but for where it sends."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.exporter = MemoryExporter()
        self.sampler: Any = None
        #: Ids of Dask spans of which some below are in traces that were not sampled.
        self.partial: set[str] = set()
        self.settings = settings
        self.safety: Safety | None = None

    def connect(self, scheduler: Any, safety: Safety) -> tuple[BridgeSettings, TelemetryOutput]:
        self.safety = safety
        resource = make_resource(
            service_name="dask-scheduler", instance_id=scheduler.id, version=distributed.__version__, cluster_name=None
        )
        self.sink = self.output = make_sink(
            Sender("memory", self.exporter), safety, resource=resource, sampler=self.sampler
        )
        span_tree = {name: self.settings[name] for name in set(self.settings) & MIRROR}
        bridge = {name: value for name, value in self.settings.items() if name not in MIRROR}
        settings = SpanTreeSettings(**({"idle_timeout": 0.3, "pending_span_after": 86400.0} | span_tree))
        return BridgeSettings(
            **({"sweep_interval": 0.05, "phase_threshold": NO_PHASES} | bridge), span_tree=settings
        ), self.sink

    async def add_to(self, scheduler: Any) -> None:
        await scheduler.register_scheduler_plugin(self, idempotent=False)
