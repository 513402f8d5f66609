"""Collects what verdicts rest on from what workers report: sampled at sweeps while a root is open.

Sums and counters go on for ever, and each root takes the difference from its start to its end: the cost does not grow
with the number of roots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dask.config
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import gc, system_monitor
from distributed.comm import get_address_host

from ..diagnosis.evidence import ClusterEvidence, Departure
from ..safety import Safety
from .cluster import Delay, in_parts
from .outcomes import prefix_of
from .pace import Pace

__all__ = ["Evidence", "Mark"]

#: Workers whose departure is remembered, and that one run names; keys of tasks that are looked at for their prefix.
MAX_DEPARTURES, MAX_NAMED, MAX_KEYS = 100, 10, 1000
#: Maxima that are kept.
MAX_PEAKS = 200
#: Activities of transfers that take time.
_TRANSFER = ("network", "serialize", "deserialize", "compress", "decompress", "offload", "other")
_RECEIVING = [("gather-dep", activity, "seconds") for activity in _TRANSFER]
_SENDING = [("get-data", activity, "seconds") for activity in _TRANSFER]
_SENT = [("get-data", activity, "bytes") for activity in ("memory-read", "disk-read")]
_DISK = [
    *(("memory-monitor", activity, "seconds") for activity in ("disk-write", "serialize", "compress")),
    ("get-data", "disk-read", "seconds"),
    ("gather-dep", "disk-write", "seconds"),
]
#: Dask's own requirement; None if it does without one day.
_psutil: Any = getattr(system_monitor, "psutil", None)


@dataclass(slots=True)
class Mark:
    """The state at one moment."""

    #: Number of the sample that follows.
    sample: int
    sums: Mapping[str, float]
    counters: Mapping[str, float | None]
    departed: int
    threads: int


class Peaks:
    """The highest value since any sample: those that no later one exceeds."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._values: list[float] = []

    def add(self, sample: int, value: float) -> None:
        """Add a value of a sample, the latest so far."""
        if self._samples and self._samples[-1] == sample and self._values[-1] >= value:
            return
        while self._values and self._values[-1] <= value:
            self._values.pop()
            self._samples.pop()
        self._samples.append(sample)
        self._values.append(value)
        if len(self._values) > MAX_PEAKS:  # they have fallen all the time: the oldest ones become less exact
            del self._samples[1 : MAX_PEAKS // 2 : 2]
            del self._values[1 : MAX_PEAKS // 2 : 2]

    def since(self, sample: int) -> float | None:
        """Return the highest value of a sample and all that followed."""
        index = bisect_left(self._samples, sample)
        return self._values[index] if index < len(self._values) else None


@dataclass(slots=True, eq=False)
class _Machine:
    """A machine, as the latest heartbeats of its workers say."""

    #: Its cores, and how many all programs use; None if not known.
    cpus: float | None = None
    busy: float | None = None
    is_local: bool = False
    workers: int = 0
    #: Threads that have tasks, and cores that processes with tasks use.
    tasks: int = 0
    cpu: float = 0.0


@dataclass(slots=True, eq=False)
class _Process:
    """A process with workers; in tests and notebooks, several workers share one."""

    machine: _Machine
    cpu: float = 0.0
    #: Threads of workers that have tasks, and how many of them do.
    threads: int = 0
    tasks: int = 0


@dataclass(slots=True, eq=False)
class _Report:
    """What the latest heartbeat of a worker added."""

    worker: Any
    process: _Process
    metrics: Mapping[str, Any] | None = None
    threads: int = 0
    tasks: int = 0
    spilled: int = 0


class Evidence:
    """Samples the workers of one scheduler.

    Parameters
    ----------
    scheduler
        ``distributed.Scheduler``
    """

    def __init__(self, scheduler: Any, delay: Delay, safety: Safety) -> None:
        self._scheduler = scheduler
        self._delay = delay
        self._safety = safety
        #: Seconds from one tick of a worker's event loop to the next without a delay.
        self._tick = float(parse_timedelta(dask.config.get("distributed.admin.tick.interval"), default="ms"))
        #: Sums over samples. Those that end in ``.n`` count what a mean is over.
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._samples = 0
        self._spilled, self._memory, self._threads = Peaks(), Peaks(), Peaks()
        self._departures: deque[Departure] = deque(maxlen=MAX_DEPARTURES)
        self._departed = 0
        #: By address of the worker, of the machine, and of the process.
        self._reports: dict[str, _Report] = {}
        self._machines: dict[str, _Machine] = {}
        self._processes: dict[str, _Process] = {}
        #: Bytes on all workers' disks.
        self._on_disk = 0
        #: The processors of this machine: seconds that they were busy, and seconds in all.
        self._cpu_times: tuple[float, float] | None = None
        #: How many of its cores were busy between the last two sweeps.
        self._use: float | None = None
        self._before = self._latest = self._mark()

    def mark(self) -> Mark:
        """Return the state as of the sweep before this one: what opens in a sweep has begun after it."""
        return self._before

    def begin_sweep(self) -> None:
        """Note that a sweep begins."""
        self._before, self._latest = self._latest, self._mark()
        self._use = self._use_of_machine()  # also while no root is open: the first sample has something to compare

    async def sample(self, pace: Pace, *, is_needed: bool) -> None:
        """Read what workers have reported since the last sample: ten microseconds for each that has.

        Parameters
        ----------
        is_needed
            Whether any root is open.
        """
        if not is_needed:
            if self._reports:
                self._forget_all()
            return
        workers, reports = self._scheduler.workers, self._reports
        reporting: set[_Process] = set()
        for some in in_parts(list(workers.values())):
            for worker in some:
                metrics, report = worker.metrics, reports.get(worker.address)
                if metrics and (report is None or report.metrics is not metrics):
                    with self._safety.guard("evidence"):  # a worker may have another version
                        self._read(worker, metrics, reporting)
            await pace.rest()
        if len(reports) > len(workers):
            for address in [address for address in reports if address not in workers]:
                self._forget(address)
        self._add(reporting)

    def left(self, message: Mapping[str, Any]) -> None:
        """Note the event ``remove-worker`` of a worker that left unexpectedly."""
        report = self._reports.get(str(message.get("worker")))
        worker = report.worker if report else None
        metrics = worker.metrics if worker else {}
        unfinished = message.get("processing-tasks", ())
        prefixes = Counter(map(prefix_of, islice(unfinished, MAX_KEYS)))
        results = len(message.get("lost-computed-tasks", ())) + len(message.get("lost-scattered-tasks", ()))
        self._departed += 1
        self._departures.append(
            Departure(
                metrics.get("memory"),
                (worker.memory_limit or None) if worker else None,
                len(unfinished),
                results,
                prefixes.most_common(1)[0][0] if prefixes else "",
            )
        )

    def since(self, mark: Mark) -> ClusterEvidence:
        """Return what was seen since a mark."""
        sums, before = self._sums, mark.sums
        now = self._counters()

        def mean(name: str, over: str) -> float | None:
            number = sums[over] - before.get(over, 0.0)
            return (sums[name] - before.get(name, 0.0)) / number if number > 0 else None

        def difference(name: str) -> float | None:
            new, old = now[name], mark.counters[name]
            return None if new is None or old is None else max(0.0, new - old)

        departed = self._departed - mark.departed
        spilled, sent = self._spilled.since(mark.sample), difference("sent")
        return ClusterEvidence(
            process_cpu=mean("process.cpu", "process.n"),
            process_threads=mean("process.threads", "process.n"),
            process_tasks=mean("process.tasks", "process.n"),
            process_machine_cpu=mean("process.machine", "process.n"),
            machine_cpus=mean("machine.cpus", "machine.n"),
            machine_tasks=mean("machine.tasks", "machine.n"),
            machine_cpu=mean("machine.cpu", "machine.n"),
            machine_busy=mean("machine.busy", "machine.busy.n"),
            machines_unknown=mean("machines.unknown", "machines.n"),
            machines_limited=mean("machines.limited", "machines.n"),
            gil_contention=mean("gil", "gil.n"),
            worker_loop_delay=mean("loop", "loop.n"),
            late_ticks=difference("late"),
            garbage_collection=difference("garbage"),
            spilled=None if spilled is None else int(spilled),
            unmanaged=mean("paused.unmanaged", "paused.memory")
            if sums["paused.memory"] > before.get("paused.memory", 0.0)
            else mean("unmanaged", "memory"),
            memory_peak=self._memory.since(mark.sample),
            background_disk=difference("disk"),
            receiving=difference("receiving"),
            sending=difference("sending"),
            sent_bytes=None if sent is None else int(sent),
            threads_start=mark.threads,
            threads_most=max(mark.threads, int(self._threads.since(mark.sample) or 0), self._scheduler.total_nthreads),
            departures=tuple(self._departures)[-departed:][:MAX_NAMED] if departed else (),
            departed=departed,
        )

    def _mark(self) -> Mark:
        return Mark(self._samples, dict(self._sums), self._counters(), self._departed, self._scheduler.total_nthreads)

    def _counters(self) -> dict[str, float | None]:
        """Read what others sum up."""
        metrics = self._scheduler.cumulative_worker_metrics
        counters: dict[str, float | None] = {"late": self._delay.late, "garbage": _collecting_garbage()}
        for name, keys in (("receiving", _RECEIVING), ("sending", _SENDING), ("sent", _SENT), ("disk", _DISK)):
            counters[name] = sum(metrics.get(key, 0.0) for key in keys)
        return counters

    def _read(self, worker: Any, metrics: Mapping[str, Any], reporting: set[_Process]) -> None:
        """Take in a heartbeat: what it has, instead of what the one before had."""
        memory, spilled = metrics["memory"], metrics["spilled_bytes"]
        cpu, delay = metrics["cpu"] / 100, max(0.0, metrics["event_loop_interval"] - self._tick)
        tasks = min(metrics["task_counts"].get("executing", 0), worker.nthreads)
        unmanaged = min(memory, max(0, memory - worker.nbytes + spilled["memory"]))
        on_disk = spilled["disk"]
        report = self._reports.get(worker.address)
        if report is None:
            report = self._reports[worker.address] = _Report(worker, self._process(worker))
            report.process.machine.workers += 1
        report.metrics = metrics
        self._on_disk += on_disk - report.spilled
        report.spilled = on_disk
        process = report.process
        self._has(report, tasks, cpu)
        times = metrics.get("host_cpu")  # with ``distributed.admin.system-monitor.host-cpu``
        if times:
            total = sum(value for name, value in times.items() if not name.startswith("guest"))
            process.machine.cpus = max(1.0, round(total))
            process.machine.busy = max(0.0, total - times.get("idle", 0.0) - times.get("iowait", 0.0))
        sums = self._sums
        sums["memory"] += memory
        sums["unmanaged"] += unmanaged
        if worker.status.name == "paused":
            sums["paused.memory"] += memory
            sums["paused.unmanaged"] += unmanaged
        if worker.memory_limit:
            self._memory.add(self._samples, memory / worker.memory_limit)
        if tasks:
            reporting.add(process)
            sums["loop"] += delay
            sums["loop.n"] += 1
            if "gil_contention" in metrics:
                sums["gil"] += metrics["gil_contention"]
                sums["gil.n"] += 1

    def _has(self, report: _Report, tasks: int, cpu: float) -> None:
        """Note that a worker has tasks on so many threads, and what its process uses."""
        process, machine = report.process, report.process.machine
        threads = report.worker.nthreads if tasks else 0
        before = process.cpu if process.tasks else 0.0
        process.tasks += tasks - report.tasks
        process.threads += threads - report.threads
        process.cpu = cpu
        machine.tasks += tasks - report.tasks
        machine.cpu += (cpu if process.tasks else 0.0) - before
        report.tasks, report.threads = tasks, threads

    def _process(self, worker: Any) -> _Process:
        name = "" if worker.address.startswith("inproc") else worker.address
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = _Process(self._machine(worker.host))
        return process

    def _machine(self, host: str) -> _Machine:
        machine = self._machines.get(host)
        if machine is None:
            machine = self._machines[host] = _Machine()
            if host == self._scheduler_host():
                machine.cpus, machine.is_local = float(CPU_COUNT), True
        return machine

    def _forget(self, address: str) -> None:
        report = self._reports.pop(address)
        self._has(report, 0, report.process.cpu)
        self._on_disk -= report.spilled
        self._processes.pop(address, None)
        report.process.machine.workers -= 1
        if not report.process.machine.workers:
            self._machines.pop(report.worker.host, None)

    def _forget_all(self) -> None:
        self._reports, self._machines, self._processes = {}, {}, {}
        self._on_disk = 0

    def _scheduler_host(self) -> str:
        return str(get_address_host(self._scheduler.address))

    def _use_of_machine(self) -> float | None:
        """Return how many cores of this machine were busy since the last call; None if that is not known."""
        if _psutil is None or _psutil.cpu_count() != CPU_COUNT:  # a container has a part of them
            return None
        times = _psutil.cpu_times()._asdict()
        total = float(sum(value for name, value in times.items() if not name.startswith("guest")))
        busy = total - times.get("idle", 0.0) - times.get("iowait", 0.0)
        before, self._cpu_times = self._cpu_times, (busy, total)
        if before is None or total <= before[1]:
            return None
        return float(CPU_COUNT * (busy - before[0]) / (total - before[1]))

    def _add(self, reporting: set[_Process]) -> None:
        """Take the processes that have reported, and the machines as they are now, into the sums."""
        sums = self._sums
        for process in reporting:
            sums["process.n"] += 1
            sums["process.cpu"] += process.cpu
            sums["process.threads"] += process.threads
            sums["process.tasks"] += process.tasks
            sums["process.machine"] += process.machine.cpu
        busy = [each for each in self._machines.values() if each.tasks]
        known = [each for each in busy if each.cpus is not None]
        for machine in known:
            if machine.is_local:
                machine.busy = self._use
        sums["machines.n"] += len(busy)
        sums["machines.unknown"] += len(busy) - len(known)
        # What is known of this machine is so where nothing limits its processes.
        sums["machines.limited"] += sum(not each.is_local or each.busy is None for each in busy)
        if known:
            sums["machine.n"] += 1
            sums["machine.cpus"] += sum(each.cpus or 0.0 for each in known)
            sums["machine.tasks"] += sum(each.tasks for each in known)
            sums["machine.cpu"] += sum(each.cpu for each in known)
            if all(each.busy is not None for each in known):
                sums["machine.busy.n"] += 1
                sums["machine.busy"] += sum(each.busy or 0.0 for each in known)
        self._spilled.add(self._samples, self._on_disk)
        self._threads.add(self._samples, self._scheduler.total_nthreads)
        self._samples += 1


def _collecting_garbage() -> float | None:
    """Seconds for which this process has collected garbage, as Dask counts them; None if it does not."""
    timer = getattr(getattr(gc, "_gc_diagnosis", None), "_fractional_timer", None)
    return getattr(timer, "duration_total", None)
