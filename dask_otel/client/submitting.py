"""Adds to what clients submit, for all clients of a process: annotations of the tasks, and who submits.

``submit``, ``map``, ``compute``, ``persist`` and ``get`` meet in one method of Dask's client. The annotations are open
around this method only: an annotation that is open while a DataFrame is built makes Dask warn.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from threading import RLock
from typing import Any, NamedTuple

import dask
from distributed import Client

from ..patching import wrap
from ..safety import Safety

__all__ = ["NOTHING", "Addition", "Source", "add_to_submissions", "can_add", "safety"]

_METHOD = "_graph_to_futures"
#: The argument that says what a graph was made from; sent once with each graph.
_METADATA = "span_metadata"


class Addition(NamedTuple):
    """What is added to one submission."""

    #: Are added, except where an annotation of the same name is open.
    annotations: Mapping[str, Any] = {}
    #: Tags and ids of the Dask span in which the submission is, in place of the one that is open; None to leave it.
    span: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    #: Is added to ``span_metadata``.
    metadata: Mapping[str, Any] = {}


NOTHING = Addition()

#: Returns what to add to a submission, given the client and the annotations that are open.
Source = Callable[[Any, Mapping[str, Any]], Addition]


class _ClientSafety(Safety):
    """Lets pass what a signal handler of the program raises while our code runs, as Celery's does for time limits."""

    def caught(self, where: str, error: Exception) -> None:
        if _is_of_signal_handler(error):
            raise error
        super().caught(where, error)


def _is_of_signal_handler(error: Exception) -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = filter(callable, map(signal.getsignal, signal.valid_signals()))
    codes = {getattr(getattr(each, "__func__", each), "__code__", None) for each in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


#: Counts and logs what fails in the clients of this process.
safety = _ClientSafety()
#: Re-entrant: a signal handler may get here.
_lock = RLock()
#: As often as each was added.
_sources: list[Source] = []
#: Unwraps the client's method, while there are sources.
_undo: list[Callable[[], None]] = []
#: What the method is wrapped by.
_wrapper: Any = None


def can_add() -> bool:
    """Whether this version of Dask has what is wrapped here."""
    return callable(getattr(Client, _METHOD, None))


def add_to_submissions(source: Source) -> Callable[[], None]:
    """Add what a source returns to each submission in this process.

    Dask's method is wrapped while there is a source; one that was added several times is asked once.

    Returns
    -------
    A function that undoes this, to be called once.
    """
    global _wrapper
    with _lock:
        _sources.append(source)
        if not _undo and can_add():
            _wrapper = _with_additions(getattr(Client, _METHOD))
            _undo.append(wrap(Client, _METHOD, _wrapper))
    return partial(_remove, source)


def _remove(source: Source) -> None:
    global _wrapper
    with _lock:
        _sources.remove(source)
        while _undo and not _sources:
            _wrapper = None
            _undo.pop()()


def _with_additions(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(*args: Any, **kwargs: Any) -> Any:
        if submit is not _wrapper:  # undone, but below a patch of somebody else
            return original(*args, **kwargs)
        annotations: dict[str, Any] = {}
        try:  # half the time of a guard
            if not _is_recreation(*args, **kwargs):
                opened = dask.get_annotations()
                for source in dict.fromkeys(_sources):
                    addition = source(args[0] if args else None, opened)
                    annotations.update(
                        (name, each) for name, each in addition.annotations.items() if name not in opened
                    )
                    if addition.span:
                        annotations["span"] = dict(zip(("name", "ids"), addition.span, strict=True))
                    # Dask takes an entry without this one for none; and fails later if there are others in it.
                    if addition.metadata and "collections" in (kwargs.get(_METADATA) or ()):
                        kwargs[_METADATA] = {**kwargs[_METADATA], **addition.metadata}
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            annotations.clear()
            safety.caught("caller (submission)", error)
        if not annotations:
            return original(*args, **kwargs)
        with dask.annotate(**annotations):
            return original(*args, **kwargs)

    return submit


def _is_recreation(client: Any = None, expr: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Whether this is ``Client.recreate_error_locally`` and the like, which ask for results with an empty graph."""
    return type(expr) is dict and not expr


def _renew_lock() -> None:
    """Have a lock that no other thread holds, in a process that was forked off."""
    global _lock
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
