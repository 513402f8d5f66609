"""FastAPI: the Dask work of each request is in the request's trace, without a line about traces.

If dask-otel is missing in this process or on the scheduler, requests work, and their traces have no spans of the
cluster. Start it with: opentelemetry-instrument uvicorn fastapi_app:app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from distributed import Client
from fastapi import FastAPI, Request


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Client(asynchronous=True) as app.state.client:  # at the address in DASK_SCHEDULER_ADDRESS
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/total/{n}")
async def total(request: Request, n: int) -> int:
    # pure=False: else two requests with one n share a task, which is in the trace of the first.
    return await request.app.state.client.submit(sum, range(n), pure=False)
