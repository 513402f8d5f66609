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

#: Parts of a pattern that may match any number of characters; of a name of 200, two can be divided in 20,000 ways.
MAX_OPEN = 2
_REPEATS = {constants.MAX_REPEAT, constants.MIN_REPEAT, getattr(constants, "POSSESSIVE_REPEAT", None)}


def is_quick(pattern: str) -> bool:
    """Whether a valid pattern is matched quickly, whatever the name."""
    repeated = [part for part in _parts(parser.parse(pattern)) if part[0] in _REPEATS and part[1][1] > 1]
    if sum(1 for _, (_, most, _) in repeated if most > 9) > MAX_OPEN:
        return False
    inside = (inner for _, (_, _, body) in repeated for inner in _parts(body))
    return not any(inner[0] in _REPEATS or inner[0] is constants.BRANCH for inner in inside)


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
