"""What the configuration is, and where each value comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import dask

from .. import config
from ..export.targets import shown

__all__ = ["Value", "settings", "variables"]

#: Variables whose values are secrets, or may hold some.
_SECRET = ("HEADERS", "CLIENT_KEY")


class Value(NamedTuple):
    """A setting or variable."""

    name: str
    value: str
    origin: str


def settings() -> Iterator[Value]:
    """Yield our own settings."""
    files = [(str(path), values) for path, values in dask.config.collect_yaml(dask.config.paths, return_paths=True)]
    for name, default in _flat(config.DEFAULTS["otel"], "otel"):
        value = dask.config.get(name, default)
        # A link may hold a password, or a token.
        text = f"{shown(value)}…" if isinstance(value, str) and re.search("[@?]", value) else _text(value)
        yield Value(name, text, _origin(name, value, default, files))


def variables() -> Iterator[Value]:
    """Yield the standard variables that are set."""
    for name, value in sorted(os.environ.items()):
        if name.startswith("OTEL_"):
            secret = any(each in name for each in _SECRET)
            yield Value(name, "(set, not shown)" if secret else _shown(value), "environment")


def _origin(name: str, value: object, default: object, files: list[tuple[str, Any]]) -> str:
    variable = "DASK_" + name.upper().replace("-", "_").replace(".", "__")
    if variable in os.environ:
        return f"environment, {variable}"
    for path, values in reversed(files):
        if dask.config.get(name, None, config=values) is not None:
            return str(path)
    return "default" if value == default else "dask.config.set"


def _flat(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: str) -> str:
    return shown(value) if re.search("://|@", value) else value
