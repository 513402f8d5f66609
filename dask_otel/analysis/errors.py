"""What is wrong with a source of traces, worded so that a person can correct it."""

from __future__ import annotations

__all__ = ["LoadError", "LoadWarning"]


class LoadError(ValueError):
    """Traces cannot be loaded: the message names the argument, or the place in a file, and what to do."""


class LoadWarning(UserWarning):
    """Something was left out of what was loaded."""
