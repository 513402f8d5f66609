"""What graphs say: in which spans their tasks are, and that they could not be taken in."""

from __future__ import annotations

import operator

import dask
import dask.array
from distributed import span, wait
from distributed.utils_test import captured_logger, inc
from support.clusters import bridged, finished
from support.trees import forest


class Unreadable:
    """Cannot be unpickled by anybody."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


@bridged()
async def test_a_graph_that_cannot_be_deserialised(plugin, client, scheduler, *workers):
    with span("root", "broken") as span_id:
        await wait(client.submit(len, Unreadable(), key="broken-1"))
    await wait(client.submit(len, Unreadable(), key="alone-1"))
    assert span_id not in scheduler.extensions["spans"].spans
    error = "Error: _OTHER: 1 graph could not be taken in"
    assert forest(await finished(plugin), "dask.span.result", "dask.graph.failed") == [
        f"default: alone [span] span.result=error graph.failed=1 {error}",
        f"root [span] span.result=error graph.failed=1 {error}",
        f"  broken [span] span.result=error graph.failed=1 {error}",
    ]


@bridged()
async def test_layers_that_were_built_in_another_span(plugin, client, scheduler, *workers):
    with dask.config.set({"optimization.fuse.active": False}):
        with span("build"):
            ones = dask.array.ones(4, chunks=2) + 1
        with span("compute"):
            assert await client.compute(ones.sum()) == 8
    lines = forest(await finished(plugin), "dask.task.count", "dask.elsewhere.count", "dask.span.counted_in")
    assert {line for line in lines if "[span]" in line} == {"build [span] task.count=2", "compute [span] task.count=4"}


@bridged()
async def test_inputs_from_another_span_are_no_collision(plugin, client, scheduler, *workers):
    with span("load"):
        data = client.map(inc, range(3), key="load")
        await wait(data)
    with captured_logger("distributed.dask_otel") as log, span("use"):
        await client.submit(sum, data, key="use")
    assert forest(await finished(plugin), "dask.task.count", "dask.elsewhere.count", "dask.span.counted_in") == [
        "load [span] task.count=3",
        "  load [group] task.count=3",
        "use [span] task.count=1",
        "  use [group] task.count=1 dependency -> load in another trace",
    ]
    assert log.getvalue() == ""
