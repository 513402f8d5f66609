"""Packs records that wait for long: they take a tenth of the memory then, and no garbage collection looks at them.

Records are packed as they are, not as spans: what is decided when they are sent, such as how many others were dropped,
is decided then. Packing takes some 7 µs a record, and unpacking as much.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from ..spantree.records import Record, SegmentRecord

__all__ = ["AT_ONCE", "Packed", "Packer", "Place", "count_of", "kind_of_item", "places", "records_at", "unpacked"]

#: Records that are packed together: it takes a quarter of a millisecond, with the interpreter lock held.
AT_ONCE = 32
#: Bytes of a ``Packed`` beside its data.
OVERHEAD = 300
#: Bytes of a dictionary; the compression uses no more.
MAX_DICTIONARY = 32_768


class Packed:
    """Consecutive records of one kind, or one segment.

    Parameters
    ----------
    data
        Compressed with the dictionary.
    wire
        Bytes of the records as OTLP, about.
    """

    __slots__ = ("_added", "_data", "_dictionary", "count", "is_top", "kind", "trace_id", "wire")

    def __init__(
        self, records: Sequence[Record], data: bytes, dictionary: bytes, wire: int, added: Mapping[str, int]
    ) -> None:
        self.kind = type(records[0])
        self.count = len(records)
        self.trace_id = records[0].trace_id
        self.is_top = records[0].is_top
        self.wire = wire
        self._data = data
        self._dictionary = dictionary
        #: By name of a field, what has to be added to it: losses that were counted since.
        self._added = added

    @property
    def size(self) -> int:
        """Bytes that this takes in memory."""
        return OVERHEAD + len(self._data)

    def adding(self, **losses: int) -> Packed:
        """Return a copy whose segment counts so many more losses, by name of a field."""
        copy: Packed = object.__new__(Packed)
        for name in Packed.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._added = {name: self._added.get(name, 0) + losses.get(name, 0) for name in {**self._added, **losses}}
        return copy

    def unpack(self) -> list[Record]:
        """Return the records."""
        decompressor = zlib.decompressobj(zdict=self._dictionary)
        records: list[Any] = pickle.loads(decompressor.decompress(self._data) + decompressor.flush())
        if self._added:
            segment = records[0]
            return [replace(segment, **{name: getattr(segment, name) + more for name, more in self._added.items()})]
        return records


class Place(NamedTuple):
    """Where a record is, for what does not need the record itself."""

    item: Record | Packed
    #: Of the record among those of the item.
    number: int


def places(items: Iterable[Record | Packed]) -> list[Place]:
    """Return the places of all records, in their order."""
    return [Place(item, number) for item in items for number in range(count_of(item))]


def records_at(places: Iterable[Place]) -> list[Record]:
    """Return the records at some places; quick if those of one item follow one another."""
    records: list[Record] = []
    last: Record | Packed | None = None
    inside: list[Record] = []
    for item, number in places:
        if item is not last:
            last, inside = item, unpacked([item])
        records.append(inside[number])
    return records


def kind_of_item(item: Record | Packed) -> type[Record]:
    """Return the class of the records."""
    return item.kind if isinstance(item, Packed) else type(item)


def count_of(item: Record | Packed) -> int:
    """Return the number of records."""
    return item.count if isinstance(item, Packed) else 1


def unpacked(items: Iterable[Record | Packed]) -> list[Record]:
    """Return all records, in their order."""
    records: list[Record] = []
    for item in items:
        records += item.unpack() if isinstance(item, Packed) else [item]
    return records


class Packer:
    """Packs the records of one queue; what they have in common with the first ones takes hardly any memory.

    Parameters
    ----------
    size_of
        Returns bytes of a record as OTLP, about.
    """

    def __init__(self, size_of: Callable[[Record], int]) -> None:
        self._size_of = size_of
        self._dictionary = b""

    def pack(self, items: Sequence[Record | Packed]) -> Iterator[Packed]:
        """Pack what leaves together, in its order, in steps of a quarter of a millisecond at most."""
        for kind, group in groupby(items, key=type):
            alike: list[Any] = list(group)
            if kind is Packed:
                yield from alike
                continue
            number = 1 if kind is SegmentRecord else AT_ONCE
            for start in range(0, len(alike), number):
                yield self._pack(alike[start : start + number])

    def _pack(self, records: Sequence[Record]) -> Packed:
        text = pickle.dumps(records, pickle.HIGHEST_PROTOCOL)
        dictionary = self._dictionary
        compressor = zlib.compressobj(1, zdict=dictionary)
        data = compressor.compress(text) + compressor.flush()
        if len(dictionary) < MAX_DICTIONARY:
            self._dictionary = (dictionary + text)[-MAX_DICTIONARY:]
        return Packed(records, data, dictionary, sum(map(self._size_of, records)), {})
