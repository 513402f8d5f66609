"""FastAPI: the Dask work of a request is in the request's trace. Run it with: uvicorn fastapi_app:app

If dask-otel is missing on the scheduler, requests work, and their traces have no Dask spans.
"""

from uuid import uuid4

from caller_trace import span_in_this_trace
from distributed import Client
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

app = FastAPI()
FastAPIInstrumentor.instrument_app(app)
client = Client()  # at the address in DASK_SCHEDULER_ADDRESS


@app.get("/total")
def total(n: int) -> int:
    with span_in_this_trace("total"):
        return client.submit(sum, range(n), key=f"sum-{uuid4()}").result()
