"""Our own settings: ``otel.yaml`` in Dask's configuration, ``DASK_OTEL__...`` in the environment.

The parsers return a setting's value checked, or raise a ``SettingError`` that describes what is allowed. A value comes
from a YAML file, from ``dask.config.set``, or from the environment. Dask evaluates environment variables as Python
literals and leaves the others as text: ``[team]`` and ``1s,5s`` arrive here as text, ``1.5`` as a number.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from re import Pattern
from typing import Any, TypeVar

import dask
import yaml
from dask.utils import parse_bytes, parse_timedelta

from .errors import SettingError
from .schema import MAX_METRIC_VALUE, MAX_SLOWEST, METRICS

__all__ = [
    "DEFAULTS",
    "Settings",
    "check_limits",
    "consequence",
    "hides_all",
    "is_quick",
    "load",
    "trace_url_template",
]

#: Defaults of all settings.
DEFAULTS = yaml.safe_load((Path(__file__).parent / "otel.yaml").read_text(encoding="utf-8"))
#: Bounds of a histogram; each one adds a series for each combination of attributes.
MAX_BOUNDS = 30
#: Finished runs that the page may keep.
MAX_PAGE_RUNS = 100
#: Ways to match a name that a pattern may try.
MAX_WAYS = 100_000

_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1", "y", "t"), True) | dict.fromkeys(
    ("false", "no", "off", "0", "n", "f"), False
)
#: In place of a time after which something happens.
_NEVER = ("", "off", "no", "false", "never", "none", "null")
#: Words in names and values of settings that hide something.
_HIDING = ("capture", "preset", "strict", "privacy")
#: Words that look like one of these, and are none: a program's name.
_NOT_HIDING = ("prefect",)
_PASSWORD = re.compile(r"//[^/]*@")
#: In a pattern: an escaped character, or a set of characters.
_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
#: In a pattern, how a group begins. Other forms may hide quantifiers: in ``(?x)``, blanks and comments do not count.
_GROUP = re.compile(r"\((\?(:|P<\w+>|<?[=!]))?")
_QUANTIFIER = re.compile(r"([*+?]|\{[^}]*\})([?+]?)")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """All settings under ``otel``, checked; times in seconds."""

    cluster_name: str | None
    trace_url: str | None
    annotations: tuple[str, ...]
    split_groups: bool
    verdicts: bool
    sweep_interval: float
    shutdown_timeout: float
    #: None if spans are kept.
    forget_spans: float | None
    idle_timeout: float
    max_segment: float
    pending_span_after: float
    max_groups: int
    slowest_tasks: int
    level: str
    default_spans: str
    max_rate: int
    #: Absolute; None if no traces are kept in files.
    folder: str | None
    #: Bytes.
    folder_size: int
    page_runs: int
    worker_plugin: bool
    worker_spans: str
    worker_max_rate: int
    client_context: str
    link_after: float
    phase_threshold: float
    excluded_metrics: frozenset[str]
    root_names: tuple[tuple[Pattern[str], str], ...]
    task_bounds: tuple[float, ...]
    span_bounds: tuple[float, ...]
    #: Whether each kind of content may be sent and shown, by its name under ``otel.capture``.
    capture: dict[str, bool]
    #: Whether clients may say who their user is, and on which host; not part of a preset.
    capture_user: bool


def load(complain: Callable[[SettingError], None]) -> Settings:
    """Read the settings from Dask's configuration.

    Parameters
    ----------
    complain
        Called with each setting that cannot be used. Its default is used instead; but all of ``otel.capture`` is off
        if one of its settings cannot be used, or if a misspelt one was probably meant, since somebody wanted something
        hidden.
    """
    hide_all = False

    def report(error: SettingError) -> None:
        nonlocal hide_all
        hide_all = hide_all or hides_all(error)
        complain(error)

    def get(name: str, parse: Callable[[Any, str], Value]) -> Value:
        name = f"otel.{name}"
        try:
            return parse(dask.config.get(name), name)
        except SettingError as error:
            report(error)
        except (KeyError, TypeError):  # the configuration was cleared, or a part of the path is not a mapping
            pass
        return parse(dask.config.get(name, config=DEFAULTS), name)

    given = dask.config.get("otel", {})
    for error in (*_REPLACED, *_not_mappings(given), *_unknown(DEFAULTS["otel"], given, "otel"), *_misplaced()):
        report(error)
    is_open = get("capture.preset", _one_of("all", "strict")) == "all"
    names = [name for name in DEFAULTS["otel"]["capture"] if name not in ("preset", "user")]
    switches = {name: get(f"capture.{name}", _switch) for name in names}
    says_user = get("capture.user", _boolean)
    capture = {name: is_open if is_on is None else is_on for name, is_on in switches.items()}
    return Settings(
        cluster_name=get("cluster-name", _text) or os.environ.get("DASK_GATEWAY_CLUSTER_NAME"),
        trace_url=get("trace-url", _template),
        annotations=get("annotations", _names),
        split_groups=get("split-groups", _boolean),
        verdicts=get("verdicts", _boolean),
        sweep_interval=get("sweep-interval", _duration("10ms", "1m")),
        shutdown_timeout=get("shutdown-timeout", _duration("0s", "10m")),
        forget_spans=get("forget-spans", _or_never(_duration("5s", "30 days"))),
        idle_timeout=get("traces.idle-timeout", _duration("0s", "1h")),
        max_segment=get("traces.max-segment", _duration("1s", "7 days")),
        pending_span_after=get("traces.pending-span-after", _duration("1s", "7 days")),
        max_groups=get("traces.max-groups", _whole(1, 1000)),
        slowest_tasks=get("traces.slowest-tasks", _whole(0, MAX_SLOWEST)),
        level=get("traces.level", _one_of("spans", "groups", "tasks")),
        default_spans=get("traces.default-spans", _one_of("full", "segments", "off")),
        max_rate=get("traces.max-rate", _whole(0, 10**9)),
        folder=get("traces.folder", _path),
        folder_size=get("traces.folder-size", _bytes("1 MiB", "1 TiB")),
        page_runs=get("page.runs", _whole(0, MAX_PAGE_RUNS)),
        worker_plugin=get("workers.plugin", _boolean),
        worker_spans=get("workers.spans", _one_of("any", "child")),
        worker_max_rate=get("workers.max-rate", _whole(0, 10**9)),
        client_context=get("client.context", _one_of("parent", "link", "none")),
        link_after=get("client.link-after", _duration("1s", "30 days")),
        phase_threshold=get("client.phase-threshold", _duration("0s", "1h")),
        excluded_metrics=get("metrics.exclude", _names_of(METRICS, "metrics")),
        root_names=get("metrics.root-names", _patterns),
        task_bounds=get("metrics.task-bounds", _bounds),
        span_bounds=get("metrics.span-bounds", _bounds),
        capture=dict.fromkeys(capture, False) if hide_all else capture,
        capture_user=says_user and not hide_all,
    )


def consequence(error: SettingError) -> str:
    """Describe what the bridge does because of a setting that cannot be used."""
    if hides_all(error):
        return "hides all that otel.capture is about, until this is mended"
    return "uses the default"


def check_limits() -> None:
    """Check the standard variable at which importing the OpenTelemetry SDK fails, with an error that does not name it.

    Raises
    ------
    SettingError
        If it is neither empty nor a whole number from 0 up.
    """
    name = "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"
    value = os.environ.get(name, "").strip()
    if value and not value.isdecimal():
        raise SettingError(name, value, "a whole number from 0 up, or empty for the default")


def trace_url_template() -> str | None:
    """Return the checked setting ``otel.trace-url``; None if it is not set.

    Raises
    ------
    SettingError
        If it has no place for the id.
    """
    return _template(dask.config.get("otel.trace-url", None), "otel.trace-url")


def is_quick(pattern: str) -> bool:
    """Whether a valid regular expression is matched quickly with every name.

    Matching holds the interpreter lock and cannot be interrupted. The check allows a part of the syntax that cannot
    take long: no repeated groups, and few quantifiers and alternatives; each multiplies the ways to match.
    """
    bare = _GROUP.sub("(", _ATOM.sub("x", pattern.removeprefix("(?i)")))
    if "(?" in bare or re.search(r"\)[*+{]", bare):
        return False
    ways = 2 ** bare.count("|")
    for quantifier, _ in _QUANTIFIER.findall(bare):
        ways *= 2 if quantifier == "?" else 1 if re.fullmatch(r"\{\d+\}", quantifier) else MAX_METRIC_VALUE + 1
    return bool(ways <= MAX_WAYS)


class _MisspeltCaptureError(SettingError):
    """A setting that does not exist, where one of ``otel.capture`` was probably meant."""


def hides_all(error: SettingError) -> bool:
    """Whether all of ``otel.capture`` is off because of a setting that cannot be used."""
    return isinstance(error, _MisspeltCaptureError) or error.setting.startswith("otel.capture")


def _seems_to_hide(*given: object) -> bool:
    """Whether a setting's name or value contains a word, or a misspelt one, of a setting that hides something."""
    for each in given:
        if isinstance(each, Mapping):
            if _seems_to_hide(*each, *each.values()):
                return True
        elif isinstance(each, str) and any(
            difflib.get_close_matches(written, _HIDING, n=1, cutoff=0.75)
            for written in re.split(r"[\W_]+", each.lower()[:200])
            if written not in _NOT_HIDING
        ):
            return True
    return False


def _misplaced() -> Iterator[SettingError]:
    """Yield settings outside of ``otel`` that seem to be of ``otel.capture``, e.g. ``DASK_OTEL_CAPTURE__PRESET``."""
    allowed = (
        "under otel.capture, e.g. otel.capture.preset; in the environment with double underscores, e.g. "
        "DASK_OTEL__CAPTURE__PRESET"
    )
    for name, value in dask.config.config.items():
        first, *others = re.split(r"[\W_]+", str(name).lower())
        is_ours = difflib.get_close_matches(first, ["otel"], n=1, cutoff=0.75)
        if name != "otel" and is_ours and _seems_to_hide(*others, value):
            yield _MisspeltCaptureError(str(name), value, allowed)
    for name, value in os.environ.items():
        if re.match(r"(DASK)?OTEL_+CAPTURE_", name.upper()):  # Dask reads only variables that begin with DASK_
            yield _MisspeltCaptureError(name, value, allowed)


def _not_mappings(given: object) -> Iterator[SettingError]:
    """Yield what is in the place of a part of the settings, such as ``DASK_OTEL=off``."""
    if not isinstance(given, Mapping):
        error = _MisspeltCaptureError if _seems_to_hide(given) else SettingError
        yield error("otel", given, "a mapping of " + ", ".join(DEFAULTS["otel"]))
        return
    for name, known in DEFAULTS["otel"].items():
        if isinstance(known, dict) and not isinstance(given.get(name, {}), Mapping):
            example = ", e.g. {preset: strict}" if name == "capture" else ""
            yield SettingError(f"otel.{name}", given[name], "a mapping of " + ", ".join(known) + example)


def _unknown(known: Mapping[str, Any], given: object, path: str) -> Iterator[SettingError]:
    """Yield settings that do not exist."""
    for written, value in given.items() if isinstance(given, Mapping) else ():
        name = dask.config.canonical_name(str(written), dict(known))
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {path}.{close[0]}?)" if close else ""
            error = _MisspeltCaptureError if _seems_to_hide(str(written), value) else SettingError
            yield error(f"{path}.{written}", value, "one of the settings " + ", ".join(known) + hint, is_known=False)
        elif isinstance(known[name], dict):
            yield from _unknown(known[name], value, f"{path}.{written}")


def _text(value: Any, name: str) -> str | None:
    """A text, or None."""
    if value is None:
        return None
    written = _as_text(value)
    if written is None:
        raise SettingError(name, value, "a text")
    return written or None


def _path(value: Any, name: str) -> str | None:
    """The path of a folder, made absolute, or None."""
    if value in (None, False) or (isinstance(value, str) and value.strip().lower() in _NEVER):
        return None
    written = _as_text(value)
    try:
        if written and "\0" not in written:
            return os.path.abspath(os.path.expanduser(written))
    except OSError:  # the path is relative, and the current folder was removed
        pass
    raise SettingError(name, value, "the absolute path of a folder, e.g. /var/lib/dask/traces")


def _template(value: Any, name: str) -> str | None:
    """A link with a place for a trace's id. The status page shows it to everybody, so it must not hold a password."""
    value = value.strip() if isinstance(value, str) else value
    if value in (None, ""):
        return None
    if isinstance(value, str):
        if "{trace_id}" in value and re.match(r"https?://|/", value) and not _PASSWORD.search(value):
            return value
        value = _PASSWORD.sub("//…@", value)
    allowed = "a link with {trace_id} in it and no password, e.g. http://localhost:16686/trace/{trace_id}"
    raise SettingError(name, value, allowed)


def _names(value: Any, name: str, example: str = "[team, project]") -> tuple[str, ...]:
    """A list of any names, each once."""
    items = _items(value)
    given = [_as_text(item) for item in items] if items is not None else [None]
    # "team project" without brackets or quotes would be one name, which exists nowhere.
    is_bare = isinstance(value, str) and not value.strip().startswith(("[", "(", "{", "- ", "'", '"'))
    if None in given or (is_bare and any(re.search(r"\s", item or "") for item in given)):
        raise SettingError(name, value, f"a list of names, e.g. {example}")
    return tuple(dict.fromkeys(item for item in given if item))


def _names_of(known: Collection[str], what: str) -> Callable[[Any, str], frozenset[str]]:
    """A list of names that exist."""

    def parse(value: Any, name: str) -> frozenset[str]:
        given = [each.lower() for each in _names(value, name, f"[{min(known)}]")]
        for each in given:
            if each not in known:
                close = difflib.get_close_matches(each, known, n=1)
                hint = f"did you mean {close[0]}?" if close else "e.g. " + ", ".join(sorted(known)[:3])
                raise SettingError(name, value, f"a list of {what}; there is no {each!r} ({hint})")
        return frozenset(given)

    return parse


def _one_of(*choices: str) -> Callable[[Any, str], str]:
    """One of some words."""

    def parse(value: Any, name: str) -> str:
        # YAML, and Dask in the environment, read ``off`` and ``false`` as a truth value.
        choice = "off" if value is False else "none" if value is None else str(value).strip().lower()
        if choice not in choices:
            raise SettingError(name, value, "one of " + ", ".join(choices))
        return choice

    return parse


def _boolean(value: Any, name: str) -> bool:
    """True or false, as YAML and the environment write it."""
    try:
        return _BOOLEANS[str(value).strip().lower()]
    except KeyError:
        raise SettingError(name, value, "true or false") from None


def _switch(value: Any, name: str) -> bool | None:
    """True or false; None if it is left to the preset."""
    return None if isinstance(value, str) and value.strip().lower() == "preset" else _boolean(value, name)


def _whole(low: int, high: int) -> Callable[[Any, str], int]:
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


def _duration(low: str, high: str) -> Callable[[Any, str], float]:
    """A time, in seconds."""

    def parse(value: Any, name: str) -> float:
        try:
            seconds = None if isinstance(value, bool) else parse_timedelta(value, default="s")
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
            seconds = None
        # "not (a <= b)" also refuses NaN
        if seconds is None or not parse_timedelta(low) <= seconds <= parse_timedelta(high):
            raise SettingError(name, value, f"a time between {low} and {high}, e.g. 5s or 1m")
        return float(seconds)

    return parse


def _bytes(low: str, high: str) -> Callable[[Any, str], int]:
    """A number of bytes."""

    def parse(value: Any, name: str) -> int:
        try:
            size = None if isinstance(value, bool) else parse_bytes(value)
        except (ValueError, TypeError, AttributeError, IndexError, OverflowError):
            size = None
        if size is None or not parse_bytes(low) <= size <= parse_bytes(high):
            raise SettingError(name, value, f"a size between {low} and {high}, e.g. 100 MiB")
        return int(size)

    return parse


def _or_never(parse: Callable[[Any, str], float]) -> Callable[[Any, str], float | None]:
    """A time, or None, which is also written ``off``, ``never`` or nothing."""

    def parse_or_never(value: Any, name: str) -> float | None:
        if value in (None, False) or (isinstance(value, str) and value.strip().lower() in _NEVER):
            return None
        return parse(value, name)

    return parse_or_never


def _bounds(value: Any, name: str) -> tuple[float, ...]:
    """Upper bounds of a histogram's buckets, in seconds."""
    try:
        bounds = tuple(_duration("1us", "3650 days")(each, name) for each in _items(value) or ())
    except SettingError:
        bounds = ()
    if not 1 <= len(bounds) <= MAX_BOUNDS or any(low >= high for low, high in pairwise(bounds)):
        raise SettingError(name, value, f"a list of at most {MAX_BOUNDS} rising times, e.g. [100ms, 1s, 1m, 1h]")
    return bounds


def _patterns(value: Any, name: str) -> tuple[tuple[Pattern[str], str], ...]:
    """A list of pairs: a regular expression, and what a name that matches it as a whole becomes."""
    allowed = """a list of pairs of a regular expression and a name, e.g. [["(.*)'s workflow", "workflow"]]"""
    items = _pairs(value)
    if items is None:
        raise SettingError(name, value, allowed)
    patterns = []
    for written, becomes in items:
        try:
            pattern = re.compile(written)
            # With an empty alternative it always matches: this fails if the name refers to groups that do not exist.
            re.sub(f"{written}|", becomes, "")
        except (re.error, IndexError, RecursionError, OverflowError) as error:
            raise SettingError(name, [written, becomes], f"{allowed}; {error}") from None
        if not is_quick(written):
            quick = (
                "at most two of * and +, few of ? and |, no group that is repeated, and of what begins with (? only "
                "(?:…), (?P<name>…) and (?i) at the start"
            )
            raise SettingError(name, [written, becomes], f"{allowed}; this one could hold up the scheduler: {quick}")
        patterns.append((pattern, becomes))
    return tuple(patterns)


def _pairs(value: Any) -> list[tuple[str, str]] | None:
    """Pairs of texts, given as a list of pairs or as one pair; None if they are something else."""
    # A text with commas or in parentheses may be an expression itself.
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


def _items(value: Any) -> list[Any] | None:
    """The items of a list in YAML's or Python's form, or of a text with commas; of anything else, a list of just that.

    Returns
    -------
    None if a list is meant and cannot be read.
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


def _as_text(value: Any) -> str | None:
    """A text without blanks around it, also of a number, a truth value or a date; None of anything else.

    How a number was written is lost by then: ``1.50`` is ``1.5``.
    """
    return str(value).strip() if isinstance(value, (str, int, float, date)) else None


#: What was in the place of our settings before ``update_defaults`` replaces it.
_REPLACED = list(_not_mappings({} if dask.config.get("otel", None) is None else dask.config.get("otel")))
dask.config.update_defaults(DEFAULTS)
