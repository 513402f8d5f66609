"""Keeps spans in files of a folder: lines of OTLP in JSON, as the OpenTelemetry Collector's ``file`` exporter writes.

The folder is bounded, over all schedulers that write to it: the oldest files make room for new ones.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import gmtime, strftime
from typing import Any

from opentelemetry.trace import SpanKind

from ..spantree.records import Record
from .encoding import SpanEncoder
from .spans import Bounded, SpanData, SpanFactory, SpanForm
from .transport import ExportResult, RetryDecision, Sender

__all__ = ["FILES", "FOLDER", "FolderSender", "JsonEncoder", "TraceFolder"]

#: Name of the exporter.
FOLDER = "folder"
#: Files of one scheduler in a folder that is full.
FILES = 8
#: Names of our files; others are left alone.
_OURS = re.compile(r"dask-otel-\d{8}T\d{6}Z-[\w.-]+-\d+\.jsonl")
#: Bytes that a file takes at least.
_BLOCK = 4096
#: Numbers of the files of this process, in which several bridges may write, one after the other.
_numbers = count()
_KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2}
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
#: What JSON has in the place of numbers that are none, by what Python writes.
_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
#: Where the spans of a request will be.
_PLACE = "\0"
#: Windows would change the ends of lines.
_BINARY = getattr(os, "O_BINARY", 0)


class TraceFolder:
    """Files of lines in a folder.

    Nothing is kept open: a file that somebody removes, or another scheduler, has room for new lines in a new file.

    Parameters
    ----------
    path
        Made if it is not there.
    max_bytes
        Of all files of ours in the folder. Schedulers that write at the same time may have an eighth more, each but the
        first.
    writer
        Distinguishes the files of this process from those of others.
    """

    def __init__(self, path: str, max_bytes: int, writer: str) -> None:
        self.path = Path(path)
        self._max_bytes = max_bytes
        #: Bytes of a file, at most.
        self.max_file = max_bytes // FILES
        self._writer = re.sub(r"[^\w.-]", "_", writer, flags=re.ASCII)[:80] or "scheduler"
        self._file: Path | None = None

    def append(self, line: bytes) -> None:
        """Write a line; either all of it, or nothing.

        Raises
        ------
        OSError
            If that cannot be done.
        """
        file = self._reopened(len(line))
        if file is None:
            file = self._begun()
        try:
            before = os.fstat(file).st_size
            try:
                _write(file, line)
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)

    def check(self) -> None:
        """Try whether a file can be made in the folder.

        Raises
        ------
        OSError
            If it cannot.
        """
        os.close(self._begun())
        if self._file:
            self._file.unlink()

    def _reopened(self, size: int) -> int | None:
        """Open the current file if it is still there and has room."""
        if self._file is None:
            return None
        try:
            file = os.open(self._file, os.O_WRONLY | os.O_APPEND | _BINARY)
        except FileNotFoundError:
            return None
        if os.fstat(file).st_size + size <= self.max_file:
            return file
        os.close(file)
        return None

    def _begun(self) -> int:
        """Begin a file, after there is room for it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._make_room()
        name = f"dask-otel-{strftime('%Y%m%dT%H%M%SZ', gmtime())}-{self._writer}-{next(_numbers)}.jsonl"
        path = self.path / name
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        self._file = path
        return file

    def _make_room(self) -> None:
        """Remove the oldest files of ours until a whole one fits in."""
        found = sorted(self._ours())
        total = sum(size for _, _, size in found)
        for _, name, size in found:
            if total <= self._max_bytes - self.max_file:
                return
            with suppress(OSError):  # another scheduler may have removed it
                (self.path / name).unlink()
                total -= size

    def _ours(self) -> Iterator[tuple[int, str, int]]:
        """Yield when each of our files was last written, its name, and its bytes."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with suppress(OSError):
                        if entry.is_file(follow_symlinks=False):
                            stat = entry.stat(follow_symlinks=False)
                            yield stat.st_mtime_ns, entry.name, max(_BLOCK, stat.st_size)


class FolderSender(Sender):
    """Writes each request to a folder as a line. What cannot be written is not tried again: that could go on for ever.

    Parameters
    ----------
    path, max_bytes, writer
        As for ``TraceFolder``.
    """

    is_local = True

    def __init__(self, path: str, max_bytes: int, writer: str) -> None:
        super().__init__(FOLDER)
        self.folder = TraceFolder(path, max_bytes, writer)
        self.target = str(self.folder.path)

    def send(self, data: bytes) -> ExportResult:
        """Write a line."""
        if len(data) > self.folder.max_file:
            return ExportResult(RetryDecision.TOO_LARGE, "more than an eighth of otel.traces.folder-size")
        try:
            self.folder.append(data)
        except OSError as error:
            return ExportResult(RetryDecision.REFUSED, error.strerror or type(error).__name__)
        return ExportResult(RetryDecision.SENT)

    def form(self, factory: SpanFactory) -> SpanForm:
        """Return what makes lines."""
        return JsonEncoder(factory)

    def shutdown(self) -> None:
        """Do nothing: no file is open."""


class JsonEncoder:
    """Encodes the spans of a factory as OTLP in JSON: each by itself, and a request is a line of encoded spans.

    Protobuf's own JSON has base64 in the place of OTLP's hexadecimal ids.
    """

    def __init__(self, factory: SpanFactory) -> None:
        from google.protobuf.json_format import MessageToDict

        self._factory = factory
        request = MessageToDict(SpanEncoder(factory).request(()))
        request["resourceSpans"][0]["scopeSpans"][0]["spans"] = [_PLACE]
        self._begin, self._end = _encoded(request).split(_encoded(_PLACE))

    def span(self, record: Record) -> bytes:
        """Encode the span of a record."""
        return _encoded(_span(self._factory.data(record)))

    def bare(self, record: Record) -> bytes:
        """Encode what identifies a record."""
        return _encoded(_span(self._factory.bare_data(record)))

    def request(self, spans: Iterable[bytes]) -> bytes:
        """Put encoded spans together, as a line."""
        return self._begin + b",".join(spans) + self._end + b"\n"


def _span(data: SpanData) -> dict[str, Any]:
    """Return a span as OTLP has it in JSON; what has its default is left out, as there."""
    out: dict[str, Any] = {
        "traceId": f"{data.trace_id:032x}",
        "spanId": f"{data.span_id:016x}",
        "name": data.name,
        "kind": _KINDS[data.kind],
        "startTimeUnixNano": str(data.start),
        "endTimeUnixNano": str(data.end),
        "attributes": _attributes(data.attributes.values),
        "flags": _HAS_IS_REMOTE | (_IS_REMOTE if data.parent and data.parent.is_remote else 0),
    }
    if data.parent:
        out["parentSpanId"] = f"{data.parent.span_id:016x}"
    if data.state:
        out["traceState"] = ",".join(f"{key}={value}" for key, value in data.state.items())
    status = out["status"] = {"code": data.status.status_code.value} if data.status.status_code.value else {}
    if data.status.description:
        status["message"] = data.status.description
    if data.events:
        out["events"] = [
            {"name": name, "timeUnixNano": str(at)} | _bounded(attributes) for name, at, attributes in data.events
        ]
    if data.links:
        out["links"] = [
            {"traceId": f"{trace_id:032x}", "spanId": f"{span_id:016x}", "flags": _HAS_IS_REMOTE} | _bounded(attributes)
            for trace_id, span_id, attributes in data.links
        ]
    dropped = {
        "droppedAttributesCount": data.attributes.dropped,
        "droppedEventsCount": data.dropped_events,
        "droppedLinksCount": data.dropped_links,
    }
    return out | {name: number for name, number in dropped.items() if number}


def _bounded(attributes: Bounded) -> dict[str, Any]:
    out: dict[str, Any] = {"attributes": _attributes(attributes.values)}
    return out | {"droppedAttributesCount": attributes.dropped} if attributes.dropped else out


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _any(value)} for name, value in attributes.items()]


def _any(value: Any) -> dict[str, Any]:
    """Encode a value, or what a sampler of the user's has added."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _WORDS[str(value)]}
    if isinstance(value, bytes):
        return {"bytesValue": b64encode(value).decode()}
    if isinstance(value, Mapping):
        entries = [{"key": str(key), "value": _any(each)} for key, each in value.items()]
        return {"kvlistValue": {"values": entries}}
    if isinstance(value, Sequence):
        return {"arrayValue": {"values": list(map(_any, value))}}
    return {"stringValue": str(value)}


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.write(file, view)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
