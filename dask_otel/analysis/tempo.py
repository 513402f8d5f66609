"""Reads traces from Grafana Tempo's API, as its documentation has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from math import ceil
from warnings import warn

from ..schema import SPAN_ROOT
from .errors import LoadError, LoadWarning
from .http import Backend, NotFoundError
from .otlp_json import PlainSpan, spans_of

__all__ = ["is_tempo", "read_traces", "search"]


def is_tempo(backend: Backend) -> bool:
    """Whether the backend answers as Tempo does.

    Raises
    ------
    LoadError
        If it cannot be reached, or refuses to answer.
    """
    try:
        return backend.get("/api/echo").strip() == "echo"
    except NotFoundError:
        return False


def read_traces(backend: Backend, trace_ids: Sequence[str]) -> Iterator[PlainSpan]:
    """Yield the spans of traces.

    Raises
    ------
    LoadError
        If it does not have one of them.
    """
    for trace_id in trace_ids:
        try:
            answer = backend.json(f"/api/v2/traces/{trace_id}")
        except NotFoundError:
            answer = {}
        # Some versions answer with an empty trace in place of 404.
        if not (isinstance(answer, dict) and answer.get("trace")):
            raise LoadError(f"Tempo at {backend.url} has no trace {trace_id}: look at trace_ids=")
        if answer.get("status") == "PARTIAL":
            why = f": {answer['message']}" if answer.get("message") else ""
            warn(f"Tempo has only a part of trace {trace_id}{why}", LoadWarning, stacklevel=2)
        yield from spans_of(answer)


def search(
    backend: Backend,
    service: str | None,
    root: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> list[str]:
    """Return the ids of traces of dask-otel: Tempo returns the first that it finds, which need not be the newest.

    Raises
    ------
    LoadError
        If there are none.
    """
    conditions = [f"span.{SPAN_ROOT} = {json.dumps(root, ensure_ascii=False)}" if root else f"span.{SPAN_ROOT} != nil"]
    if service:
        conditions.append(f"resource.service.name = {json.dumps(service, ensure_ascii=False)}")
    parameters = {"q": f"{{ {' && '.join(conditions)} }}", "limit": str(limit), "spss": "1"}
    if since or until:  # without both, Tempo looks only at what is recent
        parameters["start"] = str(int(since.timestamp()) if since else 0)
        parameters["end"] = str(ceil((until or datetime.now().astimezone()).timestamp()))
    answer = backend.json("/api/search", parameters)
    # Without the zeros they begin with.
    found = [str(each["traceID"]).lower().rjust(32, "0") for each in answer.get("traces") or ()]
    if not found:
        hint = "" if since or until else ". Without since=, Tempo looks only at what has arrived lately"
        raise LoadError(f"Tempo at {backend.url} has no trace for {parameters['q']}{hint}")
    return found
