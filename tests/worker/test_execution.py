"""Tasks and calls to actors on real workers: what is current in them, and which spans there are in the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context

import dask
import pytest
from distributed import Client, Event, LocalCluster, Reschedule, Worker, get_client, secede, span, wait
from distributed import worker_client as open_worker_client
from distributed.utils_test import gen_cluster, inc
from opentelemetry import baggage, trace
from opentelemetry.context import attach, get_current
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from support.callers import anchored, inside
from support.clusters import bridged, one_clock, until
from support.inside import Person, ended, groups, lines, provider_of, shared, spanned, spans_of

import dask_otel
from dask_otel import tracers
from dask_otel.identity import group_id
from dask_otel.messages import SpanMade
from dask_otel.scheduler.inbox import Inbox
from dask_otel.worker import execution, lazy_span, task_span
from dask_otel.worker.plugin import OTelWorkerPlugin


def tracer():
    return trace.get_tracer("person")


def child(name):
    with tracer().start_as_current_span(name):
        pass


def work(x=0):
    child("inner")
    return x


async def work_async(x=0):
    child("inner")
    await asyncio.sleep(0)
    return x


def ids():
    """Trace and span ids that a log record would have."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def current():
    """What is current in a task, without using it."""
    return type(trace.get_current_span()).__name__, dict(baggage.get_all()), dask.get_annotations()


@pytest.mark.parametrize("function", [work, work_async])
def test_a_span_in_a_task_is_below_the_task(function):
    @spanned()
    async def run(person, client, scheduler, worker):
        with span("etl") as root, span("load"):
            future = client.submit(function, key="load-1")
        await future
        await ended(worker)
        assert lines(scheduler, person.spans) == ["group load", "  load [task]", "    inner"]
        assert {each.trace_id for each in person.spans} == {dask_otel.trace_id(root)}
        inner, task = sorted(person.spans, key=lambda each: each.name)
        assert task.start <= inner.start <= inner.end <= task.end

    run()


@spanned()
async def test_tasks_that_use_nothing_make_nothing(person, client, scheduler, worker):
    with span("etl"):
        futures = client.map(inc, range(10))
    assert await client.gather(futures) == list(range(1, 11))
    assert await client.submit(lambda: trace.get_current_span().is_recording(), pure=False)
    await ended(worker)
    assert person.spans == []
    assert scheduler.get_events("dask-otel") == ()


def log_line():
    return ids()


@spanned(config={"otel.workers.spans": "child"})
async def test_only_tasks_that_start_a_span(person, client, scheduler, worker):
    with span("etl"):
        quiet = client.submit(log_line, key="quiet")
        loud = client.submit(work, key="loud")
        noted = client.submit(lambda: trace.get_current_span().set_attribute("rows", 5), key="noted")
    _, span_id = await quiet
    await wait([loud, noted])
    await ended(worker)
    assert groups(scheduler)[span_id] == "group quiet"
    assert lines(scheduler, person.spans, "rows") == [
        "group loud",
        "  loud [task]",
        "    inner",
        "group noted",
        "  noted [task] rows=5",
    ]


@spanned(config={"otel.workers.max-rate": 3})
async def test_the_budget(person, client, scheduler, worker):
    futures = client.map(work, range(10), key="load")
    assert await client.gather(futures) == list(range(10))
    await ended(worker)
    assert [line.strip() for line in lines(scheduler, person.spans)].count("load [task]") == 3
    # The others' spans are below the group.
    parents = [groups(scheduler).get(each.parent_id) for each in person.spans if each.name == "inner"]
    assert sorted(map(str, parents)) == ["None"] * 3 + ["group load"] * 7


@spanned(make=lambda: None)
async def test_without_a_provider_log_records_are_in_the_trace(person, client, scheduler, worker):
    """And nothing else happens."""
    with span("etl") as root:
        future = client.submit(log_line, key="quiet")
    trace_id, span_id = await future
    assert trace_id == dask_otel.trace_id(root)
    assert groups(scheduler)[span_id] == "group quiet"
    assert not await client.submit(lambda: trace.get_current_span().is_recording())
    await until(lambda: scheduler.get_events("dask-otel"))
    (event,) = scheduler.get_events("dask-otel")  # so that the group's span is sent
    assert event[1].items() >= {"group": "quiet", "run-id": None, "span-id": "0" * 16, "parent-id": span_id}.items()


def fail():
    child("inner")
    raise ValueError("no")


@bridged(slowest_tasks=5)
async def test_a_span_says_what_the_schedulers_task_span_says(plugin, client, scheduler, *workers, monkeypatch):
    person = Person()
    monkeypatch.setattr(Inbox, "span_made", lambda inbox, event: None)  # else the scheduler would make none
    with provider_of(person):
        for worker in workers:
            await worker.plugin_add(OTelWorkerPlugin())
        with span("etl"), span("load"):
            futures = [client.submit(work, 1.5, key=("load-1", 3)), client.submit(fail, key="fail")]
            futures.append(client.submit(work_async, key="async"))
        plain = client.submit(work, None, key="default")
        await wait([*futures, plain])
        await ended(*workers)
    await plugin.before_close()
    theirs = {each.name: each for each in plugin.exporter.spans() if each.attributes["dask.kind"] == "task"}
    parents = {each.name: each for each in plugin.exporter.spans() if each.attributes["dask.kind"] == "group"}
    assert sorted(theirs) == ["async", "default", "fail", "load"]
    for ours in person.tasks():
        other = theirs[ours.name]
        picked = other.attributes.pop("dask.task.picked")
        assert picked in ("erred", "slowest")
        assert ours.attributes == other.attributes
        assert list(ours.attributes)[:4] == list(other.attributes)[:4]  # the more important ones
        assert (ours.trace_id, ours.parent_id) == (other.trace_id, parents[ours.name].span_id)
        assert (ours.status, ours.status_message) == (other.status, other.status_message)
        assert ours.events[0][0] == "exception" if ours.name == "fail" else not ours.events
        # The compute time, which is all that such a run does.
        assert ours.start <= other.start + 1e-3
        assert abs(ours.end - other.end) < 2e-6
    (failed,) = (each for each in person.tasks() if each.name == "fail")
    assert failed.events == theirs["fail"].events


SECRET = "xyzzy"


class SecretError(Exception):
    pass


@spanned(config={"otel.capture.preset": "strict"})
async def test_what_is_not_captured_is_not_in_a_span(person, client, scheduler, worker):
    def fails():
        trace.get_current_span().set_attribute("used", True)
        raise SecretError(SECRET)

    class Secret:
        async def xyzzy(self):
            trace.get_current_span().set_attribute("used", True)
            raise SecretError(SECRET)

    with span(SECRET):
        failed = client.submit(fails, key=f"{SECRET}-1")
        actor = client.submit(Secret, actor=True, key=f"{SECRET}-2")
    await wait(failed)
    with pytest.raises(SecretError):
        await (await actor).xyzzy()
    await ended(worker)
    assert sorted(each.attributes["dask.kind"] for each in person.spans) == ["actor", "task"]
    for each in person.spans:
        assert SECRET not in repr(each).lower()
        assert each.attributes["error.type"] == "_OTHER"
        assert each.name.startswith("tasks ")


@spanned()
async def test_the_scheduler_learns_of_a_span_before_the_result(person, client, scheduler, worker):
    """Also of that of a coroutine, which runs on the event loop."""
    arrived = []
    for op in ("log-event", "task-finished"):

        def note(op=op, handler=scheduler.stream_handlers[op], **message):
            arrived.append((op, message))
            return handler(**message)

        scheduler.stream_handlers[op] = note
    with span("etl") as root, span("load") as inner:
        futures = [client.submit(work, key=("load", 1)), client.submit(work_async, key="coroutine")]
    await client.gather(futures)
    await ended(worker)
    events = [(op, each) for op, each in arrived if op != "log-event" or each["topic"] == "dask-otel"]
    for future in futures:
        ops = [op for op, each in events if future.key in (each.get("key"), each.get("msg", {}).get("key"))]
        assert ops == ["log-event", "task-finished"]
    made = {each.key: each for _, event in scheduler.get_events("dask-otel") if (each := SpanMade.from_event(event))}
    assert made == {
        future.key: SpanMade(
            key=future.key,
            run_id=scheduler.tasks[future.key].run_id,
            dask_span_id=inner,
            group=group,
            trace_id=int(dask_otel.trace_id(root), 16),
            span_id=int(task.span_id, 16),
            parent_id=group_id(inner, group, 0),
        )
        for future, group in zip(futures, ("load", "coroutine"), strict=True)
        for task in person.tasks()
        if task.name == group
    }


@spanned(nthreads=[("127.0.0.1", 4)] * 2)
async def test_nested_clients(person, client, scheduler, *workers):
    def outer():
        child("before")
        with open_worker_client() as nested:
            got = nested.submit(work, 1, key="nested-1").result()
        child("after")
        return got + get_client().submit(work, 2, key="nested-2").result()

    async def outer_async():
        got = await get_client().submit(work, 3, key="nested-3")
        child("after")
        return got

    with span("etl"):
        futures = [client.submit(outer, key="outer"), client.submit(outer_async, key="outer_async")]
        assert await client.gather(futures) == [3, 3]
    await ended(*workers)
    spans = person.spans
    assert len({each.trace_id for each in spans}) == 1
    names = {each.span_id: each.name for each in spans}
    assert sorted((names.get(each.parent_id, "group"), each.name) for each in spans) == [
        ("group", "nested"),  # its submitter had no span yet
        ("group", "outer"),
        ("group", "outer_async"),
        ("nested", "inner"),
        ("nested", "inner"),
        ("nested", "inner"),
        ("outer", "after"),
        ("outer", "before"),
        ("outer", "nested"),
        ("outer", "nested"),
        ("outer_async", "after"),
    ]


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_after_secede_other_tasks_are_not_in_its_context(person, client, scheduler, worker):
    """Dask lets the event loop go on in the context of a task that secedes (``dask-facts`` 38)."""
    go = Event("go")

    def leaves():
        attach(baggage.set_baggage("user", "Alice"))
        with tracer().start_as_current_span("mine"), dask.annotate(priority=7):
            secede()
            Event("go").wait()
            child("late")

    with span("alice"):
        first = client.submit(leaves, key="leaves")
    await until(lambda: worker.state.long_running)
    seen = await client.gather([client.submit(current, key=f"other-{n}") for n in range(5)])
    assert seen == [("LazySpan", {}, {})] * 5
    await client.gather([client.submit(work, key=f"default-{n}") for n in range(3)])
    await go.set()
    await first
    await ended(worker)
    assert lines(scheduler, person.spans) == [
        "group default",
        *["  default [task]", "    inner"] * 3,
        "group leaves",
        "  leaves [task]",
        "    mine",
        "      late",
    ]


def call_shared(name):
    return shared[name]()


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_what_is_rescheduled_has_a_span_for_each_run(person, client, scheduler, worker):
    runs = []

    def again():
        runs.append(ids()[1])
        if len(runs) < 3:
            raise Reschedule
        return len(runs)

    shared["again"] = again
    assert await client.submit(call_shared, "again", key="again") == 3
    await ended(worker)
    assert [each.span_id for each in sorted(person.spans, key=lambda each: each.start)] == runs
    assert len({each.attributes["dask.task.run_id"] for each in person.spans}) == 3
    assert {each.status for each in person.spans} == {"Unset"}
    assert len(set(runs)) == 3


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_what_is_retried_has_a_span_for_each_run(person, client, scheduler, worker):
    shared["runs"] = runs = []

    def flaky():
        from support.inside import shared

        child("inner")
        shared["runs"].append(1)
        if len(shared["runs"]) < 3:
            raise OSError("away")
        return "here"

    with span("etl"):
        future = client.submit(flaky, key="flaky", retries=5)
    assert await future == "here"
    await ended(worker)
    assert len(runs) == 3
    assert lines(scheduler, person.spans) == [
        "group flaky",
        *["  flaky [task] Error: OSError: away", "    inner"] * 2,
        "  flaky [task]",
        "    inner",
    ]
    assert len({each.attributes["dask.task.run_id"] for each in person.tasks()}) == 3


def hold(entered, go):
    child("begin")
    shared[entered].set()
    assert shared[go].wait(60)
    child("end")
    return trace.get_current_span().is_recording()


@contextmanager
def events(*names):
    for name in names:
        shared[name] = threading.Event()
    try:
        yield [shared[name] for name in names]
    finally:
        for name in names:
            shared[name].set()


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_a_cancelled_task_that_runs_on_keeps_its_span(person, client, scheduler, worker):
    """And the same key, submitted again in another span meanwhile, has the span of its own run."""
    with events("entered", "go") as (entered, go):
        with span("alice") as alice:
            first = client.submit(hold, "entered", "go", key="work")
        await asyncio.to_thread(entered.wait, 60)
        run_id = scheduler.tasks["work"].run_id
        expected = groups(scheduler)
        await client.cancel(first)
        await until(lambda: "work" not in scheduler.tasks)
        # Another client: the first may learn only now that the key is cancelled.
        async with Client(scheduler.address, asynchronous=True) as other:
            with span("bob") as bob:
                second = other.submit(hold, "entered", "go", key="work")
            await until(lambda: "work" in worker.state.tasks and worker.state.tasks["work"].span_id == bob)
            go.set()
            assert await second
    await ended(worker)
    task = next(each for each in person.tasks() if each.trace_id == dask_otel.trace_id(alice))
    assert task.attributes["dask.task.run_id"] == run_id
    assert task.attributes["dask.span.path"] == "alice"
    assert expected[task.parent_id] == "group work"
    inner = [each for each in person.spans if each.parent_id == task.span_id]
    assert [each.name for each in sorted(inner, key=lambda each: each.start)] == ["begin", "end"]
    for each in person.tasks():
        assert each.start <= min(other.start for other in person.spans if other.parent_id == each.span_id)
        assert each.end >= max(other.end for other in person.spans if other.parent_id == each.span_id)


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_a_worker_that_closes_ends_the_spans_of_its_coroutines(person, client, scheduler, worker):
    async def endless():
        child("inner")
        await Event("entered").set()
        await asyncio.sleep(600)

    future = client.submit(endless, key="endless")
    await Event("entered").wait()
    parent = groups(scheduler)
    spans = spans_of(worker)
    await worker.close()
    await asyncio.to_thread(spans.stop, 30)
    (task,) = person.tasks()
    assert parent[task.parent_id] == "group endless"
    assert task.status == "Unset"
    future.release()


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_a_worker_that_closes_ends_the_spans_of_threads_that_run_on(person, client, scheduler, worker):
    """Dask cancels ``execute``, which gives no event then."""
    with events("entered", "go") as (entered, go):
        future = client.submit(hold, "entered", "go", key="work")
        await asyncio.to_thread(entered.wait, 60)
        await worker.close(executor_wait=False)
        (task,) = person.tasks()
        assert (task.name, task.status, "dask.task.type" in task.attributes) == ("work", "Unset", False)
        go.set()
        await asyncio.to_thread(person.exporter.wait, lambda spans: len(spans) == 3)
    assert {each.parent_id for each in person.spans if each is not task} >= {task.span_id}
    future.release()


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_a_worker_that_fails_hard_ends_the_span(person, client, scheduler, worker, monkeypatch):
    """An exception out of ``execute`` closes the worker; the status of the span says so."""
    spans = spans_of(worker)

    async def execute(*args, **kwargs):
        child("inner")
        raise OSError("broken")

    monkeypatch.setattr(spans, "_execute", execute)
    with pytest.raises(OSError, match="broken"):
        await worker.execute("work", stimulus_id="test")  # a key that the worker does not know: no span
    future = client.submit(work, key="work", workers=[worker.address], pure=False)
    await until(lambda: person.spans)
    await asyncio.to_thread(spans.stop, 30)
    await asyncio.to_thread(person.exporter.wait, lambda made: any(each.name == "work" for each in made))
    (task,) = person.tasks()
    assert (task.status, task.attributes["error.type"], task.status_message) == ("Error", "OSError", "broken")
    monkeypatch.undo()
    future.release()
    await worker.close()


@spanned(nthreads=[("127.0.0.1", 1)])
async def test_a_task_that_runs_for_long_is_reported_while_it_runs(person, client, scheduler, worker):
    """And what reports it is in no context of a task."""
    spans, contexts = spans_of(worker), []
    report = spans._report
    spans._report = lambda: (contexts.append(current()), report())
    with events("entered", "go") as (entered, go):
        future = client.submit(hold, "entered", "go", key="work")
        await asyncio.to_thread(entered.wait, 60)
        await until(lambda: scheduler.get_events("dask-otel"))
        assert not person.tasks()
        assert set(map(str, contexts)) == {str(("NonRecordingSpan", {}, {}))}
        go.set()
        await future
    await ended(worker)
    assert len(scheduler.get_events("dask-otel")) == len(person.tasks()) == 1


@pytest.mark.parametrize("scaled", [False, True])
def test_a_cluster_that_is_made_or_scaled_in_a_request(scaled):
    """Its workers' tasks are not in the request (``dask-facts`` 38)."""
    person = Person()
    with provider_of(person), dask.config.set({"distributed.worker.preload": ["dask_otel"]}):

        @contextmanager
        def request():
            context = baggage.set_baggage("user", "Alice", get_current())
            with tracer().start_as_current_span("request", context), span("alice"), dask.annotate(priority=3):
                attach(baggage.set_baggage("user", "Alice"))
                yield

        with (
            LocalCluster(n_workers=0, processes=False, threads_per_worker=1, dashboard_address=":0", silence_logs=False)
            if scaled
            else _made_in(request) as cluster
        ):
            if scaled:
                with request():
                    cluster.scale(1)
                    cluster.sync(cluster._correct_state)
            with Client(cluster) as client:
                assert client.submit(current, key="current").result(60) == ("LazySpan", {}, {})
                future = client.submit(work, 1, key="work")
                assert future.result(60) == 1
                known = groups(cluster.scheduler)
    (task,) = person.tasks()
    assert known[task.parent_id] == "group work"
    assert task.attributes["dask.span.path"] == "default"
    assert task.trace_id not in {each.trace_id for each in person.spans if each.name == "request"}


@contextmanager
def _made_in(request):
    with request():
        cluster = LocalCluster(
            n_workers=1, processes=False, threads_per_worker=1, dashboard_address=":0", silence_logs=False
        )
    with cluster:
        yield cluster


@pytest.mark.parametrize("sampler", [ParentBased(ALWAYS_ON), ALWAYS_ON])
def test_a_trace_that_is_not_sampled_has_no_spans_of_tasks(sampler):
    @spanned(make=lambda: Person(sampler=sampler))
    async def run(person, client, scheduler, worker):
        with inside(request=anchored(5, 6, sampled=False)):
            futures = [client.submit(work, key="load"), client.submit(ids, key="ids")]
        trace_id, span_id = await futures[1]
        await futures[0]
        await ended(worker)
        assert not person.tasks()
        assert (int(trace_id, 16), groups(scheduler)[span_id]) == (5, "group ids")
        assert scheduler.get_events("dask-otel") == ()
        assert len(person.spans) == (sampler is ALWAYS_ON)  # the person's own

    run()


@spanned(make=lambda: Person(sampler=ALWAYS_OFF), config={"otel.workers.max-rate": 1})
async def test_the_sampler_of_the_process_decides(person, client, scheduler, worker):
    """What it leaves out is not reported, and takes nothing from the budget."""
    for number in range(3):
        _, span_id = await client.submit(ids, key=f"ids-{number}")
        assert span_id not in groups(scheduler)  # a span that does not record
    assert person.spans == []
    assert scheduler.get_events("dask-otel") == ()


def disabled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SDK_DISABLED", "true")
        return Person()


@spanned(make=disabled, config={"otel.workers.max-rate": 1})
async def test_a_provider_that_is_switched_off(person, client, scheduler, worker):
    """It has tracers, whose spans are their parents."""
    for number in range(3):
        _, span_id = await client.submit(ids, key=f"ids-{number}")
        assert groups(scheduler)[span_id] == "group ids"
        assert await client.submit(work, number, key=f"work-{number}") == number
    assert person.spans == []

    def reported():
        return {(event["group"], event["run-id"]) for _, event in scheduler.get_events("dask-otel")}

    await until(reported)
    # Whether a tracer that is switched off asks for the parent depends on the version.
    assert reported() <= {("ids", None), ("work", None)}


@spanned()
async def test_many_groups(person, client, scheduler, worker, monkeypatch):
    """What is remembered of them is limited."""
    monkeypatch.setattr(task_span, "MAX_KNOWN", 3)
    futures = [client.submit(work, key=f"{name}-{number}") for number in range(2) for name in "abcdefgh"]
    await client.gather(futures)
    await ended(worker)
    assert len(spans_of(worker)._source.known) <= 3
    assert lines(scheduler, person.spans) == [
        line for name in "abcdefgh" for line in [f"group {name}", *[f"  {name} [task]", "    inner"] * 2]
    ]


@spanned()
async def test_in_a_callers_trace(person, client, scheduler, worker):
    with inside(request=anchored(5, 6), load="inner"):
        await client.submit(work, key="load")
    await ended(worker)
    (task,) = person.tasks()
    assert int(task.trace_id, 16) == 5
    assert int(task.parent_id, 16) == group_id("inner", "load", 0)


CARRIER = {
    "traceparent": f"00-{5:032x}-{6:016x}-01",
    "tracestate": "vendor=1",
    "baggage": "user=Alice",
}


@spanned()
async def test_what_the_client_sent_along_is_in_the_context(person, client, scheduler, worker):
    def sent():
        return dict(baggage.get_all()), trace.get_current_span().get_span_context().trace_state.get("vendor")

    with dask.annotate(otel=CARRIER):
        with inside(request=anchored(5, 6)):
            in_callers_trace = client.submit(sent, key="a")
        in_another = client.submit(sent, key="b")
    assert await in_callers_trace == ({"user": "Alice"}, "1")
    assert await in_another == ({"user": "Alice"}, None)
    # What the scheduler knows better.
    fields = {"dask-parent": f"00-{7:032x}-{8:016x}-01", "dask-group": "inc @ Alice"}
    with dask.annotate(otel={**CARRIER, **fields}):
        await client.submit(work, key="load")
    with dask.annotate(otel={"dask-parent": f"00-{7:032x}-{8:016x}-00"}):
        await client.submit(work, key="unsampled")
    for odd in ("text", 5, {"traceparent": 5, 7: "x"}, {"traceparent": "nothing", "dask-parent": 9}):
        with dask.annotate(otel=odd):
            assert await client.submit(inc, 1, pure=False) == 2
            assert (await client.submit(current, pure=False))[0] == "LazySpan"
    await ended(worker)
    (task,) = (each for each in person.tasks() if each.name == "load")
    assert (int(task.trace_id, 16), int(task.parent_id, 16)) == (7, 8)
    assert task.attributes["dask.group.name"] == "inc @ Alice"
    assert "unsampled" not in [each.name for each in person.tasks()]


class Processor(SpanProcessor):
    """A person's, that does something for the spans of tasks."""

    def __init__(self, start=None, end=None):
        self.start, self.end = start, end

    def on_start(self, span, parent_context=None):
        if self.start and span.kind is trace.SpanKind.CONSUMER:
            self.start()

    def on_end(self, span):
        if self.end and span.kind is trace.SpanKind.CONSUMER:
            self.end()


def no():
    raise RuntimeError("no")


@pytest.mark.parametrize("function", [work, work_async])
@pytest.mark.parametrize("processor", [Processor(start=no), Processor(end=no)])
def test_a_processor_that_raises(processor, function):
    @spanned(make=lambda: Person(processor), failures=1)
    async def run(person, client, scheduler, worker):
        futures = client.map(function, range(200), key="load")
        assert await client.gather(futures) == list(range(200))
        await ended(worker)
        assert person.tasks() == []
        children = [each for each in person.spans if each.name == "inner"]
        assert len(children) == 200
        if processor.start:  # no span
            assert {groups(scheduler)[each.parent_id] for each in children} == {"group load"}
        assert not spans_of(worker).safety.gave_up
        assert await client.submit(inc, 1) == 2

    run()


@spanned(make=lambda: Person(Processor(end=lambda: shared["go"].wait(60))))
async def test_a_processor_that_blocks_does_not_hold_the_worker(person, client, scheduler, worker):
    with events("go") as (go,):
        futures = client.map(work, range(10), key="load") + client.map(work_async, range(10), key="async")
        assert len(await client.gather(futures)) == 20
        assert await client.submit(inc, 1) == 2
        await worker.heartbeat()
        assert person.tasks() == []
        go.set()
        await ended(worker)
    assert len(person.tasks()) == 20


@spanned(make=lambda: Person(Processor(start=lambda: shared["asked"].append(ids()))))
async def test_a_processor_that_asks_for_the_current_span(person, client, scheduler, worker):
    shared["asked"] = asked = []
    await client.submit(work, key="load")
    await ended(worker)
    assert lines(scheduler, person.spans) == ["group load", "  load [task]", "    inner"]
    assert [groups(scheduler)[span_id] for _, span_id in asked] == ["group load"]


@spanned()
async def test_threads_that_a_task_starts_go_on_after_it(person, client, scheduler, worker):
    """With the context of the task, as ``opentelemetry-instrumentation-threading`` gives it to them."""
    seen = []
    shared["seen"] = seen.append

    def starts(used):
        import contextvars

        from support.inside import shared

        def later():
            shared["go"].wait(60)
            shared["seen"]((used, ids()[1], trace.get_current_span().is_recording()))
            child("late")

        if used:
            child("inner")
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(later,))
        thread.start()
        shared["threads"].append(thread)

    shared["threads"] = threads = []
    with events("go") as (go,):
        futures = [client.submit(starts, used, key=key) for used, key in ((True, "used"), (False, "unused"))]
        await client.gather(futures)
        await ended(worker)
        go.set()
        for thread in threads:
            await asyncio.to_thread(thread.join, 60)
    assert lines(scheduler, person.spans) == [
        "group unused",
        "  late",
        "group used",
        "  used [task]",
        "    inner",
        "    late",
    ]
    (task,) = person.tasks()
    by_use = {used: (span_id, recording) for used, span_id, recording in seen}
    assert by_use[True] == (task.span_id, False)
    assert (groups(scheduler)[by_use[False][0]], by_use[False][1]) == ("group unused", False)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_nothing_is_kept(client, scheduler, worker):
    """Of runs whose context somebody keeps: no task, no worker."""
    shared["contexts"] = contexts = []

    def keeps(uses):
        import contextvars

        from support.inside import shared

        shared["contexts"].append((contextvars.copy_context(), trace.get_current_span()))
        if uses:
            child("inner")

    person = Person()
    with provider_of(person):
        await worker.plugin_add(OTelWorkerPlugin())
        futures = [client.submit(keeps, uses, key=f"keeps-{uses}") for uses in (True, False)]
        await client.gather(futures)
        await ended(worker)
        (lazy, other) = (current for _, current in contexts)
        kept = [weakref.ref(spans_of(worker)), *(weakref.ref(worker.state.tasks[each.key]) for each in futures)]
        await worker.plugin_remove("dask-otel")
        for future in futures:
            future.release()
        await until(lambda: not worker.state.tasks)
        worker.state.log.clear()
        worker.state.stimulus_log.clear()
        del futures
        # Dask's own context of the run refers to the worker.
        for context, _ in contexts:
            assert context
        shared.pop("contexts")
        contexts = None
        gc.collect()
        assert [each() for each in kept] == [None] * 3
        assert {lazy.get_span_context().trace_id, other.get_span_context().trace_id}
        reachable = referred([lazy, other])
        assert not any(isinstance(each, Worker) for each in reachable)


def referred(objects):
    """All that objects refer to, but for modules, classes and functions."""
    import types

    skipped = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
    seen: dict[int, object] = {}
    waiting = list(objects)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, skipped):
            continue
        seen[id(each)] = each
        waiting += gc.get_referents(each)
    return list(seen.values())


@spanned()
async def test_other_executors(person, client, scheduler, worker):
    """Dask copies the context to thread pools; a person's own pool inside a task has none, as in any program."""
    worker.executors["extra"] = ThreadPoolExecutor(1)

    def pooled():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(ids).result()

    with dask.annotate(executor="extra"):
        extra = client.submit(work, key="extra")
    own = client.submit(pooled, key="own")
    assert await own == ("0" * 32, "0" * 16)
    await extra
    await ended(worker)
    assert lines(scheduler, person.spans) == ["group extra", "  extra [task]", "    inner"]


@spanned()
async def test_a_task_whose_inputs_or_executor_fail_has_a_context(person, client, scheduler, worker):
    """It never runs: there is no event with times."""
    with dask.annotate(executor="nowhere"):
        future = client.submit(work, key="nowhere")
    with pytest.raises(ValueError, match="Invalid executor"):
        await future
    assert person.spans == []
    assert await client.submit(work, 1) == 1


class Unpickled:
    """Uses the current span while Dask reads it from disk, before the task that needs it begins."""

    def __reduce__(self):
        return _unpickle, ()


def _unpickle():
    child("unpickle")
    return Unpickled()


#: All results go to disk; the process itself may have any size.
TO_DISK = {f"distributed.worker.memory.{name}": False for name in ("spill", "pause", "terminate")}


@spanned(worker_kwargs={"memory_limit": "200 MiB"}, config=TO_DISK | {"distributed.worker.memory.target": 1e-9})
async def test_what_is_read_from_disk_for_a_task_is_in_its_span(person, client, scheduler, worker):
    data = client.submit(Unpickled, key="data")
    await wait(data)
    assert await client.submit(lambda data: work(1), data, key="use") == 1
    await ended(worker)
    assert lines(scheduler, person.spans) == ["group use", "  use [task]", "    inner", "    unpickle"]
    (task,) = person.tasks()
    assert task.start <= min(each.start for each in person.spans)


# Faults


def broken(*args, **kwargs):
    raise RuntimeError("injected")


FAULTS = [
    (execution.TaskSpans, "_begin"),
    (execution.TaskSpans, "_begin_call"),
    (execution.TaskSpans, "_tick_soon"),
    (execution.TaskSpans, "_report"),
    (execution.TaskSpans, "_outcome"),
    (execution, "_undo_call"),
    (execution, "_outcome"),
    (execution, "_error_of_call"),
    (execution, "_outcome_of_call"),
    (execution, "attach"),
    (execution, "Context"),
    (execution, "time"),
    (execution, "LazySpan"),
    (execution, "Run"),
    (execution, "RunWithMore"),
    (execution, "freeze"),
    (execution, "extract"),
    (tracers, "get_tracer_provider"),
    (execution, "_address_and_name"),
    (execution, "end_span"),
    (execution, "partial"),
    (lazy_span.DeferredSpan, "freeze"),
    (lazy_span.DeferredSpan, "end"),
    (lazy_span.Budget, "take"),
    (execution.EndingThread, "call"),
    (task_span.Run, "_start"),
    (task_span.Run, "_parent"),
    (task_span.Run, "_attributes"),
    (task_span.Run, "_look_up"),
    (task_span, "group_id"),
    (task_span, "key_split_group"),
    (task_span, "_duration"),
    (task_span.SpanMade, "to_event"),
]


@pytest.mark.parametrize(("target", "name"), FAULTS, ids=lambda each: getattr(each, "__name__", each))
def test_a_fault_of_ours_leaves_tasks_and_workers_as_they_are(target, name, monkeypatch):
    @gen_cluster(client=True, nthreads=[("127.0.0.1", 2)], timeout=60)
    async def run(client, scheduler, worker):
        class Counter:
            n = 0

            def add(self):
                child("inner")
                self.n += 1
                return self.n

            async def add_async(self):
                return self.add()

        with provider_of(Person()):
            await worker.plugin_add(OTelWorkerPlugin())
            spans = spans_of(worker)
            if name == "_address_and_name":  # it has a reference to the function
                spans._source.worker = broken
            monkeypatch.setattr(target, name, broken)
            with dask.annotate(otel=CARRIER):
                futures = client.map(work, range(5), key="load") + client.map(work_async, range(5), key="async")
                actor = await client.submit(Counter, actor=True)
            failed = client.submit(fail, key="fail")
            futures += client.map(work, range(5), key="plain")
            assert await client.gather(futures) == [*range(5)] * 3
            with pytest.raises(ValueError, match="no"):
                await failed
            assert (await actor.add(), await actor.add_async()) == (1, 2)
            await until(lambda: not worker.state.executing)
            assert {each.state for each in worker.state.tasks.values()} == {"memory", "error"}
            await asyncio.to_thread(spans.stop, 30)
            assert spans.safety.failures
            monkeypatch.undo()
            assert await client.submit(work, 7, pure=False) == 7

    run()


@spanned(failures=1)
async def test_what_fails_again_and_again_is_switched_off(person, client, scheduler, worker, monkeypatch):
    monkeypatch.setattr(execution, "LazySpan", broken)
    futures = client.map(inc, range(150))
    assert await client.gather(futures) == list(range(1, 151))
    assert spans_of(worker).safety.gave_up
    monkeypatch.undo()
    assert (await client.submit(current))[0] != "LazySpan"


@spanned(failures=1)
async def test_failures_that_are_not_in_a_row_switch_nothing_off(person, client, scheduler, worker, monkeypatch):
    safety = spans_of(worker).safety
    monkeypatch.setattr(execution, "LazySpan", broken)
    for number in range(2):
        assert len(await client.gather(client.map(inc, range(60), key=f"inc-{number}"))) == 60
        await until(lambda: not +safety._streaks)
    assert sum(safety.failures.values()) == 120
    assert not safety.gave_up


@spanned()
async def test_a_task_without_a_span_sets_no_timer(person, client, scheduler, worker, monkeypatch):
    asked = []
    monkeypatch.setattr(execution.TaskSpans, "_tick_soon", lambda spans: asked.append(spans))
    assert await client.gather(client.map(inc, range(10))) == list(range(1, 11))
    assert not asked
    await client.submit(work, 1, key="work")
    assert asked == [spans_of(worker)]
    await ended(worker)


# Actors


class Counter:
    n = 0

    def add(self, by=1):
        child("inner")
        self.n += by
        return self.n

    async def add_async(self):
        return self.add()

    def what(self):
        return current()

    async def what_async(self):
        return current()

    def fail(self):
        child("inner")
        raise ValueError("no")

    def fail_oddly(self):
        child("inner")
        raise Odd


class Odd(Exception):
    """What it shows itself as is code, which may raise anything."""

    def __repr__(self):
        raise SystemExit


@spanned(failures=1)
async def test_a_thread_that_makes_the_span_while_a_call_ends(person, client, scheduler, worker, monkeypatch):
    """It hands the end of the span on. If this fails, the code in the thread does not notice."""
    shared["entered"], go = threading.Event(), threading.Event()
    make = task_span.Run.make

    def slow(self):
        shared["entered"].set()
        assert go.wait(60)
        return make(self)

    class Starts:
        def start(self):
            from support.inside import shared

            shared["thread"] = ThreadPoolExecutor(1).submit(copy_context().run, ids)
            assert shared["entered"].wait(60)

    monkeypatch.setattr(task_span.Run, "make", slow)
    actor = await client.submit(Starts, actor=True)
    await actor.start()
    monkeypatch.setattr(spans_of(worker)._ending, "call", broken)
    go.set()
    assert len(await asyncio.wrap_future(shared.pop("thread"))) == 2
    shared.clear()


@spanned()
async def test_a_call_whose_exception_cannot_be_shown(person, client, scheduler, worker):
    actor = await client.submit(Counter, actor=True, key="counter")
    with pytest.raises(Odd):
        await actor.fail_oddly()
    await ended(worker)
    assert lines(scheduler, person.spans) == [
        "group counter",
        "  counter.fail_oddly [actor] Error: Odd: ",
        "    inner",
    ]


@spanned()
async def test_calls_to_an_actor(person, client, scheduler, worker):
    with span("etl") as root:
        actor = await client.submit(Counter, actor=True, key="counter-1")
    assert await actor.add() == 1
    assert await actor.add_async() == 2
    assert await actor.add(by=3, separate_thread=False) == 5
    assert await actor.n == 5
    with pytest.raises(ValueError, match="no"):
        await actor.fail()
    opened = {"span": {"name": ("etl",), "ids": (root,)}}
    assert await actor.what() == await actor.what_async() == ("LazySpan", {}, opened)
    await ended(worker)
    assert lines(scheduler, person.spans, "dask.task.key") == [
        "group counter",
        *["  counter.add [actor] dask.task.key=counter-1", "    inner"] * 2,
        "  counter.add_async [actor] dask.task.key=counter-1",
        "    inner",
        "  counter.fail [actor] dask.task.key=counter-1 Error: ValueError: no",
        "    inner",
    ]
    assert {each.trace_id for each in person.spans} == {dask_otel.trace_id(root)}
    assert not any("dask.task.run_id" in each.attributes for each in person.spans)


@spanned(nthreads=[("127.0.0.1", 1)] * 2)
async def test_a_task_that_calls_an_actor(person, client, scheduler, *workers):
    """Nothing travels with a call, so it is below the group of the actor, not below the task."""
    actor = await client.submit(Counter, actor=True, key="counter", workers=[workers[0].address])

    def calls(actor):
        child("before")
        return actor.add().result()

    assert await client.submit(calls, actor, key="calls", workers=[workers[1].address]) == 1
    await ended(*workers)
    assert lines(scheduler, person.spans) == [
        "group calls",
        "  calls [task]",
        "    before",
        "group counter",
        "  counter.add [actor]",
        "    inner",
    ]


@spanned()
async def test_a_call_leaves_nothing_in_the_context_of_its_connection(person, client, scheduler, worker):
    """A connection takes calls of many kinds, one after the other, in one context."""
    actor = await client.submit(Counter, actor=True)
    seen = []

    async def note(**kwargs):
        seen.append(current()[0])
        return {"status": "OK"}

    worker.handlers["note"] = note
    async with client.rpc(worker.address) as rpc:
        for _ in range(3):
            await rpc.actor_execute(actor=actor.key, function="what_async", args=[], kwargs={})
            await rpc.note()
    assert seen == ["NonRecordingSpan"] * 3


# Wrapping


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_the_worker_is_given_back(client, scheduler, worker):
    def wrapped():
        return (
            "execute" in vars(worker),
            "submit" in vars(worker.executors["actor"]),
            worker.handlers["actor_execute"] == worker.actor_execute,
        )

    assert wrapped() == (False, False, True)
    await worker.plugin_add(OTelWorkerPlugin())
    assert wrapped() == (True, True, False)
    await worker.plugin_add(OTelWorkerPlugin())  # it replaces the first
    await worker.plugin_add(OTelWorkerPlugin(), name="another")
    await worker.plugin_remove("dask-otel")
    assert wrapped() == (True, True, False)
    assert (await client.submit(current, pure=False))[0] == "LazySpan"
    await worker.plugin_remove("another")
    assert wrapped() == (False, False, True)
    assert (await client.submit(current, pure=False))[0] != "LazySpan"


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_what_somebody_has_wrapped_since_stays(client, scheduler, worker):
    person = Person()
    calls = []
    with provider_of(person):
        await worker.plugin_add(OTelWorkerPlugin())
        ours = worker.execute

        async def execute(key, *, stimulus_id):
            calls.append(key)
            return await ours(key, stimulus_id=stimulus_id)

        worker.execute = execute
        await worker.plugin_remove("dask-otel")
        assert worker.execute is execute
        assert await client.submit(work, 1, key="a") == 1
        assert person.tasks() == []
        # Again: around the other one, and once only.
        await worker.plugin_add(OTelWorkerPlugin())
        assert await client.submit(work, 2, key="b") == 2
        await ended(worker)
        assert calls == ["a", "b"]
        assert [each.name for each in person.tasks()] == ["b"]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_task_that_runs_while_the_plugin_is_removed_has_its_span(client, scheduler, worker):
    person = Person()
    with provider_of(person), events("entered", "go") as (entered, go):
        await worker.plugin_add(OTelWorkerPlugin())
        spans = spans_of(worker)
        future = client.submit(hold, "entered", "go", key="work")
        await asyncio.to_thread(entered.wait, 60)
        await worker.plugin_remove("dask-otel")
        go.set()
        await future
        assert await asyncio.to_thread(spans.stop, 30)
        assert lines(scheduler, person.spans) == ["group work", "  work [task]", "    begin", "    end"]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_version_of_distributed_that_lacks_something(client, scheduler, worker, monkeypatch, caplog):
    monkeypatch.setattr(execution, "ANNOTATIONS", None)
    with caplog.at_level(logging.ERROR, logger="distributed.dask_otel"):
        await worker.plugin_add(OTelWorkerPlugin())
    (message,) = {each.getMessage() for each in caplog.records if each.name == "distributed.dask_otel"}
    assert "is off in this worker" in message
    assert "dask.base._annotations" in message
    assert "execute" not in vars(worker)
    assert await client.submit(inc, 1) == 2


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_registered_by_a_client(client, scheduler, worker):
    """For workers that are there and that come later; and unregistered."""
    person = Person()
    with provider_of(person), one_clock():
        await client.register_plugin(OTelWorkerPlugin())
        async with Worker(scheduler.address, nthreads=1) as other:
            for each in (worker, other):
                await client.submit(work, key=f"load-{each.port}", workers=[each.address])
            await ended(worker, other)
            assert {each.attributes["dask.worker.address"] for each in person.tasks()} == {
                worker.address,
                other.address,
            }
            await client.unregister_worker_plugin("dask-otel")
            assert "execute" not in vars(worker) | vars(other)
