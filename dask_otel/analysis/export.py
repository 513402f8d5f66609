"""Writes traces as files for viewers: Perfetto's format and Chrome's.

A service is a process of the file, with a track for each Dask span; and so is each worker, with a track for each
thread. A track is as many lanes as its spans need to nest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from .. import schema
from .chrome import ChromeWriter
from .errors import LoadError
from .lanes import NONE, depths, divide
from .otlp_json import PlainSpan
from .perfetto import PerfettoWriter
from .trace_events import Arguments, Instant, Process, Slice, TraceWriter, Track

__all__ = ["FORMATS", "write"]

FORMATS: dict[str, Callable[[IO[bytes]], TraceWriter]] = {"perfetto": PerfettoWriter, "chrome": ChromeWriter}

_SERVICE = "service.name"
#: Track of the spans that are neither Dask's nor below one of Dask's.
_OTHERS = "spans"


class _Place(NamedTuple):
    """A track, before it is known how many lanes it needs."""

    process: str
    track: str
    is_worker: bool = False
    #: Dask's root span.
    root: str = ""


def write(spans: Iterable[PlainSpan], file: IO[bytes], format: str) -> int:
    """Write spans to a file as slices, their attributes as arguments, their links as arrows, their events as instants.

    Times are exact to the nanosecond, but an event outside of its span is at the nearest end of it, and in Chrome's
    format an event at the end of its span is a nanosecond earlier: viewers would take it for the next span's.

    Parameters
    ----------
    format
        ``perfetto`` or ``chrome``.

    Returns
    -------
    int
        How many spans were written: all whose start is known.

    Raises
    ------
    LoadError
        If there are none.
    """
    known = [span for span in spans if span.start > 0]
    if not known:
        raise LoadError("there are no spans to export")
    starts = [span.start for span in known]
    ends = [max(span.start, span.end) for span in known]
    numbers = {(span.trace_id, span.span_id): number for number, span in enumerate(known)}
    parents = [numbers.get((span.trace_id, span.parent_id), NONE) for span in known]
    depth = depths(parents)
    by_place: dict[_Place, list[int]] = {}
    for number, place in enumerate(_places(known, parents, depth)):
        by_place.setdefault(place, []).append(number)
    arrows_from, arrows_to = _arrows(known, numbers)

    writer = FORMATS[format](file)
    writer.begin(min(starts))
    processes: dict[str, Process] = {}
    places = _in_order(by_place, starts)
    for place in places:
        if place.process not in processes:
            processes[place.process] = Process(len(processes) + 1, place.process)
            writer.process(processes[place.process])
    tracks = 0
    of_root: dict[tuple[str, str], int] = {}  # number of the track that has the segments of a root span
    for place in places:
        by_lane: dict[int, list[int]] = {}
        for number, lane in divide(by_place[place], starts, ends, parents, depth):
            by_lane.setdefault(lane, []).append(number)
        for lane, lane_s_spans in by_lane.items():
            tracks += 1
            name = f"{place.track} ({lane + 1})" if lane else place.track
            above = of_root.get((place.process, place.root), 0)
            if place.root and not above and place.track == place.root:
                of_root[place.process, place.root] = tracks
            writer.track(Track(tracks, processes[place.process], name, above))
            for number in lane_s_spans:
                writer.slice(
                    _slice(known[number], ends[number], arrows_from.get(number, ()), arrows_to.get(number, ()))
                )
    writer.end()
    return len(known)


def _places(spans: Sequence[PlainSpan], parents: Sequence[int], depth: Sequence[int]) -> list[_Place]:
    """Return the track of each span."""
    places: list[Any] = [None] * len(spans)
    services: dict[int, str] = {}  # of many spans, the resource is the same object
    for number in sorted(range(len(spans)), key=depth.__getitem__):  # parents first
        span, attributes = spans[number], spans[number].attributes
        service = services.get(id(span.resource))
        if service is None:
            service = services[id(span.resource)] = _service(span.resource)
        worker, path = attributes.get(schema.WORKER_ADDRESS), attributes.get(schema.SPAN_PATH)
        parent = parents[number]
        if worker is not None:
            thread = attributes.get(schema.THREAD_ID)
            track = "tasks" if thread is None else f"thread {thread}"
            places[number] = _Place(_worker(attributes), track, is_worker=True)
        elif path is not None:
            places[number] = _Place(service, str(path), root=str(attributes.get(schema.SPAN_ROOT, "")))
        elif parent != NONE and places[parent] and service == _service(spans[parent].resource):
            places[number] = places[parent]  # what a task does itself; phases of a client
        else:
            places[number] = _Place(service, _OTHERS)
    return places


def _service(resource: Mapping[str, Any]) -> str:
    name, cluster = resource.get(_SERVICE, "unknown service"), resource.get(schema.CLUSTER_NAME)
    return f"{name}" if cluster is None else f"{name} ({cluster})"


def _worker(attributes: Mapping[str, Any]) -> str:
    address, name = attributes[schema.WORKER_ADDRESS], attributes.get(schema.WORKER_NAME)
    return f"worker {address}" if name in (None, address) else f"worker {name} ({address})"


def _in_order(by_place: Mapping[_Place, Sequence[int]], starts: Sequence[int]) -> list[_Place]:
    """Put services before workers, and all in the order of their first spans, but the tracks of a root together."""
    of_process: dict[str, int] = {}
    of_root: dict[tuple[str, str], int] = {}
    of_place = {place: min(starts[number] for number in numbers) for place, numbers in by_place.items()}
    for place, start in of_place.items():
        of_process[place.process] = min(start, of_process.get(place.process, start))
        key = place.process, place.root or place.track
        of_root[key] = min(start, of_root.get(key, start))
    return sorted(
        by_place,
        key=lambda place: (
            place.is_worker,
            of_process[place.process],
            place.process,
            of_root[place.process, place.root or place.track],
            place.root,
            of_place[place],
            place.track,
        ),
    )


def _arrows(
    spans: Sequence[PlainSpan], numbers: Mapping[tuple[str, str], int]
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Number the links between spans that are there; return the numbers by the span that starts earlier, and later.

    Viewers cannot draw arrows between spans that start at the same time.
    """
    arrows_from: dict[int, list[int]] = {}
    arrows_to: dict[int, list[int]] = {}
    count = 0
    for number, span in enumerate(spans):
        for trace_id, span_id, _ in span.links:
            other = numbers.get((trace_id, span_id))
            if other is None or spans[other].start == span.start:
                continue
            count += 1
            earlier, later = (other, number) if spans[other].start < span.start else (number, other)
            arrows_from.setdefault(earlier, []).append(count)
            arrows_to.setdefault(later, []).append(count)
    return arrows_from, arrows_to


def _slice(span: PlainSpan, end: int, arrows_from: Sequence[int], arrows_to: Sequence[int]) -> Slice:
    about = {"trace_id": span.trace_id, "span_id": span.span_id}
    if span.status != "unset":
        about["status"] = span.status
    if span.status_message:
        about["status_message"] = span.status_message
    return Slice(
        name=span.name,
        category=str(span.attributes.get(schema.KIND, "other")),
        start=span.start,
        end=end,
        failed=span.status == "error",
        arguments=_arguments(about | span.attributes),
        arrows_from=arrows_from,
        arrows_to=arrows_to,
        instants=[
            Instant(name, min(max(span.start, at), end), _arguments(attributes)) for name, at, attributes in span.events
        ],
    )


def _arguments(attributes: Mapping[str, Any]) -> Arguments:
    return {name: _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    """Return a value of a type that all formats have: text, number, bool, a list of these."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
