"""Processes that are forked off inside a task: they are in no task, and send and report nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.environment import environment


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_no_task_in_a_forked_process():
    done = subprocess.run(
        [sys.executable, "-m", "support.forked"],
        cwd=Path(__file__).parents[1], env=environment({}), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    nothing, made_before = [None, False, ["inner"], False], [None, False, ["inner"], True]
    assert json.loads(done.stdout.splitlines()[-1]) == [[nothing] * 2, [nothing, made_before]]
