"""Of many groups at work, a sweep tells only what matters now; nothing is lost, and nothing wrong, for that."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from unittest import mock

import pytest
from distributed import Event, span, wait
from distributed.diagnostics.plugin import SchedulerPlugin
from support.clusters import bridged, finished
from support.measured import measured

from dask_otel.scheduler.task_groups import MAX_DEFERRED

#: By hand.
NO_SWEEPS = {"sweep_interval": 3600.0}


@pytest.fixture(autouse=True)
def _one_group_is_many():
    with mock.patch("dask_otel.scheduler.task_groups.MANY_GROUPS", 0):
        yield


class Runs(SchedulerPlugin):
    """Seconds that each task computed."""

    def __init__(self, scheduler):
        self.seconds = {}
        scheduler.add_plugin(self, name="runs")

    def transition(self, key, start, finish, *args, **details):
        if start == "processing" and finish == "memory":
            self.seconds[key] = sum(run["stop"] - run["start"] for run in details["startstops"])


class Work:
    """A group with a task that runs until the end."""

    def __init__(self, plugin, client, scheduler):
        self.plugin, self.client, self.scheduler = plugin, client, scheduler
        self._go_on = Event("go on", client=client)
        self._number = 0
        self.runs = Runs(scheduler)

    async def begin(self):
        self.last = self.client.submit(Event.wait, self._go_on, key=("work", "last"))
        while "work" not in self.scheduler.task_groups or not self.group.states["processing"]:
            await asyncio.sleep(0.01)
        await self.sweep()

    async def run(self, *seconds):
        """Some more tasks."""
        keys = [("work", number) for number in range(self._number, self._number + len(seconds))]
        self._number += len(seconds)
        await wait([self.client.submit(time.sleep, each, key=key) for each, key in zip(seconds, keys, strict=True)])

    async def end(self):
        await self._go_on.set()
        await wait(self.last)

    async def sweep(self, times=1):
        for _ in range(times):
            await self.plugin._bridge._sweeper.sweep()

    @property
    def group(self):
        return self.scheduler.task_groups["work"]

    @property
    def told(self):
        """What the span tree knows of the group: completed tasks, and unfinished ones."""
        (root,) = self.plugin._bridge.span_tree.forest.open_tops
        return root.ledger.groups["work"].tally.completed, root.load.unfinished


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_a_group_at_work_is_told_of_now_and_then_and_when_it_rests(plugin, client, scheduler, worker):
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        assert work.told == (0, 1)
        waiting = client.submit(str, work.last, key=("work", "waits"))
        for number in range(MAX_DEFERRED):
            await work.run(0.0)
            await work.sweep()
            assert work.told == (0, 2), number
        await work.run(0.0)
        await work.sweep()
        assert work.told == (MAX_DEFERRED + 1, 2)
        await work.run(0.0)
        await work.end()
        await wait(waiting)
        await work.sweep()
        assert work.told == (MAX_DEFERRED + 4, 0)


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_a_group_to_which_something_happens_when_it_is_due_is_told_of(plugin, client, scheduler, worker):
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        await work.run(0.0)
        await work.sweep(MAX_DEFERRED)
        assert work.told == (0, 1)
        await work.run(0.0)
        await work.sweep()
        assert work.told == (2, 1)
        await work.end()


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_what_went_wrong_is_told_at_once(plugin, client, scheduler, worker):
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        await work.run(0.0)
        await wait(client.submit(int, "no number", key=("work", "bad")))
        await work.sweep()
        assert work.told == (1, 1)
        await work.end()


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_what_happens_during_a_sweep_is_not_mixed_with_what_was_before(plugin, client, scheduler, worker):
    inbox = plugin._bridge.inbox

    def drain_and_go_on(drain=inbox.drain):
        changes = drain()
        inbox.touch(work.group)
        return changes

    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        await work.run(0.0)
        with mock.patch.object(inbox, "drain", drain_and_go_on):
            await work.sweep()
        assert work.told == (1, 1)
        await work.end()


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_the_slowest_runs_are_picked_over_many_sweeps(plugin, client, scheduler, worker):
    rng = random.Random(1)
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        described = mock.Mock(wraps=plugin._bridge.inbox._runs.slow)
        with mock.patch.object(plugin._bridge.inbox._runs, "slow", described):
            for _ in range(15):
                await work.run(*(rng.choice((0.0, 0.002, 0.01)) for _ in range(6)))
                await work.sweep(rng.choice((1, MAX_DEFERRED + 1)))
        await work.end()
    spans = await finished(plugin)
    picked = {s.attributes["dask.task.key"] for s in spans if s.attributes.get("dask.task.picked") == "slowest"}
    slowest = sorted(work.runs.seconds, key=work.runs.seconds.get, reverse=True)[:5]
    assert picked == set(map(str, slowest))
    assert described.call_count < 60  # of 90; it would be all of them if each sweep began anew


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_a_cut_tells_all_that_was(plugin, client, scheduler, worker):
    with span("root") as root_id:
        work = Work(plugin, client, scheduler)
        await work.begin()
        await work.run(0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
        await work.sweep(MAX_DEFERRED + 1)
        assert work.told[0] == 6
        await work.run(0.0)
        await work.sweep()
        assert work.told == (6, 1)
        span_tree = plugin._bridge.span_tree
        with mock.patch.object(span_tree, "settings", dataclasses.replace(span_tree.settings, max_segment=0.0)):
            await work.sweep()  # cut
        assert work.told == (0, 1)
        await work.run(0.0)
        await work.end()
    spans = await finished(plugin)
    groups = sorted((s for s in spans if s.attributes["dask.kind"] == "group"), key=lambda s: s.start)
    assert [s.attributes["dask.task.completed"] for s in groups] == [7, 2]
    picked = [[s for s in spans if s.parent_id == g.span_id and s.attributes["dask.kind"] == "task"] for g in groups]
    assert [len(some) for some in picked] == [5, 2]
    assert root_id in scheduler.extensions["spans"].spans


@pytest.mark.parametrize("is_cut", [False, True], ids=["closed", "cut"])
def test_a_group_whose_tasks_have_only_entered_is_told_of_in_the_end(is_cut):
    @bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
    async def run(plugin, client, scheduler, worker):
        with span("root"):
            work = Work(plugin, client, scheduler)
            await work.begin()
            later = [client.submit(str, work.last, key=("later", number)) for number in range(3)]
            while "later" not in scheduler.task_groups or scheduler.task_groups["later"].states["waiting"] < 3:
                await asyncio.sleep(0.01)
            await work.sweep(MAX_DEFERRED + 2)
            span_tree = plugin._bridge.span_tree
            (root,) = span_tree.forest.open_tops
            assert set(root.ledger.groups) == {"work"}
            assert set(root.ledger.announced) == {"later"}
            assert (root.ledger.tally.tasks, root.load.unfinished) == (4, 4)
            groups = plugin._bridge._sweeper._groups
            assert [group.name for group in groups.entered] == ["later"]
            if is_cut:
                with mock.patch.object(span_tree, "settings", dataclasses.replace(span_tree.settings, max_segment=0.0)):
                    await work.sweep()
                assert set(root.ledger.groups) == {"work", "later"}
                await work.end()
                await wait(later)
                await work.sweep()
                assert not groups.entered
        spans = [s for s in await finished(plugin) if s.attributes.get("dask.group.name") == "later"]
        groups = [s for s in spans if s.attributes["dask.kind"] == "group"]
        assert [(s.attributes["dask.task.count"], s.attributes["dask.task.completed"]) for s in groups] == (
            [(3, 0), (0, 3)] if is_cut else [(3, 0)]
        )
        await work.end()

    run()


@measured(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_a_sweep_for_metrics_tells_all(plugin, client, scheduler, worker):
    """``measured`` compares them with what Dask says."""
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        for number in range(MAX_DEFERRED):
            await work.run(0.0)
            await work.sweep()
            assert work.told == (number + 1, 1)
        await work.end()


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_closing_waits_for_the_metrics_of_what_was_left(plugin, client, scheduler, worker):
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        await worker.heartbeat()
        await worker.heartbeat()
        await work.run(0.01)
        await work.sweep()
        assert work.told == (0, 1)
    spans = await finished(plugin)
    (root,) = [s for s in spans if not s.parent_id]
    assert root.attributes["dask.metrics.complete"]
    await work.end()


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_a_clock_that_is_set_back_is_no_reason_to_wait(plugin, client, scheduler, worker):
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        await work.run(0.0)
        sweeper, inbox = plugin._bridge._sweeper, plugin._bridge.inbox
        moved = mock.Mock(wraps=inbox.clock_set_back)
        with (
            mock.patch.object(sweeper._clock, "set_back", return_value=1.0),
            mock.patch.object(inbox, "clock_set_back", moved),
        ):
            await work.sweep()
        moved.assert_called_once_with(1.0)
        assert work.told == (1, 1)
        await work.run(0.0)
        await work.sweep()
        (root,) = plugin._bridge.span_tree.forest.open_tops
        with mock.patch.object(sweeper._clock, "set_back", return_value=1.0):
            await work.sweep()
        assert sweeper._deferral._oldest == root.segment.start  # else it would be cut too soon
        await work.end()


@bridged(nthreads=[("127.0.0.1", 2)], **NO_SWEEPS)
async def test_a_group_that_only_moves_on_is_not_kept_as_one_whose_tasks_entered(plugin, client, scheduler, worker):
    """It was told of once more in the end, from zero, when Dask had forgotten it."""
    with span("root"):
        work = Work(plugin, client, scheduler)
        await work.begin()
        plugin._bridge.inbox.touch(work.group).sent_to[worker.address] = None
        await work.sweep()
        assert not plugin._bridge._sweeper._groups.entered
        await work.end()
