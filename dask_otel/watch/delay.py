"""How late the scheduler's event loop is: by Dask's own ticks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.config
from dask.utils import parse_timedelta

from ..safety import Safety
from .wrap import wrap

__all__ = ["Delay"]


class Delay:
    """Listens in on ``Server.digest_metric``, which is told of every tick. Dask's own maximum is reset by others.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    """

    def __init__(self, scheduler: Any, safety: Safety) -> None:
        self._scheduler = scheduler
        self._safety = safety
        #: Seconds from one tick to the next, if nothing is in the way.
        self._regular = float(parse_timedelta(dask.config.get("distributed.admin.tick.interval"), default="ms"))
        self._longest = 0.0
        self._original = scheduler.digest_metric
        self._undo: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Begin to listen."""
        self._original = self._scheduler.digest_metric
        self._undo = wrap(self._scheduler, "digest_metric", self._digest)

    def remove(self) -> None:
        """Stop listening."""
        self._undo()

    def drain(self) -> float:
        """By how many seconds a tick was late at worst since the last call."""
        longest, self._longest = self._longest, 0.0
        return max(0.0, longest - self._regular)

    def _digest(self, name: Any, value: float) -> None:
        self._original(name, value)
        if name == "tick-duration":
            with self._safety.guard("metrics"):
                self._longest = max(self._longest, value)
