"""How parts of Dask's objects are replaced, and what of Dask's own state is cleared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isgeneratorfunction, unwrap
from typing import Any

import dask.base

__all__ = ["ANNOTATIONS", "clear_annotations", "generator_of", "replace_generator", "wrap"]

#: Dask's annotations, which it has no function to clear; None if a version of Dask keeps them elsewhere.
ANNOTATIONS: ContextVar[Any] | None = getattr(dask.base, "_annotations", None)


def clear_annotations() -> None:
    """Clear Dask's annotations in the current context: they are those of whoever made the context."""
    if ANNOTATIONS is not None and ANNOTATIONS.get() is not None:
        ANNOTATIONS.set(None)


@contextmanager
def _example() -> Iterator[None]:
    yield


#: Of each function that ``contextmanager`` has made; it finds the generator function in a cell.
_HELPER: Any = _example.__code__


def generator_of(manager: Any) -> Callable[..., Any] | None:
    """Return the generator function behind a function that ``contextmanager`` has made; None if it is something else.

    Decorators around it are passed over if they say what they wrap.
    """
    cell = _cell_of(manager)
    return None if cell is None else cell.cell_contents


def replace_generator(manager: Any, generator: Callable[..., Any]) -> Callable[[], None]:
    """Replace the generator function behind such a function, also where the function was imported before.

    Returns
    -------
    A function that restores what was there before, unless somebody has replaced ours since.
    """
    cell = _cell_of(manager)
    if cell is None:
        raise TypeError(f"{manager!r} is not made by contextlib.contextmanager")
    before, cell.cell_contents = cell.cell_contents, generator

    def undo() -> None:
        if cell.cell_contents is generator:
            cell.cell_contents = before

    return undo


def _cell_of(manager: Any) -> Any:
    found = unwrap(manager, stop=lambda each: getattr(each, "__code__", None) is _HELPER)
    if getattr(found, "__code__", None) is not _HELPER:
        return None
    (cell,) = found.__closure__
    return cell if isgeneratorfunction(cell.cell_contents) else None


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
