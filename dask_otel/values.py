"""What a setting's value may be: each returns it checked, or raises a ``SettingError`` that says what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

from dask.utils import parse_timedelta

from .errors import SettingError
from .patterns import is_quick

__all__ = ["bounds", "duration", "names", "names_of", "one_of", "rewriting", "template", "text", "whole", "yes_or_no"]

#: Of a histogram; each bound is a series more for each label.
MAX_BOUNDS = 30


def text(value: Any, name: str) -> str | None:
    """A text, or nothing."""
    if value is None or isinstance(value, (str, int)):
        return None if value is None else str(value)
    raise SettingError(name, value, "a text")


#: The page shows links to everybody.
_PASSWORD = re.compile(r"//[^/]*@")


def template(value: Any, name: str, *, required: bool = False) -> str | None:
    """A link with a place for a trace's id."""
    if value is None and not required:
        return None
    if (
        isinstance(value, str)
        and "{trace_id}" in value
        and re.match(r"https?://|/", value)
        and not _PASSWORD.search(value)
    ):
        return value
    if isinstance(value, str):
        value = _PASSWORD.sub("//…@", value)
    allowed = "a link with {trace_id} in it and no password, e.g. http://localhost:16686/trace/{trace_id}"
    raise SettingError(name, value, allowed)


def names(value: Any, name: str, example: str = "[team, project]") -> tuple[str, ...]:
    """A list of any names."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise SettingError(name, value, f"a list of names, e.g. {example}")


def one_of(*words: str) -> Callable[[Any, str], str]:
    """One of some words."""

    def parse(value: Any, name: str) -> str:
        if value is False and "off" in words:  # as YAML reads it
            return "off"
        if value not in words:
            raise SettingError(name, value, "one of " + ", ".join(words))
        return str(value)

    return parse


_SAID = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def yes_or_no(value: Any, name: str) -> bool:
    """True or false, as YAML and the environment write it."""
    try:
        return _SAID[str(value).strip().lower()]
    except KeyError:
        raise SettingError(name, value, "true or false") from None


def whole(low: int, high: int) -> Callable[[Any, str], int]:
    """A whole number."""

    def parse(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SettingError(name, value, f"a whole number from {low} to {high}")
        return value

    return parse


def duration(low: str, high: str) -> Callable[[Any, str], float]:
    """A time, in seconds."""

    def parse(value: Any, name: str) -> float:
        allowed = f"a time between {low} and {high}, e.g. 5s or 500ms"
        try:
            seconds = None if isinstance(value, bool) else parse_timedelta(value, default="s")
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
            seconds = None
        # "not (a <= b)" also refuses NaN
        if seconds is None or not parse_timedelta(low) <= seconds <= parse_timedelta(high):
            raise SettingError(name, value, allowed)
        return float(seconds)

    return parse


def names_of(known: Collection[str], what: str) -> Callable[[Any, str], frozenset[str]]:
    """A list of names that exist."""

    def parse(value: Any, name: str) -> frozenset[str]:
        given = names(value, name, f"[{min(known)}]")
        for each in given:
            if each not in known:
                close = difflib.get_close_matches(each, known, n=1)
                hint = f"did you mean {close[0]}?" if close else "e.g. " + ", ".join(sorted(known)[:3])
                raise SettingError(name, value, f"a list of {what}; there is no {each!r} ({hint})")
        return frozenset(given)

    return parse


def bounds(value: Any, name: str) -> tuple[float, ...]:
    """Upper ends of a histogram's buckets, in seconds."""
    allowed = f"a list of at most {MAX_BOUNDS} rising times, e.g. [100ms, 1s, 1m, 1h]"
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_BOUNDS:
        raise SettingError(name, value, allowed)
    try:
        ends = tuple(duration("1us", "3650 days")(each, name) for each in value)
    except SettingError:
        raise SettingError(name, value, allowed) from None
    if any(low >= high for low, high in pairwise(ends)):
        raise SettingError(name, value, allowed)
    return ends


def rewriting(value: Any, name: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """A list of pairs: a regular expression, and what a name that matches it as a whole becomes."""
    allowed = """a list of pairs of a regular expression and a name, e.g. [["(.*)'s workflow", "workflow"]]"""
    if not isinstance(value, (list, tuple)):
        raise SettingError(name, value, allowed)
    pairs = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise SettingError(name, value, allowed)
        try:
            pattern = re.compile(pair[0])
            _check_name(pattern, pair[1])
        except (re.error, IndexError, RecursionError, OverflowError) as error:
            raise SettingError(name, pair, f"{allowed}; {error}") from None
        if not is_quick(pair[0]):
            quick = "at most two of * and +, few of ? and |, and none of them inside of what is repeated"
            raise SettingError(name, pair, f"{allowed}; this one could hold up the scheduler: {quick}")
        pairs.append((pattern, pair[1]))
    return tuple(pairs)


def _check_name(pattern: re.Pattern[str], name: str) -> None:
    """Fail if a name refers to groups that a pattern does not have."""
    names = {number: group for group, number in pattern.groupindex.items()}
    groups = "".join(f"(?P<{names[n]}>)" if n in names else "()" for n in range(1, pattern.groups + 1))
    match = re.match(groups, "")
    if match:
        match.expand(name)
