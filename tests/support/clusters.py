"""A real in-process cluster with the bridge in it."""

from __future__ import annotations

import asyncio
import inspect
import re
from contextlib import contextmanager
from unittest import mock

from distributed import Worker
from distributed.utils_test import gen_cluster

import dask_otel
from dask_otel.diagnosis.parts import OVERHEAD_ACTIVITIES
from support.memory import MemoryPlugin
from support.task_groups import check_groups, check_spans
from support.trees import check_shape, check_sums, forest

_OUTCOMES = ("completed", "erred", "upstream_failed", "cancelled", "abandoned", "retried", "recomputed", "lost")
#: Attributes: how many tasks there were and what became of them, and of those that another span counts.
COUNTS = ("dask.task.count", *(f"dask.task.{outcome}" for outcome in _OUTCOMES))
ELSEWHERE = (
    "dask.span.counted_in",
    "dask.elsewhere.count",
    *(f"dask.elsewhere.{outcome}" for outcome in _OUTCOMES),
)

TWO_WORKERS = [("127.0.0.1", 1), ("127.0.0.1", 2)]


def bridged(*, nthreads=TWO_WORKERS, cluster=None, **settings):
    """Run a test with a cluster, a client, and the bridge; nothing of ours may fail, and all sums must be right.

    Parameters
    ----------
    cluster
        Further arguments of ``gen_cluster``.
    settings
        Of the bridge.
    """

    def decorate(test):
        async def run(client, scheduler, *workers, **arguments):
            plugin = MemoryPlugin(**settings)
            await plugin.add_to(scheduler)
            with one_clock():
                await test(plugin, client, scheduler, *workers, **arguments)
                await finished(plugin)
                check_groups(scheduler)

        signature = inspect.signature(test)  # for pytest; without the plugin, which is not a fixture
        run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        run.__name__ = test.__name__
        return gen_cluster(**{"client": True, "nthreads": nthreads, "timeout": 90} | (cluster or {}))(run)

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


async def until(condition):
    """Wait for what no event announces."""
    while not condition():
        await asyncio.sleep(0.005)


async def whole(plugin, scheduler, *attributes):
    """Close the bridge; return the trees of all traces, once groups and numbers are known to be Dask's own.

    Hashes in names are left out.
    """
    spans = await finished(plugin)
    check_groups(scheduler)
    check_spans(scheduler, spans)
    return [re.sub("[0-9a-f]{32}", "…", line) for line in forest(spans, *attributes)]


async def trace_of(plugin, root_id):
    """Return a trace once its root is there; it comes last. Waiting in a thread leaves the loop to the cluster."""
    return await asyncio.to_thread(plugin.exporter.wait_for_trace, dask_otel.trace_id(root_id))


def busy_seconds(metrics):
    """Thread-seconds that tasks used, of Dask's fine metrics: without overhead, and without what Dask derives."""
    left_out = (*OVERHEAD_ACTIVITIES, "idle or other spans")
    return sum(v for k, v in metrics.items() if k[0] == "execute" and k[-1] == "seconds" and k[2] not in left_out)
