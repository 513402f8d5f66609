"""Makes any text fit for OTLP: a lone surrogate in a name would lose a whole batch."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["clean", "clean_items"]

#: Bytes of an attribute value; Tempo cuts at 2,048.
MAX_VALUE = 2000
#: Bytes of a name. Names stand on every span, so they make most of a trace's size.
MAX_NAME = 250
#: Bytes of a list.
MAX_LIST = 1000


def clean(text: str, limit: int = MAX_VALUE) -> str:
    """Return valid UTF-8 text of at most ``limit`` bytes, without a character cut in two."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def clean_items(texts: Sequence[str], limit: int = MAX_LIST) -> list[str]:
    """Return valid texts of about ``limit`` bytes together; the last one says how many there was no room for."""
    out: list[str] = []
    room = limit
    for number, text in enumerate(texts):
        item = clean(text, limit)
        room -= len(item.encode())
        if room < 0 and out:
            return [*out, f"… ({len(texts) - number} more)"]
        out.append(item)
    return out
