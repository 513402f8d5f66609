"""Keeps the exporter's thread from starving the event loop.

Encoding holds the interpreter lock for 74 µs a span; a loop that wants it back waits up to 5 ms. So the thread lets go
of it by itself, many times a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter, sleep
from typing import TypeVar

__all__ = ["Paced", "Pacer"]

#: Seconds of work at most between two rests, and of a rest.
SLICE = 0.001
REST = 0.0005

Item = TypeVar("Item")


class Pacer:
    """Knows when the next rest is due; one for all lists that are worked on in turn."""

    def __init__(self) -> None:
        self._until = perf_counter() + SLICE

    def rest(self) -> None:
        """Rest, if it is time."""
        if perf_counter() > self._until:
            sleep(REST)
            self._until = perf_counter() + SLICE

    def paced(self, items: Iterable[Item]) -> Paced[Item]:
        """Return items as a list that rests."""
        return Paced(items, self)


class Paced(list[Item]):
    """A list that rests now and then while somebody iterates over it, such as an exporter that encodes spans."""

    def __init__(self, items: Iterable[Item], pacer: Pacer | None = None) -> None:
        super().__init__(items)
        self._pacer = pacer or Pacer()

    def __iter__(self) -> Iterator[Item]:
        for item in super().__iter__():
            self._pacer.rest()
            yield item
