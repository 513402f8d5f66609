"""A Dask span in the trace of the program that submits the work: for FastAPI, Prefect, and others with traces.

If dask-otel is missing on the scheduler, the work is done as before, and the trace has no Dask spans. This process
needs no dask-otel. It needs a tracer provider of OpenTelemetry, such as that of the command opentelemetry-instrument.
"""

from contextlib import AbstractContextManager
from uuid import uuid4

import dask
from distributed import span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def span_in_this_trace(name: str) -> AbstractContextManager:
    """Open a Dask span below OpenTelemetry's current span; without one, a Dask span with a trace of its own.

    A Dask span that is open around it counts the work too.
    """
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    if "traceparent" not in headers:
        return span(name)
    around = dask.get_annotations().get("span") or {"name": (), "ids": ()}
    own_id = f"{headers['traceparent']};{uuid4()}"
    return dask.annotate(span={"name": (*around["name"], name), "ids": (*around["ids"], own_id)})
