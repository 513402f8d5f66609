"""How much may wait, and how much leaves at once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """How much may wait and leave at once; the standard ``OTEL_BSP_*`` variables change it."""

    #: Records that may wait, and bytes by ``size_of``: with everything else, less than 64 MiB.
    max_waiting: int = 50_000
    max_bytes: int = 48 * 2**20
    #: Spans in one request: putting together 512 holds the interpreter lock for 2 ms at a stretch, three times.
    max_batch: int = 256
    #: Seconds that records wait for others to share a request with.
    delay: float = 0.2
