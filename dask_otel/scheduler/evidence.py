"""Collects what verdicts rest on from what workers report: sampled at sweeps while a root is open.

Sums and counters go on for ever, and each root takes the difference from its start to its end: the cost does not grow
with the number of roots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        """Add the value of a sample, the latest so far."""
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


@dataclass(slots=True)
class _Machine:
    """What is known of a machine in one sample."""

    #: Its cores; None if not known.
    cpus: float | None = None
    #: Cores that all programs use.
    busy: float | None = None
    tasks: int = 0
    cpu: float = 0.0


@dataclass(slots=True)
class _Process:
    """A process with busy workers in one sample; in tests and notebooks, several workers share one."""

    machine: _Machine
    cpu: float = 0.0
    threads: int = 0
    tasks: int = 0


@dataclass(slots=True)
class _Sample:
    """What one pass over the workers has found."""

    number: int
    local: tuple[float, float] | None
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    machines: dict[str, _Machine] = field(default_factory=dict)
    processes: dict[str, _Process] = field(default_factory=dict)
    spilled: int = 0
    peak: float | None = None


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
        #: Workers of the last sample.
        self._workers: dict[str, Any] = {}
        #: The processors of this machine: seconds that they were busy, and seconds in all.
        self._cpu_times: tuple[float, float] | None = None
        self._before = self._latest = self._mark()

    def mark(self) -> Mark:
        """Return the state as of the sweep before this one: what opens in a sweep has begun after it."""
        return self._before

    def begin_sweep(self) -> None:
        """Note that a sweep begins."""
        self._before, self._latest = self._latest, self._mark()

    async def sample(self, pace: Pace, *, is_needed: bool) -> None:
        """Read what workers have reported; three microseconds for each.

        Parameters
        ----------
        is_needed
            Whether any root is open.
        """
        if not is_needed:
            self._cpu_times, self._workers = None, {}
            return
        found, workers = _Sample(self._samples, self._use_of_machine()), {}
        for some in in_parts(list(self._scheduler.workers.values())):
            for worker in some:
                workers[worker.address] = worker
                if worker.metrics:  # else it has just come
                    with self._safety.guard("evidence"):  # a worker may have another version
                        self._read(worker, found)
            await pace.rest()
        self._workers = workers
        self._add(found)

    def left(self, message: Mapping[str, Any]) -> None:
        """Note the event ``remove-worker`` of a worker that left unexpectedly."""
        worker = self._workers.get(str(message.get("worker")))
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
            machine_cpus=mean("machine.cpus", "machine.n"),
            machine_tasks=mean("machine.tasks", "machine.n"),
            machine_cpu=mean("machine.cpu", "machine.n"),
            machine_busy=mean("machine.busy", "machine.busy.n"),
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

    def _read(self, worker: Any, found: _Sample) -> None:
        """Add what one worker has reported."""
        metrics, sums = worker.metrics, found.sums
        memory, spilled = metrics["memory"], metrics["spilled_bytes"]
        cpu, delay = metrics["cpu"] / 100, max(0.0, metrics["event_loop_interval"] - self._tick)
        tasks = min(metrics["task_counts"].get("executing", 0), worker.nthreads)
        found.spilled += spilled["disk"]
        if worker.memory_limit:
            found.peak = max(found.peak or 0.0, memory / worker.memory_limit)
        unmanaged = min(memory, max(0, memory - worker.nbytes + spilled["memory"]))
        sums["memory"] += memory
        sums["unmanaged"] += unmanaged
        if worker.status.name == "paused":
            sums["paused.memory"] += memory
            sums["paused.unmanaged"] += unmanaged
        if not tasks:
            return
        sums["loop"] += delay
        sums["loop.n"] += 1
        if "gil_contention" in metrics:
            sums["gil"] += metrics["gil_contention"]
            sums["gil.n"] += 1
        name = "" if worker.address.startswith("inproc") else worker.address
        process = found.processes.get(name)
        if process is None:
            process = found.processes[name] = _Process(self._machine(worker.host, metrics, found))
            process.cpu = cpu
            process.machine.cpu += cpu
        process.threads += worker.nthreads
        process.tasks += tasks
        process.machine.tasks += tasks

    def _machine(self, host: str, metrics: Mapping[str, Any], found: _Sample) -> _Machine:
        machine = found.machines.get(host)
        if machine is None:
            machine = found.machines[host] = _Machine()
            times = metrics.get("host_cpu")  # with ``distributed.admin.system-monitor.host-cpu``
            if times:
                total = sum(value for name, value in times.items() if not name.startswith("guest"))
                machine.cpus = max(1.0, round(total))
                machine.busy = max(0.0, total - times.get("idle", 0.0) - times.get("iowait", 0.0))
            elif host == self._scheduler_host():
                machine.cpus = float(CPU_COUNT)
                if found.local and _psutil.cpu_count() == CPU_COUNT:  # else a container has a part of them
                    busy, seconds = found.local
                    machine.busy = busy / seconds * CPU_COUNT
        return machine

    def _scheduler_host(self) -> str:
        return str(get_address_host(self._scheduler.address))

    def _use_of_machine(self) -> tuple[float, float] | None:
        """Return for how long the processors of this machine were busy since the last sample, and in all."""
        if _psutil is None:
            return None
        times = _psutil.cpu_times()._asdict()
        total = sum(value for name, value in times.items() if not name.startswith("guest"))
        now = total - times.get("idle", 0.0) - times.get("iowait", 0.0), total
        before, self._cpu_times = self._cpu_times, now
        if before is None or total <= before[1]:
            return None
        return now[0] - before[0], total - before[1]

    def _add(self, found: _Sample) -> None:
        """Take a pass over the workers into the sums."""
        self._samples += 1
        sums = found.sums
        for process in found.processes.values():
            sums["process.n"] += 1
            sums["process.cpu"] += process.cpu
            sums["process.threads"] += process.threads
            sums["process.tasks"] += process.tasks
        known = [each for each in found.machines.values() if each.cpus is not None]
        if known:
            sums["machine.n"] += 1
            sums["machine.cpus"] += sum(each.cpus or 0.0 for each in known)
            sums["machine.tasks"] += sum(each.tasks for each in known)
            sums["machine.cpu"] += sum(each.cpu for each in known)
            if all(each.busy is not None for each in known):
                sums["machine.busy.n"] += 1
                sums["machine.busy"] += sum(each.busy or 0.0 for each in known)
        for name, value in sums.items():
            self._sums[name] += value
        self._spilled.add(found.number, found.spilled)
        self._threads.add(found.number, self._scheduler.total_nthreads)
        if found.peak is not None:
            self._memory.add(found.number, found.peak)


def _collecting_garbage() -> float | None:
    """Seconds for which this process has collected garbage, as Dask counts them; None if it does not."""
    timer = getattr(getattr(gc, "_gc_diagnosis", None), "_fractional_timer", None)
    return getattr(timer, "duration_total", None)
