"""The tasks of a span share one annotation ``span``.

While Dask files the tasks of a graph, it makes the annotation of their span anew for each of them
(``Span.annotation``), although the annotation of a span never changes. Here, the latest ones are remembered meanwhile.
Whoever changes an annotation must put another one in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from distributed.spans import Span

from ..patching import wrap

__all__ = ["SharedAnnotations"]

_NAME = "annotation"
#: Spans of which the annotation is remembered.
MAX_REMEMBERED = 128

_lock = Lock()
#: How many bridges of this process share annotations, and what undoes it.
_users = 0
_undo: list[Callable[[], None]] = []
#: Names and annotations by id of the span. A race between threads leads at most to one that is made anew.
_remembered: dict[str, tuple[Any, Any]] = {}
_NOTHING = (None, None)
#: Whether Dask files tasks now, in any thread: nobody else gets what is shared.
_filing = False


class SharedAnnotations:
    """Has the tasks that Dask files share the annotations of their spans, as long as Dask makes them as it does."""

    def __init__(self) -> None:
        self._is_installed = False

    def install(self) -> None:
        """Replace the property of Dask's class, which all schedulers of the process have in common."""
        global _users
        with _lock:
            own = vars(Span).get(_NAME)
            if self._is_installed or not (_users or isinstance(own, property)):
                return
            self._is_installed = True
            _users += 1
            if _users == 1 and isinstance(own, property) and own.fget:
                _undo.append(wrap(Span, _NAME, _shared(own.fget)))

    def remove(self) -> None:
        """Give Dask its own property back, unless another bridge needs it replaced."""
        global _users
        with _lock:
            if not self._is_installed:
                return
            self._is_installed = False
            _users -= 1
            while _undo and not _users:
                _undo.pop()()
                _remembered.clear()

    def call(self, function: Callable[..., Any], *args: Any, **details: Any) -> Any:
        """Call what files tasks."""
        global _filing
        _filing = self._is_installed
        try:
            return function(*args, **details)
        finally:
            _filing = False


def _shared(original: Callable[[Any], Any]) -> Any:
    """Make the property; Dask uses it for each task, and what it returns is as Dask's own whatever fails."""

    def annotation(span: Any) -> Any:
        if not _filing:
            return original(span)
        try:  # ``suppress`` would take four times as long as the rest
            name, known = _remembered.get(span.id, _NOTHING)
            if name is span.name:  # else it is another span with the same id
                return known
        except Exception:  # noqa: BLE001 -- Dask's own does it, then
            return original(span)
        made = original(span)
        with suppress(Exception):
            _remembered[span.id] = span.name, made
            if len(_remembered) > MAX_REMEMBERED:
                del _remembered[next(iter(_remembered))]
        return made

    return property(annotation, doc=original.__doc__)
