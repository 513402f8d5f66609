"""What Prometheus makes of our metrics' names."""

from __future__ import annotations

from collections.abc import Iterator

from dask_otel.schema import METRICS, Kind


def prometheus_names() -> Iterator[str]:
    """All names of series."""
    for metric in METRICS.values():
        name = metric.prometheus_name
        parts = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        yield from (f"{name}{part}" for part in parts)
