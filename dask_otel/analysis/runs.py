"""Loads old runs as data frames, from wherever their traces are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from .. import schema
from . import jaeger, tempo
from .errors import LoadError, LoadWarning
from .files import read_file, read_folder
from .frames import make_frames, without_repeats
from .http import Backend
from .otlp_json import PlainSpan, spans_of

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Runs", "load", "read_spans"]

_URL = re.compile(r"(?:(?P<what>jaeger|tempo)\+)?(?P<url>https?://.+)", re.IGNORECASE | re.DOTALL)
_TRACE_ID = re.compile(r"[0-9a-fA-F]{1,32}")


@dataclass(repr=False)
class Runs:
    """Traces as tidy data frames: a row for each span, in the order of their starts.

    All but ``links`` have the columns ``trace_id``, ``span_id``, ``parent_id``, ``name``, ``service``, ``kind``,
    ``start``, ``end`` (UTC), ``duration`` (seconds), ``status`` (``ok``, ``error``, ``unset``), ``status_message``, and
    one for each attribute, under its own name. ``docs/history.md`` has their types.
    """

    #: Segments of Dask spans; and the last pending span of a segment that is not there, with ``dask.kind`` ``pending``.
    spans: DataFrame
    #: Group spans.
    groups: DataFrame
    #: Task spans, of the scheduler and of workers, and calls to actors.
    tasks: DataFrame
    #: Phases, of the scheduler and of instrumented clients.
    phases: DataFrame
    #: A row for each link: ``trace_id``, ``span_id``, ``linked_trace_id``, ``linked_span_id``, ``type``.
    links: DataFrame
    #: All other spans: those of a person's own program, which may be in the same traces.
    others: DataFrame

    def trace(self, trace_id: str) -> Runs:
        """Return what is in one trace; a link is in the trace of the span that has it.

        Raises
        ------
        LoadError
            If there is no span of it.
        """
        wanted = _trace_id(trace_id, "trace_id")
        out = Runs(
            **{name: frame[frame["trace_id"] == wanted].reset_index(drop=True) for name, frame in self._frames()}
        )
        if not any(len(frame) for _, frame in out._frames()):
            raise LoadError(f"trace_id={trace_id!r}: no span of this trace was loaded")
        return out

    @property
    def trace_ids(self) -> list[str]:
        """Ids of the traces, in the order of their first spans."""
        first: dict[str, Any] = {}
        for name, frame in self._frames():
            if name != "links":
                for trace_id, start in zip(frame["trace_id"], frame["start"], strict=True):
                    first[trace_id] = min(first.get(trace_id, start), start)
        return sorted(first, key=lambda trace_id: first[trace_id])

    def _frames(self) -> Iterator[tuple[str, Any]]:
        return ((each.name, getattr(self, each.name)) for each in fields(self))

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(frame)} {name}" for name, frame in self._frames())
        return f"<Runs: {len(self.trace_ids)} traces, {counts}>"


def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]],
    *,
    trace_ids: str | Iterable[str] | None = None,
    service: str | None = None,
    root: str | None = None,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    limit: int = 100,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Runs:
    """Load traces that dask-otel has made.

    Whatever the source, whole traces are loaded: all spans of those that the other arguments select. A span that is
    there twice is loaded once.

    Parameters
    ----------
    source
        A file or a folder of files with OTLP in JSON, compressed by gzip or not, such as ``otel.traces.folder`` or the
        Collector's ``file`` exporter writes. Or the address of Jaeger or Tempo, e.g. ``http://localhost:16686``: which
        of them it is, is asked, unless it begins with ``jaeger+http`` or ``tempo+http``. Or OTLP in JSON as objects.
    trace_ids
        Load only these traces.
    service
        Load only traces with a span of this ``service.name``. In Jaeger, ``dask-scheduler`` by default: Jaeger searches
        one service only.
    root
        Load only traces with a root span of this name: ``dask.span.root``.
    since, until
        Load only traces with a Dask span (or any span, if there is none) that started from ``since`` on and before
        ``until``. A text is as in ISO 8601, e.g. ``2026-05-01`` or ``2026-05-01T08:00+02:00``; without a time zone it
        is local time.
    limit
        How many traces to ask Jaeger or Tempo for, at most, if ``trace_ids`` is not given. Jaeger looks for them
        without ``root``.
    headers
        Sent to Jaeger or Tempo with each request, e.g. ``{"Authorization": "Bearer …"}``.
    timeout
        Seconds that Jaeger or Tempo may take to answer.

    Raises
    ------
    LoadError
        If there is no such source or trace, or the source holds something else, or pandas is not installed.

    Warns
    -----
    LoadWarning
        If something is left out, such as the last line of a file that is still being written.
    """
    return Runs(
        **make_frames(
            read_spans(
                source,
                trace_ids=trace_ids,
                service=service,
                root=root,
                since=since,
                until=until,
                limit=limit,
                headers=headers,
                timeout=timeout,
            )
        )
    )


def read_spans(
    source: str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]],
    *,
    trace_ids: str | Iterable[str] | None = None,
    service: str | None = None,
    root: str | None = None,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    limit: int = 100,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> list[PlainSpan]:
    """Return the spans that ``load`` makes frames of; without pandas."""
    given = [trace_ids] if isinstance(trace_ids, str) else list(trace_ids or ())
    ids = [_trace_id(each, "trace_ids") for each in given]
    if not isinstance(limit, int) or limit < 1:
        raise LoadError(f"limit={limit!r} has to be a whole number from 1 up")
    begin, end = _time(since, "since"), _time(until, "until")
    if isinstance(source, Path):
        source = str(source)
    if isinstance(source, str) and (found := _URL.fullmatch(source.strip())):
        backend = Backend(found["url"], headers, timeout)
        spans = without_repeats(_ask(backend, (found["what"] or "").lower(), ids, service, root, begin, end, limit))
    else:
        spans = without_repeats(_read(source))
    selected = _selected(spans, ids, service, root, begin, end)
    if not selected:
        raise LoadError(_nothing(source, ids, spans))
    return selected


def _read(source: Any) -> Iterable[PlainSpan]:
    """Spans of files, or of objects."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        try:
            if path.is_dir():
                return list(read_folder(path))
            return list(read_file(path))
        except FileNotFoundError as error:
            given = re.sub("(?<=://).*@", "", str(source))  # it can be an address that is mistyped, with a password
            raise LoadError(
                f"source={given!r}: there is no such file or folder; an address begins with http:// or https://"
            ) from error
        except OSError as error:
            raise LoadError(f"source={str(source)!r} cannot be read: {error}") from error
    items = [source] if isinstance(source, Mapping) else source
    if not isinstance(items, Iterable) or isinstance(items, (bytes, bytearray)):
        raise LoadError(
            f"source={source!r} has to be the path of a file or a folder, the address of Jaeger or Tempo, or OTLP in "
            "JSON as objects"
        )
    return chain.from_iterable(map(spans_of, items))


def _ask(
    backend: Backend,
    what: str,
    ids: Sequence[str],
    service: str | None,
    root: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> Iterator[PlainSpan]:
    """Yield spans of a backend."""
    if what == "jaeger" or (not what and jaeger.is_jaeger(backend)):
        if ids:
            yield from jaeger.read_traces(backend, ids)
            return
        spans = list(jaeger.search(backend, service, since, until, limit))
        _warn_of_limit(len({span.trace_id for span in spans}), limit)
        yield from spans
    elif what == "tempo" or tempo.is_tempo(backend):
        if not ids:
            ids = tempo.search(backend, service, root, since, until, limit)
            _warn_of_limit(len(ids), limit)
        yield from tempo.read_traces(backend, ids)
    else:
        raise LoadError(
            f"source={backend.url!r} is neither Jaeger (it has no /api/v3/services) nor Tempo (no /api/echo): give the "
            "address before /api, or say which it is by jaeger+http://… or tempo+http://…"
        )


def _warn_of_limit(found: int, limit: int) -> None:
    if found >= limit:
        warn(f"there may be more traces than limit={limit}: give a higher limit=", LoadWarning, stacklevel=4)


def _selected(
    spans: Iterable[PlainSpan],
    ids: Sequence[str],
    service: str | None,
    root: str | None,
    since: datetime | None,
    until: datetime | None,
) -> list[PlainSpan]:
    """Return the spans of the traces that the arguments of ``load`` select."""
    by_trace: dict[str, list[PlainSpan]] = {}
    wanted = set(ids)
    for span in spans:
        if not wanted or span.trace_id in wanted:
            by_trace.setdefault(span.trace_id, []).append(span)
    first = _nanoseconds(since, 0)
    last = _nanoseconds(until, 2**64)

    def is_selected(trace: list[PlainSpan]) -> bool:
        dask = [span for span in trace if schema.SPAN_ROOT in span.attributes] or trace
        return (
            any(first <= span.start < last for span in dask)
            and (service is None or any(span.resource.get("service.name") == service for span in trace))
            and (root is None or any(span.attributes.get(schema.SPAN_ROOT) == root for span in trace))
        )

    return [span for trace in by_trace.values() if is_selected(trace) for span in trace]


def _nothing(source: Any, ids: Sequence[str], spans: Sequence[PlainSpan]) -> str:
    where = f"source={source!r}" if isinstance(source, str) and "@" not in source else "source"
    if not spans:
        return f"{where} has no spans"
    if missing := set(ids) - {span.trace_id for span in spans}:
        return f"{where} has no trace {min(missing)}: look at trace_ids="
    names = sorted({str(span.attributes[schema.SPAN_ROOT]) for span in spans if schema.SPAN_ROOT in span.attributes})
    count = len({span.trace_id for span in spans})
    return (
        f"{where} has {count} traces, of which service=, root=, since= and until= select none; "
        f"root spans: {', '.join(map(repr, names[:20])) or 'none'}"
    )


def _trace_id(given: Any, argument: str) -> str:
    if isinstance(given, str) and _TRACE_ID.fullmatch(given.strip()):
        return given.strip().lower().rjust(32, "0")
    raise LoadError(f"{argument}={given!r} has to be a trace id of up to 32 hexadecimal digits")


def _time(given: Any, argument: str) -> datetime | None:
    if given is None:
        return None
    try:
        time = given
        if isinstance(given, str):
            time = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", given.strip()))
        elif isinstance(given, date) and not isinstance(given, datetime):
            time = datetime(given.year, given.month, given.day)
        return time.astimezone(timezone.utc)  # type: ignore[no-any-return]
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise LoadError(
            f"{argument}={given!r} has to be a datetime, or a text such as 2026-05-01T08:00+02:00"
        ) from error


def _nanoseconds(time: datetime | None, otherwise: int) -> int:
    if time is None:
        return otherwise
    elapsed = time - datetime.fromtimestamp(0, timezone.utc)
    return (elapsed.days * 86_400 + elapsed.seconds) * 10**9 + elapsed.microseconds * 1000
