"""Regular expressions that take no time: matching holds the interpreter, and nothing can end it."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as constants  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as constants
    import sre_parse as parser

__all__ = ["is_quick"]

#: Characters of the longest name, and ways to divide it that may be tried.
LONGEST = 200
MAX_WAYS = 100_000
_REPEATS = {constants.MAX_REPEAT, constants.MIN_REPEAT, getattr(constants, "POSSESSIVE_REPEAT", None)}


def is_quick(pattern: str) -> bool:
    """Whether a valid pattern is matched quickly, whatever the name."""
    ways = 1
    for kind, content in _parts(parser.parse(pattern)):
        if kind is constants.BRANCH:
            ways *= len(content[1])
        elif kind in _REPEATS:
            least, most, body = content
            ways *= min(int(most), LONGEST) - min(int(least), LONGEST) + 1
            # One inside of another multiplies again and again.
            if most > 1 and any(inner in _REPEATS or inner is constants.BRANCH for inner, _ in _parts(body)):
                return False
    return ways <= MAX_WAYS


def _parts(parsed: Any) -> list[tuple[Any, Any]]:
    """All parts of a parsed pattern, at whatever depth."""
    found = []
    stack: list[Any] = [parsed]
    while stack:
        item = stack.pop()
        if isinstance(item, parser.SubPattern):
            stack.extend(item.data)
        elif isinstance(item, (tuple, list)):
            if len(item) == 2 and isinstance(item[0], type(constants.MAX_REPEAT)):
                found.append((item[0], item[1]))
            stack.extend(each for each in item if isinstance(each, (tuple, list, parser.SubPattern)))
    return found
