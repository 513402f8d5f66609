"""Traces of instrumented clients, on a real cluster: ``with span(...)``, and work under other spans."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import dask
import dask.array as da
import distributed
import pytest
from dask import delayed
from dask._expr import LLGExpr
from distributed import Client, Scheduler, Worker, get_client, span, wait, worker_client
from distributed.utils_test import inc
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from support.both import both, everything, shape
from support.callers import instrumented
from support.clusters import finished
from support.inside import Person
from support.memory import MemoryPlugin

import dask_otel
from dask_otel.client import caller_context, callers, dask_spans
from dask_otel.client.caller_context import span_ids_here
from dask_otel.client.submitting import safety
from dask_otel.identity import segment_id, trace_id

span_imported_before = span
ENVIRONMENT = f"00-{7:032x}-{8:016x}-01"


@pytest.fixture(autouse=True)
def _instrumented(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/where/nightly.py"])
    with instrumented():
        yield


@contextmanager
def current(name, **arguments):
    """A span of the program's own; by default a web request."""
    defaults = {"kind": SpanKind.SERVER, "context": context.Context()}
    with trace.get_tracer("web").start_as_current_span(name, **defaults | arguments) as found:
        yield found


def here():
    """OpenTelemetry's ids of the current span, as a W3C ``traceparent``."""
    found = trace.get_current_span().get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def fail(x):
    raise ValueError("bad")


def work(x):
    with trace.get_tracer("person").start_as_current_span("inner"):
        return x + 1


def links(spans):
    """Names of spans, kinds of their links, and names of what is linked."""
    names = {(each.trace_id, each.span_id): each.name for each in spans}
    return sorted((each.name, kind, names.get((tid, sid))) for each in spans for tid, sid, kind in each.links)


# with span(...)


@both()
async def test_a_dask_span_is_below_the_span_of_the_caller(person, plugin, client, scheduler, worker):
    with span("etl") as outer:
        assert outer == here()
        with span_imported_before("load") as inner:
            assert inner == here()
            await client.submit(work, 1, key="load-1")
        await client.submit(inc, 1, key="own-1")
        assert dask_otel.trace_id() == dask_otel.trace_id(outer) == dask_otel.trace_id([outer, inner]) == outer[3:35]
    assert not trace.get_current_span().get_span_context().is_valid
    assert dask.get_annotations() == {}
    spans = await everything(person, plugin, worker)
    assert shape(spans, "dask.span.path") == [
        "~etl",
        "  etl [span] dask.span.path=etl",
        "    load [span] dask.span.path=etl / load",
        "      load [group] dask.span.path=etl / load",
        "        ~load [task] dask.span.path=etl / load",
        "          ~inner",
        "    own [group] dask.span.path=etl",
        "  ~load",
    ]
    callers = [(each.name, each.attributes) for each in person.spans if "dask.kind" not in each.attributes]
    ids = [(name, attributes.get("dask.span.id")) for name, attributes in callers]
    assert ids == [("inner", None), ("load", inner), ("etl", outer)]
    assert all("dask.submit.count" in attributes for name, attributes in callers if name != "inner")


class Kinds(SpanProcessor):
    def __init__(self):
        self.found = []

    def on_end(self, span):
        self.found.append((span.name, span.kind.name))


def test_service_graphs_are_drawn_from_pairs_of_client_and_server():
    """The scheduler's span for the root is a server's."""
    person = Person(kinds := Kinds())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", person.provider)
        with span("etl", "part"), span("inner"):
            pass
    assert kinds.found == [("inner", "INTERNAL"), ("part", "INTERNAL"), ("etl", "CLIENT")]


@both()
async def test_several_tags_at_once(person, plugin, client, scheduler, worker):
    with current("request"), span("a", "b", "c") as last:
        assert last == here()
        await client.submit(inc, 1, key="x-1")
    assert shape(await everything(person, plugin, worker), "dask.span.path") == [
        "~request",
        "  ~a",
        "    a [span] dask.span.path=a",
        "      b [span] dask.span.path=a / b",
        "        c [span] dask.span.path=a / b / c",
        "          x [group] dask.span.path=a / b / c",
        "    ~b",
        "      ~c",
    ]


@both()
async def test_the_status_is_that_of_the_block(person, plugin, client, scheduler, worker):
    def leave(error):
        with span(type(error).__name__):
            raise error

    for error in (KeyError("k"), SystemExit(3), SystemExit(0), SystemExit(), KeyboardInterrupt(), StopIteration("s")):
        with pytest.raises(type(error)) as caught:
            leave(error)
        assert caught.value is error
    with pytest.raises(asyncio.CancelledError):
        leave(asyncio.CancelledError())

    def generator():
        with span("GeneratorExit"):
            yield

    running = generator()
    next(running)
    running.close()
    with span("work that fails"):
        await wait(client.submit(fail, 1, key="fail-1"))
    found = [
        (each.name, each.status, each.attributes.get("error.type"), each.attributes.get("dask.span.result"))
        for each in person.spans
    ]
    assert found == [
        ("KeyError", "Error", "KeyError", None),
        ("SystemExit", "Error", "SystemExit", None),
        ("SystemExit", "Unset", None, None),
        ("SystemExit", "Unset", None, None),
        ("KeyboardInterrupt", "Error", "KeyboardInterrupt", None),
        ("StopIteration", "Error", "StopIteration", None),
        ("CancelledError", "Unset", None, "cancelled"),
        ("GeneratorExit", "Unset", None, None),
        ("work that fails", "Unset", None, None),
    ]
    assert person.spans[0].status_message == "k"
    assert "in leave" in str(person.spans[0].events)
    assert not any(each.events for each in person.spans[6:])


@both()
async def test_a_block_that_is_left_in_another_context(person, plugin, client, scheduler, worker, caplog):
    """As a dependency of FastAPI with ``yield``: Dask raises an error of its own, as without us."""
    with instrumented():  # twice is once
        pass
    dask_otel.instrument()
    manager = span("x")
    elsewhere = contextvars.copy_context()
    elsewhere.run(manager.__enter__)
    with pytest.raises(ValueError, match="different Context"):
        manager.__exit__(None, None, None)
    assert "Failed to detach" not in caplog.text
    assert [(each.name, each.status) for each in person.spans] == [("x", "Unset")]


@both()
async def test_without_tags_dask_raises_its_own_error(person, plugin, client, scheduler, worker):
    with pytest.raises(ValueError, match="at least one"), span():
        pass
    assert not person.spans


@both()
async def test_interleaved_coroutines(person, plugin, client, scheduler, worker):
    async def one(name):
        with span(name) as id_:
            for n in range(3):
                assert id_ == here()
                await client.submit(inc, n, key=f"{name}-{n}")

    await asyncio.gather(one("a"), one("b"))
    found = shape(await everything(person, plugin, worker), "dask.task.count")
    assert found in [
        [
            line
            for x in order
            for line in (f"~{x}", f"  {x} [span] dask.task.count=3", f"    {x} [group] dask.task.count=3")
        ]
        for order in ("ab", "ba")
    ]


@both()
async def test_several_clusters(person, plugin, client, scheduler, worker):
    """No two schedulers make spans with the same ids."""
    other = MemoryPlugin()
    async with (
        Scheduler(dashboard=False, dashboard_address=":0", port=0) as second,
        Worker(second.address, nthreads=1),
        Client(second.address, asynchronous=True) as remote_client,
    ):
        await other.add_to(second)
        with span("etl") as outer, span("load"):
            with remote_client.as_current():
                assert dask_otel.trace_id() == outer[3:35]  # to ask decides nothing
            for each in (client, remote_client):
                futures = [each.submit(inc, 1, key="x-1")]
                with current("part", context=None):
                    futures.append(each.submit(inc, 1, key="y-1"))
                await each.gather(futures)
        spans = [*await finished(other), *await everything(person, plugin, worker)]
    part = ["      part [span]", "        y [group]", "      x [group]"]
    assert shape(spans) == [
        "~etl",
        *["  etl [span]", "    load [span]", *part] * 2,
        "  ~load",
        *["    ~part"] * 2,
    ]
    assert len({(each.trace_id, each.span_id) for each in spans}) == len(spans)
    assert [each.id == outer for s in (scheduler, second) for each in s.extensions["spans"].root_spans] == [True, False]


# Requests


@both()
async def test_requests_in_one_event_loop_have_their_own_work(person, plugin, client, scheduler, worker):
    async def request(n):
        with current(f"GET /{'ab'[n % 2]}") as mine:
            mine.set_attributes({"http.route": f"/{'ab'[n % 2]}/{{id}}", "http.request.method": "GET"})
            futures = client.map(work, [10 * n, 10 * n + 1])
            bad = client.submit(fail, n) if n == 3 else None
            assert dask_otel.trace_id() == here()[3:35]
            await wait(futures)
            assert bad is None or isinstance(await bad.exception(), ValueError)

    await asyncio.gather(*map(request, range(6)))
    found = shape(await everything(person, plugin, worker), "dask.task.count")
    traces, lines = [], []
    for line in found:
        if not line.startswith(" ") and lines:
            traces, lines = [*traces, lines], []
        lines.append(line)
    traces.append(lines)
    ordinary = [
        [
            f"~GET /{x}",
            f"  GET /{x}/{{id}} [span] dask.task.count=2",
            "    work [group] dask.task.count=2",
            *["      ~work [task]", "        ~inner"] * 2,
        ]
        for x in "ab"
    ]
    failed = [
        "~GET /b",
        "  GET /b/{id} [span] dask.task.count=3 Error: ValueError",
        "    fail [group] dask.task.count=1 Error: ValueError",
        "      fail [task] Error: ValueError",
        *ordinary[1][2:],
    ]
    assert sorted(traces) == sorted([ordinary[0]] * 3 + [ordinary[1]] * 2 + [failed])


@both()
async def test_every_way_to_submit(person, plugin, client, scheduler, worker):
    with current("request") as request:
        expected = here()
        future = client.submit(inc, 1, key="submit-1")
        mapped = client.map(inc, [1, 2], key=["map-1", "map-2"])
        computed = client.compute(delayed(inc)(3, dask_key_name="compute-1"))
        persisted = client.persist(delayed(inc)(4, dask_key_name="persist-1"))
        got = client.get({"get-1": (inc, 5)}, "get-1", sync=False)
        await client.gather([future, *mapped, computed, got, *distributed.futures_of(persisted)])
        await client.run(lambda: None)
        await client.scatter([1, 2])
    (found,) = scheduler.extensions["spans"].root_spans
    assert found.id == expected
    assert shape(await everything(person, plugin, worker), "dask.task.count") == [
        "~request",
        "  request [span] dask.task.count=6",
        "    compute [group] dask.task.count=1",
        "    get [group] dask.task.count=1",
        "    map [group] dask.task.count=2",
        "    persist [group] dask.task.count=1",
        "    submit [group] dask.task.count=1",
    ]
    assert request.attributes["dask.submit.count"] == 5


@both()
async def test_a_result_that_another_request_awaits_stays_where_it_was_requested(
    person, plugin, client, scheduler, worker
):
    with current("first"):
        future = client.submit(inc, 1, key="x-1")
    with current("second"):
        assert await future == 2
    assert shape(await everything(person, plugin, worker)) == [
        "~first",
        "  first [span]",
        "    x [group]",
        "~second",
    ]


@both()
async def test_a_request_inside_a_dask_span(person, plugin, client, scheduler, worker):
    """Another trace: the Dask span counts the work, too, and a link leads to it."""
    with span("service"):
        await client.submit(inc, 1, key="own-1")
        with current("request"):
            await client.submit(inc, 1, key="x-1")
    spans = await everything(person, plugin, worker)
    assert shape(spans, "dask.span.path", "dask.task.count") == [
        "~service",
        "  service [span] dask.span.path=service dask.task.count=2",
        "    own [group] dask.span.path=service dask.task.count=1",
        "~request",
        "  request [span] dask.span.path=service / request dask.task.count=1",
        "    x [group] dask.span.path=service / request dask.task.count=1",
    ]
    assert links(spans) == [("request", "within", "service")]


@both()
async def test_a_dask_span_inside_a_request(person, plugin, client, scheduler, worker):
    """Each is a root of its own in the request's trace."""
    with current("request"):
        await client.submit(inc, 1, key="before-1")
        with span("step"):
            await client.submit(inc, 1, key="x-1")
        await client.submit(inc, 2, key="after-1")
    assert shape(await everything(person, plugin, worker), "dask.span.path") == [
        "~request",
        "  request [span] dask.span.path=request",
        "    after [group] dask.span.path=request",
        "    before [group] dask.span.path=request",
        "  ~step",
        "    step [span] dask.span.path=step",
        "      x [group] dask.span.path=step",
    ]


@both()
async def test_a_span_inside_of_a_dask_span(person, plugin, client, scheduler, worker):
    with span("etl"):
        with current("part", context=None, kind=SpanKind.INTERNAL):
            await client.submit(inc, 1, key="x-1")
            with span("inner"):
                await client.submit(inc, 1, key="y-1")
        await client.submit(inc, 1, key="z-1")
    assert shape(await everything(person, plugin, worker), "dask.span.path") == [
        "~etl",
        "  etl [span] dask.span.path=etl",
        "    part [span] dask.span.path=etl / part",
        "      x [group] dask.span.path=etl / part",
        "    inner [span] dask.span.path=etl / inner",
        "      y [group] dask.span.path=etl / inner",
        "    z [group] dask.span.path=etl",
        "  ~part",
        "    ~inner",
    ]


@both()
async def test_two_clients_under_one_span(person, plugin, client, scheduler, worker):
    async with Client(scheduler.address, asynchronous=True) as other:
        with current("request"):
            await client.submit(inc, 1, key="x-1")
            await other.submit(inc, 1, key="y-1")
            await client.submit(inc, 2, key="z-1")
    spans = await everything(person, plugin, worker)
    assert shape(spans) == [
        "~request",
        "  request [span]",
        "    x [group]",
        "    z [group]",
        "  request [span]",
        "    y [group]",
    ]
    first, second = (each.attributes["dask.span.id"] for each in spans if each.attributes.get("dask.kind") == "span")
    assert second.startswith(first + ";")


@both()
async def test_another_name_under_one_span(person, plugin, client, scheduler, worker):
    with current("GET") as request:
        await client.submit(inc, 1, key="x-1")
        request.update_name("GET /items")
        await client.submit(inc, 2, key="y-1")
    assert shape(await everything(person, plugin, worker)) == [
        "~GET /items",
        "  GET [span]",
        "    x [group]",
        "  GET /items [span]",
        "    y [group]",
    ]


@both()
async def test_threads(person, plugin, client, scheduler, worker):
    """A thread that copies the context is in it; one that does not is in none; OpenTelemetry's alone does, too."""

    def submit(key):
        return client.submit(inc, 1, key=key)

    def with_context(given, key):
        context.attach(given)
        direct = submit("direct-1")
        with span("step"):
            return direct, submit(key)

    with ThreadPoolExecutor(1) as pool, current("request"), span("etl"):
        futures = [
            pool.submit(submit, "lost-1").result(),
            pool.submit(contextvars.copy_context().run, submit, "copied-1").result(),
            *pool.submit(contextvars.Context().run, with_context, context.get_current(), "given-1").result(),
        ]
    await client.gather(futures)
    assert shape(await everything(person, plugin, worker)) == [
        "~request",
        "  ~etl",
        "    etl [span]",
        "      step [span]",
        "        given [group]",
        "      copied [group]",
        "      direct [group]",
        "    ~step",
        "default: lost [span]",
        "  lost [group]",
    ]


# What decides


def remote(*, sampled=True, **arguments):
    """A span of another process, as the current one."""
    flags = trace.TraceFlags(sampled)
    return trace.use_span(trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=True, trace_flags=flags)))


@both()
async def test_a_caller_of_another_process_has_no_name(person, plugin, client, scheduler, worker):
    with remote():
        await client.submit(inc, 1, key="x-1")
        with span("etl"):
            await client.submit(inc, 1, key="y-1")
    found = [*await finished(plugin), *person.spans]
    implicit, explicit, caller = (
        next(each for each in found if (each.name, "dask.kind" in each.attributes) == wanted)
        for wanted in (("nightly.py", True), ("etl", True), ("etl", False))
    )
    assert (implicit.trace_id, implicit.parent_id) == (f"{7:032x}", f"{8:016x}")
    assert implicit.attributes["dask.span.id"].startswith(f"{ENVIRONMENT};")
    assert (caller.trace_id, caller.parent_id) == (f"{7:032x}", f"{8:016x}")
    assert (explicit.trace_id, explicit.parent_id) == (f"{7:032x}", caller.span_id)
    assert len({each.trace_id for each in found}) == 1


@pytest.fixture
def without_sdk(monkeypatch):
    """Only what the environment or another process says counts."""
    monkeypatch.setattr(dask_spans, "_tracer", lambda: None)


@pytest.mark.usefixtures("without_sdk")
@both()
async def test_without_an_sdk_nothing_changes(person, plugin, client, scheduler, worker):
    with trace.NoOpTracerProvider().get_tracer("web").start_as_current_span("request"):
        x = client.submit(inc, 1, key="x-1")
        with span("etl") as id_:
            assert len(id_) == 36
            await client.submit(inc, x, key="y-1")
    assert not scheduler.tasks["x-1"].annotations
    assert shape(await everything(person, plugin, worker)) == [
        "default: x [span]",
        "  x [group]",
        "etl [span]",
        "  y [group]",
    ]


@pytest.mark.usefixtures("without_sdk")
@pytest.mark.parametrize("by", ["environment", "remote"])
def test_without_an_sdk_a_caller_elsewhere_counts(by, monkeypatch):
    @both()
    async def test(person, plugin, client, scheduler, worker):
        if by == "environment":
            monkeypatch.setenv("TRACEPARENT", ENVIRONMENT)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
        with remote() if by == "remote" else span("around"):
            with span("a") as a, span("b") as b:
                assert dask_otel.trace_id() == f"{7:032x}"
                await client.submit(inc, 1, key="x-1")
            await client.submit(inc, 1, key="y-1")
        monkeypatch.delenv("TRACEPARENT", raising=False)
        assert a != b
        assert {each.partition(";")[0] for each in (a, b)} == {ENVIRONMENT}
        found = await finished(plugin)
        assert {each.trace_id for each in found} == {f"{7:032x}"}
        assert {each.attributes["dask.span.path"] for each in found if each.attributes["dask.kind"] == "group"} == (
            {"a / b", "nightly.py"} if by == "remote" else {"around / a / b", "around"}
        )

    test()


@both()
async def test_the_environment_counts_where_no_span_is_current(person, plugin, client, scheduler, worker, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", ENVIRONMENT)
    monkeypatch.setenv("BAGGAGE", "tenant=7")
    x = client.submit(inc, 1, key="x-1")
    with current("request"):
        y = client.submit(inc, 1, key="y-1")
    await client.gather([x, y])
    (id_,) = (span.id for span in scheduler.extensions["spans"].root_spans if span.name == ("nightly.py",))
    assert id_.startswith(f"{ENVIRONMENT};")
    assert scheduler.tasks["x-1"].annotations["otel"] == {"traceparent": ENVIRONMENT, "baggage": "tenant=7"}
    assert scheduler.tasks["y-1"].annotations["otel"].keys() == {"traceparent"}


@both(make=lambda: Person(sampler=ALWAYS_OFF))
async def test_an_unsampled_caller_means_no_spans(person, plugin, client, scheduler, worker):
    with current("request"):
        await client.submit(work, 1, key="x-1")
        with span("etl") as id_:
            assert not int(id_[-2:], 16) & 1
            await client.submit(work, 1, key="y-1")
    assert scheduler.extensions["spans"].spans.keys() >= {id_}
    assert {each.name for each in scheduler.extensions["spans"].root_spans} == {("nightly.py",), ("etl",)}
    assert shape(await everything(person, plugin, worker)) == []


@both(make=lambda: Person(sampler=ParentBased(TraceIdRatioBased(0.5))))
async def test_the_cluster_follows_the_samplers_decision(person, plugin, client, scheduler, worker):
    sampled = []
    for n in range(20):
        with span(f"s{n}"):
            await client.submit(inc, n, key=f"x{n}-1")
            sampled += [f"s{n}"] * trace.get_current_span().get_span_context().trace_flags.sampled
    assert 0 < len(sampled) < 20
    spans = await everything(person, plugin, worker)
    assert sorted(each.name for each in spans if each.attributes.get("dask.kind") == "span") == sorted(sampled)


@both()
async def test_the_carrier_reaches_the_task(person, plugin, client, scheduler, worker):
    def read():
        return dict(baggage.get_all())

    token = context.attach(baggage.set_baggage("tenant", "7"))
    try:
        with current("request", context=None):
            assert await client.submit(read, key="read-1") == {"tenant": "7"}
            with dask.annotate(otel={"own": "annotation"}):
                future = client.submit(inc, 1, key="x-1")
                await future
            assert scheduler.tasks["x-1"].annotations["otel"] == {"own": "annotation"}
        future = client.submit(read, key="read-2")  # without a span
        assert await future == {"tenant": "7"}
        assert scheduler.tasks["read-2"].annotations == {"otel": {"baggage": "tenant=7"}}
    finally:
        context.detach(token)


@both()
async def test_a_default_span_keeps_its_name_to_itself(person, plugin, client, scheduler, worker):
    with current("default"):
        await client.submit(inc, 1, key="x-1")
    await client.submit(inc, 1, key="y-1")
    assert shape(await everything(person, plugin, worker)) == [
        "~default",
        "  default (caller) [span]",
        "    x [group]",
        "default: y [span]",
        "  y [group]",
    ]


# Inside tasks


def nested(x):
    with trace.get_tracer("person").start_as_current_span("inner"), span("step"):
        return get_client().submit(inc, x, key="nested-1").result()


async def nested_coroutine(x):
    with span("step"):
        return await get_client().submit(inc, x, key="nested-1")


def nested_client(x):
    with worker_client() as own:
        return own.submit(inc, x, key="nested-1").result()


@both()
async def test_what_comes_from_a_workers_own_client_is_a_tasks(person, plugin, client, scheduler, worker, monkeypatch):
    """A thread of a task has lost its context; its work is not that of whoever has started the worker."""
    monkeypatch.setenv("TRACEPARENT", ENVIRONMENT)
    async with Client(scheduler.address, asynchronous=True, name="worker") as own:
        await own.submit(inc, 1, key="x-1")
        Worker._initialized_clients.add(own)  # as the worker does that makes it
        await own.submit(inc, 2, key="y-1")
    assert {each.name for each in scheduler.extensions["spans"].root_spans} == {("nightly.py",), ("default",)}


@pytest.mark.parametrize("plugin_on_workers", [True, False])
@pytest.mark.parametrize("function", [nested, nested_coroutine, nested_client])
def test_what_a_task_submits_is_in_its_dask_span(plugin_on_workers, function):
    @both()
    async def test(person, plugin, client, scheduler, worker):
        if not plugin_on_workers:
            await worker.plugin_remove("dask-otel")
        with current("request"):
            assert await client.submit(function, 1, key="outer-1") == 2
        spans = [each for each in await finished(plugin) if each.attributes["dask.kind"] != "task"]
        steps = ["request / step"] * 2 if function is not nested_client else ["request"]
        assert sorted(each.attributes["dask.span.path"] for each in spans) == sorted(["request"] * 2 + steps)
        assert "step" not in {each.name for each in person.spans}
        assert len({each.trace_id for each in spans}) == 1

    test()


@both()
async def test_the_first_client_is_made_inside_a_request(person, plugin, client, scheduler, worker):
    """Its event loop and callbacks have the context of that request; what others submit has theirs."""
    with current("first"):
        own = await Client(scheduler.address, asynchronous=True)
        await own.submit(inc, 1, key="x-1")
    with current("second"):
        await own.submit(inc, 2, key="y-1")
    await own.submit(inc, 3, key="z-1")
    await own.close()
    assert shape(await everything(person, plugin, worker)) == [
        "~first",
        "  first [span]",
        "    x [group]",
        "~second",
        "  second [span]",
        "    y [group]",
        "default: z [span]",
        "  z [group]",
    ]


@both()
async def test_the_span_of_an_outer_block_is_made_current_again(person, plugin, client, scheduler, worker):
    """Its work is in the innermost block, as Dask has it."""
    with span("outer") as outer:
        again = trace.use_span(trace.get_current_span())
        with span("inner") as inner, again:
            await client.submit(inc, 1, key="x-1")
            assert span_ids_here() == (outer, inner)
    assert shape(await everything(person, plugin, worker)) == [
        "~outer",
        "  outer [span]",
        "    inner [span]",
        "      x [group]",
        "  ~inner",
    ]


def test_the_id_of_a_block_is_not_that_of_an_implicit_dask_span(monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Person().provider)
    with span("x") as id_, dask.annotate(span={"name": ("plain",), "ids": ("id",)}):
        around, own = span_ids_here()
        assert around == "id"
        assert own.startswith(f"{id_};")


# Link


@both()
async def test_link(person, plugin, client, scheduler, worker):
    with instrumented(client__context="link"), current("request"):
        await client.submit(inc, 1, key="x-1")
        await client.submit(inc, 2, key="y-1")
        expected = dask_otel.trace_id()
        with span("empty"):
            pass  # there is nothing to be linked with
        with span("etl") as id_, span("inner"):
            assert len(id_) == 36
            await client.submit(inc, 1, key="z-1")
            with current("part", context=None):
                await client.submit(inc, 1, key="p-1")
    dask_otel.instrument()
    spans = await everything(person, plugin, worker)
    assert shape(spans, "dask.span.path") == [
        "~request",
        "  ~empty",
        "  ~etl",
        "    ~inner",
        "      ~part",
        "request [span] dask.span.path=request",
        "  x [group] dask.span.path=request",
        "  y [group] dask.span.path=request",
        "etl [span] dask.span.path=etl",
        "  inner [span] dask.span.path=etl / inner",
        "    part [span] dask.span.path=etl / inner / part",
        "      p [group] dask.span.path=etl / inner / part",
        "    z [group] dask.span.path=etl / inner",
    ]
    assert expected in {each.trace_id for each in spans if each.name == "x"}
    assert [each for each in links(spans) if each[1] == "work"] == [
        ("etl", "work", "etl"),
        ("request", "work", "request"),
    ]


@both()
async def test_link_of_requests_inside_a_dask_span(person, plugin, client, scheduler, worker):
    """As in a service that opens a Dask span when it starts: each request is linked with the trace of its work."""
    with instrumented(client__context="link"), span("service"):
        with current("first"):
            await client.submit(inc, 1, key="x-1")
            with current("part", context=None):
                await client.submit(inc, 1, key="p-1")
        with current("second"), span("etl"):
            await client.submit(inc, 1, key="y-1")
    dask_otel.instrument()
    spans = await everything(person, plugin, worker)
    assert shape(spans) == [
        "~service",
        "~first",
        "  ~part",
        "service [span]",
        "  first [span]",
        "    x [group]",
        "  part [span]",
        "    p [group]",
        "  etl [span]",
        "    y [group]",
        "~second",
        "  ~etl",
    ]
    assert links(spans) == [
        *[("etl", "work", "service"), ("first", "work", "service"), ("part", "work", "service")],
        *[("service", "caller", each) for each in ("etl", "first", "part")],
        ("service", "work", "service"),
    ]


def test_link_of_a_request_inside_what_is_not_sampled(monkeypatch):
    """What is inside a Dask span in a trace that is not sampled would not be sampled either."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Person().provider)
    with instrumented(client__context="link"), span("service") as outer, remote(sampled=False), span("etl") as inner:
        assert inner.startswith(f"00-{7:032x}-")
        assert inner.endswith("-00")
        with current("request"):
            assert span_ids_here() == (outer, inner, here())
            with span("x") as innermost:
                assert innermost == here()


def test_link_of_a_request_inside_what_is_in_a_callers_trace(monkeypatch):
    """An ordinary id would have it in that trace."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Person().provider)
    with instrumented(client__context="link"), span("x") as id_:
        inner = {"name": ("x", "y"), "ids": (id_, ENVIRONMENT)}
        with dask.annotate(span=inner), current("request"):
            assert span_ids_here() == (id_, ENVIRONMENT, here())


@both(make=lambda: Person(sampler=ALWAYS_OFF))
async def test_link_does_not_bring_back_what_is_not_sampled(person, plugin, client, scheduler, worker):
    with instrumented(client__context="link"), current("request"):
        await client.submit(inc, 1, key="x-1")
        with span("etl"):
            await client.submit(inc, 1, key="y-1")
    dask_otel.instrument()
    assert shape(await everything(person, plugin, worker)) == []


@both()
async def test_none(person, plugin, client, scheduler, worker):
    with instrumented(client__context="none"), current("request"):
        await client.submit(inc, 1, key="x-1")
        with span("etl") as id_:
            assert len(id_) == 36
            await client.submit(inc, 1, key="y-1")
    dask_otel.instrument()
    assert shape(await everything(person, plugin, worker)) == [
        "~request",
        "default: x [span]",
        "  x [group]",
        "etl [span]",
        "  y [group]",
    ]


@both()
async def test_a_caller_that_lives_for_days(person, plugin, client, scheduler, worker, monkeypatch):
    """In each period, new work is in another linked trace."""
    with instrumented(client__link_after="1h"), current("kernel") as kernel:
        begin = kernel.start_time
        for hours in (0.5, 0.9, 1.5, 1.9, 2.5):
            monkeypatch.setattr("dask_otel.client.callers.time_ns", lambda hours=hours: begin + int(hours * 3600e9))
            await client.submit(inc, hours, key=f"h{hours}-1")
        with span("cell"):
            await client.submit(inc, 1, key="x-1")
    dask_otel.instrument()
    spans = await everything(person, plugin, worker)
    assert shape(spans) == [
        "~kernel",
        "  kernel [span]",
        "    h0.5 [group]",
        "    h0.9 [group]",
        "  ~cell",
        "kernel [span]",
        "  h1.5 [group]",
        "  h1.9 [group]",
        "kernel [span]",
        "  h2.5 [group]",
        "cell [span]",
        "  x [group]",
    ]
    assert [each for each in links(spans) if each[1] == "work"] == [
        ("cell", "work", "cell"),
        *[("kernel", "work", "kernel")] * 2,
    ]


# Who


@both()
async def test_who_submits(person, plugin, client, scheduler, worker, monkeypatch):
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr("dask_otel.client.caller_context.gethostname", lambda: "laptop")
    with instrumented(capture__user=True):
        await client.submit(inc, 1, key="x-1")
    dask_otel.instrument()
    (found,) = scheduler.extensions["spans"].root_spans
    assert found.metadata["dask-otel"].items() >= {"user": "alice", "host": "laptop"}.items()


# What may go wrong


@both()
async def test_suppressed_instrumentation(person, plugin, client, scheduler, worker):
    for key in ("suppress_instrumentation", context._SUPPRESS_INSTRUMENTATION_KEY):
        with current("request"):
            token = context.attach(context.set_value(key, True))
            with span("etl") as id_:
                assert len(id_) == 36
            await client.submit(inc, 1, key="x-1")
            context.detach(token)
    assert {each.name for each in person.spans} == {"request"}
    assert {each.name for each in scheduler.extensions["spans"].root_spans} == {("default",)}


class Curious(SpanProcessor):
    """Uses Dask itself."""

    def on_start(self, span, parent_context=None):
        with distributed.span("of the processor") as id_:
            assert len(id_) == 36

    def on_end(self, span):
        with distributed.span("of the processor"):
            pass


@both(make=lambda: Person(Curious()))
async def test_a_processor_that_opens_dask_spans(person, plugin, client, scheduler, worker):
    with span("etl"):
        await client.submit(inc, 1, key="x-1")
    assert shape(await everything(person, plugin, worker)) == ["~etl", "  etl [span]", "    x [group]"]


@both()
async def test_a_provider_that_is_replaced(person, plugin, client, scheduler, worker, monkeypatch):
    with span("first"):
        await client.submit(inc, 1, key="x-1")
    other = Person()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", other.provider)
    with span("second"):
        await client.submit(inc, 2, key="y-1")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(shutdown_on_exit=False))  # sends nothing
    with span("third") as id_:
        assert len(id_) == 36
    assert shape([*await finished(plugin), *person.spans, *other.spans]) == [
        "~first",
        "  first [span]",
        "    x [group]",
        "~second",
        "  second [span]",
        "    y [group]",
    ]


@both()
async def test_a_provider_that_is_switched_off(person, plugin, client, scheduler, worker, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    disabled = TracerProvider(shutdown_on_exit=False)
    disabled.add_span_processor(Curious())
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", disabled)
    monkeypatch.setattr(dask_spans, "_tracer", dask_spans.GlobalTracer())
    with span("a") as id_:
        assert len(id_) == 36
    with remote(), span("b") as id_:
        assert id_.startswith(f"{ENVIRONMENT};")


FAULTS = [
    "dask_spans.find_caller",
    "dask_spans.is_in_task",
    "dask_spans.client_settings",
    "dask_spans.is_suppressed",
    "dask_spans._redactor",
    "dask_spans.set_span_in_context",
    "dask_spans.attach",
    "dask_spans.get_current",
    "dask_spans._end",
    "dask_spans.open_span",
    "dask_spans.OpenSpan",
    "caller_context.client_settings",
    "caller_context.find_caller",
    "caller_context.is_in_task",
    "caller_context.tag_of",
    "caller_context.implicit_id",
    "caller_context.carrier_of",
    "caller_context.Submitter",
    "caller_context.service_name",
]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ours_leaves_dask_as_it_is(name):
    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    @both()
    async def test(person, plugin, client, scheduler, worker):
        before = safety.failures.total()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"dask_otel.client.{name}", broken)
            with current("request"):
                assert await client.submit(inc, 1) == 2
                with span("etl"):
                    assert await client.submit(inc, 2) == 3
                    array = da.ones(4, chunks=2)
                    assert await client.compute(array.sum()) == 4
            with span("etl") as id_:
                assert id_
            assert dask.get_annotations() == {}
        assert safety.failures.total() > before
        safety._failures.clear()
        assert all(each.end for each in person.spans)
        names = [each.name for each in person.spans]
        assert names.count("etl") in (0, 2), names

    test()


def test_undone():
    for _ in range(2):
        original, method = distributed.span, Client._graph_to_futures
        dask_otel.instrument()
        assert Client._graph_to_futures is method
        assert distributed.span is original
    dask_otel.uninstrument()
    assert Client._graph_to_futures.__module__ == "distributed.client"
    assert distributed.span.__closure__[0].cell_contents.__module__ == "distributed.spans"
    assert distributed.span.__closure__[0].cell_contents.__code__.co_filename.endswith("spans.py")
    dask_otel.uninstrument()


def test_undone_only_as_far_as_it_is_ours():
    cell = distributed.span.__closure__[0]
    ours = cell.cell_contents

    def others(*tags):
        yield from ours(*tags)

    cell.cell_contents = others
    try:
        dask_otel.uninstrument()
        assert cell.cell_contents is others
    finally:
        cell.cell_contents = ours
        dask_otel.instrument()
        dask_otel.uninstrument()
        cell.cell_contents = ours.__wrapped__


def test_a_lone_root_has_the_ids_of_the_link():
    """Everybody who knows the id of a root can name its trace and its first segment."""
    person = Person()
    with person.provider.get_tracer("web").start_as_current_span("request") as request:
        from dask_otel.client.implicit_spans import link_to_work

        link_to_work(request, "root")
        link_to_work(request, "root")
    (link,) = request.links
    assert (link.context.trace_id, link.context.span_id) == (trace_id("root"), segment_id("root", 0))


def test_threads_that_begin_at_once():
    """One thread's Dask span is not another's."""
    person, found = Person(), []

    def one(n):
        with span(f"s{n}") as id_:
            found.append((id_, here()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", person.provider)
        threads = [threading.Thread(target=one, args=(n,)) for n in range(16)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert len({id_ for id_, _ in found}) == 16
    assert all(id_ == own for id_, own in found)


# What reviewers have found


@both()
async def test_a_block_that_leaves_a_context_behind(person, plugin, client, scheduler, worker):
    with span("x"):
        context.attach(baggage.set_baggage("tenant", "7"))
    assert not trace.get_current_span().get_span_context().is_valid
    await client.submit(inc, 1, key="y-1")
    assert {each.name for each in scheduler.extensions["spans"].root_spans} == {("default",)}


def test_nothing_in_a_task_makes_its_span():
    @both()
    async def test(person, plugin, client, scheduler, worker):
        with current("request"):
            assert len(await client.submit(dask_otel.trace_id, key="id-1")) == 32
            assert await client.submit(nested_client, 1, key="outer-1") == 2
        assert [each.name for each in person.spans] == ["request"]

    test()


def pretend(*tags):
    """Somebody else's patch of ``distributed.span``, above ours."""
    yield from pretend.below(*tags)


def test_undone_below_a_patch_of_somebody_else():
    cell, original = distributed.span.__closure__[0], inspect.unwrap(Client._graph_to_futures)
    pretend.below = cell.cell_contents
    cell.cell_contents = pretend

    @both()
    async def test(person, plugin, client, scheduler, worker):
        dask_otel.uninstrument()
        with span("undone") as id_:
            assert len(id_) == 36
        assert not person.spans
        dask_otel.instrument()
        with span("once") as id_:
            await client.submit(inc, 1, key="x-1")
        assert [(each.name, each.attributes["dask.span.id"]) for each in person.spans] == [("once", id_)]

    try:
        test()
    finally:
        dask_otel.uninstrument()
        cell.cell_contents = pretend.below.__wrapped__
    assert Client._graph_to_futures is original


@both()
async def test_a_graph_without_metadata(person, plugin, client, scheduler, worker):
    """Dask would fail to merge ours with others."""
    with current("request"):
        for key in ("x-1", "x-2"):
            futures = client._graph_to_futures(LLGExpr({key: (inc, 1)}), [key], span_metadata={})
            assert await futures[key] == 2
            assert await client.submit(inc, 1, key=f"y-{key}") == 2


@pytest.mark.parametrize("mode", ["parent", "link"])
def test_spans_of_other_makers(mode):
    class Slotted(trace.NonRecordingSpan):
        name, start_time, __hash__ = "odd", None, None

        def is_recording(self):
            return True

        add_link = None

    @both()
    async def test(person, plugin, client, scheduler, worker):
        odd = Slotted(trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(1)))
        token = context.attach(trace.set_span_in_context(odd))
        with dask.config.set({"otel.client.context": mode}):
            await client.submit(inc, 1, key="x-1")
        context.detach(token)
        (root,) = scheduler.extensions["spans"].root_spans
        assert root.name == ("odd",)
        assert scheduler.tasks == {} or "otel" in scheduler.tasks["x-1"].annotations
        safety._failures.clear()  # that a link failed

    test()


class Binds(SpanProcessor):
    """As processors that put something on log records."""

    bound = contextvars.ContextVar("bound", default="")

    def __init__(self):
        self.tokens = {}

    def on_start(self, span, parent_context=None):
        self.tokens[span] = self.bound.set(span.name)

    def on_end(self, span):
        self.bound.reset(self.tokens.popitem()[1])


def test_what_processors_bind_is_there_in_the_block():
    person = Person(Binds())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", person.provider)
        with span("a"):
            assert Binds.bound.get() == "a"
            with span("b"):
                assert Binds.bound.get() == "b"
            assert Binds.bound.get() == "a"
        assert Binds.bound.get() == ""
    assert [each.name for each in person.spans] == ["b", "a"]


def test_a_thousand_tags():
    person = Person()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", person.provider)
        with span(*["t"] * 1500):
            pass
    assert len(person.spans) == 1500


@both()
async def test_the_span_of_a_block_that_is_handed_on_by_hand(person, plugin, client, scheduler, worker):
    """A thread that makes it current is in the block, whether the block itself has submitted anything or not."""

    def submit(parent, key):
        with trace.use_span(parent):
            return client.submit(inc, 1, key=key)

    with ThreadPoolExecutor(1) as pool, span("outer"), span("x"):
        parent = trace.get_current_span()
        first = pool.submit(contextvars.Context().run, submit, parent, "thread-1").result()
        second = client.submit(inc, 2, key="own-1")
        with span("y"):
            third = submit(parent, "inner-1")
        with dask.annotate(span={"name": ("plain",), "ids": ("id",)}), trace.use_span(parent):
            outside, implicit = span_ids_here()  # as any other span
            assert (outside, implicit.startswith(f"{here()};")) == ("id", True)
    await client.gather([first, second, third])
    assert shape(await everything(person, plugin, worker)) == [
        "~outer",
        "  outer [span]",
        "    x [span]",
        "      y [span]",
        "        inner [group]",
        "      own [group]",
        "      thread [group]",
        "  ~x",
        "    ~y",
    ]


@both()
async def test_a_client_that_does_not_know_its_scheduler_yet(person, plugin, client, scheduler, worker):
    with span("x") as id_:
        early = Client(scheduler.address, asynchronous=True)
        future = early.submit(inc, 1, key="x-1")
        await early
        await early.gather([future, early.submit(inc, 2, key="y-1")])
        await early.close()
    (found,) = scheduler.extensions["spans"].root_spans
    assert found.id == id_


def test_a_current_span_that_raises_does_not_hide_the_dask_span():
    class Raises(trace.NonRecordingSpan):
        def get_span_context(self):
            raise RuntimeError("odd")

    with dask.annotate(span={"name": ("x",), "ids": ("root",)}):
        token = context.attach(trace.set_span_in_context(Raises(trace.INVALID_SPAN_CONTEXT)))
        assert dask_otel.trace_id() == f"{trace_id('root'):032x}"
        context.detach(token)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 shows one frame more")
@both()
async def test_tracebacks_are_as_short_as_without(person, plugin, client, scheduler, worker):
    async def frames():
        with pytest.raises(ValueError, match="bad") as caught:
            await client.submit(fail, 1, pure=False)
        return [each.name for each in caught.traceback]

    with current("request"):
        instrumented = await frames()
    dask_otel.uninstrument()
    assert instrumented == await frames()
    dask_otel.instrument()


class Text(str):
    """As Django's and others' text."""

    __slots__ = ()


@both()
async def test_nothing_is_sent_with_a_type_of_its_own(person, plugin, client, scheduler, worker, monkeypatch):
    propagator = propagate.get_global_textmap()

    class Writes(type(propagator)):
        def inject(self, carrier, *args, **kwargs):
            carrier[Text("own")] = Text("value")

    monkeypatch.setattr(callers, "get_global_textmap", lambda: Writes([]))
    monkeypatch.setattr(caller_context, "service_name", lambda: Text("web"))
    with current(Text("request")):
        addition = caller_context.caller_context(client, {})
    assert b"Text" not in pickle.dumps(addition)
    assert addition.annotations == {"otel": {"own": "value"}}
    assert addition.metadata == {"dask-otel": {"service": "web"}}


@both()
async def test_spans_that_nobody_sends_are_no_callers(person, plugin, client, scheduler, worker, monkeypatch):
    """A provider without processors, as with ``OTEL_TRACES_EXPORTER=none``; its remote parent is one."""
    nobody = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", nobody)
    with current("request"):
        await client.submit(inc, 1, key="x-1")
        with span("etl") as id_:
            assert len(id_) == 36
    with remote(), nobody.get_tracer("web").start_as_current_span("request"):
        await client.submit(inc, 1, key="y-1")
    found = await finished(plugin)
    assert sorted((each.name, each.trace_id == f"{7:032x}") for each in found) == [
        ("default: x", False),
        ("nightly.py", True),
        ("x", False),
        ("y", True),
    ]


class Returns(trace.Tracer):
    """Gives out the current span."""

    def start_span(self, *args, **kwargs):
        return trace.get_current_span()

    def start_as_current_span(self, *args, **kwargs):
        raise NotImplementedError


@both()
async def test_a_tracer_that_gives_out_the_current_span(person, plugin, client, scheduler, worker, monkeypatch):
    with current("request") as request:
        monkeypatch.setattr(dask_spans, "_tracer", lambda: Returns())
        with span("etl") as id_:
            assert id_.startswith(here() + ";")
        assert request.is_recording()


def test_a_provider_with_an_odd_resource(monkeypatch):
    class Odd(TracerProvider):
        resource = None

        def __getattribute__(self, name):
            if name == "resource":
                raise RuntimeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Odd(shutdown_on_exit=False))
    assert callers.service_name() == ""


def test_what_a_signal_handler_raises_is_the_programs():
    """As Celery's limit of the time of a task."""

    class TimeLimitError(Exception):
        pass

    def limit(*args):
        raise TimeLimitError

    class Slow(SpanProcessor):
        def on_start(self, span, parent_context=None):
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, limit)
    failures = safety.failures.total()
    try:
        person = Person(Slow())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trace, "_TRACER_PROVIDER", person.provider)
            with pytest.raises(TimeLimitError), span("x"):
                pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert safety.failures.total() == failures
    assert dask.get_annotations() == {}
    assert context.get_current() == {}


class Interrupts(SpanProcessor):
    """As a signal handler that raises while a span starts or ends."""

    error = KeyboardInterrupt

    def on_start(self, span, parent_context=None):
        if span.name == "start":
            raise self.error

    def on_end(self, span):
        if span.name == "end":
            raise self.error


def test_interrupts():
    person = Person(Interrupts())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", person.provider)
        for name in ("start", "end"):
            with pytest.raises(KeyboardInterrupt), span("around", name):
                pass
            assert not dask_spans.is_busy()
            assert context.get_current() == {}
            assert dask.get_annotations() == {}
        with span("after") as id_:
            assert id_ == here()
    assert [each.name for each in person.spans] == ["around", "around", "after"]
