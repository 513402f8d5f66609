"""What real clusters do now and then; each of these was wrong once."""

from __future__ import annotations

import asyncio
from time import sleep
from unittest import mock

import dask
import pytest
from distributed import Client, Event, secede, span, wait
from distributed.metrics import context_meter, time
from distributed.utils_test import gen_cluster, inc
from support.clusters import bridged, finished
from support.memory import MemoryPlugin
from support.trees import tree

import dask_otel
from dask_otel.scheduler.pace import Pace

ONE_WORKER = {"client": True, "nthreads": [("127.0.0.1", 2)]}


@gen_cluster(**ONE_WORKER)
async def test_keys_that_are_no_strings(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("root"):
        first = client.submit(inc, 1, key=(1, 2))
        await client.submit(inc, first, key=(("a", "b"), 2))
    spans = await finished(plugin)
    assert tree(spans, "dask.task.completed")[0] == "root [span] dask.task.completed=2"
    assert len([s for s in spans if s.attributes["dask.kind"] == "group"]) == 2


class Counter:
    """An actor."""

    def get(self):
        return 1


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_an_actor_lost_with_its_worker_is_an_error(client, scheduler, a, b):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("root"):
        future = client.submit(Counter, key="actor", actor=True, workers=[a.address])
        await wait(future)
        await a.close()
        await wait(future)
    assert tree(await finished(plugin), "dask.span.result", "dask.task.completed", "dask.task.erred")[0] == (
        "root [span] dask.span.result=error dask.task.completed=1 dask.task.erred=1 Error: RuntimeError: 1 task erred"
    )


@bridged(nthreads=[("127.0.0.1", 1)])  # on one clock
async def test_calls_of_an_actor_count_nowhere(plugin, client, scheduler, worker):
    with span("root"):
        collector = await client.submit(list, actor=True, key="collector")
        made = time()
        for number in range(10):
            await collector.append(number)
        assert await collector.copy() == list(range(10))
    spans = await finished(plugin)
    assert tree(spans, "dask.task.completed") == [
        "root [span] dask.task.completed=1",
        "  collector [group] dask.task.completed=1",
    ]
    assert all(each.end <= made for each in spans)


class Huge:
    """Says that it is larger than any worker's memory."""

    def __sizeof__(self):
        return 2**44


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_a_task_whose_inputs_fit_no_worker_erred_once(client, scheduler, a, b):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("root"):
        huge = client.map(lambda i: Huge(), range(2), key="huge")
        total = client.submit(len, huge, key="total")
        await wait(total)
    assert total.status == "error"
    spans = await finished(plugin)
    assert next(s for s in spans if s.name == "total").attributes["dask.task.erred"] == 1


@gen_cluster(**ONE_WORKER)
async def test_work_that_is_asked_for_again_is_open_while_it_runs(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=0.1)
    await plugin.add_to(scheduler)
    with span("root") as root_id:
        x = client.submit(inc, 1, key="x")
        y = client.submit(inc, x, key="y")
        await y
        del x
        while "x" in worker.data:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(plugin.exporter.wait_for_trace, dask_otel.trace_id(root_id))
        await client.submit(inc, 1, key="x")
    spans = await finished(plugin)
    again = next(s for s in spans if s.attributes.get("dask.span.segment") == 1)
    assert again.attributes["dask.task.recomputed"] == 1
    assert again.attributes["dask.task.completed"] == 1


@gen_cluster(**ONE_WORKER)
async def test_a_metric_that_is_no_number(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)

    def task(x):
        context_meter.digest_metric("loss", float("nan"), "count")
        return x

    with span("root"), span("child"):
        await client.submit(task, 1, key="task")
    spans = await finished(plugin)
    assert tree(spans, "dask.metrics.complete") == [
        "root [span] dask.metrics.complete=False",
        "  child [span] dask.metrics.complete=False",
        "    task [group]",
    ]


@gen_cluster(**ONE_WORKER)
async def test_registered_under_another_name(client, scheduler, worker):
    plugin = MemoryPlugin()
    await scheduler.register_scheduler_plugin(plugin, name="tracing", idempotent=True)
    with span("root") as root_id:
        await client.submit(inc, 1, key="x")
    assert tree(await asyncio.to_thread(plugin.exporter.wait_for_trace, dask_otel.trace_id(root_id)))
    await finished(plugin)


@gen_cluster(**ONE_WORKER)
async def test_a_second_bridge_repeats_no_id(client, scheduler, worker):
    spans = []
    with span("root"):
        for number in range(2):
            plugin = MemoryPlugin(slowest_tasks=1)
            await plugin.add_to(scheduler)
            await client.submit(inc, number, key="x", pure=False)
            await client.unregister_scheduler_plugin(plugin.name)
            spans += await finished(plugin)
    assert len({s.span_id for s in spans}) == len(spans) == 6
    assert len({s.trace_id for s in spans}) == 1


@gen_cluster(**ONE_WORKER)
async def test_a_worker_that_has_the_result_already_reports_no_times(client, scheduler, worker):
    """As after a scatter to a worker of which the scheduler has not heard yet."""
    plugin = MemoryPlugin(slowest_tasks=3)
    await plugin.add_to(scheduler)
    with span("root"):
        worker.update_data({"x": 5}, stimulus_id="scatter")
        assert await client.submit(inc, 1, key="x") == 5
    spans = await finished(plugin)
    assert [(s.name, s.attributes["dask.kind"]) for s in sorted(spans, key=lambda s: s.attributes["dask.kind"])] == [
        ("x", "group"),
        ("root", "span"),
        ("x", "task"),
    ]
    assert all(s.attributes["dask.task.completed"] == 1 for s in spans if s.attributes["dask.kind"] != "task")
    assert not plugin.safety.failures


@gen_cluster(**ONE_WORKER)
async def test_a_start_that_fails_leaves_nothing_behind(client, scheduler, worker):
    with span("root") as root_id:
        future = client.submit(inc, 1, key="x")
        await wait(future)
    spans = scheduler.extensions["spans"].spans
    hidden = spans.pop(root_id)
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    await asyncio.sleep(0)
    spans[root_id] = hidden
    assert plugin not in scheduler.plugins.values()
    assert "heartbeat" not in vars(scheduler.extensions["spans"])
    assert list(plugin.safety.failures) == [("start", "KeyError")]
    assert await client.submit(inc, 2) == 3


@gen_cluster(**ONE_WORKER)
async def test_giving_up_on_closing_does_not_stop_it(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    with span("root") as root_id:
        await client.submit(inc, 1, key="x")
    go_on = asyncio.Event()
    sweep = plugin._bridge.sweep.sweep

    async def sweep_later(**options):
        await go_on.wait()
        await sweep(**options)

    with mock.patch.object(plugin._bridge.sweep, "sweep", sweep_later):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(plugin.before_close(), 0.01)
        go_on.set()
    assert tree(await asyncio.to_thread(plugin.exporter.wait_for_trace, dask_otel.trace_id(root_id)))
    await finished(plugin)


@gen_cluster(**ONE_WORKER)
async def test_data_scattered_into_a_group_that_runs_is_counted(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    with span("root") as root_id:
        future = client.submit(inc, 1, key="x-1")
        await wait(future)
        await client.scatter({"x-2": 5})
    expected = scheduler.extensions["spans"].spans[root_id]
    spans = await finished(plugin)
    assert spans[-1].attributes["dask.task.count"] == sum(expected.states.values()) == 2
    assert spans[-1].attributes["dask.output.size"] == expected.nbytes_total


@gen_cluster(**ONE_WORKER)
async def test_any_tag(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    tags = ["", "🙂" * 10, "x" * 10_000, "\x00\x1b[31m\n", 7, ("a", 1), None, "a / b", "\ud800"]
    for number, tag in enumerate(tags):
        with span(tag, "child"):
            await client.submit(inc, 1, key=f"key-{number}", pure=False)
            # The same group again: the tags also arrive as those of a span that was only asked for.
            with span(tag, tag):
                await client.submit(inc, 1, key=f"key-{number}-again", pure=False)
    spans = await finished(plugin)
    roots = [s for s in spans if not s.parent_id]
    assert len(roots) == len(tags)
    for each in spans:
        assert 0 < len(each.name.encode()) <= 250
        assert len(each.attributes["dask.span.path"].encode()) <= 250
    assert {"(no name)", "🙂" * 10, "7", "('a', 1)", "None", "a / b", "?"} <= {s.name for s in roots}


@gen_cluster(**ONE_WORKER)
async def test_tasks_that_never_need_to_run_are_counted(client, scheduler, worker):
    """The scheduler takes in what leads to a result that it has already, and leaves it released."""
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("first"):
        kept = client.submit(inc, 1, key="y")
        await kept
    async with Client(scheduler.address, asynchronous=True) as other:
        with span("second") as span_id:
            assert await other.get({"x": (inc, 1), "y": (inc, "x")}, "y", sync=False) == 2
        expected = sum(scheduler.extensions["spans"].spans[span_id].states.values())
        spans = await finished(plugin)
    second = next(s for s in spans if s.name == "second")
    assert second.attributes["dask.task.count"] == expected == 1
    assert second.attributes["dask.elsewhere.completed"] == 1


@pytest.mark.slow
@gen_cluster(**ONE_WORKER)
async def test_spans_nested_deeper_than_the_stack(client, scheduler, worker):
    plugin = MemoryPlugin(shutdown_timeout=60.0)  # 1,200 spans that name 1,200 tags
    await plugin.add_to(scheduler)
    with span(*(f"level {number}" for number in range(1200))):
        await client.submit(inc, 1, key="x")
    spans = await finished(plugin)
    assert len(spans) == 1201


@gen_cluster(**ONE_WORKER)
@pytest.mark.parametrize("annotation", [lambda key: {"name": ("a",), "ids": ("b",)}, {"name": (), "ids": ()}])
async def test_annotations_that_only_look_like_spans(client, scheduler, worker, annotation):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with dask.annotate(span=annotation):
        await wait(client.submit(inc, 1, key="x"))
    await finished(plugin)


def _secede_and_sleep(seconds):
    secede()
    sleep(seconds)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_tasks_that_secede_use_more_threads_than_there_are(client, scheduler, worker):
    """Once busy 20 s of 4 s that were available was an efficiency of 1.0, and the next root saw more used than was."""
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("seceded"):
        await client.gather(client.map(_secede_and_sleep, [0.5] * 10, key="away", pure=False))
    with span("next"):
        await client.submit(sleep, 0.01, key="next")
    spans = await finished(plugin)
    roots = {s.name: s.attributes for s in spans if not s.parent_id}
    seceded = roots["seceded"]
    assert seceded["dask.thread_time.busy"] > 1.5 * seceded["dask.thread_time.available"]
    assert "dask.efficiency" not in seceded
    for attributes in roots.values():
        if "dask.thread_time.others" in attributes:
            assert attributes["dask.thread_time.others"] <= attributes["dask.thread_time.available"]


@gen_cluster(**ONE_WORKER)
async def test_a_failure_that_a_thread_submitted_is_some_roots(client, scheduler, worker):
    """A thread does not know the span that is open where it was started, unless it is given a copy of the context."""
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("workflow"):
        first = client.submit(inc, 1, key=("work", 0))
        await first
        without = await asyncio.get_running_loop().run_in_executor(
            None, lambda: client.submit(_fail, key=("work", 1), retries=0)
        )
        within = await asyncio.to_thread(client.submit, _fail, key=("work", 2))  # copies the context
        await wait([without, within])
    spans = await finished(plugin)
    roots = {s.name: s for s in spans if not s.parent_id}
    assert set(roots) == {"workflow", "default: work"}
    assert {name: root.status for name, root in roots.items()} == dict.fromkeys(roots, "Error")
    assert roots["workflow"].status_message == "1 task erred; first: bad"
    assert roots["default: work"].status_message == "1 task erred; first: bad"
    assert roots["default: work"].attributes["dask.task.erred"] == 1
    assert roots["workflow"].attributes["dask.task.erred"] == 1


def _fail():
    raise ValueError("bad")


@bridged(sweep_interval=3600.0)
async def test_data_that_is_scattered_into_a_group_and_forgotten(plugin, client, scheduler, *workers):
    """No hook is called when it comes; when it goes, its numbers were once never read."""
    sweep = plugin._bridge.sweep.sweep
    held = Event(client=client)
    with span("root"):
        first = client.submit(bytes, 1000, key=("mixed", 0))
        open_until_then = client.submit(held.wait, key="hold")
    await first
    await sweep()
    scattered = await client.scatter({("mixed", 1): b"y" * 100_000})
    group = scheduler.task_groups["mixed"]
    del first, scattered
    while "mixed" in scheduler.task_groups:
        await asyncio.sleep(0.01)
    await sweep()
    await held.set()
    await open_until_then
    (sent,) = [s for s in await finished(plugin) if s.attributes.get("dask.group.name") == "mixed" and _is_group(s)]
    assert sent.attributes["dask.task.count"] == len(group) == 2
    assert sent.attributes["dask.output.size"] == group.nbytes_total > 100_000


@bridged(sweep_interval=3600.0)
async def test_a_group_that_ends_while_others_are_being_forgotten(plugin, client, scheduler, *workers):
    """Thousands that are forgotten at once take some time, in which more may happen; it was once counted twice."""
    sweep = plugin._bridge.sweep.sweep
    held = Event(client=client)
    with span("root"):
        tasks = [client.submit(bytes, 1000, key=("group", 0)), client.submit(held.wait, key=("group", 1))]
        other = client.submit(bytes, 5, key="other")
    await wait([tasks[0], other])
    while scheduler.tasks[("group", 1)].state != "processing":
        await asyncio.sleep(0.01)
    group = scheduler.task_groups["group"]
    await sweep()
    await sweep()
    del other
    tasks.pop(0)
    while ("group", 0) in scheduler.tasks or "other" in scheduler.tasks:
        await asyncio.sleep(0.01)
    rest, meanwhile = Pace.rest, [True]

    async def rest_for_long(self):
        if meanwhile:
            meanwhile.clear()
            await held.set()
            await tasks[0]
            tasks.clear()
            while "group" in scheduler.task_groups:
                await asyncio.sleep(0.01)
        await rest(self)

    with mock.patch.object(Pace, "rest", rest_for_long):
        await sweep()
    await sweep()
    assert not any(node.load.unfinished for node in plugin._bridge.span_tree.forest.open)
    (sent,) = [s for s in await finished(plugin) if s.attributes.get("dask.group.name") == "group" and _is_group(s)]
    assert sent.attributes["dask.task.count"] == sent.attributes["dask.task.completed"] == len(group) == 2
    assert sent.attributes["dask.output.size"] == group.nbytes_total


def _is_group(sent):
    return sent.attributes["dask.kind"] == "group"
