"""Texts for people: times, sizes and counts, no more precise than a person reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import count

from ..schema import shorten

__all__ = ["ago", "clients", "duration", "isolated", "number_of", "parts", "size", "ticks", "utc"]

#: Distances of ticks from a minute on, in seconds.
_STEPS = (60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 43200, 86400)
#: Ticks on an axis, at most.
_MAX_TICKS = 6
_MAX_CLIENTS = 3


def duration(seconds: float) -> str:
    """Write a time with three digits: ``500 µs``, ``84.4 ms``, ``1.5 s``; from two minutes on, ``2 min 5 s``."""
    seconds = float(f"{max(0.0, seconds):.3g}") if seconds < 100 else seconds
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.3g} s"
    units = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    large, name, small, small_name = next(unit for unit in units if whole >= 2 * unit[0])
    many, few = divmod(round(whole / small), large // small)
    return f"{many:,} {name}" + (f" {few} {small_name}" if few else "")


def ago(seconds: float) -> str:
    """Write how long ago something was, in whole seconds."""
    return f"{duration(round(seconds))} ago" if seconds >= 1 else "less than 1 s ago"


def utc(at: float) -> str:
    """Write a point in time."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def size(number: float) -> str:
    """Write a number of bytes: ``0.4 MiB``, ``64 MiB``."""
    if number < 1000:
        return f"{number:.0f} B"
    power = next(power for power in (1, 2, 3) if number < 1000 * 1024**power or power == 3)
    number, unit = number / 1024**power, ("kiB", "MiB", "GiB")[power - 1]
    return f"{number:.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.1f} {unit}"


def number_of(number: int, thing: str, things: str = "") -> str:
    """Write a number of things: ``1 task``, ``2 tasks``."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def clients(names: Sequence[str]) -> str:
    """Write the first names of clients, and how many more there are."""
    shown = ", ".join(shorten(name, 40) for name in names[:_MAX_CLIENTS])
    return f"{shown} and {len(names) - _MAX_CLIENTS} more" if len(names) > _MAX_CLIENTS else shown


def isolated(text: str) -> str:
    """Keep what controls the direction of a text from changing what follows; for a title, which can have no tags."""
    text = text.replace("\u2069", "")
    return f"\u2068{text}\u2069"


def parts(address: str) -> list[str]:
    """Return the parts of an address, between which a line may break."""
    return re.findall(r"[^./:?&_-]*[./:?&_-]+|[^./:?&_-]+", address)


def ticks(whole: float) -> list[tuple[float, str]]:
    """Return round times on an axis of so many seconds: where each is, in percent, and its text."""
    small = (digit * 10.0**power for power in range(-7, 2) for digit in (1, 2, 5))
    large = (86_400.0 * digit * 10**power for power in count() for digit in (2, 5, 10))
    steps = (step for part in ((each for each in small if each < 50), _STEPS, large) for step in part)
    step = next(step for step in steps if whole < step * _MAX_TICKS)
    every = (step * number for number in range(_MAX_TICKS) if step * number <= whole)
    return [(100 * at / whole, duration(at) if at else "0") for at in every]
