"""What is going on in the clusters."""

from __future__ import annotations

from .panels import Dashboard, bars, choice, lines, query, row, stacked, stat, table, total
from .promql import RANGE, STEP, at_most, count, latest, or_zero, part_of, per_second, quantile, ratio, select

__all__ = ["BY_INSTANCE", "CHOOSE_CLUSTER", "INSTANCE", "cluster"]

CHOOSE_CLUSTER = choice("cluster", "Cluster", "label_values(dask_scheduler_thread_count, dask_cluster_name)")
CHOOSE_PREFIX = choice("prefix", "Task prefix", f"label_values({select('dask_task_finished_total')}, dask_task_prefix)")
PREFIX = "dask_task_prefix=~`${prefix:regex}`"
FINISHED = "dask_task_finished_total"
FAILED = 'dask_task_outcome="erred"'
COMPLETED = 'dask_task_outcome="completed"'
OTHERWISE = 'dask_task_outcome!="completed"'
BY_OUTCOME = "dask_task_outcome"
BUSY = count(select("dask_span_thread_time_seconds_total"), STEP)
INSTANCE = "dask_cluster_name, instance"
BY_INSTANCE = "{{dask_cluster_name}} {{instance}}"
THREADS = latest(select("dask_scheduler_thread_count"), INSTANCE)
DELAY = select("dask_scheduler_event_loop_delay_seconds")
#: Shuffles have threads of their own, which mostly wait; what they do in tasks is told twice.
NOT_BESIDE = 'dask_context!~"p2p[.].*"'
HAD = count(select("dask_scheduler_thread_time_seconds_total"), STEP)


def cluster() -> Dashboard:
    """Make the dashboard."""
    dashboard = Dashboard(
        "dask-cluster",
        "Dask cluster",
        "What the clusters do, and whether that goes well.",
        [CHOOSE_CLUSTER, CHOOSE_PREFIX],
        span="30m",
    )
    dashboard.add(
        stat("Workers", "Workers that run now.", total(latest(_workers("running"))), "short"),
        stat("Threads", "Threads of all workers.", total(latest(select("dask_scheduler_thread_count"))), "short"),
        stat(
            "Tasks to do",
            "Tasks that run, wait in the queue, wait for their inputs, or for a worker that can take them.",
            total(latest(_tasks("processing|queued|waiting|no-worker"))),
            "short",
        ),
        stat(
            "Finished",
            "Tasks that completed in the time shown.",
            total(count(select(FINISHED, COMPLETED, PREFIX), RANGE)),
            "short",
        ),
        stat(
            "Failed",
            "Tasks that raised an exception in the time shown; those that only depended on one are not among them.",
            total(or_zero(count(select(FINISHED, FAILED, PREFIX), RANGE))),
            "short",
            bad_from=1,
        ),
        stat(
            "Efficiency",
            "Part of the threads' time in which they ran tasks, in the time shown. What is left was paid for and "
            "not used. Tasks count when they end: show a time much longer than one takes.",
            total(
                ratio(
                    count(select("dask_span_thread_time_seconds_total"), RANGE),
                    count(select("dask_scheduler_thread_time_seconds_total"), RANGE),
                )
            ),
            "percentunit",
        ),
        row("Tasks"),
        stacked(
            "Tasks by state",
            "How many tasks the scheduler knows. Many queued: it could use more workers. Any in no-worker: nobody "
            "can take them, because of their resources or host restrictions, or because there are no workers. "
            "memory: results that are held.",
            [query(latest(select("dask_scheduler_task_count"), "dask_task_state"), "{{dask_task_state}}")],
            "short",
        ),
        bars(
            "Throughput by prefix",
            "Tasks that completed, a second.",
            [
                query(
                    per_second(count(select(FINISHED, COMPLETED, PREFIX), STEP, "dask_task_prefix")),
                    "{{dask_task_prefix}}",
                )
            ],
            "ops",
        ),
        bars(
            "Not completed",
            "erred: raised an exception. upstream_failed: depended on one that did. retried, rescheduled, "
            "recomputed: run again. cancelled, abandoned: nobody wants them any more. lost: with their worker, or "
            "its data.",
            [
                query(
                    or_zero(count(select(FINISHED, OTHERWISE, PREFIX), STEP, BY_OUTCOME), BY_OUTCOME, "erred"),
                    "{{dask_task_outcome}}",
                )
            ],
            "short",
        ),
        table(
            "Prefixes",
            "Where the computing went in the time shown, by the name of the function or layer.",
            [
                ("Compute", count(select("dask_task_duration_seconds_sum", PREFIX), RANGE, "dask_task_prefix"), "s"),
                ("Runs", count(select("dask_task_duration_seconds_count", PREFIX), RANGE, "dask_task_prefix"), "short"),
                ("Median", quantile(0.5, "dask_task_duration_seconds", RANGE, "dask_task_prefix", PREFIX), "s"),
                ("p95", quantile(0.95, "dask_task_duration_seconds", RANGE, "dask_task_prefix", PREFIX), "s"),
                (
                    "Failed",
                    part_of(
                        count(select(FINISHED, FAILED, PREFIX), RANGE, "dask_task_prefix"),
                        count(select(FINISHED, PREFIX), RANGE, "dask_task_prefix"),
                    ),
                    "short",
                ),
            ],
            [("dask_task_prefix", "Prefix")],
            sort="Compute",
            width=12,
            height=8,
        ),
        row("Time and memory"),
        bars(
            "Where the seconds go",
            "Thread-seconds of workers, by what they were spent on. execute: in tasks. thread_cpu computes; "
            "thread_noncpu waits, for input and output or the interpreter lock; disk_read and disk_write spill; "
            "deserialize and network move data; executor waits for a thread and hands over; other is what is left. "
            "failed, cancelled: for nothing. gather_dep and get_data run beside threads: the sum can exceed theirs. "
            "Of shuffles (p2p), what ran in tasks; what ran beside them is left out, since it mostly waits.",
            [
                query(
                    count(
                        select("dask_activity_time_seconds_total", "dask_task_prefix=~`${prefix:regex}|`", NOT_BESIDE),
                        STEP,
                        "dask_context, dask_activity",
                    ),
                    "{{dask_context}} {{dask_activity}}",
                )
            ],
            "s",
        ),
        lines(
            "Threads: had and busy",
            "had: threads of the cluster. at work: at most so many run tasks at the moment. busy: thread-seconds in "
            "tasks, a second; a task counts when it ends, so with tasks longer than a step this lags behind and "
            "overshoots.",
            [
                query(per_second(HAD), "had"),
                query(at_most(latest(_tasks("processing"), INSTANCE), THREADS), "at work"),
                query(per_second(BUSY), "busy"),
            ],
            "short",
        ),
        stacked(
            "Memory of the workers",
            "managed: Dask's results. unmanaged: all else in the workers' processes, such as what running tasks "
            "use. Spilled results are on disk. Workers pause at 80 % of their limit and are restarted at 95 %.",
            [
                query(latest(select("dask_worker_memory_usage_bytes"), "dask_memory_state"), "{{dask_memory_state}}"),
                query(latest(select("dask_worker_memory_spilled_bytes")), "spilled"),
                query(latest(select("dask_worker_memory_limit_bytes")), "limit"),
            ],
            "bytes",
            overrides=[
                {
                    "matcher": {"id": "byName", "options": name},
                    "properties": [
                        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
                        {"id": "custom.fillOpacity", "value": 0},
                    ],
                }
                for name in ("spilled", "limit")
            ],
        ),
        bars(
            "Bytes moved",
            "By what for: memory_read and disk_read give tasks their inputs, get_data serves other workers.",
            [
                query(
                    count(select("dask_activity_io_bytes_total"), STEP, "dask_context, dask_activity"),
                    "{{dask_context}} {{dask_activity}}",
                )
            ],
            "bytes",
        ),
        row("Scheduler and workers"),
        lines(
            "Event loop delay",
            "By how much the scheduler was late, at worst. Above a second everybody waits: very large graphs, many "
            "tiny tasks, or a scheduler that lacks CPU.",
            [
                query(
                    f"max by ({INSTANCE}) (max_over_time({DELAY}[$__rate_interval]))",
                    BY_INSTANCE,
                )
            ],
            "s",
        ),
        stacked(
            "Workers by status",
            "paused: too little memory, they start no more tasks. closing_gracefully: on their way out.",
            [query(latest(select("dask_scheduler_worker_count"), "dask_worker_status"), "{{dask_worker_status}}")],
            "short",
        ),
        bars(
            "Workers that came and went",
            "unexpected: not because the cluster was scaled down; killed for their memory, for instance.",
            [
                query(count(select("dask_worker_added_total"), STEP), "came"),
                query(count(_removed("true"), STEP), "went"),
                query(count(_removed("false"), STEP), "went, unexpected"),
            ],
            "short",
        ),
        bars(
            "Graphs and clients",
            "Graphs that clients submitted, by how that went; clients that are connected.",
            [
                query(count(select("dask_graph_updates_total"), STEP, "dask_graph_status"), "{{dask_graph_status}}"),
                query(latest(select("dask_scheduler_client_count")), "clients"),
            ],
            "short",
            overrides=[
                {
                    "matcher": {"id": "byName", "options": "clients"},
                    "properties": [
                        {"id": "custom.drawStyle", "value": "line"},
                        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
                        {"id": "custom.fillOpacity", "value": 0},
                    ],
                }
            ],
        ),
    )
    return dashboard


def _workers(status: str) -> str:
    return select("dask_scheduler_worker_count", f'dask_worker_status="{status}"')


def _tasks(states: str) -> str:
    return select("dask_scheduler_task_count", f'dask_task_state=~"{states}"')


def _removed(expected: str) -> str:
    return select("dask_worker_removed_total", f'dask_worker_expected="{expected}"')
