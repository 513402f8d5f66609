"""Dask spans that were opened below a caller's span, by ids given by hand."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import dask


def anchored(trace: int, span: int, nonce: str = "", *, sampled: bool = True) -> str:
    """The id of a Dask span below a caller's span."""
    return f"00-{trace:032x}-{span:016x}-{sampled:02x}" + (f";{nonce}" if nonce else "")


def inside(**ids: str) -> AbstractContextManager[Any]:
    """Be in a Dask span, and in those around it: ids by tag, the outermost first."""
    return dask.annotate(span={"name": tuple(ids), "ids": tuple(ids.values())})
