"""Workers that `opentelemetry-instrument` starts, with nannies: requests and log records of tasks, in real backends."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.backends import skip
from support.environment import environment
from support.processes import LOOPBACK, Process, Processes, cluster, our_errors

import dask_otel

pytestmark = [pytest.mark.backend, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")


def sends_log_records() -> bool:
    """Whether the instrumentation of logging is there, and one that sends records; older ones put ids on them only."""
    try:
        return find_spec("opentelemetry.instrumentation.logging.handler") is not None
    except ModuleNotFoundError:
        return False


needs_log_records = pytest.mark.skipif(not sends_log_records(), reason="needs an instrumentation that sends records")


class Server:
    """An HTTP server that answers with five bytes, and keeps the header ``traceparent`` of each request."""

    def __init__(self) -> None:
        self.callers = callers = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                callers.append(self.headers["traceparent"])
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"hello")

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    own = Server()
    yield own
    own.stop()


@contextmanager
def instrumented(folder: Path, jaeger, env) -> Iterator[tuple[Processes, Process]]:
    """A cluster that sends to Jaeger, and its worker with a nanny."""
    if find_spec("opentelemetry.distro") is None:
        skip("needs opentelemetry-distro and the instrumentations: pip install '.[test]'")
    traces = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["http/protobuf"],
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
    }
    with cluster(folder, env=traces, workers=0) as processes:
        worker = Process(
            "worker", processes.address, "--preload", "dask_otel", *LOOPBACK, folder=folder, before=(str(INSTRUMENT),),
            env=traces | {"OTEL_SERVICE_NAME": "people", "OTEL_BSP_SCHEDULE_DELAY": "200"} | env,
        )  # fmt: skip
        try:
            processes.client.wait_for_workers(1)
            yield processes, worker
        finally:
            worker.stop_or_kill()
        assert not our_errors(worker.log)


def run_example(folder, processes, server, *, requests):
    """Run the example; return the id of its Dask span."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "read_http.py", server.url],
        env=environment({"DASK_SCHEDULER_ADDRESS": processes.address}),
        cwd=folder, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    root, read = done.stdout.split()
    assert int(read) == 5 * requests
    return root


def indented(spans):
    """Service, kind and name of each span, below its parent; and nothing that has no parent but the root."""
    out = []

    def add(parent, depth):
        for each in sorted((each for each in spans if each.parent_id == parent), key=lambda each: each.name):
            kind = each.attributes.get("dask.kind", "")
            out.append(f"{'  ' * depth}{each.resource['service.name']} {kind} {each.name}")
            add(each.span_id, depth + 1)

    add("", 0)
    assert len(out) == len(spans)
    return out


#: Kinds of spans are those of dask-otel; a request has none.
WHOLE = [
    "dask-scheduler span etl",
    "  dask-scheduler group read",
    "    people task read",
    "      people  GET",
    "  dask-scheduler group read_in_threads",
    "    people task read_in_threads",
    "      people  GET",
    "      people  GET",
    "  dask-scheduler group read_later",
    "    people task read_later",
    "      people  GET",
]


def test_a_request_is_below_its_task(tmp_path, jaeger, server):
    """With the instrumentors of threading, asyncio, logging and requests."""
    with instrumented(tmp_path, jaeger, {"OTEL_LOGS_EXPORTER": "none"}) as (processes, _):
        root = run_example(tmp_path, processes, server, requests=4)
        trace_id = dask_otel.trace_id(root)
        spans = jaeger.trace(trace_id, lambda spans: len(spans) >= len(WHOLE))
    assert indented(spans) == WHOLE
    requests = {f"00-{trace_id}-{each.span_id}-01" for each in spans if each.name == "GET"}
    assert set(server.callers) == requests


#: What the page says to set, and how the lines on the console begin: Dask's own, and one of a task.
LOGGING = {
    "nothing": ({}, None, None),
    "OpenTelemetry's variable": (
        {"OTEL_PYTHON_LOG_CORRELATION": "true"},
        r"INFO \[distributed\.worker\] .*Registered to:",
        r"WARNING \[analysis\] .*\[trace_id=(?P<trace>\w{32}) span_id=(?P<span>\w{16}) .* - reading",
    ),
    "Dask's setting": (
        {"DASK_CONFIG": str(EXAMPLES / "logging.yaml")},
        r"distributed\.worker - INFO - \[- -\] +Registered to:",
        r"analysis - WARNING - \[(?P<key>read\S+) (?P<trace>\w{32})\] reading",
    ),
}


@needs_log_records
@pytest.mark.parametrize("how", LOGGING)
def test_log_records_of_tasks(tmp_path, jaeger, victorialogs, server, how):
    variables, dask_line, task_line = LOGGING[how]
    env = variables | {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": victorialogs.endpoint, "OTEL_BLRP_SCHEDULE_DELAY": "200"}
    with instrumented(tmp_path, jaeger, env) as (processes, worker):
        root = run_example(tmp_path, processes, server, requests=4)
        trace_id = dask_otel.trace_id(root)
        spans = jaeger.trace(trace_id, lambda spans: len(spans) >= len(WHOLE))
        records = victorialogs.records("reading", 4)
        of_dask = victorialogs.records('"Registered to:"', 1)
    assert indented(spans) == WHOLE
    ids = {each.span_id: each.name for each in spans if each.attributes.get("dask.kind") == "task"}
    logged = [(each["trace_id"], ids[each["span_id"]]) for each in records]
    tasks = ["read", "read_in_threads", "read_in_threads", "read_later"]
    assert sorted(logged) == [(trace_id, name) for name in tasks]
    assert len(of_dask) == 1
    if dask_line is None:  # what the page warns of
        assert worker.log == ""
        return
    assert re.search(dask_line, worker.log)
    lines = [each.groupdict() for each in re.finditer(task_line, worker.log)]
    assert {each["trace"] for each in lines} == {trace_id}
    assert worker.log.count("reading") == 4
    if "key" in lines[0]:  # OpenTelemetry's handler comes after the filter
        assert sorted(each["key"] for each in lines) == sorted(each["dask_key"] for each in records)
    if "span" in lines[0]:
        assert sorted(ids[each["span"]] for each in lines) == tasks


@needs_log_records
def test_log_records_that_are_not_sent_leave_the_console_as_it_is(tmp_path, jaeger, server):
    env = {"OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION": "false"}
    with instrumented(tmp_path, jaeger, env) as (_, worker):
        worker.wait_for(r" - distributed\.worker - INFO - +Registered to:")
