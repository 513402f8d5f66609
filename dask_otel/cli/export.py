"""Old runs as files for viewers: ``dask-otel export``."""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import click
import dask

from ..analysis.errors import LoadError, LoadWarning
from ..analysis.export import FORMATS, write
from ..analysis.runs import read_spans
from .doctor_lines import WrappedError
from .run_texts import plain
from .sources import shown

__all__ = ["export"]

_TRACE_ID = re.compile("[0-9a-fA-F]{32}")
_ADDRESS = re.compile("((jaeger|tempo)[+])?https?://", re.IGNORECASE)
_STDOUT = "-"
#: What opens a file, by its format.
_VIEWERS = {
    "perfetto": "https://ui.perfetto.dev",
    "chrome": "https://ui.perfetto.dev, chrome://tracing, or another viewer of Chrome's trace events",
}


@click.command
@click.argument("source")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="perfetto", show_default=True)
@click.option(
    "-o", "--output", required=True, metavar="FILE",
    help=f"File to write, which may exist; {_STDOUT} is the standard output.",
)  # fmt: skip
@click.option("--trace", metavar="ID", help="Only this trace.")
@click.option("--root", metavar="NAME", help="Only traces with a root span of this name.")
@click.option(
    "--from", "address", metavar="SOURCE",
    help="Where the trace is, if SOURCE is its id: address of Jaeger or Tempo, file or folder. Without it, the folder "
    "of the setting otel.traces.folder.",
)  # fmt: skip
def export(source: str, format_: str, output: str, trace: str | None, root: str | None, address: str | None) -> None:
    """Write traces to a file for Perfetto, chrome://tracing and other viewers of timelines.

    SOURCE is a file or a folder with OTLP in JSON, the address of Jaeger or Tempo, or the id of a trace.
    """
    place, trace = _place(source, trace, address)
    if output == _STDOUT and format_ == "perfetto" and sys.stdout.isatty():
        raise _ExportError("a terminal cannot show Perfetto's format: give a file to -o")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LoadWarning)
        try:
            spans = read_spans(place, trace_ids=trace, root=root)
        except LoadError as error:
            raise _ExportError(str(error)) from error
    for text in dict.fromkeys(str(each.message) for each in caught):
        click.echo(f"Warning: {plain(text)}", err=True)
    try:
        with _opened(output) as file:
            count = write(spans, file, format_)
    except BrokenPipeError:  # the reader of a pipe has enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except LoadError as error:
        raise _ExportError(f"{shown(source)}: {error}") from error
    except OSError as error:
        raise _ExportError(f"{output}: {error.strerror or error}; give another file to -o") from error
    traces = len({span.trace_id for span in spans})
    left_out = f", {len(spans) - count} without a start left out" if count < len(spans) else ""
    what = f"{_number(count, 'span')} of {_number(traces, 'trace')}{left_out}"
    click.echo(f"{what}: open {'it' if output == _STDOUT else output} in {_VIEWERS[format_]}", err=True)


class _ExportError(WrappedError):
    """Traces cannot be exported."""

    exit_code = 2


def _place(source: str, trace: str | None, address: str | None) -> tuple[str, str | None]:
    """Return where traces are, and the id of the one that is wanted."""
    if _ADDRESS.match(source) or _exists(source):
        if address is not None:
            raise _ExportError(
                f"{shown(source)} and --from {shown(address)} are two sources: give a trace id before --from"
            )
        return source, trace
    if not _TRACE_ID.fullmatch(source):
        raise _ExportError(
            f"{shown(source)}: there is no such file or folder; an address begins with http://, and a trace id has 32 "
            "hexadecimal digits"
        )
    if trace is not None:
        raise _ExportError(f"{source} and --trace {trace} are two traces: give one of them")
    place = address or dask.config.get("otel.traces.folder", None)
    if not place:
        raise _ExportError(
            f"{source}: where is this trace? Give --from http://…, the address of Jaeger or Tempo, or a file or folder"
        )
    return str(place), source


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, no path at all, no such user
        return False


@contextmanager
def _opened(output: str) -> Iterator[IO[bytes]]:
    """Open a file to write; what was there before is replaced when all is written, and kept if that fails."""
    if output == _STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(os.path.realpath(Path(output).expanduser()))
    if path.exists() and not path.is_file():  # a pipe, a device; or a folder, which is an error
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
