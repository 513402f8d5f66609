"""Adds annotations to what clients submit, for all clients of a process.

``submit``, ``map``, ``compute``, ``persist`` and ``get`` meet in one method of Dask's client. The annotations are open
around this method only: an annotation that is open while a DataFrame is built makes Dask warn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any

import dask
from distributed import Client

from ..patching import wrap
from ..safety import Safety

__all__ = ["annotate_submissions"]

_METHOD = "_graph_to_futures"

#: Returns annotations, for whoever calls it.
Source = Callable[[], Mapping[str, Any]]

_lock = Lock()
#: As often as each was added.
_sources: list[Source] = []
#: Unwraps the client's method, while there are sources.
_undo: list[Callable[[], None]] = []
_safety = Safety()


def annotate_submissions(source: Source) -> Callable[[], None]:
    """Add what a source returns to the annotations of each submission in this process.

    Annotations that are open already have priority. Dask's method is wrapped while there is a source; one that was
    added several times is asked once.

    Returns
    -------
    A function that undoes this, to be called once.
    """
    with _lock:
        _sources.append(source)
        if not _undo and callable(getattr(Client, _METHOD, None)):
            _undo.append(wrap(Client, _METHOD, _annotated(getattr(Client, _METHOD))))
    return partial(_remove, source)


def _remove(source: Source) -> None:
    with _lock:
        _sources.remove(source)
        while _undo and not _sources:
            _undo.pop()()


def _annotated(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(*args: Any, **kwargs: Any) -> Any:
        added: dict[str, Any] = {}
        with _safety.guard("submission"):
            opened = dask.get_annotations()
            for source in dict.fromkeys(_sources):
                added.update((name, value) for name, value in source().items() if name not in opened)
        if not added:
            return original(*args, **kwargs)
        with dask.annotate(**added):
            return original(*args, **kwargs)

    return submit
