"""Roots that ended long ago leave Dask's extension and the span tree; cluster and traces do not suffer from it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter

import dask
import pytest
from distributed import Client, span
from distributed.spans import Span
from distributed.utils_test import captured_logger, gen_cluster, inc
from support import switches
from support.clusters import bridged, finished, until
from support.memory import MemoryPlugin

from dask_otel.messages import PARENT_FIELD
from dask_otel.scheduler import compat, forgetting
from dask_otel.scheduler.forgetting import LateMetrics, _Root, memory_of
from dask_otel.spantree.ledger import Ledger
from dask_otel.spantree.tree import Node

#: Seconds; short, so that a test need not last.
AFTER = 0.2
ONE_WORKER = [("127.0.0.1", 1)]


@pytest.fixture(autouse=True)
def _only_the_latest_root_stays(monkeypatch):
    """Not those of a name: most tests have few names."""
    monkeypatch.setattr(forgetting, "KEPT_NAMES", 0)


def named(*names):
    """A span whose id a test knows, as one that a person leaves open for days."""
    return dask.annotate(span={"name": names, "ids": tuple(f"id of {name}" for name in names)})


async def work(client, key, number=1):
    """Tasks that come and go."""
    await client.gather(client.map(inc, range(number), key=key, pure=False))


def forgotten(plugin):
    """What was forgotten so far."""
    return plugin._bridge.status()["forgotten"]


async def until_forgotten(plugin, roots):
    await until(lambda: forgotten(plugin)["roots"] == roots)


def check_indexes(plugin, scheduler, *, is_whole=True):
    """Dask's four indexes agree, without empty keys; the span tree has the same spans."""
    extension = scheduler.extensions["spans"]
    spans = list(extension.spans.values())
    assert all(extension.spans[each.id] is each for each in spans)
    assert [each for each in spans if each.parent is None] == extension.root_spans
    by_name, by_tag = {}, {}
    for each in spans:
        by_name.setdefault(each.name, []).append(each)
        for tag in each.name:
            by_tag.setdefault(tag, []).append(each)
    assert by_name == dict(extension.spans_search_by_name)
    assert by_tag == dict(extension.spans_search_by_tag)
    children = {child for each in spans for child in each.children}
    assert {each for each in spans if each.parent} <= children
    assert not is_whole or len(children) == len(spans) - len(extension.root_spans)
    nodes = plugin._bridge.span_tree.forest.nodes
    assert set(nodes) <= set(extension.spans)
    extension.merge_all().cumulative_worker_metrics  # noqa: B018 -- Dask fails if there is no root, or one is half gone


def segments(plugin, id_):
    """The segments of a Dask span that were sent, in their order."""
    found = [each for each in plugin.exporter.spans() if each.attributes["dask.span.id"] == id_]
    found = [each for each in found if each.attributes["dask.kind"] == "span"]
    return sorted(found, key=lambda each: each.attributes["dask.span.segment"])


# What is forgotten, and when


@bridged(forget_spans=AFTER)
async def test_a_root_is_forgotten_with_all_below(plugin, client, scheduler, *workers):
    for number in range(5):
        with span("root"):
            await work(client, f"inc_{number}")
            with span("child", "grandchild"):
                await work(client, f"add_{number}")
    with span("last"):
        await work(client, "last")
    await until_forgotten(plugin, 5)
    assert forgotten(plugin) == {"roots": 5, "spans": 15, "late_metrics": 0}
    assert [each.name for each in scheduler.extensions["spans"].spans.values()] == [("last",)]
    check_indexes(plugin, scheduler)


@bridged()
async def test_nothing_is_forgotten_by_default(plugin, client, scheduler, *workers):
    for number in range(3):
        with span("root"):
            await work(client, f"inc_{number}")
    await until(lambda: not plugin._bridge.status()["open_segments"])
    await plugin._bridge.sweep.sweep()
    assert forgotten(plugin) is None
    extension = scheduler.extensions["spans"]
    assert len(extension.spans) == 3
    assert extension.heartbeat.__self__._original.__self__ is extension  # only the metrics are read


@bridged(forget_spans=AFTER)
async def test_never_while_a_task_is_left(plugin, client, scheduler, *workers):
    with span("root"):
        kept = client.submit(inc, 1, key="kept")
        await kept
    for number in range(3):
        with span("root"):
            await work(client, f"inc_{number}")
    await until_forgotten(plugin, 2)
    first, last = scheduler.extensions["spans"].root_spans
    assert {group.name for group in first.groups} == {"kept"}
    check_indexes(plugin, scheduler)
    del kept
    await until_forgotten(plugin, 3)
    assert scheduler.extensions["spans"].root_spans == [last]


@bridged(forget_spans=AFTER)
async def test_never_before_it_is_sent(plugin, client, scheduler, *workers):
    may_go = threading.Event()
    export = plugin.exporter.export
    plugin.exporter.export = lambda spans: may_go.wait(30) and export(spans)
    try:
        for number in range(3):
            with span("root"):
                await work(client, f"inc_{number}")
        await until(lambda: not plugin._bridge.status()["open_segments"])
        # The first is being sent; the others wait.
        await until(lambda: len(plugin._bridge._forgetting._unsettled) == 2)
        await asyncio.sleep(2 * AFTER)  # nothing happens
        assert forgotten(plugin)["roots"] == 0
    finally:
        may_go.set()
    await until_forgotten(plugin, 2)


@bridged(forget_spans=AFTER)
async def test_what_is_dropped_for_good_is_forgotten(plugin, client, scheduler, *workers):
    plugin.output.span_threads[0].queue._queue.max_spans = 0
    for number in range(3):
        with span("root"):
            await work(client, f"inc_{number}")
    await until_forgotten(plugin, 2)
    assert plugin.output.status()["exporters"][0]["dropped"]


@bridged(forget_spans=AFTER)
async def test_work_without_a_span(plugin, client, scheduler, *workers):
    for number in range(3):
        await work(client, f"inc_{number}")
    _kept = await client.scatter([1])
    await until_forgotten(plugin, 2)
    check_indexes(plugin, scheduler)


@gen_cluster(client=True, nthreads=ONE_WORKER)
async def test_what_ended_before_the_bridge_was_there(client, scheduler, worker):
    for number in range(3):
        with span("root"):
            await work(client, f"inc_{number}")
    await until(lambda: not scheduler.task_groups)
    plugin = MemoryPlugin(forget_spans=AFTER)
    await plugin.add_to(scheduler)
    await until_forgotten(plugin, 2)
    check_indexes(plugin, scheduler)
    assert await finished(plugin) == []


@pytest.mark.parametrize(("most", "left"), [(100, "acb"), (1, "cb"), (0, "b")])
def test_the_latest_of_a_name_stays(most, left, monkeypatch):
    monkeypatch.setattr(forgetting, "KEPT_NAMES", most)

    @bridged(forget_spans=AFTER)
    async def test(plugin, client, scheduler, *workers):
        extension = scheduler.extensions["spans"]
        for name in ("a", "b", "a", "c", "b"):
            with span(name):
                await work(client, name)
        await until_forgotten(plugin, 5 - len(left))
        await asyncio.sleep(2 * AFTER)  # nothing more happens
        assert [each.name for each in extension.root_spans] == [(name,) for name in left]
        for name in left:  # as Dask's dashboard asks
            extension.merge_by_tags(name).cumulative_worker_metrics  # noqa: B018
        check_indexes(plugin, scheduler)

    test()


@bridged(forget_spans=AFTER, keep_requested=AFTER)
async def test_a_span_that_was_only_requested_goes_before_the_root_above(plugin, client, scheduler, *workers):
    nodes = plugin._bridge.span_tree.forest.nodes
    with span("owner"):
        kept = client.submit(inc, 1, key="kept")
        await kept
    async with Client(scheduler.address, asynchronous=True) as other:
        with named("root"):
            await work(other, "inc")
            with named("root", "guest"):
                await other.submit(inc, 1, key="kept")
        await until(lambda: "id of guest" in nodes)
        assert "id of guest" not in scheduler.extensions["spans"].spans
        with span("last"):
            await work(other, "last")
        await until(lambda: "id of root" not in nodes)
    assert "id of guest" not in nodes
    assert [each.name for each in scheduler.extensions["spans"].root_spans] == [("owner",), ("last",)]
    check_indexes(plugin, scheduler)


# What comes back


@bridged(forget_spans=AFTER)
async def test_a_span_that_is_left_open_goes_on(plugin, client, scheduler, *workers):
    extension = scheduler.extensions["spans"]
    seen = []
    with named("root"), named("root", "child"):
        for number in range(3):
            await work(client, f"inc_{number}", number=number + 1)
            await until(lambda: not scheduler.task_groups)
            seen.append((extension.spans["id of root"], extension.spans["id of child"]))
            with dask.annotate(span=None):
                await work(client, "other")  # else it would be the latest
            await until(lambda: "id of root" not in extension.spans)
    assert len(set(seen)) == 3
    spans = await finished(plugin)  # no id is sent twice, parents are there, sums are right
    for position, id_ in enumerate(("id of root", "id of child")):
        found = segments(plugin, id_)
        assert [each.attributes["dask.task.count"] for each in found] == [1, 2, 3]
        assert len({each.trace_id for each in found}) == 1
        first, *later = [each.attributes["dask.span.segment"] for each in found]
        assert first == 0
        # The scheduler's clock when Dask made each of them.
        assert later == [int(each[position].enqueued * 1000) for each in seen[1:]]
        compute = sum(each.attributes["dask.duration.compute"] for each in found)
        assert compute == pytest.approx(sum(each[position].all_durations["compute"] for each in seen))
        cpu = sum(each.attributes["dask.execute.thread_cpu.seconds"] for each in found)
        metrics = [each[position].cumulative_worker_metrics for each in seen]
        assert cpu == pytest.approx(sum(n for of_one in metrics for key, n in of_one.items() if key[2] == "thread-cpu"))
    assert {each.attributes["dask.span.segment"] for each in spans if each.name == "default: other"} == {0}


@gen_cluster(client=True, nthreads=ONE_WORKER)
async def test_the_next_bridge_knows_what_the_one_before_has_forgotten(client, scheduler, worker):
    first, second = MemoryPlugin(forget_spans=AFTER), MemoryPlugin()
    second.values = lambda: "others"
    await first.add_to(scheduler)
    with named("root"):
        await work(client, "inc_1")
    await work(client, "other")
    await until_forgotten(first, 1)
    with named("root"):
        await work(client, "inc_2")
    with named("open"):
        await work(client, "inc_3")
    await second.add_to(scheduler)
    with named("root"):
        await work(client, "inc_4")
    await finished(second)
    found = [*segments(first, "id of root"), *segments(second, "id of root")]
    assert len({each.span_id for each in found}) == len(found)
    assert sum(each.attributes["dask.task.count"] for each in found) == 3


@bridged(forget_spans=AFTER)
async def test_workers_are_told_the_parent_of_one_that_came_back(plugin, client, scheduler, *workers):
    """They would compute the id of the first group span, which was sent before."""
    with named("root"):
        await work(client, "inc")
    await work(client, "other")
    await until_forgotten(plugin, 1)
    with named("root"):
        future = client.submit(inc, 1, key="inc", pure=False)
        await future
    parent = scheduler.tasks["inc"].annotations["otel"][PARENT_FIELD]
    del future
    await until(lambda: len(segments(plugin, "id of root")) == 2)
    assert parent.split("-")[2] == segments(plugin, "id of root")[1].span_id


# Metrics that come late


def run_on():
    switches.started.set()
    switches.go.wait(30)


@pytest.mark.parametrize("guards", [True, False])
def test_metrics_of_a_task_that_ran_on(guards, monkeypatch):
    """Dask closes a worker that has some for a span which the extension does not know."""
    if not guards:
        monkeypatch.setattr(LateMetrics, "install", lambda guard: None)
    switches.reset()

    @gen_cluster(client=True, nthreads=ONE_WORKER, config={"distributed.scheduler.work-stealing": False})
    async def test(client, scheduler, worker):
        plugin = MemoryPlugin(forget_spans=AFTER)
        await plugin.add_to(scheduler)
        with named("root"):
            future = client.submit(run_on, key="on")
            await asyncio.to_thread(switches.started.wait, 30)
            await future.cancel()
        with span("last"):
            other = client.submit(inc, 1, key="other")  # it waits for the thread
        await until_forgotten(plugin, 1)
        switches.go.set()
        if guards:
            assert await other == 2
            await until(lambda: forgotten(plugin)["late_metrics"])
            assert worker.status.name == "running"
            check_indexes(plugin, scheduler)
            spans = await finished(plugin)
            assert "cancelled" in str([each.attributes for each in spans if each.name == "root"])
        else:
            with captured_logger("distributed"):
                await until(lambda: worker.status.name == "closed")
                await plugin.before_close()

    test()


@bridged(forget_spans=1.5)
async def test_metrics_that_come_before_it_is_forgotten_are_sent(plugin, client, scheduler, a, b):
    switches.reset()
    with dask.config.set({"distributed.scheduler.work-stealing": False}):
        with named("root"):
            future = client.submit(run_on, key="on")
            await asyncio.to_thread(switches.started.wait, 30)
            await future.cancel()
        of_dask = scheduler.extensions["spans"].spans["id of root"]
        await until(lambda: segments(plugin, "id of root"))
        switches.go.set()
        await until(lambda: any(key[2] == "cancelled" for key in of_dask.cumulative_worker_metrics))
        with span("last"):
            await work(client, "last")
    await until_forgotten(plugin, 1)
    await finished(plugin)
    found = segments(plugin, "id of root")
    assert [each.attributes["dask.span.segment"] for each in found] == [0, 1]
    total = sum(n for each in found for name, n in each.attributes.items() if name.startswith("dask.execute."))
    metrics = of_dask.cumulative_worker_metrics
    assert total == pytest.approx(sum(n for key, n in metrics.items() if key[2] != "idle or other spans"))


# How long it takes, and what stays


@bridged(forget_spans=3600.0, sweep_interval=3600.0, idle_timeout=0.0)
async def test_a_large_root_goes_in_steps(plugin, client, scheduler, *workers):
    sweep = plugin._bridge.sweep.sweep
    with named("root"):
        for number in range(120):
            with span(f"child {number % 2}"):
                await work(client, f"inc_{number}")
    with span("last"):
        await work(client, "last")
    await until(lambda: not scheduler.task_groups)
    while not plugin._bridge.span_tree.rests_since("id of root") or plugin.sink.unsent:
        await asyncio.sleep(0.05)
        await sweep()
    forget = plugin._bridge._forgetting
    now = plugin._bridge.clock.now() + 3601.0
    left = [len(scheduler.extensions["spans"].spans) for _ in forget.forget_some(now)]
    assert left[0] == 122
    assert left[-1] == 1
    assert len(set(left)) > 2  # it was in parts
    check_indexes(plugin, scheduler)


@bridged(forget_spans=3600.0, sweep_interval=3600.0, idle_timeout=0.0)
async def test_work_that_comes_while_a_large_root_goes(plugin, client, scheduler, *workers):
    extension = scheduler.extensions["spans"]
    sweep = plugin._bridge.sweep.sweep
    with named("root"):
        for number in range(150):
            with span(f"child {number}"):
                await work(client, f"inc_{number}")
        of_dask = extension.spans["id of root"]
        with span("last"):
            await work(client, "last")
        with dask.annotate(span=None):
            await work(client, "other")
        await until(lambda: not scheduler.task_groups)
        while not plugin._bridge.span_tree.rests_since("id of root") or plugin.sink.unsent:
            await asyncio.sleep(0.05)
            await sweep()
        now = plugin._bridge.clock.now() + 3601.0
        steps = plugin._bridge._forgetting.forget_some(now)
        while len(extension.spans) == 153:
            next(steps)
        with span("more"):
            await work(client, "more")
        for _ in steps:
            pass
    assert 1 < len(extension.spans) < 153  # the root is there, since there is work below it
    assert extension.spans["id of root"] is of_dask
    assert sum(of_dask.states.values()) == 152  # no count of Dask's is lost
    check_indexes(plugin, scheduler, is_whole=False)
    await finished(plugin)
    assert sum(each.attributes["dask.task.count"] for each in segments(plugin, "id of root")) == 152


@bridged(forget_spans=AFTER)
async def test_nothing_stays_in_memory(plugin, client, scheduler, *workers):
    def kept():
        gc.collect()
        return Counter(type(each) for each in gc.get_objects() if isinstance(each, (Node, Ledger, _Root, Span)))

    async def some():
        for number in range(20):
            with span("root"), span("child"):
                await work(client, f"inc_{number}")
        # The last one is kept, and over.
        await until(
            lambda: len(scheduler.extensions["spans"].root_spans) == 1 and not plugin._bridge.span_tree.forest.open
        )
        await plugin._bridge.sweep.wait()  # a step of it has the root that it forgets

    await some()
    before = kept()
    await some()
    await until(lambda: kept() == before)  # metrics may arrive late


# Where the bridge ends or something fails


@pytest.mark.parametrize("forgets", [False, True])
def test_what_stays_when_the_bridge_ends(forgets):
    @gen_cluster(client=True, nthreads=ONE_WORKER)
    async def test(client, scheduler, worker):
        extension = scheduler.extensions["spans"]
        before = dict(vars(extension))
        plugin = MemoryPlugin(forget_spans=AFTER)
        await plugin.add_to(scheduler)
        assert set(vars(extension)) - set(before) == {"heartbeat", "observe_tasks"}
        for number in range(1 + forgets):
            with span("root"):
                await work(client, f"inc_{number}")
        if forgets:
            await until_forgotten(plugin, 1)
        await finished(plugin)
        if forgets:  # a worker may still have metrics
            assert isinstance(extension.heartbeat.__self__, LateMetrics)
            second = MemoryPlugin(forget_spans=AFTER)
            await second.add_to(scheduler)
            await finished(second)
            assert isinstance(extension.heartbeat.__self__, LateMetrics)
            assert extension.heartbeat.__self__._original.__self__ is extension
            extension.heartbeat(scheduler.workers[worker.address], {("execute", "gone", "inc", "x", "seconds"): 1.0})
            assert memory_of(scheduler).late_metrics == 1
        else:
            assert vars(extension) == before

    test()


def test_a_distributed_that_lacks_something(monkeypatch):
    monkeypatch.setitem(compat.NEEDED_TO_FORGET, "distributed.spans.Span", ("groups", "offspring"))

    @gen_cluster(client=True, nthreads=ONE_WORKER)
    async def test(client, scheduler, worker):
        plugin = MemoryPlugin(forget_spans=AFTER)
        with captured_logger("distributed.dask_otel") as log:
            await plugin.add_to(scheduler)
        assert "spans are never forgotten" in log.getvalue()
        assert "distributed.spans.Span.offspring" in log.getvalue()
        assert forgotten(plugin) is None
        with span("root"):
            await work(client, "inc")
        assert {each.name for each in await finished(plugin)} == {"root", "inc"}

    test()


@bridged(forget_spans=AFTER)
async def test_somebody_else_takes_spans_out(plugin, client, scheduler, *workers):
    extension = scheduler.extensions["spans"]
    for number in range(3):
        with span("root"):
            await work(client, f"inc_{number}")
    await until(lambda: not scheduler.task_groups and plugin._bridge._forgetting._known == 3)
    for each in extension.root_spans[:2]:
        extension.root_spans.remove(each)
        del extension.spans[each.id]
        extension.spans_search_by_name[each.name].remove(each)
        extension.spans_search_by_tag["root"].remove(each)
    for number in range(3):
        with span("root"):
            await work(client, f"inc_{number}")
    await until_forgotten(plugin, 3)
    assert len(extension.spans) == 1
