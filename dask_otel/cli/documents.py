"""Reports and comparisons as one HTML file that can be sent: it loads nothing, and has no scripts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tornado.template import Loader

from .. import __version__
from ..diagnosis.parts import IDLE, PARTS
from ..status.reasons import LINK
from ..status.render import TEXTS
from . import diff_texts, report_texts
from .run_texts import percent, seconds
from .sources import BadSourceError

if TYPE_CHECKING:  # these need pandas
    from ..analysis.compare import Comparison
    from ..analysis.run import Run

__all__ = ["diff_document", "report_document", "write"]

#: Steps, and kinds of failures, of a document.
MAX_STEPS = 200
MAX_FAILURES = 50
#: Colours of parts; idle ones have that of ``idle``.
_COLOURS = {
    "cpu": "work",
    **dict.fromkeys(("noncpu", "lost"), "blocked"),
    **dict.fromkeys(("disk", "serialize", "p2p", "overhead", "handed", "unaccounted"), "dask"),
    "others": "others",
    **dict.fromkeys(IDLE, "idle"),
}


_TEMPLATES = Loader(str(Path(__file__).parents[1]))


class Piece(NamedTuple):
    """A rectangle of a bar: where it begins and how wide it is, in percent."""

    name: str
    colour: str
    left: float
    width: float
    text: str


def write(path: Path, document: bytes) -> None:
    """Write a document.

    Raises
    ------
    BadSourceError
        If the file cannot be written.
    """
    try:
        path.write_bytes(document)
    except OSError as error:
        raise BadSourceError(f"--html {path}: cannot be written: {error.strerror}") from error


def report_document(run: Run) -> bytes:
    """Draw the report of a run."""
    whole = run.seconds or 1.0
    length = (run.end - run.start) or 1.0
    rows, left_out = report_texts.steps(run, MAX_STEPS)
    return _draw(
        "cli/report.html",
        run=run,
        facts=report_texts.facts(run),
        why=[LINK.split(sentence) for sentence in report_texts.why(run)],
        bar=_pieces(run.parts, whole),
        shares=[(share, colour_of(share.name), 100 * share.seconds / whole) for share in report_texts.parts(run)],
        on_path=[(share, 100 * share.seconds / whole) for share in report_texts.path(run)],
        step_columns=report_texts.STEP_COLUMNS,
        steps=[
            (step, texts, 100 * (step.start - run.start) / length, 100 * (step.end - step.start) / length)
            for step, texts in rows
        ],
        left_out=left_out,
        failures=report_texts.failures(run, MAX_FAILURES),
    )


def diff_document(comparison: Comparison, allowed: float | None) -> bytes:
    """Draw the comparison of runs."""
    longest = max(comparison.seconds.old, comparison.seconds.new) or 1.0
    sides = []
    if comparison.parts:
        for name, side in (("before", "old"), ("after", "new")):
            parts = {part: getattr(change, side) for part, change in comparison.parts.changes.items()}
            sides.append((name, getattr(comparison.seconds, side), _pieces(parts, longest)))
    rows, left_out = diff_texts.steps(comparison, MAX_STEPS)
    return _draw(
        "cli/diff.html",
        comparison=comparison,
        heading=diff_texts.title(comparison),
        sides=diff_texts.sides(comparison),
        summary=diff_texts.summary(comparison),
        outcome=None if allowed is None else diff_texts.outcome(comparison, allowed),
        is_slower=allowed is not None and comparison.is_slower(allowed),
        bars=sides,
        tables=[
            (title, found)
            for title, explained in (
                ("By what the threads did", comparison.parts),
                ("By what is on the critical path", comparison.path),
            )
            if (found := diff_texts.differences(comparison, explained))
        ],
        columns=diff_texts.DIFFERENCE_COLUMNS,
        longest=longest,
        step_columns=diff_texts.STEP_COLUMNS,
        steps=rows,
        left_out=left_out,
    )


def _draw(template: str, **values: Any) -> bytes:
    made = datetime.now(timezone.utc).timestamp()
    return _TEMPLATES.load(template).generate(
        **TEXTS, percent=percent, seconds=seconds, version=__version__, made=made, **values
    )


def colour_of(part: str) -> str:
    """Return the name of the colour of a part of a waterfall."""
    return _COLOURS.get(part, "unknown")


def _pieces(parts: Mapping[str, float], whole: float) -> list[Piece]:
    """Put the parts of a waterfall side by side; a negative one has no place there."""
    out, left = [], 0.0
    for name in PARTS:
        width = 100 * parts.get(name, 0.0) / whole
        if width > 0:
            out.append(Piece(name, colour_of(name), left, width, f"{name}: {seconds(parts[name])}"))
            left += width
    return out
