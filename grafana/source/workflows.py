"""How people's workflows do: by the name of their root span."""

from __future__ import annotations

from .cluster import CHOOSE_CLUSTER
from .panels import (
    Dashboard,
    bars,
    choice,
    heatmap,
    lines,
    query,
    row,
    spans,
    stacked,
    stat,
    table,
    text,
    total,
    traces,
)
from .promql import RANGE, STEP, count, latest, or_zero, part_of, per_second, quantile, ratio, select

__all__ = ["workflows"]

CHOOSE_ROOT = choice("root", "Root span", f"label_values({select('dask_span_active')}, dask_span_root)")
ROOT = "dask_span_root=~`${root:regex}`"
DURATION = "dask_span_duration_seconds"
RUNS = f"{DURATION}_count"
FAILED = 'dask_span_result=~"error|lost"'
BUSY = "dask_span_thread_time_seconds_total"
HAD = "dask_scheduler_thread_time_seconds_total"
WATERFALL = "dask_waterfall_time_seconds_total"
VERDICTS = "dask_verdicts_total"
VERDICT_TIME = "dask_verdict_time_seconds_total"
BY_REASON = "dask_span_root, dask_verdict"
BY_PART = "dask_span_root, dask_waterfall_part"
#: Root segments of traces: what nothing but the root's own name leads to.
SLOW = (
    '{ span.dask.kind = "span" && span.dask.span.path = span.dask.span.root && span.dask.span.root =~ `${root:regex}` '
    "&& (resource.dask.cluster.name =~ `${cluster:regex}` "
    '|| (resource.dask.cluster.name = nil && "" =~ `${cluster:regex}`)) '
    "&& trace:duration > $slower } with (most_recent=true)"
)
#: Segments of roots that say what took long.
SLOW_FOR_A_REASON = (
    '{ span.dask.kind = "span" && span.dask.verdict.text != nil && span.dask.span.root =~ `${root:regex}` '
    "&& (resource.dask.cluster.name =~ `${cluster:regex}` "
    '|| (resource.dask.cluster.name = nil && "" =~ `${cluster:regex}`)) } '
    "| select(span.dask.span.root, span.dask.verdict, span.dask.verdict.at_most, span.dask.verdict.text) "
    "with (most_recent=true)"
)


def workflows() -> Dashboard:
    """Make the dashboard."""
    dashboard = Dashboard(
        "dask-workflows",
        "Dask workflows",
        "Runs of root spans: how many, how long, how many failed, and their use of the cluster.",
        [CHOOSE_CLUSTER, CHOOSE_ROOT, text("slower", "Traces longer than", "1s")],
        span="1h",
    )
    everything = count(select(RUNS, ROOT), RANGE)
    dashboard.add(
        stat("Runs", "Runs of root spans that ended in the time range of the dashboard.", total(everything), "short"),
        stat("Active", "Root spans that are running or have just finished.", total(latest(_active())), "short"),
        stat(
            "Failed",
            "Share of the runs in which a task failed or was lost with its worker.",
            total(ratio(or_zero(count(select(RUNS, ROOT, FAILED), RANGE)), everything)),
            "percentunit",
            bad_from=0.1,
        ),
        stat(
            "Median duration",
            "Of runs that ended in the time range; estimated from the histogram's buckets.",
            total(_quantile(0.5, RANGE)),
            "s",
        ),
        stat(
            "p95 duration",
            "Of runs that ended in the time range; estimated from the histogram's buckets.",
            total(_quantile(0.95, RANGE)),
            "s",
        ),
        stat(
            "Share of the cluster",
            "Share of all thread-seconds that these root spans used. Tasks count when they end.",
            total(ratio(count(select(BUSY, ROOT), RANGE), count(select(HAD), RANGE))),
            "percentunit",
        ),
        row("Runs"),
        bars(
            "Runs by result",
            "error: a task failed. lost: tasks were lost with their worker. cancelled: the work was cancelled or no "
            "longer needed. interrupted: the cluster closed.",
            [query(count(select(RUNS, ROOT), STEP, "dask_span_result"), "{{dask_span_result}}")],
            "short",
        ),
        bars(
            "Runs by root span",
            "Runs that ended.",
            [query(count(select(RUNS, ROOT), STEP, "dask_span_root"), "{{dask_span_root}}")],
            "short",
        ),
        heatmap(
            "Durations",
            "Distribution of the durations of runs over time. A point links to the trace of one run.",
            count(select(f"{DURATION}_bucket", ROOT), STEP, "le"),
        ),
        lines(
            "Duration quantiles",
            "Of all runs that ended in one step of the chart. A point links to the trace of one run.",
            [
                query(_quantile(0.5, STEP), "median", exemplar=True),
                query(_quantile(0.95, STEP), "p95", exemplar=True),
            ],
            "s",
        ),
        table(
            "Root spans",
            "In the time range. Quantiles are estimated from the histogram's buckets. Busy: thread-seconds in tasks. "
            "Share: share of all thread-seconds of the clusters.",
            [
                ("Busy", count(select(BUSY, ROOT), RANGE, "dask_span_root"), "s"),
                (
                    "Share",
                    f"{count(select(BUSY, ROOT), RANGE, 'dask_span_root')} / scalar({count(select(HAD), RANGE)})",
                    "percentunit",
                ),
                ("Runs", count(select(RUNS, ROOT), RANGE, "dask_span_root"), "short"),
                (
                    "Failed",
                    part_of(
                        count(select(RUNS, ROOT, FAILED), RANGE, "dask_span_root"),
                        count(select(RUNS, ROOT), RANGE, "dask_span_root"),
                    ),
                    "short",
                ),
                (
                    "Mean",
                    ratio(
                        count(select(f"{DURATION}_sum", ROOT), RANGE, "dask_span_root"),
                        count(select(RUNS, ROOT), RANGE, "dask_span_root"),
                    ),
                    "s",
                ),
                ("Median", _quantile(0.5, RANGE, "dask_span_root"), "s"),
                ("p95", _quantile(0.95, RANGE, "dask_span_root"), "s"),
                ("Total duration", count(select(f"{DURATION}_sum", ROOT), RANGE, "dask_span_root"), "s"),
            ],
            [("dask_span_root", "Root span")],
            sort="Busy",
        ),
        row("Use of the cluster"),
        bars(
            "Busy threads by root span",
            "Thread-seconds in tasks per second. A task counts when it ends, so if tasks take longer than one step of "
            "the chart, the bars lag behind and overshoot.",
            [
                query(per_second(count(select(BUSY, ROOT), STEP, "dask_span_root")), "{{dask_span_root}}"),
            ],
            "short",
        ),
        lines(
            "Efficiency",
            "Share of the cluster's thread-seconds in which tasks of these root spans ran. A task counts when it ends, "
            "so if tasks take longer than one step of the chart, the line lags behind and can exceed 100 %.",
            [query(ratio(count(select(BUSY, ROOT), STEP), count(select(HAD), STEP)), "used")],
            "percentunit",
        ),
        stacked(
            "Active root spans",
            "Root spans that are running or have just finished.",
            [query(latest(_active(), "dask_span_root"), "{{dask_span_root}}")],
            "short",
            width=24,
        ),
        row("Why runs were slow"),
        bars(
            "Verdicts",
            "Runs of root spans that were slow for a reason, by the most costly reason. dask-otel's documentation says "
            "what the reasons mean, and what helps.",
            [query(count(select(VERDICTS, ROOT), STEP, "dask_verdict"), "{{dask_verdict}}")],
            "short",
        ),
        bars(
            "Where the time went",
            "Thread-seconds that the clusters had while these root spans were active, by what they went into: cpu, "
            "noncpu (tasks that wait), overhead, handed (with a worker, not running yet) … of threads with their "
            "tasks; others: threads with tasks of other root spans; the rest: idle threads, and why.",
            [query(count(select(WATERFALL, ROOT), STEP, "dask_waterfall_part"), "{{dask_waterfall_part}}")],
            "s",
        ),
        table(
            "Reasons",
            "In the time range; choose a week to see what to work on. Saved at most: by how much the runs could have "
            "been shorter, if the reason had not been there.",
            [
                ("Saved at most", count(select(VERDICT_TIME, ROOT), RANGE, BY_REASON), "s"),
                ("Runs", count(select(VERDICTS, ROOT), RANGE, BY_REASON), "short"),
            ],
            [("dask_span_root", "Root span"), ("dask_verdict", "Reason")],
            sort="Saved at most",
            width=12,
        ),
        table(
            "Parts of the time",
            "Thread-seconds in the time range that the clusters had while these root spans were active, and their "
            "share.",
            [
                ("Thread time", count(select(WATERFALL, ROOT), RANGE, BY_PART), "s"),
                (
                    "Share",
                    f"{count(select(WATERFALL, ROOT), RANGE, BY_PART)} / on (dask_span_root) group_left () "
                    f"({count(select(WATERFALL, ROOT), RANGE, 'dask_span_root')} > 0)",
                    "percentunit",
                ),
            ],
            [("dask_span_root", "Root span"), ("dask_waterfall_part", "Part")],
            sort="Thread time",
            width=12,
        ),
        spans(
            "Latest runs with a verdict",
            "The latest 200 runs that were slow for a reason, with the reason and what helps. The id opens the trace.",
            SLOW_FOR_A_REASON,
        ),
        row("Traces"),
        traces(
            "Slowest recent traces",
            "The latest 200 traces that took longer than the duration at the top of the dashboard (500ms, 10s, 1m), "
            "the longest first. The id opens the trace.",
            SLOW,
        ),
    )
    return dashboard


def _active() -> str:
    return select("dask_span_active", ROOT)


def _quantile(q: float, window: str, by: str = "") -> str:
    return quantile(q, DURATION, window, by, ROOT)
