"""The bridge with an exporter that keeps spans in memory instead of sending them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import distributed
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dask_otel.cli.receiver import Inbox, Span
from dask_otel.export.pipeline import FanOut, Pipeline
from dask_otel.export.provider import make_resource
from dask_otel.export.spans import SpanFactory
from dask_otel.preload import OTelPlugin
from dask_otel.safety import Safety
from dask_otel.watch.scheduler import WatchSettings


class MemoryExporter(SpanExporter):
    """Encodes spans as for OTLP and reads them back, so that tests see what a backend would."""

    def __init__(self) -> None:
        self._inbox = Inbox()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._inbox.take(encode_spans(spans))
        return SpanExportResult.SUCCESS

    def wait_for_trace(self, trace_id: str) -> list[Span]:
        return self._inbox.wait_for_trace(trace_id, timeout=30)

    def spans(self) -> list[Span]:
        return self._inbox.wait(lambda spans: True, timeout=1)


class MemoryPlugin(OTelPlugin):
    """The plugin as it is, but for where it sends."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.exporter = MemoryExporter()
        self.settings = {
            "sweep_interval": 0.05,
            "settle": 0.3,
            "max_segment": 3600.0,
            "announce": 86400.0,
            "max_groups": 500,
            "shutdown_timeout": 10.0,
            "annotations": (),
        } | settings
        self.safety: Safety | None = None

    def connect(self, scheduler: Any, safety: Safety) -> tuple[WatchSettings, FanOut]:
        self.safety = safety
        resource = make_resource(
            service_name="dask-scheduler", instance_id=scheduler.id, version=distributed.__version__, cluster_name=None
        )
        factory = SpanFactory(resource, InstrumentationScope("dask_otel", "test"), SpanLimits())
        return WatchSettings(**self.settings), FanOut([Pipeline("memory", self.exporter, factory.span, safety)])

    async def add_to(self, scheduler: Any) -> None:
        await scheduler.register_scheduler_plugin(self, idempotent=True)
