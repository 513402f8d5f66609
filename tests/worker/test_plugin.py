"""How dask-otel gets into a worker: the preload and the plugin, and where it stays quiet."""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys

import pytest
from distributed import span
from distributed.utils_test import gen_cluster, inc
from support.environment import environment, python_path
from support.inside import PROVIDER, Person, provider_of, spans_of
from support.processes import LOOPBACK, Process, cluster
from support.workflows import request

import dask_otel
from dask_otel.cli.receiver import Receiver
from dask_otel.worker import plugin


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], config={"distributed.worker.preload": ["dask_otel"]})
async def test_the_preload(client, scheduler, worker):
    assert "execute" in vars(worker)
    with provider_of(Person()) as _:
        assert await client.submit(inc, 1) == 2
    assert not spans_of(worker).safety.failures
    # What a client registers later takes its place.
    first = worker.plugins["dask-otel"]
    await client.register_plugin(dask_otel.OTelWorkerPlugin())
    assert worker.plugins["dask-otel"] is not first
    assert await client.submit(inc, 2) == 3
    await worker.close()
    assert "execute" not in vars(worker)


def test_the_plugin_can_be_sent():
    made = plugin.OTelWorkerPlugin()
    made._spans = object()  # as it is on a worker
    copy = pickle.loads(pickle.dumps(made))
    assert copy._spans is None
    assert copy.name == "dask-otel"


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_broken_opentelemetry_is_one_line(client, scheduler, worker, monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "dask_otel.worker.execution", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with caplog.at_level(logging.WARNING):
        assert await worker.plugin_add(dask_otel.OTelWorkerPlugin()) == {"status": "OK"}
    (message,) = {each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING}
    assert "dask-otel is off: cannot import opentelemetry.trace" in message
    assert "execute" not in vars(worker)
    assert await client.submit(inc, 1) == 2
    await worker.plugin_remove("dask-otel")


@pytest.mark.parametrize("fault", ["_install", "Safety"])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_fault_in_the_set_up(client, scheduler, worker, monkeypatch, fault):
    def broken(*args, **kwargs):
        raise RuntimeError("injected")

    if fault == "_install":
        monkeypatch.setattr(plugin, "_install", broken)
    else:
        monkeypatch.setattr(plugin.config, "load", broken)
    assert await worker.plugin_add(dask_otel.OTelWorkerPlugin()) == {"status": "OK"}
    assert await client.submit(inc, 1) == 2
    assert "execute" not in vars(worker)


@pytest.mark.slow
@pytest.mark.parametrize("nanny", [False, True])
def test_one_trace_from_scheduler_and_worker(tmp_path, nanny):
    """Real processes and real OTLP: segment, group, task, and the person's span."""
    preload = tmp_path / "provider.py"
    preload.write_text(PROVIDER)
    options = ("--preload", str(preload), "--preload", "dask_otel", *(() if nanny else ("--no-nanny",)))
    with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"], "OTEL_METRICS_EXPORTER": "none"}
        env["PYTHONPATH"] = python_path()
        with cluster(tmp_path, env=env, workers=0) as processes:
            worker = Process(
                "worker", processes.address, "--name", "w0", *options, *LOOPBACK, folder=tmp_path,
                env=env | {"OTEL_SERVICE_NAME": "people"},
            )  # fmt: skip
            try:
                processes.client.wait_for_workers(1)
                with span("etl") as root, span("load"):
                    assert processes.client.submit(request, 1, key="read-1").result() == 1
                trace_id = dask_otel.trace_id(root)
                spans = receiver.wait(lambda spans: {each.name for each in spans} >= {"etl", "request"}, timeout=60)
            finally:
                worker.stop()
    names = {each.span_id: each.name for each in spans} | {"": "nobody"}
    assert {each.trace_id for each in spans} == {trace_id}
    assert {
        (each.resource["service.name"], each.attributes.get("dask.kind"), names[each.parent_id], each.name)
        for each in spans
    } == {
        ("dask-scheduler", "group", "load", "read"),
        ("dask-scheduler", "span", "etl", "load"),
        ("dask-scheduler", "span", "nobody", "etl"),
        ("people", "task", "read", "read"),
        ("people", None, "read", "request"),
    }
    assert len(spans) == 5


@pytest.mark.slow
def test_a_worker_without_a_provider_is_quiet(tmp_path):
    """Its log has the lines with which Dask says that it loads something, and no other; also with a nanny."""
    with cluster(tmp_path, env={"OTEL_TRACES_EXPORTER": "none"}, workers=0) as processes:
        worker = Process(
            "worker", processes.address, "--preload", "dask_otel", *LOOPBACK, folder=tmp_path,
            env={"PYTHONPATH": python_path()},
        )  # fmt: skip
        try:
            processes.client.wait_for_workers(1)
            assert processes.client.gather(processes.client.map(inc, range(10))) == list(range(1, 11))
        finally:
            worker.stop()
    named = {re.sub(".* - INFO - ", "", line) for line in worker.log.splitlines() if re.search("dask.otel", line)}
    assert named == {
        "Creating preload: dask_otel",
        "Import preload module: dask_otel",
        "Run preload setup: dask_otel",
        "Starting Worker plugin dask-otel",
        "Removing Worker plugin dask-otel",
    }


#: Of a person whose process ends without closing its cluster, soon after a task with a span.
UNCLOSED = """
from distributed import Client, LocalCluster
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
import dask_otel

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
cluster = LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0")
client = Client(cluster)
client.register_plugin(dask_otel.OTelWorkerPlugin())
client.submit(exec, "from opentelemetry import trace; trace.get_current_span().set_attribute('a', 1)").result()
"""


@pytest.mark.slow
def test_an_interpreter_that_ends_while_the_cluster_is_open():
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED], env=environment({}), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0
    assert "dask-otel" not in done.stderr, done.stderr
    assert '"name": "exec"' in done.stdout
