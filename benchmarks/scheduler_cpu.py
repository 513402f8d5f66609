"""CPU of a live scheduler with the bridge over that without: one process, in which the bridge is switched on and off.

Two schedulers of the same code differ by several percent for as long as they live, so both are measured in one: a batch
of no-op tasks with the bridge registered, one without, and so on. Sending is included, of traces and every 10 s of
metrics, but for the first connection, which takes some 10 ms; so is the wait for it, on both sides.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

import dask.array
from distributed import span, wait
from live import cluster

from dask_otel import OTelPlugin, trace_id
from dask_otel.cli.receiver import Receiver

#: Tasks on each side; of one batch, which is one span; and the prefixes over which a batch is spread. With ``arrays``
#: in the place of the latter, a batch is arrays that a loop has built, computed together: five groups for nine tasks.
TASKS = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
BATCH = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
ARRAYS = sys.argv[3:] == ["arrays"]
PREFIXES = int(sys.argv[3]) if len(sys.argv) > 3 and not ARRAYS else 1
WARM_UP = 2
#: By default; OTEL_METRICS_EXPORTER=none in the environment leaves them out.
SETTINGS = {"OTEL_METRIC_EXPORT_INTERVAL": "10000", "DASK_OTEL__TRACES__IDLE_TIMEOUT": "500ms"}


def cpu(pid):
    """CPU seconds of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def batch(client, number, tasks=BATCH):
    """Run a batch of no-op tasks in one span; return the span's id."""
    with span(f"batch {number}") as span_id:
        if ARRAYS:
            wait(client.compute([array() for _ in range(tasks // 9)], optimize_graph=False))
            return span_id
        keys = [f"noop{n % PREFIXES}-{number}-{n}" for n in range(tasks)] if PREFIXES > 1 else f"noop{number}"
        client.gather(client.map(int, range(tasks), key=keys, pure=False))
    return span_id


def array():
    """Five layers: full, add, mul, sum, sum-aggregate."""
    chunks = dask.array.full(2, uuid4().int % 2**60, chunks=1)
    return ((chunks + 1) * 2).sum()


def on(client, pid, receiver, number):
    """CPU seconds of a batch with the bridge, until its trace has arrived, and how long that took."""
    client.register_plugin(OTelPlugin(receiver.endpoints["grpc"]))
    receiver.wait_for_trace(trace_id(batch(client, f"{number}-first", 10)), timeout=120)
    before, begin = cpu(pid), monotonic()
    receiver.wait_for_trace(trace_id(batch(client, number)), timeout=120)
    return cpu(pid) - before, monotonic() - begin


def off(client, pid, number, took):
    """CPU seconds of a batch without, for at least as long."""
    client.unregister_scheduler_plugin("dask-otel")
    sleep(3.0)  # until it has noticed and closed
    batch(client, f"{number}-first", 10)
    before, begin = cpu(pid), monotonic()
    batch(client, number)
    sleep(max(0.0, took - (monotonic() - begin)))
    return cpu(pid) - before


def interval(pairs):
    """Ratio of the sums, and where 95 % of bootstrap samples of the pairs lie."""

    def ratio(sample):
        return sum(with_ for with_, _ in sample) / sum(without for _, without in sample)

    samples = sorted(ratio(random.choices(pairs, k=len(pairs))) for _ in range(2_000))
    return ratio(pairs), samples[50], samples[-50]


def main():
    pairs = []
    with Receiver() as receiver, cluster(**SETTINGS) as (pid, client):
        for number in range(WARM_UP + TASKS // BATCH):
            with_, took = on(client, pid, receiver, 2 * number)
            without = off(client, pid, 2 * number + 1, took)
            if number >= WARM_UP:
                pairs.append((with_, without))
                print(f"  pair {number}: {with_ / without:.3f}", file=sys.stderr, flush=True)
    middle, low, high = interval(pairs)
    per_task = sum(without for _, without in pairs) / TASKS * 1e6
    groups = BATCH // 9 * 5 if ARRAYS else PREFIXES
    print(f"{TASKS} tasks with the bridge and as many without, {BATCH} a span, in {groups} groups")
    print(f"  CPU of a task without: {per_task:.0f} µs")
    print(f"  with the bridge / without: {middle:.3f}, 95 % interval {low:.3f} … {high:.3f}")


if __name__ == "__main__":
    main()
