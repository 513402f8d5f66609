"""Graphs that take long to be taken in, on a real cluster."""

from __future__ import annotations

import asyncio
import operator
import re
import threading
from concurrent.futures import CancelledError
from weakref import ref

import dask
import dask.array
import pytest
from distributed import Client, span, wait
from distributed.protocol import Serialized
from distributed.utils_test import inc
from support.callers import anchored, inside
from support.clusters import bridged, close, finished, until
from support.trees import forest, trees

PHASE = ("dask.phase", "dask.graph.task.count")
#: Seconds; no graph is taken in so quickly by chance.
SLOW = 30.0
#: Set when tasks of ``wait_until_it_may_go`` may end.
_may_go = threading.Event()


class Unreadable:
    def __reduce__(self):
        return operator.truediv, (1, 0)


def phases(spans):
    return [each for each in spans if each.attributes["dask.kind"] == "phase"]


@bridged(phase_threshold=0.0)
async def test_each_graph(plugin, client, scheduler, *workers):
    before = plugin._bridge.clock.now()
    with span("root"):
        await client.submit(inc, 1, key="a-1")
        with span("step"):
            await wait(client.map(inc, range(3), key="b"))
    await client.submit(inc, 1, key="alone-1")
    spans = await finished(plugin)
    assert forest(spans, *PHASE) == [
        "default: alone [span]",
        "  alone [group]",
        "  take in graph [phase] phase=take_in graph.task.count=1",
        "root [span]",
        "  step [span]",
        "    b [group]",
        "    take in graph [phase] phase=take_in graph.task.count=3",
        "  a [group]",
        "  take in graph [phase] phase=take_in graph.task.count=1",
    ]
    for each in phases(spans):
        assert each.attributes["dask.graph.size"] > 100
        assert before < each.start < each.end
    # Dask makes the span when the graph has been taken in; its segment begins when the graph came.
    root = next(each for each in spans if each.name == "root")
    assert root.start == min(each.start for each in phases(spans) if each.trace_id == root.trace_id)
    made = next(each for each in scheduler.extensions["spans"].spans.values() if each.name == ("root",)).enqueued
    assert root.start < made


@bridged(phase_threshold=SLOW)
async def test_quick_graphs(plugin, client, scheduler, *workers):
    with span("root"):
        await client.submit(inc, 1, key="a-1")
    assert forest(await finished(plugin), *PHASE) == ["root [span]", "  a [group]"]


@bridged(phase_threshold=0.0)
async def test_in_a_callers_trace(plugin, client, scheduler, *workers):
    with inside(request=anchored(7, 8)):
        await client.submit(inc, 1, key="a-1")
    assert trees(await finished(plugin)) == {
        f"{7:032x}": ["request [span] <- caller", "  a [group]", "  take in graph [phase]"]
    }


@bridged(phase_threshold=0.0)
async def test_a_result_that_is_there_already(plugin, client, scheduler, *workers):
    """The span has nothing of its own but the phase, and what another one counts."""
    with span("first"):
        x = client.submit(inc, 1, key="a-1")
        await x
    async with Client(scheduler.address, asynchronous=True) as other:
        with span("second"):
            await other.submit(inc, 1, key="a-1")
    assert forest(await finished(plugin), *PHASE, "dask.elsewhere.count") == [
        "first [span]",
        "  a [group]",
        "  take in graph [phase] phase=take_in graph.task.count=1",
        "second [span] elsewhere.count=1 counted_in -> first in another trace",
        "  take in graph [phase] phase=take_in graph.task.count=1",
    ]


@bridged(phase_threshold=0.0)
async def test_tasks_that_another_span_requests(plugin, client, scheduler, *workers):
    """A graph is below the span that submits it, also if most of its tasks are not."""
    with span("build"):
        ones = dask.array.ones(8, chunks=1) + 1
    with span("compute"):
        assert await client.compute(ones.sum(split_every=8), optimize_graph=False) == 16
    with span("build again"):
        ones = dask.array.ones(8, chunks=2) + 2
    assert await client.compute(ones.sum(split_every=8), optimize_graph=False) == 24
    lines = [line for line in forest(await finished(plugin), "dask.task.count") if "[group]" not in line]
    assert [re.sub("^default: [^ ]+", "default", line) for line in lines] == [
        "build [span] task.count=16",
        "build again [span] task.count=8",
        "  take in graph [phase]",
        "compute [span] task.count=10",
        "  take in graph [phase]",
        "default [span] task.count=6",
    ]


@bridged(nthreads=[])
async def test_the_serialised_graph_is_not_kept(plugin, client, scheduler):
    """Dask frees it as soon as it has the graph."""
    is_there = None

    async def take_in(*, expr_ser, **message):
        nonlocal is_there
        kept = ref(expr_ser)
        del expr_ser
        is_there = kept() is not None

    plugin._bridge.submissions._handler = take_in
    await scheduler.stream_handlers["update-graph"](client="client", keys=set(), expr_ser=Serialized({}, [b"graph"]))
    assert is_there is False


@bridged(phase_threshold=0.0)
async def test_graphs_that_cannot_be_taken_in(plugin, client, scheduler, *workers):
    with span("root", "broken"):
        await wait(client.submit(len, Unreadable(), key="broken-1"))
    await wait(client.submit(len, Unreadable(), key="alone-1"))
    error = "Error: _OTHER: 1 graph could not be taken in"
    spans = await finished(plugin)
    assert forest(spans, *PHASE) == [
        f"default: alone [span] {error}",
        f"  take in graph [phase] phase=take_in {error}",
        f"root [span] {error}",
        f"  broken [span] {error}",
        f"    take in graph [phase] phase=take_in {error}",
    ]
    assert all(each.attributes["dask.graph.size"] > 100 for each in phases(spans))


@bridged(phase_threshold=0.0)
async def test_a_graph_whose_inputs_are_lost(plugin, client, scheduler, *workers):
    """It is cancelled, which is no error of the phase."""
    (data,) = await client.scatter([1])
    with span("late"):
        scheduler.client_releases_keys(keys=[data.key], client=client.id, stimulus_id="test")
        future = client.submit(inc, data, key="late-1")
        with pytest.raises(CancelledError):
            await future
    assert future.status == "cancelled"
    assert forest(await finished(plugin), "dask.span.result", "dask.phase") == [
        "late [span] span.result=cancelled",
        "  take in graph [phase] phase=take_in",
    ]


def wait_until_it_may_go():
    _may_go.wait(60)


@bridged(phase_threshold=0.0, max_segment=0.5)
async def test_segments_around_it_are_cut_meanwhile(plugin, client, scheduler, *workers):
    """The root is open because of another task; the graph came before the cut and was taken in after it."""
    _may_go.clear()
    came, goes_on = asyncio.Event(), asyncio.Event()
    submissions, tree = plugin._bridge.submissions, plugin._bridge.span_tree.forest
    handler = submissions._handler

    async def slow(*args, **message):
        came.set()
        await goes_on.wait()
        await handler(*args, **message)

    with span("root"):
        blocked = client.submit(wait_until_it_may_go, key="blocked-1")
        await until(lambda: scheduler.tasks and scheduler.tasks["blocked-1"].state == "processing")
        submissions._handler = slow
        with span("step"):
            future = client.submit(inc, 1, key="a-1")
        await came.wait()
        await until(lambda: any(node.next_number for node in tree.open))
        goes_on.set()
        await future
        _may_go.set()
        await blocked
    spans = await finished(plugin)
    step = next(each for each in spans if each.name == "step")
    (phase,) = (each for each in phases(spans) if each.parent_id == step.span_id)
    root = next(each for each in spans if each.span_id == step.parent_id)
    assert (root.attributes["dask.span.segment"] > 0, root.start <= phase.start == step.start) == (True, True)


@bridged(phase_threshold=0.0)
async def test_the_cluster_closes(plugin, client, scheduler, *workers):
    _may_go.clear()
    with span("root"):
        blocked = client.submit(wait_until_it_may_go, key="blocked-1")
        await until(lambda: scheduler.tasks and scheduler.tasks["blocked-1"].state == "processing")
    assert blocked.status == "pending"
    spans = await finished(plugin)
    _may_go.set()
    await close(scheduler, client)
    assert forest(spans, "dask.span.result", *PHASE) == [
        "root [span] span.result=interrupted Error: interrupted: 1 task did not end",
        "  blocked [group]",
        "  take in graph [phase] phase=take_in graph.task.count=1",
    ]


@pytest.mark.parametrize("broken", ["_phase", "_add_phase"])
def test_a_failure_of_ours_is_harmless(broken):
    @bridged(phase_threshold=0.0)
    async def test(plugin, client, scheduler, *workers):
        def fail(*args, **kwargs):
            raise RuntimeError("ours")

        setattr(plugin._bridge.submissions, broken, fail)
        assert await client.submit(inc, 1, key="a-1") == 2
        assert plugin.safety.failures == {("log_event hook", "RuntimeError"): 1}
        plugin.safety._failures.clear()
        assert forest(await finished(plugin)) == ["default: a [span]", "  a [group]"]

    test()
