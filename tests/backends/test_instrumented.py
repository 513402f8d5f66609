"""Workers that OpenTelemetry instruments, with nannies: requests and log records of tasks, in real backends."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import dask
import pytest
from distributed import Client, span, wait
from opentelemetry.trace import TraceFlags
from packaging.version import Version
from support.backends import skip
from support.http_server import Server, serve
from support.processes import LOOPBACK, Process, cluster, our_errors
from support.trees import whole

import dask_otel

pytestmark = [pytest.mark.backend, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/read_http.py"
PAGES = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("recipes.md", "inside.md"))
#: By the first word, how the pages start a worker: by OpenTelemetry's command, or with its preload.
COMMANDS = {
    line.split()[0]: line for line in re.findall(r"^(?:opentelemetry-instrument )?dask worker .*$", PAGES, re.MULTILINE)
}
try:
    INSTRUMENTATION = Version(version("opentelemetry-instrumentation"))
except PackageNotFoundError:
    INSTRUMENTATION = None


@pytest.fixture(scope="module", autouse=True)
def _instrumentation():
    if INSTRUMENTATION is None:
        skip("needs opentelemetry-distro and the instrumentations: pip install '.[test,instrumented]'")


def since(least: str) -> bool:
    """Whether the instrumentations are of this version, which the pages name, or a later one."""
    assert least in PAGES
    return INSTRUMENTATION is not None and Version(least) <= INSTRUMENTATION


#: Until OpenTelemetry's instrumentation of logging sends records, the SDK does, if asked to.
SEND_LOGS = {} if since("0.61b0") else {"OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"}
SEND_NO_LOGS = {"OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION": "false"}


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as own:
        yield own


@contextmanager
def instrumented(folder: Path, jaeger, how, env, *, scheduler=None) -> Iterator[tuple[str, Process]]:
    """The address of a cluster that sends to Jaeger, and its worker with a nanny."""
    traces = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["http/protobuf"],
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
    }
    before, _, arguments = COMMANDS[how].partition("dask ")
    with cluster(folder, env=traces | (scheduler or {}), workers=0) as processes:
        worker = Process(
            *arguments.split()[:-1], processes.address, *LOOPBACK,
            # Older versions reach the process that they start and not its children.
            *(() if not before or since("0.63b0") else ("--no-nanny",)),
            folder=folder,
            before=[str(Path(sys.executable).with_name(each)) for each in before.split()],
            env=traces | {"OTEL_SERVICE_NAME": "people", "OTEL_BSP_SCHEDULE_DELAY": "200"} | env,
        )  # fmt: skip
        try:
            yield processes.address, worker
        finally:
            worker.stop_or_kill()
        assert not our_errors(worker.log)


@pytest.fixture
def run_example(monkeypatch, capsys, server):
    """Runs the example as a program would; returns the id of its Dask span."""

    def run(address):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), server.url])
        with dask.config.set({"scheduler-address": address}):
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        root, read = capsys.readouterr().out.split()
        assert int(read) == 5 * 4
        return root

    return run


#: Asyncio's instrumentor makes spans only of the functions and coroutines that it is given.
ASYNCIO = {"OTEL_PYTHON_ASYNCIO_TO_THREAD_FUNCTION_NAMES_TO_TRACE": "read"}
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
    "      people  asyncio to_thread-read",
]


class Console(NamedTuple):
    """How the lines on the console begin: Dask's own, and one of a task."""

    dask: str | None
    task: str | None


NO_LINE = Console(None, None)
AS_ALWAYS = Console(r" - distributed\.worker - INFO - +Registered to:", r"^reading")
WITH_IDS = Console(
    r"INFO \[distributed\.worker\] .*Registered to:",
    r"WARNING \[analysis\] .*\[trace_id=(?P<trace>\w{32}) span_id=(?P<span>\w{16}) .* - reading",
)
OWN_FORMAT = Console(
    r"distributed\.worker - INFO - \[- -\] +Registered to:",
    r"analysis - WARNING - \[(?P<key>read\S+) (?P<trace>\w{32})\] reading",
)
CORRELATION = {"OTEL_PYTHON_LOG_CORRELATION": "true"}
SETTING = {"DASK_CONFIG": str(ROOT / "examples/logging.yaml")}
#: The page's table: how the worker is started and what is set, what the console shows, and whether Dask's own records
#: are sent.
LOGGING = {
    "command": ("opentelemetry-instrument", {}, NO_LINE, True),
    "command, OpenTelemetry's variable": ("opentelemetry-instrument", CORRELATION, WITH_IDS, True),
    "command, Dask's setting": ("opentelemetry-instrument", SETTING, OWN_FORMAT, True),
    "preload": ("dask", {}, Console(AS_ALWAYS.dask, None), False),
    "preload, OpenTelemetry's variable": ("dask", CORRELATION, Console(AS_ALWAYS.dask, WITH_IDS.task), False),
    "preload, Dask's setting": ("dask", SETTING, OWN_FORMAT, True),
}


@pytest.mark.parametrize("row", LOGGING)
def test_requests_and_log_records_of_tasks(tmp_path, jaeger, victorialogs, server, run_example, row):
    """With the instrumentors of threading, asyncio, logging and requests."""
    how, variables, console, sends_dask = LOGGING[row]
    env = variables | SEND_LOGS | ASYNCIO
    env |= {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": victorialogs.endpoint, "OTEL_BLRP_SCHEDULE_DELAY": "200"}
    with instrumented(tmp_path, jaeger, how, env) as (address, worker):
        root = run_example(address)
        trace_id = dask_otel.trace_id(root)
        spans = jaeger.trace(trace_id, lambda spans: len(spans) >= len(WHOLE))
        # Dask's is sent before those of tasks.
        found = victorialogs.records('reading or "Registered to:"', 4 + sends_dask)
    assert whole(spans) == WHOLE
    callers = [caller.split("-") for _, caller in server.received]
    assert {(trace, caller) for _, trace, caller, _ in callers} == {
        (trace_id, each.span_id) for each in spans if each.name == "GET"
    }
    assert all(int(flags, 16) & TraceFlags.SAMPLED for *_, flags in callers)  # some versions add that ids are random
    ids = {each.span_id: each.name for each in spans if each.attributes.get("dask.kind") == "task"}
    records = [each for each in found if each["_msg"] == "reading"]
    assert len(found) == len(records) + sends_dask
    logged = [(each["trace_id"], ids[each["span_id"]]) for each in records]
    tasks = ["read", "read_in_threads", "read_in_threads", "read_later"]
    assert sorted(logged) == [(trace_id, name) for name in tasks]
    if console.dask is None:  # what the page warns of
        assert worker.log == ""
        return
    assert len(re.findall(console.dask, worker.log)) == 1
    if console.task is None:
        assert "reading" not in worker.log
        return
    lines = [each.groupdict() for each in re.finditer(console.task, worker.log)]
    assert [each["trace"] for each in lines] == [trace_id] * 4
    assert worker.log.count("reading") == 4
    if "key" in lines[0]:  # OpenTelemetry's handler comes after the filter
        assert sorted(each["key"] for each in lines) == sorted(each["dask_key"] for each in records)
    if "span" in lines[0]:
        assert sorted(ids[each["span"]] for each in lines) == tasks


def test_without_the_instrumentors_of_threading_and_asyncio(tmp_path, jaeger, server, run_example):
    """Own threads are outside of the trace then. Nor are log records sent, which leaves the console as it is."""
    env = SEND_NO_LOGS | ASYNCIO | {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "threading,asyncio"}
    with instrumented(tmp_path, jaeger, "opentelemetry-instrument", env) as (address, worker):
        root = run_example(address)
        trace_id = dask_otel.trace_id(root)
        expected = [*WHOLE[:5], *WHOLE[8:-1]]
        spans = jaeger.trace(trace_id, lambda spans: len(spans) >= len(expected))
        own = [caller for _, caller in server.received if trace_id not in caller]
        requests = [jaeger.trace(caller.split("-")[1], bool) for caller in own]
    assert whole(spans) == expected
    assert [whole(each) for each in requests] == [["people  GET"]] * 2
    assert len(re.findall(AS_ALWAYS.dask, worker.log)) == 1
    assert len(re.findall(AS_ALWAYS.task, worker.log, re.MULTILINE)) == 4


SECRET = "xyzzy"


def test_what_is_not_captured_is_in_no_span(tmp_path, jaeger):
    """Neither in the scheduler's nor in the worker's; the spans of a person's own code are the person's."""

    def xyzzy(fail=False):
        from opentelemetry import trace

        class XyzzyError(Exception):
            pass

        trace.get_current_span().set_attribute("used", True)
        with trace.get_tracer("own").start_as_current_span("own"):
            pass
        if fail:
            raise XyzzyError(SECRET)
        return type(SECRET, (), {})()

    strict = {"DASK_OTEL__CAPTURE__PRESET": "strict"}
    env = strict | SEND_NO_LOGS
    with instrumented(tmp_path, jaeger, "dask", env, scheduler=strict) as (address, _), Client(address) as client:
        with span(f"{SECRET} etl") as root, dask.annotate(note=SECRET):
            futures = [client.submit(xyzzy), client.submit(xyzzy, True, key=f"{SECRET}-2")]
        wait(futures)
        assert [each.status for each in futures] == ["finished", "error"]
        trace_id = dask_otel.trace_id(root)
        spans = jaeger.trace(trace_id, lambda spans: len(spans) >= 6)
        with urlopen(f"{jaeger.ui}/api/v3/traces/{trace_id}", timeout=10) as answer:  # with the events, as it is stored
            stored = answer.read().decode()
    tasks = [each for each in spans if each.attributes.get("dask.kind") == "task"]
    assert [each.resource["service.name"] for each in tasks] == ["people"] * 2
    assert sorted(each.status for each in tasks) == ["Error", "Unset"]
    assert SECRET not in stored.lower()
    assert "own" in stored
