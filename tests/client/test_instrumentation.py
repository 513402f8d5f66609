"""What an environment that OpenTelemetry cannot use does to clients."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.environment import environment

PROGRAM = """
import dask_otel
from distributed import Client, span
dask_otel.instrument()
dask_otel.instrument()
dask_otel.uninstrument()
with Client(processes=False, n_workers=1, dashboard_address=None) as client, span("x") as id_:
    assert client.submit(sum, [1, 2]).result() == 3
    print(id_, dask_otel.trace_id())
"""


def run(code, **variables):
    command = [sys.executable, "-W", "ignore", "-c", code]
    found = subprocess.run(command, env=environment(variables), capture_output=True, text=True, timeout=90)
    assert found.returncode == 0, found.stderr
    return found.stdout, found.stderr


@pytest.mark.slow
def test_a_propagator_that_is_not_installed():
    out, log = run(PROGRAM, OTEL_PROPAGATORS="tracecontext,nosuch")
    span_id, trace_id = out.split()
    assert (len(span_id), len(trace_id)) == (36, 32)
    (line,) = [each for each in log.splitlines() if "dask-otel" in each]
    assert "Propagator nosuch not found" in line
    assert line.endswith("OTEL_PROPAGATORS must name propagators that are installed")


SYNCHRONOUS = """
import os, sys
import dask, dask.array as da, dask.bag as db
from dask import delayed
from dask.distributed import Client, span, wait, progress
import dask_otel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("web")
dask_otel.instrument()
with Client(processes=False, n_workers=1, dashboard_address=None) as client:
    ways = {
        "compute": lambda: da.ones(6, chunks=2).sum().compute(),
        "dask.compute": lambda: dask.compute(delayed(sum)([1, 2]), db.from_sequence([3, 4]).sum()),
        "dask.persist": lambda: wait(dask.persist(da.ones(4, chunks=2) + 2)),
        "persist": lambda: wait((da.ones(4, chunks=2) + 1).persist()),
        "submit": lambda: client.submit(sum, [5, 6]).result(),
        "map": lambda: client.gather(client.map(str, [7, 8])),
        "get": lambda: client.get({"x": (sum, [9, 10])}, "x"),
        "executor": lambda: list(client.get_executor().map(str, [11, 12])),
    }
    expected = {}
    for name, way in ways.items():
        with tracer.start_as_current_span(name) as current:
            way()
        context = current.get_span_context()
        expected[name] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    roots = {span.name: span.id for span in client.cluster.scheduler.extensions["spans"].root_spans}
    assert roots == {(name,): id_ for name, id_ in expected.items()}, (roots, expected)
    if FORKS:
        with span("before the fork") as outer:
            child = os.fork()
            if not child:
                with span("in the child") as inner:
                    assert inner[:36] == outer[:36]
                sys.stdout.write("child %s\\n" % [each.name for each in exporter.get_finished_spans()[-1:]])
                sys.stdout.flush()
        if not child:
            sys.stdout.write("left %s\\n" % [each.name for each in exporter.get_finished_spans()[-1:]])
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("parent", [each.name for each in exporter.get_finished_spans()[-1:]])
"""


@pytest.mark.slow
def test_every_way_of_synchronous_clients():
    assert run(SYNCHRONOUS.replace("FORKS", "False")) == ("", "")


@pytest.mark.slow
def test_a_fork_inside_a_block():
    """The span is the parent's: it ends there, once."""
    out, _ = run(SYNCHRONOUS.replace("FORKS", "True"))
    assert out.splitlines() == ["child ['in the child']", "left ['in the child']", "parent ['before the fork']"]


FAILING = """
import traceback
from distributed import Client
import dask_otel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

def frames(get):
    try:
        get(client.submit(divmod, 1, 0, pure=False))
    except ZeroDivisionError as error:
        return [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: "")))
trace.set_tracer_provider(provider)
with Client(processes=False, n_workers=1, dashboard_address=None) as client:
    ways = [lambda future: future.result(), client.gather, lambda future: client.compute(future, sync=True)]
    without = list(map(frames, ways))
    dask_otel.instrument()
    with trace.get_tracer("web").start_as_current_span("request"):
        assert list(map(frames, ways)) == without
    print(all(without))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 shows one frame more")
def test_tracebacks_of_synchronous_clients_are_as_short_as_without():
    assert run(FAILING)[0].split() == ["True"]
