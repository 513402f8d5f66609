"""Tasks of one name that several spans request: each counts where it was requested.

Dask alone puts all tasks of a group in the span of the group's first task.
"""

from __future__ import annotations

import asyncio
import re

import dask
import dask.array
import pytest
from dask.delayed import delayed
from distributed import Client, Event, Worker, as_completed, get_client, secede, span, wait, worker_client
from distributed.utils_test import captured_logger, gen_cluster, inc, slowinc
from support.clusters import COUNTS, ELSEWHERE, bridged, finished, until, whole
from support.memory import MemoryPlugin
from support.misbehaving import Misbehaving
from support.task_groups import check_groups, check_spans
from support.trees import forest

from dask_otel.preload import OTelPlugin

WHAT = ("dask.group.name", "dask.span.result", *COUNTS, "dask.group.dependencies", *ELSEWHERE)


def new_client(scheduler, name):
    return Client(scheduler.address, asynchronous=True, name=name)


def span_of(scheduler, *tags):
    """Dask's own span of this name."""
    (found,) = scheduler.extensions["spans"].spans_search_by_name[tags]
    return found


def fail(x):
    raise ValueError(f"bad {x}")


def fail_if(x, bad):
    return fail(x) if x == bad else slowinc(x, delay=0.01)


@bridged()
async def test_two_clients_with_one_function(plugin, client, scheduler, *workers):
    async with new_client(scheduler, "bob") as bob:
        with span("alice") as alice_id:
            hers = client.map(slowinc, range(30), delay=0.01, pure=False)
        with span("bob") as bob_id:
            his = bob.map(slowinc, range(30), delay=0.02, pure=False)
            bad = bob.map(fail_if, range(30), bad=29, pure=False)
        with span("carol"):
            good = client.map(fail_if, range(3), bad=None, pure=False)
        await wait([*hers, *his, *bad, *good])
        alice, bobs = span_of(scheduler, "alice"), span_of(scheduler, "bob")
        assert (alice.id, bobs.id) == (alice_id, bob_id)
        spans = await finished(plugin)
        assert alice.states["memory"] == 30
        assert {state: n for state, n in bobs.states.items() if n} == {"memory": 59, "erred": 1}
        assert alice.all_durations["compute"] >= 30 * 0.01
        assert bobs.all_durations["compute"] >= 30 * 0.02 + 29 * 0.01
        prefixes = {key[1] for key in alice.cumulative_worker_metrics if key[0] == "execute"}
        assert prefixes == {"slowinc", "N/A"}
        check_spans(scheduler, spans)
        roots = {each.name: each for each in spans if not each.parent_id}
        assert roots["alice"].attributes["dask.execute.thread_noncpu.seconds"] > 30 * 0.009
        assert roots["alice"].attributes["dask.client.id"] == client.id
        assert roots["bob"].attributes["dask.client.name"] == "bob"
        assert forest(spans, *WHAT) == [
            "alice [span] span.result=success task.count=30 task.completed=30",
            "  slowinc [group] group.name=slowinc task.count=30 task.completed=30",
            "bob [span] span.result=error task.count=60 task.completed=59 task.erred=1 "
            "Error: ValueError: 1 task erred; first: bad 29",
            "  fail_if [group] group.name=fail_if @ bob task.count=30 task.completed=29 task.erred=1 "
            "Error: ValueError: 1 task erred; first: bad 29",
            "  slowinc [group] group.name=slowinc @ bob task.count=30 task.completed=30",
            "carol [span] span.result=success task.count=3 task.completed=3",
            "  fail_if [group] group.name=fail_if task.count=3 task.completed=3",
        ]


@bridged()
async def test_a_loop_of_epochs_around_map(plugin, client, scheduler, *workers):
    kept = []
    for epoch in range(3):
        with span(f"epoch {epoch}"):
            kept += client.map(slowinc, range(4), delay=0.01, pure=False)
            await wait(kept)
    assert await whole(plugin, scheduler, *WHAT) == [
        "epoch 0 [span] span.result=success task.count=4 task.completed=4",
        "  slowinc [group] group.name=slowinc task.count=4 task.completed=4",
        "epoch 1 [span] span.result=success task.count=4 task.completed=4",
        "  slowinc [group] group.name=slowinc @ epoch 1 task.count=4 task.completed=4",
        "epoch 2 [span] span.result=success task.count=4 task.completed=4",
        "  slowinc [group] group.name=slowinc @ epoch 2 task.count=4 task.completed=4",
    ]


@bridged()
async def test_a_loop_of_a_hundred_spans_around_submit(plugin, client, scheduler, *workers):
    kept = []
    with captured_logger("distributed.dask_otel") as log:
        for number in range(100):
            with span(f"step {number:02}"):
                kept.append(client.submit(inc, number, pure=False))
        await wait(kept)
    assert set(scheduler.task_groups) == {"inc", *(f"inc @ step {number:02}" for number in range(1, 100))}
    assert await whole(plugin, scheduler, *WHAT) == [
        line
        for number in range(100)
        for line in (
            f"step {number:02} [span] span.result=success task.count=1 task.completed=1",
            f"  inc [group] group.name={f'inc @ step {number:02}' if number else 'inc'} task.count=1 task.completed=1",
        )
    ]
    assert log.getvalue() == ""


@bridged()
async def test_as_completed_with_resubmission(plugin, client, scheduler, *workers):
    async with new_client(scheduler, "bob") as bob:
        held = Event(client=client)
        with span("bob"):
            his = [bob.submit(inc, 0, pure=False), bob.submit(held.wait)]
        await his[0]
        with span("alice"):
            running = as_completed(client.map(inc, range(5), pure=False))
            async for future in running:
                if await future < 4:
                    running.add(client.submit(inc, future, pure=False))
        await held.set()
        await wait(his)
        assert await whole(plugin, scheduler, *WHAT) == [
            "alice [span] span.result=success task.count=11 task.completed=11",
            "  inc [group] group.name=inc @ alice task.count=11 task.completed=11",
            "bob [span] span.result=success task.count=2 task.completed=2",
            "  inc [group] group.name=inc task.count=1 task.completed=1",
            "  wait [group] group.name=wait task.count=1 task.completed=1",
        ]


@pytest.mark.parametrize("first", ["with", "without"])
@bridged()
async def test_a_client_with_a_span_beside_one_without(plugin, client, scheduler, a, b, first):
    async with new_client(scheduler, "bob") as bob:
        futures = []

        async def alice():
            with span("alice"):
                futures.extend(client.map(inc, range(3), pure=False))
                await wait(futures)

        async def nobody():
            futures.extend(bob.map(fail_if, range(5), bad=4, pure=False))
            futures.extend(bob.map(inc, range(4), pure=False))
            await wait(futures)

        for work in (alice, nobody) if first == "with" else (nobody, alice):
            await work()
        hers, theirs = ("inc", "inc @ default") if first == "with" else ("inc @ alice", "inc")
        error = "Error: ValueError: 1 task erred; first: bad 4"
        assert await whole(plugin, scheduler, *WHAT) == [
            "alice [span] span.result=success task.count=3 task.completed=3",
            f"  inc [group] group.name={hers} task.count=3 task.completed=3",
            f"default: fail_if [span] span.result=error task.count=9 task.completed=8 task.erred=1 {error}",
            f"  fail_if [group] group.name=fail_if task.count=5 task.completed=4 task.erred=1 {error}",
            f"  inc [group] group.name={theirs} task.count=4 task.completed=4",
        ]


def submit_more(x):
    with worker_client() as client:
        return sum(client.gather(client.map(inc, range(x), pure=False)))


@pytest.mark.parametrize("how", ["worker_client", "get_client", "async"])
@bridged()
async def test_tasks_that_submit_tasks(plugin, client, scheduler, a, b, how):
    with span("bob"):
        his = client.map(inc, range(3), pure=False)
        await wait(his)
    with span("alice"):
        hers = client.submit(NESTED[how], 5)
        assert await hers == 15
    name = NESTED[how].__name__
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=6 task.completed=6",
        "  inc [group] group.name=inc @ alice task.count=5 task.completed=5",
        f"  {name} [group] group.name={name} task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=3 task.completed=3",
        "  inc [group] group.name=inc task.count=3 task.completed=3",
    ]


def nested_get_client(x):
    client = get_client()
    futures = client.map(inc, range(x), pure=False)
    secede()
    return sum(client.gather(futures))


async def nested_async(x):
    client = get_client()
    return sum(await client.gather(client.map(inc, range(x), pure=False)))


def leave():
    Event("may leave").wait()
    secede()
    Event("held").wait()


NESTED = {"worker_client": submit_more, "get_client": nested_get_client, "async": nested_async}


@bridged()
async def test_a_collection_that_is_persisted_in_one_span_and_used_in_another(plugin, client, scheduler, *workers):
    with span("load"):
        parts = client.persist([delayed(inc, name="inc")(number, dask_key_name=("inc", number)) for number in range(4)])
        await wait(parts)
    with span("use"):
        more = [delayed(inc, name="inc")(part, dask_key_name=("inc", 10 + n)) for n, part in enumerate(parts)]
        used = await client.compute(delayed(sum)(more, dask_key_name="sum-1"))
    assert used == 4 * 2 + 6
    assert await whole(plugin, scheduler, *WHAT) == [
        "load [span] span.result=success task.count=4 task.completed=4",
        "  inc [group] group.name=inc task.count=4 task.completed=4",
        "use [span] span.result=success task.count=5 task.completed=5",
        "  inc [group] group.name=inc @ use task.count=4 task.completed=4 group.dependencies=['inc'] "
        "dependency -> inc in another trace",
        "  sum [group] group.name=sum task.count=1 task.completed=1 group.dependencies=['inc @ use'] dependency -> inc",
    ]


@bridged()
async def test_two_concurrent_computations_of_arrays(plugin, client, scheduler, *workers):
    """Dask names the last group of both ``finalize-hlgfinalizecompute``, and Alice's would depend on Bob's."""
    computed = []
    async with new_client(scheduler, "bob") as bob:
        for each, name, number in ((client, "alice", 1), (bob, "bob", 2)):
            with span(name):
                computed.append(each.compute(dask.array.full(4, number, chunks=2).sum()))
        assert await client.gather(computed[0]) == 4
        assert await bob.gather(computed[1]) == 8
        assert await whole(plugin, scheduler, *WHAT) == [
            "alice [span] span.result=success task.count=4 task.completed=4",
            "  finalize-hlgfinalizecompute [group] group.name=finalize-hlgfinalizecompute task.count=1 "
            "task.completed=1 group.dependencies=['sum-aggregate'] dependency -> sum-aggregate",
            "  sum [group] group.name=sum-… task.count=2 task.completed=2",
            "  sum-aggregate [group] group.name=sum-aggregate task.count=1 task.completed=1 "
            "group.dependencies=['sum-…'] dependency -> sum",
            "bob [span] span.result=success task.count=4 task.completed=4",
            "  finalize-hlgfinalizecompute [group] group.name=finalize-hlgfinalizecompute @ bob task.count=1 "
            "task.completed=1 group.dependencies=['sum-aggregate @ bob'] dependency -> sum-aggregate",
            "  sum [group] group.name=sum-… task.count=2 task.completed=2",
            "  sum-aggregate [group] group.name=sum-aggregate @ bob task.count=1 task.completed=1 "
            "group.dependencies=['sum-…'] dependency -> sum",
        ]


@bridged()
async def test_two_shuffles_at_once(plugin, client, scheduler, *workers):
    dd = pytest.importorskip("dask.dataframe")
    pytest.importorskip("pyarrow")
    import pandas as pd

    computed = []
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        for name, rows in (("alice", 100), ("bob", 200)):
            frame = dd.from_pandas(pd.DataFrame({"x": range(rows)}), npartitions=3).shuffle("x")
            with span(name):
                computed.append(client.compute(frame))
    assert [len(await each) for each in computed] == [100, 200]
    spans = await finished(plugin)
    check_groups(scheduler)
    check_spans(scheduler, spans)
    roots = {each.name: each.attributes for each in spans if not each.parent_id}
    assert any(name.startswith("dask.p2p.") for name in roots["alice"])
    assert any(name.startswith("dask.p2p.") for name in roots["bob"])
    what = ("dask.group.name", "dask.group.dependencies", "dask.task.count", "dask.span.result")
    assert [re.sub("[0-9a-f]{32}", "…", line) for line in forest(spans, *what)] == [
        "alice [span] task.count=14 span.result=success",
        "  frompandas [group] group.name=frompandas-… task.count=3",
        "  operation [group] group.name=operation-… group.dependencies=['frompandas-…'] task.count=3 "
        "dependency -> frompandas",
        "  p2pshuffle [group] group.name=p2pshuffle-… group.dependencies=['shuffle-barrier'] task.count=3 "
        "dependency -> shuffle-barrier",
        "  repartitiontofewer [group] group.name=repartitiontofewer-… "
        "group.dependencies=['p2pshuffle-…'] task.count=1 dependency -> p2pshuffle",
        "  shuffle-barrier [group] group.name=shuffle-barrier "
        "group.dependencies=['shuffle-transfer-…'] task.count=1 dependency -> shuffle-transfer",
        "  shuffle-transfer [group] group.name=shuffle-transfer-… "
        "group.dependencies=['operation-…'] task.count=3 dependency -> operation",
        "bob [span] task.count=14 span.result=success",
        "  frompandas [group] group.name=frompandas-… task.count=3",
        "  operation [group] group.name=operation-… group.dependencies=['frompandas-…'] task.count=3 "
        "dependency -> frompandas",
        "  p2pshuffle [group] group.name=p2pshuffle-… "
        "group.dependencies=['shuffle-barrier @ bob'] task.count=3 dependency -> shuffle-barrier",
        "  repartitiontofewer [group] group.name=repartitiontofewer-… "
        "group.dependencies=['p2pshuffle-…'] task.count=1 dependency -> p2pshuffle",
        "  shuffle-barrier [group] group.name=shuffle-barrier @ bob "
        "group.dependencies=['shuffle-transfer-…'] task.count=1 dependency -> shuffle-transfer",
        "  shuffle-transfer [group] group.name=shuffle-transfer-… "
        "group.dependencies=['operation-…'] task.count=3 dependency -> operation",
    ]


class Counter:
    """An actor."""

    n = 0

    def add(self):
        self.n += 1
        return self.n


@bridged()
async def test_actors(plugin, client, scheduler, *workers):
    async with new_client(scheduler, "bob") as bob:
        with span("alice"):
            hers = client.submit(Counter, actor=True, pure=False)
        with span("bob"):
            his = bob.submit(Counter, actor=True, pure=False)
        one, other = await hers, await his
        assert [await one.add(), await other.add(), await other.add()] == [1, 1, 2]
        assert await whole(plugin, scheduler, *WHAT) == [
            "alice [span] span.result=success task.count=1 task.completed=1",
            "  Counter [group] group.name=Counter task.count=1 task.completed=1",
            "bob [span] span.result=success task.count=1 task.completed=1",
            "  Counter [group] group.name=Counter @ bob task.count=1 task.completed=1",
        ]


@bridged()
async def test_scattered_inputs_stay_where_they_are(plugin, client, scheduler, *workers):
    """Nobody requests them in a span. Some have the name of the function that uses them."""
    with span("alice"):
        data = await client.scatter({"inc-1": 1, "data-1": 2})
        hers = [client.submit(inc, each, pure=False) for each in data.values()]
        await wait(hers)
    with span("bob"):
        more = await client.scatter({"inc-2": 3, "data-2": 4})
        his = [client.submit(inc, each, pure=False) for each in [*data.values(), *more.values()]]
        await wait(his)
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=4 task.completed=2",
        "  inc [group] group.name=inc task.count=4 task.completed=2 group.dependencies=['data']",
        "bob [span] span.result=success task.count=4 task.completed=4",
        "  inc [group] group.name=inc @ bob task.count=4 task.completed=4 group.dependencies=['data', 'inc'] "
        "dependency -> inc in another trace",
    ]
    assert {task.group.name for key, task in scheduler.tasks.items() if key in ("inc-1", "inc-2")} == {"inc"}


@bridged()
async def test_retries(plugin, client, scheduler, *workers):
    tried = Event(client=client)

    async def fail_once(x):
        if x and not await tried.is_set():
            await tried.set()
            raise ValueError("once")

    with span("alice"):
        hers = client.submit(fail_once, 0, key="work-0", retries=1)
        await wait(hers)
    with span("bob"):
        his = client.submit(fail_once, 1, key="work-1", retries=1)
        await wait(his)
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=1 task.completed=1 task.retried=1",
        "  work [group] group.name=work @ bob task.count=1 task.completed=1 task.retried=1",
    ]


@bridged()
async def test_cancelled_and_abandoned(plugin, client, scheduler, *workers):
    started, held = Event(client=client), Event(client=client)

    async def hang(number):
        if number == 1:
            await started.set()
        if number:
            await held.wait()

    with span("alice"):
        hers = client.submit(hang, 0, key="work-0")
        await hers
    with span("bob"):
        his = [client.submit(hang, number, key=f"work-{number}") for number in (1, 2)]
        await started.wait()
        await his[0].cancel()
        his[1].release()
    await until(lambda: not {"work-1", "work-2"} & set(scheduler.tasks))
    await held.set()
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=cancelled task.count=2 task.completed=0 task.cancelled=1 task.abandoned=1",
        "  work [group] group.name=work @ bob task.count=2 task.completed=0 task.cancelled=1 task.abandoned=1",
    ]


@bridged()
async def test_results_that_are_lost_are_computed_again_in_the_same_span(plugin, client, scheduler, a, b):
    on_a = {"workers": [a.address], "allow_other_workers": True}
    with span("alice"):
        hers = client.submit(inc, 1, key="work-0", workers=[b.address])
        await hers
    with span("bob"):
        his = client.map(inc, range(3), key=["work-1", "work-2", "work-3"], **on_a)
        await wait(his)
        await a.close()
        await until(lambda: a.address not in scheduler.workers)
        await until(lambda: all(task.state == "memory" for task in scheduler.tasks.values()))
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=3 task.completed=6 task.recomputed=3",
        "  work [group] group.name=work @ bob task.count=3 task.completed=6 task.recomputed=3",
    ]


@bridged()
async def test_a_restart(plugin, client, scheduler, *workers):
    started = Event(client=client)

    async def hang(number):
        if number:
            await started.set()
            await asyncio.sleep(600)

    with span("alice"):
        hers = client.submit(hang, 0, key="work-0")
        await hers
    with span("bob"):
        his = client.submit(hang, 1, key="work-1")
        await started.wait()
    await client.restart(wait_for_workers=False)
    assert his.cancelled()
    async with Worker(scheduler.address):
        with span("carol"):
            others = client.submit(inc, 1, key="work-1")
            await others
        assert await whole(plugin, scheduler, *WHAT) == [
            "alice [span] span.result=success task.count=1 task.completed=1",
            "  work [group] group.name=work task.count=1 task.completed=1",
            "bob [span] span.result=cancelled task.count=1 task.completed=0 task.cancelled=1",
            "  work [group] group.name=work @ bob task.count=1 task.completed=0 task.cancelled=1",
            "carol [span] span.result=success task.count=1 task.completed=1",
            "  work [group] group.name=work task.count=1 task.completed=1",
        ]
        assert set(scheduler.task_groups) == {"work"}


@bridged()
async def test_a_key_that_is_forgotten_and_comes_back_in_another_span(plugin, client, scheduler, *workers):
    with span("alice"):
        hers = client.submit(inc, 0, key="work-0")
        await hers
    with span("bob"):
        his = client.submit(inc, 1, key="work-1")
        await his
    his.release()
    await until(lambda: "work-1" not in scheduler.tasks)
    assert set(scheduler.task_groups) == {"work"}
    with span("carol"):
        others = client.submit(inc, 1, key="work-1")
        await others
    hers.release()
    await until(lambda: "work-0" not in scheduler.tasks)
    with span("alice"):
        again = client.submit(inc, 1, key="work-0")
        await again
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work @ bob task.count=1 task.completed=1",
        "carol [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work @ carol task.count=1 task.completed=1",
    ]


@bridged()
async def test_a_group_that_ends_while_others_of_its_name_live(plugin, client, scheduler, *workers):
    futures = {}

    async def work(name, key):
        with dask.annotate(span={"name": (name,), "ids": (f"id of {name}",)}):
            futures[key] = client.submit(inc, 1, key=key)
            await futures[key]

    await work("alice", "work-0")
    await work("bob", "work-1")
    futures.pop("work-0").release()
    await until(lambda: "work-0" not in scheduler.tasks)
    assert set(scheduler.task_groups) == {"work @ bob"}
    await work("bob", "work-2")  # Dask makes the group again, and it is left empty
    assert set(scheduler.task_groups) == {"work @ bob"}
    await work("carol", "work-3")
    await work("dave", "work-4")
    await work("bob", "work-5")
    assert set(scheduler.task_groups) == {"work @ bob", "work", "work @ dave"}
    check_groups(scheduler)
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=3 task.completed=3",
        "  work [group] group.name=work @ bob task.count=3 task.completed=3",
        "carol [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "dave [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work @ dave task.count=1 task.completed=1",
    ]
    futures.clear()
    await until(lambda: not scheduler.task_groups)
    check_groups(scheduler)


@bridged()
async def test_a_span_whose_tasks_are_all_forgotten_and_that_goes_on(plugin, client, scheduler, *workers):
    with span("alice"):
        hers = client.submit(inc, 0, key="work-0")
        await hers
    with span("bob"):
        for number in (1, 2, 3):
            his = client.submit(inc, number, key=f"work-{number}")
            await his
            assert set(scheduler.task_groups) == {"work", "work @ bob"}
            check_groups(scheduler)
            his.release()
            await until(lambda: set(scheduler.task_groups) == {"work"})
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=3 task.completed=3",
        "  work [group] group.name=work @ bob task.count=3 task.completed=3",
    ]


@bridged()
async def test_work_without_a_span_that_only_meets_its_like(plugin, client, scheduler, *workers):
    kept = []
    for number in range(3):
        kept.append(client.submit(inc, number, pure=False))
        await wait(kept)
    assert set(scheduler.task_groups) == {"inc"}
    assert "is_rootish" not in vars(scheduler)
    assert await whole(plugin, scheduler, *WHAT) == [
        "default: inc [span] span.result=success task.count=3 task.completed=3",
        "  inc [group] group.name=inc task.count=3 task.completed=3",
    ]


@bridged()
async def test_a_layer_that_was_built_in_another_span(plugin, client, scheduler, *workers):
    """Its annotations take precedence over those around the computation, as in Dask."""
    with span("alice"):
        hers = client.map(inc, range(2), key=[("work", 0), ("more", 0)])
        await wait(hers)
    with span("build"):
        built = delayed(inc)(1, dask_key_name=("work", 1))
    with span("compute"):
        used = delayed(inc)(built, dask_key_name=("more", 1))
        assert await client.compute(used, optimize_graph=False) == 3
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=2 task.completed=2",
        "  more [group] group.name=more task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "build [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work @ build task.count=1 task.completed=1",
        "compute [span] span.result=success task.count=1 task.completed=1",
        "  more [group] group.name=more @ compute task.count=1 task.completed=1 "
        "group.dependencies=['work @ build'] dependency -> work in another trace",
    ]


@bridged()
async def test_a_span_and_one_inside_it(plugin, client, scheduler, *workers):
    futures = []
    with span("root"):
        futures.append(client.submit(inc, 1, pure=False))
        await wait(futures)
        with span("child"):
            futures.append(client.submit(inc, 2, pure=False))
            futures.append(client.submit(fail, 3, pure=False))
            await wait(futures)
        with span("other", "child"):
            futures += client.map(inc, range(3), pure=False)
        futures.append(client.submit(fail, 4, pure=False))
        await wait(futures)
    assert await whole(plugin, scheduler, *WHAT) == [
        "root [span] span.result=error task.count=7 task.completed=5 task.erred=2 "
        "Error: ValueError: 2 tasks erred; first: bad 4",
        "  child [span] span.result=error task.count=2 task.completed=1 task.erred=1 "
        "Error: ValueError: 1 task erred; first: bad 3",
        "    fail [group] group.name=fail task.count=1 task.completed=0 task.erred=1 "
        "Error: ValueError: 1 task erred; first: bad 3",
        "    inc [group] group.name=inc @ root / child task.count=1 task.completed=1",
        "  other [span] span.result=success task.count=3 task.completed=3",
        "    child [span] span.result=success task.count=3 task.completed=3",
        "      inc [group] group.name=inc @ root / other / child task.count=3 task.completed=3",
        "  fail [group] group.name=fail @ root task.count=1 task.completed=0 task.erred=1 "
        "Error: ValueError: 1 task erred; first: bad 4",
        "  inc [group] group.name=inc task.count=1 task.completed=1",
    ]


@bridged()
async def test_the_same_tags_again(plugin, client, scheduler, *workers):
    futures = []
    for _ in range(3):
        with span("job"):
            futures.append(client.submit(inc, 1, pure=False))
            await wait(futures)
    assert await whole(plugin, scheduler, *WHAT) == [
        "job [span] span.result=success task.count=1 task.completed=1",
        "  inc [group] group.name=inc @ job #2 task.count=1 task.completed=1",
        "job [span] span.result=success task.count=1 task.completed=1",
        "  inc [group] group.name=inc @ job task.count=1 task.completed=1",
        "job [span] span.result=success task.count=1 task.completed=1",
        "  inc [group] group.name=inc task.count=1 task.completed=1",
    ]


@bridged()
async def test_a_function_with_the_name_of_a_part(plugin, client, scheduler, *workers):
    futures = []
    for name, key in (("alice", "work-0"), ("bob", "work @ carol-0"), ("carol", "work-1"), ("dave", "work @ carol-1")):
        with span(name):
            futures.append(client.submit(inc, 1, key=key))
            await wait(futures)
    assert await whole(plugin, scheduler, *WHAT) == [
        "alice [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work task.count=1 task.completed=1",
        "bob [span] span.result=success task.count=1 task.completed=1",
        "  work @ carol [group] group.name=work @ carol task.count=1 task.completed=1",
        "carol [span] span.result=success task.count=1 task.completed=1",
        "  work [group] group.name=work @ carol #2 task.count=1 task.completed=1",
        "dave [span] span.result=success task.count=1 task.completed=1",
        "  work @ carol [group] group.name=work @ carol @ dave task.count=1 task.completed=1",
    ]


@bridged()
async def test_long_tags(plugin, client, scheduler, *workers):
    futures = []
    for name in ("alice", "x" * 500, "x" * 400):
        with span(name):
            futures.append(client.submit(inc, 1, pure=False))
            await wait(futures)
    short = f"inc @ {80 * 'x'}…"
    assert list(scheduler.task_groups) == ["inc", short, f"{short} #2"]
    check_spans(scheduler, await finished(plugin))


@bridged()
async def test_keys_that_are_tuples_or_numbers(plugin, client, scheduler, *workers):
    """The name of a group may be anything that is the first of a tuple."""
    futures = []
    for number, name in enumerate(("alice", "bob")):
        with span(name):
            futures += client.map(inc, range(3), key=[("work", number), (7, number), ((8, "x"), number)])
            await wait(futures)
    assert sorted(await whole(plugin, scheduler, *WHAT)) == sorted(
        [
            "alice [span] span.result=success task.count=3 task.completed=3",
            "  Other [group] group.name=(8, 'x') task.count=1 task.completed=1",
            "  Other [group] group.name=7 task.count=1 task.completed=1",
            "  work [group] group.name=work task.count=1 task.completed=1",
            "bob [span] span.result=success task.count=3 task.completed=3",
            "  Other [group] group.name=(8, 'x') @ bob task.count=1 task.completed=1",
            "  Other [group] group.name=7 @ bob task.count=1 task.completed=1",
            "  work [group] group.name=work @ bob task.count=1 task.completed=1",
        ]
    )


@pytest.mark.parametrize("tag", ["\ud800", {"x"}, Counter(), 2**70])
@bridged()
async def test_tags_that_only_a_collision_makes_harmless(plugin, client, scheduler, a, b, tag):
    """Dask cannot make a span of some of them, and cannot send others to workers: such tasks stay where they are."""
    futures = []
    for tags in (("alice",), (tag, "bob")):
        with span(*tags):
            futures.append(client.submit(inc, 1, pure=False))
            await wait(futures)
    assert set(scheduler.task_groups) == {"inc"}
    lines = forest(await finished(plugin), "dask.task.count", "dask.elsewhere.completed")
    assert len(lines) == 4
    assert {"alice [span] task.count=2", "  inc [group] task.count=2"} < set(lines)
    assert "  bob [span] task.count=0 elsewhere.completed=1 counted_in -> alice in another trace" in lines


@pytest.mark.parametrize(
    "annotation",
    [
        {"name": ["bob"], "ids": ["id"]},
        {"name": ("bob",), "ids": (7,)},
        {"name": ("bob",), "ids": ("a", "b")},
        {"name": ("bob",)},
        "bob",
    ],
)
@bridged()
async def test_annotations_that_dask_cannot_make_spans_of(plugin, client, scheduler, a, b, annotation):
    with span("alice"):
        hers = client.submit(inc, 1, pure=False)
        await wait(hers)
    with dask.annotate(span=annotation):
        theirs = client.submit(inc, 1, pure=False)
        assert await theirs == 2
    assert set(scheduler.task_groups) == {"inc"}
    lines = forest(await finished(plugin), "dask.task.count")
    assert lines[:2] == ["alice [span] task.count=2", "  inc [group] task.count=2"]


@bridged(split_groups=False)
async def test_tasks_that_stay_where_dask_puts_them(plugin, client, scheduler, *workers):
    async with new_client(scheduler, "bob") as bob:
        with span("alice"):
            hers = client.map(inc, range(3), pure=False)
            await wait(hers)
        with span("bob"):
            his = bob.map(inc, range(4), pure=False)
            bad = client.submit(fail, 4, key=("inc", 4))
            await wait([*his, bad])
        without = client.submit(fail, 5, key=("inc", 5))
        await wait(without)
        assert set(scheduler.task_groups) == {"inc"}
        assert await whole(plugin, scheduler, *WHAT) == [
            "alice [span] span.result=error task.count=9 task.completed=7 task.erred=2 "
            "Error: ValueError: 2 tasks erred; first: bad 4",
            "  inc [group] group.name=inc task.count=9 task.completed=7 task.erred=2 "
            "Error: ValueError: 2 tasks erred; first: bad 4",
            "bob [span] span.result=error task.count=0 task.completed=0 span.counted_in=alice "
            "elsewhere.count=5 elsewhere.completed=4 elsewhere.erred=1 "
            "Error: ValueError: 1 task erred; first: bad 4 counted_in -> alice in another trace",
        ]


@bridged(tags_in_group_names=False)
async def test_tags_that_must_not_be_shown(plugin, client, scheduler, *workers):
    futures = []
    for tags in (("alice",), ("secret",), ("secret", "inner"), ("secret",)):
        with span(*tags):
            futures.append(client.submit(inc, futures[-1] if futures else 1, pure=False))
            await wait(futures)
    names = set(scheduler.task_groups)
    assert len(names) == 4
    assert all(re.fullmatch(r"inc( @ span [0-9a-f]{8})?", name) for name in names)
    spans = await finished(plugin)
    groups = [each.attributes for each in spans if each.attributes["dask.kind"] == "group"]
    assert {each["dask.group.name"] for each in groups} == names
    assert not any("secret" in name for each in groups for name in each.get("dask.group.dependencies", ()))


def own_span(x):
    client = get_client()
    secede()
    with span("own"):
        futures = [client.submit(inc, number, pure=False) for number in range(x)]
        return sum(client.gather(futures)) + sum(client.gather(client.map(inc, range(x), pure=False)))


async def in_a_thread_that_has_been_left(client, worker, function):
    """Run a task without a span in a thread that a task of Alice's has left; return the number of tasks by span."""
    may_leave, held = Event("may leave", client=client), Event("held", client=client)
    with span("alice"):
        hers = client.submit(leave, key="leave-0")
    later = client.submit(function, 2, key="later-0")  # starts when the thread is left
    await until(lambda: "later-0" in worker.state.tasks)
    await may_leave.set()
    await later
    await held.set()
    await wait(hers)


def tasks_by_span(scheduler):
    return {each.name: sum(each.states.values()) for each in scheduler.extensions["spans"].spans.values()}


@pytest.mark.parametrize("with_us", [True, False])
@bridged(nthreads=[("127.0.0.1", 1)])
async def test_what_starts_in_a_thread_that_has_been_left(plugin, client, scheduler, worker, with_us):
    """Dask leaves Alice's annotation there, but knows which task submits."""
    if not with_us:
        await plugin.before_close()
    await in_a_thread_that_has_been_left(client, worker, nested_get_client)
    alone = {("alice",): 1 + 2, ("default",): 1}
    assert tasks_by_span(scheduler) == ({("alice",): 1, ("default",): 1 + 2} if with_us else alone)


@pytest.mark.parametrize("with_us", [True, False])
@bridged(nthreads=[("127.0.0.1", 1)])
async def test_what_starts_there_may_open_a_span(plugin, client, scheduler, worker, with_us):
    if not with_us:
        await plugin.before_close()
    await in_a_thread_that_has_been_left(client, worker, own_span)
    alone = {("alice",): 1 + 4, ("alice", "own"): 4, ("default",): 1}
    assert tasks_by_span(scheduler) == ({("alice",): 1, ("default",): 1, ("own",): 4} if with_us else alone)


@pytest.mark.slow
@gen_cluster(
    client=True,
    nthreads=[("127.0.0.1", 2)],
    config={"otel.capture.tags": False, "otel.traces.idle-timeout": "100ms"},
    clean_kwargs={"threads": False},
)
async def test_no_tag_leaves_the_scheduler_if_none_may(client, scheduler, worker):
    with Misbehaving("grpc") as receiver:
        plugin = OTelPlugin(receiver.endpoint)
        await scheduler.register_scheduler_plugin(plugin, idempotent=True)
        futures = []
        for number in range(3):
            with span("secret", f"secret {number}") as span_id:
                futures.append(client.submit(inc, futures[-1] if futures else 1, pure=False))
                await wait(futures)
        spans = await asyncio.to_thread(
            receiver.wait, lambda spans: sum(each.attributes["dask.kind"] == "group" for each in spans) == 3, 30
        )
        assert len(scheduler.task_groups) == 3
        assert "secret" not in "".join(map(str, scheduler.task_groups))
        assert span_id in scheduler.extensions["spans"].spans
        groups = [each.attributes for each in spans if each.attributes["dask.kind"] == "group"]
        assert {each["dask.group.name"] for each in groups} == set(scheduler.task_groups)
        assert "secret" not in str(spans)
        await plugin.before_close()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)], clean_kwargs={"threads": False})
async def test_tasks_stay_where_they_are_if_splitting_fails(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    with span("alice"):
        hers = client.map(inc, range(2), pure=False)
        await wait(hers)
    with pytest.MonkeyPatch.context() as patch, span("bob"):
        patch.setattr("dask_otel.scheduler.split_groups.TaskGroup", None)
        his = client.map(inc, range(3), pure=False)
        await wait(his)
    with span("carol"):
        others = client.map(inc, range(4), pure=False)
        await wait(others)
    await plugin.before_close()
    check_groups(scheduler)
    assert plugin.safety.failures == {("splitting of task groups", "TypeError"): 1}  # not tried again for each task
    assert forest(plugin.exporter.spans(), *WHAT) == [
        "alice [span] span.result=success task.count=5 task.completed=5",
        "  inc [group] group.name=inc task.count=5 task.completed=5",
        "bob [span] span.result=success task.count=0 task.completed=0 span.counted_in=alice elsewhere.count=3 "
        "elsewhere.completed=3 counted_in -> alice in another trace",
        "carol [span] span.result=success task.count=4 task.completed=4",
        "  inc [group] group.name=inc @ carol task.count=4 task.completed=4",
    ]
