"""What an environment that OpenTelemetry cannot use does to clients."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.environment import environment

PROGRAM = """
import dask_otel
from distributed import Client, span
dask_otel.instrument()
dask_otel.instrument()
dask_otel.uninstrument()
with Client(processes=False, n_workers=1, dashboard_address=None) as client, span("x") as id_:
    assert client.submit(sum, [1, 2]).result() == 3
    print(id_, dask_otel.trace_id())
"""


@pytest.mark.slow
def test_a_propagator_that_is_not_installed(tmp_path):
    env = environment({"OTEL_PROPAGATORS": "tracecontext,nosuch"})
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    span_id, trace_id = found.stdout.split()
    assert (len(span_id), len(trace_id)) == (36, 32)
    (line,) = [each for each in found.stderr.splitlines() if "dask-otel" in each]
    assert "Propagator nosuch not found" in line
    assert line.endswith("OTEL_PROPAGATORS must name propagators that are installed")
