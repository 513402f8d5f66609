"""A real in-process cluster, the bridge with an exporter in memory: whole traces, against Dask's own numbers."""

from __future__ import annotations

import asyncio

import dask
import pytest
from distributed import Client, Event, Nanny, Worker, span, wait
from distributed.utils_test import gen_cluster, inc, slowinc
from support.clusters import bridged, busy_seconds, close, trace_of
from support.memory import MemoryPlugin
from support.trees import tree

from dask_otel.identity import group_id, segment_id, trace_id


def fail(x):
    raise ValueError(f"bad {x}")


@bridged()
async def test_nested_spans(plugin, client, scheduler, *workers):
    with span("Alice's workflow") as root_id:
        with span("data load") as load_id:
            raw = client.map(inc, range(10), key="load")
        with span("ML preprocessing", "scale") as scale_id:
            scaled = client.map(inc, raw, key="scale")
        await client.gather(scaled)
    spans = await trace_of(plugin, root_id)
    assert tree(spans, "dask.task.count", "dask.task.completed", "dask.span.path") == [
        "Alice's workflow [span] dask.task.count=20 dask.task.completed=20 dask.span.path=Alice's workflow",
        "  data load [span] dask.task.count=10 dask.task.completed=10 dask.span.path=Alice's workflow / data load",
        "    load [group] dask.task.count=10 dask.task.completed=10 dask.span.path=Alice's workflow / data load",
        "  ML preprocessing [span] dask.task.count=10 dask.task.completed=10 "
        "dask.span.path=Alice's workflow / ML preprocessing",
        "    scale [span] dask.task.count=10 dask.task.completed=10 "
        "dask.span.path=Alice's workflow / ML preprocessing / scale",
        "      scale [group] dask.task.count=10 dask.task.completed=10 "
        "dask.span.path=Alice's workflow / ML preprocessing / scale dependency -> load",
    ]
    ids = {span.span_id for span in spans}
    assert f"{segment_id(load_id, 0):016x}" in ids
    assert f"{group_id(scale_id, 'scale', 0):016x}" in ids
    for each in spans:
        assert each.trace_id == f"{trace_id(root_id):032x}"
        assert each.attributes["dask.span.root"] == "Alice's workflow"
        assert each.resource["service.name"] == "dask-scheduler"
        assert each.resource["service.instance.id"] == scheduler.id


def oracle(span):
    """What Dask itself says of a span, by our names."""
    numbers = {"dask.task.count": sum(span.states.values()), "dask.output.size": span.nbytes_total}
    for action, seconds in span.all_durations.items():
        numbers[f"dask.duration.{action.replace('-', '_')}"] = seconds
    for key, value in span.cumulative_worker_metrics.items():
        if key[0] == "execute" and key[2] != "idle or other spans":
            name = f"dask.execute.{key[2].replace('-', '_')}.{key[3]}"
            numbers[name] = numbers.get(name, 0) + value
    return numbers


@bridged()
async def test_numbers_equal_dasks_own(plugin, client, scheduler, *workers):
    with span("root") as root_id:
        with span("a"):
            a = client.map(slowinc, range(10), delay=0.01, key="a")
        with span("b"):
            b = client.map(inc, a, key="b")
            c = client.submit(sum, b, key="c")
        await c
    spans = await trace_of(plugin, root_id)
    by_dask_id = {s.attributes["dask.span.id"]: s for s in spans if s.attributes["dask.kind"] == "span"}
    assert len(by_dask_id) == 3
    for span_id, found in by_dask_id.items():
        expected = oracle(scheduler.extensions["spans"].spans[span_id])
        got = {name: found.attributes[name] for name in expected}
        assert got == pytest.approx(expected)
        assert found.attributes["dask.metrics.complete"] is True
        others = {n for n in found.attributes if n.startswith(("dask.execute.", "dask.duration."))} - set(expected)
        assert not others
    root = by_dask_id[root_id]
    dask_root = scheduler.extensions["spans"].spans[root_id]
    assert root.start == pytest.approx(dask_root.enqueued, abs=1e-6)
    assert root.end == pytest.approx(dask_root.stop, abs=1e-6)
    assert root.attributes["dask.thread_time.available"] == pytest.approx(dask_root.active_cpu_seconds, rel=1e-3)
    parts = [v for n, v in root.attributes.items() if n.startswith("dask.wall.")]
    assert sum(parts) == pytest.approx(root.seconds, abs=1e-6)


@bridged()
async def test_group_attributes(plugin, client, scheduler, *workers):
    with span("root") as root_id:
        futures = client.map(slowinc, range(12), delay=0.02, key="work")
        await wait(futures)
    spans = await trace_of(plugin, root_id)
    group = next(s for s in spans if s.attributes["dask.kind"] == "group")
    attributes = group.attributes
    assert attributes["dask.task.prefix"] == attributes["dask.group.name"] == group.name == "work"
    assert attributes["dask.task.types"] == ["int"]
    assert attributes["dask.worker.count"] == 2
    assert 1 / 2 <= attributes["dask.worker.share.max"] < 1
    assert 0.019 < attributes["dask.task.duration.p50"] <= attributes["dask.task.duration.p95"]
    assert attributes["dask.task.duration.p95"] <= attributes["dask.task.duration.max"]
    tg = scheduler.task_groups["work"]
    assert group.end == pytest.approx(tg.stop, abs=1e-6)
    assert group.start <= tg.start + 1e-6  # Dask's is that of the run which it was told of first
    assert attributes["dask.execute.thread_noncpu.seconds"] > 0.2


@bridged(annotations=("team",))
async def test_who_submitted(plugin, client, scheduler, *workers):
    async with Client(scheduler.address, asynchronous=True, name="alice") as alice:
        with span("root") as root_id:
            with dask.annotate(team="red", secret="hidden"):
                await alice.submit(inc, 1, key="a")
            await client.submit(inc, 1, key="b")
        spans = await trace_of(plugin, root_id)
        root = next(s for s in spans if not s.parent_id)
        assert root.attributes["dask.client.id"] == [alice.id, client.id]
        assert root.attributes["dask.client.name"] == "alice"
        assert root.attributes["dask.annotation.team"] == "red"
        assert "hidden" not in str(root.attributes)
        assert root.attributes["dask.collections"] == ["Future"]
        assert 0 < root.attributes["dask.graph.update_time"] < 30


@bridged()
async def test_errors(plugin, client, scheduler, *workers):
    with span("root") as root_id:
        with span("fine"):
            await client.submit(inc, 1, key="fine")
        with span("bad"):
            futures = client.map(fail, range(2), key="bad")
            dependent = client.submit(inc, futures[0], key="dependent")
            await wait([*futures, dependent])
            del futures, dependent
    spans = await trace_of(plugin, root_id)
    lines = tree(spans, "dask.span.result", "dask.task.erred", "dask.task.upstream_failed")
    # Of groups of which one sweep tells, the order is not known.
    first, first_of_group = (lines[number].split("first: ")[1] for number in (0, 4))
    assert {first, first_of_group} <= {"bad 0", "bad 1"}
    assert lines == [
        "root [span] dask.span.result=error dask.task.erred=2 dask.task.upstream_failed=1 "
        f"Error: ValueError: 2 tasks erred, 1 task failed upstream; first: {first}",
        "  fine [span] dask.span.result=success",
        "    fine [group]",
        "  bad [span] dask.span.result=error dask.task.erred=2 dask.task.upstream_failed=1 "
        f"Error: ValueError: 2 tasks erred, 1 task failed upstream; first: {first}",
        f"    bad [group] dask.task.erred=2 Error: ValueError: 2 tasks erred; first: {first_of_group}",
        "    dependent [group] dask.task.upstream_failed=1 "
        "Error: ValueError: 1 task failed upstream; first: bad 0 dependency -> bad",
    ]


@bridged()
async def test_a_retry_that_succeeds_is_no_error(plugin, client, scheduler, *workers):
    event = Event("tried", client=client)

    async def flaky():
        if not await event.is_set():
            await event.set()
            raise ConnectionError("once")
        return 1

    with span("root") as root_id:
        await client.submit(flaky, key="flaky", retries=1)
    spans = await trace_of(plugin, root_id)
    assert tree(spans, "dask.span.result", "dask.task.completed", "dask.task.retried") == [
        "root [span] dask.span.result=success dask.task.completed=1 dask.task.retried=1",
        "  flaky [group] dask.task.completed=1 dask.task.retried=1",
    ]


@bridged()
async def test_default_spans(plugin, client, scheduler, *workers):
    await client.submit(inc, 1, key="one")
    await client.submit(inc, 1, key="two")
    roots = scheduler.extensions["spans"].root_spans
    assert len(roots) == 2
    for root, name in zip(roots, ("one", "two"), strict=True):
        spans = await trace_of(plugin, root.id)
        assert tree(spans) == [f"default: {name} [span]", f"  {name} [group]"]
        assert spans[-1].attributes["dask.span.tags"] == ["default"]
        assert spans[-1].attributes["dask.span.root"] == "default"


@bridged()
async def test_scattered_data_alone_is_no_trace(plugin, client, scheduler, *workers):
    data = await client.scatter({"x": 1})
    with span("root") as root_id:
        await client.submit(inc, data["x"], key="use")
    spans = await trace_of(plugin, root_id)
    assert tree(spans, "dask.group.dependencies") == [
        "root [span]",
        "  use [group] dask.group.dependencies=['x']",
    ]
    await plugin.before_close()
    assert {s.attributes["dask.span.root"] for s in plugin.exporter.spans()} == {"root"}


@bridged()
async def test_siblings_of_the_same_name_and_parameterised_tags(plugin, client, scheduler, *workers):
    ids = []
    with span("root") as root_id:
        for lr in (0.1, 0.1, 0.2):
            with span("fit", f"lr={lr}") as span_id:
                ids.append(span_id)
                await client.submit(inc, 1, key=f"fit{len(ids)}")
    spans = await trace_of(plugin, root_id)
    assert tree(spans) == [
        "root [span]",
        *["  fit [span]", "    lr=0.1 [span]", "      fit1 [group]"],
        *["  fit [span]", "    lr=0.1 [span]", "      fit2 [group]"],
        *["  fit [span]", "    lr=0.2 [span]", "      fit3 [group]"],
    ]
    assert {f"{segment_id(span_id, 0):016x}" for span_id in ids} <= {s.span_id for s in spans}


@bridged(idle_timeout=0.1)
async def test_work_after_a_pause_is_the_next_segment(plugin, client, scheduler, *workers):
    with span("root") as root_id:
        await client.submit(inc, 1, key="first")
        (first, *_) = await trace_of(plugin, root_id)
        await client.submit(inc, 2, key="second")
    await plugin.before_close()
    spans = plugin.exporter.spans()
    assert tree(spans, "dask.span.segment") == [
        "root [span] dask.span.segment=0",
        "  first [group]",
        "root [span] dask.span.segment=1",
        "  second [group]",
    ]
    second = next(s for s in spans if s.attributes.get("dask.span.segment") == 1)
    assert second.attributes["dask.segment.previous_id"] == f"{segment_id(root_id, 0):016x}"
    assert second.trace_id == first.trace_id


@bridged(max_segment=0.5)
async def test_a_long_span_is_sent_in_pieces(plugin, client, scheduler, *workers):
    event = Event("go", client=client)

    async def hold():
        await event.wait()
        return 1

    with span("root", "child") as child_id:
        future = client.submit(hold, key="hold")
        root_id = scheduler_root(scheduler, await span_seen(scheduler, child_id))
        first = [s for s in await trace_of(plugin, root_id) if not s.attributes.get("dask.span.segment")]
        await event.set()
        await future
    assert tree(first, "dask.span.result") == [
        "root [span] dask.span.result=unfinished",
        "  child [span] dask.span.result=unfinished",
        "    hold [group]",
    ]
    await plugin.before_close()
    spans = plugin.exporter.spans()
    last = max(spans, key=lambda s: s.attributes.get("dask.span.segment", 0))
    assert last.attributes["dask.span.result"] == "success"
    assert sum(s.attributes["dask.task.count"] for s in spans if s.name == "root") == 1
    assert sum(s.attributes["dask.task.completed"] for s in spans if s.name == "root") == 1


async def span_seen(scheduler, span_id):
    spans = scheduler.extensions["spans"].spans
    while span_id not in spans:
        await asyncio.sleep(0.01)
    return spans[span_id]


def scheduler_root(scheduler, dask_span):
    while dask_span.parent:
        dask_span = dask_span.parent
    return dask_span.id


@bridged()
async def test_cancelled(plugin, client, scheduler, *workers):
    event = Event("started", client=client)

    async def hang():
        await event.set()
        await asyncio.sleep(600)

    with span("root") as root_id:
        future = client.submit(hang, key="hang")
        await event.wait()
        await future.cancel()
    spans = await trace_of(plugin, root_id)
    assert tree(spans, "dask.span.result", "dask.task.completed", "dask.task.cancelled") == [
        "root [span] dask.span.result=cancelled dask.task.completed=0 dask.task.cancelled=1",
        "  hang [group] dask.task.completed=0 dask.task.cancelled=1",
    ]


@bridged(nthreads=[("127.0.0.1", 1), ("127.0.0.1", 2), ("127.0.0.1", 2)])
async def test_thread_time_of_others(plugin, client, scheduler, *workers):
    # One worker stays idle: where all threads are busy, their clocks may add up to more than there was.
    busy = [worker.address for worker in workers[:2]]
    with span("hog") as hog_id:
        hog = client.map(slowinc, range(12), delay=0.3, key="hog", workers=busy)
    with span("guest") as guest_id:
        guest = client.map(slowinc, range(6), delay=0.3, key="guest", workers=busy)
    await wait([*hog, *guest])
    hog_root = (await trace_of(plugin, hog_id))[-1].attributes
    guest_root = (await trace_of(plugin, guest_id))[-1].attributes
    for span_id, root, seconds in ((hog_id, hog_root, 12 * 0.3), (guest_id, guest_root, 6 * 0.3)):
        metrics = scheduler.extensions["spans"].spans[span_id].cumulative_worker_metrics
        theirs = busy_seconds(metrics)
        assert root["dask.thread_time.busy"] == pytest.approx(theirs)
        assert theirs > 0.95 * seconds
    assert 0 < guest_root["dask.thread_time.others"] <= hog_root["dask.thread_time.busy"] + 0.1
    for root in (hog_root, guest_root):
        mine = root["dask.thread_time.available"] - root["dask.thread_time.others"]
        assert root["dask.efficiency"] == pytest.approx(min(1, root["dask.thread_time.busy"] / mine))


@bridged()
async def test_a_worker_that_leaves_is_a_known_loss(plugin, client, scheduler, a, b):
    a.periodic_callbacks["heartbeat"].stop()
    with span("root") as root_id:
        await client.submit(inc, 1, key="work", workers=[a.address], allow_other_workers=False)
        del client.futures["work"]
    await scheduler.remove_worker(a.address, stimulus_id="test", close=False)
    spans = await trace_of(plugin, root_id)
    assert spans[-1].attributes["dask.metrics.complete"] is False


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_closing_waits_for_the_last_metrics(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    with span("root") as root_id:
        await client.submit(slowinc, 1, delay=0.2, key="work")
    await close(scheduler, client)
    spans = plugin.exporter.spans()
    assert tree(spans, "dask.span.result") == ["root [span] dask.span.result=success", "  work [group]"]
    root = next(s for s in spans if not s.parent_id)
    assert root.attributes["dask.span.id"] == root_id
    assert root.attributes["dask.thread_time.busy"] > 0.19
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_closing_with_unfinished_work_says_interrupted(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    event = Event("started", client=client)

    async def hang():
        await event.set()
        await asyncio.sleep(600)

    with span("root", "child"):
        future = client.submit(hang, key="hang")
        await event.wait()
    await close(scheduler, client)
    assert not future.done() or future.cancelled()
    assert tree(plugin.exporter.spans(), "dask.span.result") == [
        "root [span] dask.span.result=interrupted Error: interrupted: 1 task did not end",
        "  child [span] dask.span.result=interrupted",
        "    hang [group]",
    ]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_a_finished_workflow_is_a_success_when_the_workers_stop_first(client, scheduler, worker):
    """As LocalCluster.close does it, with results still held."""
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    with span("root"):
        futures = client.map(inc, range(10), key="held")
        await wait(futures)
    await worker.close()
    while scheduler.workers:
        await asyncio.sleep(0.01)
    await close(scheduler, client)
    spans = plugin.exporter.spans()
    assert tree(spans, "dask.span.result", "dask.task.completed") == [
        "root [span] dask.span.result=success dask.task.completed=10",
        "  held [group] dask.task.completed=10",
    ]
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_registered_on_a_running_cluster_counts_from_then(client, scheduler, worker):
    with span("root") as root_id:
        before = client.map(inc, range(5), key="before")
        await wait(before)
        event = Event("go", client=client)

        async def hold():
            await event.wait()

        held = client.submit(hold, key="held")
        while "held" not in {ts.group.name for ts in scheduler.tasks.values()}:
            await asyncio.sleep(0.01)
        plugin = MemoryPlugin()
        await plugin.add_to(scheduler)
        await event.set()
        await held
        await client.submit(inc, 1, key="after")
        # The same group goes on: only what is new counts.
        await wait(client.map(inc, range(5, 7), key="before"))
    spans = await trace_of(plugin, root_id)
    numbers = {
        s.name: (s.attributes["dask.task.count"], s.attributes["dask.task.completed"])
        for s in spans
        if s.attributes["dask.kind"] != "task"
    }
    assert numbers == {"held": (0, 1), "after": (1, 1), "before": (2, 2), "root": (3, 4)}
    await plugin.before_close()
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_unregistering_stops_it_and_sends_what_is_open(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    with span("root") as root_id:
        await client.submit(inc, 1, key="work")
    await client.unregister_scheduler_plugin(plugin.name)
    assert tree(await trace_of(plugin, root_id)) == ["root [span]", "  work [group]"]
    assert "heartbeat" not in vars(scheduler.extensions["spans"])
    await client.submit(inc, 2)
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_registering_twice_changes_nothing(client, scheduler, worker):
    first, second = MemoryPlugin(), MemoryPlugin()
    await first.add_to(scheduler)
    await second.add_to(scheduler)
    assert scheduler.plugins[first.name] is second
    assert second.exporter is first.exporter  # it takes part in the bridge of the first
    with span("root") as root_id:
        await client.submit(inc, 1, key="work")
    assert [each.name for each in await trace_of(first, root_id)] == ["work", "root"]
    await second.before_close()
    assert not first.is_on


@pytest.mark.slow
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], Worker=Nanny)
async def test_restart(client, scheduler, nanny):
    async def hang():
        await asyncio.sleep(600)

    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("before") as before_id:
        future = client.submit(hang, key="hang")
        await span_seen(scheduler, before_id)
        while not any(ws.processing for ws in scheduler.workers.values()):
            await asyncio.sleep(0.01)
        await client.restart()
    with span("after") as after_id:
        assert await client.submit(inc, 1, key="work") == 2
    assert tree(await trace_of(plugin, before_id), "dask.task.cancelled") == [
        "before [span] dask.task.cancelled=1",
        "  hang [group] dask.task.cancelled=1",
    ]
    assert tree(await trace_of(plugin, after_id)) == ["after [span]", "  work [group]"]
    await plugin.before_close()
    assert future.cancelled()
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_dask_is_left_as_it_was(client, scheduler, a: Worker, b: Worker):
    """The hooks of the workers' heartbeats still do what they did, and workers live."""
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("root") as root_id:
        await client.map(slowinc, range(4), delay=0.01, key="x")[0]
    await trace_of(plugin, root_id)
    metrics = scheduler.extensions["spans"].spans[root_id].cumulative_worker_metrics
    assert any(key[0] == "execute" and key[1] == "x" for key in metrics)
    assert len(scheduler.workers) == 2
    await plugin.before_close()
