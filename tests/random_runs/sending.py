"""Real OTLP: from the bridge, and from the providers that people have in their workers' processes."""

from __future__ import annotations

import os
from typing import Any

import dask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

from dask_otel import OTelPlugin
from dask_otel.cli.receiver import Receiver
from dask_otel.safety import Safety

from .plan import Inside, Plan

__all__ = ["PEOPLE", "SendingPlugin", "set_provider", "worker_settings"]

#: ``service.name`` of workers' processes.
PEOPLE = "people"


class SendingPlugin(OTelPlugin):
    """The plugin as it is, with the settings of a plan."""

    def __init__(self, plan: Plan, inside: Inside, receiver: Receiver) -> None:
        super().__init__(receiver.endpoints["grpc"], metrics=False)
        os.environ["OTEL_TRACES_SAMPLER"] = plan.sampler
        os.environ["OTEL_TRACES_SAMPLER_ARG"] = "0.5"
        dask.config.set(
            {
                "otel.traces.idle-timeout": plan.idle_timeout,
                "otel.traces.max-segment": plan.max_segment,
                "otel.traces.max-groups": plan.max_groups,
                "otel.traces.slowest-tasks": 5,  # so that the number of spans of tasks is known
                "otel.traces.pending-span-after": "1 day",
                "otel.traces.level": inside.level,
                "otel.traces.default-spans": inside.default_spans,
                "otel.traces.max-rate": inside.max_rate,
                "otel.sweep-interval": plan.sweep_interval,
                "otel.split-groups": plan.split_groups,
                "otel.client.phase-threshold": plan.phase_threshold,
                "otel.workers.plugin": inside.is_handed_out,
            }
        )
        self.safety: Safety | None = None

    def connect(self, scheduler: Any, safety: Safety) -> Any:
        self.safety = safety
        return super().connect(scheduler, safety)


def worker_settings(inside: Inside) -> dict[str, Any]:
    """Return the settings of workers' processes."""
    return {
        "otel.workers.spans": inside.spans,
        "otel.workers.max-rate": inside.worker_max_rate,
        "distributed.worker.preload": [] if inside.is_handed_out else ["dask_otel"],
    }


def set_provider(inside: Inside, endpoints: dict[str, str], instance: str, sampled: float = 1.0) -> None:
    """Give this process the provider of a person's own.

    Parameters
    ----------
    instance
        Its ``service.instance.id``.
    sampled
        Share of the traces that begin in this process which are sampled.
    """
    resource = Resource({"service.name": PEOPLE, "service.instance.id": instance})
    remote = ALWAYS_ON if inside.sampled == 1 else TraceIdRatioBased(inside.sampled)
    sampler = ParentBased(TraceIdRatioBased(sampled), remote_parent_sampled=remote)
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    endpoint = endpoints[inside.protocol]
    exporter: Any = (
        GrpcExporter(endpoint, insecure=True) if inside.protocol == "grpc" else HttpExporter(f"{endpoint}/v1/traces")
    )
    provider.add_span_processor(BatchSpanProcessor(exporter) if inside.is_batched else SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
