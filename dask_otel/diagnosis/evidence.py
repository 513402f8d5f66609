"""What a verdict may rest on: the facts of a run, and of the cluster meanwhile. What is not known is None.

Times are seconds, sizes bytes, processors are counted in cores: 1.0 is one core, all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .parts import CriticalPath, GroupKey, OnPath, Step, Waterfall

__all__ = ["ClusterEvidence", "Departure", "Failures", "GraphFacts", "GroupFacts", "RunFacts"]


@dataclass(slots=True)
class GroupFacts:
    """The tasks of one group in a run."""

    key: GroupKey
    title: Step
    #: Tasks that entered, and runs that ended with a result.
    tasks: int = 0
    completed: int = 0
    #: Seconds that the runs took, in all; and the middle one and the longest.
    compute: float = 0.0
    p50: float | None = None
    longest: float | None = None
    #: Bytes of all results, and of the largest.
    output: int | None = None
    largest_output: int | None = None
    #: Thread-seconds by Dask's fine metrics, where no other group has the same prefix.
    cpu: float | None = None
    noncpu: float | None = None
    #: Tasks that ran again though they had a result, and that were lost while they ran.
    recomputed: int = 0
    lost: int = 0
    critical: OnPath | None = None


@dataclass(slots=True)
class Failures:
    """How tasks of a run ended, other than with a result."""

    erred: int = 0
    #: Tasks whose inputs failed.
    upstream_failed: int = 0
    retried: int = 0


@dataclass(slots=True)
class GraphFacts:
    """The graphs that a run consists of."""

    count: int = 0
    #: Of the largest graph.
    tasks: int | None = None
    size: int | None = None


@dataclass(slots=True)
class Departure:
    """A worker that left though nobody had asked it to."""

    #: As its last heartbeat said.
    memory: int | None = None
    limit: int | None = None
    #: Tasks that it had not finished, and results that only it had.
    tasks: int | None = None
    results: int | None = None
    #: The most frequent prefix of the unfinished tasks.
    prefix: str = ""


@dataclass(slots=True)
class ClusterEvidence:
    """What the scheduler saw of the cluster during a run. Other runs may have had a part in it.

    Means are over time and over what was busy: workers that had tasks on threads when they sent a heartbeat.
    """

    #: Of a busy process (workers may share one): cores that it used, its threads, and how many had tasks; and the cores
    #: that all busy processes of its machine used.
    process_cpu: float | None = None
    process_threads: float | None = None
    process_tasks: float | None = None
    process_machine_cpu: float | None = None
    #: Of machines whose processors are known: their cores, the threads of busy workers there that had tasks, and the
    #: cores that the workers' processes used, and that all programs used.
    machine_cpus: float | None = None
    machine_tasks: float | None = None
    machine_cpu: float | None = None
    machine_busy: float | None = None
    #: Parts (0…1) of the machines with busy workers: those whose processors nobody knows, and those where workers may
    #: only have some of them, as in containers.
    machines_unknown: float | None = None
    machines_limited: float | None = None
    #: Part of the time (0…1) in which the interpreter's lock was taken, if workers have ``gilknocker``.
    gil_contention: float | None = None
    #: By how much a tick of a busy worker's event loop was late.
    worker_loop_delay: float | None = None
    #: By how much ticks of the scheduler's event loop were late, in all, and what garbage collection took there.
    late_ticks: float | None = None
    garbage_collection: float | None = None
    #: Most bytes on the workers' disks at a time.
    spilled: int | None = None
    #: Part (0…1) of the workers' memory that Dask does not manage: of paused workers if there were any.
    unmanaged: float | None = None
    #: The highest use of a worker's memory, as a part of its limit.
    memory_peak: float | None = None
    #: Seconds in which workers wrote data to disk and read it, outside of tasks: memory monitors, and for transfers.
    background_disk: float | None = None
    #: Seconds in which workers received data from others, and sent data to others and to clients, each summed over
    #: transfers; and bytes that were sent.
    receiving: float | None = None
    sending: float | None = None
    sent_bytes: int | None = None
    #: Threads of the cluster when the run began, and the most since.
    threads_start: int | None = None
    threads_most: int | None = None
    #: Workers that left unexpectedly: the first ones, and how many in all.
    departures: tuple[Departure, ...] = ()
    departed: int = 0


@dataclass(slots=True)
class RunFacts:
    """A segment of a root, and the cluster meanwhile."""

    waterfall: Waterfall
    critical: CriticalPath | None = None
    groups: Sequence[GroupFacts] = ()
    #: Whether all workers have delivered their fine metrics.
    metrics_complete: bool = True
    failures: Failures = field(default_factory=Failures)
    graphs: GraphFacts = field(default_factory=GraphFacts)
    cluster: ClusterEvidence = field(default_factory=ClusterEvidence)
    #: Thread-seconds by which the cluster had fewer threads than the most, until it had so many.
    lacked: float | None = None
