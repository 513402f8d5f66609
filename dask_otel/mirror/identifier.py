"""Names of activities and units, which users may invent."""

from __future__ import annotations

import re

__all__ = ["identifier"]


def identifier(text: object) -> str:
    """Return ``text`` as part of an attribute's name: only ``[a-z0-9_]``."""
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")[:64] or "unnamed"
