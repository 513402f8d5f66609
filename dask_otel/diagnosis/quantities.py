"""Quantities as a person reads them."""

from __future__ import annotations

__all__ = ["number", "percent", "seconds", "size"]


def seconds(value: float) -> str:
    """E.g. ``3 ms``, ``0.42 s``, ``12 s``, ``1:05 min``, ``2:05 h``."""
    if value < 0.1:
        return f"{max(value, 0.0) * 1000:.2g} ms"
    if value < 9.95:
        return f"{value:.2g} s"
    if value < 119.5:
        return f"{value:.0f} s"
    if value < 3570:
        return f"{round(value) // 60}:{round(value) % 60:02} min"
    return f"{round(value / 60) // 60}:{round(value / 60) % 60:02} h"


def size(value: float) -> str:
    """E.g. ``812 B``, ``3.1 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def percent(value: float) -> str:
    """E.g. ``12 %``."""
    return f"{value * 100:.0f} %"


def number(value: float) -> str:
    """E.g. ``1.0``, ``2.5``, ``4``, ``12,000``."""
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value < 1.95 else f"{value:.1f}".removesuffix(".0")
