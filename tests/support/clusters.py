"""A real in-process cluster with the bridge in it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from unittest import mock

from distributed import Worker
from distributed.utils_test import gen_cluster

import dask_otel
from support.memory import MemoryPlugin
from support.task_groups import check_groups
from support.trees import check_shape, check_sums

TWO_WORKERS = [("127.0.0.1", 1), ("127.0.0.1", 2)]


def bridged(*, nthreads=TWO_WORKERS, cluster=None, **settings):
    """Run a test with a cluster, a client, and the bridge; nothing of ours may fail, all sums and groups must be right.

    Parameters
    ----------
    cluster
        Further arguments of ``gen_cluster``.
    settings
        Of the bridge.
    """

    def decorate(test):
        @gen_cluster(**{"client": True, "nthreads": nthreads, "timeout": 90} | (cluster or {}))
        async def run(client, scheduler, *workers):
            plugin = MemoryPlugin(**settings)
            await plugin.add_to(scheduler)
            with one_clock():
                await test(plugin, client, scheduler, *workers)
                check_groups(scheduler)
                await finished(plugin)

        run.__name__ = test.__name__
        return run

    return decorate


@contextmanager
def one_clock():
    """Have workers not guess how far their clock is from the scheduler's: it is the same, and delays mislead them."""
    none = property(lambda worker: 0.0, lambda worker, guess: None)
    with mock.patch.object(Worker, "scheduler_delay", none, create=True):
        yield


async def close(scheduler, client):
    """Close the scheduler under a client, which would else spend two seconds on trying to connect again."""
    await scheduler.close()
    await client._close(fast=True)


async def finished(plugin):
    """Close the bridge and return what it sent."""
    await plugin.before_close()
    assert not plugin.safety.failures
    spans = plugin.exporter.spans()
    check_shape(spans)
    check_sums(spans, plugin.partial)
    return spans


async def trace_of(plugin, root_id):
    """Return a trace once its root is there; it comes last. Waiting in a thread leaves the loop to the cluster."""
    return await asyncio.to_thread(plugin.exporter.wait_for_trace, dask_otel.trace_id(root_id))
