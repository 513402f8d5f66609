"""How much longer closing a cluster takes with the bridge: by what the collector does, and by what is left to send.

In one process, one case after the other and all of them again: the machine's moods fall on all alike. With
``--signal``: how long a ``dask scheduler`` takes to end after SIGTERM if the collector accepts and never answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import dask
from distributed import Client, LocalCluster, Scheduler, Worker, span
from distributed.utils_test import inc
from support.processes import cluster
from support.wire import Wire

from dask_otel.cli.receiver import Receiver

LOCAL = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}


class Case(NamedTuple):
    """One way to close."""

    #: ``none``: no bridge; ``healthy``; ``away``: refuses connections; ``gone``: the same, since a moment ago;
    #: ``hangs``: has not answered a request within the request's time.
    collector: str
    #: ``nothing``: the cluster is idle; ``spans``: some that could not be sent, or are still open; ``task``: no
    #: ``LocalCluster``, but a scheduler whose worker has just run a task, which delays only ``Scheduler.close``.
    left: str
    #: Seconds beyond closing without the bridge.
    budget: float = 0.3


CASES = [
    Case("none", "nothing"),
    Case("healthy", "nothing"),
    Case("healthy", "spans"),
    Case("away", "nothing"),
    Case("away", "spans", 1.0),
    Case("gone", "nothing"),
    Case("gone", "spans", 1.0),
    Case("hangs", "nothing"),
    Case("hangs", "spans", 1.0),
    Case("none", "task"),
    Case("healthy", "task"),
    Case("away", "task", 1.0),
]


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def collector(case: Case, protocol: str) -> Iterator[Wire | None]:
    """Have a collector that does so; what yields can be stopped."""
    if case.collector == "none":
        yield None
        return
    with Receiver() as receiver, Wire(receiver.endpoints[protocol]) as wire:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": wire.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        if case.collector == "away":
            wire.stop()
        elif case.collector == "hangs":
            wire.mode = "hang"
            variables["OTEL_EXPORTER_OTLP_TIMEOUT"] = "1"
        with environment(variables):
            yield wire


def wait_until_known(scheduler: Scheduler, case: Case) -> None:
    """Wait until the bridge knows what the collector does: clusters live longer than that, mostly."""
    sink = scheduler.plugins["dask-otel"].sink
    failing = case.collector in ("away", "hangs")
    ways_out = ["metrics", *(["exporters"] if case.left == "spans" and case.collector != "healthy" else [])]
    while any(each["failing"] is not failing for name in ways_out for each in sink.status()[name]):
        sleep(0.01)


def work(cluster: LocalCluster) -> None:
    with Client(cluster) as client, span("root"):
        client.gather(client.map(inc, range(10)))


def close_cluster(case: Case, wire: Wire | None) -> float:
    """Return the seconds that closing a ``LocalCluster`` takes."""
    cluster = LocalCluster(**LOCAL)
    if case.left == "spans":
        work(cluster)
    if wire:
        wait_until_known(cluster.scheduler, case)
        if case.collector == "gone":
            if case.left == "spans":
                work(cluster)
            wire.stop()
    begin = perf_counter()
    cluster.close()
    return perf_counter() - begin


def close_scheduler(case: Case, wire: Wire | None) -> float:
    """Return the seconds that closing a scheduler takes whose worker has run a task."""

    async def run() -> float:
        async with (
            Scheduler(port=0, dashboard_address="127.0.0.1:0") as scheduler,
            Worker(scheduler.address, nthreads=1),
            Client(scheduler.address, asynchronous=True) as client,
        ):
            if wire:
                await asyncio.to_thread(wait_until_known, scheduler, case)
            await client.submit(inc, 1)
            begin = perf_counter()
            await scheduler.close()
            return perf_counter() - begin

    return asyncio.run(run())


def after_signal(protocol: str | None, busy: int) -> tuple[float, float]:
    """Return the seconds from SIGTERM until the bridge is closed, and from then until the process has ended.

    Parameters
    ----------
    protocol
        None for a scheduler without the bridge.
    busy
        Other processes that use a core each meanwhile.
    """
    preload = ("--preload", "dask_otel") if protocol else ()
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol or "", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
    with (
        tempfile.TemporaryDirectory() as folder,
        Wire("http://127.0.0.1:1", "hang") as wire,
        cluster(
            Path(folder), env=variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": wire.endpoint}, options=preload
        ) as processes,
    ):
        with span("root"):
            processes.client.gather(processes.client.map(inc, range(10)))
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            begin = perf_counter()
            processes.scheduler.send(signal.SIGTERM)
            processes.scheduler.wait_for("Scheduler closing all comms")
            closed = perf_counter()
            processes.scheduler.join()
            return closed - begin, perf_counter() - closed
        finally:
            for each in others:
                each.kill()
                each.wait()


def print_after_signal(rounds: int) -> None:
    print("| over | busy processes | from SIGTERM until closed, s: median (max) | until the process ended |")
    print("|---|---:|---:|---:|")
    cases = [(protocol, busy) for busy in (0, 2) for protocol in (None, "grpc", "http/protobuf")]
    took: dict[tuple[str | None, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for case in cases:
            took.setdefault(case, []).append(after_signal(*case))
    for (protocol, busy), each in took.items():
        closing, ends = zip(*((first, first + rest) for first, rest in each), strict=True)
        row = [f"{statistics.median(some):.1f} s ({max(some):.1f})" for some in (closing, ends)]
        print("| " + " | ".join([protocol or "without the bridge", str(busy), *row]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--signal", action="store_true", help="real processes, SIGTERM, a collector that never answers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="cases whose collector or remainder is this")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.signal:
        print_after_signal(options.rounds)
        return
    cases = [case for case in CASES if options.only in (None, *case[:2]) or case.collector == "none"]
    took: dict[tuple[Case, str], list[float]] = {}
    for _ in range(options.rounds + 1):
        for case in cases:
            for protocol in ("grpc", "http/protobuf"):
                preload = [] if case.collector == "none" else ["dask_otel"]
                # Short where some are to be sent, or to fail, before the cluster closes.
                idle_timeout = "1h" if case.collector == "healthy" else "100ms"
                settings = {"distributed.scheduler.preload": preload, "otel.traces.idle-timeout": idle_timeout}
                with collector(case, protocol) as wire, dask.config.set(settings):
                    close = close_scheduler if case.left == "task" else close_cluster
                    took.setdefault((case, protocol), []).append(close(case, wire))
    print(
        "| collector | left to send | over | closing, s: median (min … max) | beyond that without the bridge | budget |"
    )
    print("|---|---|---|---:|---:|---:|")
    for (case, protocol), each in took.items():
        seconds = each[1:]  # the first imports what there is to import
        median = statistics.median(seconds)
        without = took[Case("none", "task" if case.left == "task" else "nothing"), protocol][1:]
        row = [*case[:2], protocol, f"{median:.2f} s ({min(seconds):.2f} … {max(seconds):.2f})"]
        if case.collector != "none":
            row += [f"{median - statistics.median(without):.2f} s", f"{case.budget} s"]
        print("| " + " | ".join(row + [""] * (6 - len(row))) + " |")


if __name__ == "__main__":
    main()
