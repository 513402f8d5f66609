"""A web service whose requests run in threads, and of which the first makes the Dask client.

Started with ``opentelemetry-instrument uvicorn support.threads_service:app``. ``READ_URL`` is where its tasks read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import dask
from distributed import Client
from fastapi import FastAPI

from support.request_tasks import read

URL = os.environ["READ_URL"]
#: Set by a request; then a thread that was there before all requests submits work.
wanted, done = threading.Event(), threading.Event()


@cache
def client() -> Client:
    return Client()  # at the address in DASK_SCHEDULER_ADDRESS


def submit_later() -> None:
    wanted.wait()
    client().submit(read, f"{URL}background").result()
    done.set()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    threading.Thread(target=submit_later, daemon=True).start()
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/first")
def first() -> int:
    return client().submit(read, f"{URL}first").result()


@app.get("/reports/{report}")
def reports(report: str, reads: int = 1) -> int:
    return sum(dask.compute(*(dask.delayed(read)(f"{URL}{report}/{each}") for each in range(reads))))


@app.get("/background")
def background() -> None:
    wanted.set()
    assert done.wait(60)
