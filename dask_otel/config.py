"""Our own settings: ``otel.yaml`` in Dask's configuration, ``DASK_OTEL__...`` in the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Any, TypeVar

import dask
import yaml

from .errors import SettingError
from .measure.catalog import METRICS
from .values import bounds, duration, names, names_of, one_of, rewriting, template, text, whole, yes_or_no

__all__ = ["DEFAULTS", "Settings", "check_limits", "consequence", "load", "trace_url_template"]

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
    settle: float
    max_segment: float
    announce: float
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
        settle=reader.get("traces.settle", duration("0s", "1h")),
        max_segment=reader.get("traces.max-segment", duration("1s", "7 days")),
        announce=reader.get("traces.announce", duration("1s", "7 days")),
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
