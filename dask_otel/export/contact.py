"""Whether a backend can be reached, since when, and what it said last."""

from __future__ import annotations

from time import monotonic, time
from typing import Any

__all__ = ["Contact"]


class Contact:
    """What is known of the way to one backend.

    Parameters
    ----------
    name
        Of the exporter.
    target
        Where it sends to; holds no secret.
    warn_every
        Seconds between two lines in the log on one topic.
    proxy
        What the way leads through, for a person; holds no secret.
    """

    def __init__(self, name: str, target: str, warn_every: float, proxy: str = "") -> None:
        self.name = name
        self.target = target
        self.proxy = proxy
        self._warn_every = warn_every
        #: Whether the last request failed; None before there was one, and since when (seconds since the epoch).
        self.is_failing: bool | None = None
        self.since: float | None = None
        #: What the last failure said, and when.
        self.last_error = ""
        self.last_error_at: float | None = None
        #: Set when only the last word is to be logged.
        self.is_silent = False
        #: By topic, when it was last logged.
        self._warned: dict[str, float] = {}

    @property
    def shown_target(self) -> str:
        """Where it sends to, and through which proxy, for a person."""
        return (self.target or "its backend") + self.through

    @property
    def through(self) -> str:
        """What to add to a line if there is a proxy."""
        return f" through {self.proxy}" if self.proxy else ""

    def note(self, *, failing: bool) -> None:
        """Note how a request went."""
        if self.is_failing is not failing:
            self.is_failing, self.since = failing, time()

    def note_error(self, said: str) -> None:
        """Note what was said."""
        self.last_error, self.last_error_at = said, time()

    def may_warn(self, topic: str) -> bool:
        """Whether it is time for another line on a topic; it counts as logged then."""
        if self.is_silent or monotonic() - self._warned.get(topic, -self._warn_every) < self._warn_every:
            return False
        self._warned[topic] = monotonic()
        return True

    def status(self) -> dict[str, Any]:
        """Say all this as plain data."""
        return {
            "name": self.name,
            "target": self.target,
            "proxy": self.proxy,
            "failing": self.is_failing,
            "since": self.since,
            "last_error": self.last_error,
            "last_error_at": self.last_error_at,
        }
