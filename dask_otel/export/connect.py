"""Puts the export side together."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from ..errors import SettingError
from ..safety import Safety, log
from .meter import Meter
from .metrics import MetricFactory
from .pipeline import Pipeline
from .privacy import Capture, Redactor
from .provider import import_exporters, make_senders
from .resource import make_resource
from .sampling import Sampling, make_sampler
from .signals import METRICS
from .sink import Sink
from .spans import SpanFactory
from .variables import delta_kinds, make_limits, metric_interval, not_read, sdk_disabled
from .volume import Volume

__all__ = ["connect", "import_exporters"]


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
    """Make the way from records and metrics to the backends that the standard variables name.

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
    resource = make_resource(
        service_name=service_name, instance_id=instance_id, version=version, cluster_name=cluster_name
    )
    scope = InstrumentationScope("dask_otel", __version__)
    meters, interval = _make_meters(endpoint, resource, scope, redactor, safety)
    if not senders and not meters:
        log.info("dask-otel is off: OTEL_TRACES_EXPORTER is none, and there is nowhere to send metrics to")
        return None
    for name in not_read():
        log.warning("dask-otel does not read %s; it takes its configuration from the other OTEL_* variables", name)
    factory = SpanFactory(resource, scope, SpanLimits(), redactor, sampling.known)
    pipelines = [Pipeline(sender, factory, safety, limits) for sender in senders]
    return Sink(pipelines, sampling, Volume(max_rate), redactor, meters, interval)


def _make_meters(
    endpoint: str | None, resource: Resource, scope: InstrumentationScope, redactor: Redactor, safety: Safety
) -> tuple[list[Meter], float]:
    """Make the ways out for metrics, and say how many seconds lie between two exports.

    What is wrong with them alone leaves the traces on.
    """
    try:
        interval, deltas = metric_interval(), delta_kinds()
        senders = make_senders(endpoint, METRICS)
    except SettingError as error:
        log.error("dask-otel sends no metrics: %s", error)
        return [], 0.0
    # Only OTLP is told of a preference.
    otlp = MetricFactory(resource, scope, redactor.label, deltas)
    plain = MetricFactory(resource, scope, redactor.label)
    return [Meter(sender, otlp if sender.target else plain, safety) for sender in senders], interval
