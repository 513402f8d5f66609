"""How many spans and bytes (OTLP before compression) some workloads send, at each level."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import dask
import dask.array as da
from distributed import Client, LocalCluster, span
from distributed.utils_test import inc
from support.misbehaving import Misbehaving

from dask_otel.cli import demo as workflow

LEVELS = {
    "spans": {"otel.traces.level": "spans"},
    "groups": {"otel.traces.level": "groups"},
    "tasks": {"otel.traces.level": "tasks"},
    "tasks, default-spans: off": {"otel.traces.default-spans": "off"},
}


def demo(client):
    with tempfile.TemporaryDirectory() as folder:
        list(workflow.run(client, Path(folder) / "data"))


def arrays(client):
    with span("mean of a large array"):
        array = da.random.random((20_000, 20_000), chunks=(500, 500))
        (array + array.T).mean(axis=0).compute()


def submits(client):
    for number in range(100):
        client.submit(inc, number, key=f"inc-{number}").result()


def loop(client):
    with span("loop"):
        for number in range(200):
            with span(f"step {number}"):
                client.gather(client.map(inc, range(50), key=f"step{number}"))


WORKLOADS = {
    "`dask-otel demo`": demo,
    "an array expression, 1,600 chunks": arrays,
    "100 submits without a span, one after the other": submits,
    "200 spans in a loop, 50 tasks each": loop,
}


class Counting(Misbehaving):
    """Counts bytes."""

    size = tasks = 0

    def take(self, request):
        self.size += request.ByteSize()
        super().take(request)


def measure(work, settings):
    """Spans, bytes, and tasks that ran."""
    with Counting("grpc") as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
        config = {"distributed.scheduler.preload": ["dask_otel"], "otel.traces.idle-timeout": "300ms"}
        with (
            dask.config.set(config | settings),
            LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            work(client)
        spans = receiver.wait(lambda spans: True, timeout=1)
    roots = [each for each in spans if not each.parent_id]
    return len(spans), receiver.size, sum(each.attributes["dask.task.count"] for each in roots)


def main():
    print("| workload | tasks | " + " | ".join(f"`{level}`" for level in LEVELS) + " |")
    print("|---|---:|" + "---:|" * len(LEVELS))
    for name, work in WORKLOADS.items():
        found = [measure(work, settings) for settings in LEVELS.values()]
        cells = " | ".join(f"{spans} spans, {size / 1000:.0f} kB" for spans, size, _ in found)
        print(f"| {name} | {max(tasks for *_, tasks in found)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
