"""How long closing waits for a collector."""

from __future__ import annotations

from time import monotonic

__all__ = ["Patience"]

#: Seconds from the beginning of closing in which a collector may be found to be back; gRPC looks each second.
LAST_CHANCE = 1.5


class Patience:
    """Until when another attempt may be made; the caller sees to it that only one thread uses it at a time."""

    def __init__(self) -> None:
        #: When closing must end, once it has begun.
        self.deadline: float | None = None
        self._last_chance = 0.0
        #: Whether the collector worked when closing began, or has since.
        self._was_well = False

    def begin(self, timeout: float, *, is_well: bool) -> None:
        """Closing begins, and may take ``timeout`` seconds."""
        now = monotonic()
        self.deadline, self._last_chance, self._was_well = now + timeout, now + LAST_CHANCE, is_well

    def arrived(self) -> None:
        """The collector has taken something, perhaps what was on its way when closing began."""
        self._was_well = True

    @property
    def is_short(self) -> bool:
        """Whether closing must not take long, for a collector that was not there."""
        return not self._was_well

    def allows(self, pause: float, *, asked: bool = False) -> bool:
        """Whether another attempt may be made after ``pause`` seconds, once closing has begun.

        Parameters
        ----------
        asked
            Whether the collector itself asked for the pause.
        """
        if self.deadline is None:
            return True
        until = min(self.deadline, self._last_chance) if self.is_short and not asked else self.deadline
        return monotonic() + pause < until
