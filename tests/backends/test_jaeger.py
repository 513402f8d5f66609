"""`dask scheduler`, `dask worker` and Jaeger as separate processes; asked of Jaeger's API what arrived."""

from __future__ import annotations

import json
import re
from urllib.request import urlopen
from uuid import uuid4

import pytest
from distributed import Client, span, wait
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from support.callers import anchored, inside
from support.large import TASKS, large_trace
from support.processes import cluster, our_errors
from support.trees import check_shape, check_sums, tree, trees
from support.workflows import (
    NESTED,
    NESTED_ATTRIBUTES,
    group_numbers,
    many_at_once,
    nested,
    spans_page,
    work,
)

import dask_otel
from dask_otel.otlp.environment import make_resource
from dask_otel.otlp.exporter import ExportThread, SpanExportQueue
from dask_otel.otlp.spans import SpanFactory
from dask_otel.otlp.transport import make_senders
from dask_otel.safety import Safety

pytestmark = [pytest.mark.backend, pytest.mark.slow]


def has_root(spans):
    return any(not span.parent_id for span in spans)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_workflow_appears_in_jaeger(jaeger, tmp_path, protocol):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints[protocol], "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with cluster(tmp_path, env=env, nanny=True, name="alice") as processes:
        root_id, total = nested(processes.client)
        spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
        assert all(process.is_alive for process in [processes.scheduler, *processes.workers])
    assert total == 450
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    check_shape(spans)
    check_sums(spans)
    root = next(span for span in spans if not span.parent_id)
    assert root.attributes["dask.span.id"] == root_id
    assert root.attributes["dask.metrics.complete"] is True
    assert root.attributes["dask.client.name"] == "alice"
    assert root.attributes["dask.worker.count"] == 2
    assert 0 < root.attributes["dask.efficiency"] <= 1
    assert root.attributes["dask.execute.thread_noncpu.seconds"] >= 10 * 0.02
    check_reasons(root)
    assert {span.resource["service.name"] for span in spans} == {"dask-scheduler"}
    assert our_errors(processes.scheduler.log) == []


def check_reasons(root):
    """The waterfall sums to the threads' time, and the critical path to the duration."""
    parts = [value for name, value in root.attributes.items() if re.fullmatch(r"dask\.waterfall\.\w+\.seconds", name)]
    assert sum(parts) == pytest.approx(root.attributes["dask.waterfall.threads"] * root.seconds, abs=0.01)
    gaps = [value for name, value in root.attributes.items() if name.startswith("dask.critical.gap.")]
    assert sum(gaps) + root.attributes["dask.critical.seconds"] == pytest.approx(root.seconds, abs=0.001)
    steps, seconds = root.attributes["dask.critical.steps"], root.attributes["dask.critical.steps.seconds"]
    names = {"data load / load", "prepare / scale / scale", "prepare / scale / total", "check / check"}
    assert set(steps) <= {f"Alice's workflow / {name}" for name in names}
    assert len(set(steps)) == len(seconds) > 1
    assert seconds == sorted(seconds, reverse=True)
    assert sum(seconds) == pytest.approx(root.attributes["dask.critical.seconds"])


def test_a_workflow_below_a_callers_span(jaeger, tmp_path):
    """The caller's own SDK sends its span to the same place: one trace from the request to the tasks."""
    provider = TracerProvider(resource=Resource({"service.name": "app"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(jaeger.endpoints["grpc"], insecure=True)))
    root_id = f"{uuid4()}"
    with cluster(tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"]}) as processes:
        with provider.get_tracer("app").start_as_current_span("GET /report") as caller:
            ids = caller.get_span_context()
            with inside(service=root_id, report=anchored(ids.trace_id, ids.span_id, "nonce")):
                trace = dask_otel.trace_id()
                total = processes.client.submit(sum, processes.client.map(abs, range(5), key="load"), key="total")
                with span("inner"):
                    assert processes.client.submit(abs, total, key="use").result() == 10
        spans = jaeger.trace(trace, lambda spans: any(each.name == "report" for each in spans) and len(spans) == 6)
        root = jaeger.trace(dask_otel.trace_id(root_id), has_root)
    provider.shutdown()
    ours = [each for each in [*spans, *root] if each.resource["service.name"] == "dask-scheduler"]
    check_shape(ours)
    check_sums(ours)
    assert trees(ours)[trace] == [
        "report [span] within -> service in another trace <- caller",
        "  inner [span]",
        "    use [group] dependency -> total",
        "  load [group]",
        "  total [group] dependency -> load",
    ]
    assert [each.name for each in spans if not each.parent_id] == ["GET /report"]
    with urlopen(f"{jaeger.ui}/api/traces/{trace}", timeout=10) as answer:
        (shown,) = json.load(answer)["data"]
    kinds = {each["operationName"]: _tags(each).get("span.kind") for each in shown["spans"]}
    assert kinds == dict.fromkeys(kinds, "internal") | {"report": "server"}


def _tags(shown):
    return {tag["key"]: tag["value"] for tag in shown["tags"]}


def test_many_groups_that_are_active_at_once(jaeger, tmp_path):
    """Each changes in almost every sweep; every number is Dask's."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"], "DASK_OTEL__SWEEP_INTERVAL": "500ms"}
    with cluster(tmp_path, env=env) as processes:
        client = processes.client
        root_id, futures = many_at_once(client, groups=80, tasks=20)
        wait(futures)
        told = client.run_on_scheduler(group_numbers)
        spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
        assert all(process.is_alive for process in [processes.scheduler, *processes.workers])
    check_shape(spans)
    check_sums(spans)
    shown = {
        each.attributes["dask.group.name"]: (
            each.attributes["dask.task.completed"],
            each.attributes["dask.output.size"],
            round(each.attributes["dask.duration.compute"] * 1e6),
        )
        for each in spans
        if each.attributes["dask.kind"] == "group"
    }
    assert shown == told
    assert set(told) == {f"work-{number}" for number in range(80)}
    (root,) = [each for each in spans if not each.parent_id]
    assert root.attributes["dask.task.completed"] == 80 * 20
    assert root.attributes["dask.metrics.complete"] is True
    assert our_errors(processes.scheduler.log) == []


def test_the_example_of_dasks_spans_page(jaeger, tmp_path):
    # A person may pause between two steps.
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"], "DASK_OTEL__TRACES__IDLE_TIMEOUT": "5s"}
    with cluster(tmp_path, env=env):
        root_id = spans_page(tmp_path / "data")
        spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
    check_shape(spans)
    check_sums(spans)
    segments = [span for span in spans if span.attributes["dask.kind"] == "span"]
    assert tree(segments) == [
        "Alice's workflow [span]",
        "  data load [span]",
        "  ML preprocessing [span]",
        "  Model training [span]",
    ]
    root = next(span for span in segments if not span.parent_id)
    assert root.attributes["dask.span.result"] == "success"
    for segment in segments:
        assert segment.attributes["dask.task.count"] > 0


def test_two_people_who_call_one_function_at_once(jaeger, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"]}
    with cluster(tmp_path, env=env) as processes, Client(processes.address, name="bob") as bob:
        with span("alice job") as alice_id:
            hers = processes.client.map(work, range(30))
        with span("bob job") as bob_id:
            his = bob.map(work, range(100, 130))
        assert processes.client.gather(hers) == list(range(30))
        assert bob.gather(his) == list(range(100, 130))
        found = [jaeger.trace(dask_otel.trace_id(each), has_root) for each in (alice_id, bob_id)]
        log = processes.scheduler.log
    for spans, name, group in zip(found, ("alice job", "bob job"), ("work", "work @ bob job"), strict=True):
        assert tree(spans, "dask.task.count", "dask.task.completed", "dask.span.result", "dask.group.name") == [
            f"{name} [span] dask.task.count=30 dask.task.completed=30 dask.span.result=success",
            f"  work [group] dask.task.count=30 dask.task.completed=30 dask.group.name={group}",
        ]
        check_shape(spans)
        check_sums(spans)
        (root,) = (each for each in spans if not each.parent_id)
        assert 30 * 0.02 <= root.attributes["dask.duration.compute"] < 30 * 0.1
        assert root.attributes["dask.execute.thread_noncpu.seconds"] >= 30 * 0.019
        assert 0 < root.attributes["dask.efficiency"] <= 1
    assert our_errors(log) == []


def test_jaeger_killed_and_started_again(own_jaeger, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": own_jaeger.endpoints["grpc"]}
    with cluster(tmp_path, env=env) as processes:
        before, total = nested(processes.client)
        assert total == 450
        own_jaeger.trace(dask_otel.trace_id(before), has_root)
        own_jaeger.kill()
        during, total = nested(processes.client)
        assert total == 450
        processes.scheduler.wait_for("cannot send spans")
        own_jaeger.start()
        spans = own_jaeger.trace(dask_otel.trace_id(during), has_root)
        assert all(process.is_alive for process in [processes.scheduler, *processes.workers])
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED


def test_closing_the_scheduler_sends_what_is_open(jaeger, tmp_path):
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"],
        "DASK_OTEL__TRACES__IDLE_TIMEOUT": "1h",
    }
    with cluster(tmp_path, env=env) as processes:
        root_id, _ = nested(processes.client)
        processes.client.shutdown()
    spans = jaeger.trace(dask_otel.trace_id(root_id), has_root)
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED


def test_a_trace_of_a_hundred_thousand_tasks_opens(jaeger):
    """Through the real exporter; the tasks themselves are a story, told to the real mirror."""
    records = large_trace()
    (sender,) = make_senders(jaeger.endpoints["grpc"])
    resource = make_resource(service_name="dask-scheduler", instance_id="large", version="1", cluster_name=None)
    factory = SpanFactory(resource, InstrumentationScope("dask_otel"), SpanLimits())
    pipeline = ExportThread(sender, SpanExportQueue(sender.form(factory), Safety()), Safety())
    pipeline.put(records)
    pipeline.close(timeout=60)
    assert pipeline.unsent == 0
    spans = jaeger.trace(f"{records[-1].trace_id:032x}", lambda spans: len(spans) == len(records))
    check_shape(spans)
    check_sums(spans)
    assert next(span for span in spans if not span.parent_id).attributes["dask.task.count"] == TASKS
