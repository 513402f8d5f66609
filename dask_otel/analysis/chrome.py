"""Chrome's trace event format: JSON, which ``chrome://tracing``, Perfetto and many other viewers open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import math
from typing import IO, Any

from .trace_events import Arguments, Process, Slice, Track

__all__ = ["ChromeWriter"]


class ChromeWriter:
    """Writes a file in Chrome's format.

    Times are microseconds since the first slice, with three decimals: so they are exact to the nanosecond in the
    doubles of JavaScript for 104 days, which microseconds since the epoch are not.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = 0
        self._track: Track | None = None
        self._first = True

    def begin(self, start: int) -> None:
        """Begin a file; the start in nanoseconds since the epoch is in its ``otherData``."""
        self._start = start
        head = {"displayTimeUnit": "ms", "otherData": {"start_unix_ns": str(start)}}
        self._write(json.dumps(head)[:-1] + ', "traceEvents": [\n')

    def process(self, process: Process) -> None:
        """Name a process."""
        self._metadata("process_name", {"name": process.name}, process.number)
        self._metadata("process_sort_index", {"sort_index": process.number}, process.number)

    def track(self, track: Track) -> None:
        """Begin a track, which is a thread of its process."""
        self._track = track
        self._metadata("thread_name", {"name": track.name}, track.process.number, track.number)
        self._metadata("thread_sort_index", {"sort_index": track.number}, track.process.number, track.number)

    def slice(self, slice_: Slice) -> None:
        """Write a complete event, the instants within it, and the arrows.

        An instant at the very end would be one within the next slice.
        """
        at = self._at(slice_.start)
        more = f',"dur":{_microseconds(slice_.end - slice_.start)}' + (',"cname":"terrible"' if slice_.failed else "")
        self._event("X", slice_.name, slice_.category, at, more, slice_.arguments)
        for instant in slice_.instants:
            inside = max(slice_.start, min(instant.at, slice_.end - 1))
            self._event("i", instant.name, slice_.category, self._at(inside), ',"s":"t"', instant.arguments)
        for number in slice_.arrows_from:
            self._event("s", "link", "link", at, f',"id":{number}')
        for number in slice_.arrows_to:
            self._event("f", "link", "link", at, f',"id":{number},"bp":"e"')

    def end(self) -> None:
        """Close the JSON's brackets."""
        self._write("\n]}\n")

    def _at(self, time: int) -> str:
        return _microseconds(time - self._start)

    def _event(
        self, phase: str, name: str, category: str, at: str, more: str, arguments: Arguments | None = None
    ) -> None:
        assert self._track is not None
        place = f'"pid":{self._track.process.number},"tid":{self._track.number}'
        args = "" if arguments is None else f',"args":{_json(arguments)}'
        self._item(f'{{"ph":"{phase}",{place},"ts":{at},"name":{_json(name)},"cat":{_json(category)}{more}{args}}}')

    def _metadata(self, name: str, arguments: Arguments, pid: int, tid: int = 0) -> None:
        self._item(f'{{"ph":"M","pid":{pid},"tid":{tid},"ts":0,"name":"{name}","args":{_json(arguments)}}}')

    def _item(self, text: str) -> None:
        self._write(text if self._first else f",\n{text}")
        self._first = False

    def _write(self, text: str) -> None:
        self._file.write(text.encode("utf-8", "replace"))  # there may be lone surrogates


def _microseconds(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 1000)
    return f"{whole}.{rest:03}"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, separators=(",", ":"))


def _without_nan(value: Any) -> Any:
    """Return a value with texts in the place of numbers that JSON doesn't have."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
