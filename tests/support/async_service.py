"""A web service with one asynchronous Dask client for all requests; nothing in it is about traces.

Started with ``opentelemetry-instrument uvicorn support.async_service:app``. ``READ_URL`` is where its tasks read.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dask
from distributed import Client, Future, span
from fastapi import FastAPI, Request

import dask_otel
from support.request_tasks import fail, load, read, store, summarise, tenant

URL = os.environ["READ_URL"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Client(asynchronous=True) as app.state.client:  # at the address in DASK_SCHEDULER_ADDRESS
        yield


app = FastAPI(lifespan=lifespan)
#: Futures that one request makes and another awaits.
started: dict[str, Future] = {}


@app.get("/items/{item}")
async def items(request: Request, item: str, reads: int = 1) -> int:
    client = request.app.state.client
    return await client.submit(sum, client.map(read, [f"{URL}{item}/{each}" for each in range(reads)]))


@app.get("/report/{id}")
async def report(request: Request, id: int) -> int:
    client = request.app.state.client
    size = await client.submit(summarise, client.map(load, [f"{URL}slow/{id}/{each}" for each in range(4)]))
    with span("publish"):
        return await client.submit(store, f"{URL}slow/{id}?size={size}")


@app.get("/failures/{item}")
async def failures(request: Request, item: str) -> None:
    await request.app.state.client.submit(fail, item)


@app.get("/parts/{item}")
async def parts(request: Request, item: str) -> Any:
    outside = dask_otel.trace_id()
    with span("part"):
        return outside, dask_otel.trace_id(), await request.app.state.client.submit(read, f"{URL}{item}")


@app.get("/tenants")
async def tenants(request: Request) -> Any:
    return await request.app.state.client.submit(tenant, pure=False)


@app.get("/linked/{item}")
async def linked(request: Request, item: str) -> int:
    with dask.config.set({"otel.client.context": "link"}):
        future = request.app.state.client.submit(read, f"{URL}{item}")
    return await future


@app.get("/started/{item}")
async def start(request: Request, item: str) -> str:
    started[item] = request.app.state.client.submit(read, f"{URL}{item}")
    return item


@app.get("/awaited/{item}")
async def await_started(item: str) -> int:
    return await started.pop(item)
