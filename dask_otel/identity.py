"""Trace and span ids, as pure functions of the ids of Dask spans; names in the ids of clients.

Every process that knows the ids of a Dask span and of those above it can compute its trace and its first segment.
Ids are hashes, never the raw UUID: a UUID's fixed bits would bias samplers, which look at the low 64 bits of a trace
id.

A Dask span id may be any string. An *anchored* id is a W3C ``traceparent``, alone or followed by ``;`` and a nonce,
which makes ids distinct that would have the same ``traceparent``. The Dask span is then in the caller's trace, below
the caller's span.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

__all__ = [
    "Caller",
    "Origin",
    "Place",
    "caller_of",
    "client_names",
    "group_id",
    "origin_of",
    "others_id",
    "pending_id",
    "phase_id",
    "place",
    "places",
    "segment_id",
    "task_id",
    "trace_id",
]

#: https://www.w3.org/TR/trace-context-2/#traceparent-header. Only later versions than 00 may have more fields.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.DOTALL,
)
#: At the end of ``Client.id``, which is ``Client-<uuid>`` or ``Client-<name>-<uuid>``.
_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


class Caller(NamedTuple):
    """A span of another process, below which a Dask span was opened."""

    trace_id: int
    span_id: int
    #: Whether the caller may have recorded its span.
    is_sampled: bool


def caller_of(span_id: str) -> Caller | None:
    """Read the caller from an anchored id; None for any other id."""
    found = _TRACEPARENT.fullmatch(span_id.partition(";")[0])
    if not found or (found["more"] is not None and found["version"] == "00"):
        return None
    return Caller(int(found["trace"], 16), int(found["span"], 16), bool(int(found["flags"], 16) & 1))


class Origin(NamedTuple):
    """What decides in which trace a Dask span is, and whether it is sampled.

    This is the nearest caller on the way to its root, else the root's id. Of callers in one trace that follow each
    other on this way, it is the outermost: the cluster's spans below it are sampled or not as a whole.
    """

    root_id: str
    caller: Caller | None

    def below(self, span_id: str) -> Origin:
        """Return the origin of a child; the same object unless the child is in another trace."""
        caller = caller_of(span_id)
        if caller is None or (self.caller and caller.trace_id == self.caller.trace_id):
            return self
        return Origin(self.root_id, caller)

    def trace_id(self, number: int = 0) -> int:
        """128-bit id of the trace; ``number`` as for the function ``trace_id``."""
        return self.caller.trace_id if self.caller else trace_id(self.root_id, number)


def origin_of(ids: Iterable[str]) -> Origin:
    """Return the origin of the Dask span whose id is the last of ``ids``, which begin with that of its root."""
    first, *rest = ids
    origin = Origin(first, caller_of(first))
    for span_id in rest:
        origin = origin.below(span_id)
    return origin


class Place(NamedTuple):
    """Where a segment is among the OTel spans of its trace."""

    trace_id: int
    parent_id: int | None
    #: Whether no other span of the cluster is above it in its trace: listed, counted and sampled as a run.
    is_top: bool


def place(origin: Origin, number: int, above: tuple[int, int] | None) -> Place:
    """Return where a segment of a Dask span is.

    Parameters
    ----------
    number
        Of the trace, as for ``trace_id``.
    above
        Trace and span id of the open segment of the Dask span's parent; None for a root.
    """
    trace = origin.trace_id(number)
    if above and above[0] == trace:
        return Place(trace, above[1], is_top=False)
    return Place(trace, origin.caller.span_id if origin.caller else None, is_top=True)


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
    """128-bit id of the trace of a root Dask span whose id is not anchored.

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


def phase_id(span_id: str, number: int, count: int) -> int:
    """64-bit id of a phase of segment ``number`` of a Dask span, before which ``count`` were sent."""
    return _hash(8, b"dask-otel phase", span_id, str(number), str(count))


def pending_id(span_id: str, number: int, count: int = 0) -> int:
    """64-bit id of a pending span of segment ``number`` of a Dask span, before which ``count`` were sent."""
    return _hash(8, b"dask-otel marker", span_id, str(number), *([str(count)] if count else []))


def places(span_id: str, bits: int) -> tuple[int, int, int, int]:
    """Places of a span in a Bloom filter of so many bits, at most 2³²."""
    digest = _hash(16, b"dask-otel bit", span_id)
    return digest % bits, (digest >> 32) % bits, (digest >> 64) % bits, (digest >> 96) % bits


def client_names(client_ids: Sequence[str]) -> list[str]:
    """Names in the ids of clients, each once; clients without a name are left out."""
    names = [_UUID.sub("", id_).partition("-")[2] for id_ in client_ids]
    return [name for name in dict.fromkeys(names) if name]
