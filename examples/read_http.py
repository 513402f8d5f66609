"""Tasks that read from an HTTP server, on workers that OpenTelemetry instruments: each request is below its task.

If dask-otel is missing on a worker with this preload, the worker does not start; without the preload, each request has
a trace of its own. The workers are started with: opentelemetry-instrument dask worker --preload dask_otel ADDRESS
"""

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import requests
from distributed import Client, span

log = logging.getLogger("analysis")


def read(url: str) -> int:
    log.warning("reading")
    return len(requests.get(url, timeout=30).content)


def read_in_threads(url: str) -> int:
    """In the trace thanks to opentelemetry-instrumentation-threading."""
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(read, [url, url]))


async def read_later(url: str) -> int:
    return await asyncio.create_task(asyncio.to_thread(read, url))


if __name__ == "__main__":
    url = sys.argv[1]
    with Client() as client, span("etl") as root:  # at the address in DASK_SCHEDULER_ADDRESS
        futures = [client.submit(function, url, pure=False) for function in (read, read_in_threads, read_later)]
        print(root, sum(client.gather(futures)))
