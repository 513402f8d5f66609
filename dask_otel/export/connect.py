"""Puts the export side together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__
from ..errors import Remarks, SettingError
from ..measure.catalog import Kind
from ..safety import Safety, log
from .limits import Limits
from .meter import Meter
from .metrics import MetricFactory
from .pipeline import Pipeline
from .privacy import Capture, Redactor
from .provider import import_exporters, make_senders
from .resource import make_resource
from .sampling import Sampling, make_sampler
from .senders import Sender
from .signals import METRICS, TRACES
from .sink import Sink
from .spans import SpanFactory
from .variables import delta_kinds, make_limits, make_span_limits, metric_interval, not_read, sdk_disabled
from .volume import Volume

__all__ = ["Exporters", "connect", "import_exporters", "read_variables"]


@dataclass
class Exporters:
    """What the standard variables say of where spans and metrics go; each signal stands for itself."""

    remarks: Remarks = field(default_factory=Remarks)
    #: Of spans, and what else concerns them alone.
    spans: list[Sender] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    sampler: Sampler | None = None
    span_limits: SpanLimits | None = None
    #: Why there are none.
    spans_error: SettingError | None = None
    #: The same of metrics: seconds between two exports, and the kinds that count from one export to the next.
    metrics: list[Sender] = field(default_factory=list)
    interval: float = 0.0
    deltas: frozenset[Kind] = frozenset()
    metrics_error: SettingError | None = None


def read_variables(endpoint: str | None = None) -> Exporters:
    """Make the exporters that the standard variables name.

    Parameters
    ----------
    endpoint
        As for ``make_senders``.
    """
    found = Exporters()
    remarks = found.remarks
    try:
        found.spans = make_senders(endpoint, TRACES, remarks)
        if found.spans:
            found.limits, found.span_limits = make_limits(remarks), make_span_limits(remarks)
            found.sampler = make_sampler(remarks)
    except SettingError as error:
        found.spans_error = error
    try:
        found.metrics = make_senders(endpoint, METRICS, remarks)
        if found.metrics:
            found.interval, found.deltas = metric_interval(remarks), delta_kinds(remarks)
    except SettingError as error:
        found.metrics_error = error
    return found


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

    What is wrong with one of the two signals leaves the other one on.

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
        If nothing can be sent because of one of them.
    """
    if sdk_disabled():
        log.info("dask-otel is off: OTEL_SDK_DISABLED is true")
        return None
    found = read_variables(endpoint)
    errors = {"spans": found.spans_error, "metrics": found.metrics_error}
    is_on = found.spans or found.metrics
    why = None if is_on else found.spans_error or found.metrics_error
    for what, error in errors.items():
        if error and (why is None or str(error) != str(why)):
            log.error("dask-otel sends no %s: %s", what, error)
    if why:
        raise why
    for line in found.remarks.readings:
        log.info("dask-otel: %s", line)
    for line in found.remarks.problems:
        log.warning("dask-otel: %s", line)
    if not is_on:
        log.info("dask-otel is off: OTEL_TRACES_EXPORTER is none, and there is nowhere to send metrics to")
        return None
    for name in not_read():
        log.warning("dask-otel does not read %s; it takes its configuration from the other OTEL_* variables", name)
    redactor = Redactor(Capture(**capture))
    sampling = Sampling(found.sampler, redactor.tags, safety)
    resource = make_resource(
        service_name=service_name, instance_id=instance_id, version=version, cluster_name=cluster_name
    )
    scope = InstrumentationScope("dask_otel", __version__)
    # Only OTLP is told of a preference.
    otlp = MetricFactory(resource, scope, redactor.label, found.deltas)
    plain = MetricFactory(resource, scope, redactor.label)
    meters = [Meter(sender, otlp if sender.target else plain, safety) for sender in found.metrics]
    pipelines = []
    if found.span_limits:
        factory = SpanFactory(resource, scope, found.span_limits, redactor, sampling.known)
        pipelines = [Pipeline(sender, factory, safety, found.limits) for sender in found.spans]
    return Sink(pipelines, sampling, Volume(max_rate), redactor, meters, found.interval)
