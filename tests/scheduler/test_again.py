"""One bridge after the other on the same scheduler, and none that stays behind."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from time import sleep
from weakref import ref

import dask
import pytest
from distributed import Client, Scheduler, Worker, span, wait
from distributed.utils_test import gen_cluster, inc
from support.clusters import finished, one_clock
from support.memory import MemoryPlugin
from support.task_groups import check_groups, check_spans
from support.trees import check_shape, check_sums

import dask_otel
from dask_otel.scheduler import split_groups
from dask_otel.scheduler.inbox import HeartbeatTap
from dask_otel.scheduler.split_groups import GroupSplitter
from dask_otel.scheduler.submissions import Submissions


def layers(scheduler):
    """How many wrappers of ours lie on top of each other, by what they wrap."""
    extension = scheduler.extensions["spans"]
    found = {}
    for name, method, inner in (
        ("heartbeat", extension.heartbeat, "_original"),
        ("observe_tasks", extension.observe_tasks, "_observe"),
        ("update-graph", scheduler.stream_handlers["update-graph"], "_handler"),
        ("new_task", scheduler.new_task, ""),
    ):
        found[name] = 0
        while isinstance(owner(method), (HeartbeatTap, Submissions)) or is_splitters(method):
            found[name] += 1
            method = getattr(method, "__wrapped__", None) or getattr(owner(method), inner)
    return found


def owner(method):
    """Whose method it is, also if some of its arguments are given."""
    return getattr(method.func if isinstance(method, partial) else method, "__self__", None)


def is_splitters(method):
    """Whether it is a wrapper of a ``GroupSplitter``."""
    is_function = hasattr(method, "__wrapped__") and method.__code__.co_filename == split_groups.__file__
    return is_function or isinstance(owner(method), GroupSplitter)


def sweeps():
    return [task for task in asyncio.all_tasks() if task.get_name() == "dask-otel sweep"]


@pytest.mark.parametrize("same", [False, True], ids=["another plugin", "the same plugin"])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], clean_kwargs={"threads": False})
async def test_registered_again_before_the_earlier_one_has_noticed(client, scheduler, worker, same):
    plugins = [MemoryPlugin()]
    await plugins[-1].add_to(scheduler)
    for _ in range(5):
        scheduler.remove_plugin("dask-otel")
        plugins.append(plugins[-1] if same else MemoryPlugin())
        await plugins[-1].add_to(scheduler)
        assert set(layers(scheduler).values()) == {1}
    with span("root") as root_id:
        await client.submit(inc, 1, key="inc")
    exporter = plugins[-1].exporter
    spans = await asyncio.to_thread(exporter.wait_for_trace, dask_otel.trace_id(root_id))
    assert {each.name for each in spans} == {"root", "inc"}
    while len(sweeps()) > 1:  # they end after a heartbeat's wait
        await asyncio.sleep(0.01)
    assert scheduler.plugins["dask-otel"] is plugins[-1]
    await plugins[-1].before_close()
    assert set(layers(scheduler).values()) == {0}
    assert "dask-otel" not in scheduler.plugins


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], clean_kwargs={"threads": False})
async def test_groups_that_are_split_stay_so_for_the_next_bridge(client, scheduler, worker):
    futures = []

    async def work(name):
        with dask.annotate(span={"name": (name,), "ids": (f"id of {name}",)}):
            futures.append(client.submit(inc, 1, pure=False))
            await wait(futures)

    def wrapped():
        return {name for name, value in vars(scheduler).items() if is_splitters(value)}

    methods = {"new_task", "is_rootish", "decide_worker_rootish_queuing_disabled"}
    first, second = MemoryPlugin(), MemoryPlugin()
    await first.add_to(scheduler)
    await work("alice")
    assert wrapped() == {"new_task"}  # nothing more is touched where nothing collides
    await work("bob")
    assert wrapped() == methods
    await finished(first)
    assert wrapped() == methods  # as long as there are parts
    await work("carol")
    assert {name: len(group) for name, group in scheduler.task_groups.items()} == {"inc": 2, "inc @ bob": 1}
    await second.add_to(scheduler)
    await work("bob")
    await work("carol")
    assert {name: len(group) for name, group in scheduler.task_groups.items()} == {
        "inc": 2,
        "inc @ bob": 2,
        "inc @ carol": 1,
    }
    check_groups(scheduler)
    futures.clear()
    while scheduler.task_groups:
        await asyncio.sleep(0.01)
    await finished(second)
    assert wrapped() == set()


class Other(MemoryPlugin):
    """One that has other values than any other."""

    def values(self):
        return object()


def slow(seconds, *_):
    sleep(seconds)
    return seconds


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)] * 2, clean_kwargs={"threads": False}, timeout=90)
async def test_registered_again_with_other_values_while_tasks_run(client, scheduler, *workers):
    """Each bridge counts from the moment at which the one before has stopped: nothing is lost, and nothing twice."""
    plugins = [Other()]
    await plugins[-1].add_to(scheduler)
    with one_clock():
        with span("root") as root_id, span("inner"):
            first = client.map(slow, [0.01] * 100, key=[f"a{n % 7}-{n}" for n in range(100)])
            second = client.map(slow, [0.02] * 60, first[:60], key=[f"b-{n}" for n in range(60)])
        for number in range(1, 6):
            await wait(second[: 8 * number])
            plugins.append(Other())
            await plugins[-1].add_to(scheduler)
            assert [each for each in scheduler.plugins.values() if isinstance(each, MemoryPlugin)] == plugins[-1:]
            assert set(layers(scheduler).values()) == {1}
        await client.gather([first, second])
        await plugins[-1].before_close()
    spans = [each for plugin in plugins for each in plugin.exporter.spans()]
    check_spans(scheduler, spans)
    check_shape(spans, all_sent=False)
    check_sums(spans)
    roots = [each for each in spans if each.name == "root"]
    assert {each.trace_id for each in roots} == {dask_otel.trace_id(root_id)}
    assert len(roots) == 6
    assert sum(each.attributes["dask.task.completed"] for each in roots) == 160
    assert [each.attributes["dask.span.result"] for each in roots] == ["unfinished"] * 5 + ["success"]
    assert {each.status for each in spans} == {"Unset"}
    assert not any(plugin.safety.failures for plugin in plugins)
    while sweeps():
        await asyncio.sleep(0.01)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], clean_kwargs={"threads": False})
async def test_registered_again_with_the_same_values(client, scheduler, worker):
    """The bridge stays, whichever way the plugin comes and under whatever name."""
    first = MemoryPlugin()
    await first.add_to(scheduler)
    bridge = first._bridge
    with span("root") as root_id:
        await client.submit(inc, 1, key="one")
        again = MemoryPlugin()
        await again.add_to(scheduler)
        await scheduler.register_scheduler_plugin(MemoryPlugin(), name="other", idempotent=False)
        await scheduler.register_scheduler_plugin(MemoryPlugin(), name="other", idempotent=False)
        await client.submit(inc, 2, key="two")
    assert [name for name, each in scheduler.plugins.items() if isinstance(each, MemoryPlugin)] == ["other"]
    assert scheduler.plugins["other"]._bridge is bridge
    assert set(layers(scheduler).values()) == {1}
    spans = await asyncio.to_thread(first.exporter.wait_for_trace, dask_otel.trace_id(root_id))
    assert {each.name for each in spans} == {"root", "one", "two"}
    await scheduler.plugins["other"].before_close()
    assert "other" not in scheduler.plugins
    assert set(layers(scheduler).values()) == {0}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], clean_kwargs={"threads": False})
async def test_two_that_replace_one_at_the_same_time(client, scheduler, worker):
    plugins = [Other() for _ in range(4)]
    await plugins[0].add_to(scheduler)
    async with plugins[0]._bridge.sweep._lock:  # a sweep, for which all have to wait
        adding = [asyncio.create_task(plugin.add_to(scheduler)) for plugin in plugins[1:]]
        await asyncio.sleep(0.1)
    await asyncio.gather(*adding)
    (active,) = [each for each in scheduler.plugins.values() if isinstance(each, MemoryPlugin)]
    assert [each for each in plugins if each.is_on and not each._bridge.why_ended] == [active]
    assert set(layers(scheduler).values()) == {1}
    await active.before_close()
    assert set(layers(scheduler).values()) == {0}


def test_a_scheduler_that_has_closed_is_let_go_of(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")

    async def run():
        with dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}):
            async with Scheduler(port=0, dashboard_address="127.0.0.1:0") as scheduler:
                assert "dask-otel" in scheduler.plugins
                return ref(scheduler)

    gone = asyncio.run(run())
    gc.collect()
    assert gone() is None


def run_and_end_within_a_sweep(monkeypatch, step):
    """Have the event loop end while a sweep is in the middle of its work; return what arrived."""
    plugin = MemoryPlugin(idle_timeout=3600.0, sweep_interval=3600.0, shutdown_timeout=5.0)
    monkeypatch.setattr("dask_otel.scheduler.pace.SLICE", -1.0)  # it gives the loop back at every step

    def work(address):
        with Client(address) as client, span("root"):
            client.gather(client.map(inc, range(100), key=[f"k{n}-{n}" for n in range(100)]))

    async def run():
        scheduler = await Scheduler(port=0, dashboard_address="127.0.0.1:0")
        worker = await Worker(scheduler.address, nthreads=2)
        await plugin.add_to(scheduler)
        await asyncio.to_thread(work, scheduler.address)
        sweeper, begun = plugin._bridge.sweep, asyncio.Event()
        read_delta = sweeper._groups.read_delta

        def in_the_middle(group, change):
            begun.set()
            read_delta(group, change)

        sweeper._groups.read_delta = in_the_middle
        task = plugin._bridge.close() if step == "closing" else asyncio.create_task(sweeper.sweep())
        await begun.wait()
        return task, worker  # both are alive until the loop ends

    asyncio.run(run())
    return plugin.exporter.spans()


@pytest.mark.parametrize("step", ["sweep", "closing"])
def test_a_sweep_that_has_begun_loses_nothing(monkeypatch, step):
    spans = run_and_end_within_a_sweep(monkeypatch, step)
    (root,) = [each for each in spans if not each.parent_id and each.name == "root"]
    assert root.attributes["dask.task.completed"] == root.attributes["dask.task.count"] == 100
