"""Keeps the exporter's thread from starving the event loop.

Encoding holds the interpreter lock for 74 µs a span; a loop that wants it back waits up to 5 ms. So the thread lets go
of it by itself, many times a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter, sleep
from typing import TypeVar

__all__ = ["Paced"]

#: Seconds of work at most between two rests, and of a rest.
SLICE = 0.001
REST = 0.0005

Item = TypeVar("Item")


class Paced(list[Item]):
    """A list that rests now and then while somebody iterates over it, such as an exporter that encodes spans."""

    def __iter__(self) -> Iterator[Item]:
        until = perf_counter() + SLICE
        for item in super().__iter__():
            if perf_counter() > until:
                sleep(REST)
                until = perf_counter() + SLICE
            yield item
