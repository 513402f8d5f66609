"""From a request to its tasks: programs that submit work, a real cluster and a real Jaeger; whole traces from there.

The programs and the workers are started by ``opentelemetry-instrument``; nothing in the programs is about traces.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from opentelemetry import baggage, context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from packaging.version import Version
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from support.backends import free_port, skip
from support.environment import environment
from support.http_server import Server, serve
from support.notebooks import shown_below
from support.processes import LOOPBACK, PATIENCE, Process, cluster, our_errors
from support.trees import whole

from dask_otel.cli.waterfall import waterfall

try:
    import httpx
    import uvicorn  # noqa: F401
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
except ImportError:
    httpx = None

pytestmark = [pytest.mark.backend, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMMAND = str(BIN / "opentelemetry-instrument")
REQUESTS = 50


@pytest.fixture(scope="module", autouse=True)
def _packages():
    if httpx is None:
        skip("needs FastAPI, uvicorn, httpx and their instrumentations: pip install '.[test,instrumented,callers]'")


@pytest.fixture(scope="module")
def read_server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def sends(jaeger, read_server) -> dict[str, str]:
    """The environment of all programs: traces go to Jaeger."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["http/protobuf"],
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION": "false",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "READ_URL": read_server.url,
        # Whether a step takes long is a matter of chance. Where steps are spans, a test says so.
        "DASK_OTEL__CLIENT__PHASE_THRESHOLD": "1 hour",
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory, sends) -> Iterator[str]:
    """The address of a cluster with two workers."""
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, env=sends, workers=0) as processes:
        workers = [
            Process(
                "worker", "--no-nanny", "--nthreads", "4", "--preload", "dask_otel", processes.address, *LOOPBACK,
                folder=folder, before=[COMMAND],
                # Some versions' instrumentation of logging asks each task that fails for the ids of its span.
                env=sends | {"OTEL_SERVICE_NAME": "workers", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "logging"},
            )
            for _ in range(2)
        ]  # fmt: skip
        try:
            processes.client.wait_for_workers(2)
            yield processes.address
        finally:
            for worker in workers:
                worker.stop_or_kill()
    logs = [each.log for each in (processes.scheduler, *workers)]
    assert [our_errors(log) for log in logs] == [[]] * 3


@contextmanager
def service(name: str, folder: Path, address: str, sends: dict[str, str], **variables: str) -> Iterator[str]:
    """A web service as an operator starts it; yields its address."""
    port = free_port()
    env = sends | {"OTEL_SERVICE_NAME": "web", "DASK_SCHEDULER_ADDRESS": address} | variables
    process = Process(
        f"support.{name}:app", "--host", "127.0.0.1", "--port", f"{port}",
        folder=folder, before=[COMMAND], module="uvicorn", env=env,
    )  # fmt: skip
    try:
        process.wait_for("Application startup complete")
        process.wait_for("Uvicorn running on")
        yield f"http://127.0.0.1:{port}"
        assert process.is_alive
    finally:
        process.stop_or_kill()
    # A request that fails has its traceback there, with frames of ours; dask-otel itself logs nothing.
    assert "dask-otel" not in process.log


@pytest.fixture(scope="module")
def async_service(tmp_path_factory, address, sends) -> Iterator[str]:
    with service("async_service", tmp_path_factory.mktemp("service"), address, sends) as url:
        yield url


class Answer(NamedTuple):
    """Of a web service."""

    status: int
    content: Any
    #: The trace of the request.
    trace: str


class Browser:
    """An HTTP client that OpenTelemetry instruments: the top of each request's trace."""

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(resource=Resource({"service.name": "browser"}), shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))

    def get(self, *urls: str) -> list[Answer]:
        """Send requests, all at once."""
        return asyncio.run(self._get(urls))

    async def _get(self, urls: tuple[str, ...]) -> list[Answer]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=PATIENCE, limits=limits, trust_env=False) as client:
            HTTPXClientInstrumentor.instrument_client(client, tracer_provider=self._provider)
            answers = await asyncio.gather(*(client.get(url) for url in urls))
        return [
            Answer(
                each.status_code,
                each.json() if each.is_success else each.text,
                each.request.headers["traceparent"].split("-")[1],
            )
            for each in answers
        ]

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture(scope="module")
def browser(jaeger) -> Iterator[Browser]:
    own = Browser(jaeger.endpoints["grpc"])
    yield own
    own.close()


def sent(spans):
    """Without the spans that the instrumentation of ASGI makes of each part of an answer, and FastAPI of its steps."""
    return [each for each in spans if not each.name.endswith((" http send", " http receive"))]


def trace_of(jaeger, trace_id, expected, parent=""):
    """The trace, when it has as many spans as are expected; all of it must be that."""
    spans = sent(jaeger.trace(trace_id, lambda spans: len(sent(spans)) >= len(expected)))
    assert whole(spans, parent) == expected
    return spans


def is_unknown(jaeger, trace_id):
    try:
        urlopen(f"{jaeger.ui}/api/v3/traces/{trace_id}", timeout=10).close()
    except HTTPError as error:
        return error.code == 404
    return False


def indented(*lines, by=2):
    return [f"{' ' * by}{line}" for line in lines]


def request_trace(name, *below):
    return ["browser  GET", f"  web  {name}", *indented(*below, by=4)]


def reads(name, number=1, *, others=()):
    """A Dask span whose tasks read so many times."""
    tasks = ["    workers task read", "      workers  GET"] * number
    return [f"dask-scheduler span {name}", "  dask-scheduler group read", *tasks, *others]


def read_by(read_server, trace_id):
    """The paths that tasks of a trace have read."""
    return sorted(path for path, caller in read_server.received if caller and caller.split("-")[1] == trace_id)


def test_each_of_many_requests_has_its_own_tasks(jaeger, async_service, browser, read_server):
    """They share one client, and all call one function."""
    numbers = {f"many-{item}": item % 3 + 1 for item in range(REQUESTS)}
    answers = browser.get(*(f"{async_service}/items/{item}?reads={number}" for item, number in numbers.items()))
    assert [(each.status, each.content) for each in answers] == [(200, 5 * each) for each in numbers.values()]
    name = "GET /items/{item}"
    for (item, number), answer in zip(numbers.items(), answers, strict=True):
        expected = request_trace(name, *reads(name, number, others=["  dask-scheduler group sum"]))
        spans = trace_of(jaeger, answer.trace, expected)
        (segment,) = [each for each in spans if each.attributes.get("dask.kind") == "span"]
        assert segment.attributes["dask.task.completed"] == number + 1
        assert read_by(read_server, answer.trace) == [f"/{item}/{each}" for each in range(number)]
        (root,) = [each for each in spans if not each.parent_id]
        assert root.start <= segment.start <= segment.end <= root.end
    # What would have arrived later, in another request's trace.
    for answer, number in zip(answers, numbers.values(), strict=True):
        trace_of(jaeger, answer.trace, request_trace(name, *reads(name, number, others=["  dask-scheduler group sum"])))


def test_a_request_that_fails(jaeger, async_service, browser):
    (failed, other) = browser.get(f"{async_service}/failures/none", f"{async_service}/items/beside")
    assert (failed.status, other.status) == (500, 200)
    spans = trace_of(
        jaeger,
        failed.trace,
        [
            "browser  GET Error",
            "  web  GET /failures/{item} Error",
            "    dask-scheduler span GET /failures/{item} Error",
            "      dask-scheduler group fail Error",
            "        dask-scheduler task fail Error",
        ],
    )
    (segment,) = [each for each in spans if each.attributes.get("dask.kind") == "span"]
    assert segment.attributes["error.type"] == "LookupError"
    name = "GET /items/{item}"
    trace_of(jaeger, other.trace, request_trace(name, *reads(name, others=["  dask-scheduler group sum"])))


def test_a_dask_span_inside_a_request(jaeger, async_service, browser):
    """``dask_otel.trace_id()`` is the trace of the request, inside of it and outside."""
    (answer,) = browser.get(f"{async_service}/parts/one")
    assert answer.content == [answer.trace, answer.trace, 5]
    below = reads("part")
    trace_of(jaeger, answer.trace, request_trace("GET /parts/{item}", "web  part", *indented(*below)))


def test_futures_that_another_request_awaits(jaeger, async_service, browser):
    (first,) = browser.get(f"{async_service}/started/shared")
    (second,) = browser.get(f"{async_service}/awaited/shared")
    assert second.content == 5
    trace_of(jaeger, first.trace, request_trace("GET /started/{item}", *reads("GET /started/{item}")))
    trace_of(jaeger, second.trace, request_trace("GET /awaited/{item}"))


def test_baggage_reaches_the_task(jaeger, async_service, browser):
    token = context.attach(baggage.set_baggage("tenant", "a b"))
    try:
        with_baggage, *_ = browser.get(f"{async_service}/tenants")
    finally:
        context.detach(token)
    (without,) = browser.get(f"{async_service}/tenants")
    assert (with_baggage.content, without.content) == ("a b", None)


def test_work_in_a_linked_trace(jaeger, async_service, browser):
    """Linked from the cluster's trace to the request, and back as far as the request's span can say it."""
    (answer,) = browser.get(f"{async_service}/linked/one")
    (caller,) = [
        each
        for each in trace_of(jaeger, answer.trace, request_trace("GET /linked/{item}"))
        if each.name == "GET /linked/{item}"
    ]
    ((linked, segment, _),) = caller.links
    assert linked != answer.trace
    (root,) = [each for each in trace_of(jaeger, linked, reads("GET /linked/{item}")) if not each.parent_id]
    assert root.span_id == segment
    assert [each[:2] for each in root.links] == [(answer.trace, caller.span_id)]


UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"


def test_a_caller_that_is_not_sampled(jaeger, async_service, browser, read_server):
    """Its tasks still know whose they are: what they call is not sampled either."""
    answer = httpx.get(f"{async_service}/items/unsampled", headers={"traceparent": UNSAMPLED}, timeout=PATIENCE)
    assert answer.json() == 5
    (after,) = browser.get(f"{async_service}/items/sampled")
    name = "GET /items/{item}"
    trace_of(jaeger, after.trace, request_trace(name, *reads(name, others=["  dask-scheduler group sum"])))
    trace = UNSAMPLED.split("-")[1]
    assert is_unknown(jaeger, trace)
    (caller,) = [caller for path, caller in read_server.received if path == "/unsampled/0"]
    assert caller.split("-")[1] == trace
    assert not int(caller.split("-")[3], 16) & 1


def test_requests_in_threads_of_which_the_first_makes_the_client(
    jaeger, tmp_path, address, sends, browser, read_server
):
    """What comes later is not in the first request's trace, although its context is that of the client's threads."""
    numbers = {f"threads-{item}": item % 3 + 1 for item in range(12)}
    with service("threads_service", tmp_path, address, sends) as url:
        (first,) = browser.get(f"{url}/first")
        answers = browser.get(*(f"{url}/reports/{item}?reads={number}" for item, number in numbers.items()))
        (background,) = browser.get(f"{url}/background")
    assert [first.content, *(each.content for each in answers)] == [5, *(5 * each for each in numbers.values())]
    name = "GET /reports/{report}"
    for (item, number), answer in zip(numbers.items(), answers, strict=True):
        trace_of(jaeger, answer.trace, request_trace(name, *reads(name, number)))
        assert read_by(read_server, answer.trace) == [f"/{item}/{each}" for each in range(number)]
    (caller,) = [caller for path, caller in read_server.received if path == "/background"]
    own = caller.split("-")[1]
    assert own not in {first.trace, background.trace, *(each.trace for each in answers)}
    trace_of(jaeger, own, reads("default: read"))
    trace_of(jaeger, background.trace, request_trace("GET /background"))
    trace_of(jaeger, first.trace, request_trace("GET /first", *reads("GET /first")))


def test_the_spans_that_fastapi_makes_itself(jaeger, tmp_path, address, sends, browser):
    """Without OpenTelemetry's instrumentation, the current span has one name for all routes. Dask's has the route."""
    pytest.importorskip("fastapi.telemetry", reason="an older FastAPI makes no spans")
    without = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi,asgi"}
    with service("async_service", tmp_path, address, sends, **without) as url:
        item, part = browser.get(f"{url}/items/one", f"{url}/parts/one")
    steps = ["  web  fastapi.dependencies", "  web  fastapi.endpoint", "  web  fastapi.serialization"]
    name = "GET /items/{item}"
    below = indented(*reads(name, others=["  dask-scheduler group sum"]), by=4)
    request = [f"web  {name}", *steps[:2], *below, *steps[2:]]
    trace_of(jaeger, item.trace, ["browser  GET", *indented(*request)])
    assert part.content == [part.trace, part.trace, 5]
    below = ["    web  part", *indented(*reads("part"), by=6)]
    request = ["web  GET /parts/{item}", *steps[:2], *below, *steps[2:]]
    trace_of(jaeger, part.trace, ["browser  GET", *indented(*request)])


#: What a script does, by its argument. Each line of output is the id of a trace.
SCRIPT = """
import os, sys
import httpx
from distributed import Client, span
from opentelemetry import trace
import dask_otel
from support.request_tasks import read

url = os.environ["READ_URL"]
tracer = trace.get_tracer("script")
with Client() as client:
    for case in sys.argv[1:]:
        if case == "no span":
            client.submit(read, f"{url}none").result()
        elif case == "span":
            with span("report"):
                print(dask_otel.trace_id())
                client.submit(read, f"{url}span").result()
        elif case == "own span":
            with tracer.start_as_current_span("nightly") as own:
                print(f"{own.get_span_context().trace_id:032x}")
                client.submit(read, f"{url}own").result()
        elif case == "span inside":
            with tracer.start_as_current_span("request"), span("part"):
                print(dask_otel.trace_id())
                client.submit(read, f"{url}inside").result()
        elif case == "span around":
            with span("nightly"):
                print(dask_otel.trace_id())
                for each in range(2):
                    with tracer.start_as_current_span("request"):
                        client.submit(read, f"{url}around-{each}").result()
        else:  # the address of a web service
            with span("caller"):
                print(dask_otel.trace_id())
                httpx.get(f"{case}/items/called", timeout=60)
"""


def run_script(folder, address, sends, *arguments, **variables):
    """Run a program as a batch system does, with OpenTelemetry's command; return the lines of its output."""
    env = sends | {"OTEL_SERVICE_NAME": "script", "DASK_SCHEDULER_ADDRESS": address} | variables
    done = subprocess.run(
        [COMMAND, sys.executable, *arguments],
        env=environment(env), cwd=folder, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_a_script(jaeger, tmp_path, address, sends, read_server):
    """With spans of Dask, of its own, and both ways of both."""
    cases = ["span", "own span", "span inside", "span around"]
    traces = dict(zip(cases, run_script(tmp_path, address, sends, "-c", SCRIPT, *cases, "no span"), strict=True))
    assert len({*traces.values()}) == 4
    trace_of(jaeger, traces["span"], ["script  report", *indented(*reads("report"))])
    trace_of(jaeger, traces["own span"], ["script  nightly", *indented(*reads("nightly"))])
    part = ["script  part", *indented(*reads("part"))]
    trace_of(jaeger, traces["span inside"], ["script  request", *indented(*part)])
    trace_of(jaeger, traces["span around"], AROUND)
    (caller,) = [caller for path, caller in read_server.received if path == "/none"]
    trace_of(jaeger, caller.split("-")[1], reads("default: read"))


#: Within one trace, the cluster's spans are below each other as Dask's spans are.
AROUND = [
    "script  nightly",
    "  dask-scheduler span nightly",
    *(f"    {line}" for line in reads("request") * 2),
    "  script  request",
    "  script  request",
]

TRACEPARENT = "00-{trace}-00f067aa0ba902b7-01"


def test_a_script_that_a_batch_system_starts(jaeger, tmp_path, address, sends):
    """Its work is below the span that the environment names; without a span it has the name of the service."""
    trace, parent = "1" + os.urandom(16).hex()[1:], os.urandom(8).hex()
    variables = {"TRACEPARENT": f"00-{trace}-{parent}-01", "TRACESTATE": "batch=1", "BAGGAGE": "tenant=a"}
    cases = ["no span", "span", "own span"]
    found, own = run_script(tmp_path, address, sends, "-c", SCRIPT, *cases, **variables)
    assert found == trace
    expected = ["script  report", *indented(*reads("report")), *reads("script")]
    trace_of(jaeger, trace, expected, parent)
    # OpenTelemetry's SDK does not read the environment: a span of the script's own is the top of a trace.
    assert own != trace
    trace_of(jaeger, own, ["script  nightly", *indented(*reads("nightly"))])


#: Two clients under one span; spans that have been open for so long that their work is in linked traces.
CALLERS = """
import sys, time
from distributed import Client
from opentelemetry import trace
import dask_otel

tracer = trace.get_tracer("script")
with Client() as first, Client() as second:
    with tracer.start_as_current_span("shared") as span:
        print(dask_otel.trace_id())
        first.submit(abs, -1, key="a-1").result()
        second.submit(abs, -2, key="a-2").result()
    for start in [int((time.time() - age) * 1e9) for age in (70, 140)]:
        with tracer.start_as_current_span("kernel", start_time=start) as span:
            print(f"{span.get_span_context().trace_id:032x}")
            second.submit(abs, start, key=f"c-{start}").result()  # the current client, of whose work trace_id() speaks
            print(dask_otel.trace_id())
"""


def test_who_submits(jaeger, tmp_path, address, sends):
    """Each client has its own Dask span under one span; a program that lives for days has linked traces."""
    settings = {"DASK_OTEL__CAPTURE__USER": "true", "LOGNAME": "alice", "DASK_OTEL__CLIENT__LINK_AFTER": "1m"}
    shared, *long = run_script(tmp_path, address, sends, "-c", CALLERS, **settings)
    work = ["  dask-scheduler span shared", "    dask-scheduler group a"]
    spans = trace_of(jaeger, shared, ["script  shared", *work, *work])
    tops = [each for each in spans if each.attributes.get("dask.kind") == "span"]
    assert len({each.attributes["dask.span.id"].partition(";")[0] for each in tops}) == 1
    assert len({each.attributes["dask.client.id"] for each in tops}) == 2
    said = [{name: each.attributes[name] for name in WHO} for each in tops]
    assert said == [dict(zip(WHO, ("script", "alice", socket.gethostname()), strict=True))] * 2
    for own, linked in (long[:2], long[2:]):
        (kernel,) = trace_of(jaeger, own, ["script  kernel"])
        spans = trace_of(jaeger, linked, ["dask-scheduler span kernel", "  dask-scheduler group c"])
        (top,) = (each for each in spans if not each.parent_id)
        assert kernel.links == ((linked, top.span_id, "work"),)
        assert top.links == ((own, kernel.span_id, "caller"),)


WHO = ("service.peer.name", "dask.client.user", "dask.client.host")

#: Requests, and a Dask span that stays open while the scheduler forgets it: another one has its name by then.
LONG = """
import contextvars, time
from distributed import Client, span
from opentelemetry import trace
import dask_otel

def spans(dask_scheduler):
    return sorted(dask_scheduler.extensions["spans"].spans)

def again():
    with span("open"):
        print(dask_otel.trace_id())
        client.submit(abs, -2, key="other-1").result()

def request(n):
    with trace.get_tracer("script").start_as_current_span("request"):
        print(dask_otel.trace_id())
        client.submit(abs, n, pure=False).result()

with Client() as client, span("open") as own:
    print(dask_otel.trace_id())
    client.submit(abs, -1, key="before-1").result()
    contextvars.Context().run(again)
    for n in range(20):
        contextvars.Context().run(request, n)
    while len(client.run_on_scheduler(spans)) > 2:  # the latest one of each name stays
        time.sleep(0.1)
    assert own not in client.run_on_scheduler(spans)
    client.submit(abs, -3, key="after-1").result()
    print(len(client.scheduler_info()["workers"]), len(client.run_on_scheduler(spans)))
"""


def test_a_cluster_that_forgets(jaeger, tmp_path, sends):
    """The traces of what was forgotten are whole, also of what comes back; no worker is lost."""
    forgets = sends | {"DASK_OTEL__FORGET_SPANS": "5s"}
    with cluster(tmp_path, env=forgets, workers=2) as processes:
        opened, other, *requests, left = run_script(tmp_path, processes.address, forgets, "-c", LONG)
        assert left == "2 3"
        log = processes.scheduler
    assert our_errors(log.log) == []
    segment = "  dask-scheduler span open"
    parts = [line for each in ("before", "after") for line in (segment, f"    dask-scheduler group {each}")]
    spans = trace_of(jaeger, opened, ["script  open", *parts])
    assert sorted(each.attributes.get("dask.span.segment", -1) > 10**12 for each in spans) == [False] * 4 + [True]
    trace_of(jaeger, other, ["script  open", "  dask-scheduler span open", "    dask-scheduler group other"])
    assert len({*requests}) == 20
    for each in requests:
        trace_of(jaeger, each, ["script  request", "  dask-scheduler span request", "    dask-scheduler group abs"])


#: Collections that are computed, and futures that are gathered.
PHASES = """
import dask
from distributed import Client, span
import dask_otel

with Client() as client, span("report"):
    print(dask_otel.trace_id())
    loaded = [dask.delayed(abs, pure=True)(-each) for each in range(3)]
    assert dask.delayed(sum)(loaded).compute() == 3
    with span("futures"):
        assert sum(client.gather(client.map(float, range(3)))) == 3
"""


ALL_STEPS = [
    "script  report",
    "  script  futures",
    "    script  gather results",
    "    script  serialize graph",
    "    script  submit graph",
    "    script  wait for results",
    "  script  gather results",
    "  script  optimize graph",
    "  dask-scheduler span report",
    "    dask-scheduler group abs",
    "    dask-scheduler span futures",
    "      dask-scheduler group float",
    "      dask-scheduler phase take in graph",
    "    dask-scheduler group sum",
    "    dask-scheduler phase take in graph",
    "  script  serialize graph",
    "  script  submit graph",
    "  script  wait for results",
]


def test_phases(jaeger, tmp_path, sends):
    """All steps are spans here, however short: of the program, and of the scheduler."""
    all_steps = sends | {"DASK_OTEL__CLIENT__PHASE_THRESHOLD": "0s"}
    with cluster(tmp_path, env=all_steps, workers=1) as processes:
        (trace,) = run_script(tmp_path, processes.address, all_steps, "-c", PHASES)
        spans = trace_of(jaeger, trace, ALL_STEPS)
    attributes = Counter(name for each in spans for name in each.attributes)
    assert (attributes["dask.graph.size"], attributes["dask.gather.size"]) == (4, 2)


def test_a_request_of_a_script_that_is_in_a_dask_span(jaeger, tmp_path, address, sends, async_service):
    """The request's work is in another process than the Dask span around the request, and in the same trace."""
    (trace,) = run_script(tmp_path, address, sends, "-c", SCRIPT, async_service)
    name = "GET /items/{item}"
    below = ["script  GET", *indented(f"web  {name}", *indented(*reads(name, others=["  dask-scheduler group sum"])))]
    trace_of(jaeger, trace, ["script  caller", *indented(*below)])


#: What a notebook does that was not started with OpenTelemetry's command.
SET_UP = """
import dask_otel
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
dask_otel.instrument()
"""
CELLS = [
    "import os, dask_otel; from distributed import Client, span; from support.request_tasks import read",
    "client = Client()",
    "with span('training'):\n    training = dask_otel.trace_id()\n"
    "    client.submit(read, os.environ['READ_URL'] + 'notebook').result()",
    "client.submit(read, os.environ['READ_URL'] + 'later', pure=False).result()",
    "client.close()",
    "training",
]


@pytest.mark.parametrize("way", ["command", "cell"])
def test_a_notebook(jaeger, tmp_path, address, sends, read_server, way):
    """Each cell with a span is a trace; work without a span is in the cluster's own."""
    if way == "command" and Version(version("opentelemetry-instrumentation")) < Version("0.63b0"):
        pytest.skip("older versions do not reach the kernels that Jupyter starts")
    env = sends | {"OTEL_SERVICE_NAME": "notebook", "DASK_SCHEDULER_ADDRESS": address}
    if way == "command":
        *_, last = shown_below(CELLS, tmp_path, COMMAND, **env)
    else:
        *_, last = shown_below([SET_UP, *CELLS], tmp_path, **env)
    trace = last[0]["text/plain"].strip("'")
    trace_of(jaeger, trace, ["notebook  training", *indented(*reads("training"))])
    *_, caller = [caller for path, caller in read_server.received if path == "/later"]
    trace_of(jaeger, caller.split("-")[1], reads("default: read"))


PICTURE = ROOT / "docs/request.svg"
REPORT = [
    "browser  GET",
    "  web  GET /report/{id}",
    "    dask-scheduler span GET /report/{id}",
    "      dask-scheduler group load",
    *["        workers task load", "          workers  GET"] * 4,
    "      dask-scheduler group summarise",
    "    web  publish",
    "      dask-scheduler span publish",
    "        dask-scheduler group store",
    "          workers task store",
    "            workers  GET",
    "      web  wait for results",
    "    web  wait for results",
]


def test_the_picture_of_the_page(jaeger, tmp_path, address, sends, browser):
    """``DASK_OTEL_TEST_DRAW=1`` draws it again. The server takes its time, so that waiting is a phase."""
    with service("async_service", tmp_path, address, sends, DASK_OTEL__CLIENT__PHASE_THRESHOLD="50ms") as url:
        (answer,) = browser.get(f"{url}/report/7")
    is_drawn = lambda each: each.attributes.get("dask.phase", "wait") == "wait"  # noqa: E731 -- others may be slow
    enough = lambda spans: sum(map(is_drawn, sent(spans))) >= len(REPORT)  # noqa: E731
    spans = [each for each in sent(jaeger.trace(answer.trace, enough)) if is_drawn(each)]
    assert whole(spans) == REPORT
    named = [replace(each, name=f"{each.name} · {each.resource['service.name']}") for each in spans]
    if "DASK_OTEL_TEST_DRAW" in os.environ:
        draw(named)
    shown = unescape(" ".join(re.findall(r"<text[^>]*>(.*?)</text>", PICTURE.read_text(encoding="utf-8"))))
    assert Counter(re.findall(r"[└├]─\s+(?:◦\s+)?(.*? · [\w-]+)", shown.replace("\xa0", " "))) == Counter(
        each.name for each in named if each.parent_id
    )


def draw(spans):
    console = Console(file=io.StringIO(), record=True, width=100)
    console.print(waterfall(spans, console.width))
    # Without the font of another server.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(PICTURE), title="GET /report/7", code_format=form, unique_id="request")
