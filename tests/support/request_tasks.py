"""What web services of tests submit. Workers import it, and need nothing of these services."""

from __future__ import annotations

import requests
from opentelemetry import baggage


def read(url: str) -> int:
    """An HTTP request, for which OpenTelemetry's instrumentation makes a span."""
    return len(requests.get(url, timeout=30).content)


def load(url: str) -> int:
    return read(url)


def summarise(sizes: list[int]) -> int:
    return sum(sizes)


def store(url: str) -> int:
    return read(url)


def fail(item: str) -> None:
    raise LookupError(item)


def tenant() -> object:
    """What the caller's baggage says, as it has reached this task."""
    return baggage.get_baggage("tenant")
