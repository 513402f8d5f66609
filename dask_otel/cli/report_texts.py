"""What a report says of a run: sentences, and texts for the rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..diagnosis.findings import FINDINGS, HINTS
from ..schema import typed_error
from ..status.texts import duration, number_of
from .run_texts import EDGES, GAPS, NOT_EXPLAINED, OTHER_STEPS, PARTS, percent, plain

if TYPE_CHECKING:  # these need pandas
    from ..analysis.run import Run, RunStep

__all__ = ["STEP_COLUMNS", "Share", "facts", "failures", "parts", "path", "steps", "why"]

#: Heads of the columns of steps.
STEP_COLUMNS = ("tasks", "compute", "median", "longest", "on the path", "after", "open for")


def facts(run: Run) -> str:
    """Say in a line what a run was."""
    tasks = "" if run.tasks is None else f", {number_of(run.tasks, 'task')}"
    failed = f" ({run.failed:,} failed)" if run.failed else ""
    threads = f", {run.threads:.3g} threads" if run.threads else ""
    return f"{plain(run.result) or 'result unknown'}, took {duration(run.seconds)}{tasks}{failed}{threads}"


def why(run: Run) -> list[str]:
    """Say in sentences why a run took as long as it did, or why there is no verdict."""
    verdict = run.verdict
    withheld = plain("; ".join(verdict.withheld))
    if verdict.ids:
        out = [f"{plain(verdict.ids[0])}: {plain(verdict.text)}"]
        if verdict.at_most is not None:
            share = f", {percent(verdict.at_most / run.seconds)} of the time" if run.seconds else ""
            what = f"one of the {run.segments} segments of the run" if run.segments > 1 else "the run"
            out.append(f"Without it, {what} would be {duration(verdict.at_most)} faster at most{share}.")
        if verdict.ids[1:]:
            out.append(f"Next: {_explained(verdict.ids[1:])}.")
        if withheld:
            out.append(f"No verdict on a part of it: {withheld}")
    elif withheld:
        out = [f"No verdict: {withheld}"]
    elif run.parts:
        out = [
            "Nothing stands out: no cause took much of the time, or the run was too short or had too few tasks to be "
            "judged."
        ]
    else:
        out = [
            "No verdict: the trace has no waterfall. Its dask-otel was an older one, or otel.verdicts was false there."
        ]
    if verdict.hints:
        out.append(f"Also noticed: {_explained(verdict.hints)}.")
    return out


def _explained(ids: Sequence[str]) -> str:
    """Name findings or hints, with what they mean."""
    known = HINTS | {id_: finding.meaning for id_, finding in FINDINGS.items()}
    meanings = ((plain(id_), known.get(id_)) for id_ in ids)
    return "; ".join(f"{id_} ({meaning})" if meaning else id_ for id_, meaning in meanings)


class Share(NamedTuple):
    """A part of a run's time: what it is, and its wall seconds."""

    name: str
    seconds: float
    meaning: str
    is_gap: bool = False


def parts(run: Run) -> list[Share]:
    """Return the parts of a run's waterfall, the largest first."""
    if not run.parts:
        return []
    out = [Share(name, value, PARTS[name]) for name, value in run.parts.items() if value]
    out.sort(key=lambda share: -share.seconds)
    return _with_rest(run, out, "the waterfall of a segment is missing")


def path(run: Run) -> list[Share]:
    """Return what is on a run's critical path, the longest first."""
    if run.path is None:
        return []
    out = []
    for label, value in run.path.steps.items():
        edges = run.path.step_edges.get(label, {})
        out.append(Share(label, value, ", ".join(f"{duration(each)} {EDGES[edge]}" for edge, each in edges.items())))
    out += [Share(f"gap: {cause}", value, GAPS[cause], is_gap=True) for cause, value in run.path.gaps.items() if value]
    out.sort(key=lambda share: -share.seconds)
    if _is_more_than_rounding(run.path.other_steps, run):
        out.append(Share(OTHER_STEPS, run.path.other_steps, "the trace does not say how long each"))
    return _with_rest(run, out, "the critical path of a segment is missing")


def _with_rest(run: Run, shares: list[Share], reason: str) -> list[Share]:
    rest = run.seconds - sum(share.seconds for share in shares)
    return [*shares, Share(NOT_EXPLAINED, rest, reason)] if _is_more_than_rounding(rest, run) else shares


def _is_more_than_rounding(value: float, run: Run) -> bool:
    return abs(value) > max(1e-3, 1e-3 * run.seconds)


def steps(run: Run, most: int) -> tuple[list[tuple[RunStep, list[str]]], int]:
    """Return the most costly steps in order of time, the texts for their columns, and how many there are besides.

    The columns: tasks, compute time, median, longest, critical path, when it began and how long it was open.
    """
    on_path = run.path.steps if run.path else {}
    costly = sorted(run.steps, key=lambda step: (-on_path.get(step.label, 0.0), -(step.compute or 0.0), step.start))
    chosen = {step.label for step in costly[:most]}
    return [
        (
            step,
            [
                "" if step.tasks is None else f"{step.tasks:,}",
                "" if step.compute is None else duration(step.compute),
                _median(step),
                "" if step.longest is None else duration(step.longest),
                duration(on_path[step.label]) if step.label in on_path else "",
                duration(step.start - run.start),
                duration(step.seconds),
            ],
        )
        for step in run.steps
        if step.label in chosen
    ], len(run.steps) - len(chosen)


def _median(step: RunStep) -> str:
    if step.p50 is None:
        return ""
    low, high = map(duration, step.p50)
    return low if low == high else f"{low} … {high}"


def failures(run: Run, most: int) -> list[str]:
    """Describe what failed, the most frequent first."""
    lines = [
        f"{label}: {typed_error(type_, message)}" + (f" ({count:,} tasks)" if count > 1 else "")
        for label, type_, message, count in (
            (plain(each.label), plain(each.type), plain(each.message), each.tasks) for each in run.failures[:most]
        )
    ]
    if len(run.failures) > most:
        lines.append(f"{number_of(len(run.failures) - most, 'more kind')} of failures")
    if run.failures_without_span:
        lines.append(f"{number_of(run.failures_without_span, 'failed task')} without a span")
    return lines or [plain(error) for error in run.errors[:most]]
