"""The first verdict on some workloads on real processes; ``benchmarks/verdicts.py`` has all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCHMARKS.exists(), reason="the workloads are not part of an installed package"),
]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What came of a workload, by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import verdicts
    import workloads

    def measure(name):
        named = {each.name: each for each in (*workloads.ILL, *workloads.HEALTHY)}
        return verdicts.measure(named[name], tmp_path / "traces", evidence=False)

    yield measure
    for name in [name for name in sys.modules if name == "verdicts" or name.partition(".")[0] == "workloads"]:
        del sys.modules[name]


# These wait most of the time. Others, and healthy ones, need a machine on which no other test runs.
@pytest.mark.parametrize("name", ["no worker", "late workers"])
def test_an_ill_workload_has_its_verdict_first(measured, monkeypatch, name):
    monkeypatch.setitem(sys.modules["workloads.cluster"].SETTINGS, "DASK_OTEL__TRACES__IDLE_TIMEOUT", "500ms")
    result = measured(name)
    assert result.verdict[:1] == result.expected, "\n".join(result.lines())
    assert result.text
    assert result.at_most >= 0.1 * result.seconds
