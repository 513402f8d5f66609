"""A real cluster at work, the collector and the Prometheus of the compose file, and all that Grafana would ask."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import yaml
from distributed import span
from distributed.metrics import context_meter
from support.backends import need
from support.collector import Collector
from support.dashboards import ROOT, Times, fill, queries
from support.names import prometheus_names
from support.processes import LOOPBACK, Process, Processes, cluster
from support.prometheus import Prometheus

from dask_otel.cli.receiver import Receiver

pytestmark = [pytest.mark.backend, pytest.mark.slow, pytest.mark.timeout(300)]

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
ROUNDS = 2
NAMES = ["Alice's workflow", "Bob's training", "nightly report"]
#: As people may name things.
STRANGE = 'say "hi", a.b*[c](d|e)$ \\n/x {1}'
TIMES = Times(span=900)
#: What a person may have ticked at the top of a dashboard.
CHOICES = {
    "all": {"cluster": ".*", "prefix": ".*", "root": ".*"},
    "some": {"cluster": ["proof"], "prefix": ["load", "clean", "fit"], "root": NAMES[:2]},
}


class Stack(NamedTuple):
    cluster: Processes
    prometheus: Prometheus
    traces: Receiver
    #: Seconds from the workload's start until no panel of the first dashboard was empty.
    filled_after: float


@pytest.fixture(scope="module")
def stack(prometheus, tmp_path_factory):
    """A cluster on which the compose file's workload has run."""
    folder = tmp_path_factory.mktemp("stack")
    with Receiver() as traces:
        backend = traces.endpoints["grpc"].removeprefix("http://")
        addresses = {"tempo:4317": backend, "jaeger:4317": backend, "http://prometheus:9090": prometheus.url}
        collector = Collector(need("otelcol"), folder, addresses)
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": COMPOSE["scheduler"]["environment"]["OTEL_METRIC_EXPORT_INTERVAL"],
            "DASK_OTEL__CLUSTER_NAME": "proof",
            "DASK_OTEL__TRACES__MAX_RATE": "1000",
            "DASK_OTEL__TRACES__IDLE_TIMEOUT": "3s",  # the workload may pause between two steps
        }
        try:
            with cluster(folder, env=env) as processes:
                begin = time.monotonic()
                command = [sys.executable, ROOT / "grafana/workload.py", processes.address, str(ROUNDS)]
                with subprocess.Popen(command) as workload:
                    first = [query for query in queries() if query.dashboard == "dask-cluster"]
                    prometheus.wait(lambda: all(is_shown(prometheus, query, "all") for query in first))
                    filled_after = time.monotonic() - begin
                    assert workload.wait(120) == 0
                yield Stack(processes, prometheus, traces, filled_after)
        finally:
            collector.stop()


def values(series):
    return [float(value) for each in series for _, value in each.get("values", [each.get("value")])]


def ask(prometheus, query, choice):
    """Ask as Grafana would at this moment."""
    times = TIMES._replace(points=query.points)
    expression = fill(query.expression, times, CHOICES[choice])
    assert "$" not in re.sub("`[^`]*`", "", expression), expression
    if query.is_instant:
        return prometheus.query(expression)
    end = time.time() // times.step * times.step
    return prometheus.query_range(expression, end - times.span, end, times.step)


def is_shown(prometheus, query, choice):
    return any(math.isfinite(value) for value in values(ask(prometheus, query, choice)))


def total(prometheus, expression):
    return sum(values(prometheus.query(expression)))


def test_every_run_of_a_root_is_counted(stack):
    """Which is also the moment from which all has arrived."""
    for name in NAMES:
        runs = f'sum(dask_span_duration_seconds_count{{dask_span_root="{name}", dask_cluster_name="proof"}})'
        stack.prometheus.wait(lambda runs=runs: total(stack.prometheus, runs) == ROUNDS)


def test_nothing_is_wrong(stack):
    # A busy machine may hold up the event loop.
    assert stack.prometheus.alerts().keys() <= {"DaskEventLoopStalled"}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("query", list(queries()), ids=lambda query: f"{query.dashboard}: {query.panel} {query.ref}")
def test_no_panel_is_empty(stack, query, choice):
    assert stack.prometheus.wait(lambda: is_shown(stack.prometheus, query, choice))


def test_the_first_dashboard_is_filled_within_a_minute(stack):
    assert stack.filled_after < 60


def test_from_a_trace_to_metrics(stack):
    sources = yaml.safe_load((ROOT / "grafana/provisioning/datasources/datasources.yml").read_text(encoding="utf-8"))
    asked = [
        query["query"]
        for source in sources["datasources"]
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", ())
    ]
    assert len(asked) == 4
    for query in asked:
        expression = query.replace("$$__tags", f'dask_span_root="{NAMES[1]}"')
        assert stack.prometheus.wait(lambda expression=expression: total(stack.prometheus, expression) > 0)


def test_the_numbers_are_those_of_dask(stack):
    def scheduler_s(dask_scheduler):
        prefixes = dask_scheduler.task_prefixes.values()
        return {
            "memory": sum(prefix.state_counts["memory"] for prefix in prefixes),
            "workers": len(dask_scheduler.workers),
            "threads": dask_scheduler.total_nthreads,
            "seconds": sum(
                value
                for key, value in dask_scheduler.cumulative_worker_metrics.items()
                if isinstance(key, tuple) and key[-1] == "seconds"
            ),
        }

    def agrees():
        theirs = stack.cluster.client.run_on_scheduler(scheduler_s)
        ours = {
            "memory": total(stack.prometheus, 'sum(dask_task_finished_total{dask_task_outcome="completed"})'),
            "workers": total(stack.prometheus, 'dask_scheduler_worker_count{dask_worker_status="running"}'),
            "threads": total(stack.prometheus, "dask_scheduler_thread_count"),
            "seconds": pytest.approx(total(stack.prometheus, "sum(dask_activity_time_seconds_total)"), abs=1e-3),
        }
        return theirs == ours

    assert stack.prometheus.wait(agrees)


def test_what_was_counted_since_a_time_is_what_was_counted(stack):
    """The expression of all panels, for a cluster that is younger than the time shown."""
    runs = next(query for query in queries() if query.panel == "Runs by root span")
    (panel,) = [query for query in queries() if query.dashboard == "dask-workflows" and query.panel == "Runs"]
    for choice, expected in (("all", None), ("some", 2 * ROUNDS)):
        (counted,) = values(ask(stack.prometheus, panel, choice))
        in_all = total(stack.prometheus, fill("sum(dask_span_duration_seconds_count)", TIMES, {}))
        assert counted == (expected or in_all)
    # The bar that is growing is not shown.
    assert stack.prometheus.wait(lambda: sum(values(ask(stack.prometheus, runs, "some"))) == 2 * ROUNDS)


def test_variables_offer_what_there_is(stack):
    assert stack.prometheus.labels("dask_cluster_name", "dask_scheduler_thread_count") == ["proof"]
    assert {"default", *NAMES} == set(stack.prometheus.labels("dask_span_root", "dask_span_active"))
    assert {"load", "clean", "fit", "look"} < set(
        stack.prometheus.labels("dask_task_prefix", "dask_task_finished_total")
    )


@pytest.mark.parametrize("metric", ["dask_span_duration_seconds_bucket", "dask_task_duration_seconds_bucket"])
def test_examples_lead_to_traces_that_arrived(stack, metric):
    examples = {(each["labels"]["trace_id"], each["labels"]["span_id"]) for each in stack.prometheus.exemplars(metric)}
    assert examples
    # The collector lets traces wait a moment for others.
    stack.traces.wait(lambda spans: examples <= {(each.trace_id, each.span_id) for each in spans}, timeout=30)


def test_the_metrics_that_arrived_are_those_documented(stack):
    arrived = {series["metric"]["__name__"] for series in stack.prometheus.query('{job="dask-scheduler"}')}
    # Nothing has gone wrong in the bridge.
    assert arrived == {*prometheus_names(), "target_info"} - {"dask_otel_errors_total"}


def test_a_strange_name_can_be_ticked(stack):
    with span(STRANGE):
        stack.cluster.client.submit(abs, 1, key="strange").result()
    for panel in ("Runs", "Root spans", "Runs by root span", "Durations"):
        query = next(query for query in queries() if query.panel == panel and query.dashboard == "dask-workflows")
        for ticked in ([STRANGE], [*NAMES, STRANGE]):
            expression = fill(query.expression, TIMES, {"cluster": ["proof"], "root": ticked})
            assert stack.prometheus.wait(lambda e=expression: stack.prometheus.query(e))
    runs = fill("sum(dask_span_duration_seconds_count{dask_span_root=~`${root:regex}`})", TIMES, {"root": [STRANGE]})
    assert stack.prometheus.wait(lambda: total(stack.prometheus, runs) == 1)


def gather_failures(client):
    for number in range(5):
        with span("fails"):
            client.submit(int, "no number", key=f"fails-{number}").exception()


def send_too_much(client):
    """More than 1,000 spans a minute; of a root of its own: work without a span would stay open with what waits."""
    for number in range(4):
        with span(f"too many spans {number}"):
            client.gather(client.map(abs, range(500), key=[f"g{n}-{number}" for n in range(500)]))


def spill(client, address, folder):
    """A worker that holds more than it has memory for, and says that it spends its time on that."""
    worker = Process("worker", address, "--memory-limit", "400MB", "--name", "small", *LOOPBACK, folder=folder)
    client.wait_for_workers(3)

    def hold(number):
        context_meter.digest_metric("disk-write", 100, "seconds")
        return os.urandom(30_000_000)

    futures = client.map(hold, range(12), workers=["small"], key="hold")
    return worker, futures


@pytest.fixture(scope="module")
def trouble(stack):
    """The cluster of the stack, when it has failed and sent more than it may."""
    gather_failures(stack.cluster.client)
    send_too_much(stack.cluster.client)
    return stack


def test_alerts(trouble, tmp_path):
    """Each is provoked. Those that wait before they fire are pending then; that they fire is tested with promtool."""
    stack, client = trouble, trouble.cluster.client
    rules = yaml.safe_load((ROOT / "grafana/rules/dask.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    states = {rule["alert"]: {"pending", "firing"} if "for" in rule else {"firing"} for rule in rules}
    worker, held = spill(client, stack.cluster.address, tmp_path)
    with span("waits"):
        waits = client.submit(abs, 1, resources={"GPU": 1}, key="waits")
    client.run_on_scheduler(time.sleep, 4)
    stack.cluster.workers[0].kill()
    try:
        seen = {}
        stack.prometheus.wait(lambda: seen.update(stack.prometheus.alerts()) or set(seen) == set(states), lambda: seen)
        assert all(state in states[name] for name, state in seen.items())
    finally:
        del waits, held
        worker.stop()


@pytest.mark.parametrize(
    ("dashboard", "panel"),
    [
        ("dask-cluster", "Failed"),
        ("dask-cluster", "Not completed"),
        ("dask-workflows", "Failed"),
        ("dask-otel-health", "Lost"),
        ("dask-otel-health", "Spans that were lost"),
    ],
)
def test_what_goes_wrong_is_shown(trouble, dashboard, panel):
    """These panels show zero as long as nothing does."""
    prometheus = trouble.prometheus
    asked = [query for query in queries() if (query.dashboard, query.panel) == (dashboard, panel)]
    assert asked
    assert prometheus.wait(lambda: any(sum(values(ask(prometheus, query, "all"))) > 0 for query in asked))
