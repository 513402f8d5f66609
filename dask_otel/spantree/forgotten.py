"""Ids of Dask spans that were forgotten, so that no id of an OTel span is sent twice.

A Dask span that is forgotten can come back under its id: a person leaves ``with span(...)`` open for days. Its first
segment of then must not have the id of its first segment of now.
"""

from __future__ import annotations

from ..identity import places

__all__ = ["ForgottenIds"]

#: Bytes of the set. Of a million ids, it takes one new id in 5,000 for a forgotten one; of ten million, one in four.
SIZE = 4 * 2**20


class ForgottenIds:
    """A set of ids that never loses one, and may take a new id for one of them (a Bloom filter).

    That costs little: the numbers of that span's segments and groups do not begin at 0.
    """

    def __init__(self) -> None:
        #: Number of ids that were added.
        self.added = 0
        self._bits: bytearray | None = None

    def add(self, span_id: str) -> None:
        """Add the id of a span that is forgotten."""
        self._bits = self._bits or bytearray(SIZE)
        self.added += 1
        for place in places(span_id, 8 * SIZE):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, span_id: str) -> bool:
        bits = self._bits
        return bits is not None and all(bits[place >> 3] & 1 << (place & 7) for place in places(span_id, 8 * SIZE))

    def first_number(self, span_id: str, appeared: float) -> int:
        """Where to begin to number the segments and groups of a span that appeared at a time; 0 if it is new.

        A forgotten one begins with that time, in milliseconds. Numbers of its earlier segments are less: they began at
        0 or at an earlier time, and a Dask span has at most one segment a millisecond.
        """
        return int(appeared * 1000) if span_id in self else 0
