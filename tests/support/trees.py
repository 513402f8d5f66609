"""A whole trace as one indented list of lines, so that tests assert all of it."""

from __future__ import annotations

from collections.abc import Container, Iterable

from dask_otel.cli.receiver import Span


def tree(spans: Iterable[Span], *attributes: str, tasks: bool = False, others: Iterable[Span] = ()) -> list[str]:
    """One line a span: name, kind, chosen attributes, status, links by the target's name; children indented.

    Task spans only if asked for: there is one for almost every task of a test. ``others`` may be linked to.
    """
    spans = [span for span in spans if tasks or span.attributes["dask.kind"] != "task"]
    names = {(span.trace_id, span.span_id): span.name for span in (*others, *spans)}
    ids = {span.span_id for span in spans}
    lines: list[str] = []

    def add(parent: str, depth: int) -> None:
        children = [s for s in spans if (s.parent_id if s.parent_id in ids else "") == parent]
        for span in sorted(children, key=_order):
            lines.append("  " * depth + describe(span))
            add(span.span_id, depth + 1)

    def describe(span: Span) -> str:
        parts = [f"{span.name} [{span.attributes['dask.kind']}]"]
        parts += [f"{name}={span.attributes[name]}" for name in attributes if name in span.attributes]
        if span.status != "Unset":
            parts.append(f"{span.status}: {span.attributes.get('error.type')}: {span.status_message}")
        for trace, target, kind in sorted(span.links, key=lambda link: names.get(link[:2], "?")):
            elsewhere = "" if trace == span.trace_id else " in another trace"
            parts.append(f"{kind} -> {names.get((trace, target), '?')}{elsewhere}")
        if is_called(span):
            parts.append("<- caller")
        elif span.parent_id and span.parent_id not in ids:
            parts.append("PARENT MISSING")
        return " ".join(parts)

    add("", 0)
    return lines


def _order(span: Span) -> tuple[float, str]:
    """Segments by time, then groups by name: groups run side by side, so their times are a matter of chance."""
    return (span.start if span.attributes["dask.kind"] == "span" else float("inf"), span.name)


def trees(spans: Iterable[Span]) -> dict[str, list[str]]:
    """The tree of each trace, by its id, in the order in which they begin."""
    spans = sorted(spans, key=lambda span: span.start)
    ids = dict.fromkeys(span.trace_id for span in spans)
    return {id_: tree([span for span in spans if span.trace_id == id_], others=spans) for id_ in ids}


def forest(spans: Iterable[Span], *attributes: str) -> list[str]:
    """All traces, by the names of their roots; names of attributes without ``dask.``, owning spans by their paths."""
    spans = list(spans)
    paths = {span.attributes["dask.span.id"]: span.attributes["dask.span.path"] for span in spans}
    by_trace: dict[str, list[Span]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    found = [tree(each, *attributes, others=spans) for each in by_trace.values()]
    lines = [line.replace(" dask.", " ") for each in sorted(found) for line in each]
    for id_, path in paths.items():
        lines = [line.replace(id_, path) for line in lines]
    return lines


def is_called(span: Span) -> bool:
    """Whether a segment's parent is the span of another process that the Dask span's id names."""
    id_ = span.attributes["dask.span.id"].partition(";")[0]
    return span.attributes["dask.kind"] == "span" and id_[2:53] == f"-{span.trace_id}-{span.parent_id}-"


def is_top(span: Span) -> bool:
    """Whether a span is listed and counted as a run: a segment without a span of the cluster above it in its trace."""
    return not span.parent_id or is_called(span)


def check_shape(spans: Iterable[Span], *, all_sent: bool = True) -> None:
    """What holds of every trace: ids unique, parents there and around their children, one path per span id.

    ``all_sent`` is false if some traces were not sampled; others may be within these.
    """
    spans = list(spans)
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    assert len(by_id) == len(spans), "a span id was sent twice"
    for span in spans:
        assert span.start <= span.end, span
        assert "dask.span.root" in span.attributes, span
        within = [(trace, target) for trace, target, kind in span.links if kind == "within"]
        assert not within or is_called(span), span
        inside = [by_id[ids] for ids in within if all_sent or ids in by_id]
        if span.parent_id and not is_called(span):
            inside.append(by_id[span.trace_id, span.parent_id])
        for parent in inside:
            assert parent.start <= span.start, (parent, span)
            assert span.end <= parent.end, (parent, span)
        if not span.parent_id:
            assert not any(trace == span.trace_id for trace, _, _ in span.links), span


def children_of(segment: Span, spans: Iterable[Span]) -> list[Span]:
    """What is inside a segment: its groups, and segments of Dask spans below its own."""
    ids = segment.trace_id, segment.span_id
    return [s for s in spans if (s.trace_id, s.parent_id) == ids or (*ids, "within") in s.links]


def check_sums(spans: Iterable[Span], partial: Container[str] = ()) -> None:
    """Counts, durations and sizes of a segment equal the sum of its groups and child segments, also in other traces.

    ``partial`` are ids of Dask spans of which some below are in traces that were not sampled.
    """
    spans = list(spans)
    for segment in spans:
        if segment.attributes["dask.kind"] != "span" or segment.attributes["dask.span.id"] in partial:
            continue
        children = children_of(segment, spans)
        for name in sorted({name for s in [segment, *children] for name in s.attributes if _is_additive(name)}):
            total = sum(child.attributes.get(name, 0) for child in children)
            own = segment.attributes.get(name, 0)
            assert abs(own - total) < 1e-5, (segment.name, name, own, total)


def _is_additive(name: str) -> bool:
    counts = name.startswith("dask.task.") and not name.startswith(("dask.task.duration", "dask.task.types"))
    return (counts and name != "dask.task.prefix") or name.startswith("dask.duration.") or name == "dask.output.size"


def whole(spans: Iterable[Span], parent: str = "") -> list[str]:
    """A trace with the spans of all programs: service, kind, name and status of each, below its parent.

    Kinds are those of dask-otel; other programs' spans have none.

    Parameters
    ----------
    parent
        What the top of the trace is below, if that was not sent.
    """
    spans = list(spans)
    lines: list[str] = []

    def add(parent: str, depth: int) -> None:
        for span in sorted((each for each in spans if each.parent_id == parent), key=lambda each: each.name):
            words = span.resource["service.name"], span.attributes.get("dask.kind", ""), span.name
            lines.append("  " * depth + " ".join(words) + ("" if span.status == "Unset" else f" {span.status}"))
            add(span.span_id, depth + 1)

    add(parent, 0)
    assert len(lines) == len(spans), (lines, spans)
    return lines
