"""Spans of workers in the scheduler's traces: no parent is missing, and no run has two task spans."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import copy_context
from functools import partial

import dask
import dask.base
import pytest
from distributed import Event, span, wait
from distributed.utils_test import inc
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from support.both import Everything, both, everything, shape
from support.callers import anchored, inside
from support.clusters import finished, until
from support.inside import Person, ended

import dask_otel
from dask_otel.messages import TOPIC, SpanMade
from dask_otel.otlp.queue import RateLimiter
from dask_otel.spantree.to_records import Level


def work(x=0, seconds=0.0):
    with trace.get_tracer("person").start_as_current_span("inner"):
        time.sleep(seconds)
    return x


def fail(x=0):
    with trace.get_tracer("person").start_as_current_span("inner"):
        raise ValueError(x)


def idle(x=0, seconds=0.0):
    time.sleep(seconds)
    return x


def late():
    """Use a span only after a while."""
    Event("begun").set()
    Event("gate").wait()
    return work()


def early():
    """Use a span, and go on."""
    work()
    Event("begun").set()
    Event("gate").wait()


async def until_sent(plugin, number):
    """Wait until so many segments have closed."""

    def are_there(spans):
        return sum(each.attributes["dask.kind"] == "span" for each in spans) >= number

    await asyncio.to_thread(plugin.exporter.wait, are_there)


@both()
async def test_one_trace(person, plugin, client, scheduler, worker):
    with span("etl"), span("load"):
        await client.submit(work, key="load-1")
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  load [span]",
        "    load [group]",
        "      ~load [task]",
        "        ~inner",
    ]


@both(slowest_tasks=2)
async def test_a_run_has_one_span(person, plugin, client, scheduler, worker):
    """Of failed and slow runs, the scheduler makes the spans that workers have not made."""
    with span("etl"):
        tasks = [client.submit(work, seconds=0.05, key="fast-1"), client.submit(idle, seconds=0.05, key="fast-2")]
        tasks += [client.submit(fail, key="bad-1")]
        await wait(tasks)
        await wait(client.submit(inc, "", key="bad-2"))
    spans = await everything(person, plugin, worker)
    assert shape(spans, "dask.task.erred", "dask.truncated.tasks", "dask.task.picked", "dask.task.key") == [
        "etl [span] dask.task.erred=2 Error: ValueError",
        "  bad [group] dask.task.erred=2 Error: ValueError",
        "    bad [task] dask.task.picked=erred dask.task.key=bad-2 Error: TypeError",
        "    ~bad [task] dask.task.key=bad-1 Error: ValueError",
        "      ~inner Error",
        "  fast [group]",
        "    fast [task] dask.task.picked=slowest dask.task.key=fast-2",
        "    ~fast [task] dask.task.key=fast-1",
        "      ~inner",
    ]


@both()
async def test_each_run_of_a_retried_task_has_its_own(person, plugin, client, scheduler, worker):
    with span("etl"):
        await wait(client.submit(fail, key="bad", retries=2))
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span] Error: ValueError",
        "  bad [group] Error: ValueError",
        *["    ~bad [task] Error: ValueError", "      ~inner Error"] * 3,
    ]
    assert not plugin._bridge or not plugin._bridge.inbox._with_span


TASK = ["    ~load [task]", "      ~inner"]


@pytest.mark.parametrize("level", [Level.SPANS, Level.GROUPS])
def test_what_the_level_leaves_out(level):
    """The groups of tasks that have spans are sent, and no others."""

    @both(level=level)
    async def run(person, plugin, client, scheduler, worker):
        with span("etl"):
            await wait([client.submit(idle, key="load-0"), client.submit(idle, 1, key="quiet")])
            await until_sent(plugin, 1)
            # The first span of the group was left out, or not.
            await wait([client.submit(work, 1, key="load-1"), client.submit(idle, 1, key="other")])
            await wait(client.submit(work, 1, key="new"))
        spans = await everything(person, plugin, worker)
        new = ["  new [group] dask.task.count=1", "    ~new [task]", "      ~inner"]
        if level == Level.SPANS:
            assert shape(spans, "dask.task.count") == [
                "etl [span] dask.task.count=2",
                "etl [span] dask.task.count=3",
                "  load [group]",
                *TASK,
                *new,
            ]
        else:
            assert shape(spans, "dask.task.count") == [
                "etl [span] dask.task.count=2",
                "  load [group] dask.task.count=1",
                *TASK,
                "  quiet [group] dask.task.count=1",
                "etl [span] dask.task.count=3",
                "  load [group] dask.task.count=1",
                *new,
                "  other [group] dask.task.count=1",
            ]

    run()


@pytest.mark.parametrize("default_level", [Level.SPANS, Level.NOTHING])
def test_what_default_spans_leave_out(default_level):
    @both(default_level=default_level)
    async def run(person, plugin, client, scheduler, worker):
        await client.submit(work, key="load")
        await until_sent(plugin, 1)
        await client.submit(inc, 1, key="quiet")
        quiet = ["default: quiet [span]"] if default_level else []
        assert shape(await everything(person, plugin, worker)) == [
            "default: load [span]",
            "  load [group]",
            *TASK,
            *quiet,
        ]

    run()


@both(level=Level.SPANS, config={"otel.workers.max-rate": 1})
async def test_beyond_the_budget_of_spans(person, plugin, client, scheduler, worker):
    """What the task starts is below its group, which is sent."""
    with span("etl"):
        await client.submit(work, key="first")
        for key in ("second-1", "second-2"):
            await client.submit(work, 1, key=key)
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  first [group]",
        "    ~first [task]",
        "      ~inner",
        "  second [group]",
        "    ~inner",
        "    ~inner",
    ]


@both(level=Level.SPANS, config={"otel.workers.spans": "child"})
async def test_ids_of_a_parent_that_go_elsewhere(person, plugin, client, scheduler, worker):
    """Its group is sent, though no span is below it here."""

    def injects():
        carrier = {}
        inject(carrier)
        return carrier["traceparent"]

    with span("etl"):
        traceparent = await client.submit(injects, key="calls")
    spans = await everything(person, plugin, worker)
    assert shape(spans) == ["etl [span]", "  calls [group]"]
    assert traceparent.split("-")[2] in {each.span_id for each in spans}


@both(make=lambda: SendsNothing())
async def test_a_provider_that_sends_nothing_makes_no_span(person, plugin, client, scheduler, worker):
    """As with OTEL_TRACES_EXPORTER=none: the scheduler's span of a failed task is the only one."""
    with span("etl"):
        await wait(client.submit(fail, key="load"))
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span] Error: ValueError",
        "  load [group] Error: ValueError",
        "    load [task] Error: ValueError",
    ]


class SendsNothing(Person):
    """A person whose provider has no span processor."""

    def __init__(self):
        super().__init__()
        self.provider = TracerProvider(shutdown_on_exit=False)


@both(max_groups=1)
async def test_what_is_folded(person, plugin, client, scheduler, worker):
    """A group that has no span of its own any more has one without numbers in its place."""
    with span("etl"):
        await client.submit(work, key="load")
        forest = plugin._bridge.span_tree.forest
        await until(lambda: any(node.segment.is_parent for node in forest.open))
        await client.submit(work, key="store")
        await client.submit(idle, seconds=0.05, key="slow")
    assert shape(await everything(person, plugin, worker), "dask.group.name", "dask.task.count") == [
        "etl [span] dask.task.count=3",
        "  load [group] dask.group.name=load dask.task.count=1",
        "    ~load [task] dask.group.name=load",
        "      ~inner",
        "  other groups [group] dask.task.count=2",
        "  store [group] dask.group.name=store",
        "    ~store [task] dask.group.name=store",
        "      ~inner",
    ]


def use_later():
    """Use no span; what the task has started does, after the end of the run."""

    def go_on():
        Event("gate").wait()
        work()
        Event("done").set()

    threading.Thread(target=copy_context().run, args=(go_on,)).start()


@both(level=Level.SPANS)
async def test_spans_that_a_task_leaves_behind(person, plugin, client, scheduler, worker):
    """The span of the run is never made; the parent in its place is sent, though nothing runs any more."""
    with span("etl"):
        await client.submit(use_later, key="load")
    await until_sent(plugin, 1)
    await Event("gate", client=client).set()
    await Event("done", client=client).wait()
    await until(lambda: scheduler.get_events(TOPIC))
    spans = await everything(person, plugin, worker)
    assert shape(spans) == ["etl [span]", "  load [group]", "    ~inner"]


@both(level=Level.SPANS, config={"otel.workers.max-rate": 1})
async def test_spans_beyond_the_budget_of_a_worker(person, plugin, client, scheduler, worker):
    """Their parents are sent, each reported once."""
    with span("etl"):
        await client.submit(work, key="first")
        await client.gather(client.map(work, range(5), key="load"))
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  first [group]",
        "    ~first [task]",
        "      ~inner",
        "  load [group]",
        *["    ~inner"] * 5,
    ]
    assert len(scheduler.get_events(TOPIC)) == 2


def limit_rate(plugin):
    """Let segments and failed groups pass, and nothing else."""
    connect = plugin.connect

    def limited(scheduler, safety):
        settings, sink = connect(scheduler, safety)
        sink._rate_limiter = RateLimiter(1)
        return settings, sink

    plugin.connect = limited
    plugin.partial = Everything()


@both(bridge=limit_rate)
async def test_the_rate_limit(person, plugin, client, scheduler, worker):
    """It drops no group that spans are below, nor does it matter that it has dropped it before."""
    with span("etl"):
        await wait([client.submit(idle, key="load-0"), client.submit(work, key="store")])
        await until_sent(plugin, 1)
        await client.submit(work, key="load-1")
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  store [group]",
        "    ~store [task]",
        "      ~inner",
        "etl [span]",
        "  load [group]",
        *TASK,
    ]


@both(max_segment=1.0, idle_timeout=0.2)
async def test_a_default_root_that_fills_traces(person, plugin, client, scheduler, worker):
    """Tasks from before have the trace of before, later ones the segment of theirs."""
    held = client.submit(late, key="held")
    before = client.submit(work, held, key="before")
    await until_sent(plugin, 1)
    await client.submit(work, key="after")
    assert scheduler.tasks["before"].annotations == {}
    await Event("gate", client=client).set()
    await before
    spans = await everything(person, plugin, worker)
    assert len({each.trace_id for each in spans}) >= 2
    parents = {each.span_id: each for each in spans}
    tasks = {each.name: each for each in person.tasks()}
    above = {name: parents[each.parent_id] for name, each in tasks.items()}
    assert {name: each.attributes["dask.kind"] for name, each in above.items()} == {
        "held": "group",
        "before": "group",
        "after": "span",
    }
    assert tasks["after"].attributes["dask.group.name"] == "after"
    assert tasks["held"].trace_id == tasks["before"].trace_id != tasks["after"].trace_id


@both(max_segment=1.0, idle_timeout=0.2, default_level=Level.NOTHING)
async def test_a_default_segment_that_was_not_sent(person, plugin, client, scheduler, worker):
    """It is the parent after a roll-over, and has been cut when the span is made."""
    forest = plugin._bridge.span_tree.forest

    def traces():
        return max((node.trace_number for node in forest.nodes.values()), default=0)

    quiet = client.submit(idle, seconds=5, key="quiet")
    await until(lambda: traces() == 1)
    held = client.submit(late, key="held")
    await Event("begun", client=client).wait()
    assert "dask-parent" in scheduler.tasks["held"].annotations["otel"]
    await until(lambda: traces() == 2)
    await Event("gate", client=client).set()
    await held
    await quiet.cancel()
    spans = await everything(person, plugin, worker)
    assert shape(spans, "dask.task.count") == ["held [group]", "  ~held [task]", "    ~inner"]


@both(max_segment=1.0, idle_timeout=0.2, level=Level.SPANS)
async def test_groups_of_a_trace_that_is_full(person, plugin, client, scheduler, worker):
    """They were left out when it was sent: a span without numbers comes after it."""
    held = client.submit(late, key="held")
    await until_sent(plugin, 1)
    await Event("gate", client=client).set()
    await held
    spans = await everything(person, plugin, worker)
    first = [each for each in spans if each.trace_id == person.spans[0].trace_id]
    assert shape(first, "dask.task.count", "dask.span.segment") == [
        "default: held [span] dask.task.count=1 dask.span.segment=0",
        "  held [group]",
        "    ~held [task]",
        "      ~inner",
    ]


@both()
async def test_split_groups(person, plugin, client, scheduler, worker):
    futures = []
    for epoch in range(2):
        with span(f"epoch {epoch}"):
            futures += client.map(work, [epoch], key="fit", pure=False)
    with span("quiet"):
        futures += client.map(inc, [1], key="fit", pure=False)
    await wait(futures)
    assert shape(await everything(person, plugin, worker), "dask.group.name") == [
        "epoch 0 [span]",
        "  fit [group] dask.group.name=fit",
        "    ~fit [task] dask.group.name=fit",
        "      ~inner",
        "epoch 1 [span]",
        "  fit [group] dask.group.name=fit @ epoch 1",
        "    ~fit [task] dask.group.name=fit @ epoch 1",
        "      ~inner",
        "quiet [span]",
        "  fit [group] dask.group.name=fit @ quiet",
    ]


def sampled_by(sampler, plugin):
    plugin.sampler = sampler


@both(bridge=partial(sampled_by, ALWAYS_OFF))
async def test_a_trace_that_the_schedulers_sampler_leaves_out(person, plugin, client, scheduler, worker):
    with span("etl"):
        futures = client.map(work, range(3), key="load")
    await wait(futures)
    assert shape(await everything(person, plugin, worker)) == []
    values = [scheduler.tasks[future.key].annotations["otel"] for future in futures]
    assert values[0] is values[1] is values[2]
    assert values[0].keys() == {"dask-parent"}


@both(bridge=partial(sampled_by, ALWAYS_ON))
async def test_a_sampler_that_takes_what_the_caller_did_not(person, plugin, client, scheduler, worker):
    """The parent is then a segment; without a caller, it is the group as ever."""
    with inside(etl=anchored(1, 8, sampled=False)):
        await client.submit(work, key="load")
    with span("own"):
        await client.submit(work, key="store")
    await ended(worker)
    spans = [*await finished(plugin), *person.spans]
    names = {each.span_id: each.name for each in spans}
    assert sorted((each.name, names.get(each.parent_id)) for each in spans) == [
        ("etl", None),
        ("inner", "load"),
        ("inner", "store"),
        ("load", "etl"),
        ("load", "etl"),
        ("own", None),
        ("store", "own"),
        ("store", "store"),
    ]


@pytest.mark.parametrize("sampled", [True, False])
def test_callers_in_one_trace_that_do_not_agree(sampled):
    """The outermost decides, for the scheduler and for workers."""

    @both()
    async def run(person, plugin, client, scheduler, worker):
        with inside(etl=anchored(1, 8, sampled=sampled), load=anchored(1, 9, sampled=not sampled)):
            await client.submit(work, key="load")
        await ended(worker)
        spans = [*await finished(plugin), *person.spans]
        names = {each.span_id: each.name for each in spans}
        assert sorted((each.name, names.get(each.parent_id)) for each in spans) == sampled * [
            ("etl", None),
            ("inner", "load"),
            ("load", "etl"),
            ("load", "load"),
            ("load", "load"),
        ]

    run()


@both()
async def test_what_the_client_sent_stays(person, plugin, client, scheduler, worker):
    carrier = {"baggage": "a=b"}
    with span("a"):
        first = client.submit(work, key="fit-1")
    with span("b"), dask.annotate(otel=carrier):
        second = client.submit(work, key="fit-2")
        third = client.submit(inc, 1, key="other")
    with span("c"), dask.annotate(otel="somebody's own"):
        fourth = client.submit(inc, 1, key="fit-3")
    await wait([first, second, third, fourth])
    tasks = scheduler.tasks
    assert "otel" not in tasks["fit-1"].annotations
    assert tasks["fit-2"].annotations["otel"] == {"baggage": "a=b", "dask-group": "fit @ b"}
    assert tasks["other"].annotations["otel"] == carrier
    assert tasks["fit-3"].annotations["otel"] == "somebody's own"


GOOD = SpanMade("x", 1, "id", "x", 1, 2, 3).to_event()
BAD = [None, "text", 5, ["span-made"], {}, {"action": "span-made"}, {"action": ["span-made"]}, GOOD]
BAD += [
    GOOD | {"key": ["not", "hashable"]},
    GOOD | {"run-id": [1]},
    GOOD | {"trace-id": "-1"},
    GOOD | {"key": object()},
    GOOD | {"key": ()},
]


@both()
async def test_what_anybody_may_log(person, plugin, client, scheduler, worker):
    with span("etl") as root:
        future = client.submit(inc, 1, key="x")
        await future
    for event in [*BAD, SpanMade("x", 1, root, "no such group", 1, 2, 3).to_event()] * 20:
        scheduler.log_event(TOPIC, event)
        scheduler.log_event("all", event)
        scheduler.log_event([TOPIC], event)
    assert shape(await everything(person, plugin, worker)) == ["etl [span]", "  x [group]"]


@both(level=Level.SPANS, cluster={"nthreads": [("127.0.0.1", 1)] * 2})
async def test_a_worker_that_is_killed(person, plugin, client, scheduler, a, b):
    """Its task's span is lost; what was below and has been sent has a grandparent at least."""
    with span("etl"):
        future = client.submit(early, key="load", workers=[a.address])
    await Event("begun", client=client).wait()
    await until(lambda: scheduler.get_events(TOPIC))
    await scheduler.remove_worker(a.address, stimulus_id="test")
    await future.cancel()
    await until(lambda: "load" not in scheduler.tasks)
    await Event("gate", client=client).set()
    assert shape(await finished(plugin)) == ["etl [span]", "  load [group]"]


@both()
async def test_a_run_that_goes_on_after_its_task_was_cancelled(person, plugin, client, scheduler, worker):
    with span("etl"):
        future = client.submit(late, key="load")
    await Event("begun", client=client).wait()
    await future.cancel()
    await until_sent(plugin, 1)
    await Event("gate", client=client).set()
    await until(lambda: scheduler.get_events(TOPIC))
    await until(lambda: not worker.active_keys)
    await worker.heartbeat()
    spans = await everything(person, plugin, worker)
    # The second segment has the metrics of the run.
    assert shape(spans) == ["etl [span]", "  load [group]", *TASK, "etl [span]"]


@both()
async def test_another_bridge_knows_of_spans_of_tasks_that_go_on(person, plugin, client, scheduler, worker):
    """The run fails under the second one: it has one span."""

    def fails_late():
        from scheduler.test_worker_spans import early

        early()
        raise ValueError

    with span("etl"):
        held = client.submit(fails_late, key="held")
        await Event("begun", client=client).wait()
        await until(lambda: scheduler.get_events(TOPIC))
        with dask.config.set({"otel.traces.slowest-tasks": 1}):
            other = type(plugin)()
            await other.add_to(scheduler)
        await Event("gate", client=client).set()
        await wait(held)
    await ended(worker)
    spans = [*await finished(other), *plugin.exporter.spans(), *person.spans]
    assert [each.name for each in spans if each.attributes.get("dask.kind") == "task"] == ["held"]


@both()
async def test_another_bridge_takes_its_place(person, plugin, client, scheduler, worker):
    """It numbers groups differently: the spans of later tasks have the segment for a parent."""
    with span("etl") as root:
        held = client.submit(late, key="held")
        await Event("begun", client=client).wait()
        with dask.config.set({"otel.traces.slowest-tasks": 1}):  # else it would take part in the first one
            other = type(plugin)()
            await other.add_to(scheduler)
        await client.submit(work, key="later")
        await Event("gate", client=client).set()
        await held
    await ended(worker)
    await finished(other)
    spans = {each.span_id: each for each in [*plugin.exporter.spans(), *other.exporter.spans(), *person.spans]}
    assert {each.trace_id for each in spans.values()} == {dask_otel.trace_id(root)}
    assert {each.name: spans[each.parent_id].name for each in person.tasks()} == {"held": "held", "later": "etl"}


@both()
async def test_annotations_of_whoever_made_the_cluster(person, plugin, client, scheduler, worker):
    """Layers that are made while the scheduler takes a graph in do not get them."""
    seen = []

    handler, bridge = scheduler.stream_handlers["update-graph"], plugin._bridge

    async def look(*args, **message):
        seen.append(dask.get_annotations())

    bridge.submissions._handler = look
    dask.base._annotations.set({"team": "red"})
    await handler(client="client", keys=[], annotations={})
    assert seen == [{}]
