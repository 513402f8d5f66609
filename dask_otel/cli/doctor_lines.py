"""Prints what the doctor has found: one line for each finding, the most serious first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import click
from rich.console import Console
from rich.text import Text

from .run_texts import plain

__all__ = ["Finding", "Findings", "WrappedError", "make_console", "print_wrapped", "reported"]

#: Characters of what a server or a connection reported.
MAX_REPORTED = 160
_FAULT, _GOOD, _REMARK = "✗", "✓", "·"
_STYLES = {_FAULT: "bold red", _GOOD: "bold green", _REMARK: ""}


class Finding(NamedTuple):
    """A line, and what else is known of it, each on an indented line of its own."""

    text: str
    details: Sequence[str] = ()


class Findings:
    """What was found: faults, what works, and remarks about what is neither."""

    def __init__(self) -> None:
        self.faults: list[Finding] = []
        self.good: list[Finding] = []
        self.remarks: list[Finding] = []

    def fault(self, text: str, *details: str) -> None:
        """Add a fault."""
        self.faults.append(Finding(text, details))

    def works(self, text: str, *details: str) -> None:
        """Add something that works."""
        self.good.append(Finding(text, details))

    def remark(self, text: str, *details: str) -> None:
        """Add a remark."""
        self.remarks.append(Finding(text, details))

    def print(self, console: Console) -> None:
        """Print all lines."""
        for mark, findings in ((_FAULT, self.faults), (_GOOD, self.good), (_REMARK, self.remarks)):
            for each in findings:
                print_wrapped(console, f"{mark} {each.text}", "  ", _STYLES[mark])
                for detail in each.details:
                    print_wrapped(console, f"  {detail}", "    ")


def make_console(*, stderr: bool = False) -> Console:
    """Make a console that neither colours numbers nor wraps lines itself."""
    return Console(highlight=False, soft_wrap=True, stderr=stderr)


def reported(message: str) -> str:
    """Return what a server or a connection reported, as a detail."""
    return f"reported: {message if len(message) <= MAX_REPORTED else message[: MAX_REPORTED - 1] + '…'}"


def print_wrapped(console: Console, text: str, indent: str = "", mark_style: str = "") -> None:
    """Print a line; on a terminal, wrap it between words at the terminal's width.

    Elsewhere it stays one line, for programs that read it.

    Parameters
    ----------
    indent
        Of the lines after the first.
    mark_style
        Style of the first character.
    """
    if console.is_terminal:
        text = textwrap.fill(
            text, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    console.print(Text.assemble((text[0], mark_style), text[1:]) if mark_style else Text(text))


class WrappedError(click.ClickException):
    """An error that a terminal wraps between words. What a file or a server says in it cannot control the terminal."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it on the standard error."""
        print_wrapped(make_console(stderr=True), f"Error: {plain(self.format_message())}")
