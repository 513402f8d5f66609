"""The bridge with an exporter that keeps spans in memory instead of sending them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import distributed
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dask_otel.cli.receiver import Inbox, Span
from dask_otel.export.limits import Limits
from dask_otel.export.pipeline import Pipeline
from dask_otel.export.privacy import Capture, Redactor
from dask_otel.export.resource import make_resource
from dask_otel.export.sampling import Sampling
from dask_otel.export.senders import Sender
from dask_otel.export.sink import Sink
from dask_otel.export.spans import SpanFactory
from dask_otel.export.volume import Volume
from dask_otel.mirror.settings import MirrorSettings
from dask_otel.preload import OTelPlugin
from dask_otel.safety import Safety
from dask_otel.watch.life import WatchSettings

MIRROR = {field.name for field in fields(MirrorSettings)}
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
) -> Sink:
    """What ``connect`` makes of the variables, made of parts: senders, then the safety."""
    *senders, safety = senders_and_safety
    redactor = Redactor(capture or Capture())
    sampling = Sampling(sampler, redactor.tags, safety)
    factory = SpanFactory(resource or Resource({"service.name": "test"}), SCOPE, SpanLimits(), redactor, sampling.known)
    pipelines = [Pipeline(sender, factory, safety, limits or Limits(delay=0.0)) for sender in senders]
    return Sink(pipelines, sampling, Volume(max_rate), redactor)


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
        self.sampler: Any = None
        self.settings = settings
        self.safety: Safety | None = None

    def connect(self, scheduler: Any, safety: Safety) -> tuple[WatchSettings, Sink]:
        self.safety = safety
        resource = make_resource(
            service_name="dask-scheduler", instance_id=scheduler.id, version=distributed.__version__, cluster_name=None
        )
        self.sink = make_sink(Sender("memory", self.exporter), safety, resource=resource, sampler=self.sampler)
        mirror = {name: self.settings[name] for name in set(self.settings) & MIRROR}
        watch = {name: value for name, value in self.settings.items() if name not in MIRROR}
        settings = MirrorSettings(**({"settle": 0.3, "announce": 86400.0} | mirror))
        return WatchSettings(**({"sweep_interval": 0.05} | watch), mirror=settings), self.sink

    async def add_to(self, scheduler: Any) -> None:
        await scheduler.register_scheduler_plugin(self, idempotent=True)
