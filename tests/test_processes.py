"""The bridge in real processes and local clusters: every way to switch it on, and what happens when it cannot work."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import datetime

import dask
import pytest
from distributed import Client, Event, LocalCluster, Scheduler, span
from distributed.utils_test import captured_logger
from support.both import shape
from support.processes import LOOPBACK, Process, cluster, our_errors
from support.trees import check_shape, check_sums, tree
from support.workflows import NESTED, NESTED_ATTRIBUTES, nested, request

import dask_otel
from dask_otel.cli.receiver import Receiver, Span
from dask_otel.client.instrumentation import is_instrumented

pytestmark = pytest.mark.slow

PRELOAD = {
    "distributed.scheduler.preload": ["dask_otel"],
    "otel.traces.idle-timeout": "300ms",
    "otel.sweep-interval": "50ms",
}


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def local(receiver, monkeypatch):
    """The environment for clusters in this process."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
    with dask.config.set(PRELOAD):
        yield receiver


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_over_otlp(receiver, tmp_path, protocol):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints[protocol], "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with cluster(tmp_path, env=env, nanny=True) as processes:
        root_id, total = nested(processes.client)
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
    assert total == 450
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    check_shape(spans)
    check_sums(spans)


#: A preload that gives a process a provider which sends each span at its end.
PEOPLE = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(insecure=True)))
trace.set_tracer_provider(provider)
"""


def test_a_worker_killed_while_a_task_has_spans(receiver, tmp_path):
    """What its process had sent is in a whole trace, but for the span of the task, which it had not."""
    (tmp_path / "people.py").write_text(PEOPLE, encoding="utf-8")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"], "OTEL_SERVICE_NAME": "people"}
    scheduler_env = env | {"OTEL_SERVICE_NAME": "dask-scheduler", "DASK_OTEL__TRACES__LEVEL": "spans"}
    preloads = ("--preload", "dask_otel", "--preload", str(tmp_path / "people.py"))
    with cluster(tmp_path, env=scheduler_env, workers=0) as processes:
        client = processes.client
        worker = Process("worker", processes.address, "--no-nanny", *preloads, *LOOPBACK, folder=tmp_path, env=env)
        try:
            with span("etl") as root_id:
                assert client.submit(request, 1, key="quick").result(timeout=60) == 1
                future = client.submit(request, 1, "hangs", key="load")
            Event("hangs").wait(30)
            receiver.wait(lambda spans: len(spans) >= 3, timeout=30)  # the task, its child, and that of the other
            while len(reports := client.get_events("dask-otel")) < 2:
                time.sleep(0.01)
        finally:
            worker.kill()
        future.cancel()
        receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        spans = receiver.wait(bool, timeout=1)
    assert shape(spans) == [
        "etl [span]",
        "  load [group]",
        "  quick [group]",
        "    ~quick [task]",
        "      ~request",
    ]
    lost = reports[-1][1]
    assert lost["key"] == "load"
    ids = {each.span_id: each for each in spans}
    assert [(each.name, each.parent_id) for each in spans if each.parent_id and each.parent_id not in ids] == [
        ("request", lost["span-id"])
    ]
    assert ids[lost["parent-id"]].name == "load"
    assert {each.trace_id for each in spans} == {dask_otel.trace_id(root_id)}


def test_to_the_console(tmp_path):
    with cluster(tmp_path, env={"OTEL_TRACES_EXPORTER": "console"}) as processes:
        root_id, _ = nested(processes.client)
        trace_id = dask_otel.trace_id(root_id)
        processes.scheduler.wait_for(rf'"trace_id": "0x{trace_id}",[^{{}}]*}},[^{{}}]*"parent_id": null[^§]*?\n}}')
        spans = [s for s in printed(processes.scheduler.log) if s.trace_id == trace_id]
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    check_shape(spans)


def printed(log: str) -> list[Span]:
    """Spans that the console exporter printed."""

    def seconds(text):
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

    return [
        Span(
            name=each["name"],
            trace_id=each["context"]["trace_id"][2:],
            span_id=each["context"]["span_id"][2:],
            parent_id=(each["parent_id"] or "0x")[2:],
            start=seconds(each["start_time"]),
            end=seconds(each["end_time"]),
            attributes=each["attributes"],
            links=tuple(
                (link["context"]["trace_id"][2:], link["context"]["span_id"][2:], link["attributes"]["dask.link.type"])
                for link in each["links"]
            ),
            status=each["status"]["status_code"].capitalize(),
            status_message=each["status"].get("description", ""),
            resource=each["resource"]["attributes"],
        )
        for each in map(json.loads, re.findall(r"^\{\n.*?^\}$", log, re.MULTILINE | re.DOTALL))
    ]


def test_switched_on_by_the_environment(receiver, tmp_path):
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"],
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": "dask_otel",
        "DASK_OTEL__CLUSTER_NAME": "prod",
    }
    with cluster(tmp_path, env=env, options=()) as processes:
        root_id, _ = nested(processes.client)
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    assert {s.resource["dask.cluster.name"] for s in spans} == {"prod"}


def test_loading_twice_changes_nothing(receiver, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"]}
    twice = ("--preload", "dask_otel", "--preload", "dask_otel")
    with cluster(tmp_path, env=env, options=twice) as processes:
        root_id, _ = nested(processes.client)
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        assert processes.scheduler.log.count("is on") == 1
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED


def test_a_nanny_says_that_there_is_nothing_to_do(tmp_path):
    with cluster(tmp_path, env={"OTEL_TRACES_EXPORTER": "none"}, workers=0) as processes:
        nanny = Process("worker", processes.address, "--preload-nanny", "dask_otel", *LOOPBACK, folder=tmp_path)
        try:
            nanny.wait_for("dask-otel was preloaded in a Nanny, where it does nothing yet")
            processes.client.wait_for_workers(1)
        finally:
            nanny.stop()


def test_a_client_that_preloads_it_is_instrumented(tmp_path):
    with cluster(tmp_path, env={"OTEL_TRACES_EXPORTER": "none"}, workers=0) as processes:
        assert not is_instrumented()
        try:
            with (
                captured_logger("distributed.dask_otel", level="INFO") as log,
                dask.config.set({"distributed.client.preload": ["dask_otel"]}),
                Client(processes.address),
            ):
                assert is_instrumented()
        finally:
            dask_otel.uninstrument()
        assert log.getvalue() == ""


def test_local_cluster(local):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster_,
        Client(cluster_) as client,
    ):
        root_id, _ = nested(client)
        spans = local.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED


def test_local_cluster_that_closes_at_once(local):
    """Nothing is awaited: closing must send everything."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster_,
        Client(cluster_) as client,
    ):
        root_id, _ = nested(client)
    spans = local.wait_for_trace(dask_otel.trace_id(root_id), timeout=1)
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED


def test_two_asynchronous_clusters_in_one_process(local):
    async def run():
        options = {
            "n_workers": 1,
            "threads_per_worker": 1,
            "processes": False,
            "asynchronous": True,
            "dashboard_address": ":0",
        }
        async with (
            LocalCluster(**options) as a,
            LocalCluster(**options) as b,
            Client(a, asynchronous=True) as in_a,
            Client(b, asynchronous=True) as in_b,
        ):
            ids = []
            for client in (in_a, in_b):
                with span("root") as root_id:
                    await client.submit(sum, [1, 2], key="sum")
                ids.append((root_id, client.cluster.scheduler.id))
            return ids

    for root_id, scheduler_id in asyncio.run(run()):
        spans = local.wait_for_trace(dask_otel.trace_id(root_id), timeout=10)
        # On a busy machine, taking in the graph may take so long that it is a phase.
        assert [line for line in tree(spans) if not line.endswith("[phase]")] == ["root [span]", "  sum [group]"]
        assert {s.resource["service.instance.id"] for s in spans} == {scheduler_id}


def test_registered_on_a_running_cluster(receiver, tmp_path):
    with cluster(tmp_path, options=()) as processes:
        processes.client.submit(sum, [1, 2], key="before").result()
        processes.client.register_plugin(dask_otel.OTelPlugin(receiver.endpoints["grpc"]))
        root_id, _ = nested(processes.client)
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    everything = receiver.wait(lambda spans: True, timeout=1)
    assert {s.trace_id for s in everything} == {dask_otel.trace_id(root_id)}


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "jaegre"},
            "dask-otel sends no spans: OTEL_TRACES_EXPORTER = 'jaegre' cannot be used: it must be one or more of ",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http:/collector"},
            "dask-otel is off: OTEL_EXPORTER_OTLP_ENDPOINT = 'http:/collector' cannot be used: it must be a URL like ",
        ),
        (
            {"DASK_OTEL__TRACES__IDLE_TIMEOUT": "-5s"},
            "dask-otel uses the default: otel.traces.idle-timeout = '-5s' cannot be used: it must be a time between 0s",
        ),
    ],
    ids=["exporter", "endpoint", "idle_timeout"],
)
def test_a_bad_setting_gives_one_clear_line_and_the_work_goes_on(tmp_path, env, line):
    with cluster(tmp_path, env=env, workers=1) as processes:
        _, total = nested(processes.client)
        log = processes.scheduler.log
    assert total == 450
    (found,) = our_errors(log)
    assert line in found


def test_a_bad_variable_for_traces_leaves_the_metrics(tmp_path):
    with Receiver() as receiver:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"],
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "/no/file",
        }
        with cluster(tmp_path, env=env, workers=1) as processes:
            _, total = nested(processes.client)
            processes.client.shutdown()
            processes.scheduler.join()
            log = processes.scheduler.log
        spans = receiver.wait(lambda spans: True, 1)
        names = {name for request in receiver.metrics for name in metric_names(request)}
    assert (total, spans) == (450, [])
    assert "dask.task.duration" in names
    (line,) = our_errors(log)
    assert "dask-otel sends no spans: OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE = '/no/file' cannot be used" in line
    assert f"is on and sends to {receiver.endpoints['grpc']};" in log


def metric_names(request):
    scopes = [scope for resource in request.resource_metrics for scope in resource.scope_metrics]
    return {metric.name for scope in scopes for metric in scope.metrics}


def test_a_bad_endpoint_costs_nothing_but_the_trace(tmp_path):
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "DASK_OTEL__SHUTDOWN_TIMEOUT": "1s",
    }
    with cluster(tmp_path, env=env) as processes:
        _, total = nested(processes.client)
        processes.scheduler.wait_for("cannot send spans with exporter 'otlp'")
        _, again = nested(processes.client)
        assert all(process.is_alive for process in [processes.scheduler, *processes.workers])
        processes.client.shutdown()
        processes.scheduler.join()
        log = processes.scheduler.log
    assert (total, again) == (450, 450)
    assert re.search(r"could not send \d+ spans", log)
    assert our_errors(log) == []


def test_the_scheduler_has_the_plugin_only_while_it_works(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")

    async def run(is_disabled):
        monkeypatch.setenv("OTEL_SDK_DISABLED", is_disabled)
        with dask.config.set(PRELOAD):
            async with Scheduler(port=0, dashboard_address="127.0.0.1:0", dashboard=False) as scheduler:
                await asyncio.sleep(0)
                return "dask-otel" in scheduler.plugins

    assert asyncio.run(run("false"))
    assert not asyncio.run(run("true"))
