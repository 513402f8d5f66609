"""What a transition means, told by the prefix of its stimulus id, and what an exception's text says."""

from __future__ import annotations

import ast
import re

__all__ = ["first_error", "outcome_of_release"]

#: Outcome of ``processing → released``, by the prefix of the stimulus id.
_RELEASES = (
    ("task-erred", "retried"),
    ("reschedule", "rescheduled"),
    ("cancel-key", "cancelled"),
    ("client-restart-workers", "lost"),
    ("client-restart", "cancelled"),
    ("client-releases-keys", "abandoned"),
    ("remove-client", "abandoned"),
    ("handle-worker-cleanup", "lost"),
    ("check-worker-ttl", "lost"),
    ("retire-workers", "lost"),
    ("cancelled-by-worker-close", "lost"),
    ("worker-close", "lost"),
    ("nanny-close", "lost"),
    ("worker-send-comm-fail", "lost"),
    ("send-all-comm-fail", "lost"),
)
#: Tasks that never ran can only have been given up by a person.
_GIVEN_UP = ("cancelled", "abandoned")


def outcome_of_release(start: str, stimulus_id: str) -> str | None:
    """Outcome of a task that was released unfinished, or None where that means nothing.

    Parameters
    ----------
    start
        State that it was in: processing, waiting, queued or no-worker.
    """
    for prefix, outcome in _RELEASES:
        if stimulus_id.startswith(prefix):
            return outcome if start == "processing" or outcome in _GIVEN_UP else None
    return None


_EXCEPTION = re.compile(r"\s*(?:[\w.]+\.)?(\w+)\s*\((.*)\)\s*", re.DOTALL)


def first_error(text: str | None) -> tuple[str, str]:
    """Type and message of an exception, from its ``repr``.

    Returns
    -------
    ``("_OTHER", text)`` where the text does not look like ``Type(...)``; Dask gives no text at all for some.
    """
    match = _EXCEPTION.fullmatch(text or "")
    if not match:
        return "_OTHER", text or ""
    type_, arguments = match.groups()
    try:
        message = ast.literal_eval(arguments)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        message = arguments
    return type_, message if isinstance(message, str) else arguments
