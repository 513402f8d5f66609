"""What a comparison of runs says: sentences, and texts for the rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..status.texts import duration, number_of, utc
from .run_texts import GAPS, NOT_EXPLAINED, PARTS, percent, plain, seconds, signed, signed_percent

if TYPE_CHECKING:  # these need pandas
    from ..analysis.compare import Change, Comparison, Explained, StepChange

__all__ = [
    "DIFFERENCE_COLUMNS",
    "STEP_COLUMNS",
    "Difference",
    "differences",
    "outcome",
    "sides",
    "steps",
    "summary",
    "title",
]

#: Heads of the columns of steps.
STEP_COLUMNS = ("tasks", "compute", "a task", "on the path", "open for", "")
#: Parts, and places on the critical path, that are shown.
MAX_ROWS = 10
#: Heads of the columns of differences.
DIFFERENCE_COLUMNS = ("before", "after", "difference", "of the whole", "")
#: Of the whole difference, what is not worth a row, and what is worth a sentence; and of the whole time, what is worth
#: no row.
_SMALL = 0.01
_CHIEF = 0.1
_TINY = 0.001


def title(comparison: Comparison) -> str:
    """Say in a line what came out."""
    names = dict.fromkeys(plain(runs[0].root) for runs in (comparison.before, comparison.after))
    change = comparison.seconds
    times = f"{duration(change.old)} → {duration(change.new)} ({signed(change.difference)})"
    return f"{' → '.join(names)}: {_in_words(change)}, {times}"


def _in_words(change: Change) -> str:
    """Say whether it is slower, and by how much."""
    ratio = change.ratio
    if not change.difference:
        return "the same time"
    words = "slower" if change.difference > 0 else "faster"
    if ratio is not None:
        words = f"{signed_percent(abs(ratio)).lstrip('+')} {words}"
    return f"{words}, which can be chance" if change.is_noise else words


def sides(comparison: Comparison) -> list[tuple[str, ...]]:
    """Describe the runs of each side."""
    rows: list[tuple[str, ...]] = []
    for name, runs in (("before", comparison.before), ("after", comparison.after)):
        times = sorted(run.seconds for run in runs)
        spread = f"{duration(times[0])} … {duration(times[-1])}" if len(runs) > 1 else duration(times[0])
        threads = sorted({f"{run.threads:.3g}" for run in runs if run.threads})
        tasks = sorted({run.tasks for run in runs if run.tasks is not None})
        rows.append(
            (
                name,
                number_of(len(runs), "run"),
                spread,
                f"{_range([f'{each:,}' for each in tasks])} tasks" if tasks else "",
                f"{_range(threads)} threads" if threads else "",
                f"{utc(runs[0].start)} UTC",
                f"trace {runs[-1].trace_id}" if len(runs) == 1 else f"to {utc(runs[-1].start)} UTC",
            )
        )
    return rows


def _range(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} … {values[-1]}"


def summary(comparison: Comparison) -> list[str]:
    """Say in sentences what the difference is made of, how sure it is, and what could not be compared."""
    change = comparison.seconds
    out = []
    if not change.is_noise and (named := [*_chief(comparison)]):
        out.append(f"Most of it: {', and '.join(named)}.")
    if change.chance is None:
        out.append("With one run a side, nobody can say how much of it is chance.")
    elif change.difference:
        chance = f"{change.chance:.2g}" if change.chance >= 1e-4 else "less than 0.0001"
        few = min(len(comparison.before), len(comparison.after)) < 3
        more = " With fewer than three runs a side it cannot be small." if few and not change.is_noise else ""
        out.append(f"Probability of such a difference by chance: {chance}.{more}")
    threads = comparison.threads
    if threads and abs(threads.difference) >= 0.05 * threads.old:
        out.append(f"The cluster was another one: {threads.old:.3g} threads before, {threads.new:.3g} after.")
    lacking = [
        what
        for what, explained in (("waterfalls", comparison.parts), ("critical paths", comparison.path))
        if explained is None
    ]
    if lacking:
        out.append(
            f"One side has no {' and no '.join(lacking)}: its dask-otel was an older one, or otel.verdicts was false."
        )
    if not comparison.has_common_steps:
        out.append("No step is in both: all spans or tasks have other names.")
    return out


def _chief(comparison: Comparison) -> Iterator[str]:
    """Yield the step or gap and the part that make up most of the difference, if they are worth a word."""
    whole = comparison.seconds.difference
    for explained, where in ((comparison.path, "on the critical path"), (comparison.parts, "by what the threads did")):
        if explained and whole:
            name, change = next(iter(explained.changes.items()))
            if change.difference / whole >= _CHIEF:
                yield f"{plain(name)} ({signed(change.difference)}) {where}"


@dataclass(frozen=True)
class Difference:
    """A row: a part, a step or gap, or what is left."""

    name: str
    #: Seconds; None for what is left.
    old: float | None
    new: float | None
    #: For the columns ``DIFFERENCE_COLUMNS``.
    cells: tuple[str, ...]


def differences(comparison: Comparison, explained: Explained | None) -> list[Difference]:
    """Return the rows worth showing, and what is left; none if nothing is different."""
    if explained is None:
        return []
    whole, before = comparison.seconds.difference, comparison.seconds.old
    least = max(_SMALL * abs(whole), _TINY * before)
    largest = sorted(explained.changes.items(), key=lambda item: -abs(item[1].difference))[:MAX_ROWS]
    shown = {name for name, change in largest if abs(change.difference) > least}

    def share(value: float) -> str:
        return percent(value / whole) if abs(whole) > _SMALL * before else ""

    rows = []
    for name, change in explained.changes.items():
        if name in shown:
            meaning = PARTS.get(name) or GAPS.get(name.removeprefix("gap: "), "")
            numbers = (seconds(change.old), seconds(change.new), signed(change.difference), share(change.difference))
            remark = ", ".join(filter(None, ("can be chance" if change.is_noise else "", meaning)))
            rows.append(Difference(name, change.old, change.new, (*numbers, remark)))
    others = sum(change.difference for name, change in explained.changes.items() if name not in shown)
    for name, value in (("smaller differences", others), (NOT_EXPLAINED, explained.rest)):
        if abs(value) > _TINY * before:
            rows.append(Difference(name, None, None, ("", "", signed(value), share(value), "")))
    return rows


def steps(comparison: Comparison, most: int) -> tuple[list[tuple[StepChange, list[str]]], int]:
    """Return the steps with texts for their columns, and how many there are besides."""
    rows = []
    for step in comparison.steps[:most]:
        remark = "new" if step.is_new else "gone" if step.is_gone else ""
        rows.append(
            (
                step,
                [
                    _arrow(step.tasks, lambda count: f"{count:,.0f}"),
                    _arrow(step.compute, duration),
                    _each(step),
                    _arrow(step.critical, duration),
                    _arrow(step.seconds, duration),
                    remark,
                ],
            )
        )
    return rows, max(0, len(comparison.steps) - most)


def _arrow(change: Change | None, text: Callable[[float], str]) -> str:
    if change is None:
        return ""
    old, new = text(change.old), text(change.new)
    return old if old == new else f"{old} → {new}"


def _each(step: StepChange) -> str:
    """Return the compute time per task."""
    if not step.compute or not step.tasks:
        return ""
    old, new = (
        duration(compute / tasks) if tasks else ""
        for compute, tasks in ((step.compute.old, step.tasks.old), (step.compute.new, step.tasks.new))
    )
    return old if old == new or not new else f"{old} → {new}" if old else new


def outcome(comparison: Comparison, allowed: float) -> str:
    """Say whether the new runs are slower than allowed."""
    change = comparison.seconds
    limit = f"{allowed * 100:g}%"
    if comparison.is_slower(allowed):
        return f"Failed: slower than the {limit} that are allowed."
    if change.difference > allowed * change.old:
        return f"Passed: slower than the {limit} that are allowed, but that can be chance."
    return f"Passed: not slower than the {limit} that are allowed."
