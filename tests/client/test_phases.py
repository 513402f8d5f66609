"""Phases of submissions and of waiting in the caller's trace, on real clusters: whole traces, and Dask's behaviour."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager
from contextvars import copy_context
from time import time_ns
from types import SimpleNamespace

import dask
import dask.array
import distributed.client
import distributed.utils
import pytest
from dask import delayed
from distributed import Client, Event, LocalCluster, as_completed, get_client, secede, wait, worker_client
from distributed.utils import nbytes
from distributed.utils_test import gen_cluster, inc
from distributed.worker_state_machine import FreeKeysEvent
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from support.inside import provider_of

from dask_otel.client import phase_spans, phases
from dask_otel.client.phase_spans import MAX_PHASE_SPANS
from dask_otel.client.submitting import NOTHING, add_to_submissions
from dask_otel.safety import Safety

DEFAULT = object()
OF_SUBMISSION = ["serialize graph", "submit graph"]
OF_RESULTS = ["wait for results", "gather results"]
#: On a caller's span, of one submission whose result was fetched.
SUMS = {
    "dask.serialize.time", "dask.graph.size", "dask.submit.time", "dask.submit.count", "dask.wait.time",
    "dask.gather.time", "dask.gather.size",
}  # fmt: skip


class Program:
    """A program with a tracer provider."""

    def __init__(self, **provider):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **provider)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self):
        return [*self.exporter.get_finished_spans()]


@contextmanager
def measured(threshold="0s", *, person=DEFAULT, failures=0, **settings):
    """Measure the clients of this process, with a program's provider; None if it has none."""
    person, safety = Program() if person is DEFAULT else person, Safety()
    written = {"phase-threshold": threshold, **settings}
    with provider_of(person), dask.config.set({f"otel.client.{name}": value for name, value in written.items()}):
        undo = phases.install(safety)
        try:
            yield person
        finally:
            undo()
    assert len(safety.failures) == failures, safety.failures


def request(name="request"):
    """The caller's span."""
    return trace.get_tracer("person").start_as_current_span(name)


def by_start(person):
    return sorted(person.spans, key=lambda each: (each.start_time, each.end_time))


def tree(person):
    """One line a span, in the order of their starts, children indented."""
    spans = by_start(person)

    def lines(parent, depth):
        for each in spans:
            if (each.parent and each.parent.span_id) == parent:
                yield "  " * depth + each.name
                yield from lines(each.context.span_id, depth + 1)

    return [*lines(None, 0)]


def below(*names):
    """The trace of a request with these phases."""
    return ["request", *(f"  {name}" for name in names)]


def named(person, name):
    (found,) = (each for each in person.spans if each.name == name)
    return found


async def in_thread(address, function):
    """Call a function with a synchronous client, in a thread."""

    def call():
        with Client(address, set_as_default=False) as client:
            return function(client)

    return await asyncio.to_thread(call)


@contextmanager
def sent(client):
    """The sizes of the graphs that a client has sent."""
    sizes, original = [], client._send_to_scheduler

    def send(message):
        if message["op"] == "update-graph":
            sizes.append(sum(map(nbytes, message["expr_ser"].frames)))
        original(message)

    client._send_to_scheduler = send
    yield sizes
    client._send_to_scheduler = original


def hold(x=0, name="hold"):
    """A task that ends when the event is set."""
    Event(name).wait()
    return x


def fail():
    raise ValueError("no such thing")


# Whole traces


@gen_cluster(client=True)
async def test_a_computation_has_all_phases_one_after_the_other(client, scheduler, *workers):
    with measured() as person, sent(client) as sizes, request():
        assert await client.compute(dask.array.ones((20, 20), chunks=10).sum()) == 400
    assert tree(person) == below("optimize graph", *OF_SUBMISSION, *OF_RESULTS)
    caller, *parts = by_start(person)
    assert [dict(each.attributes) for each in parts] == [
        {"dask.phase": "optimize"},
        {"dask.phase": "serialize", "dask.graph.size": sizes[0]},
        {"dask.phase": "submit"},
        {"dask.phase": "wait"},
        {"dask.phase": "gather", "dask.gather.size": 8},
    ]
    assert {each.kind for each in parts} == {SpanKind.INTERNAL}
    assert {each.instrumentation_scope.name for each in parts} == {"dask_otel"}
    assert dict(caller.attributes) == {}
    optimize, serialize, submit, waiting, gather = parts
    assert optimize.end_time == serialize.start_time
    assert serialize.end_time == submit.start_time
    assert submit.end_time <= waiting.start_time
    assert waiting.end_time == gather.start_time
    assert caller.start_time <= optimize.start_time
    assert gather.end_time <= caller.end_time


def _compute(client):
    return dask.compute(delayed(inc)(1), scheduler=client)[0]


def _persist(client):
    return dask.persist(delayed(inc)(1), scheduler=client)[0].compute(scheduler="synchronous")


WAYS = {
    "submit": (lambda client: client.submit(inc, 1).result(), [*OF_SUBMISSION, *OF_RESULTS], 2),
    "map": (lambda client: client.gather(client.map(inc, range(3))), [*OF_SUBMISSION, *OF_RESULTS], [1, 2, 3]),
    "get": (lambda client: client.get({"x": (inc, 1)}, "x"), [*OF_SUBMISSION, *OF_RESULTS], 2),
    "dask.compute": (_compute, ["optimize graph", *OF_SUBMISSION, *OF_RESULTS], 2),
    "Client.compute": (
        lambda client: client.compute(delayed(inc)(1), sync=True),
        ["optimize graph", *OF_SUBMISSION, *OF_RESULTS],
        2,
    ),
    "Client.persist": (
        lambda client: len(client.persist([delayed(inc)(1)])),
        ["optimize graph", *OF_SUBMISSION],
        1,
    ),
    "wait": (
        lambda client: len(distributed.client.wait([client.submit(inc, 1)]).done),
        [*OF_SUBMISSION, "wait for results"],
        1,
    ),
    "exception": (
        lambda client: str(client.submit(fail).exception()),
        [*OF_SUBMISSION, "wait for results"],
        "no such thing",
    ),
    "traceback": (
        lambda client: client.submit(fail).traceback() is None,
        [*OF_SUBMISSION, "wait for results"],
        False,
    ),
    "as_completed": (
        lambda client: [future.status for future in as_completed(client.map(inc, range(2)), loop=client.loop)],
        [*OF_SUBMISSION, *["wait for results"] * 3],
        ["finished", "finished"],
    ),
    "as_completed with results": (
        lambda client: [
            result for _, result in as_completed([client.submit(inc, 1)], loop=client.loop, with_results=True)
        ],
        [*OF_SUBMISSION, *["wait for results"] * 2],
        [2],
    ),
    "scatter": (lambda client: client.gather(client.scatter([1])), OF_RESULTS, [1]),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_submit_and_to_wait(way):
    """With a synchronous client; the call is in the thread that has the caller's span."""
    use, expected, result = WAYS[way]

    @gen_cluster()
    async def run(scheduler, *workers):
        def call(client):
            with client.as_current(), request():
                return use(client)

        with measured() as person:
            assert await in_thread(scheduler.address, call) == result
        assert tree(person) == below(*expected)

    run()


async def _all(client):
    return [future.key async for future in as_completed([client.submit(inc, 1, key="x")])]


ASYNC_WAYS = {
    "await": (lambda client: _awaited(client.submit(inc, 1)), OF_RESULTS, 2),
    "result": (lambda client: client.submit(inc, 1).result(), OF_RESULTS, 2),
    "gather": (lambda client: client.gather(client.map(inc, range(3))), OF_RESULTS, [1, 2, 3]),
    "gather, direct": (lambda client: client.gather(client.map(inc, range(3)), direct=True), OF_RESULTS, [1, 2, 3]),
    "as_completed": (_all, ["wait for results"] * 2, ["x"]),
}


async def _awaited(future):
    return await future


@pytest.mark.parametrize("way", ASYNC_WAYS)
def test_each_way_to_wait_with_an_asynchronous_client(way):
    use, expected, result = ASYNC_WAYS[way]

    @gen_cluster(client=True)
    async def run(client, scheduler, *workers):
        with measured() as person, request():
            assert await use(client) == result
            assert phases._call.get() is None
        assert tree(person) == below(*OF_SUBMISSION, *expected)

    run()


@gen_cluster(client=True)
async def test_short_phases_are_sums_on_the_callers_span(client, scheduler, *workers):
    with measured("1h") as person, sent(client) as sizes, request():
        for number in range(300):
            client.submit(inc, number)
        assert await client.submit(inc, -1) == 0
    assert tree(person) == ["request"]
    attributes = person.spans[0].attributes
    assert set(attributes) == SUMS
    assert attributes["dask.submit.count"] == len(sizes) == 301
    assert attributes["dask.graph.size"] == sum(sizes)
    assert attributes["dask.gather.size"] == 28
    assert {name: type(value) for name, value in attributes.items()} == {
        name: float if name.endswith("time") else int for name in SUMS
    }
    times = [value for name, value in attributes.items() if name.endswith("time")]
    assert 0 < sum(times) < (person.spans[0].end_time - person.spans[0].start_time) / 1e9


@gen_cluster(client=True)
async def test_a_span_and_its_sums_are_everything(client, scheduler, *workers):
    """Beyond a number of spans, phases are summed up; what has a span is not in the sums."""
    with measured() as person, sent(client) as sizes:
        with request():
            for number in range(MAX_PHASE_SPANS):
                client.submit(inc, number)
        with request("another"):
            client.submit(inc, -1)
    parts = [each for each in person.spans if "dask.phase" in each.attributes]
    caller = named(person, "request")
    first = [each for each in parts if each.parent.span_id == caller.context.span_id]
    assert len(first) == MAX_PHASE_SPANS
    assert len(parts) == MAX_PHASE_SPANS + 2
    assert set(caller.attributes) == {
        "dask.serialize.time", "dask.graph.size", "dask.submit.time", "dask.submit.count",
    }  # fmt: skip
    assert caller.attributes["dask.submit.count"] == MAX_PHASE_SPANS / 2
    of_spans = sum(each.attributes.get("dask.graph.size", 0) for each in first)
    assert caller.attributes["dask.graph.size"] + of_spans == sum(sizes[:-1])


@gen_cluster(client=True)
async def test_the_number_of_tasks_is_said_where_it_is_known(client, scheduler, *workers):
    with measured() as person, request():
        client.map(inc, range(7))
    assert dict(named(person, "submit graph").attributes) == {"dask.phase": "submit", "dask.graph.task.count": 7}


@gen_cluster(client=True)
async def test_a_persons_spans_are_never_below_a_phase(client, scheduler, *workers):
    class Pickled:
        def __reduce__(self):
            with request("pickling"):
                return (int, ())

    with measured() as person, request():
        await client.submit(inc, Pickled(), pure=False)
    assert tree(person) == below(OF_SUBMISSION[0], "pickling", OF_SUBMISSION[1], *OF_RESULTS)


# Waiting


async def _next(client, futures):
    completed = as_completed(futures, loop=client.loop)
    return await anext(completed)


WAITS = {
    "result": (lambda client, futures: futures[0].result(), OF_RESULTS),
    "exception": (lambda client, futures: futures[0].exception(), ["wait for results"]),
    "gather": (lambda client, futures: client.gather(futures), OF_RESULTS),
    "wait": (lambda client, futures: client.sync(distributed.client._wait, futures), ["wait for results"]),
    "as_completed": (_next, ["wait for results"]),
}


@pytest.mark.parametrize("way", WAITS)
def test_waiting_lasts_until_the_tasks_have_ended(way):
    use, expected = WAITS[way]

    @gen_cluster(client=True)
    async def run(client, scheduler, *workers):
        futures = [client.submit(hold)]
        with measured() as person, request():
            waiting = asyncio.ensure_future(use(client, futures))
            await asyncio.sleep(0)
            released = time_ns()
            await Event("hold").set()
            await waiting
        assert tree(person) == below(*expected)
        waited = named(person, "wait for results")
        assert waited.start_time <= released <= waited.end_time

    run()


@pytest.mark.parametrize("way", [name for name in WAITS if name != "as_completed"])
def test_waiting_with_a_synchronous_client_lasts_until_the_tasks_have_ended(way):
    use, expected = WAITS[way]

    @gen_cluster(client=True)
    async def run(client, scheduler, *workers):
        loop, begins = asyncio.get_running_loop(), asyncio.Event()

        def call(other):
            future = other.submit(hold)
            with request():
                loop.call_soon_threadsafe(begins.set)
                use(other, [future])

        with measured() as person:
            called = asyncio.create_task(in_thread(scheduler.address, call))
            await begins.wait()
            released = time_ns()
            await Event("hold").set()
            await called
        assert tree(person) == below(*expected)
        assert released <= named(person, "wait for results").end_time

    run()


@gen_cluster(client=True)
async def test_waiting_begins_when_a_call_is_awaited(client, scheduler, *workers):
    with measured() as person, request():
        made = client.gather(client.map(inc, range(3)))
        await wait(client.submit(inc, 7))
        awaited = time_ns()
        await made
    assert tree(person) == below(*2 * OF_SUBMISSION, "wait for results", *OF_RESULTS)
    assert awaited <= by_start(person)[-2].start_time


@gen_cluster(client=True)
async def test_other_tasks_of_the_event_loop_do_not_count_for_a_call(client, scheduler, *workers):
    """What Dask starts for a call has its context."""

    async def wait_for_all():
        await distributed.utils.All([asyncio.sleep(0)])

    with measured(), request():
        call = phases._Call(phase_spans.Phases(Safety()).caller())
        token = phases._call.set(call)
        await wait_for_all()
        await asyncio.create_task(wait_for_all())
        phases._call.reset(token)
    assert [each.kind.value for each in call.finish(fetches=True, is_done=True)] == ["wait", "gather"]


@gen_cluster(client=True)
async def test_a_gather_that_computes_lost_results_again_waits_twice(client, scheduler, *workers):
    """Dask finds out that results are gone when it fetches them."""
    future = client.submit(inc, 1, key="lost")
    await wait(future)
    with measured() as person, request():
        # The workers forget it, and the scheduler does not know.
        for worker in workers:
            worker.handle_stimulus(FreeKeysEvent(keys=["lost"], stimulus_id="test"))
        assert await client.gather([future]) == [2]
    assert tree(person) == below(*OF_RESULTS, *OF_RESULTS)


@gen_cluster(client=True)
async def test_a_failed_task_ends_waiting_at_once(client, scheduler, *workers):
    """Also if another one, which comes first, still runs."""
    held = client.submit(hold)
    with measured() as person:
        with request(), pytest.raises(ValueError, match="no such thing"):
            await client.gather([held, client.submit(fail)])
        with request(), pytest.raises(ValueError, match="no such thing"):
            await client.submit(fail, pure=False)
        assert held.status == "pending"
    await Event("hold").set()
    assert tree(person) == 2 * below(*OF_SUBMISSION, "wait for results")


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("way", ["result", "wait"])
def test_a_timeout_is_dasks_own(way, is_async):
    """What is raised is what Dask raises."""

    def use(client, future):
        if way == "result":
            return future.result(timeout="10ms")
        return client.sync(distributed.client._wait, [future], timeout=0.01)

    @gen_cluster(client=True)
    async def run(client, scheduler, *workers):
        async def asynchronous():
            with request(), pytest.raises(asyncio.TimeoutError) as raised:
                await use(client, client.submit(hold, pure=False))
            return raised

        def synchronous(other):
            with request(), pytest.raises(asyncio.TimeoutError) as raised:
                use(other, other.submit(hold, pure=False))
            return raised

        async def call():
            return await (asynchronous() if is_async else in_thread(scheduler.address, synchronous))

        expected = await call()
        with measured() as person:
            found = await call()
        assert found.type is expected.type
        assert tree(person) == below(*OF_SUBMISSION, "wait for results")
        await Event("hold").set()

    run()


@gen_cluster(client=True)
async def test_a_cancelled_call(client, scheduler, *workers):
    future = client.submit(hold)
    with measured() as person, request():
        waiting = asyncio.ensure_future(client.gather([future]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert phases._call.get() is None
    await Event("hold").set()
    assert tree(person) == below("wait for results")
    assert await future == 0


@gen_cluster(client=True)
async def test_a_call_that_is_never_awaited_and_one_that_is_thrown_away(client, scheduler, *workers):
    future = client.submit(hold)
    with measured() as person, request():
        client.gather([future]).close()
        begun = client.gather([future])
        begun.send(None)
        copy_context().run(begun.close)
    await Event("hold").set()
    assert tree(person) == below("wait for results")
    await future


@gen_cluster(client=True)
async def test_requests_in_one_event_loop_have_their_own_phases(client, scheduler, *workers):
    async def serve(number):
        with request(f"request {number}"):
            assert await client.submit(inc, number) == number + 1

    with measured() as person:
        await asyncio.gather(*map(serve, range(10)))
    for number in range(10):
        caller = named(person, f"request {number}")
        own = [each.name for each in person.spans if each.parent and each.parent.span_id == caller.context.span_id]
        assert sorted(own) == sorted([*OF_SUBMISSION, *OF_RESULTS])


@gen_cluster(client=True)
async def test_what_dask_waits_for_in_the_background_is_not_the_callers(client, scheduler, *workers):
    with measured() as person:
        with request():
            completed = as_completed(client.map(inc, range(5)), with_results=True)
        assert sorted([result async for _, result in completed]) == [1, 2, 3, 4, 5]
    assert tree(person) == below(*OF_SUBMISSION)


def test_a_span_that_has_ended_is_left_alone(caplog):
    @gen_cluster(client=True)
    async def run(client, scheduler, *workers):
        with measured("1h") as person:
            with request():
                waiting = asyncio.ensure_future(client.submit(hold).result())
                await asyncio.sleep(0)
            await Event("hold").set()
            await waiting
        assert set(person.spans[0].attributes) == SUMS - {"dask.wait.time", "dask.gather.time", "dask.gather.size"}

    run()
    assert "ended span" not in caplog.text


# Where nothing is recorded


@contextmanager
def suppressed():
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    yield
    detach(token)


async def _use(client):
    assert await client.compute(delayed(inc)(1)) == 2
    assert await client.gather(client.map(inc, range(3))) == [1, 2, 3]
    assert len([each async for each in as_completed(client.map(inc, range(3)))]) == 3


@gen_cluster(client=True)
async def test_without_a_current_span_nothing_is_recorded(client, scheduler, *workers):
    with measured() as person:
        await _use(client)
    assert person.spans == []


@gen_cluster(client=True)
async def test_an_unsampled_span_has_no_phases(client, scheduler, *workers):
    with measured(person=Program(sampler=ALWAYS_OFF)) as person, request():
        await _use(client)
        assert phase_spans.Phases(Safety()).caller() is None
    assert person.spans == []


@gen_cluster(client=True)
async def test_suppressed_instrumentation_has_no_phases(client, scheduler, *workers):
    with measured() as person, request(), suppressed():
        await _use(client)
    assert [(each.name, dict(each.attributes)) for each in person.spans] == [("request", {})]


@gen_cluster(client=True)
async def test_no_phases_if_the_setting_says_so(client, scheduler, *workers):
    with measured(context="none") as person, request():
        await _use(client)
    assert [(each.name, dict(each.attributes)) for each in person.spans] == [("request", {})]


@gen_cluster(client=True)
async def test_a_task_has_no_phases(client, scheduler, *workers):
    """With each way to get a client in it, also below a span of the task's own."""

    def nested():
        with request("in a task"):
            with worker_client() as inner:
                inner.submit(inc, 1).result()
            secede()
            return get_client().submit(inc, 2).result()

    async def nested_async():
        with request("in a task"):
            return await get_client().submit(inc, 3)

    with measured() as person:
        assert await client.gather([client.submit(nested), client.submit(nested_async)]) == [3, 4]
    assert [(each.name, dict(each.attributes)) for each in person.spans] == 2 * [("in a task", {})]


# Optimisation


class Collection:
    """Calls a function while its graph is collected."""

    def __init__(self, collect):
        self.collect = collect

    def __dask_graph__(self):
        return {"x": (inc, 1)}

    def __dask_keys__(self):
        return ["x"]

    def __dask_tokenize__(self):
        return "x"

    def __dask_postcompute__(self):
        self.collect()
        return first, ()

    __dask_optimize__ = staticmethod(dask.base.dont_optimize)


def first(results):
    return results[0]


@gen_cluster(client=True)
async def test_a_graph_that_was_never_submitted_is_nobodys(client, scheduler, *workers):
    value = delayed(inc)(1)
    with measured() as person, request():
        dask.optimize(value)
        dask.compute(value, scheduler="synchronous")
        with pytest.raises(ValueError, match="no such thing"):
            client.compute(Collection(fail))
        for number in range(3):
            client.submit(inc, number)
    assert tree(person) == below(*3 * OF_SUBMISSION)


@gen_cluster(client=True)
async def test_what_is_submitted_during_an_optimisation(client, scheduler, *workers):
    """It does not end the optimisation around it."""
    futures = []

    def collect():
        futures.append(client.submit(inc, 1))
        futures.append(client.compute(delayed(inc)(2)))

    with measured() as person, request():
        await client.compute(Collection(collect), sync=False)
    assert tree(person) == below(
        "optimize graph", *OF_SUBMISSION, "optimize graph", *OF_SUBMISSION, *OF_SUBMISSION, *OF_RESULTS
    )
    outer, inner = (each for each in by_start(person) if each.name == "optimize graph")
    assert outer.end_time > inner.end_time
    await client.gather(futures)


@gen_cluster(client=True)
async def test_a_graph_that_cannot_be_serialised(client, scheduler, *workers):
    with measured() as person, request(), pytest.raises(TypeError, match=r"[Cc]ould not serialize"):
        client.submit(inc, threading.Lock())
    assert tree(person) == below("serialize graph")
    assert dict(named(person, "serialize graph").attributes) == {"dask.phase": "serialize"}


@gen_cluster(client=True)
async def test_a_graph_that_cannot_be_sent(client, scheduler, *workers):
    await client.close()
    with measured("1h") as person, request(), pytest.raises(Exception, match="closed"):
        client.submit(inc, 1)
    assert set(person.spans[0].attributes) == {"dask.serialize.time", "dask.graph.size", "dask.submit.time"}


@gen_cluster(client=True)
async def test_what_a_program_collects_itself(client, scheduler, *workers):
    """Nobody knows what it does until it submits the graph."""
    with measured() as person, request():
        expr = dask.base.collections_to_expr([delayed(inc)(1, dask_key_name="x")])
        client.get(expr, ["x"], sync=False)
    assert tree(person) == below(*OF_SUBMISSION)


@gen_cluster(client=True)
async def test_other_wrappers_of_ours_may_be_around(client, scheduler, *workers):
    with measured() as person:
        undo = add_to_submissions(lambda client, opened: NOTHING)
        with request():
            await client.compute(delayed(inc)(1))
        undo()
    assert tree(person) == below("optimize graph", *OF_SUBMISSION, *OF_RESULTS)


def test_graphs_that_nobody_takes_are_forgotten():
    def frame(name):
        return SimpleNamespace(
            f_globals={"__name__": "dask.base"}, f_code=SimpleNamespace(co_name="compute", name=name), f_back=None
        )

    marks, frames = phases._Marks(), [frame(number) for number in range(2 * phases.MAX_MARKS)]
    for each in frames:
        marks.set(each)
    assert [marks.take(each) is not None for each in frames] == phases.MAX_MARKS * [False] + phases.MAX_MARKS * [True]
    # A frame of other code that has got the same id.
    marks.set(frames[0])
    frames[0].f_code = SimpleNamespace(co_name="get")
    assert marks.take(frames[0]) is None


# Spans of others


class KeepsRequests(Sampler):
    def should_sample(self, parent_context, trace_id, name, *args, **kwargs):
        return SamplingResult(Decision.RECORD_AND_SAMPLE if name == "request" else Decision.DROP)

    def get_description(self):
        return "KeepsRequests"


@gen_cluster(client=True)
async def test_phases_that_a_sampler_drops_are_summed_up(client, scheduler, *workers):
    with measured(person=Program(sampler=KeepsRequests())) as person, request():
        await client.submit(inc, 1)
    assert tree(person) == ["request"]
    assert set(person.spans[0].attributes) == SUMS


@gen_cluster(client=True)
async def test_without_a_global_provider_there_are_sums_only(client, scheduler, *workers):
    person = Program()
    with measured(person=None) as _, person.provider.get_tracer("own").start_as_current_span("request"):
        await client.submit(inc, 1)
    assert tree(person) == ["request"]
    assert set(person.spans[0].attributes) == SUMS


@gen_cluster(client=True)
async def test_sums_push_out_no_attribute_of_a_person(client, scheduler, *workers):
    with measured("1h", person=Program(span_limits=SpanLimits(max_span_attributes=8))) as person:
        with trace.get_tracer("person").start_as_current_span("request", attributes={"mine": 1}):
            await client.submit(inc, 1)
        with request():
            await client.submit(inc, 2)
    assert [set(each.attributes) for each in person.spans] == [{"mine"}, SUMS]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_off_while_a_phase_is_recorded():
    """The lock that another thread has then is nobody's there."""
    recorder = phase_spans.Phases(Safety())
    with provider_of(program := Program()), program.provider.get_tracer("own").start_as_current_span("request"):
        caller = recorder.caller()
        phase = phase_spans.Phase(phase_spans.WAIT, 0, 1)
        recorder.record(caller, [phase])
        with recorder._sums[caller.span].lock, recorder._lock:
            child = os.fork()
            if not child:
                thread = threading.Thread(target=recorder.record, args=(caller, [phase]), daemon=True)
                thread.start()
                thread.join(20)
                os._exit(thread.is_alive())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Failures of ours


def broken(*args, **kwargs):
    raise ZeroDivisionError("planted")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (phase_spans.Phases, "caller"),
        (phase_spans.Phases, "record"),
        (phase_spans.Phases, "_make_span"),
        (phases._Marks, "set"),
        (phases._Marks, "take"),
        (phases._Submission, "__init__"),
        (phases._Submission, "phases"),
        (phases, "nbytes"),
        (phases, "_kind_of"),
        (phases._Call, "__init__"),
        (phases._Call, "start"),
        (phases._Call, "begin_wait"),
        (phases._Call, "end_wait"),
        (phases._Call, "finish"),
        (phases, "size_of"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
@pytest.mark.parametrize("is_async", [True, False])
def test_a_failure_of_ours_changes_nothing_for_dask(target, name, is_async, monkeypatch):
    @gen_cluster(client=True)
    async def run(client, scheduler, *workers):
        def synchronous(other):
            with other.as_current(), request():
                assert other.compute(delayed(inc)(1), sync=True) == 2
                assert other.gather(other.map(inc, range(3))) == [1, 2, 3]
                assert len([*as_completed(other.map(inc, range(3)), loop=other.loop)]) == 3
                with pytest.raises(ValueError, match="no such thing"):
                    other.submit(fail).result()

        async def asynchronous():
            with request():
                await _use(client)
                with pytest.raises(ValueError, match="no such thing"):
                    await client.submit(fail)

        with measured(failures=1) as person:
            monkeypatch.setattr(target, name, broken)
            await (asynchronous() if is_async else in_thread(scheduler.address, synchronous))
            monkeypatch.undo()
        assert named(person, "request")

    if (name, is_async) == ("start", False):
        pytest.skip("asynchronous clients only")
    run()


@gen_cluster(client=True)
async def test_what_dask_lacks_is_not_measured(client, scheduler, *workers, monkeypatch):
    lines = []
    with monkeypatch.context() as patch:
        patch.delattr(distributed.utils, "All")
        patch.delattr(as_completed, "__anext__")
        patch.setattr(phases.log, "info", lambda line, *args: lines.append(line % args))
        measuring = measured()
        person = measuring.__enter__()
    with request():
        assert await client.gather(client.map(inc, range(3))) == [1, 2, 3]
    measuring.__exit__(None, None, None)
    assert lines == [
        f"dask-otel: this version of Dask has no {name}; its time is not measured."
        for name in ("distributed.utils.All", "as_completed.__anext__")
    ]
    assert tree(person) == below(*OF_SUBMISSION)


def test_everything_is_as_before_when_it_is_undone():
    def found():
        return [
            vars(target).get(name)
            for target, name in [
                (distributed.client, "serialize"),
                (distributed.client, "collections_to_expr"),
                (dask.base, "collections_to_expr"),
                (distributed.utils, "All"),
                (Client, "_graph_to_futures"),
                (Client, "sync"),
                (as_completed, "__next__"),
                (as_completed, "__anext__"),
            ]
        ]

    before = found()
    with measured():
        assert not any(now is then for now, then in zip(found(), before, strict=True))
    assert found() == before


@gen_cluster(client=True)
async def test_below_a_wrapper_of_somebody_else_nothing_is_recorded_when_it_is_undone(client, scheduler, *workers):
    original = Client.__dict__.get("sync")
    with measured() as person:
        ours = Client.sync
        Client.sync = lambda *args, **kwargs: ours(*args, **kwargs)
    try:
        with provider_of(person), request():
            await wait(client.map(inc, range(3)))
    finally:
        assert original is None
        del Client.sync
    assert tree(person) == ["request"]
    assert dict(person.spans[0].attributes) == {}


@pytest.mark.slow
def test_workers_in_processes_of_their_own():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        measured() as person,
        request(),
    ):
        assert dask.array.ones((20, 20), chunks=10).sum().compute() == 400
        assert client.gather(client.map(inc, range(3))) == [1, 2, 3]
    assert tree(person) == below("optimize graph", *2 * [*OF_SUBMISSION, *OF_RESULTS])
