"""Tasks share what Dask would make anew for each of them: the annotation of their span, and what clients send."""

from __future__ import annotations

import dask
import pytest
from distributed import span
from distributed.spans import Span
from distributed.utils_test import gen_cluster, inc
from support.callers import inside
from support.clusters import bridged, finished
from support.memory import MemoryPlugin

from dask_otel.scheduler import span_annotations

OWN = vars(Span)["annotation"]


def annotations(scheduler, name="span"):
    """By key, of the tasks that have it."""
    return {key: task.annotations[name] for key, task in scheduler.tasks.items() if name in (task.annotations or {})}


def expected(scheduler):
    """What Dask itself would make."""
    spans = scheduler.extensions["spans"].spans
    made = {key: OWN.fget(spans[task.group.span_id]) for key, task in scheduler.tasks.items()}
    return {key: annotation for key, annotation in made.items() if annotation}


def kinds(values):
    return len(set(map(id, values)))


@bridged(nthreads=[])
async def test_one_for_each_span(plugin, client, scheduler):
    """Also over several graphs, whichever comes between, and where Dask puts tasks into another span."""
    with span("root"):
        futures = client.map(inc, range(5), key="a")
        with span("inner"):
            futures += client.map(inc, range(5), key="b")
        futures += client.map(inc, range(5), key="c")
    futures += client.map(inc, range(5), key="d")
    with span("root"):  # another one
        futures += [client.submit(inc, number, key=f"e-{number}") for number in range(5)]
    while len(scheduler.tasks) < len(futures):
        await client.scheduler.identity()
    found = annotations(scheduler)
    assert found == expected(scheduler)
    assert len(found) == 20
    assert kinds(found.values()) == kinds(annotation["ids"] for annotation in found.values()) == 3
    with span("too late"):  # Dask writes the annotation of the tasks that are there once more
        again = [client.submit(inc, 0, key="e-0"), client.submit(inc, futures[0], key="f-1")]
    while "f-1" not in scheduler.tasks:
        await client.scheduler.identity()
    assert annotations(scheduler) == expected(scheduler)
    await client.cancel([*futures, *again])


@bridged(nthreads=[])
async def test_what_workers_are_sent(plugin, client, scheduler):
    with span("root"), dask.annotate(priority=3):
        future = client.map(inc, range(5), key="a")
    while not scheduler.tasks:
        await client.scheduler.identity()
    for task in scheduler.tasks.values():
        shared = scheduler._task_to_msg(task)["annotations"]
        assert shared is task.annotations
        assert shared == {"priority": 3, "span": expected(scheduler)[task.key]}
    assert kinds(task.annotations for task in scheduler.tasks.values()) == 5  # each may be changed
    await client.cancel(future)


@bridged(nthreads=[])
async def test_another_span_with_the_same_id(plugin, client, scheduler):
    """Dask does not forget spans; whoever has it forget some gets what was asked for."""
    with inside(first="id"):
        x = client.submit(inc, 1, key="a-1")
    while not scheduler.tasks:
        await client.scheduler.identity()
    extension = scheduler.extensions["spans"]
    del extension.spans["id"]
    with inside(second="id"):
        y = client.submit(inc, 1, key="b-1")
    while len(scheduler.tasks) < 2:
        await client.scheduler.identity()
    assert annotations(scheduler)["b-1"] == {"name": ("second",), "ids": ("id",)}
    extension.spans["id"] = next(each for each in extension.spans_search_by_name["first",])
    await client.cancel([x, y])
    while scheduler.task_groups:  # one of them is not in the span that has the id again
        await client.scheduler.identity()


@bridged(nthreads=[])
async def test_only_so_many_are_remembered(plugin, client, scheduler):
    futures = []
    for number in range(span_annotations.MAX_REMEMBERED + 10):
        with span("one"):
            futures.append(client.submit(inc, number, key=f"{number}-a"))
    while len(scheduler.tasks) < len(futures):
        await client.scheduler.identity()
    assert len(span_annotations._remembered) == span_annotations.MAX_REMEMBERED
    assert annotations(scheduler) == expected(scheduler)
    await client.cancel(futures)


@bridged(nthreads=[])
async def test_nobody_else_gets_them(plugin, client, scheduler):
    with span("root") as id_:
        future = client.submit(inc, 1, key="a-1")
    while not scheduler.tasks:
        await client.scheduler.identity()
    made = scheduler.extensions["spans"].spans[id_]
    assert made.annotation == made.annotation == annotations(scheduler)["a-1"]
    assert kinds([made.annotation, made.annotation, annotations(scheduler)["a-1"]]) == 3
    await client.cancel(future)


class Broken(dict):
    def get(self, *args):
        raise RuntimeError("ours")

    __setitem__ = get


def test_dask_s_own_where_ours_fails(monkeypatch):
    monkeypatch.setattr(span_annotations, "_remembered", Broken())

    @bridged(nthreads=[])
    async def test(plugin, client, scheduler):
        with span("root"):
            futures = client.map(inc, range(5), key="a")
        while not scheduler.tasks:
            await client.scheduler.identity()
        found = annotations(scheduler)
        assert found == expected(scheduler)
        assert kinds(found.values()) == 5
        await client.cancel(futures)

    test()


def test_a_version_of_dask_that_makes_them_in_another_way(monkeypatch):
    monkeypatch.setattr(Span, "annotation", OWN.fget)  # a method

    @bridged()
    async def test(plugin, client, scheduler, *workers):
        assert vars(Span)["annotation"] is OWN.fget
        assert await client.submit(inc, 1, key="a-1") == 2

    test()


@pytest.mark.parametrize("first_goes_first", [True, False])
def test_several_bridges_and_dask_s_own_at_the_end(first_goes_first):
    @gen_cluster(nthreads=[])
    async def test(scheduler):
        before = vars(Span)["annotation"]
        bridges = [span_annotations.SharedAnnotations() for _ in range(2)]
        for each in bridges:
            each.install()
            each.install()
        assert vars(Span)["annotation"] is not before
        for each in bridges if first_goes_first else reversed(bridges):
            assert vars(Span)["annotation"] is not before
            each.remove()
            each.remove()
        assert vars(Span)["annotation"] is before is OWN
        plugin = MemoryPlugin()
        await plugin.add_to(scheduler)
        assert vars(Span)["annotation"] is not OWN
        await finished(plugin)
        assert vars(Span)["annotation"] is OWN

    test()


@bridged(nthreads=[])
async def test_the_carrier_of_a_graph(plugin, client, scheduler):
    """All tasks of a graph have one; it is unpickled once. The bridge replaces it where it writes into it."""
    futures = []
    for number in range(2):
        with span("request"), dask.annotate(otel={"traceparent": f"00-{7:032x}-{8:016x}-01", "baggage": "a=b"}):
            futures += client.map(inc, range(5), key=f"a{number}")
    while len(scheduler.tasks) < len(futures):
        await client.scheduler.identity()
    found = annotations(scheduler, "otel")
    assert len(found) == 10
    assert kinds(found.values()) == 2
    await client.cancel(futures)
