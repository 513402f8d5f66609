"""Hooks, heartbeats and worker events only append to the inbox; a sweep takes all of it at one moment."""

from __future__ import annotations

from unittest import mock

import pytest
from distributed import Worker, span
from distributed.utils_test import gen_cluster, inc, slowinc
from support.clusters import busy_seconds, finished
from support.memory import MemoryPlugin

from dask_otel import schema
from dask_otel.metrics.recorder import Recorder
from dask_otel.scheduler.pace import Pace
from dask_otel.scheduler.sweep import METRICS_AT_ONCE
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.timing import Heartbeats

ONE_WORKER = {"client": True, "nthreads": [("127.0.0.1", 2)]}


@gen_cluster(**ONE_WORKER)
async def test_a_heartbeat_that_arrives_during_a_sweep_counts_together_with_its_metrics(client, scheduler, worker):
    """It counted at once, and its metrics at the next sweep: a segment closed without them and called them complete."""
    plugin = MemoryPlugin(idle_timeout=0.0, sweep_interval=3600.0)
    await plugin.add_to(scheduler)
    worker.periodic_callbacks["heartbeat"].stop()
    with span("root") as root_id:
        await client.submit(slowinc, 1, delay=0.05, key="x")
    rest, beats = Pace.rest, [2]

    async def rest_and_beat(self):
        if plugin._bridge.span_tree.forest.open and beats:
            for _ in range(beats.pop()):
                await worker.heartbeat()
        await rest(self)

    with mock.patch.object(Pace, "rest", rest_and_beat):
        await plugin._bridge.sweep.sweep()
    assert not beats
    (root,) = [each for each in await finished(plugin) if not each.parent_id]
    metrics = scheduler.extensions["spans"].spans[root_id].cumulative_worker_metrics
    busy = busy_seconds(metrics)
    assert busy > 0
    assert root.attributes["dask.thread_time.busy"] == pytest.approx(busy)
    assert root.attributes["dask.metrics.complete"]


@gen_cluster(**ONE_WORKER)
async def test_hooks_change_nothing_but_the_inbox(client, scheduler, worker):
    """A worker that left had each open segment looked at in the hook."""
    plugin = MemoryPlugin(sweep_interval=3600.0)
    await plugin.add_to(scheduler)
    with span("before"):
        await client.submit(inc, 1, key="a")
    await plugin._bridge.sweep.sweep()

    def forbidden(*args, **kwargs):
        raise AssertionError("called by a hook")

    public = [
        mock.patch.object(each, name, forbidden)
        for each in (SpanTree, Heartbeats, Recorder)
        for name in vars(each)
        if not name.startswith("_") and callable(getattr(each, name))
        if name != "parent_segment"  # changes nothing
    ]
    assert len(public) > 20
    for patch in public:
        patch.start()
    try:
        async with Worker(scheduler.address, nthreads=1) as other:
            with span("root"):
                await client.submit(inc, 2, key="b", workers=[other.address])
                await client.submit(int, "no number", key="bad").exception()
            await other.heartbeat()
    finally:
        for patch in public:
            patch.stop()
    taken = plugin._bridge.inbox.take()
    assert {group.name for group in taken.changes} >= {"b", "bad"}
    joined, left = [event for event in taken.workers if event.worker == other.address]
    assert (joined.kind, joined.heartbeats, left.kind) == ("joined", 0, "left")
    assert left.heartbeats >= 1
    assert other.address not in taken.heartbeats
    assert taken.counts[schema.WORKER_ADDED, None] == taken.counts[schema.WORKER_REMOVED, True] == 1
    assert not any(plugin._bridge.inbox.take())
    assert not plugin.safety.failures
    await plugin.before_close()


@gen_cluster(**ONE_WORKER)
async def test_heartbeats_of_a_worker_that_leaves_count_before_it_left(client, scheduler, worker):
    """Its metrics arrived with them. A worker that comes back under its address has not sent them."""
    plugin = MemoryPlugin(idle_timeout=0.0, sweep_interval=3600.0)
    await plugin.add_to(scheduler)
    sweep, heartbeats = plugin._bridge.sweep.sweep, plugin._bridge.span_tree.heartbeats
    async with Worker(scheduler.address, nthreads=1, heartbeat_interval="1 hour") as other:
        with span("root"):
            await client.submit(inc, 1, key="x", workers=[other.address])
        await sweep()
        for _ in range(2):
            await other.heartbeat()
        plugin._bridge.inbox.worker_left(other.address)
        plugin._bridge.inbox.worker_joined(other.address)
        await sweep()
        assert other.address in heartbeats.here
        assert not heartbeats.was_heard(other.address, 0.0)
    (root,) = [each for each in await finished(plugin) if not each.parent_id]
    assert root.attributes["dask.metrics.complete"]


@gen_cluster(**ONE_WORKER)
async def test_metrics_of_several_heartbeats_and_spans_are_added_up_in_steps(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=0.0, sweep_interval=3600.0)
    await plugin.add_to(scheduler)
    worker.periodic_callbacks["heartbeat"].stop()
    ids = []
    for name in ("a", "b"):
        with span(name) as span_id:
            await client.submit(inc, 1, key=name)
        ids.append(span_id)
    extension, state = scheduler.extensions["spans"], scheduler.workers[worker.address]
    # The metrics of two spans take turns, and are more than one step of a sweep adds.
    activities = [f"activity {number}" for number in range(METRICS_AT_ONCE)]
    for seconds in (0.25, 0.5):
        data = {("execute", id_, "inc", each, "seconds"): seconds for each in activities for id_ in ids}
        extension.heartbeat(state, data)
    roots = {each.name: each for each in await finished(plugin) if not each.parent_id}
    assert {name: root.attributes["dask.thread_time.busy"] for name, root in roots.items()} == {
        "a": pytest.approx(0.75 * METRICS_AT_ONCE, rel=1e-3),
        "b": pytest.approx(0.75 * METRICS_AT_ONCE, rel=1e-3),
    }
