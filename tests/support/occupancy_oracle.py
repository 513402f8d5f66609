"""What threads did for a root, from a full record: the state of the cluster after each event, integrated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .full_record import Arrival, Event, Move, Swept, WorkerChange
from .path_oracle import is_lost

__all__ = ["Occupancy", "occupancy"]

_WAITING = ("waiting", "queued", "no-worker")


@dataclass
class Occupancy:
    """Thread-seconds."""

    occupied: float = 0.0
    #: Of these, on paused workers.
    paused: float = 0.0
    others: float = 0.0
    idle: Counter[str] = field(default_factory=Counter)


@dataclass
class _Cluster:
    """Its state."""

    #: Number of threads by worker; and those that are paused.
    threads: dict[str, int] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    #: Root, state and worker of each task.
    tasks: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    seceded: set[int] = field(default_factory=set)
    #: Tasks whose results were lost with a worker, while no other worker has them.
    lost: set[int] = field(default_factory=set)
    #: Workers and roots, where more tasks than threads were when it was looked at last: with several roots on a worker,
    #: a root looks when one of its own tasks comes or goes there, and at sweeps.
    stuck: set[tuple[str, str]] = field(default_factory=set)

    def apply(self, event: Event) -> None:
        before = self._processing()
        self._apply(event)
        after = self._processing()
        on_worker: Counter[str] = Counter()
        for (worker, _), number in after.items():
            on_worker[worker] += number
        for place in self.stuck - after.keys():
            self.stuck.discard(place)
        for (worker, root), number in after.items():
            is_over = on_worker[worker] > self.threads.get(worker, 0)
            alone = number == on_worker[worker]
            more = number > before[worker, root]
            if (alone or more or isinstance(event, Swept)) and is_over:
                self.stuck.add((worker, root))
            elif (alone or number != before[worker, root] or isinstance(event, Swept)) and not is_over:
                self.stuck.discard((worker, root))

    def _apply(self, event: Event) -> None:
        if isinstance(event, WorkerChange):
            self._change(event)
        elif isinstance(event, Move) and event.root and event.start != event.finish:
            if event.task in self.lost and event.finish in _WAITING:
                return
            self.lost.discard(event.task)
            if is_lost(event):
                self.lost.add(event.task)
            elif event.finish in (*_WAITING, "processing"):
                self.tasks[event.task] = event.root, event.finish, event.sent_to
                return
            self.tasks.pop(event.task, None)
            self.seceded.discard(event.task)

    def _change(self, event: WorkerChange) -> None:
        if event.what == "joined":
            self.threads[event.worker] = event.threads
        if event.what == "left":
            del self.threads[event.worker]
        if event.what == "seceded":
            self.seceded.add(event.task)
        if event.what == "stolen":
            root, state, _ = self.tasks[event.task]
            self.tasks[event.task] = root, state, event.worker
        if event.status == "paused":
            self.paused.add(event.worker)
        elif event.status or event.what == "left":
            self.paused.discard(event.worker)

    def of(self, root: str) -> set[int]:
        """Unfinished tasks of a root."""
        return {task for task, (of, _, _) in self.tasks.items() if of == root}

    def states(self, root: str) -> Counter[str]:
        """Number of them by state, without those that have seceded."""
        return Counter(self.tasks[task][1] for task in self.of(root) - self.seceded)

    def _processing(self) -> Counter[tuple[str, str]]:
        """Number of tasks, by worker and root."""
        return Counter(
            (on, root)
            for task, (root, state, on) in self.tasks.items()
            if state == "processing" and task not in self.seceded
        )

    def shares(self) -> dict[tuple[str, str], float]:
        """Threads that have tasks, by worker and root."""
        processing = self._processing()
        on_worker: Counter[str] = Counter()
        for (worker, _), number in processing.items():
            on_worker[worker] += number
        return {
            (worker, root): number * min(1.0, self.threads[worker] / on_worker[worker])
            for (worker, root), number in processing.items()
            if worker in self.threads
        }

    def cause(self, root: str) -> str:
        """Why threads are idle."""
        states = self.states(root)
        shares = self.shares()
        is_stuck = any(of == root for _, of in self.stuck)
        has_paused = any(of == root and worker in self.paused for worker, of in shares)
        if not self.of(root):
            return "client"
        if not self.threads:
            return "starting"
        if self.paused and (states["queued"] or states["no-worker"] or is_stuck or has_paused):
            return "paused"
        for state, cause in (("queued", "queued"), ("no-worker", "no_worker")):
            if states[state]:
                return cause
        if is_stuck:
            return "imbalance"
        return "dependencies" if states["waiting"] else "tail"


def occupancy(events: Sequence[Event], root: str, start: float, end: float) -> Occupancy:
    """Integrate over the time from ``start`` to ``end``.

    Causes are those of the moment at which something happened to the root or to workers, or a sweep looked: what tasks
    of other roots do in between changes none.
    """
    found, cluster, cause = Occupancy(), _Cluster(), "client"
    for event, until in _pieces(events, start, end):
        # The end of a task that has seceded frees no thread.
        has_seceded = isinstance(event, Move) and event.task in cluster.seceded and len(cluster.of(root)) > 1
        states = cluster.states(root)
        cluster.apply(event)
        is_other_state = isinstance(event, Move) and states.keys() != cluster.states(root).keys()
        if is_other_state or (_is_looked_at(event, root) and not has_seceded):
            cause = cluster.cause(root)
        since = max(event.at, start)
        for begin, stop, is_graph in _parts(events, root, since, until):
            passed = stop - begin
            shares = cluster.shares()
            own = sum(share for (_, of), share in shares.items() if of == root)
            found.occupied += own * passed
            found.paused += passed * sum(
                share for (on, of), share in shares.items() if of == root and on in cluster.paused
            )
            found.others += passed * (sum(shares.values()) - own)
            found.idle["graph" if is_graph and cause == "client" else cause] += passed * (
                sum(cluster.threads.values()) - sum(shares.values())
            )
    return found


def _pieces(events: Sequence[Event], start: float, end: float) -> Iterator[tuple[Event, float]]:
    """Each event, with the time until which nothing else happens."""
    for event, following in pairwise([Swept(start), *events] if events[0].at > start else events):
        yield event, min(following.at, end)
    yield events[-1], end


def _is_looked_at(event: Event, root: str) -> bool:
    """Whether an event is a reason to find out anew why threads are idle."""
    if isinstance(event, WorkerChange):
        return event.what in ("joined", "left", "status")
    if isinstance(event, Move):
        return event.root == root and event.start != event.finish and "processing" in (event.start, event.finish)
    return isinstance(event, Swept)


def _parts(events: Sequence[Event], root: str, since: float, until: float) -> Iterator[tuple[float, float, bool]]:
    """A time divided where graphs came; and whether one was being taken in that has tasks of the root which move."""
    if until <= since:
        return
    moved = {
        each.stimulus for each in events if isinstance(each, Move) and each.root == root and each.finish in _WAITING
    }
    graphs = [(each.received, each.at) for each in events if isinstance(each, Arrival) and each.stimulus in moved]
    times = sorted({since, until, *(at for graph in graphs for at in graph if since < at < until)})
    for begin, end in pairwise(times):
        yield begin, end, any(came <= begin and end <= taken_in for came, taken_in in graphs)
