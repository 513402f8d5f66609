"""Puts the export side together."""

from __future__ import annotations

from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from ..safety import Safety, log
from .pipeline import FanOut, Pipeline
from .provider import make_exporters, make_resource, sdk_disabled
from .spans import SpanFactory

__all__ = ["connect"]


def connect(
    *,
    service_name: str,
    instance_id: str,
    version: str,
    cluster_name: str | None,
    safety: Safety,
    endpoint: str | None = None,
) -> FanOut | None:
    """Make the way from records to the backends that the standard variables name.

    Returns
    -------
    None if they say that nothing is to be sent.

    Raises
    ------
    SettingError
        If one of them cannot be used.
    """
    if sdk_disabled():
        log.info("dask-otel is off: OTEL_SDK_DISABLED is true")
        return None
    exporters = make_exporters(endpoint)
    if not exporters:
        log.info("dask-otel is off: OTEL_TRACES_EXPORTER is none")
        return None
    resource = make_resource(
        service_name=service_name, instance_id=instance_id, version=version, cluster_name=cluster_name
    )
    factory = SpanFactory(resource, InstrumentationScope("dask_otel", __version__), SpanLimits())
    return FanOut([Pipeline(name, exporter, factory.span, safety) for name, exporter in exporters.items()])
