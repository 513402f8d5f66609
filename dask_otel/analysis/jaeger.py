"""Reads traces from Jaeger's API, version 3, which Jaeger has since 1.35 and 2.0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone

from .errors import LoadError
from .http import Backend, NotFoundError
from .otlp_json import PlainSpan, documents, spans_of

__all__ = ["DEFAULT_SERVICE", "is_jaeger", "read_traces", "search"]

#: Jaeger looks for traces of one service only.
DEFAULT_SERVICE = "dask-scheduler"
#: Seconds that the clocks of Jaeger's and other hosts may differ by.
_AHEAD = timedelta(days=1)


def is_jaeger(backend: Backend) -> bool:
    """Whether the backend answers as Jaeger does.

    Raises
    ------
    LoadError
        If it cannot be reached, or refuses to answer.
    """
    try:
        document = backend.json("/api/v3/services")
    except NotFoundError:
        return False
    return isinstance(document, dict) and "services" in document


def read_traces(backend: Backend, trace_ids: Sequence[str]) -> Iterator[PlainSpan]:
    """Yield the spans of traces.

    Raises
    ------
    LoadError
        If it does not have one of them.
    """
    for trace_id in trace_ids:
        try:
            # Raw: otherwise Jaeger changes times where it takes clocks for skewed.
            yield from _spans(backend.get(f"/api/v3/traces/{trace_id}", {"raw_traces": "true"}))
        except NotFoundError as error:
            raise LoadError(f"Jaeger at {backend.url} has no trace {trace_id}: look at trace_ids=") from error


def search(
    backend: Backend, service: str | None, since: datetime | None, until: datetime | None, limit: int
) -> Iterator[PlainSpan]:
    """Yield the spans of the newest traces of a service.

    Raises
    ------
    LoadError
        If there are none.
    """
    name = service or DEFAULT_SERVICE
    now = datetime.now(timezone.utc)
    parameters = {
        "query.service_name": name,
        "query.start_time_min": _rfc3339(since or datetime.fromtimestamp(0, timezone.utc)),
        "query.start_time_max": _rfc3339(until or now + _AHEAD),
        "query.num_traces": str(limit),
        "query.raw_traces": "true",
    }
    try:
        yield from _spans(backend.get("/api/v3/traces", parameters))
    except NotFoundError as error:
        services = backend.json("/api/v3/services").get("services") or []
        has = f"it has {', '.join(map(repr, sorted(services)[:20]))}" if services else "it has no service at all"
        when = "in the time between since= and until=" if since or until else "now"
        raise LoadError(f"Jaeger at {backend.url} has no trace of service={name!r} {when}: {has}") from error


def _spans(body: str) -> Iterator[PlainSpan]:
    for document in documents(body):
        yield from spans_of(document)


def _rfc3339(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}Z"
