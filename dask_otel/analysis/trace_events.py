"""What a trace file is made of, whichever its format: processes, tracks, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

__all__ = ["Arguments", "Instant", "Process", "Slice", "TraceWriter", "Track"]

#: Values are texts, numbers, bools, and lists of these.
Arguments = Mapping[str, Any]


class Process(NamedTuple):
    """A line with a name, below which are the tracks; ``number`` is its place in the file, from 1 on."""

    number: int
    name: str


class Track(NamedTuple):
    """A line of slices; ``number`` is its place in the file, from 1 on."""

    number: int
    process: Process
    name: str
    #: Below which track it is, where a format has tracks within tracks; 0 for none.
    parent: int = 0


class Instant(NamedTuple):
    """What happened at a time, in nanoseconds since the epoch."""

    name: str
    at: int
    arguments: Arguments


@dataclass(slots=True)
class Slice:
    """A span on a track. Times are nanoseconds since the epoch."""

    name: str
    category: str
    start: int
    end: int
    failed: bool
    arguments: Arguments
    #: Numbers of the arrows that begin here, and of those that end here: each begins before it ends.
    arrows_from: Sequence[int] = ()
    arrows_to: Sequence[int] = ()
    #: Within the slice.
    instants: Sequence[Instant] = ()


class TraceWriter(Protocol):
    """Writes a trace file, in the order of these methods."""

    def begin(self, start: int) -> None:
        """Begin a file whose first slice starts at this time."""

    def process(self, process: Process) -> None:
        """Name a process."""

    def track(self, track: Track) -> None:
        """Begin a track: the slices until the next one are on it."""

    def slice(self, slice_: Slice) -> None:
        """Write a slice: it is after all others on the track, or within the last one that has not ended."""

    def end(self) -> None:
        """Write what belongs at the end of the file."""
