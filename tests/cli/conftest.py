from __future__ import annotations

import os

import pytest


@pytest.fixture
def ask(monkeypatch):
    """`dask-otel doctor --scheduler` of an address: the exit code, and the lines it prints."""
    from click.testing import CliRunner  # not in xdist's own process

    from dask_otel.cli.main import dask_otel

    monkeypatch.setenv("COLUMNS", "1000")
    for name in list(os.environ):
        if name.startswith("DASK_"):
            monkeypatch.delenv(name)

    def run(address):
        result = CliRunner().invoke(dask_otel, ["doctor", "--scheduler", address])
        assert not result.exception or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output.splitlines()

    return run
