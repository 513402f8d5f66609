"""The sweep's clocks: how long it may hold the event loop, and whether the wall clock can be trusted."""

from __future__ import annotations

import asyncio
from time import monotonic, perf_counter

from distributed.metrics import time

__all__ = ["Clock", "Pace"]

#: The sweep gives the event loop back after this many seconds at most.
SLICE = 0.002
#: A clock that is adjusted, not set, goes back by less than this between two sweeps.
LEAST_STEP = 0.25


class Pace:
    """Gives the event loop back now and then."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        #: Seconds for which it has held the event loop, in all and at a stretch.
        self.held = self.longest = 0.0
        #: A sweep that has begun goes on to its end: what it has drained would be lost.
        self._cancelled = False

    async def rest(self) -> None:
        """Let others run, if this slice is used up."""
        if perf_counter() - self._begin > SLICE:
            self.stop()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self._cancelled = True
            self._begin = perf_counter()

    def raise_if_cancelled(self) -> None:
        """Be cancelled now, if that was to be meanwhile."""
        if self._cancelled:
            raise asyncio.CancelledError

    def stop(self) -> None:
        """Account for the slice that ends now."""
        now = perf_counter()
        held, self._begin = now - self._begin, now
        self.held += held
        self.longest = max(self.longest, held)


class Clock:
    """Compares the wall clock with one that cannot be set.

    Only steps back matter: they would give spans no duration, or a negative one. A step forward, or a machine that
    slept, makes them longer, as it does in Dask.
    """

    def __init__(self) -> None:
        self._last = _clocks()

    def set_back(self) -> float:
        """Seconds by which the wall clock was set back since the last call; 0.0 if it was not."""
        (wall, steady), self._last = self._last, _clocks()
        step = (self._last[1] - steady) - (self._last[0] - wall)
        return step if step > LEAST_STEP else 0.0


def _clocks() -> tuple[float, float]:
    """Read both clocks at one moment; a thread that is held up between them would see one of them set."""
    for _ in range(9):
        before, wall, steady = monotonic(), time(), monotonic()
        if steady - before < LEAST_STEP / 2:
            break
    return wall, steady
