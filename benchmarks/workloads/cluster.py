"""A real `dask scheduler` with the bridge, and real `dask worker` processes with the options that a workload needs."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from distributed import Client
from support.environment import python_path
from support.processes import LOOPBACK, Process

from .slow_network import SlowNetwork

#: Where workers find the functions of the workloads.
FOLDER = Path(__file__).parents[1]
#: The bridge's defaults. Processes of the tests have shorter ones.
SETTINGS = {"DASK_OTEL__TRACES__IDLE_TIMEOUT": "5s", "DASK_OTEL__SWEEP_INTERVAL": "1s"}


@dataclass(frozen=True)
class WorkerOptions:
    """One command `dask worker`: it starts ``processes`` worker processes, each with a nanny."""

    processes: int = 1
    threads: int = 1
    memory: str = "2GiB"
    resources: str = ""
    #: Bytes a second that others can get from the worker, which then has no nanny; 0 for as many as they can.
    network: float = 0.0

    def arguments(self) -> list[str]:
        """Return the command's arguments."""
        arguments = ["--nworkers", str(self.processes), "--nthreads", str(self.threads), "--memory-limit", self.memory]
        return arguments + (["--resources", self.resources] if self.resources else [])


@dataclass(frozen=True)
class Workload:
    """Work, and the cluster that it runs on.

    ``run`` submits the work and waits for it.
    """

    name: str
    run: Callable[[Cluster], None]
    #: The workers that are there at first.
    workers: tuple[WorkerOptions, ...]
    #: Ids of verdicts whose meaning is this workload's illness; none for a healthy one. None for a cured one: without
    #: one illness, another may show.
    expected: frozenset[str] | None = frozenset()


class Cluster:
    """A running cluster and its client. A workload can add workers."""

    def __init__(self, address: str, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._lock = threading.Lock()
        self.address = address
        self.client: Client

    def add(self, options: WorkerOptions) -> None:
        """Start `dask worker`; do not wait until it has connected."""
        with self._lock:
            arguments = ["--dashboard-address", "127.0.0.1:0", *options.arguments()]
            if options.network:
                network = self._stack.enter_context(SlowNetwork(options.network))
                listen = ("--listen-address", f"tcp://127.0.0.1:{network.port}")
                arguments += ["--no-nanny", *listen, "--contact-address", network.address]
            else:
                arguments += ["--host", "127.0.0.1"]
            environment = {"PYTHONPATH": python_path(str(FOLDER))}
            worker = Process("worker", self.address, *arguments, folder=self._folder, env=environment)
            self._stack.callback(worker.stop_or_kill)

    @contextmanager
    def later(self, *steps: tuple[float, Callable[[], None]]) -> Iterator[None]:
        """Call each of some functions after so many seconds, in a thread, while the block runs."""
        timers = [threading.Timer(seconds, function) for seconds, function in steps]
        for each in timers:
            each.start()
        try:
            yield
        finally:
            for each in timers:
                each.join()

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers, without their nannies'."""
        return list(self.client.run(os.getpid).values())


@contextmanager
def start(workload: Workload, environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Start the cluster of a workload, with variables for its scheduler, and wait for its workers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        variables = SETTINGS | {"PYTHONPATH": python_path(str(FOLDER))} | dict(environment)
        scheduler = Process(
            "scheduler", *LOOPBACK, "--port", "0", "--preload", "dask_otel", folder=folder, env=variables
        )
        stack.callback(scheduler.stop)
        cluster = Cluster(scheduler.wait_for(r"Scheduler at:\s+(tcp://\S+)")[1], folder, stack)
        for options in workload.workers:
            cluster.add(options)
        cluster.client = stack.enter_context(Client(cluster.address))
        if workload.workers:
            cluster.client.wait_for_workers(sum(each.processes for each in workload.workers), timeout=60)
        yield cluster
        cluster.client.shutdown()


def kill(pid: int) -> None:
    """End a process as the kernel does when memory is short."""
    os.kill(pid, 9)
