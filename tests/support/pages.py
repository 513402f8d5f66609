"""A cluster with the bridge as it is in life, its page included, and a receiver."""

from __future__ import annotations

import asyncio
import json

from distributed.utils_test import gen_cluster
from tornado.httpclient import AsyncHTTPClient

from dask_otel.preload import OTelPlugin

FAST = {
    "otel.traces.idle-timeout": "100ms",
    "otel.sweep-interval": "50ms",
    # Which graphs take long is a matter of chance.
    "otel.client.phase-threshold": "1h",
}


def with_page(test, timeout=30, **settings):
    """Run a test on a cluster with the bridge as it is in life, for so many seconds at most."""

    @gen_cluster(
        client=True,
        nthreads=[("127.0.0.1", 2)],
        config=FAST | settings,
        timeout=timeout,
        clean_kwargs={"threads": False},
    )
    async def run(client, scheduler, worker):
        plugin = OTelPlugin()
        await scheduler.register_scheduler_plugin(plugin, idempotent=True)
        await test(plugin, client, scheduler)

    run()


async def get(scheduler, path, **options):
    url = f"http://127.0.0.1:{scheduler.http_server.port}{path}"
    return await AsyncHTTPClient().fetch(url, raise_error=False, follow_redirects=False, **options)


async def status(scheduler, enough):
    """Ask for the status until it says enough."""
    while True:
        found = json.loads((await get(scheduler, "/otel/status.json")).body)
        if enough(found):
            return found
        await asyncio.sleep(0.01)
