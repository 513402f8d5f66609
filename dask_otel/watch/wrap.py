"""Listening in on methods of Dask's objects: one object's, never a class's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["wrap"]


def wrap(target: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Put a wrapper in the place of an object's method.

    Returns
    -------
    What puts back what was there, which may be somebody else's wrapper. If somebody has wrapped ours since, it stays.
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
