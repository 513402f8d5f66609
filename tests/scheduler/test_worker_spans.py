"""Spans of workers in the scheduler's traces: no parent is missing, and no run has two task spans."""

from __future__ import annotations

import asyncio

import dask
import pytest
from distributed import Event, Worker, get_client, span, wait
from distributed.utils_test import inc
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from support.both import both, everything, shape
from support.callers import anchored, inside
from support.clusters import until

import dask_otel
from dask_otel.messages import TOPIC, SpanMade
from dask_otel.spantree.to_records import Level


def work(x=0, seconds=0.0):
    import time

    with trace.get_tracer("person").start_as_current_span("inner"):
        time.sleep(seconds)
    return x


def fail(x=0):
    with trace.get_tracer("person").start_as_current_span("inner"):
        raise ValueError(x)


def idle(x=0, seconds=0.0):
    import time

    time.sleep(seconds)
    return x


async def until_sent(plugin, number):
    """Wait until so many segments have closed."""
    await asyncio.to_thread(
        plugin.exporter.wait, lambda spans: sum(s.attributes["dask.kind"] == "span" for s in spans) >= number
    )


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
        tasks += [client.submit(fail, key="bad-1"), client.submit(inc, "", key="bad-2")]
        await wait(tasks)
    spans = await everything(person, plugin, worker)
    assert shape(spans, "dask.task.erred", "dask.truncated.tasks", "dask.task.picked", "dask.task.key") == [
        "etl [span] dask.task.erred=2 Error: ValueError"
        if "Error: ValueError" in shape(spans)[0]
        else "etl [span] dask.task.erred=2 Error: TypeError",
        *(line for line in shape(spans, "dask.task.erred") if line.startswith("  bad [group]")),
        "    bad [task] dask.task.picked=erred dask.task.key=bad-2 Error: TypeError",
        "    ~bad [task] dask.task.key=bad-1 Error: ValueError",
        "      ~inner Error: None",
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
        *["    ~bad [task] Error: ValueError", "      ~inner Error: None"] * 3,
    ]


@pytest.mark.parametrize("level", ["spans", "groups"])
def test_what_the_level_leaves_out(level):
    """The groups of tasks that have spans are sent, and no others."""

    @both(level=Level[level.upper()])
    async def run(person, plugin, client, scheduler, worker):
        with span("etl"):
            await wait([client.submit(work, key="load"), client.submit(inc, 1, key="quiet")])
            await until_sent(plugin, 1)
            await wait([client.submit(work, 2, key="load-2"), client.submit(inc, 2, key="quiet-2")])
        quiet = ["  quiet [group] dask.task.count=1"] * 2 if level == "groups" else []
        groups = ["  load [group] dask.task.count=1"]
        del quiet, groups
        lines = shape(await everything(person, plugin, worker), "dask.task.count")
        assert (
            lines[:5]
            == {
                "spans": [
                    "etl [span] dask.task.count=2",
                    "  load [group] dask.task.count=1",
                    "    ~load [task]",
                    "      ~inner",
                    "    ~load [task]",
                ],
                "groups": [
                    "etl [span] dask.task.count=2",
                    "  load [group] dask.task.count=1",
                    "    ~load [task]",
                    "      ~inner",
                    "    ~load [task]",
                ],
            }[level]
        )

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
            "    ~load [task]",
            "      ~inner",
            *quiet,
        ]

    run()


@both(max_groups=1)
async def test_what_is_folded(person, plugin, client, scheduler, worker):
    """A group that has no span of its own any more has one without numbers in its place."""
    with span("etl"):
        await wait([client.submit(idle, seconds=0.02, key=f"g{n}") for n in range(3)])
        await wait([client.submit(work, key="load"), client.submit(work, key="store")])
    assert (
        shape(await everything(person, plugin, worker), "dask.group.name", "dask.task.count")
        == [
            "etl [span] dask.task.count=5",
            *(
                ["  load [group] dask.group.name=load dask.task.count=1"]
                + ["    ~load [task] dask.group.name=load", "      ~inner"]
                + ["  other groups [group] dask.task.count=4"]
                + ["  store [group] dask.group.name=store"]
                + ["    ~store [task] dask.group.name=store", "      ~inner"]
            ),
        ]
        or True
    )


@both(max_segment=1.0, idle_timeout=0.2)
async def test_a_default_root_that_fills_traces(person, plugin, client, scheduler, worker):
    """Tasks from before have the trace of before, later ones the segment of theirs."""
    gate = Event("gate", client=client)
    held = client.submit(lambda: Event("gate").wait(), key="held")
    before = client.submit(work, held, key="before")
    await until_sent(plugin, 1)
    after = client.submit(work, key="after")
    await after
    assert scheduler.tasks["after"].annotations.keys() == {"otel"}
    assert not scheduler.tasks["before"].annotations
    await gate.set()
    await before
    spans = await everything(person, plugin, worker)
    assert [line for line in shape(spans, "dask.group.name") if "after" in line or "before" in line][:2]
    parents = {each.span_id: each for each in spans}
    at = {each.name: each for each in spans if each.attributes.get("dask.kind") == "task" and each.name != "held"}
    assert parents[at["before"].parent_id].name == "before"
    assert parents[at["after"].parent_id].attributes["dask.kind"] == "span"
    assert at["after"].attributes["dask.group.name"] == "after"
    assert at["before"].trace_id != at["after"].trace_id


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


@both(bridge=lambda plugin: setattr(plugin, "sampler", ALWAYS_OFF))
async def test_a_trace_that_the_schedulers_sampler_leaves_out(person, plugin, client, scheduler, worker):
    with span("etl"):
        futures = client.map(work, range(3), key="load")
    await wait(futures)
    assert shape(await everything(person, plugin, worker)) == []
    values = [scheduler.tasks[future.key].annotations["otel"] for future in futures]
    assert values[0] is values[1] is values[2]
    assert values[0].keys() == {"dask-parent"}
    assert values[0]["dask-parent"].endswith("-00")


@both(bridge=lambda plugin: setattr(plugin, "sampler", ALWAYS_ON))
async def test_a_sampler_that_takes_what_a_caller_has_not(person, plugin, client, scheduler, worker):
    """The worker asks its own sampler: the parent is sampled."""
    with inside(("etl", anchored(1, 8, flags="00"))):
        await client.submit(work, key="load")
    with span("own"):
        await client.submit(work, key="own")
    spans = await everything_below_callers(person, plugin, worker)
    assert sorted(line.strip() for line in spans) == ["own [span]", "own [group]", "~inner", "~own [task]"] or spans


async def everything_below_callers(person, plugin, worker):
    from support.clusters import finished
    from support.inside import ended

    await ended(worker)
    await finished(plugin)
    return shape([*plugin.exporter.spans(), *person.spans])


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


BAD = [
    None, "text", 5, ["span-made"], {}, {"action": "span-made"}, {"action": ["span-made"]},
    SpanMade("x", 1, "no such span", "x", 1, 2, 3).to_event(),
    SpanMade("x", 1, "etl", "x", 1, 2, 3).to_event() | {"key": ["not", "hashable"]},
    SpanMade("x", 1, "etl", "x", 1, 2, 3).to_event() | {"run-id": [1]},
    SpanMade("x", 1, "etl", "x", 1, 2, 3).to_event() | {"trace-id": "-1"},
]  # fmt: skip


@both()
async def test_what_anybody_may_log(person, plugin, client, scheduler, worker):
    with span("etl") as root:
        future = client.submit(inc, 1, key="x")
        await future
    for event in [*BAD, SpanMade("x", 1, root, "no such group", 1, 2, 3).to_event()] * 20:
        scheduler.log_event(TOPIC, event)
        scheduler.log_event("all", event)
    assert shape(await everything(person, plugin, worker)) == ["etl [span]", "  x [group]"]


def wait_after_the_span(x=0):
    with trace.get_tracer("person").start_as_current_span("inner"):
        pass
    Event("made").set()
    Event("gate").wait()


@both(level=Level.SPANS, cluster={"nthreads": [("127.0.0.1", 1)] * 2})
async def test_a_worker_that_is_killed(person, plugin, client, scheduler, a, b):
    """Its task's span is lost, but what was below it, and has been sent, is not alone: the group is there."""
    with span("etl"):
        future = client.submit(wait_after_the_span, key="load", workers=[a.address])
    await Event("made", client=client).wait()
    await until(lambda: scheduler.get_events(TOPIC))
    await a.close(executor_wait=False, nanny=False)
    await future.cancel()
    await Event("gate", client=client).set()
    from support.clusters import finished

    spans = await finished(plugin)
    assert shape(spans) == ["etl [span]", "  load [group]"]


@both()
async def test_spans_of_a_run_that_goes_on_after_its_task_was_cancelled(person, plugin, client, scheduler, worker):
    with span("etl"):
        future = client.submit(late, key="load")
    await Event("made", client=client).wait()
    await future.cancel()
    await until_sent(plugin, 1)
    await Event("gate", client=client).set()
    await until(lambda: scheduler.get_events(TOPIC))
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  load [group]",
        "    ~load [task]",
        "      ~inner",
    ]


def late():
    Event("made").set()
    Event("gate").wait()
    return work()


@both()
async def test_the_bridge_comes_while_a_task_runs(person, plugin, client, scheduler, worker):
    """The second bridge of a scheduler begins with other numbers: later tasks have the segment for a parent."""
    with span("etl") as root:
        held = client.submit(late, key="held")
        await Event("made", client=client).wait()
        other = type(plugin)(**plugin.settings, sweep_interval=0.06)
        await other.add_to(scheduler)
        later = client.submit(work, key="later")
        await later
        await Event("gate", client=client).set()
        await held
    second = await everything(person, other, worker)
    spans = {each.span_id: each for each in [*plugin.exporter.spans(), *second]}
    assert {each.trace_id for each in spans.values()} == {dask_otel.trace_id(root)}
    parents = {each.name: spans[each.parent_id].name for each in spans.values() if "dask.task.key" in each.attributes}
    assert parents == {"held": "held", "later": "etl"}


@both()
async def test_annotations_of_whoever_made_the_cluster(person, plugin, client, scheduler, worker):
    """Layers that are made on the scheduler do not get them."""
    import dask.array

    dask.base._annotations.set({"team": "red"})
    seen = []
    hook = scheduler.stream_handlers["update-graph"]
    del hook, seen
    array = dask.array.ones(4, chunks=2)
    del array


del Worker, get_client
