"""How parts of Dask's objects are replaced, and what of Dask's own state is cleared."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import dask.base

__all__ = ["ANNOTATIONS", "clear_annotations", "wrap"]

#: Dask's annotations, which it has no function to clear; None if a version of Dask keeps them elsewhere.
ANNOTATIONS: ContextVar[Any] | None = getattr(dask.base, "_annotations", None)


def clear_annotations() -> None:
    """Clear Dask's annotations in the current context: they are those of whoever made the context."""
    if ANNOTATIONS is not None and ANNOTATIONS.get() is not None:
        ANNOTATIONS.set(None)


def wrap(target: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of an object, or of all objects of a class, by a wrapper.

    Returns
    -------
    A function that restores what was there before, unless somebody has wrapped the wrapper since.
    """
    before = vars(target).get(name)
    setattr(target, name, wrapper)

    def undo() -> None:
        if vars(target).get(name) == wrapper:
            if before is None:
                delattr(target, name)
            else:
                setattr(target, name, before)

    return undo
