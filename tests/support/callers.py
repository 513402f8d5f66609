"""Dask spans that were opened below a caller's span: by ids given by hand, or by an instrumented client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dask

import dask_otel
from dask_otel.client.submitting import safety


def anchored(trace: int, span: int, nonce: str = "", *, sampled: bool = True) -> str:
    """The id of a Dask span below a caller's span."""
    return f"00-{trace:032x}-{span:016x}-{sampled:02x}" + (f";{nonce}" if nonce else "")


def inside(**ids: str) -> AbstractContextManager[Any]:
    """Be in a Dask span, and in those around it: ids by tag, the outermost first."""
    return dask.annotate(span={"name": tuple(ids), "ids": tuple(ids.values())})


@contextmanager
def instrumented(**settings: Any) -> Iterator[None]:
    """Instrument the clients of this process for a while, with settings under ``otel``; nothing of ours may fail."""
    before = safety.failures
    given = {name.replace("__", "."): value for name, value in settings.items()}
    with dask.config.set({f"otel.{name.replace('_', '-')}": value for name, value in given.items()}):
        dask_otel.instrument()
        try:
            yield
        finally:
            dask_otel.uninstrument()
    assert safety.failures == before
