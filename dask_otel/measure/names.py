"""Names that people invent, as labels: so many at a time, so that tomorrow's have a place, too."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from .series import OTHER

__all__ = ["MAX_NAMES", "UNUSED", "Names", "Rewriting"]

#: Names at a time; what is beyond is ``other``.
MAX_NAMES = 50
#: Seconds after which a name that was not used gives its place up, if another one wants it.
UNUSED = 86_400.0
#: Characters of a label.
MAX_LABEL = 200
#: Names whose rewriting is remembered.
MAX_REMEMBERED = 10_000


class Names:
    """The values of one label.

    Parameters
    ----------
    forget
        Told of each name that gives its place up.
    """

    def __init__(self, forget: Callable[[str], None], most: int = MAX_NAMES) -> None:
        self._forget = forget
        self._most = most
        #: When each was last used, the longest unused first.
        self._used: OrderedDict[str, float] = OrderedDict()

    def use(self, name: str, now: float) -> str:
        """Return what a name is called in metrics: itself, or ``other`` if there is no place."""
        if name not in self._used and (name == OTHER or not self._has_place(now)):
            return OTHER
        self._used[name] = now
        self._used.move_to_end(name)
        return name

    def known(self, name: str) -> str:
        """Return what a name is called that was used before."""
        return name if name in self._used else OTHER

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        for name in self._used:
            self._used[name] += seconds

    def forget_unused(self, now: float) -> None:
        """Have the names that were not used for long give their places up."""
        while self._used:
            oldest, used = next(iter(self._used.items()))
            if now - used < UNUSED:
                return
            del self._used[oldest]
            self._forget(oldest)

    def _has_place(self, now: float) -> bool:
        if len(self._used) >= self._most:
            self.forget_unused(now)
        return len(self._used) < self._most


class Rewriting:
    """Replaces names by patterns: the first that matches all of a name says what it becomes; not of very long ones."""

    def __init__(self, patterns: Sequence[tuple[re.Pattern[str], str]] = ()) -> None:
        self._patterns = patterns
        self._remembered: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the label for a name: rewritten, valid text, not too long."""
        if len(name) > MAX_LABEL:
            return _label(name)
        label = self._remembered.get(name)
        if label is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            label = self._remembered[name] = _label(self._rewrite(name))
        return label

    def _rewrite(self, name: str) -> str:
        for pattern, replacement in self._patterns:
            match = pattern.fullmatch(name)
            if match:
                return match.expand(replacement)
        return name


def _label(name: str) -> str:
    """Return valid text; what is too long ends in a hash, so that names stay apart."""
    data = name.encode("utf-8", "replace")
    text = data.decode("utf-8") or "unnamed"
    if len(text) <= MAX_LABEL:
        return text
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{text[: MAX_LABEL - 9]}…{digest}"
