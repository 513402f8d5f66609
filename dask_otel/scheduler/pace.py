"""Time on the event loop: the clock of all of dask-otel's own state, and how long a sweep may hold the loop."""

from __future__ import annotations

import asyncio
from time import monotonic, perf_counter

from distributed.metrics import time

__all__ = ["Clock", "Pace", "Unpaced"]

#: A sweep gives the event loop back after at most this many seconds.
SLICE = 0.0007
#: Seconds. An adjustment of the system's clock moves it back by less than this between two readings.
LEAST_STEP = 0.25


class Clock:
    """The system's clock, except that it never goes back.

    If the system's clock is set back, this clock continues from where it was. All state is kept in its time, so that no
    duration becomes negative. Times that Dask recorded are converted with ``of_dask``; times of spans and metrics are
    converted back by subtracting ``offset`` when they leave.

    A step forward, or a machine that slept, makes spans longer, as it does in Dask.
    """

    def __init__(self) -> None:
        #: Seconds by which the system's clock has been set back since the start.
        self.offset = 0.0
        self._wall, self._steady = _read()

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        wall, steady = time(), monotonic()
        if (steady - self._steady) - (wall - self._wall) > LEAST_STEP:
            wall, steady = _read()
            step = (steady - self._steady) - (wall - self._wall)
            self.offset += step if step > LEAST_STEP else 0.0
        self._wall, self._steady = wall, steady
        return float(wall + self.offset)

    def of_dask(self, at: float) -> float:
        """Convert a time that Dask recorded; 0.0 stands for none."""
        return at + self.offset if at else 0.0


def _read() -> tuple[float, float]:
    """Read the system's clock and the monotonic one at one moment, even if the thread is suspended between the two."""
    for _ in range(9):
        before, wall, steady = monotonic(), time(), monotonic()
        if steady - before < LEAST_STEP / 2:
            break
    return wall, steady


class Pace:
    """Gives the event loop back regularly during a sweep."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        #: Seconds for which the sweep has held the event loop: the sum, and the longest time without a break.
        self.held = self.longest = 0.0
        #: A sweep that is cancelled still runs to its end: what it has taken from the inbox would be lost.
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
        """Raise ``CancelledError`` if the sweep was cancelled while it rested."""
        if self._cancelled:
            raise asyncio.CancelledError

    def stop(self) -> None:
        """Account for the slice that ends now."""
        now = perf_counter()
        held, self._begin = now - self._begin, now
        self.held += held
        self.longest = max(self.longest, held)


class Unpaced(Pace):
    """Never gives the event loop back: for what must be counted up to one moment."""

    async def rest(self) -> None:
        """Do nothing."""
