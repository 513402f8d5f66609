"""Which package is tested, also by child processes: the checkout, or with DASK_OTEL_TEST_INSTALLED another one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PATHS = [str(TESTS)] if "DASK_OTEL_TEST_INSTALLED" in os.environ else [str(TESTS), str(TESTS.parent)]


def clear_variables(monkeypatch: Any, *, proxies: bool = False) -> None:
    """Unset all ``OTEL_*`` variables, and those that name proxies if that is asked for."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or (proxies and name.lower().endswith("_proxy")):
            monkeypatch.delenv(name)


def python_path(first: str = "") -> str:
    """Return the ``PYTHONPATH`` for a child process: something of its own, what is tested, what was inherited."""
    return os.pathsep.join(dict.fromkeys(filter(None, [first, *PATHS, os.environ.get("PYTHONPATH")])))


#: How long the scheduler takes for a graph is a matter of chance, and so would be a span of it.
NO_PHASES = {"DASK_OTEL__CLIENT__PHASE_THRESHOLD": "1h"}


def environment(*variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child process: of Dask's and OpenTelemetry's variables only those given."""
    merged = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DASK_"))}
    for each in (NO_PHASES, *variables):
        merged |= each
    given = "" if merged.get("PYTHONPATH") == os.environ.get("PYTHONPATH") else merged["PYTHONPATH"]
    return merged | {"PYTHONPATH": python_path(given)}
