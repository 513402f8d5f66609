"""CPU of the scheduler process with the bridge over that without: two live clusters, batches in turn.

The kernels of many machines give no instruction counts, and CPU time is noisy; so batches alternate and the ratio
comes with its interval.
"""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distributed import Client, span

from dask_otel.cli.receiver import Receiver

#: 20,000 tasks in 20 spans for each cluster.
PAIRS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
TASKS = 1_000


def cpu(pid):
    """CPU seconds of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def cluster(endpoint):
    """A scheduler, with the bridge if there is an endpoint, one worker, a client."""
    import os

    options = ["--preload", "dask_otel"] if endpoint else []
    env = os.environ | ({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})
    loopback = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:

        def start(*arguments):
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, *loopback],
                cwd=folder,
                env=env,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        scheduler = start("scheduler", "--port", "0", *options)
        for line in scheduler.stderr:
            if match := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
                break
        start("worker", match[1], "--nthreads", "2", "--no-nanny")
        client = stack.enter_context(Client(match[1]))
        client.wait_for_workers(1)
        yield scheduler.pid, client


def batch(pid, client, number):
    """CPU seconds of the scheduler for one batch of no-op tasks in one span."""
    before = cpu(pid)
    with span(f"batch {number}"):
        client.gather(client.map(int, range(TASKS), key=f"noop{number}", pure=False))
    return cpu(pid) - before


def interval(pairs):
    """Ratio of the sums, and where 95 % of bootstrap samples of the pairs lie."""

    def ratio(sample):
        return sum(with_ for with_, _ in sample) / sum(without for _, without in sample)

    samples = sorted(ratio(random.choices(pairs, k=len(pairs))) for _ in range(2_000))
    return ratio(pairs), samples[50], samples[-50]


def main():
    pairs = []
    with Receiver() as receiver, cluster(receiver.endpoints["grpc"]) as bridged, cluster(None) as plain:
        for number in range(PAIRS + 3):
            order = [bridged, plain] if number % 2 else [plain, bridged]
            seconds = {id(each): batch(*each, number) for each in order}
            if number >= 3:  # the first ones warm up
                pairs.append((seconds[id(bridged)], seconds[id(plain)]))
    middle, low, high = interval(pairs)
    per_task = statistics.median(without for _, without in pairs) / TASKS * 1e6
    medians = statistics.median(with_ / without for with_, without in pairs)
    print(f"{PAIRS} pairs of batches of {TASKS} no-op tasks, a span each; {per_task:.0f} µs CPU a task without")
    print(f"  with the bridge / without: {middle:.3f}, 95 % interval {low:.3f} … {high:.3f}; median {medians:.3f}")


if __name__ == "__main__":
    main()
