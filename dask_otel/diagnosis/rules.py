"""The rules of the second level: from a part of the waterfall, and what else is known, to a cause.

A rule names a cause only if the numbers that are known show it. ``docs/verdicts.md`` says which these are; what was
measured to set the thresholds is beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from .evidence import GroupFacts, RunFacts
from .parts import OWN, Step
from .quantities import number, percent, seconds, size

__all__ = ["MINOR", "RULES", "SHARE", "Case", "Suspect", "late_workers", "lost_work"]

#: Part of the wall (0…1) from which on a cause is worth to be named; more where a part of it is normal: tasks wait a
#: little on every machine that others use, too, and a shuffle has to move data.
SHARE = {"io": 0.2, "oversubscribed": 0.2, "p2p": 0.25}

#: Part of the wall (0…1) from which on a part of the waterfall adds to a cause that has others.
MINOR = 0.03
#: Seconds; mean duration of tasks that are always tiny, and of those that are if they wait for a moment only.
TINY, SHORT = 0.02, 0.1
#: Part of the time of a task that what is around it may take.
WORTH_IT = 0.5
#: Seconds that handing out a task may take, with all that waits for it.
MOMENT = 0.05
#: The longest task of a group, in terms of the median one; the first shows skew, the second stragglers.
SKEWED, LONG = 10.0, 3.0
#: Steps of many tasks can each keep threads waiting for their longest task, and for a little more.
ONE_EACH = 1.2
#: Part of the time that threads were idle for which one task must have run to be the cause.
MOST = 0.7
#: Tasks that a group needs to have a middle.
ENOUGH = 4
#: Part (0…1) of the machines that does not count: it takes a sweep until the use of a machine is known.
FEW_MACHINES = 0.1
#: Cores that every machine has; a container may have fewer.
LEAST_CORES = 0.7
#: Part (0…1) of the time in functions for which tasks use a processor if they do nothing but wait.
NO_CPU = 0.05
#: Seconds by which ticks of a worker's event loop are late on average: if the interpreter's lock is contended (10 to
#: 150 ms were seen with four threads, 0 to 2 ms with threads that do not hold it), and if the loop itself is the cause.
LOCKED, LATE = 0.006, 0.1
#: Seconds for each second of the run that ticks of the scheduler were late, and that garbage was collected there.
LATE_SCHEDULER, COLLECTING = 0.2, 0.1
#: Bytes for each task that are more than a message.
MUCH = 100_000
#: Tasks or bytes of a graph that is large; seconds that each of several graphs takes if they are.
LARGE_TASKS, LARGE_SIZE, LARGE_SECONDS, SEVERAL = 5_000, 10 * 2**20, 0.3, 3


@dataclass(slots=True)
class Suspect:
    """A cause, and what it cost."""

    id: str
    #: Wall seconds; what the critical path has of it, if that is known.
    seconds: float
    evidence: str
    on_path: float | None = None
    #: What the evidence names by ``{0}``, see ``Finding``.
    steps: tuple[Step, ...] = ()


class Case:
    """The facts of a run, and what follows from them for several rules."""

    def __init__(self, facts: RunFacts) -> None:
        self.facts = facts
        self.cluster = facts.cluster
        self.waterfall = facts.waterfall
        self.threads = facts.waterfall.threads
        #: Of the run.
        self.seconds = facts.waterfall.seconds

    def wall(self, part: str) -> float:
        """Wall seconds of a part."""
        return min(self.waterfall.wall(part), self.seconds)

    def thread_seconds(self, part: str) -> float:
        """Thread-seconds of a part."""
        return self.waterfall.parts.get(part, 0.0)

    def of_run(self, wall: float) -> str:
        """E.g. ``12 s of 16 s``."""
        return f"{seconds(wall)} of {seconds(self.seconds)}"

    def gaps(self, *causes: str) -> float | None:
        """Seconds of gaps on the critical path; None if it has none of these."""
        path = self.facts.critical
        return sum(path.gaps.get(cause, 0.0) for cause in causes) or None if path else None

    def on_path(self, groups: Iterable[GroupFacts]) -> float | None:
        """Seconds of runs of these groups on the critical path; None if it has none."""
        return sum(group.critical.seconds for group in groups if group.critical) or None

    @cached_property
    def completed(self) -> int:
        """Runs that ended with a result."""
        return sum(group.completed for group in self.facts.groups)

    @cached_property
    def mean(self) -> float | None:
        """Seconds that a run took, as a mean."""
        if not self.completed:
            return None
        return sum(group.compute for group in self.facts.groups) / self.completed

    @cached_property
    def typical(self) -> float:
        """The middle duration of tasks, weighted by what groups took in all."""
        known = [(group.compute, group.p50) for group in self.facts.groups if group.p50 is not None]
        total = sum(compute for compute, _ in known)
        return sum(compute * p50 for compute, p50 in known) / total if total > 0 else 0.0

    @cached_property
    def skewed(self) -> list[tuple[float, GroupFacts]]:
        """Groups whose longest task stands out, with by how many seconds, that with the most first."""
        found = []
        for group in self.facts.groups:
            if group.longest is not None and group.p50 is not None and group.completed >= ENOUGH:
                excess = group.longest - group.p50
                if excess >= 0.05 * self.seconds and group.longest >= LONG * group.p50:
                    found.append((excess, group))
        return sorted(found, key=lambda each: each[0], reverse=True)

    @cached_property
    def last_wave(self) -> float:
        """Wall seconds for which threads may normally wait for the last tasks of a group that filled them all."""
        return (1 - 1 / self.threads) if self.threads > 1 else 0.0

    @cached_property
    def spills(self) -> float:
        """Thread-seconds for which writing and reading by Dask held up the threads of a worker, at most."""
        written = (self.cluster.background_disk or 0.0) + self.thread_seconds("disk")
        return written * max(1.0, self.cluster.process_threads or 1.0)

    @cached_property
    def on_cpu(self) -> float:
        """Part (0…1) of the time in functions for which their threads used a processor."""
        running = self.thread_seconds("cpu") + self.thread_seconds("noncpu")
        return self.thread_seconds("cpu") / running if running > 0 else 0.0

    @cached_property
    def lock(self) -> str:
        """How the interpreter's lock shows; empty if it does not."""
        cluster = self.cluster
        cpu, tasks, contention = cluster.process_cpu, cluster.process_tasks, cluster.gil_contention
        if cpu is None or tasks is None or tasks < 1.5 or self.on_cpu * tasks < 0.3:
            return ""
        if cluster.machine_cpus is not None and cluster.machine_cpus * tasks < 1.2 * (cluster.machine_tasks or 0.0):
            return ""  # there is no second core for the process
        shown = f"a worker process with {number(tasks)} tasks at a time used {number(cpu)} cores"
        if contention is not None:
            taken = f"{shown} and the interpreter's lock was taken for {percent(contention)} of the time"
            return taken if contention >= 0.5 else ""
        if self.others_use_machine:
            return ""  # perhaps the process only did not get a second core
        return shown if 0.6 <= cpu <= 1.3 and self.is_late else ""

    @property
    def is_late(self) -> bool:
        """Whether event loops of workers may have waited for the lock or a core."""
        delay = self.cluster.worker_loop_delay
        return delay is None or delay >= LOCKED

    @property
    def knows_cores(self) -> bool:
        """Whether the processors of all machines are known."""
        return self.cluster.machine_cpus is not None and not self.cluster.machines_unknown

    @property
    def may_be_limited(self) -> bool:
        """Whether workers may not use all cores of their machines, as in a container."""
        limited = self.cluster.machines_limited
        return limited is None or limited > FEW_MACHINES

    @property
    def only_waits(self) -> bool:
        """Whether tasks used next to no processor time; of many threads on a core, each uses little."""
        return self.on_cpu < NO_CPU and self._used < LEAST_CORES

    @property
    def _used(self) -> float:
        """Cores that workers used on the machine of a busy process."""
        return max(self.cluster.process_cpu or 0.0, self.cluster.process_machine_cpu or 0.0)

    @cached_property
    def may_lack_cores(self) -> bool:
        """Whether tasks may have waited for a core though nothing shows it.

        Nobody knows how many cores a remote machine has, or a container may use. Throttled processes are late.
        """
        if self.cluster.process_cpu is None or self.only_waits:
            return False
        if self.knows_cores:
            return self.may_be_limited and self.is_late
        return self.is_late or self._used >= LEAST_CORES

    @cached_property
    def others_use_machine(self) -> bool:
        """Whether the workers' machine is full, and programs that are not workers have a good part of it."""
        cpus, busy = self.cluster.machine_cpus, self.cluster.machine_busy
        if cpus is None or busy is None:
            return False
        return busy >= 0.9 * cpus and busy - (self.cluster.machine_cpu or 0.0) >= 0.2 * cpus

    @cached_property
    def idle_threads_work(self) -> bool:
        """Whether threads that tasks have started use the cores of those that have no task."""
        cpu, tasks, threads = self.cluster.process_cpu, self.cluster.process_tasks, self.cluster.process_threads
        if cpu is None or tasks is None or threads is None or threads - tasks < 0.5:
            return False
        return cpu - self.on_cpu * tasks >= 0.5 * (threads - tasks)

    @cached_property
    def moves(self) -> str:
        """How it shows that data on the move keeps threads waiting; empty if it does not."""
        cluster = self.cluster
        waiting = self.thread_seconds("handed") + self.thread_seconds("overhead")
        at_inputs, gaps = self.gaps("input") or 0.0, self.gaps("input", "dispatch", "report", "queued")
        has_moved = (cluster.receiving or 0.0) >= 0.3 * waiting or at_inputs >= 0.5 * (gaps or self.seconds)
        if not has_moved or cluster.sent_bytes == 0:
            return ""
        each = (cluster.sent_bytes or 0) / self.completed if self.completed else 0.0
        if each < MUCH and (self.mean or 0.0) < SHORT:
            return ""
        if not cluster.sent_bytes:
            return " while they waited for their inputs"
        return f" while workers sent {size(cluster.sent_bytes)}"

    @property
    def memory(self) -> tuple[str, str]:
        """Why workers are short of memory: the id, and what shows it."""
        cluster = self.cluster
        shown = []
        if cluster.memory_peak is not None:
            shown.append(f"a worker used {percent(cluster.memory_peak)} of its memory")
        if cluster.spilled:
            shown.append(f"up to {size(cluster.spilled)} were on disk")
        unmanaged = cluster.unmanaged
        if unmanaged is not None and unmanaged >= (0.8 if self.spills or cluster.spilled else 0.5):
            shown.append(f"{percent(unmanaged)} of the memory was not managed by Dask")
            return "unmanaged_memory", ", ".join(shown)
        return "spilling", ", ".join(shown)


Rule = Callable[[Case], Suspect | None]


def _noncpu(case: Case) -> Suspect | None:
    wall, cluster = case.wall("noncpu"), case.cluster
    cpu, tasks = cluster.process_cpu, cluster.process_tasks
    on_path = _share_on_path(case)
    waited = f"Tasks waited in their threads for {case.of_run(wall)}"
    if case.lock:
        what = "Python's interpreter lock lets one thread run at a time"
        if cluster.gil_contention is None and case.may_be_limited:
            what = f"either {what}, or the worker may use only one core"
        return Suspect("gil", wall, f"{waited} while {case.lock}: {what}.", on_path)
    if cpu is None or not tasks:
        return None
    cpus, wanted = cluster.machine_cpus, cluster.machine_tasks
    used = cluster.machine_cpu or 0.0
    busy = max(used, cluster.machine_busy or 0.0)
    # Without threads that tasks start themselves, a process uses little more than the threads of its tasks.
    has_inner = cpu > 1.3 * case.on_cpu * tasks + 0.5
    is_full = cpus is not None and busy >= 0.75 * cpus
    if case.others_use_machine and case.is_late and tasks >= 1.5 and cpu <= 1.3 and case.on_cpu >= NO_CPU:
        return None  # it may be the lock as well
    is_crowded = cpus is not None and ((wanted or 0.0) >= 1.2 * cpus or (has_inner and cpu > 1.3))
    if cpus is not None and wanted is not None and is_full and is_crowded and used >= 0.35 * cpus:
        what = f"{number(wanted)} tasks ran at a time on {number(cpus)} cores, of which {number(busy)} were in use"
        inner = ", also by threads that the tasks started" if has_inner and cpu > 1.3 else ""
        return Suspect("oversubscribed", wall, f"{waited}: {what}{inner}.", on_path)
    if case.on_cpu * tasks < 0.3 and cpu >= 0.6 and (cluster.worker_loop_delay or 0.0) >= LATE:
        what = f"ticks of the workers' event loop were {seconds(cluster.worker_loop_delay or 0.0)} late"
        return Suspect("busy_worker", wall, f"{waited} without using a processor there, and {what}.", on_path)
    # On a machine that other programs keep busy, tasks wait for a core.
    is_idle = not is_full and not case.may_lack_cores
    if cpu <= 0.7 * tasks and not has_inner and (is_idle or case.only_waits):
        what = f"a worker process with {number(tasks)} tasks at a time used {number(cpu)} cores"
        return Suspect("io", wall, f"{waited} while {what}.", on_path)
    return None


def _share_on_path(case: Case) -> float | None:
    """Seconds without processor time of the runs on the critical path."""
    running = case.thread_seconds("cpu") + case.thread_seconds("noncpu")
    if case.facts.critical is None or running <= 0:
        return None
    overall = case.thread_seconds("noncpu") / running
    on_path, rest = 0.0, case.facts.critical.seconds
    for group in case.facts.groups:
        if group.critical and group.cpu is not None and group.noncpu is not None and group.cpu + group.noncpu > 0:
            on_path += group.critical.seconds * group.noncpu / (group.cpu + group.noncpu)
            rest -= group.critical.seconds
    return on_path + max(rest, 0.0) * overall or None


def _disk(case: Case) -> Suspect | None:
    wall = case.wall("disk")
    return Suspect("spilling", wall, _with(f"Reading and writing on disk took {case.of_run(wall)}", case.memory[1]))


def _paused(case: Case) -> Suspect | None:
    wall, (cause, shown) = case.wall("paused"), case.memory
    return Suspect(cause, wall, _with(f"Threads of paused workers stood still for {case.of_run(wall)}", shown))


def _serialize(case: Case) -> Suspect | None:
    wall = case.wall("serialize")
    if case.spills or case.cluster.spilled:
        what = f"Serialising data that goes to disk and back took {case.of_run(wall)}"
        return Suspect("spilling", wall, _with(what, case.memory[1]))
    return Suspect("transfers", wall, f"Serialising and compressing data took {case.of_run(wall)}.")


def _p2p(case: Case) -> Suspect | None:
    wall = case.wall("p2p")
    return Suspect("p2p", wall, f"Shuffling between workers took {case.of_run(wall)}.")


def _tiny(case: Case, part: str, what: str) -> Suspect | None:
    """Whether a part is the price of many short tasks."""
    if case.mean is None or case.mean >= SHORT:
        return None
    waited = case.thread_seconds(part) / case.completed
    around = sum(case.thread_seconds(each) for each in ("overhead", "handed", "queued"))
    if around < WORTH_IT * case.mean * case.completed:
        return None
    # On a machine that other programs keep busy, all takes longer that is around tasks.
    if case.mean >= TINY and (waited > MOMENT or case.others_use_machine):
        return None
    shown = f"{case.completed:,} tasks took {seconds(case.mean)} each, and {what} {seconds(waited)} for each of them"
    gaps = case.gaps("dispatch", "report", "queued", "input", "graph")
    return Suspect("tiny_tasks", case.wall(part), f"{shown}.", gaps)


def _overhead(case: Case) -> Suspect | None:
    wall = case.wall("overhead")
    running = case.thread_seconds("cpu") + case.thread_seconds("noncpu")
    compute = sum(group.compute for group in case.facts.groups)
    if running < 0.1 * case.thread_seconds("overhead") and compute >= 0.5 * case.thread_seconds("overhead"):
        return None  # functions run in a pool of processes, where nobody counts
    what = f"Workers took {case.of_run(wall)} around the functions of tasks"
    if case.spills >= 0.5 * case.thread_seconds("overhead"):
        return Suspect("spilling", wall, _with(what, case.memory[1]))
    if case.lock:
        return Suspect("gil", wall, f"{what} while {case.lock}.")
    if case.moves:
        return Suspect("transfers", wall, f"{what}{case.moves}.")
    if tiny := _tiny(case, "overhead", "workers needed"):
        tiny.on_path = None  # most of it is not in a gap
        return tiny
    return _late_loop(case, wall, what)


def _late_loop(case: Case, wall: float, what: str) -> Suspect | None:
    delay = case.cluster.worker_loop_delay
    if delay is None or delay < LATE:
        return None
    return Suspect("busy_worker", wall, f"{what} while ticks of their event loops were {seconds(delay)} late.")


def _handed(case: Case) -> Suspect | None:
    wall, threads = case.wall("handed"), case.thread_seconds("handed")
    what = f"For {case.of_run(wall)}, threads had tasks that did not run yet"
    if case.spills >= 0.5 * threads:
        return Suspect("spilling", wall, _with(f"{what}, while workers wrote to disk", case.memory[1]))
    gaps = case.gaps("input", "dispatch", "report", "queued")
    if case.moves:
        return Suspect("transfers", wall, f"{what}{case.moves}.", gaps)
    if tiny := _tiny(case, "handed", "waited"):
        return tiny
    if late := _late_scheduler(case):
        return Suspect("scheduler_bound", wall, f"{what}, and {late}.", gaps)
    if case.lock:
        return Suspect("gil", wall, f"{what}, while {case.lock}.", gaps)
    return _late_loop(case, wall, what)


def _late_scheduler(case: Case) -> str:
    """How it shows that the scheduler is too busy; empty if it does not."""
    late, collecting = case.cluster.late_ticks or 0.0, case.cluster.garbage_collection or 0.0
    shown = []
    if late >= LATE_SCHEDULER * case.seconds:
        shown.append(f"ticks of the scheduler's event loop were late for {seconds(late)} in all")
    if collecting >= COLLECTING * case.seconds:
        shown.append(f"collecting garbage took it {seconds(collecting)}")
    return " and ".join(shown)


def _queued(case: Case) -> Suspect | None:
    if tiny := _tiny(case, "queued", "threads were idle for"):
        return tiny
    wall = case.wall("queued")
    what = f"Threads were idle for {case.of_run(wall)} though tasks were queued"
    late = _late_scheduler(case)
    on_path = case.gaps("queued", "dispatch", "report")
    return Suspect("scheduler_bound", wall, f"{what}{late and ', and '}{late}.", on_path)


def _no_worker(case: Case) -> Suspect | None:
    wall = case.wall("no_worker")
    what = f"Threads were idle for {case.of_run(wall)} while tasks waited for a worker that they may run on"
    return Suspect("no_worker", wall, f"{what}.", case.gaps("no_worker"))


def _graph(case: Case) -> Suspect | None:
    graphs, wall = case.facts.graphs, case.wall("graph")
    each = wall / max(1, graphs.count)
    is_large = (graphs.tasks or 0) >= LARGE_TASKS or (graphs.size or 0) >= LARGE_SIZE
    # Most of a graph that is sent may not be needed. But the first one can take long if it is small, too: the scheduler
    # imports the packages that it needs.
    takes_long = each >= LARGE_SECONDS and (graphs.count >= SEVERAL or (graphs.size or 0) >= LARGE_SIZE / 10)
    if not (is_large or takes_long):
        return None
    shown = []
    if graphs.tasks:
        shown.append(f"{graphs.tasks:,} tasks")
    if graphs.size:
        shown.append(size(graphs.size))
    which = f"; the largest graph has {' and '.join(shown)}" if shown else ""
    what = f"Threads were idle for {case.of_run(wall)} while graphs were sent and taken in"
    return Suspect("large_graph", wall, f"{what}{which}.", case.gaps("graph"))


def _long_tasks(case: Case, wall: float, what: str) -> Suspect | None:
    """Whether few long tasks explain why threads were idle."""
    excess = 0.0
    for more, _ in case.skewed:
        excess += more
    if not case.skewed or excess < 0.5 * wall:
        return None
    _, group = case.skewed[0]
    longest, middle = group.longest or 0.0, group.p50 or 0.0
    ratio = longest / middle if middle > 0 else SKEWED
    shown = f"the longest task of '{{0}}' took {seconds(longest)}, the median one {seconds(middle)}"
    is_skewed = ratio >= SKEWED
    if group.output and group.largest_output and group.largest_output * group.completed > SKEWED * group.output:
        is_skewed = True
        mean = size(group.output / group.completed)
        shown += f", and the largest result has {size(group.largest_output)}, the mean {mean}"
    on_path = case.on_path(group for _, group in case.skewed)
    return Suspect("skew" if is_skewed else "stragglers", wall, f"{what}: {shown}.", on_path, steps=(group.title,))


def _tail(case: Case) -> Suspect | None:
    wall = case.wall("tail")
    if case.idle_threads_work:
        return None
    what = f"Threads were idle for {case.of_run(wall)} while the last tasks ran"
    if long := _long_tasks(case, wall, what):
        return long
    if wall - case.typical * case.last_wave < 0.1 * case.seconds and wall < 0.25 * case.seconds:
        return None  # the last wave of tasks
    group = max(case.facts.groups, key=lambda each: each.longest or 0.0, default=None)
    if group is None or group.longest is None:
        return None
    graphs = max(1, case.facts.graphs.count)
    in_graph = sum(each.tasks for each in case.facts.groups) / graphs
    # The last tasks of a graph take no longer than the longest: these are few at a time because no more were asked for.
    are_few = in_graph < case.threads and wall > 2 * group.longest
    if are_few or max(each.tasks for each in case.facts.groups) < case.threads:
        return _narrow(case, wall, what)
    return _last(wall, what, group)


def _narrow(case: Case, wall: float, what: str) -> Suspect:
    compute = sum(group.compute for group in case.facts.groups)
    at_a_time = compute / case.seconds
    shown = f"{number(at_a_time)} tasks ran at a time, as a mean, on {number(case.threads)} threads"
    return Suspect("narrow_graph", wall, f"{what}: {shown}.")


def _dependencies(case: Case) -> Suspect | None:
    wall = case.wall("dependencies")
    if case.idle_threads_work:
        return None
    what = f"Threads were idle for {case.of_run(wall)} while all other tasks waited for results"
    if long := _long_tasks(case, wall, what):
        return long
    waves = sum(each.p50 or 0.0 for each in case.facts.groups if each.completed >= case.threads)
    if wall - waves * case.last_wave < 0.1 * case.seconds:
        return None  # the last waves of tasks
    known = [each for each in case.facts.groups if each.longest]
    wide = [each for each in known if each.completed >= case.threads]
    if wide and wall <= ONE_EACH * sum(each.longest or 0.0 for each in wide):
        return _last(wall, what, max(wide, key=lambda each: each.longest or 0.0))
    longest = max(known, key=lambda each: each.longest or 0.0, default=None)
    # Nearly every graph ends with a task that needs all others, so that something waits while the last ones run.
    if longest and case.completed >= 2 * case.threads and (longest.longest or 0.0) >= MOST * wall:
        return _last(wall, what, longest)
    return _narrow(case, wall, what)


def _last(wall: float, what: str, group: GroupFacts) -> Suspect:
    shown = f"the longest, of '{{0}}', took {seconds(group.longest or 0.0)}"
    return Suspect("stragglers", wall, f"{what}: {shown}.", steps=(group.title,))


def _imbalance(case: Case) -> Suspect | None:
    wall = case.wall("imbalance")
    if case.idle_threads_work:
        return None
    if wall - case.typical * case.last_wave < 0.1 * case.seconds and wall < 0.25 * case.seconds:
        return None  # the last tasks
    what = f"Threads were idle for {case.of_run(wall)} while other workers had more tasks than threads"
    if case.wall("no_worker") >= MINOR * case.seconds:  # then the same tasks wait for the few workers that may run them
        return Suspect("no_worker", wall, f"{what}, and tasks waited for a worker that they may run on.")
    if long := _long_tasks(case, wall, what):
        return long
    return Suspect("imbalance", wall, f"{what}.")


#: What explains a part, if anything does.
RULES: dict[str, Rule] = {
    "noncpu": _noncpu,
    "disk": _disk,
    "serialize": _serialize,
    "p2p": _p2p,
    "overhead": _overhead,
    "handed": _handed,
    "paused": _paused,
    "queued": _queued,
    "no_worker": _no_worker,
    "imbalance": _imbalance,
    "dependencies": _dependencies,
    "tail": _tail,
    "graph": _graph,
}


def late_workers(case: Case) -> Suspect | None:
    """Whether there were no threads at first, or fewer than later: what the work that was there lost by it."""
    none, cluster = case.wall("starting"), case.cluster
    most = cluster.threads_most or 0
    few = 0.0
    if cluster.threads_start is not None and most > cluster.threads_start and most > case.threads:
        few = sum(case.wall(part) for part in OWN) * (1 - case.threads / most)
        if case.facts.lacked is not None:  # the cluster may have shrunk later
            few = min(few, case.facts.lacked / most)
        path = case.facts.critical
        if path and path.seconds > 0 and not path.along("thread"):  # more threads shorten no chain of tasks
            few = min(few, sum(value for cause, value in path.gaps.items() if cause != "client"))
    if none + few <= 0:
        return None
    if few < 0.01 * case.seconds:
        return Suspect("late_workers", none + few, f"The cluster had no worker for {case.of_run(none)}.")
    if none >= 0.01 * case.seconds:
        what = f"no worker for {case.of_run(none)}, and {most:,} threads only later, which cost about "
        what += f"{seconds(few)} more"
    else:
        start = cluster.threads_start or 0
        what = f"{start:,} {'thread' if start == 1 else 'threads'} at first and {most:,} later, which cost about "
        what += case.of_run(few)
    return Suspect("late_workers", none + few, f"The cluster had {what}.")


def lost_work(case: Case) -> Suspect:
    """Whether runs came to nothing, or repeated what was lost: whichever there was more of."""
    wall, cluster, failures = case.wall("lost"), case.cluster, case.facts.failures
    again = sum(group.recomputed for group in case.facts.groups)
    lost = sum(group.lost for group in case.facts.groups)
    left_with = sum((each.tasks or 0) + (each.results or 0) for each in cluster.departures)
    if again + lost + left_with > failures.erred + failures.retried:
        wall = max(wall, case.gaps("lost") or 0.0)
        shown = f"Work that was lost took {case.of_run(wall)}: {lost:,} tasks while they ran"
        left, steps = _left(case)
        shown += f", and {again:,} that ran again for their results{left}."
        return Suspect("lost_work", wall, shown, steps=steps)
    shown = f"{failures.erred:,} tasks failed, {failures.retried:,} were tried again"
    return Suspect("failed_work", wall, f"Runs that failed or were cancelled took {case.of_run(wall)}: {shown}.")


def _left(case: Case) -> tuple[str, tuple[Step, ...]]:
    """How workers left, and what this names."""
    cluster = case.cluster
    if not cluster.departed:
        return "", ()
    text = f"; {cluster.departed} worker{'s' * (cluster.departed != 1)} left unexpectedly"
    uses = [each.memory / each.limit for each in cluster.departures if each.memory is not None and each.limit]
    if uses:
        text += f", with up to {percent(max(uses))} of the memory in use"
    prefixes = Counter(each.prefix for each in cluster.departures if each.prefix)
    if not prefixes:
        return text, ()
    return f"{text}, and had tasks of '{{0}}'", (Step((), prefixes.most_common(1)[0][0]),)


def _with(what: str, shown: str) -> str:
    return f"{what}: {shown}." if shown else f"{what}."
