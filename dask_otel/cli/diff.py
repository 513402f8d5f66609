"""``dask-otel diff``: what got slower between two runs, or between several of each, by which step and which part."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..status.texts import number_of
from .diff_texts import DIFFERENCE_COLUMNS, STEP_COLUMNS, differences, outcome, sides, steps, summary, title
from .doctor_lines import make_console, print_wrapped
from .run_texts import fit, plain, table
from .sources import BadSourceError, Filters, find, source_options

if TYPE_CHECKING:  # these need pandas
    from ..analysis.compare import Change, Comparison, Explained
    from ..analysis.run import Run

__all__ = ["diff"]

#: Steps that are shown at first, and characters of names.
MAX_STEPS = 10
_NAME = 50


def _percentage(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read ``10%`` as 0.1."""
    if value is None:
        return None
    number = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,9})?)\s*%\s*", value)
    if not number:
        raise click.BadParameter(f"{value!r} is no percentage from 0% up, such as 10%")
    return float(number[1]) / 100


@click.command()
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@source_options
@click.option(
    "--fail-if-slower", "allowed", callback=_percentage, metavar="10%",
    help="Exit with 1 if AFTER took longer by more than this, and not by chance.",
)  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page that can be sent.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option("--all", "shows_all", is_flag=True, help="Print all steps.")
def diff(**options: Any) -> None:
    """Compare runs before and after a change.

    BEFORE and AFTER are ids of traces, names of root spans (etl@2: the run before the latest; etl@2-6: five runs),
    files or folders, of which all runs count; several of these with commas between. With several runs, those in the
    middle are compared, and a difference that can be chance does not count.

    Exit codes: 0 not slower, 1 slower than --fail-if-slower allows, 2 no comparison.
    """
    try:
        slower = _diff(**options)
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001  Python would exit with 1, which means "slower"
        traceback.print_exc()
        sys.exit(2)
    sys.exit(1 if slower else 0)


def _diff(
    before: str,
    after: str,
    source: str | None,
    service: str | None,
    root: str | None,
    allowed: float | None,
    html: Path | None,
    *,
    as_json: bool,
    shows_all: bool,
) -> bool:
    """Print the comparison; return whether the new runs are slower than allowed."""
    from ..analysis.compare import compare

    filters = Filters(source, service, root)
    old, new = find(before, filters).runs, find(after, filters).runs
    old, new = _of_one_root(before, after, old, new)
    old, new = (_that_succeeded(name, runs, allowed) for name, runs in ((before, old), (after, new)))
    comparison = compare(old, new)
    if not comparison.has_common_steps and old[0].root != new[0].root:
        raise BadSourceError(
            f"{before} and {after}: {old[0].root!r} and {new[0].root!r} have no step in common, so they are not the "
            "same work: compare runs of the same root span, or of those whose spans and tasks have the same names"
        )
    if html:
        from .documents import diff_document, write

        write(html, diff_document(comparison, allowed))
    slower = allowed is not None and comparison.is_slower(allowed)
    try:
        if as_json:
            click.echo(json.dumps(_data(comparison) | {"is_slower": slower, "allowed": allowed}, indent=2))
        else:
            _print(comparison, allowed, shows_all=shows_all)
    except BrokenPipeError:  # the reader has seen enough; Python would fail again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return slower


def _of_one_root(before: str, after: str, old: Sequence[Run], new: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the runs of the root that both sides have; or of the only one that each has, if its name has changed."""
    ours, theirs = ({run.root for run in runs} for runs in (old, new))
    if len(ours) == len(theirs) == 1:
        return list(old), list(new)
    common = ours & theirs
    if len(common) != 1:
        names = ", ".join(map(repr, sorted(common or ours | theirs)[:10]))
        what = "both have runs of" if common else "they have no root span in common:"
        raise BadSourceError(f"{before} and {after}: {what} {names}; choose one with --root")
    return [run for run in old if run.root in common], [run for run in new if run.root in common]


def _that_succeeded(name: str, runs: Sequence[Run], allowed: float | None) -> list[Run]:
    """Leave out runs that failed or were cut, which take less or more time for other reasons."""
    succeeded = [run for run in runs if run.result in ("success", "")]
    if not succeeded and allowed is not None:
        raise BadSourceError(f"{name}: no run has succeeded ({_results(runs)}), so that its time says nothing")
    if len(succeeded) < len(runs):
        left_out = [run for run in runs if run not in succeeded]
        what = "left out" if succeeded else "compared although it did not succeed"
        click.echo(f"Warning: {name}: {number_of(len(left_out), 'run')} {what}: {_results(left_out)}", err=True)
    return succeeded or list(runs)


def _results(runs: Sequence[Run]) -> str:
    return ", ".join(f"{plain(run.result)} in trace {run.trace_id}" for run in runs[:5]) + " …" * (len(runs) > 5)


def _print(comparison: Comparison, allowed: float | None, *, shows_all: bool) -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack some characters
    console = make_console()
    click.secho(title(comparison), bold=True)
    for line in table(sides(comparison), right={1}):
        click.echo(line)
    click.echo()
    for sentence in summary(comparison):
        print_wrapped(console, sentence)
    sections = (
        ("By what the threads did", _difference_lines(comparison, comparison.parts)),
        ("By what is on the critical path", _difference_lines(comparison, comparison.path)),
        ("By step, those that cost most of the difference first", _step_lines(comparison, shows_all=shows_all)),
    )
    for head, lines in sections:
        if lines:
            click.secho(f"\n{head}", bold=True)
            for line in lines:
                click.echo(f"  {line}")
    if allowed is not None:
        print_wrapped(console, f"\n{outcome(comparison, allowed)}")


def _difference_lines(comparison: Comparison, explained: Explained | None) -> list[str]:
    rows = differences(comparison, explained)
    if not rows:
        return []
    lines = [("", *DIFFERENCE_COLUMNS), *((fit(plain(row.name), _NAME), *row.cells) for row in rows)]
    return table(lines, right={1, 2, 3, 4})


def _step_lines(comparison: Comparison, *, shows_all: bool) -> list[str]:
    if not comparison.steps:
        return []
    rows, left_out = steps(comparison, len(comparison.steps) if shows_all else MAX_STEPS)
    lines = table(
        [["step", *STEP_COLUMNS], *([fit(plain(step.label), _NAME), *texts] for step, texts in rows)],
        right=range(1, len(STEP_COLUMNS)),
    )
    return [*lines, f"{number_of(left_out, 'more step')}: --all"] if left_out else lines


def _data(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data."""

    def change(each: Change | None) -> dict[str, Any] | None:
        if each is None:
            return None
        numbers = {"before": each.old, "after": each.new, "difference": each.difference}
        return numbers | {"chance": each.chance, "can_be_chance": each.is_noise}

    def explained(each: Explained | None) -> dict[str, Any] | None:
        if each is None:
            return None
        return {
            "changes": {name: change(value) for name, value in each.changes.items()},
            "not_explained": each.rest,
        }

    def runs(side: Sequence[Run]) -> list[dict[str, Any]]:
        return [
            {"trace_id": run.trace_id, "root": run.root, "start": run.start, "seconds": run.seconds} for run in side
        ]

    return {
        "before": runs(comparison.before),
        "after": runs(comparison.after),
        **{name: change(getattr(comparison, name)) for name in ("seconds", "threads", "tasks")},
        "parts": explained(comparison.parts),
        "critical_path": explained(comparison.path),
        "steps": [
            {"label": step.label, "is_new": step.is_new, "is_gone": step.is_gone}
            | {name: change(getattr(step, name)) for name in ("tasks", "compute", "seconds", "critical", "longest")}
            for step in comparison.steps
        ],
    }
