"""Why a run took as long as it did, as the page shows it: verdict, waterfall and critical path.

It is read from the attributes of the run's rows (``otlp/recent_runs.py``). ``why.html`` draws it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import schema
from ..diagnosis.findings import HINTS
from ..diagnosis.parts import LABELS
from .texts import duration

__all__ = ["LINK", "Part", "Reasons", "reasons"]

#: Parts that are shorter, of the duration, are drawn as one.
MIN_SHARE = 0.01
#: Steps of the critical path that are named.
MAX_NAMED_STEPS = 3
#: Addresses that a text may link to: those of Dask's documentation.
LINK = re.compile(r"(https://(?:docs|distributed)\.dask\.org/[^\s<>\"]*[^\s<>\".,;:)])")


@dataclass
class Part:
    """A part of the waterfall."""

    name: str
    label: str
    #: Wall seconds, as a text; and percent of the duration.
    seconds: str
    share: str
    #: Where the bar is, in percent.
    left: float
    width: float


@dataclass
class Reasons:
    """Why one segment of a root took long."""

    #: Id and name of its row.
    id: str
    name: str
    #: Ids, the most costly first.
    verdict: list[str]
    #: About the first one: sentences in pieces, with whether a piece is a link; and the time that a cure would save.
    text: list[tuple[str, bool]]
    at_most: str
    hints: list[str]
    withheld: str
    parts: list[Part]
    #: Of the critical path: steps with their time, and in words where the rest is.
    steps: list[tuple[str, str]]
    path: str
    is_running: bool


def reasons(spans: Sequence[Mapping[str, Any]]) -> list[Reasons]:
    """Return why the roots of a run took long, as far as that is known, in order of time."""
    found = []
    for span in sorted(spans, key=lambda span: float(span["start"])):
        attributes = span["attributes"]
        if schema.WATERFALL_THREADS in attributes or schema.VERDICT_WITHHELD in attributes:
            at_most = attributes.get(schema.VERDICT_AT_MOST)
            found.append(
                Reasons(
                    id=span["id"],
                    name=schema.shorten(span["name"], 80),
                    verdict=[_words(id_) for id_ in attributes.get(schema.VERDICT, ())],
                    text=_pieces(attributes.get(schema.VERDICT_TEXT, "")),
                    at_most="" if at_most is None else duration(at_most),
                    hints=[HINTS.get(id_, _words(id_)) for id_ in attributes.get(schema.VERDICT_HINTS, ())],
                    withheld=attributes.get(schema.VERDICT_WITHHELD, ""),
                    parts=list(_parts(attributes)),
                    steps=_steps(attributes),
                    path=_path(attributes),
                    is_running=span.get("is_running", False),
                )
            )
    return found


def _words(id_: str) -> str:
    return id_.replace("_", " ")


def _pieces(text: str) -> list[tuple[str, bool]]:
    return [(piece, number % 2 == 1) for number, piece in enumerate(LINK.split(text)) if piece]


def _parts(attributes: Mapping[str, Any]) -> Iterator[Part]:
    seconds = {part: attributes.get(name, 0.0) for part, name in schema.WATERFALL.items()}
    threads, whole = attributes.get(schema.WATERFALL_THREADS, 0.0), sum(seconds.values())
    if not threads > 0 or not whole > 0:
        return
    # What was counted twice is negative: the others are more than the whole, and the bar is that of all of them.
    drawn = sum(each for each in seconds.values() if each > 0)
    small = [part for part, each in seconds.items() if abs(each) < MIN_SHARE * whole]
    rest = sum(seconds.pop(part) for part in small)
    left = 0.0
    for part, each in [*seconds.items(), ("rest", rest)]:
        if each:
            width = 100 * max(0.0, each) / drawn
            text = duration(each / threads) if each > 0 else f"\N{MINUS SIGN}{duration(-each / threads)}"
            share = f"{each / whole:.0%}".replace("-", "\N{MINUS SIGN}")
            yield Part(part, LABELS.get(part, "the rest"), text, share, left, width)
            left += width


def _steps(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = attributes.get(schema.CRITICAL_STEPS, ())[:MAX_NAMED_STEPS]
    seconds = attributes.get(schema.CRITICAL_STEPS_SECONDS, ())
    return [(name, duration(each)) for name, each in zip(names, seconds, strict=False)]


def _path(attributes: Mapping[str, Any]) -> str:
    """Describe the critical path."""
    if schema.CRITICAL_SECONDS not in attributes:
        return ""
    through = {edge: attributes.get(name, 0.0) for edge, name in schema.CRITICAL_EDGE.items()}
    gaps = {cause: attributes.get(name, 0.0) for cause, name in schema.CRITICAL_GAP.items()}
    waits = sorted(gaps, key=lambda cause: -gaps[cause])
    told = [f"{duration(attributes[schema.CRITICAL_SECONDS])} in tasks"]
    told[0] += f" ({duration(through['data'])} after their inputs, {duration(through['thread'])} after a thread)"
    told += [f"{duration(gaps[cause])} {_GAPS[cause]}" for cause in waits[:MAX_NAMED_STEPS] if gaps[cause] > 0]
    return ", ".join(told)


#: What the gaps are called.
_GAPS = {
    "client": "without work",
    "graph": "until a graph had arrived",
    "report": "until the scheduler had heard of a result",
    "queued": "in the queue",
    "no_worker": "without a suitable worker",
    "others": "behind other root spans",
    "lost": "for work that was lost",
    "input": "until inputs had arrived",
    "dispatch": "until a worker began",
    "unfinished": "after the last task that ended",
}
