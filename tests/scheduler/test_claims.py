"""Tasks that were there already when a span requested them: they count where they are, and the span follows them."""

from __future__ import annotations

import asyncio

import dask
import pytest
from distributed import Client, Event, span, wait
from distributed.utils_test import inc
from support.clusters import COUNTS, ELSEWHERE, bridged, finished, trace_of, until, whole

WHAT = ("dask.span.result", *COUNTS, *ELSEWHERE)


def other_client(scheduler):
    """A client that does not hold the results of the first one, and so sends their keys."""
    return Client(scheduler.address, asynchronous=True, name="other")


def fail(x):
    raise ValueError(f"bad {x}")


async def waited_for(scheduler, event):
    """A task that waits for an event has found its client: it must not find one that is only just connecting."""
    await until(lambda: scheduler.extensions["events"]._waiter_count[event.name])


async def requested_twice(scheduler, key):
    await until(lambda: key in scheduler.tasks and len(scheduler.tasks[key].who_wants) == 2)


@bridged()
async def test_a_result(plugin, client, scheduler, *workers):
    with span("owner"):
        kept = client.map(inc, range(3))
        await wait(kept)
    async with other_client(scheduler) as other:
        with span("guest") as guest_id:
            again = other.map(inc, range(4))
            await wait(again)
        root = (await trace_of(plugin, guest_id))[-1]
        assert root.attributes["dask.client.name"] == "other"
        assert root.start < root.end
        assert await whole(plugin, scheduler, *WHAT) == [
            "guest [span] span.result=success task.count=1 task.completed=1 span.counted_in=owner "
            "elsewhere.count=3 elsewhere.completed=3 counted_in -> owner in another trace",
            "  inc [group] task.count=1 task.completed=1",
            "owner [span] span.result=success task.count=3 task.completed=3",
            "  inc [group] task.count=3 task.completed=3",
        ]


@bridged()
async def test_a_failure(plugin, client, scheduler, *workers):
    with span("owner"):
        kept = client.submit(fail, 1, key="work-1")
        dependent = client.submit(inc, kept, key="more-1")
        await wait([kept, dependent])
    async with other_client(scheduler) as other:
        with span("guest"):
            again = other.submit(fail, 1, key="work-1")
            dependent_again = other.submit(inc, again, key="more-1")
            await wait([again, dependent_again])
        assert await whole(plugin, scheduler, *WHAT) == [
            "guest [span] span.result=error task.count=0 task.completed=0 span.counted_in=owner "
            "elsewhere.count=2 elsewhere.completed=0 elsewhere.erred=1 elsewhere.upstream_failed=1 "
            "Error: ValueError: 1 task erred, 1 task failed upstream; first: bad 1 "
            "counted_in -> owner in another trace",
            "owner [span] span.result=error task.count=2 task.completed=0 task.erred=1 task.upstream_failed=1 "
            "Error: ValueError: 1 task erred, 1 task failed upstream; first: bad 1",
            "  more [group] task.count=1 task.completed=0 task.upstream_failed=1 "
            "Error: ValueError: 1 task failed upstream; first: bad 1 dependency -> work",
            "  work [group] task.count=1 task.completed=0 task.erred=1 Error: ValueError: 1 task erred; first: bad 1",
        ]


@pytest.mark.parametrize("ends", ["well", "badly"])
@bridged()
async def test_a_task_that_is_running(plugin, client, scheduler, a, b, ends):
    held = Event(client=client)

    async def hold(x):
        await held.wait()
        return fail(x) if ends == "badly" else x

    with span("owner"):
        kept = client.submit(hold, 1, key="work-1")
        await waited_for(scheduler, held)
    async with other_client(scheduler) as other:
        with span("guest"):
            again = other.submit(hold, 1, key="work-1")
            own = other.submit(inc, 1, key="own-1")
            await requested_twice(scheduler, "work-1")
        await held.set()
        await wait([kept, again, own])
        error = " Error: ValueError: 1 task erred; first: bad 1"
        if ends == "well":
            result, of_task, of_claim, error = "success", "task.completed=1", "elsewhere.completed=1", ""
        else:
            result = "error"
            of_task = "task.completed=0 task.erred=1"
            of_claim = "elsewhere.completed=0 elsewhere.erred=1"
        assert await whole(plugin, scheduler, *WHAT) == [
            f"guest [span] span.result={result} task.count=1 task.completed=1 span.counted_in=owner "
            f"elsewhere.count=1 {of_claim}{error} counted_in -> owner in another trace",
            "  own [group] task.count=1 task.completed=1",
            f"owner [span] span.result={result} task.count=1 {of_task}{error}",
            f"  work [group] task.count=1 {of_task}{error}",
        ]


@bridged()
async def test_a_task_that_two_clients_request_in_one_span(plugin, client, scheduler, *workers):
    held = Event(client=client)
    async with other_client(scheduler) as other:
        with span("owner"):
            kept = client.submit(held.wait, key="work-1")
            await waited_for(scheduler, held)
        with span("guest"):
            again = other.submit(held.wait, key="work-1")
            await requested_twice(scheduler, "work-1")
            async with Client(scheduler.address, asynchronous=True) as third:
                once_more = third.submit(held.wait, key="work-1")
                await until(lambda: len(scheduler.tasks["work-1"].who_wants) == 3)
                await held.set()
                await wait([kept, again, once_more])
        assert await whole(plugin, scheduler, *WHAT) == [
            "guest [span] span.result=success task.count=0 task.completed=0 span.counted_in=owner "
            "elsewhere.count=1 elsewhere.completed=1 counted_in -> owner in another trace",
            "owner [span] span.result=success task.count=1 task.completed=1",
            "  work [group] task.count=1 task.completed=1",
        ]


@bridged()
async def test_a_task_that_is_cancelled(plugin, client, scheduler, *workers):
    started = Event(client=client)

    async def hang():
        await started.set()
        await asyncio.sleep(600)

    with span("owner"):
        kept = client.submit(hang, key="work-1")
        await started.wait()
    async with other_client(scheduler) as other:
        with span("guest"):
            again = other.submit(hang, key="work-1")
            await requested_twice(scheduler, "work-1")
        await kept.cancel(force=True)
        await until(lambda: "work-1" not in scheduler.tasks)
        assert again.key == "work-1"
        assert await whole(plugin, scheduler, *WHAT) == [
            "guest [span] span.result=cancelled task.count=0 task.completed=0 span.counted_in=owner "
            "elsewhere.count=1 elsewhere.completed=0 elsewhere.cancelled=1 counted_in -> owner in another trace",
            "owner [span] span.result=cancelled task.count=1 task.completed=0 task.cancelled=1",
            "  work [group] task.count=1 task.completed=0 task.cancelled=1",
        ]


@bridged(idle_timeout=0.1)
async def test_a_retry_that_succeeds_is_the_next_segment(plugin, client, scheduler, *workers):
    tried = Event(client=client)

    async def fail_once():
        if not await tried.is_set():
            await tried.set()
            raise ValueError("once")

    with span("owner") as owner_id:
        kept = client.submit(fail_once, key="work-1")
        await wait(kept)
    async with other_client(scheduler) as other:
        with span("guest") as guest_id:
            again = other.submit(fail_once, key="work-1")
            await wait(again)
        await trace_of(plugin, guest_id)
        await trace_of(plugin, owner_id)
        await again.retry()
        await again
        assert await whole(plugin, scheduler, *WHAT) == [
            "guest [span] span.result=error task.count=0 task.completed=0 span.counted_in=owner "
            "elsewhere.count=1 elsewhere.completed=0 elsewhere.erred=1 "
            "Error: ValueError: 1 task erred; first: once counted_in -> owner in another trace",
            "guest [span] span.result=success task.count=0 task.completed=0 span.counted_in=owner "
            "elsewhere.count=0 elsewhere.completed=1 counted_in -> owner in another trace",
            "owner [span] span.result=error task.count=1 task.completed=0 task.erred=1 "
            "Error: ValueError: 1 task erred; first: once",
            "  work [group] task.count=1 task.completed=0 task.erred=1 Error: ValueError: 1 task erred; first: once",
            "owner [span] span.result=success task.count=0 task.completed=1",
            "  work [group] task.count=0 task.completed=1",
        ]


@pytest.mark.slow
@bridged(max_segment=0.5)
async def test_every_segment_names_where_its_tasks_count(plugin, client, scheduler, *workers):
    held = Event(client=client)
    with span("owner"):
        kept = client.submit(held.wait, key="work-1")
        await waited_for(scheduler, held)
    async with other_client(scheduler) as other:
        with span("guest", "child"):
            again = other.submit(held.wait, key="work-1")
        await asyncio.to_thread(plugin.exporter.wait, lambda spans: sum(s.name == "child" for s in spans) > 2)
        await held.set()
        await wait([kept, again])
        pieces = [each for each in await finished(plugin) if each.name == "child"]
    assert len(pieces) > 3
    assert {each.attributes["dask.span.result"] for each in pieces[:-1]} == {"unfinished"}
    assert all("dask.span.counted_in" in each.attributes for each in pieces)
    assert sum(each.attributes.get("dask.elsewhere.count", 0) for each in pieces) == 1
    assert sum(each.attributes.get("dask.elsewhere.completed", 0) for each in pieces) == 1


@bridged()
async def test_work_without_a_span(plugin, client, scheduler, *workers):
    """It has no trace for what was there already."""
    held = Event(client=client)

    async def hold_and_fail():
        await held.wait()
        raise ValueError("bad")

    with span("owner"):
        kept = client.submit(hold_and_fail, key="work-1")
        await waited_for(scheduler, held)
    async with other_client(scheduler) as other:
        again = other.submit(hold_and_fail, key="work-1")
        await requested_twice(scheduler, "work-1")
        await held.set()
        await wait([kept, again])
        assert await whole(plugin, scheduler, *WHAT) == [
            "owner [span] span.result=error task.count=1 task.completed=0 task.erred=1 "
            "Error: ValueError: 1 task erred; first: bad",
            "  work [group] task.count=1 task.completed=0 task.erred=1 Error: ValueError: 1 task erred; first: bad",
        ]


@bridged()
async def test_spans_of_one_trace(plugin, client, scheduler, *workers):
    """What is inside counts around it, too; there are no links into the own trace from a root."""
    held = Event(client=client)
    async with other_client(scheduler) as other:
        with span("root"):
            with span("a"):
                kept = client.submit(held.wait, key="work-1")
                await waited_for(scheduler, held)
            with span("b", "c"):
                again = other.submit(held.wait, key="work-1")
                await requested_twice(scheduler, "work-1")
            async with Client(scheduler.address, asynchronous=True) as third:
                in_root = third.submit(held.wait, key="work-1")
                await until(lambda: len(scheduler.tasks["work-1"].who_wants) == 3)
                await held.set()
                await wait([kept, again, in_root])
        assert await whole(plugin, scheduler, *WHAT) == [
            "root [span] span.result=success task.count=1 task.completed=1 span.counted_in=root / a",
            "  a [span] span.result=success task.count=1 task.completed=1",
            "    work [group] task.count=1 task.completed=1",
            "  b [span] span.result=success task.count=0 task.completed=0 elsewhere.count=1 elsewhere.completed=1",
            "    c [span] span.result=success task.count=0 task.completed=0 span.counted_in=root / a "
            "elsewhere.count=1 elsewhere.completed=1",
        ]


@bridged()
async def test_a_key_of_its_own_that_another_span_requested_first(plugin, client, scheduler, *workers):
    """Whoever came first owns it, also if the other one owns the rest of the group."""
    held = Event(client=client)
    async with other_client(scheduler) as other:
        with span("owner") as owner_id:
            kept = client.submit(inc, 1, key="work-0")
            await kept
        with span("guest"):
            first = client.submit(held.wait, key="work-1")
            await waited_for(scheduler, held)
        with dask.annotate(span={"name": ("owner",), "ids": (owner_id,)}):
            later = other.submit(held.wait, key="work-1")
            await requested_twice(scheduler, "work-1")
        await held.set()
        await wait([first, later])
        assert await whole(plugin, scheduler, *WHAT) == [
            "guest [span] span.result=success task.count=1 task.completed=1",
            "  work [group] task.count=1 task.completed=1",
            "owner [span] span.result=success task.count=1 task.completed=1 span.counted_in=guest "
            "elsewhere.count=1 elsewhere.completed=1 counted_in -> guest in another trace",
            "  work [group] task.count=1 task.completed=1",
        ]


@bridged()
async def test_tasks_that_have_never_run_stay_where_they_are(plugin, client, scheduler, *workers):
    """The scheduler takes in what leads to a result that it has already, and leaves it released."""
    with span("first"):
        kept = client.submit(inc, 1, key="y")
        await kept
    async with other_client(scheduler) as other:
        with span("second"):
            assert await other.get({"x": (inc, 1), "y": (inc, "x")}, "y", sync=False) == 2
        assert scheduler.tasks["x"].state == "released"
        assert scheduler.tasks["x"].run_id is None
        with span("third"):
            again = client.submit(inc, 1, key="x")
            more = client.submit(inc, 1, key=("x", 1))
            await wait([again, more])
        assert await whole(plugin, scheduler, *WHAT) == [
            "first [span] span.result=success task.count=1 task.completed=1",
            "  y [group] task.count=1 task.completed=1",
            "second [span] span.result=success task.count=1 task.completed=1 span.counted_in=first "
            "elsewhere.count=1 elsewhere.completed=1 counted_in -> first in another trace",
            "  x [group] task.count=1 task.completed=1",
            "third [span] span.result=success task.count=1 task.completed=1 span.counted_in=second "
            "elsewhere.count=1 elsewhere.completed=1 counted_in -> second in another trace",
            "  x [group] task.count=1 task.completed=1",
        ]
