"""What Prometheus makes of our metrics' names."""

from __future__ import annotations

from collections.abc import Iterator

from dask_otel.schema import METRICS, Kind, Metric


def prometheus_name(metric: Metric) -> str:
    """The name, for a histogram without ``_bucket``, ``_sum`` and ``_count``."""
    unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
    return metric.name.replace(".", "_") + unit + ("_total" if metric.kind is Kind.COUNTER else "")


def prometheus_names() -> Iterator[str]:
    """All names of series."""
    for metric in METRICS.values():
        name = prometheus_name(metric)
        parts = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        yield from (f"{name}{part}" for part in parts)
