"""Which root occupies the threads of which worker, and what the idle ones wait for, integrated over time.

A worker with fewer tasks than threads has a thread for each; one with more shares its threads between the roots in
proportion. Sums are brought up to date when one of their factors changes, so that a moment costs nothing by itself, and
no root is looked at because of what happens to another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .critical_path import Base, PathNode, path_from
from .parts import CriticalPath, Lap

__all__ = ["Account", "Mark", "Threads", "Worker"]


class Mark(NamedTuple):
    """The sums of a cluster at one moment."""

    at: float
    occupied: float
    idle: float


class Part:
    """The tasks of one root on a worker that has tasks of several."""

    __slots__ = ("count", "paused", "shared")

    def __init__(self, count: int, worker: Worker) -> None:
        self.count = count
        #: The worker's sums when the root's own was last brought up to date.
        self.shared, self.paused = worker.shared, worker.paused


class Worker:
    """What is known of a worker."""

    __slots__ = (
        "address",
        "at",
        "is_paused",
        "is_running",
        "last",
        "last_told",
        "lost",
        "owner",
        "paused",
        "processing",
        "roots",
        "shared",
        "threads",
    )

    def __init__(self, address: str, threads: int) -> None:
        self.address = address
        self.threads = threads
        #: Whether it is paused; and whether tasks that it has may begin, which they may not if it leaves, either.
        self.is_paused = False
        self.is_running = True
        #: Tasks that it has, without those that have seceded.
        self.processing = 0
        #: The root whose tasks they are; if there are several roots, these, in the place of the one.
        self.owner: Account | None = None
        self.roots: dict[Account, Part] | None = None
        #: While there are several: thread-seconds for each task up to ``at``, and those of them while it was paused.
        self.at = self.shared = self.paused = 0.0
        #: By thread, the last run that the scheduler was told of, and when it was told of any.
        self.last: dict[Any, PathNode] = {}
        self.last_told = 0.0
        #: Of its threads, once it has left: those of which the time since their last run is lost.
        self.lost = 0

    @property
    def occupies(self) -> int:
        """Threads that have tasks."""
        return min(self.processing, self.threads)

    def share(self, now: float) -> None:
        """Bring the sums of a worker with several roots up to date."""
        if self.processing and now > self.at:
            more = (now - self.at) * self.occupies / self.processing
            self.shared += more
            if self.is_paused:
                self.paused += more
        self.at = now


class Account:
    """What threads did for one root, and its critical path, since its lap began."""

    __slots__ = (
        "__weakref__",
        "arrival",
        "arrival_of",
        "at",
        "base",
        "began",
        "cause",
        "displaced",
        "idle",
        "is_stuck",
        "latest",
        "lost",
        "marked",
        "no_worker",
        "occupied",
        "occupies",
        "origin",
        "parts",
        "parts_paused",
        "paused",
        "pauses",
        "processing",
        "queued",
        "recomputed",
        "rested",
        "root_id",
        "stopped",
        "stuck",
        "unfinished",
        "waiting",
    )

    def __init__(self, root_id: str) -> None:
        self.root_id = root_id
        #: Tasks by state.
        self.waiting = self.queued = self.no_worker = self.processing = 0
        #: Those that keep a lap going, see ``RunTimes``.
        self.unfinished = 0
        #: Threads that it occupies now on workers that have tasks of no other root; and of these, on paused workers.
        self.occupies = 0
        self.pauses = 0
        #: Its tasks on other workers; and the number of these that are paused.
        self.parts: dict[Worker, Part] = {}
        self.parts_paused = 0
        #: Workers that have more tasks than threads, as far as was seen when one of its own came or went.
        self.stuck: set[Worker] = set()
        #: Whether there were any when the cause was found.
        self.is_stuck = False
        #: Why threads that no root occupies are idle.
        self.cause = "client"
        # Sums of the lap up to ``at``, but of idle threads up to ``marked``, and those of the cluster when it began.
        self.at = 0.0
        self.began = self.marked = Mark(0.0, 0.0, 0.0)
        self.occupied = self.paused = self.lost = self.recomputed = 0.0
        self.idle: dict[str, float] = {}
        #: Where paths of the lap begin; None while there is no lap.
        self.base: Base | None = None
        #: The node that has come farthest, the one at which the lap begins, that of the latest graph and its stimulus.
        self.latest: PathNode = path_from(Base(0.0, self))
        self.origin = self.arrival = self.latest
        self.arrival_of: Any = None
        #: When the last task ended; 0.0 while there are unfinished ones.
        self.rested = 0.0
        #: Sums of the cluster when the lap before ended, if it is known.
        self.stopped: Mark | None = None
        #: By worker and thread, its last run there, if another root's has followed.
        self.displaced: dict[Worker, dict[Any, PathNode]] = {}

    def begin(self, at: Mark) -> None:
        """Begin a lap at a moment, which may have passed if the root occupies no threads since then."""
        self.began = self.marked = at
        self.at = at.at
        self.occupied = self.paused = self.lost = self.recomputed = 0.0
        self.idle = {}
        self.base = Base(at.at, self)
        self.latest = self.origin = path_from(self.base)
        self.arrival_of = None
        self.rested = 0.0
        self.displaced.clear()

    def end(self) -> tuple[Lap, PathNode]:
        """End the lap where its sums end; return it with the last node of its path, which takes longer to sum up."""
        base, began, ended, stopped = self.base, self.began, self.marked, self.stopped
        assert base is not None
        lap = Lap(
            self.root_id,
            base.start,
            ended.at,
            self.occupied,
            self.paused,
            max(0.0, ended.occupied - began.occupied - self.occupied),
            self.idle,
            CriticalPath(base.start, base.start),
            self.lost,
            self.recomputed,
        )
        if stopped:
            lap.pause_others = began.occupied - stopped.occupied
            lap.pause_idle = began.idle - stopped.idle
        self.stopped = ended
        self.base = None
        return lap, self.latest

    def settle_part(self, worker: Worker, part: Part) -> None:
        """Bring the root's sums up to date with those of a worker that it shares."""
        self.occupied += part.count * (worker.shared - part.shared)
        self.paused += part.count * (worker.paused - part.paused)
        part.shared, part.paused = worker.shared, worker.paused


class Threads:
    """The threads of a cluster: how many there are, how many have tasks, and sums of both over time."""

    def __init__(self, now: float) -> None:
        self.workers: dict[str, Worker] = {}
        self.number = 0
        #: Workers that are paused.
        self.paused = 0
        #: Threads that have tasks.
        self.occupies = 0
        #: Up to ``at``: thread-seconds that were occupied and idle.
        self.at = now
        self.occupied = self.idle = 0.0

    def advance(self, now: float) -> None:
        """Bring the cluster's sums up to date."""
        passed = now - self.at
        if passed > 0.0:
            occupies = self.occupies
            self.occupied += occupies * passed
            self.idle += (self.number - occupies) * passed
            self.at = now

    def mark(self, now: float) -> Mark:
        """Return the sums now."""
        self.advance(now)
        return Mark(self.at, self.occupied, self.idle)

    def settle(self, account: Account, now: float) -> None:
        """Bring the sums of a root up to date, before the cause changes; but for workers that it shares."""
        self.advance(now)
        self.accrue(account)
        idle = self.idle - account.marked.idle
        if idle > 0.0:
            account.idle[account.cause] = account.idle.get(account.cause, 0.0) + idle
        account.marked = Mark(self.at, self.occupied, self.idle)

    def accrue(self, account: Account) -> None:
        """Bring the sum of the threads that a root occupies up to date, before their number changes."""
        passed = self.at - account.at
        account.at = self.at
        if account.occupies:
            account.occupied += account.occupies * passed
            account.paused += account.pauses * passed

    def settle_all(self, account: Account, now: float) -> None:
        """Bring all sums of a root up to date."""
        self.settle(account, now)
        for worker, part in account.parts.items():
            worker.share(self.at)
            account.settle_part(worker, part)

    def settle_until(self, account: Account, mark: Mark, cause: str) -> None:
        """Bring the sums of a root that occupies no threads up to date with a moment that has passed."""
        before = account.marked
        if mark.at > before.at:
            if mark.idle > before.idle:
                account.idle[cause] = account.idle.get(cause, 0.0) + mark.idle - before.idle
            account.marked = mark

    def reconsider(self, account: Account, now: float) -> None:
        """Find out why threads are idle, after what decides it has changed."""
        account.is_stuck = bool(account.stuck)
        cause = self._cause(account)
        if cause != account.cause:
            self.settle(account, now)
            account.cause = cause

    def look_again(self, account: Account, now: float) -> None:
        """Find out why threads are idle, also by what other roots have done on workers that are shared."""
        for worker in account.parts:
            if worker.processing > worker.threads:
                account.stuck.add(worker)
            else:
                account.stuck.discard(worker)
        self.reconsider(account, now)

    def _cause(self, account: Account) -> str:
        if account.rested or not account.base:
            return "client"
        if not self.number:
            return "starting"
        if self.paused and (
            account.queued or account.no_worker or account.stuck or account.pauses or account.parts_paused
        ):
            return "paused"
        if account.queued:
            return "queued"
        if account.no_worker:
            return "no_worker"
        if account.stuck:
            return "imbalance"
        return "dependencies" if account.waiting else "tail"

    def change(self, worker: Worker, account: Account, by: int, now: float) -> None:
        """Give a worker one task more of a root, or one less."""
        before, threads = worker.processing, worker.threads
        after = before + by
        if worker.roots is None and worker.owner is not account and before:
            self._divide(worker, now)
        if worker.roots is None:
            worker.owner = account
            worker.processing = after
            if after <= threads and before <= threads:
                self.advance(now)
                self.accrue(account)
                account.occupies += by
                if worker.is_paused:
                    account.pauses += by
                self.occupies += by
        else:
            self.advance(now)
            self.occupies -= worker.occupies
            worker.share(self.at)
            worker.processing = after
            self.occupies += worker.occupies
            part = worker.roots.get(account)
            if part is None:
                part = worker.roots[account] = account.parts[worker] = Part(0, worker)
                account.parts_paused += worker.is_paused
            account.settle_part(worker, part)
            part.count += by
            if part.count <= 0:
                del worker.roots[account], account.parts[worker]
                account.parts_paused -= worker.is_paused
                account.stuck.discard(worker)
                if len(worker.roots) == 1:
                    self._join(worker)
                return
        if after <= threads:
            account.stuck.discard(worker)
        elif by > 0:
            account.stuck.add(worker)

    def _divide(self, worker: Worker, now: float) -> None:
        """Have a worker belong to several roots from now on."""
        owner = worker.owner
        assert owner is not None
        self.advance(now)
        self.accrue(owner)
        owner.occupies -= worker.occupies
        if worker.is_paused:
            owner.pauses -= worker.occupies
        worker.owner, worker.at = None, self.at
        part = owner.parts[worker] = Part(worker.processing, worker)
        owner.parts_paused += worker.is_paused
        worker.roots = {owner: part}

    def _join(self, worker: Worker) -> None:
        """Have a worker belong to the one root that it has tasks of."""
        assert worker.roots is not None
        ((owner, part),) = worker.roots.items()
        owner.settle_part(worker, part)
        del owner.parts[worker]
        owner.parts_paused -= worker.is_paused
        worker.roots, worker.owner = None, owner
        self.accrue(owner)
        owner.occupies += worker.occupies
        if worker.is_paused:
            owner.pauses += worker.occupies
        if worker.processing > worker.threads:
            owner.stuck.add(worker)
        else:
            owner.stuck.discard(worker)

    def leave(self, worker: Worker, now: float) -> None:
        """Count the threads of a worker no more; it may still have tasks."""
        self.advance(now)
        self.number -= worker.threads
        self.paused -= worker.is_paused
        self.occupies -= worker.occupies
        if worker.roots is not None:
            worker.share(self.at)
        elif worker.owner and worker.processing:
            self.accrue(worker.owner)
            worker.owner.occupies -= worker.occupies
            if worker.is_paused:
                worker.owner.pauses -= worker.occupies
        worker.lost, worker.threads = worker.threads, 0

    def pause(self, worker: Worker, now: float, *, is_paused: bool) -> None:
        """Note that a worker was paused, or goes on."""
        by = 1 if is_paused else -1
        self.paused += by
        self.advance(now)
        if worker.roots is not None:
            worker.share(self.at)
            for account in worker.roots:
                account.parts_paused += by
        elif worker.owner and worker.processing:
            self.accrue(worker.owner)
            worker.owner.pauses += by * worker.occupies
        worker.is_paused = is_paused
