"""From the end of the last task to the trace in a real Jaeger: in the folder that `DASK_OTEL_TEST_BACKENDS` names.

Real processes, default settings but for ``settle``; the budget is settle + heartbeat + 1.5 s at the 99th percentile.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from distributed import span
from distributed.utils_test import inc
from support.backends import find
from support.jaeger import OwnJaeger
from support.processes import cluster

import dask_otel

#: Seconds; heartbeats come every 0.5 s up to ten workers, and two are waited for.
SETTLE, HEARTBEATS = 1.0, 1.0
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def one(client, jaeger, number) -> float:
    """Run some tasks in a span; return the seconds until its trace can be read."""
    with span("root") as root_id:
        client.gather(client.map(inc, range(20), key=f"inc-{number}"))
    done = time()
    trace = dask_otel.trace_id(root_id)
    jaeger.trace(trace, lambda spans: any(not each.parent_id for each in spans))  # asks ten times a second
    return time() - done


def main() -> None:
    env = {"DASK_OTEL__TRACES__IDLE_TIMEOUT": f"{SETTLE}s", "DASK_OTEL__SWEEP_INTERVAL": "1s"}
    with tempfile.TemporaryDirectory() as folder:
        jaeger = OwnJaeger(find("jaeger"), Path(folder))
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = jaeger.endpoints["grpc"]
        try:
            with cluster(Path(folder), env=env) as processes, ThreadPoolExecutor(5) as people:
                took = sorted(people.map(lambda number: one(processes.client, jaeger, number), range(ROUNDS)))
        finally:
            jaeger.kill()
    p50, p99 = took[len(took) // 2], took[min(len(took) - 1, int(0.99 * len(took)))]
    print(f"{ROUNDS} roots, settle {SETTLE} s: readable after {p50:.2f} s (median), {p99:.2f} s (99th percentile)")
    print(f"  beyond settle and two heartbeats: {p99 - SETTLE - HEARTBEATS:.2f} s (budget 1.5 s)")


if __name__ == "__main__":
    main()
