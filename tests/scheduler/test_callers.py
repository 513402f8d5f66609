"""Dask spans whose id is the ``traceparent`` of a caller, on a real cluster."""

from __future__ import annotations

import pytest
from distributed import Client, get_client, span, wait
from distributed.utils_test import inc
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from support.callers import anchored, inside
from support.clusters import bridged, finished
from support.measured import measured, values
from support.trees import trees

import dask_otel
from dask_otel.identity import trace_id

TRACE = f"{7:032x}"


def fail(x):
    raise ValueError("bad")


def runs(plugin):
    return [(run["name"], run["result"], run["trace_id"], run["tasks"]) for run in plugin.output.status()["finished"]]


@pytest.mark.parametrize("nonce", ["", "nonce"])
def test_alone(nonce):
    @bridged()
    async def test(plugin, client, scheduler, *workers):
        with inside(a=anchored(7, 8, nonce)):
            await client.submit(inc, 1, key="inc-1")
            assert dask_otel.trace_id() == TRACE
        assert trees(await finished(plugin)) == {TRACE: ["a [span] <- caller", "  inc [group]"]}
        assert runs(plugin) == [("a", "success", TRACE, 1)]

    test()


@bridged()
async def test_a_malformed_id_is_an_ordinary_one(plugin, client, scheduler, *workers):
    id_ = anchored(0, 8)
    with inside(a=id_):
        await client.submit(inc, 1, key="inc-1")
        assert dask_otel.trace_id() == f"{trace_id(id_):032x}"
    assert trees(await finished(plugin)) == {f"{trace_id(id_):032x}": ["a [span]", "  inc [group]"]}


@bridged()
async def test_ordinary_spans_and_those_of_callers_in_one_another(plugin, client, scheduler, *workers):
    """A root has the numbers of all that is below it, in whatever trace (``finished`` checks it)."""
    with inside(service="root-id"):
        await client.submit(inc, 1, key="own-1")
        with span("step"):
            x = client.submit(inc, 1, key="load-1")
            await x
    with inside(service="root-id", one=anchored(7, 8)):
        y = client.submit(inc, x, key="use-1")
        with span("inner"):
            await wait(client.submit(fail, y, key="fail-1"))
            assert dask_otel.trace_id() == TRACE
    with inside(service="root-id", one=anchored(7, 8), two=anchored(7, 9)):
        await client.submit(inc, 1, key="nested-1")
    with inside(service="root-id", other=anchored(9, 10)):
        await client.submit(inc, 1, key="other-1")
    failed = "Error: ValueError: 1 task erred; first: bad"
    root = f"{trace_id('root-id'):032x}"
    assert trees(await finished(plugin)) == {
        root: [
            f"service [span] {failed}",
            "  step [span]",
            "    load [group]",
            "  own [group]",
        ],
        TRACE: [
            f"one [span] {failed} within -> service in another trace <- caller",
            f"  inner [span] {failed}",
            f"    fail [group] {failed} dependency -> use",
            "  two [span]",
            "    nested [group]",
            "  use [group] dependency -> load in another trace",
        ],
        f"{9:032x}": ["other [span] within -> service in another trace <- caller", "  other [group]"],
    }
    assert sorted(runs(plugin)) == [
        ("one", "error", TRACE, 3),
        ("other", "success", f"{9:032x}", 1),
        ("service", "error", root, 6),
    ]


@bridged()
async def test_two_clients_with_one_caller(plugin, client, scheduler, *workers):
    with inside(alice=anchored(7, 8, "alice")):
        await client.submit(inc, 1, key="a-1")
    async with Client(scheduler.address, asynchronous=True, name="bob") as bob:
        with inside(bob=anchored(7, 8, "bob")):
            await bob.submit(inc, 1, key="b-1")
    assert trees(await finished(plugin)) == {
        TRACE: ["alice [span] <- caller", "  a [group]", "bob [span] <- caller", "  b [group]"]
    }
    assert [name for name, *_ in runs(plugin)] == ["alice", "bob"]


@bridged()
async def test_tasks_that_submit_tasks(plugin, client, scheduler, *workers):
    """What they submit is in the span of theirs, hence in the caller's trace."""

    async def submit():
        with span("inner"):
            return await get_client().submit(inc, 1, key="inner-1"), dask_otel.trace_id()

    with inside(outer="root-id", called=anchored(7, 8)):
        _, found = await client.submit(submit, key="submit-1")
    assert found == TRACE
    assert trees(await finished(plugin)) == {
        f"{trace_id('root-id'):032x}": ["outer [span]"],
        TRACE: [
            "called [span] within -> outer in another trace <- caller",
            "  inner [span]",
            "    inner [group]",
            "  submit [group]",
        ],
    }


@bridged()
async def test_tasks_that_another_caller_has_requested(plugin, client, scheduler, *workers):
    with inside(first=anchored(7, 8)):
        x = client.submit(inc, 1, key="shared-1")
        await x
    async with Client(scheduler.address, asynchronous=True, name="bob") as bob:
        with inside(second=anchored(9, 10)):
            await bob.submit(inc, 1, key="shared-1")
    assert trees(await finished(plugin)) == {
        TRACE: ["first [span] <- caller", "  shared [group]"],
        f"{9:032x}": ["second [span] counted_in -> first in another trace <- caller"],
    }
    assert {name for name, *_ in runs(plugin)} == {"first", "second"}


# Sampling


def work_of_sampled_and_unsampled(client):
    async def work():
        for number, (trace, sampled) in enumerate([(7, True), (9, False), (7, False)]):
            with inside(outer=anchored(trace, number + 1, sampled=sampled)):
                await client.submit(inc, 1, key=f"a{number}-1")
        with inside(outer="ordinary", called=anchored(11, 1, sampled=False)):
            await client.submit(inc, 1, key="below-1")

    return work()


@measured(idle_timeout=0.1)
async def test_unsampled_callers_have_metrics_only(plugin, client, scheduler, *workers):
    """Two callers in one trace need not agree: each is honoured."""
    await work_of_sampled_and_unsampled(client)
    plugin.partial = {"ordinary"}
    spans = await finished(plugin)
    assert trees(spans) == {
        TRACE: ["outer [span] <- caller", "  a0 [group]"],
        f"{trace_id('ordinary'):032x}": ["outer [span]"],
    }
    root = next(each for each in spans if not each.parent_id)
    assert root.attributes["dask.task.count"] == 1
    assert sorted(runs(plugin), key=str) == [
        ("called", "success", None, 1),
        ("outer", "success", TRACE, 1),
        ("outer", "success", f"{trace_id('ordinary'):032x}", 1),
        ("outer", "success", None, 1),
        ("outer", "success", None, 1),
    ]
    counts = {labels: sum(p.counts) for labels, p in values(plugin.last, "dask.span.duration").items()}
    assert counts == {("outer", "success"): 5}
    unsampled = plugin.output.status()["unsampled"]
    assert (unsampled["span"], unsampled["group"]) == (3, 3)


@measured(idle_timeout=0.1, sampler=ALWAYS_ON)
async def test_always_on_sends_what_an_unsampled_caller_has_asked_for(plugin, client, scheduler, *workers):
    await work_of_sampled_and_unsampled(client)
    assert trees(await finished(plugin)) == {
        TRACE: ["outer [span] <- caller", "  a0 [group]", "outer [span] <- caller", "  a2 [group]"],
        f"{9:032x}": ["outer [span] <- caller", "  a1 [group]"],
        f"{trace_id('ordinary'):032x}": ["outer [span]"],
        f"{11:032x}": ["called [span] within -> outer in another trace <- caller", "  below [group]"],
    }
