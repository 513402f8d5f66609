"""What a workload did, measured without the bridge: processor time by process, fine metrics, and the task stream."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

import psutil

from .cluster import Cluster


@dataclass
class Evidence:
    """Seconds of processor time, of threads, and of activities."""

    seconds: float = 0.0
    #: Processor time by what a process is.
    cpu: Counter[str] = field(default_factory=Counter)
    #: Fine metrics of executions and of other contexts in seconds, by context and activity.
    activities: Counter[str] = field(default_factory=Counter)
    #: Task stream: seconds by action.
    stream: Counter[str] = field(default_factory=Counter)
    tasks: int = 0

    @property
    def others(self) -> float:
        """Mean number of cores that other programs used."""
        return self.cpu["others"] / self.seconds if self.seconds else 0.0

    def lines(self) -> list[str]:
        """Return what is above, as text."""

        def text(counted: Counter[str], largest: int = 12) -> str:
            return ", ".join(
                f"{name} {seconds:.1f}" for name, seconds in counted.most_common(largest) if seconds > 0.05
            )

        return [
            f"cores: {text(Counter({name: each / self.seconds for name, each in self.cpu.items()}))}",
            f"fine metrics: {text(self.activities)}",
            f"task stream: {self.tasks} runs; {text(self.stream)}",
        ]


class Meter:
    """Measures while the block runs."""

    def __init__(self, cluster: Cluster, *, stream: bool) -> None:
        self._cluster = cluster
        self._stream = stream
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        #: Of each process that was seen: what it is, its time at first and at last.
        self._seen: dict[int, list] = {}
        self.evidence = Evidence()

    def __enter__(self) -> Evidence:
        if self._stream:
            self._cluster.client.get_task_stream()
        self._look(first=True)
        self._system, self._start = _system(), monotonic()
        self._thread.start()
        return self.evidence

    def __exit__(self, *exc: object) -> None:
        found = self.evidence
        found.seconds = monotonic() - self._start
        self._stopped.set()
        self._thread.join()
        self._look()
        total = _system() - self._system
        for role, first, last in self._seen.values():
            found.cpu[role] += last - first
        found.cpu["others"] = max(0.0, total - sum(found.cpu.values()))
        if not self._stream:
            return
        for (context, *_, activity, unit), value in self._cluster.client.run_on_scheduler(_fine_metrics):
            if unit == "seconds":
                found.activities[f"{context}/{activity}"] += value
        runs = [stop for each in self._cluster.client.get_task_stream() for stop in each["startstops"]]
        found.tasks = sum(each["action"] == "compute" for each in runs)
        for each in runs:
            found.stream[each["action"]] += each["stop"] - each["start"]

    def _sample(self) -> None:
        while not self._stopped.wait(0.25):
            self._look()

    def _look(self, *, first: bool = False) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                times = process.cpu_times()
                known = self._seen.get(process.pid)
                if known is None:
                    # A process that starts now has all its time in here.
                    known = self._seen[process.pid] = [_role(process, own), 0.0, 0.0]
                    known[1] = times.user + times.system if first else 0.0
                known[2] = times.user + times.system
            except psutil.NoSuchProcess:
                continue


def _role(process: psutil.Process, own: psutil.Process) -> str:
    command = process.cmdline()
    if process.pid == own.pid:
        return "client"
    if "scheduler" in command:
        return "scheduler"
    return "nannies" if "worker" in command and "--no-nanny" not in command else f"worker {process.pid}"


def _system() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.softirq + getattr(times, "steal", 0.0)


def _fine_metrics(dask_scheduler: object) -> list:
    return [(key, value) for key, value in dask_scheduler.cumulative_worker_metrics.items() if isinstance(key, tuple)]
