"""Regular expressions that take no time: matching holds the interpreter, and nothing can end it.

What a setting's value may be: each returns it checked, or raises a ``SettingError`` that says what is allowed.

A value comes from a YAML file, from ``dask.config.set``, or from the environment. Dask reads a variable as Python and
leaves as text what is none: ``[team]`` and ``1s,5s`` arrive here as texts, ``1.5`` as a number.

Our own settings: ``otel.yaml`` in Dask's configuration, ``DASK_OTEL__...`` in the environment.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from re import Pattern
from typing import Any, TypeVar

import dask
import yaml
from dask.utils import parse_timedelta

from .errors import SettingError
from .schema import METRICS

if sys.version_info >= (3, 11):
    from re import _constants as constants  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as constants
    import sre_parse as parser

__all__ = [
    "DEFAULTS",
    "Settings",
    "bounds",
    "check_limits",
    "consequence",
    "duration",
    "is_quick",
    "load",
    "names",
    "names_of",
    "one_of",
    "rewriting",
    "template",
    "text",
    "trace_url_template",
    "whole",
    "yes_or_no",
]

#: Characters of the longest name, and ways to divide it that may be tried.
LONGEST = 200
MAX_WAYS = 100_000
_REPEATS = {constants.MAX_REPEAT, constants.MIN_REPEAT, getattr(constants, "POSSESSIVE_REPEAT", None)}


def is_quick(pattern: str) -> bool:
    """Whether a valid pattern is matched quickly, whatever the name."""
    ways = 1
    for kind, content in _parts(parser.parse(pattern)):
        if kind is constants.BRANCH:
            ways *= len(content[1])
        elif kind in _REPEATS:
            least, most, body = content
            ways *= min(int(most), LONGEST) - min(int(least), LONGEST) + 1
            # One inside of another multiplies again and again.
            if most > 1 and any(inner in _REPEATS or inner is constants.BRANCH for inner, _ in _parts(body)):
                return False
    return ways <= MAX_WAYS


def _parts(parsed: Any) -> list[tuple[Any, Any]]:
    """All parts of a parsed pattern, at whatever depth."""
    found = []
    stack: list[Any] = [parsed]
    while stack:
        item = stack.pop()
        if isinstance(item, parser.SubPattern):
            stack.extend(item.data)
        elif isinstance(item, (tuple, list)):
            if len(item) == 2 and isinstance(item[0], type(constants.MAX_REPEAT)):
                found.append((item[0], item[1]))
            stack.extend(each for each in item if isinstance(each, (tuple, list, parser.SubPattern)))
    return found


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


#: What ``otel.yaml`` says.
DEFAULTS = yaml.safe_load((Path(__file__).parent / "otel.yaml").read_text(encoding="utf-8"))


def _not_mappings() -> list[SettingError]:
    """Find what stands in the place of our settings, before Dask replaces it with the defaults: ``DASK_OTEL=off``."""
    given = dask.config.get("otel", None)
    if given is not None and not isinstance(given, Mapping):
        return [SettingError("otel", given, "a mapping of " + ", ".join(DEFAULTS["otel"]))]
    errors = []
    for name in ("traces", "metrics", "capture"):
        value = dask.config.get(f"otel.{name}", {})
        if not isinstance(value, Mapping):
            errors.append(SettingError(f"otel.{name}", value, "a mapping of " + ", ".join(DEFAULTS["otel"][name])))
    return errors


_REPLACED = _not_mappings()
dask.config.update_defaults(DEFAULTS)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """All settings under ``otel``, checked; times in seconds."""

    cluster_name: str | None
    trace_url: str | None
    annotations: tuple[str, ...]
    sweep_interval: float
    shutdown_timeout: float
    idle_timeout: float
    max_segment: float
    pending_span_after: float
    max_groups: int
    level: str
    default_spans: str
    max_rate: int
    excluded_metrics: frozenset[str]
    root_names: tuple[tuple[Pattern[str], str], ...]
    task_bounds: tuple[float, ...]
    span_bounds: tuple[float, ...]
    #: By what may be shown.
    capture: dict[str, bool]


def load(complain: Callable[[SettingError], None]) -> Settings:
    """Read the settings from Dask's configuration.

    Parameters
    ----------
    complain
        Told of each setting that cannot be used; its default is used then.
    """
    doubtful = []

    def heard(error: SettingError) -> None:
        complain(error)
        if error.setting.startswith("otel.capture"):
            doubtful.append(error)

    for error in _REPLACED:
        heard(error)
    reader = _Reader(heard)
    reader.check_names(DEFAULTS["otel"], dask.config.get("otel", {}), "otel")
    capture = {name: reader.get(f"capture.{name}", yes_or_no) for name in DEFAULTS["otel"]["capture"]}
    if doubtful:  # somebody wanted something hidden
        capture = dict.fromkeys(capture, False)
    return Settings(
        cluster_name=reader.get("cluster-name", text) or os.environ.get("DASK_GATEWAY_CLUSTER_NAME"),
        trace_url=reader.get("trace-url", template),
        annotations=reader.get("annotations", names),
        sweep_interval=reader.get("sweep-interval", duration("10ms", "1m")),
        shutdown_timeout=reader.get("shutdown-timeout", duration("0s", "10m")),
        idle_timeout=reader.get("traces.idle-timeout", duration("0s", "1h")),
        max_segment=reader.get("traces.max-segment", duration("1s", "7 days")),
        pending_span_after=reader.get("traces.pending-span-after", duration("1s", "7 days")),
        max_groups=reader.get("traces.max-groups", whole(1, 1000)),
        level=reader.get("traces.level", one_of("spans", "groups", "tasks")),
        default_spans=reader.get("traces.default-spans", one_of("full", "segments", "off")),
        max_rate=reader.get("traces.max-rate", whole(0, 10**9)),
        excluded_metrics=reader.get("metrics.exclude", names_of(METRICS, "metrics")),
        root_names=reader.get("metrics.root-names", rewriting),
        task_bounds=reader.get("metrics.task-bounds", bounds),
        span_bounds=reader.get("metrics.span-bounds", bounds),
        capture=capture,
    )


def consequence(error: SettingError) -> str:
    """Say what happens because of a setting that cannot be used."""
    if error.setting.startswith("otel.capture"):
        return "hides all that otel.capture is about, until this is mended"
    return "uses the default"


def check_limits() -> None:
    """Check the one standard variable that the SDK reads when it is imported, and fails at without naming it.

    Raises
    ------
    SettingError
        If it is neither empty nor a whole number from 0 up.
    """
    name = "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"
    value = os.environ.get(name, "").strip()
    if value and not value.isdecimal():
        raise SettingError(name, value, "a whole number from 0 up, or empty for the default")


def trace_url_template() -> str:
    """Return the checked setting ``otel.trace-url``.

    Raises
    ------
    SettingError
        If it is not set, or has no place for the id.
    """
    value = dask.config.get("otel.trace-url", None)
    return template(value, "otel.trace-url", required=True) or ""


class _Reader:
    def __init__(self, complain: Callable[[SettingError], None]) -> None:
        self._complain = complain

    def get(self, name: str, parse: Callable[[Any, str], Value]) -> Value:
        """Read one setting, or complain and take its default."""
        name = f"otel.{name}"
        try:
            return parse(dask.config.get(name), name)
        except SettingError as error:
            self._complain(error)
        except (KeyError, TypeError):  # cleared away, or part of the path is no mapping: check_names has complained
            pass
        return parse(dask.config.get(name, config=DEFAULTS), name)

    def check_names(self, known: Mapping[str, Any], given: object, path: str) -> None:
        """Complain of settings that do not exist."""
        if not isinstance(given, Mapping):
            self._complain(SettingError(path, given, "a mapping of " + ", ".join(known)))
            return
        names = {dask.config.canonical_name(str(name), dict(known)): name for name in given}
        for name, written in names.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {path}.{close[0]}?)" if close else ""
                allowed = "one of the settings " + ", ".join(known) + hint
                self._complain(SettingError(f"{path}.{written}", given[written], allowed))
            elif isinstance(known[name], Mapping):
                self.check_names(known[name], given[written], f"{path}.{written}")
