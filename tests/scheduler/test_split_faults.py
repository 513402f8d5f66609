"""Splitting fails, goes and comes: the cluster and its graphs never notice, and the bookkeeping stays right."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from math import inf
from unittest import mock
from weakref import ref

import pytest
from distributed import Nanny, span, wait
from distributed.utils_test import captured_logger, gen_cluster, gen_test, inc
from support.memory import MemoryPlugin
from support.scripted import ScriptedScheduler, quiet_bridge

from dask_otel.scheduler import compat, split_groups
from dask_otel.scheduler.split_groups import GroupSplitter, WholeGroup, splitter_of

ALICE, BOB = "Client-a", "Client-b"
WRAPPED = ("new_task", "is_rootish", "decide_worker_rootish_queuing_disabled")


def tasks(client, span, name, numbers, inputs=()):
    """A step: a client maps a function in a span."""
    graph = {f"{name}-{number}": list(inputs) for number in numbers}
    return ("submit", client, span, graph, list(graph))


def finish(number=400):
    return ("finish", [0.0] * number)


COLLISION = [
    tasks(ALICE, "alice", "load", range(2)),
    tasks(BOB, "bob", "load", range(2, 4)),
    tasks(ALICE, "alice", "inc", range(9), ["load-0"]),
    tasks(BOB, "bob", "inc", range(9, 18), ["load-2"]),
]


def spans_of(scheduler, name):
    """The requested spans that count tasks of a name, with their number."""
    spans = scheduler.extensions["spans"].spans
    groups = [group for group in scheduler.task_groups.values() if group.prefix.name == name]
    return {spans[group.span_id].name[-1]: len(group) for group in groups}


def broken(target, name):
    """Have a method of the splitter fail."""
    return mock.patch.object(target, name, side_effect=RuntimeError("broken"))


#: A step that fails; whether tasks move all the same; whether the dependencies of groups are right.
STEPS = {
    "new_task": (GroupSplitter, "_note", False, True),
    "join": (GroupSplitter, "_join", False, True),
    "is_part": (GroupSplitter, "is_part", True, True),
    "split": (GroupSplitter, "split", False, True),
    "part": (GroupSplitter, "_part", False, True),
    "name": (GroupSplitter, "_name", False, True),
    "answer": (GroupSplitter, "_answer_for_wholes", False, True),
    "move": (split_groups, "_move", False, True),
    "learn": (GroupSplitter, "_learn_dependencies", True, True),
    "correct": (GroupSplitter, "_correct_dependencies", True, False),
    "drop": (GroupSplitter, "_drop_if_empty", True, True),
    "purge": (GroupSplitter, "_purge", True, True),
    "as_wholes": (GroupSplitter, "_as_wholes", True, True),
    "size": (WholeGroup, "__len__", True, True),
}


@pytest.mark.parametrize("saturation", [1.1, inf])
@pytest.mark.parametrize("step", STEPS)
@gen_test(timeout=60)
async def test_a_step_fails(step, saturation):
    target, name, moves, has_dependencies = STEPS[step]
    plugin = quiet_bridge()
    async with AsyncExitStack() as stack:
        stack.enter_context(mock.patch.object(split_groups, "MANY", 1))
        played = await stack.enter_async_context(ScriptedScheduler(saturation=saturation, install=plugin.add_to))
        played.checks_dependencies = has_dependencies
        with broken(target, name):
            await played.play([*COLLISION, tasks(BOB, "bob", "inc", [20]), finish()])
        scheduler = played.scheduler
        assert {task.state for task in scheduler.tasks.values()} == {"memory"}
        assert len(scheduler.tasks) == 23
        assert spans_of(scheduler, "inc") == ({"alice": 9, "bob": 10} if moves else {"alice": 19})
        assert plugin.safety.failures
        assert not plugin.safety.gave_up
        # It works again.
        await played.play([tasks(BOB, "carol", "dec", range(2)), tasks(BOB, "bob", "dec", range(2, 5)), finish()])
        assert spans_of(scheduler, "dec") == {"carol": 2, "bob": 3}


@gen_test(timeout=60)
async def test_many_tasks_of_a_part_that_cannot_be_made_are_one_failure():
    """A hundred failures in a row would end the bridge."""
    plugin = quiet_bridge()
    async with ScriptedScheduler(install=plugin.add_to) as played:
        with broken(GroupSplitter, "_part"):
            await played.play([tasks(ALICE, "alice", "inc", [0]), tasks(BOB, "bob", "inc", range(1, 300))])
        assert sum(plugin.safety.failures.values()) == 1
        assert len(played.scheduler.task_groups["inc"]) == 300


@gen_test(timeout=60)
async def test_a_group_that_has_the_name_of_a_part():
    plugin = quiet_bridge()
    async with ScriptedScheduler(install=plugin.add_to) as played:
        await played.play(
            [
                tasks(ALICE, "alice", "inc", [0]),
                tasks(BOB, "bob", "inc", [1]),
                ("submit", ALICE, "alice", {"inc @ bob-1": []}, ["inc @ bob-1"]),  # Dask files it in that group
                ("submit", ALICE, "bob", {"dec @ bob-1": []}, ["dec @ bob-1"]),
                tasks(ALICE, "alice", "dec", [0]),
                tasks(BOB, "bob", "dec", [1]),
                finish(),
            ]
        )
        names = set(played.scheduler.task_groups)
        assert names == {"inc", "inc @ bob", "dec", "dec @ bob", "dec @ bob #2"}
        assert {task.state for task in played.scheduler.tasks.values()} == {"memory"}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_distributed_that_lacks_what_splitting_needs(client, scheduler, worker):
    plugin = MemoryPlugin()
    lacking = {"distributed.scheduler.Scheduler": ("new_task", "make_task")}
    with mock.patch.dict(compat.NEEDED_TO_SPLIT, lacking), captured_logger("distributed.dask_otel") as log:
        await plugin.add_to(scheduler)
    assert "tasks count where Dask puts them, as with otel.split-groups: false: distributed" in log.getvalue()
    assert "lacks distributed.scheduler.Scheduler.make_task." in log.getvalue()
    assert log.getvalue().count("\n") == 1
    assert not set(WRAPPED) & set(vars(scheduler))
    with span("alice"):
        first = client.map(inc, range(3))
    with span("bob"):
        second = client.map(inc, range(3, 5))
    await wait([*first, *second])
    assert spans_of(scheduler, "inc") == {"alice": 5}
    await plugin.before_close()
    roots = {each.name: each.attributes for each in plugin.exporter.spans() if each.attributes["dask.kind"] == "span"}
    assert roots["alice"]["dask.task.count"] == 5
    assert (roots["bob"]["dask.task.count"], roots["bob"]["dask.elsewhere.completed"]) == (0, 2)
    assert not plugin.safety.failures


def wrappers(scheduler):
    return [getattr(scheduler, name) for name in WRAPPED]


@gen_test(timeout=60)
async def test_the_bridge_goes_and_comes():
    async with ScriptedScheduler() as played:
        scheduler = played.scheduler
        dask = wrappers(scheduler)
        plugin = quiet_bridge()
        await plugin.add_to(scheduler)
        await played.play(COLLISION)
        ours = wrappers(scheduler)
        assert not set(ours) & set(dask)
        for _ in range(3):
            await scheduler.unregister_scheduler_plugin("dask-otel")
            await plugin.before_close()
            await played.play([tasks(BOB, "carol", "inc", range(100, 110))])  # it stays where Dask puts it
            assert wrappers(scheduler) == ours  # the groups are still split
            assert not splitter_of(scheduler).new
            plugin = quiet_bridge()
            await plugin.add_to(scheduler)
            assert wrappers(scheduler) == ours
        await played.play([tasks(BOB, "bob", "inc", range(200, 210)), tasks(BOB, "dave", "inc", [300])])
        assert spans_of(scheduler, "inc") == {"alice": 19, "bob": 19, "dave": 1}
        await scheduler.unregister_scheduler_plugin("dask-otel")
        await plugin.before_close()
        await played.play([finish(), ("release", ALICE, 1.0), ("release", BOB, 1.0)])
        assert not scheduler.task_groups
        plugin = quiet_bridge()
        await plugin.add_to(scheduler)
        await scheduler.unregister_scheduler_plugin("dask-otel")
        await plugin.before_close()
        assert wrappers(scheduler) == dask
        assert not plugin.safety.failures


@pytest.mark.parametrize("saturation", [1.1, inf])
@gen_test(timeout=60)
async def test_without_the_bridge_decisions_are_still_those_of_dask_alone(saturation):
    script = [
        *COLLISION,
        ("bridge", False),
        tasks(BOB, "bob", "inc", range(100, 109), ["load-1", "load-3"]),
        finish(12),
        tasks(ALICE, "alice", "extra", range(2)),
        tasks(ALICE, "alice", "inc", range(110, 115), ["extra-0", "load-0"]),
        ("release", ALICE, 1.0),
        finish(5),
        ("scatter", ALICE, "load-50", 0.0),
        tasks(ALICE, "alice", "inc", range(200, 220), ["load-50"]),
        ("bridge", True),
        tasks(ALICE, "carol", "inc", range(300, 306)),
        finish(),
    ]
    async with ScriptedScheduler(saturation=saturation) as alone:
        await alone.play(script)
    async with ScriptedScheduler(saturation=saturation, install=quiet_bridge().add_to) as split:
        split.plugin = quiet_bridge()
        await split.play(script)
    assert split.log == alone.log


@gen_test(timeout=60)
async def test_another_bridge_takes_its_place():
    """The first one, when it has ended, once took the wrapper of the second one away."""
    first, second = quiet_bridge(), quiet_bridge()
    async with ScriptedScheduler(install=first.add_to) as played:
        scheduler = played.scheduler
        await played.play(COLLISION)
        ours = wrappers(scheduler)
        second.values = object  # else it takes part in the first bridge
        await scheduler.register_scheduler_plugin(second, idempotent=False)
        assert scheduler.plugins["dask-otel"] is second
        await first.before_close()
        assert wrappers(scheduler) == ours
        await played.play([tasks(BOB, "carol", "inc", range(100, 110)), finish()])
        assert spans_of(scheduler, "inc") == {"alice": 9, "bob": 9, "carol": 10}
        assert not first.safety.failures
        assert not second.safety.failures


@gen_test(timeout=60)
async def test_somebody_else_wraps_the_same_methods():
    """The bridge cannot take its wrappers away then; those of the next one call them."""
    async with ScriptedScheduler() as played:
        scheduler = played.scheduler
        for number in range(3):
            plugin = quiet_bridge()
            await plugin.add_to(scheduler)
            start = 100 * number
            await played.play(
                [
                    tasks(ALICE, "alice", "inc", range(start, start + 9)),
                    tasks(BOB, "bob", "inc", range(start + 10, start + 19)),
                ]
            )
            assert spans_of(scheduler, "inc") == {"alice": 9, "bob": 9}
            for name in WRAPPED:
                theirs = getattr(scheduler, name)
                setattr(scheduler, name, lambda *args, theirs=theirs, **kwargs: theirs(*args, **kwargs))
            await played.play([finish(), ("release", ALICE, 1.0), ("release", BOB, 1.0)])
            await scheduler.unregister_scheduler_plugin("dask-otel")
            await plugin.before_close()
            assert not plugin.safety.failures


@gen_test(timeout=60)
async def test_two_schedulers_in_one_process():
    plugins = [quiet_bridge() for _ in range(2)]
    async with (
        ScriptedScheduler(install=plugins[0].add_to) as one,
        ScriptedScheduler(install=plugins[1].add_to) as other,
    ):
        for step in [*COLLISION, finish()]:
            await one.play([step])
            await other.play([step])
        assert spans_of(one.scheduler, "inc") == spans_of(other.scheduler, "inc") == {"alice": 9, "bob": 9}
        assert one.log == other.log
        assert splitter_of(one.scheduler) is not splitter_of(other.scheduler)


@pytest.mark.parametrize("stays", [True, False])
def test_nothing_keeps_a_scheduler(stays):
    plugin = quiet_bridge()

    async def play():
        async with ScriptedScheduler(install=plugin.add_to) as played:
            await played.play([*COLLISION, finish()])
            assert spans_of(played.scheduler, "inc") == {"alice": 9, "bob": 9}
            if not stays:
                await played.scheduler.unregister_scheduler_plugin("dask-otel")
                await plugin.before_close()
            return ref(played.scheduler), ref(splitter_of(played.scheduler))

    scheduler, splitter = asyncio.run(play())
    gc.collect()
    assert scheduler() is None
    assert splitter() is None


@gen_test(timeout=100)
async def test_what_is_remembered_is_bounded():
    plugin = quiet_bridge()
    with mock.patch.object(split_groups, "MANY", 20):
        async with ScriptedScheduler(install=plugin.add_to) as played:
            await played.play([tasks(ALICE, "alice", "inc", [0]), finish()])
            splitter = splitter_of(played.scheduler)
            sizes = []
            for number in range(1, 100):
                await played.play(
                    [
                        tasks(BOB, (f"epoch {number % 3}", f"id-{number}"), "inc", [number]),
                        tasks(BOB, f"bob {number}", "dec", [number], [f"inc-{number}"]),
                        tasks(BOB, f"carol {number}", "dec", [1000 + number], [f"inc-{number}"]),
                        finish(),
                        ("release", BOB, 1.0),
                    ]
                )
                wholes = splitter._by_name.values()
                sizes.append(len(splitter._members) + sum(len(whole.parts) + len(whole.numbers) for whole in wholes))
            assert set(played.scheduler.task_groups) == {"inc"}
            assert max(sizes) < 60
            assert not splitter.new


@pytest.mark.slow
@gen_cluster(client=True, Worker=Nanny, nthreads=[("127.0.0.1", 1)] * 2, timeout=90)
async def test_restart(client, scheduler, *nannies):
    plugin = quiet_bridge()
    await plugin.add_to(scheduler)
    for _ in range(2):
        with span("alice"):
            first = client.map(inc, range(6))
        with span("bob"):
            second = client.map(inc, range(6, 10))
        await wait([*first, *second])
        assert spans_of(scheduler, "inc") == {"alice": 6, "bob": 4}
        await client.restart()
        assert not scheduler.task_groups
    await plugin.before_close()
    assert not plugin.safety.failures
