"""CPU of the scheduler process with the bridge over that without: two live clusters, batches in turn.

The kernels of many machines give no instruction counts, and CPU time is noisy; so batches alternate and the ratio
comes with its interval.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distributed import Client, span

from dask_otel import trace_id
from dask_otel.cli.receiver import Receiver

#: Two schedulers of the same code differ by some percent for as long as they live, so several pairs of them are tried.
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
#: Measured on each cluster of a round; 20,000 or 200,000, say.
ALL_TASKS = int(sys.argv[2]) if len(sys.argv) > 2 else 8_000
#: Batches for each cluster of a round, a span each.
BATCHES = 8
WARM_UP = 2
TASKS = ALL_TASKS // BATCHES


def cpu(pid):
    """CPU seconds of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def cluster(endpoint):
    """A scheduler, with the bridge if there is an endpoint, one worker, a client."""
    options = ["--preload", "dask_otel"] if endpoint else []
    env = os.environ | {"PYTHONHASHSEED": "0"} | ({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})
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


def batch(client, number):
    """Run a batch of no-op tasks in one span; return the span's id."""
    with span(f"batch {number}") as span_id:
        client.gather(client.map(int, range(TASKS), key=f"noop{number}", pure=False))
    return span_id


def one_round(receiver, number):
    """CPU seconds with the bridge and without, on two fresh clusters, batches in turn, sending included."""
    endpoint = receiver.endpoints["grpc"]
    with ExitStack() as stack:
        # Which one starts first, changes too.
        first, second = (endpoint, None) if number % 2 else (None, endpoint)
        clusters = {each: stack.enter_context(cluster(each)) for each in (first, second)}

        def run(batches):
            for i in batches:
                for each in (first, second) if i % 2 else (second, first):
                    last[each] = batch(clusters[each][1], i)
            receiver.wait_for_trace(trace_id(last[endpoint]), timeout=60)
            return {each: cpu(clusters[each][0]) for each in clusters}

        last = {}
        before = run(range(WARM_UP))
        after = run(range(WARM_UP, WARM_UP + BATCHES))
    return after[endpoint] - before[endpoint], after[None] - before[None]


def interval(rounds):
    """Ratio of the sums, and where 95 % of bootstrap samples of the rounds lie."""

    def ratio(sample):
        return sum(with_ for with_, _ in sample) / sum(without for _, without in sample)

    samples = sorted(ratio(random.choices(rounds, k=len(rounds))) for _ in range(2_000))
    return ratio(rounds), samples[50], samples[-50]


def main():
    rounds = []
    with Receiver() as receiver:
        for number in range(ROUNDS):
            rounds.append(one_round(receiver, number))
            print(f"  round {number}: {rounds[-1][0] / rounds[-1][1]:.3f}", flush=True)
    middle, low, high = interval(rounds)
    per_task = sum(without for _, without in rounds) / (ROUNDS * BATCHES * TASKS) * 1e6
    print(f"{ROUNDS} pairs of clusters, {BATCHES} batches of {TASKS} no-op tasks each; {per_task:.0f} µs CPU each")
    print(f"  with the bridge / without: {middle:.3f}, 95 % interval {low:.3f} … {high:.3f}")


if __name__ == "__main__":
    main()
