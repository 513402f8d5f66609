"""Two runs compared, or several of each: what got slower, by which part of the waterfall and by which step.

Steps are aligned by span path below the root and prefix, because ids and keys differ between runs. With several runs a
side, each number is the mean of the runs in the middle: those that took neither longest nor shortest. So one run that
took very long counts for nothing, and yet numbers add up: the differences of all parts, and those of all that is on the
critical path, sum to the whole difference together with ``rest``, which is 0 but where traces lack parts or paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from ..schema import WATERFALL
from .noise import chance, is_noise
from .run import Run, RunStep, below_root

__all__ = ["Change", "Comparison", "Explained", "StepChange", "compare"]


@dataclass(frozen=True)
class Change:
    """A number in the runs of both sides, at least one of each, those that took longest last."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @cached_property
    def old(self) -> float:
        """Mean of the old runs in the middle."""
        return _middle(self.before)

    @cached_property
    def new(self) -> float:
        """Mean of the new runs in the middle."""
        return _middle(self.after)

    @property
    def difference(self) -> float:
        """How much more it is in the new runs."""
        return self.new - self.old

    @property
    def ratio(self) -> float | None:
        """How much more it is, as a part of what it was; None if it was nothing."""
        return self.difference / self.old if self.old else None

    @cached_property
    def chance(self) -> float | None:
        """How likely such a difference is by chance; None if there is one run a side."""
        if len(self.before) == len(self.after) == 1:
            return None
        return chance(*self._in_order) if self.difference else 1.0

    @cached_property
    def is_noise(self) -> bool | None:
        """Whether the difference can be chance; None if there is one run a side."""
        if self.chance is None:
            return None
        return not self.difference or is_noise(*self._in_order)

    @property
    def _in_order(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The side with the smaller numbers, and the other one."""
        return (self.before, self.after) if self.difference > 0 else (self.after, self.before)


def _middle(values: Sequence[float]) -> float:
    """Return the mean without the first and the last quarter; from three values on, without one of each at least."""
    cut = max(len(values) // 4, int(len(values) >= 3))
    return fmean(values[cut : len(values) - cut])


@dataclass(frozen=True)
class Explained:
    """A difference, divided."""

    #: By name, the largest in the direction of the whole first.
    changes: Mapping[str, Change]
    #: What the changes do not explain.
    rest: float


@dataclass(frozen=True)
class StepChange:
    """A step in both sides. A number is None if a side does not know it."""

    #: ``span path / prefix`` below the root.
    label: str
    is_new: bool
    is_gone: bool
    tasks: Change | None
    compute: Change | None
    #: Time in which one of its groups was open.
    seconds: Change | None
    #: Time on the critical path.
    critical: Change | None
    longest: Change | None


@dataclass(frozen=True)
class Comparison:
    """Runs before and after a change."""

    before: Sequence[Run]
    after: Sequence[Run]
    seconds: Change
    threads: Change | None
    tasks: Change | None
    #: By part of the waterfall; None if a side has none.
    parts: Explained | None
    #: By label of a step and by gap, ``gap: queued``; None if a side has no critical path.
    path: Explained | None
    #: Those that cost most of the difference first.
    steps: Sequence[StepChange]

    def is_slower(self, allowed: float) -> bool:
        """Return whether the new runs took longer by more than a part of the old ones' time, and not by chance."""
        return self.seconds.difference > allowed * self.seconds.old and self.seconds.is_noise is not True

    @property
    def has_common_steps(self) -> bool:
        """Whether a step is in both; true if a side has no steps at all."""
        new = [step.is_new for step in self.steps]
        gone = [step.is_gone for step in self.steps]
        return all(new) or all(gone) or not all(map(any, zip(new, gone, strict=True)))


#: Before the cause of a gap; and what the path has besides the steps that traces name.
GAP = "gap: "
OTHER_STEPS = "other steps"


def compare(before: Sequence[Run], after: Sequence[Run]) -> Comparison:
    """Compare runs; at least one of each side."""
    in_time = before, after
    before, after = (sorted(runs, key=lambda run: run.seconds) for runs in in_time)
    seconds = Change(tuple(run.seconds for run in before), tuple(run.seconds for run in after))
    parts = path = None
    if (old := [run for run in before if run.parts]) and (new := [run for run in after if run.parts]):
        parts = _explained(seconds, WATERFALL, [run.parts for run in old], [run.parts for run in new])
    if (old := [run for run in before if run.path]) and (new := [run for run in after if run.path]):
        on_path = [[_on_path(run) for run in runs] for runs in (old, new)]
        names = dict.fromkeys(name for runs in on_path for run in runs for name in run)
        path = _explained(seconds, names, *on_path)
    return Comparison(
        before=in_time[0],
        after=in_time[1],
        seconds=seconds,
        threads=_change([run.threads for run in before], [run.threads for run in after]),
        tasks=_change([run.tasks for run in before], [run.tasks for run in after]),
        parts=parts,
        path=path,
        steps=_steps(before, after, seconds.difference),
    )


def _change(before: Iterable[float | None], after: Iterable[float | None]) -> Change | None:
    """Compare what is known, of runs in the order of their times; None if a side knows nothing."""
    old = tuple(value for value in before if value is not None)
    new = tuple(value for value in after if value is not None)
    return Change(old, new) if old and new else None


def _explained(
    whole: Change, names: Iterable[str], before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]
) -> Explained:
    changes = {
        name: Change(tuple(run.get(name, 0.0) for run in before), tuple(run.get(name, 0.0) for run in after))
        for name in names
        if any(name in run for run in (*before, *after))
    }
    sign = -1 if whole.difference < 0 else 1
    ordered = sorted(changes.items(), key=lambda item: (-sign * item[1].difference, item[0]))
    return Explained(dict(ordered), whole.difference - sum(change.difference for change in changes.values()))


def _on_path(run: Run) -> dict[str, float]:
    """Return the seconds of all that is on a run's critical path."""
    path = run.path
    if path is None:
        return {}
    out = {below_root(label, run.root): seconds for label, seconds in path.steps.items()}
    if path.other_steps > 1e-9 * path.seconds:
        out[OTHER_STEPS] = path.other_steps
    return out | {GAP + cause: path.gaps[cause] for cause in path.gaps}


def _steps(before: Sequence[Run], after: Sequence[Run], whole: float) -> list[StepChange]:
    old, new = (
        [{below_root(step.label, run.root): step for step in run.steps} for run in runs] for runs in (before, after)
    )
    old_path, new_path = ([_on_path(run) for run in runs] for runs in (before, after))
    out = []
    for label in dict.fromkeys(label for run in (*old, *new) for label in run):
        ours, theirs = [run.get(label) for run in old], [run.get(label) for run in new]
        out.append(
            StepChange(
                label=label,
                is_new=not any(ours),
                is_gone=not any(theirs),
                **{
                    name: _change((_number(step, name) for step in ours), (_number(step, name) for step in theirs))
                    for name in ("tasks", "compute", "seconds", "longest")
                },
                critical=_change(
                    (_seconds_on(path, label) for path in old_path), (_seconds_on(path, label) for path in new_path)
                ),
            )
        )  # fmt: skip
    sign = -1 if whole < 0 else 1

    def cost(step: StepChange) -> tuple[float, float, str]:
        by_path, by_compute = (each.difference if each else 0.0 for each in (step.critical, step.compute))
        return -sign * by_path, -sign * by_compute, step.label

    return sorted(out, key=cost)


def _number(step: RunStep | None, name: str) -> float | None:
    """Return a number of a step; None if its trace lacks it. A run without the step has nothing of it."""
    return getattr(step, name) if step else None if name == "longest" else 0.0


def _seconds_on(path: Mapping[str, float], label: str) -> float | None:
    """Return the seconds of a step on a path: nothing if it is not on it, None if the path does not name all steps."""
    return path.get(label, None if not path or OTHER_STEPS in path else 0.0)
