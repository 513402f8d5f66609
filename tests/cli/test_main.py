"""``dask-otel`` and ``dask otel``."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dask.cli import _register_command_ep
from support.environment import environment

from dask_otel.cli.main import dask_otel as commands


def test_dask_has_the_command():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (value,) = re.findall(r'\[project.entry-points.dask_cli\]\notel = "(.*)"', project)
    point = EntryPoint("otel", value, "dask_cli")
    dask = click.Group("dask")
    _register_command_ep(dask, point)
    shown = CliRunner().invoke(dask, ["otel", "--help"])
    assert shown.exit_code == 0
    assert "demo  " in shown.output
    assert "doctor  " in shown.output


@pytest.mark.slow
def test_dask_s_own_commands_import_no_more_than_click_and_the_settings():
    code = "import sys, dask_otel.cli.main; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"pandas", "rich", "grpc", "opentelemetry.sdk", "distributed"} & set(out)


def test_a_command_that_does_not_exist():
    done = CliRunner().invoke(commands, ["dance"])
    assert done.exit_code == 2
    assert "No such command 'dance'" in done.output
