"""Roots that ended long ago leave Dask's extension and the span tree, and the cluster does not notice."""

from __future__ import annotations

import dask
from distributed import span
from distributed.utils_test import inc
from support.clusters import bridged, until


def annotated(*names):
    """A span with ids that a test knows, as one that a person leaves open."""
    return dask.annotate(span={"name": names, "ids": tuple(f"id of {name}" for name in names)})


async def work(client, key, number=1):
    """Tasks that come and go."""
    await client.gather(client.map(inc, range(number), key=key, pure=False))


@bridged(forget_spans=0.2)
async def test_a_root_is_forgotten_with_all_below(plugin, client, scheduler, *workers):
    extension = scheduler.extensions["spans"]
    for number in range(5):
        with span("root"), span("child"):
            await work(client, f"inc-{number}")
    with span("last"):
        await work(client, "last")
    await until(lambda: plugin._bridge.status()["forgotten"]["roots"] == 4)
    assert len(extension.spans) == 3
