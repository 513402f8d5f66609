"""Who submitted, as the graphs of clients say it: services, users, hosts, and spans of callers to link to."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
from distributed import Client, span
from distributed.protocol import ToPickle
from distributed.utils_test import inc
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from support.callers import anchored, inside
from support.clusters import bridged, finished
from support.measured import measured
from support.trees import forest, trees

from dask_otel.identity import trace_id
from dask_otel.messages import Submitter

WHO = ("service.peer.name", "dask.client.user", "dask.client.host")


@contextmanager
def submitting(client, metadata):
    """Have a client add to the metadata of its graphs, as an instrumented one does."""
    send = client._send_to_scheduler

    def add(message):
        if message["op"] == "update-graph":
            message["span_metadata"] = ToPickle({**message["span_metadata"].data, **metadata})
        send(message)

    with mock.patch.object(client, "_send_to_scheduler", add):
        yield


def linked(trace, number, *, sampled=True):
    return Submitter("web", caller=anchored(trace, number, sampled=sampled)).to_metadata()


@bridged()
async def test_who(plugin, client, scheduler, *workers):
    """On the tops of traces only; the bridge adds nothing where a client says nothing."""
    with submitting(client, Submitter("web", "alice", "laptop").to_metadata()):
        with span("root"), span("step"):
            await client.submit(inc, 1, key="a-1")
        with inside(request=anchored(7, 8)):
            await client.submit(inc, 1, key="b-1")
    with span("plain"):
        await client.submit(inc, 1, key="c-1")
    who = "service.peer.name=web client.user=alice client.host=laptop"
    assert forest(await finished(plugin), *WHO) == [
        "plain [span]",
        "  c [group]",
        f"request [span] {who} <- caller",
        "  b [group]",
        f"root [span] {who}",
        "  step [span]",
        "    a [group]",
    ]


@bridged()
async def test_two_submitters_of_one_root(plugin, client, scheduler, *workers):
    async with Client(scheduler.address, asynchronous=True) as other:
        with span("root"):
            for each, name in ((client, "alice"), (other, "bob"), (client, "alice")):
                with submitting(each, Submitter("web", name).to_metadata()):
                    await each.submit(inc, 1, pure=False)
    assert forest(await finished(plugin), *WHO) == [
        "root [span] service.peer.name=web client.user=['alice', 'bob']",
        "  inc [group]",
    ]


@bridged()
async def test_a_graph_that_cannot_be_taken_in(plugin, client, scheduler, *workers):
    with submitting(client, linked(7, 8)), span("root"):
        future = client.submit(inc, 1, key="a-1")
        failing = mock.patch.object(scheduler, "_create_taskstate_from_graph", side_effect=ValueError("bad"))
        with failing, pytest.raises(ValueError, match="bad"):
            await future
    assert forest(await finished(plugin), *WHO) == [
        "root [span] service.peer.name=web Error: _OTHER: 1 graph could not be taken in caller -> ? in another trace",
    ]


@bridged()
async def test_a_link_to_the_caller(plugin, client, scheduler, *workers):
    """The root has a trace of its own. Of several callers each is linked to once, whichever span it is for."""
    with inside(root="root-id"):
        for number, each in ((8, "a"), (8, "b"), (9, "c")):
            with submitting(client, linked(7, number)), span(each):
                await client.submit(inc, 1, key=f"{each}-1")
    spans = await finished(plugin)
    assert trees(spans) == {
        f"{trace_id('root-id'):032x}": [
            "root [span] caller -> ? in another trace caller -> ? in another trace",
            *(line for name in "abc" for line in (f"  {name} [span]", f"    {name} [group]")),
        ]
    }
    (root,) = (each for each in spans if each.name == "root")
    assert root.links == tuple((f"{7:032x}", f"{number:016x}", "caller") for number in (8, 9))


@bridged()
async def test_no_link(plugin, client, scheduler, *workers):
    """To a span that was not sampled, into the trace itself, or to what is no ``traceparent``."""
    own = trace_id("root-id")
    with inside(root="root-id"):
        for metadata in (linked(7, 8, sampled=False), linked(own, 8), Submitter(caller="nonsense").to_metadata()):
            with submitting(client, metadata):
                await client.submit(inc, 1, pure=False)
    assert trees(await finished(plugin)) == {f"{own:032x}": ["root [span]", "  inc [group]"]}


@bridged()
async def test_metadata_that_says_something_else(plugin, client, scheduler, *workers):
    futures = []  # held: tasks that are forgotten may leave the next ones to another default span
    for written in (None, "text", {"service": 7, "caller": ["x"], "other": "y"}):
        with submitting(client, {"dask-otel": written}):
            futures.append(client.submit(inc, 1, pure=False))
            await futures[-1]
    assert forest(await finished(plugin), *WHO, "dask.task.count") == [
        "default: inc [span] task.count=3",
        "  inc [group] task.count=3",
    ]


@measured(idle_timeout=0.1, sampler=ALWAYS_OFF)
async def test_the_sampler_decides_on_a_root_that_is_linked(plugin, client, scheduler, *workers):
    with submitting(client, linked(7, 8)), inside(root="root-id"):
        await client.submit(inc, 1, key="a-1")
    assert await finished(plugin) == []
    assert plugin.output.status()["unsampled"]["span"] == 1
