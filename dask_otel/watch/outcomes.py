"""What a transition means, and what an exception's text says."""

from __future__ import annotations

import ast
import re
from typing import Any

from .pickled import class_of, pickle_of

__all__ = ["UNFINISHED", "error_of", "first_error", "outcome_of_release"]

#: States of tasks that have not ended, in the order of the fields of ``Load``.
UNFINISHED = ("processing", "queued", "no-worker", "waiting")
#: Stimuli by which a person gives tasks up. A scheduler that restarts does so for everybody; one that only restarts
#: its workers has the same beginning.
_CANCELLED = re.compile(r"cancel-key|client-restart-(?!workers)")
#: Stimuli of runs that will be run again: after a failure, or because their worker, or an input on it, is gone.
_RETRIED = ("task-erred", "execute-unknown-error")
_LOST = (
    "handle-worker-cleanup",
    "check-worker-ttl",
    "retire-workers",
    "client-restart-workers",
    "cancelled-by-worker-close",
    "worker-close",
    "nanny-close",
    "worker-send-comm-fail",
    "send-all-comm-fail",
)
#: Characters kept of an exception's text.
MAX_TEXT = 4000


def outcome_of_release(task: Any, start: str, stimulus_id: str) -> str | None:
    """Outcome of a task that was released unfinished, or None where that means nothing.

    The stimulus alone doesn't tell: when a task errs, its siblings that nobody needs any more are released by the same.

    Parameters
    ----------
    start
        State that it was in: processing, waiting, queued or no-worker.
    """
    if task.has_lost_dependencies:  # without its scattered input it can never run
        return "lost"
    if task.exception_blame:  # on its way to erred
        return None
    if not (task.who_wants or task.waiters):
        return "cancelled" if _CANCELLED.match(stimulus_id) else "abandoned"
    if start != "processing":
        return None
    if stimulus_id.startswith(_RETRIED):
        return "retried"
    return "lost" if stimulus_id.startswith(_LOST) else "rescheduled"


def error_of(task: Any) -> tuple[str, str]:
    """Type and message of the exception of a task that erred, as far as they are known without unpickling it.

    The pickle tells the type: a ``repr`` may look like anything, also like that of another type. The ``repr`` tells it
    where the pickle does not.

    Returns
    -------
    ``("_OTHER", text)`` where neither tells.
    """
    if task is None:
        return "_OTHER", ""
    type_, message = first_error(task.exception_text)
    data = pickle_of(task.exception)
    pickled = class_of(data) if data else None
    if pickled is None or pickled.name == type_:
        return type_, message
    if pickled.name == "Exception" and task.exception_text is not None:
        # Workers send ``Exception(repr)`` in the place of an exception that cannot be pickled.
        return type_, message
    if pickled.package == "numpy" and pickled.name.startswith("_") and type_ != "_OTHER":
        # numpy gives its private errors the name of the public ones that they derive from.
        return type_, message
    return pickled.name, (task.exception_text or "")[:MAX_TEXT]


_EXCEPTION = re.compile(r"\s*(?:[\w.]+\.)?(\w+)\s*\((.*)\)\s*", re.DOTALL)
_BEGINNING = re.compile(r"\s*(?:[\w.]+\.)?(\w+)\s*\(")
#: What workers make of a long exception whose type takes other arguments.
_SHORTENED = re.compile(r"Exception\('Long error message', <class '(?:[^']*\.)?(\w+)'>, ")


def first_error(text: str | None) -> tuple[str, str]:
    """Type and message of an exception, from its ``repr``; of a long one, as much as is shown.

    Returns
    -------
    ``("_OTHER", text)`` where the text does not look like ``Type(...)``; Dask gives no text at all for some.
    """
    text = text or ""
    shortened = _SHORTENED.match(text)
    if shortened:
        return shortened.group(1), text[shortened.end() : MAX_TEXT]
    if len(text) > MAX_TEXT:
        beginning = _BEGINNING.match(text[:MAX_TEXT])
        return (beginning.group(1), text[beginning.end() : MAX_TEXT]) if beginning else ("_OTHER", text[:MAX_TEXT])
    match = _EXCEPTION.fullmatch(text)
    if not match:
        return "_OTHER", text
    type_, arguments = match.groups()
    try:
        message = ast.literal_eval(arguments)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        message = arguments
    return type_, message if isinstance(message, str) else arguments
