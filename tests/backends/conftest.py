from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.jaeger import OwnJaeger, find_binary, find_running

_REASON = "needs a Jaeger: set DASK_OTEL_TEST_JAEGER (its binary) or DASK_OTEL_TEST_JAEGER_URL (one that runs)"


def _skip() -> None:
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must not be skipped; {_REASON}")
    pytest.skip(_REASON)


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory):
    """Any real Jaeger."""
    running = find_running()
    if running:
        yield running
        return
    binary = find_binary()
    if not binary:
        _skip()
    own = OwnJaeger(binary, tmp_path_factory.mktemp("jaeger"))
    yield own
    own.kill()


@pytest.fixture
def own_jaeger(tmp_path: Path):
    """A Jaeger that the test may kill and start again."""
    binary = find_binary()
    if not binary:
        _skip()
    own = OwnJaeger(binary, tmp_path)
    yield own
    own.kill()
