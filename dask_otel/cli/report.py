"""``dask-otel report``: why a run took as long as it did, out of its trace."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..status.texts import duration, number_of, utc
from .doctor_lines import make_console, print_wrapped
from .report_texts import STEP_COLUMNS, Share, facts, failures, parts, path, steps, why
from .run_texts import bar, fit, percent, plain, seconds, table
from .sources import Filters, Found, find, source_options

if TYPE_CHECKING:  # it needs pandas
    from ..analysis.run import Run

__all__ = ["report"]

#: Steps, and kinds of failures, that are shown at first.
MAX_STEPS = 15
MAX_FAILURES = 10
#: Characters of a bar, and of names in tables.
_BAR = 24
_NAME = 50


@click.command()
@click.argument("selection", metavar="ID|NAME|FILE")
@source_options
@click.option("--trace", "trace_id", metavar="ID", help="Only runs of this trace, if a file has several.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page that can be sent.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@click.option("--all", "shows_all", is_flag=True, help="Print all steps and failures.")
def report(
    selection: str,
    source: str | None,
    service: str | None,
    root: str | None,
    trace_id: str | None,
    html: Path | None,
    *,
    as_json: bool,
    shows_all: bool,
) -> None:
    """Say why a run took as long as it did.

    The run is given by the id of its trace; or by the name of its root span, which means the latest such run (NAME@2:
    the one before); or by a file or folder with traces, which means the latest run in it.
    """
    found = find(selection, Filters(source, service, root, trace_id))
    run = found.runs[-1]
    if html:
        from .documents import report_document, write

        write(html, report_document(run))
    if as_json:
        click.echo(json.dumps(asdict(run) | {"not_explained": run.not_explained}, indent=2))
    else:
        _print(run, found, shows_all=shows_all)


def _print(run: Run, found: Found, *, shows_all: bool) -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack the characters of bars
    console = make_console()
    click.secho(f"{plain(run.root)}: {facts(run)}", bold=True)
    segments = f" · {run.segments} segments" if run.segments > 1 else ""
    click.echo(f"{utc(run.start)} UTC · trace {run.trace_id} · from {plain(run.service)}{segments}\n")
    for sentence in why(run):
        print_wrapped(console, sentence)
    sections = (
        ("What the threads did", _bars(run, parts(run))),
        ("Critical path: what followed one another, from the first task to the last", _bars(run, path(run))),
        ("Steps, in the order in which they began", _step_lines(run, shows_all=shows_all)),
        ("What failed", _failure_lines(run, shows_all=shows_all)),
        ("Other runs there", _others(run, found)),
    )
    for title, lines in sections:
        if lines:
            click.secho(f"\n{title}", bold=True)
            for line in lines:
                click.echo(f"  {line}")


def _bars(run: Run, shares: Sequence[Share]) -> list[str]:
    whole = run.seconds or 1.0
    rows = [
        (
            fit(plain(share.name), _NAME),
            seconds(share.seconds),
            percent(share.seconds / whole),
            bar(share.seconds / whole, _BAR),
            share.meaning,
        )
        for share in shares
    ]
    return table(rows, right={1, 2})


def _step_lines(run: Run, *, shows_all: bool) -> list[str]:
    if not run.steps:
        return []
    rows, left_out = steps(run, len(run.steps) if shows_all else MAX_STEPS)
    lines = table(
        [["step", *STEP_COLUMNS], *([fit(plain(step.label), _NAME), *texts] for step, texts in rows)],
        right=range(1, len(STEP_COLUMNS) + 1),
    )
    return [*lines, f"{number_of(left_out, 'more step')}, which cost less: --all"] if left_out else lines


def _failure_lines(run: Run, *, shows_all: bool) -> list[str]:
    return failures(run, len(run.failures) if shows_all else MAX_FAILURES)


def _others(run: Run, found: Found) -> list[str]:
    """Say which other runs are in the same trace, and in the same place."""
    others = [each for each in (*found.runs, *found.others) if each is not run]
    lines = [
        f"{plain(each.root)}, in the same trace, took {duration(each.seconds)}: --root {plain(each.root)!r}"
        for each in others
        if each.trace_id == run.trace_id
    ]
    apart = [each for each in others if each.trace_id != run.trace_id]
    counts = Counter(each.root for each in apart)
    latest = {each.root: each for each in sorted(apart, key=lambda each: each.start)}
    for name, count in counts.most_common(10):
        newest = latest[name]
        which = "" if count == 1 else ", the latest of them"
        lines.append(
            f"{number_of(count, 'run')} of {plain(name)}{which} at {utc(newest.start)} UTC in trace {newest.trace_id}"
        )
    return lines
