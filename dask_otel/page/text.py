"""Numbers as people read them."""

from __future__ import annotations

from datetime import datetime, timezone
from time import time

__all__ = ["ago", "bytes_", "seconds", "when"]


def seconds(value: float | None) -> str:
    """Write a duration: ``0.4 ms``, ``2.50 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if value is None:
        return ""
    if value < 1:
        return f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.2f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60):02} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60):02} min"


def ago(at: float | None) -> str:
    """Write how long ago something was."""
    return "never" if at is None else f"{seconds(max(0.0, time() - at))} ago"


def when(at: float) -> str:
    """Write a time, in UTC."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def bytes_(value: float) -> str:
    """Write a size."""
    return f"{value / 2**20:.1f} MiB"
