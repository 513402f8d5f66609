"""Real programs behind the bridge: in the folder that DASK_OTEL_TEST_BACKENDS names, where `.ci/backends` puts them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


def find(name: str) -> Path | None:
    """The program, if it is there."""
    folder = os.environ.get("DASK_OTEL_TEST_BACKENDS")
    path = Path(folder, name) if folder else None
    return path if path and path.exists() else None


def need(name: str) -> Path:
    """The program; without it the test is skipped, but not in CI."""
    return find(name) or skip(f"needs {name}: set DASK_OTEL_TEST_BACKENDS to the folder that .ci/backends has filled")


def skip(reason: str) -> Path:
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must not be skipped; {reason}")
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
