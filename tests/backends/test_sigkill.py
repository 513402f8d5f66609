"""Processes of a cluster killed with SIGKILL; asked of Jaeger's API what it has."""

from __future__ import annotations

import os
import signal

import pytest
from distributed import Event, span, wait
from support.processes import cluster
from support.trees import check_shape, check_sums, tree
from support.workflows import hang, hang_once, one, slow

import dask_otel
from dask_otel.identity import pending_id, segment_id

pytestmark = [pytest.mark.backend, pytest.mark.slow]

FATES = ("dask.span.result", "dask.task.completed", "dask.task.lost", "dask.task.recomputed", "dask.metrics.complete")


def has_root(spans):
    return any(not span.parent_id for span in spans)


def kill_worker(processes, address):
    """SIGKILL the worker's process, not its nanny."""
    os.kill(processes.client.run(os.getpid, workers=[address])[address], signal.SIGKILL)


def test_a_worker_killed_with_results_in_memory(jaeger, tmp_path):
    with cluster(tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"]}, nanny=True) as processes:
        client = processes.client
        address = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
        with span("root") as root_id:
            kept = client.map(slow, range(4), key="kept", workers=[address], allow_other_workers=True)
            wait(kept)
            held = [key for keys in client.has_what([address]).values() for key in keys]
            kill_worker(processes, address)
            total = client.submit(sum, kept, key="total").result()
        spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
        assert total == 10
    check_shape(spans)
    check_sums(spans)
    root = next(s for s in spans if not s.parent_id).attributes
    assert held
    assert root["dask.span.result"] == "success"
    assert root["dask.task.count"] == 5
    assert root["dask.task.recomputed"] == len(held)
    assert root["dask.task.completed"] == 5 + len(held)


def test_a_worker_killed_while_it_runs_a_task(jaeger, tmp_path):
    with cluster(tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"]}, nanny=True) as processes:
        client = processes.client
        with span("root") as root_id:
            future = client.submit(hang_once, 1, "started", key="task")
            Event("started").wait(30)
            (address,) = [worker for worker, keys in client.processing().items() if keys]
            kill_worker(processes, address)
            assert future.result(timeout=60) == 1
        spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
    check_shape(spans)
    check_sums(spans)
    assert tree(spans, *FATES) == [
        "root [span] dask.span.result=success dask.task.completed=1 dask.task.lost=1 dask.metrics.complete=False",
        "  task [group] dask.task.completed=1 dask.task.lost=1",
    ]


def test_killed_worker(jaeger, tmp_path):
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["http/protobuf"],
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    with cluster(tmp_path, env=env, nanny=True) as processes:
        client = processes.client
        with span("root", "child") as child_id:
            future = client.submit(hang, 1, "started", key="task")
            Event("started").wait(30)
            (address,) = [worker for worker, keys in client.processing().items() if keys]
            kill_worker(processes, address)
            wait(future, timeout=60)
            root_id = client.run_on_scheduler(
                lambda dask_scheduler: dask_scheduler.extensions["spans"].spans[child_id].parent.id
            )
        spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
    check_shape(spans)
    assert tree(spans, "dask.span.result", tasks=True) == [
        "root [span] dask.span.result=error Error: KilledWorker: 1 task erred",
        "  child [span] dask.span.result=error Error: KilledWorker: 1 task erred",
        "    task [group] Error: KilledWorker: 1 task erred",
        "      task [task] Error: KilledWorker: ",
    ]


def test_what_is_left_of_a_scheduler_killed_in_the_middle(jaeger, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"], "DASK_OTEL__TRACES__PENDING_SPAN_AFTER": "1s"}
    with cluster(tmp_path, env=env, timeout=5) as processes:
        client = processes.client
        with span("root") as root_id:
            with span("done") as done_id:
                client.submit(one, 1, key="quick").result()
            with span("running"):
                endless = client.submit(hang, 1, "started", key="endless")
                Event("started").wait(30)

            def enough(spans):
                return {"root (running)", "done", "quick"} <= {s.name for s in spans}

            jaeger.trace(dask_otel.trace_id(root_id), enough)
            processes.scheduler.kill()
            del endless
    spans = jaeger.trace(dask_otel.trace_id(root_id), enough)
    assert not has_root(spans)
    by_name = {s.name: s for s in spans if s.attributes["dask.kind"] != "task"}
    assert set(by_name) == {"root (running)", "done", "quick"}
    reserved = f"{segment_id(root_id, 0):016x}"
    assert by_name["root (running)"].parent_id == by_name["done"].parent_id == reserved
    assert by_name["root (running)"].span_id == f"{pending_id(root_id, 0):016x}"
    assert by_name["root (running)"].seconds >= 1
    progress = ("completed", "count", "running")
    assert [by_name["root (running)"].attributes[f"dask.progress.{each}"] for each in progress] == [
        1,
        2,
        ["root / running"],
    ]
    assert by_name["done"].attributes["dask.span.result"] == "success"
    assert by_name["done"].attributes["dask.span.id"] == done_id
