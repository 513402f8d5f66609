"""What reports of runs and their comparisons say: the words for parts, gaps and results, numbers, and bars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from unicodedata import combining, east_asian_width

from ..status.texts import duration

__all__ = [
    "EDGES",
    "GAPS",
    "NOT_EXPLAINED",
    "OTHER_STEPS",
    "PARTS",
    "bar",
    "cells",
    "fit",
    "percent",
    "plain",
    "seconds",
    "signed",
    "signed_percent",
    "table",
]

#: What threads did, by part of a waterfall.
PARTS = {
    "cpu": "tasks used a core",
    "noncpu": "tasks waited: for the GIL, input or output, a free core",
    "disk": "spilled data was written to disk and read back",
    "serialize": "data was serialised, compressed, and the reverse",
    "p2p": "P2P shuffles",
    "lost": "runs that failed, were cancelled, or were lost with their worker",
    "overhead": "Dask's own work in the worker's threads, around tasks",
    "handed": "a worker had a task, but did not run it yet: inputs on their way, or a busy worker",
    "unaccounted": "workers report more than they can have done: tasks secede",
    "others": "tasks of other root spans",
    "starting": "idle: the cluster had no worker yet",
    "paused": "idle: a worker was paused, its memory nearly full",
    "queued": "idle: tasks were queued on the scheduler",
    "no_worker": "idle: no worker met what tasks ask for",
    "imbalance": "idle: other workers had more tasks than threads",
    "dependencies": "idle: all tasks that were left waited for others",
    "tail": "idle: all tasks that were left ran already",
    "graph": "idle: a graph was sent or taken in",
    "client": "idle: nothing was asked for: think time",
}
#: Why the critical path waited, by cause.
GAPS = {
    "client": "nothing was asked for",
    "graph": "a graph was sent or taken in",
    "report": "a task had ended, and the scheduler did not know it yet",
    "queued": "a task was queued on the scheduler",
    "no_worker": "no worker met what a task asks for",
    "others": "a thread had tasks of other root spans",
    "lost": "work was lost and done again",
    "input": "inputs were on their way",
    "dispatch": "a task was on its way to a worker, or the worker was busy",
    "unfinished": "after the last run that is known",
}
#: What runs on the critical path waited for.
EDGES = {"data": "after their inputs", "thread": "after a thread was free"}
#: What no part explains; and steps on the critical path that a trace does not name.
NOT_EXPLAINED = "not explained"
OTHER_STEPS = "other steps"
#: Eighths of a character cell.
_PARTIAL = " ▏▎▍▌▋▊▉█"


def plain(text: str) -> str:
    """Return a text in one line, without characters that would control a terminal."""
    return "".join(each if each.isprintable() else "�" for each in " ".join(text.split()))


def cells(text: str) -> int:
    """Return how wide a text is on a terminal."""
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def fit(text: str, width: int) -> str:
    """Return a text of this width at most; of a longer one, the start and the end."""
    if cells(text) > width:
        start, end = text[: width // 3], text[width // 3 :]
        while start and cells(start) > width // 3:
            start = start[:-1]
        while cells(start) + 1 + cells(end) > width:
            end = end[1:]
        text = f"{start}…{end}"
    return text


def bar(share: float, width: int) -> str:
    """Draw a part of a whole (0…1)."""
    full, rest = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    return "█" * full + _PARTIAL[rest].strip()


def table(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Return rows as lines with aligned columns.

    Parameters
    ----------
    right
        Numbers of the columns that end at the same place; the others begin there.
    """
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = (
            " " * (width - cells(text)) + text if number in right else text + " " * (width - cells(text))
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return lines


def percent(share: float) -> str:
    """Write a part of a whole."""
    text = "<1%" if 0 < share < 0.005 else f"{share:.0%}"
    return "0%" if text == "-0%" else text


def seconds(value: float) -> str:
    """Write a time, which can be negative."""
    text = duration(abs(value))
    return f"-{text}" if value < 0 and text != "0 s" else text


def signed(value: float) -> str:
    """Write a difference of times."""
    text = seconds(value)
    return text if text.startswith(("-", "0 s")) else f"+{text}"


def signed_percent(share: float) -> str:
    """Write a relative difference, with one digit more if it is small."""
    return f"{share:+.0%}" if abs(share) >= 0.0995 else f"{share:+.1%}"
