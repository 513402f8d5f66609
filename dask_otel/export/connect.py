"""Puts the export side together."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from ..safety import Safety, log
from .pipeline import Pipeline
from .privacy import Capture, Redactor
from .provider import make_senders
from .resource import make_resource
from .sampling import Sampling, make_sampler
from .sink import Sink
from .spans import SpanFactory
from .variables import make_limits, not_read, sdk_disabled
from .volume import Volume

__all__ = ["connect"]


def connect(
    *,
    service_name: str,
    instance_id: str,
    version: str,
    cluster_name: str | None,
    safety: Safety,
    endpoint: str | None = None,
    capture: Mapping[str, bool],
    max_rate: int,
) -> Sink | None:
    """Make the way from records to the backends that the standard variables name.

    Parameters
    ----------
    capture
        What may be shown, by the names of ``Capture``'s fields.
    max_rate
        Spans a minute; 0 for no limit.

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
    limits = make_limits()
    redactor = Redactor(Capture(**capture))
    sampling = Sampling(make_sampler(), redactor.tags, safety)
    senders = make_senders(endpoint)
    if not senders:
        log.info("dask-otel is off: OTEL_TRACES_EXPORTER is none")
        return None
    for name in not_read():
        log.warning("dask-otel does not read %s; it takes its configuration from the other OTEL_* variables", name)
    resource = make_resource(
        service_name=service_name, instance_id=instance_id, version=version, cluster_name=cluster_name
    )
    scope = InstrumentationScope("dask_otel", __version__)
    factory = SpanFactory(resource, scope, SpanLimits(), redactor, sampling.known)
    pipelines = [Pipeline(sender, factory, safety, limits) for sender in senders]
    return Sink(pipelines, sampling, Volume(max_rate), redactor)
