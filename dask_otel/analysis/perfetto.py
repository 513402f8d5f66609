"""Perfetto's trace format: protobuf, see https://perfetto.dev/docs/reference/synthetic-track-event.

Encoded here: the package ``perfetto`` on PyPI cannot be imported with the oldest version of ``protobuf`` that dask-otel
supports, and a few of the format's 700 messages are enough.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import IO, Any

from .trace_events import Arguments, Process, Slice, Track

__all__ = ["PerfettoWriter"]

#: Of ``BuiltinClock``.
_REALTIME, _BOOTTIME = 1, 6
#: Of ``TrackEvent.Type``.
_BEGIN, _END, _INSTANT = 1, 2, 3
#: Of ``TrackDescriptor.ChildTracksOrdering`` and ``SiblingMergeBehavior``.
_EXPLICIT, _NOT_MERGED = 3, 2
#: Of dictionaries in dictionaries.
_MAX_DEPTH = 16


class PerfettoWriter:
    """Writes a file in Perfetto's format.

    Times are nanoseconds since the epoch. Arguments are nested where their names have dots: in a flat name, Perfetto
    replaces dots by underscores.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        #: Field of the track's id.
        self._uuid = b""
        #: Slices of this track that have begun: their ends, and the packets of what happened within them.
        self._open: list[tuple[int, bytes]] = []

    def begin(self, start: int) -> None:
        """Begin a file: its times are those of the clock on the wall."""
        clocks = b"".join(_message(1, _int(1, clock) + _int(2, start)) for clock in (_BOOTTIME, _REALTIME))
        self._file.write(_packet(_message(6, clocks)))

    def process(self, process: Process) -> None:
        """Name a process."""
        descriptor = _int(1, process.number) + _text(6, process.name)
        track = _int(1, _process_uuid(process)) + _message(3, descriptor) + _int(11, _EXPLICIT)
        self._file.write(_packet(_message(60, track)))

    def track(self, track: Track) -> None:
        """Begin a track."""
        self._close(None)
        uuid = _track_uuid(track.number)
        self._uuid = _int(11, uuid)
        parent = _track_uuid(track.parent) if track.parent else _process_uuid(track.process)
        descriptor = _int(1, uuid) + _int(5, parent) + _text(2, track.name)
        descriptor += _int(11, _EXPLICIT) + _int(12, track.number) + _int(15, _NOT_MERGED)
        self._file.write(_packet(_message(60, descriptor)))

    def slice(self, slice_: Slice) -> None:
        """Write the begin of a slice, and the ends of those before it."""
        self._close(slice_.start)
        arrows = b"".join(_fixed64(47, number) for number in slice_.arrows_from)
        arrows += b"".join(_fixed64(48, number) for number in slice_.arrows_to)
        category = _text(22, slice_.category)
        body = category + _text(23, slice_.name) + _arguments(4, slice_.arguments)
        self._file.write(self._event(slice_.start, _BEGIN, body + arrows))
        instants = (
            self._event(each.at, _INSTANT, category + _text(23, each.name) + _arguments(4, each.arguments))
            for each in slice_.instants
        )
        self._open.append((slice_.end, b"".join(instants)))

    def end(self) -> None:
        """Write the ends of the last slices."""
        self._close(None)

    def _close(self, until: int | None) -> None:
        """Write the ends of the slices that have ended by then, the innermost first; None for all.

        Readers sort packets by time, and keep the order of those of the same time.
        """
        while self._open and (until is None or self._open[-1][0] <= until):
            end, instants = self._open.pop()
            self._file.write(instants + self._event(end, _END, b""))

    def _event(self, at: int, type_: int, body: bytes) -> bytes:
        return _packet(_int(8, at) + _message(11, _int(9, type_) + self._uuid + body))


def _packet(body: bytes) -> bytes:
    return _message(1, body + _SEQUENCE)


def _process_uuid(process: Process) -> int:
    return 2 * process.number


def _track_uuid(number: int) -> int:
    return 2 * number + 1


def _arguments(field: int, arguments: Arguments) -> bytes:
    """Encode arguments as annotations in a field: ``a.b`` is in the dictionary ``a``."""
    #: By name, and whether the value is a dictionary: ``a`` and ``a.b`` can both be there.
    tree: dict[tuple[str, bool], Any] = {}
    for name, value in arguments.items():
        at = tree
        above, last = _levels(name)
        for each in above:
            at = at.setdefault(each, {})
        at[last] = value
    return _tree(field, tree)


@lru_cache(4096)
def _levels(name: str) -> tuple[list[tuple[str, bool]], tuple[str, bool]]:
    *above, last = name.split(".", _MAX_DEPTH)
    return [(each, True) for each in above], (last, False)


def _tree(field: int, tree: Mapping[tuple[str, bool], Any]) -> bytes:
    return b"".join(
        _message(field, _name(name) + (_tree(11, value) if is_tree else _value(value)))
        for (name, is_tree), value in tree.items()
    )


@lru_cache(4096)
def _name(name: str) -> bytes:
    return _text(10, name)


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return _text(6, value)
    if isinstance(value, bool):
        return _int(2, value)
    if isinstance(value, int):
        return _int(4, value)
    if isinstance(value, float):
        return _tag(5, 1) + struct.pack("<d", value)
    return b"".join(_message(12, _value(each)) for each in value)


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8", "replace"))  # there may be lone surrogates


def _message(field: int, data: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(data)) + data


def _int(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)  # negative ones as two's complement


def _fixed64(field: int, value: int) -> bytes:
    return _tag(field, 1) + struct.pack("<Q", value)


@lru_cache(256)
def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _BYTES[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_BYTES = [bytes([value]) for value in range(0x80)]
#: All packets are of one sequence, as those of one thread of a program.
_SEQUENCE = _int(10, 1)
