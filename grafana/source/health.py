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
        "Whether what the bridge knows arrives, and what it costs the scheduler.",
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
        stat("Exported", "Spans that arrived in the time shown.", total(count(select(EXPORTED, GOOD), RANGE)), "short"),
        stat(
            "Lost",
            "Spans that did not arrive, in the time shown: dropped before they left, or refused.",
            total(lost),
            "short",
            bad_from=1,
        ),
        stat("Waiting", "Spans that wait to be sent, now.", total(latest(select(QUEUE))), "short"),
        stat(
            "Errors",
            "Failures in the bridge in the time shown. They cost the cluster nothing; the scheduler's log has the "
            "first of each.",
            total(or_zero(count(select(ERRORS), RANGE))),
            "short",
            bad_from=1,
        ),
        stat(
            "Sweep, p95",
            "Time for which one of 20 sweeps held the scheduler's event loop longer.",
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
            "queue_full: the collector was away for too long, or takes less than comes. over_budget: more than "
            "otel.traces.max-rate. refused, rejected, invalid, too_large: what the collector said. shutdown: not "
            "sent in time.",
            [
                query(or_zero(count(select(PROCESSED, BAD), STEP, "error_type"), "error_type", "queue_full"), LOST),
                query(or_zero(count(select(EXPORTED, BAD), STEP, "error_type"), "error_type", "refused"), LOST),
            ],
            "short",
        ),
        lines(
            "Queue",
            "Spans that wait or are on their way, as part of what may wait.",
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
            "Failures in the bridge",
            "By the part that failed; the scheduler's log has the first of each kind.",
            [query(or_zero(count(select(ERRORS), STEP, WHERE), WHERE, "anywhere"), "{{dask_otel_error_where}}")],
            "short",
        ),
        row("Cost"),
        lines(
            "Sweep",
            "Time for which a sweep held the scheduler's event loop, in pieces of a few ms at most.",
            [query(quantile(0.5, SWEEP, STEP), "median"), query(quantile(0.99, SWEEP, STEP), "p99")],
            "s",
        ),
        lines(
            "Part of the scheduler's time",
            "Sweeps, as part of all time. The hooks are not in it.",
            [query(per_second(count(select(f"{SWEEP}_sum"), STEP, INSTANCE)), BY_INSTANCE)],
            "percentunit",
        ),
    )
    return dashboard
