"""Tasks that Dask counts in another span than the one that was asked for: the everyday case for submit and map."""

from __future__ import annotations

import asyncio
import operator

import dask
import dask.array
from distributed import Client, Event, span, wait
from distributed.utils_test import captured_logger, inc
from support.clusters import bridged, finished, trace_of
from support.trees import tree

from dask_otel.identity import segment_id, trace_id

WHAT = ("dask.span.result", "dask.span.includes", "dask.task.count", "dask.elsewhere.count", "dask.elsewhere.completed")


async def traces(plugin):
    """Close the bridge; what it sent, by trace id."""
    by_id = {}
    for each in await finished(plugin):
        by_id.setdefault(each.trace_id, []).append(each)
    return by_id


def one(spans, name):
    (found,) = [s for s in spans if s.name == name and s.attributes["dask.kind"] == "span"]
    return found


def fail(x):
    raise ValueError(f"bad {x}")


@bridged()
async def test_a_loop_of_spans_around_map_gives_as_many_traces(plugin, client, scheduler, *workers):
    ids, kept = [], []
    with captured_logger("distributed.dask_otel") as log:
        for number in range(100):
            with span(f"step {number}") as span_id:
                kept += client.map(inc, range(number * 3, number * 3 + 3))
                ids.append(span_id)
        await wait(kept)
    assert len(scheduler.extensions["spans"].spans) == 1
    by_id = await traces(plugin)
    assert len(by_id) == 100
    first = by_id[f"{trace_id(ids[0]):032x}"]
    assert one(first, "step 0").attributes["dask.task.count"] == 300
    assert len(one(first, "step 0").attributes["dask.span.includes"]) == 99
    home = (f"{trace_id(ids[0]):032x}", f"{segment_id(ids[0], 0):016x}", "counted_in")
    for number in range(1, 100):
        (found,) = by_id[f"{trace_id(ids[number]):032x}"]
        assert found.name == f"step {number}"
        assert found.span_id == f"{segment_id(ids[number], 0):016x}"
        assert found.attributes["dask.span.counted_in"] == ids[0]
        assert found.attributes["dask.elsewhere.count"] == found.attributes["dask.elsewhere.completed"] == 3
        assert found.attributes["dask.task.count"] == 0
        assert found.attributes["dask.span.result"] == "success"
        assert found.links == (home,)
        assert found.start < found.end
    assert log.getvalue().count("key=") == 2  # one warning, with two examples
    assert "'step 1'" in log.getvalue()


@bridged()
async def test_in_the_same_trace_under_one_root(plugin, client, scheduler, *workers):
    event = Event(client=client)
    with span("root"):
        with span("a"):
            first = client.submit(lambda: 0, key="hold-0")
            await first
            held = [client.submit(event.wait, key="hold-1")]
        with span("b", "c"):
            held += [client.submit(event.wait, key="hold-2"), client.submit(inc, 1, key="own")]
        await event.set()
        await wait(held)
    (spans,) = (await traces(plugin)).values()
    assert tree(spans, *WHAT) == [
        "root [span] dask.span.result=success dask.task.count=4",
        "  a [span] dask.span.result=success dask.span.includes=['root / b / c'] dask.task.count=3",
        "    hold [group] dask.task.count=3",
        "  b [span] dask.span.result=success dask.task.count=1 dask.elsewhere.count=1 dask.elsewhere.completed=1",
        "    c [span] dask.span.result=success dask.task.count=1 dask.elsewhere.count=1 dask.elsewhere.completed=1",
        "      own [group] dask.task.count=1",
    ]
    assert one(spans, "c").attributes["dask.span.counted_in"] == one(spans, "a").attributes["dask.span.id"]
    assert not one(spans, "c").links  # in the same trace, the attribute says it


@bridged()
async def test_failures_belong_to_who_asked(plugin, client, scheduler, *workers):
    keep = client.submit(inc, 1, key="work-0")
    with span("alice"):
        mine = client.submit(inc, 1, key="load-0")
        await wait([keep, mine])
    with span("bob"):
        bad = client.submit(fail, 2, key="load-2")
        dependent = client.submit(inc, bad, key="load-3")
        await wait([bad, dependent])
    by_name = {spans[-1].name: spans for spans in (await traces(plugin)).values()}
    assert tree(by_name["alice"], "dask.span.result", "dask.task.erred", "dask.task.upstream_failed") == [
        "alice [span] dask.span.result=success dask.task.erred=1 dask.task.upstream_failed=1",
        "  load [group] dask.task.erred=1 dask.task.upstream_failed=1",
    ]
    assert tree(by_name["bob"], "dask.span.result", "dask.elsewhere.erred", "dask.elsewhere.upstream_failed") == [
        "bob [span] dask.span.result=error dask.elsewhere.erred=1 dask.elsewhere.upstream_failed=1 Error: "
        "ValueError: 1 task erred, 1 task failed upstream; first: bad 2 counted_in -> ? in another trace"
    ]


@bridged()
async def test_a_parent_of_both_fails_once(plugin, client, scheduler, *workers):
    with span("root"):
        with span("a"):
            good = client.submit(inc, 1, key="load-0")
            await wait(good)
        with span("b"):
            bad = client.submit(fail, 2, key="load-2")
            await wait(bad)
    (spans,) = (await traces(plugin)).values()
    assert tree(spans, "dask.span.result", "dask.task.erred", "dask.elsewhere.erred") == [
        "root [span] dask.span.result=error dask.task.erred=1 Error: ValueError: 1 task erred; first: bad 2",
        "  a [span] dask.span.result=success dask.task.erred=1",
        "    load [group] dask.task.erred=1",
        "  b [span] dask.span.result=error dask.elsewhere.erred=1 Error: ValueError: 1 task erred; first: bad 2",
    ]


@bridged()
async def test_two_clients_one_with_a_span_and_one_without(plugin, client, scheduler, *workers):
    event = Event(client=client)
    async with Client(scheduler.address, asynchronous=True, name="bob") as bob:
        with span("alice"):
            mine = [client.submit(inc, 1, key="work-0"), client.submit(event.wait, key="hold-0")]
            await mine[0]
        others = [bob.submit(fail, 2, key="work-2"), bob.submit(inc, 3, key="bobs")]
        await wait(others)
        await event.set()
        await wait(mine)
        by_name = {spans[-1].name: spans for spans in (await traces(plugin)).values()}
        assert set(by_name) == {"alice", "default: bobs", "default: work"}
        failed = by_name["default: work"][-1]  # every failure is that of some root
        assert (failed.status, failed.attributes["error.type"]) == ("Error", "ValueError")
        assert {n: v for n, v in failed.attributes.items() if n.startswith("dask.elsewhere.")} == {
            "dask.elsewhere.count": 1,
            "dask.elsewhere.completed": 0,
            "dask.elsewhere.erred": 1,
        }
        alice = by_name["alice"][-1].attributes
        assert alice["dask.span.includes"] == ["default"]
        assert alice["dask.client.id"] == client.id
        assert alice["dask.span.result"] == "success"
        assert alice["dask.task.erred"] == 1
        assert by_name["default: bobs"][-1].attributes["dask.client.name"] == "bob"


@bridged()
async def test_inputs_from_another_span_are_no_collision(plugin, client, scheduler, *workers):
    with span("load"):
        data = client.map(inc, range(3), key="load")
        await wait(data)
    with captured_logger("distributed.dask_otel") as log, span("use"):
        await client.submit(sum, data, key="use")
    by_name = {spans[-1].name: spans[-1].attributes for spans in (await traces(plugin)).values()}
    assert set(by_name) == {"load", "use"}
    for attributes in by_name.values():
        assert not {"dask.span.includes", "dask.span.counted_in"} & set(attributes)
    assert log.getvalue() == ""


@bridged()
async def test_a_result_that_is_there_already(plugin, client, scheduler, *workers):
    with span("first") as first_id:
        future = client.submit(inc, 1)
        await future
    async with Client(scheduler.address, asynchronous=True, name="second") as other:
        with span("second") as second_id:
            again = other.submit(inc, 1)
            assert await again == 2
        (second,) = await asyncio.to_thread(plugin.exporter.wait_for_trace, f"{trace_id(second_id):032x}")
    assert second.attributes["dask.span.counted_in"] == first_id
    assert second.attributes["dask.elsewhere.completed"] == 1
    assert second.attributes["dask.client.name"] == "second"
    await traces(plugin)


@bridged()
async def test_asked_for_by_its_own_span_too(plugin, client, scheduler, *workers):
    event = Event(client=client)
    async with Client(scheduler.address, asynchronous=True) as other:

        async def hold_and_fail():
            await event.wait()
            raise ValueError("bad")

        with span("owner") as owner:
            first = client.submit(inc, 1, key="work-0")
            await first
        with span("guest"):
            guest = client.submit(hold_and_fail, key="work-1")
        while "work-1" not in scheduler.tasks:
            await asyncio.sleep(0.01)
        with dask.annotate(span={"name": ("owner",), "ids": (owner,)}):
            mine = other.submit(hold_and_fail, key="work-1")
        while len(scheduler.tasks["work-1"].who_wants) < 2:
            await asyncio.sleep(0.01)
        await event.set()
        await wait([guest, mine])
        roots = {spans[-1].name: spans[-1] for spans in (await traces(plugin)).values()}
        assert roots["owner"].status == roots["guest"].status == "Error"


@bridged()
async def test_cancelled_elsewhere(plugin, client, scheduler, *workers):
    started = Event(client=client)

    async def hang():
        await started.set()
        await asyncio.sleep(600)

    with span("owner"):
        await client.submit(inc, 1, key="work-0")
        kept = client.submit(inc, 1, key="work-00")
        await kept
    with span("guest"):
        future = client.submit(hang, key="work-1")
        await started.wait()
        await future.cancel()
        while (
            "work-1" in scheduler.tasks and scheduler.tasks["work-1"].state == "processing"
        ):  # closing may overtake it
            await asyncio.sleep(0.01)
    roots = {spans[-1].name: spans[-1].attributes for spans in (await traces(plugin)).values()}
    assert roots["owner"]["dask.span.result"] == "success"
    assert roots["guest"]["dask.span.result"] == "cancelled"
    assert roots["guest"]["dask.elsewhere.cancelled"] == roots["owner"]["dask.task.cancelled"] == 1


class Unreadable:
    """Cannot be unpickled by anybody."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


@bridged()
async def test_a_graph_that_cannot_be_deserialised(plugin, client, scheduler, *workers):
    with span("root", "broken") as span_id:
        future = client.submit(len, Unreadable(), key="broken-1")
        await wait(future)
    future2 = client.submit(len, Unreadable(), key="alone-1")
    await wait(future2)
    assert span_id not in scheduler.extensions["spans"].spans
    by_name = {spans[-1].name: spans for spans in (await traces(plugin)).values()}
    assert tree(by_name["root"], "dask.span.result", "dask.graph.failed") == [
        "root [span] dask.span.result=error dask.graph.failed=1 Error: _OTHER: 1 graph could not be taken in",
        "  broken [span] dask.span.result=error dask.graph.failed=1 Error: _OTHER: 1 graph could not be taken in",
    ]
    assert tree(by_name["default: alone"], "dask.span.result") == [
        "default: alone [span] dask.span.result=error Error: _OTHER: 1 graph could not be taken in"
    ]


@bridged()
async def test_layers_that_were_built_in_another_span(plugin, client, scheduler, *workers):
    with dask.config.set({"optimization.fuse.active": False}):
        with span("build"):
            ones = dask.array.ones(4, chunks=2) + 1
        with span("compute"):
            assert await client.compute(ones.sum()) == 8
    roots = {spans[-1].name: spans[-1].attributes for spans in (await traces(plugin)).values()}
    assert set(roots) == {"build", "compute"}
    for attributes in roots.values():
        assert attributes["dask.task.count"] > 0
        assert not {"dask.span.includes", "dask.span.counted_in"} & set(attributes)


@bridged()
async def test_asked_for_by_a_span_around_the_one_that_counts(plugin, client, scheduler, *workers):
    with span("root"):
        with span("a"):
            kept = client.submit(inc, 1, key="work-0")
            await kept
        bad = client.submit(fail, 2, key="work-2")
        await wait(bad)
    (spans,) = (await traces(plugin)).values()
    assert tree(spans, *WHAT) == [
        "root [span] dask.span.result=error dask.task.count=2 Error: ValueError: 1 task erred; first: bad 2",
        "  a [span] dask.span.result=success dask.span.includes=['root'] dask.task.count=2",
        "    work [group] dask.task.count=2",
    ]


class Actor:
    """Lives on a worker."""


@bridged()
async def test_what_fails_later_is_no_failure_of_who_counts_it(plugin, client, scheduler, a, b):
    with span("owner"):
        kept = client.submit(inc, 1, key="work-0", workers=[b.address])
        await kept
    with span("guest"):
        actor = client.submit(Actor, key="work-1", actor=True, workers=[a.address])
        await wait(actor)
        await a.close()
        await wait(actor)
    roots = {spans[-1].name: spans[-1] for spans in (await traces(plugin)).values()}
    assert roots["owner"].attributes["dask.task.erred"] == 1
    assert roots["owner"].attributes["dask.span.result"] == "success"
    assert roots["owner"].status == "Unset"
    assert roots["guest"].attributes["dask.span.result"] == "error"  # though it had heard that its task completed


@bridged(idle_timeout=0.1)
async def test_asked_for_twice_by_the_same_span(plugin, client, scheduler, *workers):
    """It once never ended: its tasks were counted in twice and out once."""
    event = Event(client=client)
    async with Client(scheduler.address, asynchronous=True) as other:
        with span("owner"):
            kept = [client.submit(inc, 1, key="work-0"), client.submit(event.wait, key="work-1")]
            await kept[0]
        with span("guest") as guest_id:
            futures = [each.submit(event.wait, key="work-2", pure=False) for each in (client, other)]
            while "work-2" not in scheduler.tasks or len(scheduler.tasks["work-2"].who_wants) < 2:
                await asyncio.sleep(0.01)
        await event.set()
        await wait([*kept, *futures])
        (guest,) = await asyncio.to_thread(plugin.exporter.wait_for_trace, f"{trace_id(guest_id):032x}")
        assert guest.attributes["dask.elsewhere.count"] == guest.attributes["dask.elsewhere.completed"] == 1


@bridged()
async def test_the_first_error_is_the_first_of_ones_own(plugin, client, scheduler, *workers):
    with span("alice") as alice_id:
        kept = client.submit(inc, 1, key="load-0")
        await kept
    with span("bob"):
        theirs = client.submit(fail, 2, key="load-2")
        await wait(theirs)
    with dask.annotate(span={"name": ("alice",), "ids": (alice_id,)}):
        own = client.submit(fail, 3, key="load-3")
        await wait(own)
    by_name = {spans[-1].name: spans for spans in (await traces(plugin)).values()}
    assert tree(by_name["alice"], "dask.task.erred") == [
        "alice [span] dask.task.erred=2 Error: ValueError: 1 task erred; first: bad 3",
        "  load [group] dask.task.erred=2 Error: ValueError: 1 task erred; first: bad 3",
    ]


@bridged(idle_timeout=0.1)
async def test_a_retry_that_succeeds_is_the_next_segment_of_who_asked(plugin, client, scheduler, *workers):
    tried = Event(client=client)

    async def fail_once():
        if not await tried.is_set():
            await tried.set()
            raise ValueError("once")

    with span("owner"):
        kept = client.submit(inc, 1, key="work-0")
        await kept
    with span("guest") as guest_id:
        future = client.submit(fail_once, key="work-1")
        await wait(future)
    await trace_of(plugin, guest_id)
    await future.retry()
    await wait(future)
    guest = [s for spans in (await traces(plugin)).values() for s in spans if s.name == "guest"]
    assert [s.attributes["dask.span.result"] for s in guest] == ["error", "success"]


@bridged(max_segment=0.5)
async def test_every_piece_says_where_its_tasks_are_counted(plugin, client, scheduler, *workers):
    event = Event(client=client)
    kept = client.submit(event.wait, key="work-0")
    while "work-0" not in scheduler.tasks:
        await asyncio.sleep(0.01)
    with span("asker", "child"):
        futures = [client.submit(event.wait, key="work-1")]
    await asyncio.to_thread(plugin.exporter.wait, lambda spans: sum(s.name == "child" for s in spans) > 2)
    await event.set()
    await wait([kept, *futures])
    pieces = [s for spans in (await traces(plugin)).values() for s in spans if s.name == "child"]
    assert len(pieces) > 3
    for piece in pieces[:-1]:
        assert piece.attributes["dask.span.result"] == "unfinished"
    assert all("dask.span.counted_in" in piece.attributes for piece in pieces)
    assert sum(piece.attributes.get("dask.elsewhere.completed", 0) for piece in pieces) == 1


@bridged()
async def test_work_without_a_span_that_a_span_asked_for_before(plugin, client, scheduler, *workers):
    event = Event(client=client)

    async def hold_and_fail():
        await event.wait()
        raise ValueError("bad")

    kept = client.submit(inc, 1, key="work-0")
    await kept
    async with Client(scheduler.address, asynchronous=True) as other:
        with span("guest"):
            guest = client.submit(hold_and_fail, key="work-1")
        while "work-1" not in scheduler.tasks:
            await asyncio.sleep(0.01)
        mine = other.submit(hold_and_fail, key="work-1")
        while len(scheduler.tasks["work-1"].who_wants) < 2:
            await asyncio.sleep(0.01)
        await event.set()
        await wait([guest, mine])
        roots = {spans[-1].name: spans[-1] for spans in (await traces(plugin)).values()}
        assert roots["default: work"].status == roots["guest"].status == "Error"
