"""Trace and span ids, as pure functions of Dask's own names.

Every process that knows a Dask span id can name its trace without asking anybody. The ids are hashes,
never the raw UUID: a UUID's fixed bits would bias samplers, which look at the low 64 bits of a trace id.
"""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["bit_of", "group_id", "others_id", "pending_id", "segment_id", "task_id", "trace_id"]


def _hash(size: int, kind: bytes, *parts: str) -> int:
    """Hash the parts, unambiguously: each is preceded by its length."""
    digest = blake2b(digest_size=size, person=kind)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    # Zero is not a valid id in OpenTelemetry.
    return int.from_bytes(digest.digest(), "big") or 1


def trace_id(root_id: str, number: int = 0) -> int:
    """128-bit id of the trace of a root Dask span.

    ``number`` is 0 but for the traces that a ``default`` root rolls over to when it is cut by age.
    """
    return _hash(16, b"dask-otel trace", root_id, str(number))


def segment_id(span_id: str, number: int) -> int:
    """64-bit id of the OTel span that stands for segment ``number`` of a Dask span."""
    return _hash(8, b"dask-otel seg", span_id, str(number))


def group_id(span_id: str, group: str, number: int) -> int:
    """64-bit id of group span ``number`` of a group in a Dask span."""
    return _hash(8, b"dask-otel group", span_id, group, str(number))


def others_id(span_id: str, number: int) -> int:
    """64-bit id of the span that stands for the folded groups of segment ``number`` of a Dask span."""
    return _hash(8, b"dask-otel others", span_id, str(number))


def task_id(span_id: str, key: str, run_id: int) -> int:
    """64-bit id of the OTel span of one run of a task of a Dask span."""
    return _hash(8, b"dask-otel task", span_id, key, str(run_id))


def pending_id(span_id: str, number: int) -> int:
    """64-bit id of the span that says that segment ``number`` of a root is running."""
    return _hash(8, b"dask-otel marker", span_id, str(number))


def bit_of(span_id: str, bits: int) -> int:
    """Place of a span in a set of so many bits."""
    return _hash(8, b"dask-otel bit", span_id) % bits
