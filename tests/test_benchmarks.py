"""That the benchmarks still fit what they measure; what they measure is no matter of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import our_errors

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    "command",
    [
        "scale.py --rounds 1 --sizes 1 --only workers",
        "growth.py --rounds 1 --sizes 1 --only groups",
        "growth.py --rounds 1 --sizes 1 --only workers",
        "split.py --rounds 1 --tasks 100 --spans 2 4",
        "hooks.py",
        "conservation.py",
        "metrics.py",
        "page.py",
        "inside.py --groups 1 --batches 0",
        "carriers.py --tasks 100 --rounds 1 --batches 0",
        "client.py --groups 1 --rounds 1 --batches 0",
        "diff.py --rounds 1",
        "forgetting.py --roots 10000 --kept 2000",
    ],
)
def test_it_runs(command):
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert our_errors(done.stderr) == []
    assert "µs" in done.stdout or "ms" in done.stdout
