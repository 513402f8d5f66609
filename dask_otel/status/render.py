"""Draws a run as HTML: as a page of the scheduler's HTTP server, and as a document inside a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tornado.template import Loader

from ..schema import shorten
from . import texts
from .waterfall import MAX_ERRORS, Waterfall, waterfall

__all__ = ["TEXTS", "Inline", "inline", "page"]

#: Functions of all templates.
TEXTS = {name: getattr(texts, name) for name in texts.__all__} | {"shorten": shorten}

#: Rows, and bytes of HTML, of a document in a notebook, which is saved with it.
MAX_INLINE_ROWS = 120
MAX_INLINE_BYTES = 2**19
#: Pixels of a document: of its heading, of a row, of a line of text below one, and the most.
_TOP, _ROW, _LINE, _MAX_HEIGHT = 130, 28, 21, 700
#: Characters of a text on one line, about.
_ON_A_LINE = 110

_TEMPLATES = Loader(str(Path(__file__).parent))


def page(drawn: Waterfall | None, **values: Any) -> Iterator[bytes]:
    """Yield the parts of ``run.html``."""
    return _parts("run.html", drawn, **values)


class Inline:
    """A document without links to other pages, scripts or files.

    Parameters
    ----------
    html
        The document.
    height
        Pixels that it needs at first, about.
    drawn
        What it shows.
    """

    def __init__(self, html: str, height: int, drawn: Waterfall) -> None:
        self.html = html
        self.height = height
        self.drawn = drawn


def inline(spans: Sequence[Mapping[str, Any]], left_out: int) -> Inline | None:
    """Draw a run for a notebook. If it is too large, the last spans are left out; None if the first is too large.

    Parameters
    ----------
    spans
        At least one; those that are worth most first.
    left_out
        Number of spans of the run that are not there.
    """
    spans = _causes_first(spans)
    count = min(len(spans), MAX_INLINE_ROWS)
    while count:
        drawn = waterfall(spans[:count])
        parts = _parts("inline.html", drawn, left_out=left_out + len(spans) - count, show=None)
        html = b"".join(parts)
        if len(html) <= MAX_INLINE_BYTES:
            return Inline(html.decode(), _height(drawn), drawn)
        count = count * 3 // 4
    return None


def _causes_first(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put the first span, and what failed first with what is around it, before all others."""
    by_id = {span["id"]: span for span in spans}
    first = {spans[0]["id"]: spans[0]}
    for each in waterfall(spans).errors:
        id_, path = each.row.id, []
        while id_ in by_id and id_ not in first and by_id[id_] not in path:
            path.append(by_id[id_])
            id_ = by_id[id_]["parent"]
        first |= {span["id"]: span for span in reversed(path)}
    return [*first.values(), *(span for span in spans if span["id"] not in first)]


def _parts(template: str, drawn: Waterfall | None, **values: Any) -> Iterator[bytes]:
    html = _TEMPLATES.load(template).generate(**TEXTS, waterfall=drawn, max_errors=MAX_ERRORS, **values)
    before, _, after = html.partition(b"<!-- rows -->")
    yield before
    rows = _TEMPLATES.load("rows.html")
    for some in drawn.parts() if drawn else ():  # in one template, the pieces of all rows would take 40 MiB
        yield rows.generate(rows=some)
    yield after


def _height(drawn: Waterfall) -> int:
    """Estimate the height of a document of which some rows are closed."""
    height, closed_at = _TOP, len(drawn.rows)
    for row in drawn.rows:
        if row.depth <= closed_at:
            attributes = row.is_open and row.kind != "more"
            height += _ROW + (_LINE if row.error else 0) + (_ROW if attributes else 0)
            closed_at = len(drawn.rows) if row.is_open else row.depth
    for each in drawn.reasons:
        lines = [bool(each.verdict), len(each.verdict) > 1, bool(each.hints), 2 * bool(each.path)]
        lines.append(sum(len(piece) for piece, _ in each.text) // _ON_A_LINE)
        height += 7 * _LINE + _ROW * sum(lines) + (3 * _LINE + _LINE * len(each.parts) // 3 if each.parts else 0)
    height += 3 * _LINE * len(drawn.errors[:1]) + 2 * _LINE * len(drawn.errors[:MAX_ERRORS])
    height += _LINE * len(drawn.errors[MAX_ERRORS : MAX_ERRORS + 1])
    return min(height, _MAX_HEIGHT)
