"""Where ``report`` and ``diff`` find runs: by trace id or name in a backend, or in a file or folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import dask

from .doctor_lines import WrappedError
from .run_texts import plain

if TYPE_CHECKING:  # pandas is imported when runs are read
    from ..analysis.run import Run

__all__ = ["BadSourceError", "Filters", "Found", "find", "read", "shown", "source_options"]

#: Where backends are asked if nothing else is given.
DEFAULT = "http://localhost:16686"
#: Traces that a backend is asked for, if not by id.
MAX_TRACES = 100
_TRACE_ID = re.compile("[0-9a-fA-F]{32}")
_ADDRESS = re.compile("(jaeger[+]|tempo[+])?https?://", re.IGNORECASE)
#: ``@2``, ``@2-6`` after a name, file or folder: the latest run is number 1.
_NUMBERS = re.compile(r"(.+)@(\d+)(?:-(\d+))?", re.DOTALL)


class BadSourceError(WrappedError):
    """There are no runs as asked for."""

    exit_code = 2


@dataclass(frozen=True)
class Filters:
    """What options say of runs; None for what does not matter."""

    #: Address, file or folder.
    source: str | None = None
    service: str | None = None
    root: str | None = None
    trace_id: str | None = None

    @property
    def place(self) -> str:
        """Where traces are looked for, if an argument is not a file itself."""
        return self.source or str(dask.config.get("otel.traces.folder", None) or DEFAULT)


@dataclass(frozen=True)
class Found:
    """Runs that were asked for, and others in the same place; each in order of time."""

    runs: Sequence[Run]
    others: Sequence[Run]


def shown(place: str) -> str:
    """Return a place as messages have it: an address, also a mistyped one, without a user, a password and a query."""
    return re.sub("(?<=://).*@|[?#].*", "", place) if "://" in place else place


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options ``source``, ``service`` and ``root``."""
    for option in (
        click.option("--root", metavar="NAME", help="Only runs whose root span has this name."),
        click.option("--service", metavar="NAME", help="Service that sent the traces; in Jaeger, else dask-scheduler."),
        click.option(
            "--from", "source", metavar="SOURCE",
            help="Where traces are: address of Jaeger or Tempo, file, or folder. Without it, the folder of the setting "
            f"otel.traces.folder, else {DEFAULT}.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def find(selection: str, filters: Filters) -> Found:
    """Return the runs that an argument of the command line asks for.

    Parameters
    ----------
    selection
        File, folder, trace id or name of a root; ``@n`` or ``@n-m`` after it asks for the nth latest run, or for these;
        several of them with commas between.

    Raises
    ------
    BadSourceError
        If there are no such runs.
    """
    split = [selection] if _exists(selection) else [each.strip() for each in selection.split(",") if each.strip()]
    if not split:
        raise BadSourceError("a trace id, name of a root span, file or folder is needed, not an empty text")
    every = [_find(each, filters) for each in split]
    runs = {(run.trace_id, run.root): run for found in every for run in found.runs}
    others = {(run.trace_id, run.root): run for found in every for run in found.others}
    return Found(_in_order(runs.values()), _in_order(others[key] for key in others.keys() - runs.keys()))


def _in_order(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.start, run.trace_id, run.root))


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, no path at all, no such user
        return False


def _find(selection: str, filters: Filters) -> Found:
    numbers = None if _exists(selection) else _NUMBERS.fullmatch(selection)
    name = numbers[1] if numbers else selection
    first, last = (int(numbers[2]), int(numbers[3] or numbers[2])) if numbers else (1, 1)
    if not 1 <= first <= last:
        raise BadSourceError(f"{selection}: numbers of runs begin with @1, the latest; @1-5 are five")
    place, root, trace_id = filters.place, filters.root, filters.trace_id
    if _exists(name):
        place = name
        found = read(place, filters.service, trace_id)
    elif _TRACE_ID.fullmatch(name):
        trace_id = name.lower()
        found = read(place, filters.service, trace_id)
    elif _ADDRESS.match(name):
        raise BadSourceError(
            f"{shown(name)}: an address goes behind --from; a trace id or the name of a root span goes here"
        )
    elif re.search(r"[/\\]|\.(jsonl?|gz)$", name) and not filters.source:
        raise BadSourceError(f"{shown(name)}: there is no such file or folder; the name of a root span may need --from")
    else:
        root = name
        found = read(place, filters.service, trace_id, name, max(last, MAX_TRACES))
    runs = [run for run in found if root in (None, run.root) and trace_id in (None, run.trace_id)]
    if not runs:
        raise BadSourceError(_no_run(selection, place, root, trace_id, found))
    if numbers:
        if last > len(runs):
            raise BadSourceError(f"{selection}: {shown(place)} has only {len(runs)} of these runs, not {last}")
        runs = runs[len(runs) - last : len(runs) - first + 1]
    return Found(runs, [run for run in found if run not in runs])


def _no_run(selection: str, place: str, root: str | None, trace_id: str | None, found: Sequence[Run]) -> str:
    roots = sorted({run.root for run in found})
    names = ", ".join(map(repr, roots[:10])) + (" …" if len(roots) > 10 else "")
    what = f"no finished run of {root!r}" if root else "no finished run of Dask"
    what += f" in trace {trace_id}" if trace_id and selection != trace_id else ""
    where = "" if selection == place else f" in {shown(place)}"
    return f"{selection}: there is {what}{where}" + (f", but of {names}" if names else "")


@cache
def read(
    place: str, service: str | None, trace_id: str | None, root: str | None = None, limit: int = MAX_TRACES
) -> Sequence[Run]:
    """Return the runs in a place; of a backend, those that were asked for. Both sides of a comparison may ask alike."""
    try:
        from ..analysis import LoadError, LoadWarning, load
        from ..analysis.run import runs_of
    except ImportError as error:
        raise BadSourceError(
            f"this needs {error.name}: pip install 'dask-otel[analysis]', in a checkout '.[analysis]'"
        ) from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LoadWarning)
        try:
            if _ADDRESS.match(place):
                loaded = load(place, trace_ids=trace_id, service=service, root=root, limit=limit)
            else:  # it is read as a whole in any case, and what else is in it is worth a word
                loaded = load(place, service=service)
            found = runs_of(loaded)
        except LoadError as error:
            raise BadSourceError(str(error)) from error
    for text in dict.fromkeys(str(each.message) for each in caught):
        click.echo(f"Warning: {plain(text)}", err=True)
    return found
