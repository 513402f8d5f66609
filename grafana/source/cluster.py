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
        "Tasks, workers, memory and the event loop of Dask clusters.",
        [CHOOSE_CLUSTER, CHOOSE_PREFIX],
        span="30m",
    )
    dashboard.add(
        stat("Workers", "Workers with the status running.", total(latest(_workers("running"))), "short"),
        stat("Threads", "Threads of all workers now.", total(latest(select("dask_scheduler_thread_count"))), "short"),
        stat(
            "Unfinished tasks",
            "Tasks that run, or that wait in the queue, for their inputs, or for a suitable worker.",
            total(latest(_tasks("processing|queued|waiting|no-worker"))),
            "short",
        ),
        stat(
            "Finished",
            "Tasks that completed in the time range of the dashboard.",
            total(count(select(FINISHED, COMPLETED, PREFIX), RANGE)),
            "short",
        ),
        stat(
            "Failed",
            "Tasks that raised an exception in the time range. Tasks that only depended on one of them do not count.",
            total(or_zero(count(select(FINISHED, FAILED, PREFIX), RANGE))),
            "short",
            bad_from=1,
        ),
        stat(
            "Efficiency",
            "Share of the threads' time in which they ran tasks, in the time range. In the rest of the time they were "
            "idle. A task counts when it ends, so choose a time range much longer than one task takes.",
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
            "Tasks on the scheduler. Many queued tasks: the cluster could use more workers. no-worker: no worker can "
            "run these tasks, because of their resource or host restrictions, or because there are no workers. "
            "memory: results that the workers hold.",
            [query(latest(select("dask_scheduler_task_count"), "dask_task_state"), "{{dask_task_state}}")],
            "short",
        ),
        bars(
            "Throughput by prefix",
            "Tasks that completed per second.",
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
            "erred: raised an exception. upstream_failed: depended on a task that did. retried, rescheduled, "
            "recomputed: run again. cancelled, abandoned: no longer needed. lost: their worker or its data is gone.",
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
            "Compute time in the time range, by task prefix (the name of the function or layer).",
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
            "Worker time by activity",
            "Seconds that workers spent, by context and activity. execute: in tasks. thread_cpu: computing. "
            "thread_noncpu: waiting for input, output or Python's interpreter lock. disk_read, disk_write: spilling. "
            "deserialize, network: moving data. executor: waiting for a thread. other: the rest. "
            "failed, cancelled: runs without a result. gather_dep and get_data run outside the task threads, so the "
            "sum can exceed the time of the threads. P2P shuffles: only the part that runs in tasks; the background "
            "threads of a shuffle mostly wait.",
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
            "Threads: available and busy",
            "available: threads of the cluster. running: upper limit of the threads that run tasks now. busy: "
            "thread-seconds in tasks per second. A task counts when it ends, so if tasks take longer than one step of "
            "the chart, busy lags behind and overshoots.",
            [
                query(per_second(HAD), "available"),
                query(at_most(latest(_tasks("processing"), INSTANCE), THREADS), "running"),
                query(per_second(BUSY), "busy"),
            ],
            "short",
        ),
        stacked(
            "Memory of the workers",
            "managed: results of tasks. unmanaged: the rest of the workers' processes, such as the memory that "
            "running tasks use. spilled: results on disk. By default, workers pause at 80 % of their limit, and the "
            "nanny restarts them at 95 %.",
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
            "By context and activity. memory_read and disk_read: inputs of tasks. get_data: data for other workers.",
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
            "Largest delay of the scheduler's event loop. Above one second all clients and workers wait. Causes are "
            "very large graphs, many tiny tasks, or too little CPU for the scheduler.",
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
            "paused: too little memory, so they start no more tasks. closing_gracefully: being retired.",
            [query(latest(select("dask_scheduler_worker_count"), "dask_worker_status"), "{{dask_worker_status}}")],
            "short",
        ),
        bars(
            "Workers added and removed",
            "unexpected: the cluster was not scaled down; the worker was killed for its memory, for example.",
            [
                query(count(select("dask_worker_added_total"), STEP), "added"),
                query(count(_removed("true"), STEP), "removed, expected"),
                query(count(_removed("false"), STEP), "removed, unexpected"),
            ],
            "short",
        ),
        bars(
            "Graphs and clients",
            "Graphs that clients submitted, by status. Line: connected clients.",
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
