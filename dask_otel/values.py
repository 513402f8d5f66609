"""What a setting's value may be: each returns it checked, or raises a ``SettingError`` that says what is allowed.

A value comes from a YAML file, from ``dask.config.set``, or from the environment. Dask reads a variable as Python and
leaves as text what is none: ``[team]`` and ``1s,5s`` arrive here as texts, ``1.5`` as a number.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Collection
from datetime import date
from itertools import pairwise
from typing import Any

import yaml
from dask.utils import parse_timedelta

from .errors import SettingError
from .patterns import is_quick

__all__ = ["bounds", "duration", "names", "names_of", "one_of", "rewriting", "template", "text", "whole", "yes_or_no"]

#: Of a histogram; each bound is a series more for each label.
MAX_BOUNDS = 30


def text(value: Any, name: str) -> str | None:
    """A text, or nothing."""
    if value is None:
        return None
    written = _as_text(value)
    if written is None:
        raise SettingError(name, value, "a text")
    return written or None


def _as_text(value: Any) -> str | None:
    """A text without blanks around it, also of a number, a truth value or a date; None of anything else.

    How a number was written is lost by then: ``1.50`` is ``1.5``.
    """
    return str(value).strip() if isinstance(value, (str, int, float, date)) else None


def _items(value: Any) -> list[Any] | None:
    """The items of a list in YAML's or Python's form, or of a text with commas; of anything else, a list of just that.

    Returns
    -------
    None if it is meant to be a list and cannot be read.
    """
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if not isinstance(value, str):
        return [value]
    written = value.strip()
    try:
        parsed = ast.literal_eval(written)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass
    else:
        if isinstance(parsed, (list, tuple, set, str)):
            return [parsed] if isinstance(parsed, str) else _items(parsed)
    if in_parentheses := re.fullmatch(r"\(([^()]*)\)", written):
        written = f"[{in_parentheses[1]}]"
    elif not written.startswith(("[", "- ")):
        written = f"[{written}]"
    try:
        # The base loader leaves each item as it is written: a team may be called 007, or on.
        parsed = yaml.load(written, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        return None
    return parsed if isinstance(parsed, list) else None


def _is_bare(value: Any) -> bool:
    """Whether a value is a text with neither brackets nor quotes."""
    return isinstance(value, str) and not value.strip().startswith(("[", "(", "{", "- ", "'", '"'))


#: The page shows links to everybody.
_PASSWORD = re.compile(r"//[^/]*@")


def template(value: Any, name: str, *, required: bool = False) -> str | None:
    """A link with a place for a trace's id."""
    if isinstance(value, str):
        value = value.strip()
    if value in (None, "") and not required:
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
    """A list of any names, each once."""
    items = _items(value)
    given = [_as_text(item) for item in items] if items is not None else [None]
    # Without a comma between them, blanks would make one name of several, which exists nowhere.
    if None in given or (_is_bare(value) and any(re.search(r"\s", item or "") for item in given)):
        raise SettingError(name, value, f"a list of names, e.g. {example}")
    return tuple(dict.fromkeys(item for item in given if item))


def one_of(*words: str) -> Callable[[Any, str], str]:
    """One of some words."""

    def parse(value: Any, name: str) -> str:
        # YAML, and Dask in the environment, read ``off`` and ``false`` as a truth value.
        word = "off" if value is False else str(value).strip().lower()
        if word not in words:
            raise SettingError(name, value, "one of " + ", ".join(words))
        return word

    return parse


_SAID = dict.fromkeys(("true", "yes", "on", "1", "y", "t"), True) | dict.fromkeys(
    ("false", "no", "off", "0", "n", "f"), False
)


def yes_or_no(value: Any, name: str) -> bool:
    """True or false, as YAML and the environment write it."""
    try:
        return _SAID[str(value).strip().lower()]
    except KeyError:
        raise SettingError(name, value, "true or false") from None


def whole(low: int, high: int) -> Callable[[Any, str], int]:
    """A whole number, however it is written: ``500``, ``"500"``, ``500.0``, ``5e2``."""

    def parse(value: Any, name: str) -> int:
        try:
            number = None if isinstance(value, bool) else float(value)
        except (ValueError, TypeError, OverflowError):
            number = None
        if number is None or not low <= number <= high or not number.is_integer():
            raise SettingError(name, value, f"a whole number from {low} to {high}")
        return int(number)

    return parse


def duration(low: str, high: str) -> Callable[[Any, str], float]:
    """A time, in seconds."""

    def parse(value: Any, name: str) -> float:
        allowed = f"a time between {low} and {high}, e.g. 5s or 1m"
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
        given = [each.lower() for each in names(value, name, f"[{min(known)}]")]
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
    items = _items(value)
    if items is None or not 1 <= len(items) <= MAX_BOUNDS:
        raise SettingError(name, value, allowed)
    try:
        ends = tuple(duration("1us", "3650 days")(each, name) for each in items)
    except SettingError:
        raise SettingError(name, value, allowed) from None
    if any(low >= high for low, high in pairwise(ends)):
        raise SettingError(name, value, allowed)
    return ends


def rewriting(value: Any, name: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """A list of pairs: a regular expression, and what a name that matches it as a whole becomes."""
    allowed = """a list of pairs of a regular expression and a name, e.g. [["(.*)'s workflow", "workflow"]]"""
    items = _pairs(value)
    if items is None:
        raise SettingError(name, value, allowed)
    pairs = []
    for written, becomes in items:
        try:
            pattern = re.compile(written)
            _check_name(pattern, becomes)
        except (re.error, IndexError, RecursionError, OverflowError) as error:
            raise SettingError(name, [written, becomes], f"{allowed}; {error}") from None
        if not is_quick(written):
            quick = "at most two of * and +, few of ? and |, and none of them inside of what is repeated"
            raise SettingError(name, [written, becomes], f"{allowed}; this one could hold up the scheduler: {quick}")
        pairs.append((pattern, becomes))
    return tuple(pairs)


def _pairs(value: Any) -> list[tuple[str, str]] | None:
    """Pairs of texts, given as a list of pairs or as one pair; None if they are something else."""
    # Not a text with commas, nor one in parentheses: an expression may have both.
    if isinstance(value, str) and not re.match(r"\[|- |\(['\"(]|$", value.strip()):
        return None
    items = _items(value)
    if items is None:
        return None
    if len(items) == 2 and not any(isinstance(item, (list, tuple)) for item in items):
        items = [items]  # one pair
    pairs = []
    for item in items:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            return None
        # A pattern may begin or end with a blank.
        pattern, becomes = (each if isinstance(each, str) else _as_text(each) for each in item)
        if pattern is None or becomes is None:
            return None
        pairs.append((pattern, becomes))
    return pairs


def _check_name(pattern: re.Pattern[str], name: str) -> None:
    """Fail if a name refers to groups that a pattern does not have."""
    names = {number: group for group, number in pattern.groupindex.items()}
    groups = "".join(f"(?P<{names[n]}>)" if n in names else "()" for n in range(1, pattern.groups + 1))
    match = re.match(groups, "")
    if match:
        match.expand(name)
