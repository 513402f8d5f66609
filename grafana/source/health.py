"""How the bridge itself does."""

from __future__ import annotations

from .cluster import BY_INSTANCE, CHOOSE_CLUSTER, INSTANCE
from .panels import Dashboard, bars, lines, query, row, stat, total
from .promql import RANGE, STEP, count, latest, or_zero, per_second, quantile, ratio, select

__all__ = ["health"]

EXPORTED = "otel_sdk_exporter_span_exported_total"
PROCESSED = "otel_sdk_processor_span_processed_total"
QUEUE = "otel_sdk_processor_span_queue_size"
CAPACITY = "otel_sdk_processor_span_queue_capacity"
GOOD, BAD = 'error_type=""', 'error_type!=""'
ERRORS = "dask_otel_errors_total"
WHERE = "dask_otel_error_where"
SWEEP = "dask_otel_sweep_duration_seconds"
LOST = "{{error_type}}"


def health() -> Dashboard:
    """Make the dashboard."""
    dashboard = Dashboard(
        "dask-otel-health",
        "dask-otel health",
        "Whether dask-otel delivers its spans, and what it costs the scheduler.",
        [CHOOSE_CLUSTER],
        span="1h",
    )
    lost = " + ".join(or_zero(count(select(metric, BAD), RANGE)) for metric in (PROCESSED, EXPORTED))
    dashboard.add(
        stat(
            "Schedulers",
            "Schedulers that send metrics.",
            total(f"count(last_over_time({select('dask_scheduler_thread_count')}[$__rate_interval]))"),
            "short",
        ),
        stat(
            "Exported",
            "Spans that arrived in the time range of the dashboard.",
            total(count(select(EXPORTED, GOOD), RANGE)),
            "short",
        ),
        stat(
            "Lost",
            "Spans that did not arrive in the time range: dropped from the queue, or not accepted by the collector.",
            total(lost),
            "short",
            bad_from=1,
        ),
        stat("Waiting", "Spans that are waiting to be sent now.", total(latest(select(QUEUE))), "short"),
        stat(
            "Errors",
            "Exceptions in dask-otel in the time range. They do not affect the cluster. The scheduler's log has the "
            "first exception of each kind.",
            total(or_zero(count(select(ERRORS), RANGE))),
            "short",
            bad_from=1,
        ),
        stat(
            "Sweep, p95",
            "95th percentile of the time for which a sweep holds the scheduler's event loop.",
            total(quantile(0.95, SWEEP, RANGE)),
            "s",
            bad_from=0.05,
        ),
        row("Delivery"),
        bars(
            "Spans that arrived",
            "By exporter.",
            [query(count(select(EXPORTED, GOOD), STEP, "otel_component_name"), "{{otel_component_name}}")],
            "short",
        ),
        bars(
            "Spans that were lost",
            "queue_full: the collector was unavailable for too long, or is too slow. over_budget: more than "
            "otel.traces.max-rate. refused, rejected, invalid, too_large: answers of the collector. shutdown: not "
            "sent before the cluster closed.",
            [
                query(or_zero(count(select(PROCESSED, BAD), STEP, "error_type"), "error_type", "queue_full"), LOST),
                query(or_zero(count(select(EXPORTED, BAD), STEP, "error_type"), "error_type", "refused"), LOST),
            ],
            "short",
        ),
        lines(
            "Queue",
            "Spans that wait or are being sent, as a share of the queue's capacity.",
            [
                query(
                    ratio(
                        latest(select(QUEUE), f"{INSTANCE}, otel_component_name"),
                        latest(select(CAPACITY), f"{INSTANCE}, otel_component_name"),
                    ),
                    BY_INSTANCE + " {{otel_component_name}}",
                )
            ],
            "percentunit",
            most=1,
        ),
        bars(
            "Exceptions in dask-otel",
            "By the part that failed. The scheduler's log has the first exception of each kind.",
            [query(or_zero(count(select(ERRORS), STEP, WHERE), WHERE, "anywhere"), "{{dask_otel_error_where}}")],
            "short",
        ),
        row("Cost"),
        lines(
            "Sweep",
            "Time for which a sweep holds the scheduler's event loop, in all. Each sweep runs in slices of a few ms.",
            [query(quantile(0.5, SWEEP, STEP), "median"), query(quantile(0.99, SWEEP, STEP), "p99")],
            "s",
        ),
        lines(
            "Share of the scheduler's time",
            "Time of the sweeps as a share of all time, without the hooks.",
            [query(per_second(count(select(f"{SWEEP}_sum"), STEP, INSTANCE)), BY_INSTANCE)],
            "percentunit",
        ),
    )
    return dashboard
