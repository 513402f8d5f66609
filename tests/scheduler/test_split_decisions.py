"""Scheduling does not notice that groups are split: every decision is that of Dask alone.

Each script is played on Dask alone and on a scheduler with the bridge. ``support.scripted`` records, after each step
and at each decision, all that Dask decides and all that it sees of a group when it does.
"""

from __future__ import annotations

from itertools import zip_longest
from math import inf
from unittest import mock

import pytest
from distributed.utils_test import gen_test
from support.memory import MemoryPlugin
from support.scripted import ScriptedScheduler, quiet_bridge, random_script

from dask_otel.scheduler import split_groups
from dask_otel.scheduler.split_groups import GroupSplitter

ALICE, BOB = "Client-a", "Client-b"
#: All that runs ends, and what each client holds is released.
END = [("finish", [0.0] * 400), ("release", ALICE, 1.0), ("release", BOB, 1.0), ("finish", [0.0] * 400)]


async def play(script, *, split: bool, **options) -> ScriptedScheduler:
    """Play a script on a scheduler with the bridge, or on Dask alone."""
    plugin = quiet_bridge()
    async with ScriptedScheduler(**options, install=plugin.add_to if split else None) as played:
        await played.play(script)
    if split:
        assert not plugin.safety.failures
    return played


async def compare(script, **options) -> ScriptedScheduler:
    """Play a script on both; return how it was played with the bridge."""
    alone = await play(script, split=False, **options)
    split = await play(script, split=True, **options)
    step = ("start",)
    for expected, found in zip_longest(alone.log, split.log):
        assert found == expected, f"after {step}"
        step = expected if expected[0] == "step" else step
    return split


def tasks(client, span, name, numbers, inputs=(), **annotations):
    """A step: a client maps a function in a span."""
    graph = {f"{name}-{number}": list(inputs) for number in numbers}
    return ("submit", client, span, graph, list(graph), annotations)


def finish(number=400):
    return ("finish", [0.0] * number)


@pytest.mark.parametrize("saturation", [1.1, inf])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@gen_test(timeout=100)
async def test_random_scripts(seed, saturation):
    await compare(random_script(seed, steps=40), saturation=saturation)


@pytest.mark.slow
@pytest.mark.parametrize("saturation", [1.1, inf])
@pytest.mark.parametrize("seed", range(100, 130))
@gen_test(timeout=100)
async def test_more_random_scripts(seed, saturation):
    with mock.patch.object(split_groups, "MANY", 5):  # groups are forgotten early
        await compare(random_script(seed, steps=100), saturation=saturation)


EPOCHS = [tasks(ALICE, f"epoch {epoch}", "grad", range(8 * epoch, 8 * epoch + 8)) for epoch in range(40)]


@gen_test(timeout=60)
async def test_forty_epochs():
    split = await compare(EPOCHS)
    assert max(split.queue_lengths) == 312


@pytest.mark.parametrize("saturation", [1.1, inf])
@gen_test(timeout=60)
async def test_a_plain_split_would_be_noticed(saturation):
    with mock.patch.object(GroupSplitter, "_answer_for_wholes"):
        split = await play(EPOCHS, split=True, saturation=saturation)
        assert max(split.queue_lengths) == 0
        with pytest.raises(AssertionError, match=r"after \('step'"):
            await compare(EPOCHS, saturation=saturation)


#: By what they are about. Without queueing all of them are played, too.
SCRIPTS = {
    "the family counts tasks that were forgotten, as a group does": [
        tasks(ALICE, "alice", "inc", range(6)),
        tasks(BOB, "bob", "inc", range(6, 16)),
        finish(),
        ("release", BOB, 1.0),
        tasks(BOB, "bob", "inc", range(16, 20)),
        *END,
    ],
    "the original is forgotten before its parts and comes back": [
        tasks(ALICE, "alice", "inc", range(8)),
        tasks(BOB, "bob", "inc", range(8, 12)),
        finish(),
        ("release", ALICE, 1.0),
        tasks(BOB, "carol", "inc", range(12, 15)),
        tasks(BOB, "alice", "inc", range(15, 18)),
        tasks(BOB, "bob", "inc", range(18, 20)),
        *END,
    ],
    "the whole family is forgotten: a group of this name begins anew": [
        tasks(ALICE, "alice", "inc", range(8)),
        tasks(BOB, "bob", "inc", range(8, 16)),
        *END,
        tasks(ALICE, "alice", "inc", range(20, 23)),
        tasks(BOB, "bob", "inc", range(23, 26)),
        *END,
    ],
    "a group depends on one family, however many parts it has": [
        *(tasks(ALICE, f"span {n}", "load", [n]) for n in range(8)),
        tasks(BOB, "use", "use", range(20), [f"load-{n}" for n in range(8)]),
        *END,
    ],
    "part of a family depends on a part of another one": [
        tasks(ALICE, "alice", "load", range(3)),
        tasks(BOB, "bob", "load", range(3, 6)),
        tasks(ALICE, "alice", "use", range(10), ["load-0", "load-1"]),
        tasks(BOB, "bob", "use", range(10, 20), ["load-3"]),
        tasks(ALICE, "alice", "use", range(20, 30), [f"load-{n}" for n in range(3)]),
        *END,
    ],
    "a group depends on a family that has been forgotten, and on the next of its name": [
        tasks(ALICE, "alice", "load", range(4)),
        tasks(BOB, "bob", "load", range(4, 8)),
        tasks(ALICE, "alice", "use", range(12), ["load-0", "load-4"]),
        finish(),
        ("release", BOB, 1.0),
        tasks(ALICE, "carol", "load", [100]),
        tasks(ALICE, "dave", "load", [101]),
        tasks(BOB, "bob", "use", range(20, 30), ["load-100"]),
        *END,
    ],
    "scattered data makes a group again of which a part is left": [
        tasks(ALICE, "alice", "inc", range(10)),
        tasks(BOB, "bob", "inc", range(10, 12)),
        finish(),
        ("release", ALICE, 1.0),
        ("scatter", ALICE, "inc-100", 0.5),
        ("scatter", ALICE, "inc-101", 0.5),
        tasks(BOB, "bob", "dec", range(5), ["inc-10"]),
        tasks(ALICE, None, "inc", range(20, 24), ["inc-100"]),
        *END,
    ],
    "the last task of the family, not of the part, frees the worker": [
        tasks(ALICE, "alice", "load", [0]),
        tasks(ALICE, "alice", "use", range(5), ["load-0"]),
        tasks(BOB, "bob", "use", range(5, 6), ["load-0"]),
        tasks(BOB, "carol", "use", range(6, 16), ["load-0"]),
        *END,
    ],
    "a group still depends on a family of which nothing is left": [
        tasks(ALICE, "alice", "load", range(4)),
        tasks(ALICE, "dave", "load", range(4, 8)),
        tasks(ALICE, "alice", "use", range(10), ["load-0", "load-4"]),
        tasks(BOB, "alice", "use", range(20, 30)),
        finish(),
        ("release", ALICE, 1.0),
        tasks(ALICE, "alice", "inc", range(3)),
        tasks(BOB, "bob", "inc", range(3, 6)),
        tasks(BOB, "alice", "use", range(30, 34)),
        *END,
    ],
    "other groups of the prefix have tasks to run, the family has none": [
        tasks(ALICE, "alice", "hold", [0]),
        ("submit", ALICE, "alice", {("load-" + "1" * 32, 0): ["hold-0"]}, [("load-" + "1" * 32, 0)]),
        *(
            ("submit", ALICE, span, {("load-" + "2" * 32, n): [] for n in numbers}, [("load-" + "2" * 32, numbers[0])])
            for span, numbers in (("alice", range(10)), ("bob", range(10, 11)), ("carol", range(11, 12)))
        ),
        *END,
    ],
    "a group that is split has a worker already": [
        tasks(ALICE, "alice", "load", [0, 1]),
        (
            "submit",
            ALICE,
            "alice",
            {f"use-{n}": [f"load-{n // 10}"] for n in range(20)},
            [f"use-{n}" for n in range(20)],
        ),
        finish(1),
        tasks(BOB, "bob", "use", range(20, 26), ["load-0"]),
        tasks(BOB, "bob", "use", range(30, 36), ["load-1"]),
        *END,
    ],
    "one task a span": [tasks(ALICE, f"span {n}", "inc", [n]) for n in range(30)] + END,
    "spans with the same tags": [tasks(ALICE, {f"inc-{n}": ("fit", f"id-{n}")}, "inc", [n]) for n in range(12)] + END,
    "P2P is not queued": [
        tasks(ALICE, "alice", "shuffle-transfer", range(20)),
        tasks(BOB, "bob", "shuffle-transfer", range(20, 41)),
        tasks(ALICE, "alice", "shuffle-transfer", range(50, 60)),
        *END,
    ],
    "a known task that never ran stays": [
        ("leave", 0.0),
        ("leave", 0.0),
        ("leave", 0.0),
        tasks(ALICE, "alice", "inc", range(6)),
        tasks(BOB, "bob", "inc", range(3, 9)),
        ("join",),
        *END,
    ],
    "all is forgotten at once": [
        tasks(ALICE, "alice", "inc", range(6)),
        tasks(BOB, "bob", "inc", range(6, 12)),
        finish(3),
        ("restart",),
        tasks(ALICE, "alice", "inc", range(4)),
        tasks(BOB, "bob", "inc", range(4, 8)),
        *END,
    ],
}


@pytest.mark.parametrize("saturation", [1.1, pytest.param(inf, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", SCRIPTS)
@gen_test(timeout=60)
async def test_scripts(what, saturation):
    split = await compare(SCRIPTS[what], saturation=saturation)
    assert any(" @ " in name for name in split.group_names)
    with mock.patch.object(split_groups, "MANY", 1):  # groups are forgotten as soon as they may be
        await compare(SCRIPTS[what], saturation=saturation)


async def played_with_bridge(script):
    """Play a script on a scheduler with the bridge; return what groups depend on, and spans of groups, by name."""
    plugin = quiet_bridge()
    async with ScriptedScheduler(install=plugin.add_to) as played:
        await played.play(script)
        groups = played.scheduler.task_groups
        spans = played.scheduler.extensions["spans"].spans
        dependencies = {name: sorted(each.name for each in group.dependencies) for name, group in groups.items()}
        assert all(len(group) for computation in played.scheduler.computations for group in computation.groups)
        assert not plugin.safety.failures
        return dependencies, {name: spans[group.span_id].name[-1] for name, group in groups.items()}


@gen_test()
async def test_parts_depend_on_what_their_tasks_depend_on():
    dependencies, spans = await played_with_bridge(
        [
            tasks(ALICE, "alice", "load", [0]),
            tasks(BOB, "bob", "load", [1]),
            tasks(ALICE, "alice", "other", [0]),
            tasks(ALICE, "alice", "use", [0], ["load-0"]),
            tasks(BOB, "bob", "use", [1], ["load-1", "other-0"]),
            ("submit", BOB, {"load-2": "carol", "sum-0": "bob"}, {"load-2": [], "sum-0": ["load-2"]}, ["sum-0"]),
        ]
    )
    assert dependencies == {
        "load": [],
        "load @ bob": [],
        "load @ carol": [],
        "other": [],
        "use": ["load"],
        "use @ bob": ["load @ bob", "other"],
        "sum": ["load @ carol"],
    }
    assert spans == {
        "load": "alice",
        "load @ bob": "bob",
        "load @ carol": "carol",
        "other": "alice",
        "use": "alice",
        "use @ bob": "bob",
        "sum": "bob",
    }


@gen_test()
async def test_a_part_stays_the_place_of_its_span():
    """Though Dask has forgotten the group that it was split from; a group that is left empty is not there at all."""
    _, spans = await played_with_bridge(
        [
            tasks(ALICE, "alice", "inc", range(4)),
            tasks(BOB, "bob", "inc", range(4, 6)),
            finish(),
            ("release", ALICE, 1.0),
            tasks(BOB, "bob", "inc", range(6, 8)),
        ]
    )
    assert spans == {"inc @ bob": "bob"}


@gen_test()
async def test_without_a_span_beside_one():
    _, spans = await played_with_bridge(
        [
            tasks(ALICE, None, "inc", range(4)),
            tasks(ALICE, None, "inc", range(4, 6)),
            tasks(BOB, "bob", "inc", range(6, 8)),
            tasks(BOB, "bob", "dec", range(2)),
            tasks(ALICE, None, "dec", range(2, 4)),
        ]
    )
    assert spans == {"inc": "default", "inc @ bob": "bob", "dec": "bob", "dec @ default": "default"}


@gen_test()
async def test_scattered_data_is_not_moved():
    """Nobody requested it, and it is not new when a graph uses it; Dask may decide by it where its group belongs."""
    plugin = quiet_bridge()
    names = ("inc", "dec", "add", "sub", "mul", "div")
    script = []
    for name in names:
        script += [
            tasks(ALICE, "alice", name, [0]),
            tasks(BOB, None, name, [1]),
            finish(),
            ("release", ALICE, 1.0),
            ("scatter", ALICE, f"{name}-2", 0.0),
            # Which input Dask looks at first is by chance.
            (
                "submit",
                BOB,
                "carol",
                {f"use_{name}": [f"{name}-2", f"{name}-3"], f"{name}-3": []},
                [f"use_{name}"],
            ),
        ]
    async with ScriptedScheduler(install=plugin.add_to) as played:
        await played.play(script)
        spans = played.scheduler.extensions["spans"].spans
        found = {key: spans[task.group.span_id].name[-1] for key, task in played.scheduler.tasks.items()}
        for name in names:
            assert (found[f"{name}-1"], found[f"{name}-3"]) == ("default", "carol")
        assert not plugin.safety.failures


@pytest.mark.parametrize("shows_tags", [True, False])
@gen_test()
async def test_names_of_parts(shows_tags):
    plugin = MemoryPlugin(sweep_interval=3600.0, shutdown_timeout=0.0, tags_in_group_names=shows_tags)
    script = [
        tasks(ALICE, "alice", "inc", [0]),
        tasks(BOB, "secret" * 100, "inc", [1]),
        *(tasks(BOB, ("fit", f"id-{n}"), "inc", [n]) for n in range(2, 5)),
        tasks(BOB, None, "inc", [9]),
    ]
    async with ScriptedScheduler(install=plugin.add_to) as played:
        await played.play(script)
        names = list(played.scheduler.task_groups)
    if shows_tags:
        assert names == [
            "inc",
            f"inc @ {('secret' * 100)[:80]}…",
            "inc @ fit",
            "inc @ fit #2",
            "inc @ fit #3",
            "inc @ default",
        ]
    else:
        assert len(names) == 6
        assert not any("fit" in name or "secret" in name for name in names)
