"""Reads traces from files: lines of OTLP in JSON.

The OpenTelemetry Collector's ``file`` exporter and ``otel.traces.folder`` write such files.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from warnings import warn

from .errors import LoadError, LoadWarning
from .otlp_json import PlainSpan, documents, spans_of

__all__ = ["read_file", "read_folder"]

#: Ends of the names of files that are read in a folder.
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read_folder(folder: Path) -> Iterator[PlainSpan]:
    """Yield the spans of all files in a folder.

    Raises
    ------
    LoadError
        If there is none, or one holds something else.
    """
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES) and path.is_file())
    if not paths:
        raise LoadError(f"source={str(folder)!r} has no files of traces ({', '.join(_SUFFIXES)}) in it")
    for path in paths:
        try:
            yield from read_file(path)
        except FileNotFoundError:  # a scheduler has made room for newer ones
            continue


def read_file(path: Path) -> Iterator[PlainSpan]:
    """Yield the spans of a file: a document on each line, or one document on many lines; it may be compressed.

    A last line that has no end is left out, with a warning: it is still being written, or its writer was killed.

    Raises
    ------
    LoadError
        If it holds something else.
    """
    with path.open("rb") as raw:
        is_compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = _lines(gzip.GzipFile(fileobj=raw) if is_compressed else raw, path)
        has_lines = False
        for number, line in lines:
            try:
                found = [span for document in documents(line.decode("utf-8")) for span in spans_of(document)]
            except LoadError as error:
                raise LoadError(f"{path}, line {number}: {error}") from error
            except ValueError as error:
                rest = list(lines)
                # A document on many lines does not begin so.
                is_line = has_lines or line.lstrip().startswith(b'{"resourceSpans"')
                if is_line and not rest and not line.endswith(b"\n"):
                    _warn(path, f"line {number} is not complete, and left out")
                    return
                if has_lines:
                    raise LoadError(f"{path}, line {number}: not a trace: not JSON ({error})") from error
                found = _whole(path, line + b"".join(each for _, each in rest), number, error)
            has_lines = True
            yield from found


def _lines(file: IO[bytes] | gzip.GzipFile, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    number = 0
    try:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _warn(path, f"it cannot be decompressed beyond line {number} ({error}), and the rest is left out")


def _whole(path: Path, content: bytes, number: int, error: ValueError) -> list[PlainSpan]:
    """Spans of a document on many lines."""
    try:
        return [span for document in documents(content.decode("utf-8")) for span in spans_of(document)]
    except LoadError as wrong:
        raise LoadError(f"{path}: {wrong}") from wrong
    except ValueError:
        raise LoadError(
            f"{path}, line {number}: not a trace: not JSON ({error}). Files have to hold OTLP in JSON"
        ) from error


def _warn(path: Path, message: str) -> None:
    warn(f"{path}: {message}", LoadWarning, stacklevel=2)
