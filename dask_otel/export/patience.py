"""How long closing waits for a collector: only a failure that is known makes it short."""

from __future__ import annotations

from time import monotonic

from .answers import Answer, Meaning

__all__ = ["LAST_CHANCE", "Patience"]

#: Seconds from the beginning of closing for a collector that had been failing, or cannot be reached any more.
LAST_CHANCE = 0.6
#: Seconds between two attempts in that time: a connection that was idle may have been dropped, and one more will do.
SHORT_PAUSE = 0.1


class Patience:
    """Until when closing waits, and whether another attempt may be made.

    The caller sees to it that only one thread uses it at a time, but for ``left``.
    """

    def __init__(self) -> None:
        #: When closing must end, once it has begun.
        self.deadline: float | None = None
        self._last_chance = 0.0
        #: Whether the collector worked when closing began, or has since.
        self._was_well = False
        #: When closing ends as things are.
        self._until = 0.0

    def begin(self, timeout: float, *, is_failing: bool | None, last_chance: float | None = None) -> None:
        """Closing begins, and may take ``timeout`` seconds.

        Parameters
        ----------
        is_failing
            Whether the last request failed; None if there was none that has ended.
        last_chance
            Seconds for a collector that is failing; ``LAST_CHANCE`` if None.
        """
        now = monotonic()
        self.deadline = now + timeout
        self._last_chance = min(self.deadline, now + (LAST_CHANCE if last_chance is None else last_chance))
        self._was_well = is_failing is False
        # A collector that has not answered its first request yet may only be slow.
        self._until = self._last_chance if is_failing else self.deadline

    def arrived(self) -> None:
        """The collector has taken something, perhaps what was on its way when closing began."""
        self._was_well = True
        self._until = self.deadline or 0.0

    def left(self) -> float:
        """Seconds that closing may still wait, as things are."""
        return max(0.0, self._until - monotonic())

    def pause(self, seconds: float, answer: Answer) -> float | None:
        """Seconds to wait before another attempt; None if there is to be none.

        Parameters
        ----------
        seconds
            To wait if there is time.
        answer
            To the last attempt, which was made after closing had begun.
        """
        deadline = self.deadline or 0.0
        if answer.wait is not None or (self._was_well and answer.was_reached):
            until = deadline
        elif self._was_well or (answer.was_reached and answer.meaning is Meaning.LATER):
            until, seconds = self._last_chance, min(seconds, SHORT_PAUSE)
        else:
            return None
        if monotonic() + seconds >= until:
            return None
        self._until = max(self._until, until)
        return seconds
