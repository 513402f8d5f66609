"""Which root occupies the threads of which worker, and what the idle ones wait for, integrated over time.

A worker with fewer tasks than threads has a thread for each; one with more shares its threads between the roots in
proportion. All sums are brought up to date when one of their factors changes, so that a moment costs nothing by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .critical_path import Base, PathNode, path_from, path_of
from .parts import Lap

__all__ = ["SOME", "Account", "Mark", "Threads", "Worker"]

#: Of a number of threads, what is not a rounding error.
SOME = 1e-6


class Mark(NamedTuple):
    """The sums of a cluster at one moment."""

    at: float
    occupied: float
    idle: float
    without: float


class Worker:
    """What is known of a worker."""

    __slots__ = (
        "address",
        "is_running",
        "last",
        "last_told",
        "lost",
        "owner",
        "processing",
        "shares",
        "tasks",
        "threads",
    )

    def __init__(self, address: str, threads: int) -> None:
        self.address = address
        self.threads = threads
        #: Not paused, nor about to leave.
        self.is_running = True
        #: Tasks that it has, without those that have seceded.
        self.processing = 0
        #: The root whose tasks they are; if there are several, its number of tasks by root and their threads.
        self.owner: Account | None = None
        self.tasks: dict[Account, int] | None = None
        self.shares: dict[Account, float] = {}
        #: By thread, the last run that the scheduler was told of, and when it was told of any.
        self.last: dict[Any, PathNode] = {}
        self.last_told = 0.0
        #: Of its threads, once it has left: those of which the time since their last run is lost.
        self.lost = 0

    def occupants(self) -> dict[Account, float]:
        """Return how many threads each root has."""
        if self.tasks is not None:
            return dict(self.shares)
        return {self.owner: float(min(self.processing, self.threads))} if self.owner and self.processing else {}


class Account:
    """What threads did for one root, and its critical path, since its lap began."""

    __slots__ = (
        "__weakref__",
        "arrival",
        "arrival_of",
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
        "others",
        "paused",
        "pauses",
        "processing",
        "queued",
        "recomputed",
        "rested",
        "root_id",
        "stopped",
        "unfinished",
        "waiting",
    )

    def __init__(self, root_id: str) -> None:
        self.root_id = root_id
        #: Tasks by state.
        self.waiting = self.queued = self.no_worker = self.processing = 0
        #: Those that keep a lap going, see ``RunTimes``.
        self.unfinished = 0
        #: Threads that it occupies now; and of these, those of workers that are paused.
        self.occupies = 0.0
        self.pauses = 0.0
        #: Whether workers have more of its tasks than threads for them.
        self.is_stuck = False
        #: Why threads that no root occupies are idle.
        self.cause = "client"
        # Sums of the lap up to a moment, and those of the cluster when it began and at that moment.
        self.began = self.marked = Mark(0.0, 0.0, 0.0, 0.0)
        self.occupied = self.paused = self.others = self.lost = self.recomputed = 0.0
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
        self.displaced: dict[tuple[Worker, Any], PathNode] = {}

    def begin(self, at: Mark) -> None:
        """Begin a lap at a moment, which may have passed if the root occupies no threads since then."""
        self.began = self.marked = at
        self.occupied = self.paused = self.others = self.lost = self.recomputed = 0.0
        self.idle = {}
        self.base = Base(at.at, self)
        self.latest = self.origin = path_from(self.base)
        self.arrival_of = None
        self.rested = 0.0
        self.displaced.clear()

    def end(self) -> Lap:
        """End the lap where its sums end."""
        base, began, ended, stopped = self.base, self.began, self.marked, self.stopped
        assert base is not None
        lap = Lap(
            self.root_id,
            base.start,
            ended.at,
            self.occupied,
            self.paused,
            self.others,
            self.idle,
            ended.without - began.without,
            path_of(self.latest),
            self.lost,
            self.recomputed,
        )
        if stopped:
            lap.pause_others = began.occupied - stopped.occupied
            lap.pause_idle = began.idle - stopped.idle
            lap.pause_without_threads = began.without - stopped.without
        self.stopped = ended
        self.base = None
        return lap


class Threads:
    """The threads of a cluster: how many there are, how many have tasks, and sums of both over time."""

    def __init__(self, now: float) -> None:
        self.workers: dict[str, Worker] = {}
        self.number = 0
        #: Workers that are paused.
        self.paused = 0
        #: Threads that have tasks.
        self.occupies = 0.0
        #: Up to ``at``: thread-seconds that were occupied and idle, and seconds without any thread.
        self.at = now
        self.occupied = self.idle = self.without = 0.0

    def advance(self, now: float) -> None:
        """Bring the cluster's sums up to date."""
        passed = now - self.at
        if passed > 0.0:
            occupies = self.occupies
            self.occupied += occupies * passed
            self.idle += (self.number - occupies) * passed
            if not self.number:
                self.without += passed
            self.at = now

    def mark(self, now: float) -> Mark:
        """Return the sums now."""
        self.advance(now)
        return Mark(self.at, self.occupied, self.idle, self.without)

    def settle(self, account: Account, now: float) -> None:
        """Bring the sums of a root up to date, before one of their factors changes."""
        self.advance(now)
        at, occupied, idle, _ = account.marked
        now = self.at
        own = account.occupies * (now - at)
        account.occupied += own
        account.paused += account.pauses * (now - at)
        account.others += self.occupied - occupied - own
        if self.idle > idle:
            account.idle[account.cause] = account.idle.get(account.cause, 0.0) + self.idle - idle
        account.marked = Mark(now, self.occupied, self.idle, self.without)

    def settle_until(self, account: Account, mark: Mark, cause: str) -> None:
        """Bring the sums of a root that occupies no threads up to date with a moment that has passed."""
        before = account.marked
        if mark.at > before.at:
            account.others += mark.occupied - before.occupied
            if mark.idle > before.idle:
                account.idle[cause] = account.idle.get(cause, 0.0) + mark.idle - before.idle
            account.marked = mark

    def reconsider(self, account: Account, now: float) -> None:
        """Find out why threads are idle, after what decides it has changed."""
        account.is_stuck = account.processing - account.occupies > SOME
        cause = self._cause(account)
        if cause != account.cause:
            self.settle(account, now)
            account.cause = cause

    def _cause(self, account: Account) -> str:
        if account.rested or not account.base:
            return "client"
        runnable = account.queued or account.no_worker or account.is_stuck
        if not self.number:
            return "starting"
        if self.paused and (runnable or account.pauses):
            return "paused"
        if account.queued:
            return "queued"
        if account.no_worker:
            return "no_worker"
        if account.is_stuck:
            return "imbalance"
        return "dependencies" if account.waiting else "tail"

    def change(self, worker: Worker, account: Account, by: int, now: float) -> None:
        """Give a worker one task more of a root, or one less."""
        before, threads = worker.processing, worker.threads
        after = worker.processing = before + by
        if worker.tasks is None:
            if worker.owner is account or not before:
                worker.owner = account
                if after <= threads and before <= threads:
                    self._occupy(worker, account, float(by), now)
                return
            assert worker.owner is not None
            worker.tasks = {worker.owner: before}
            worker.shares = {worker.owner: float(min(before, threads))}
        count = worker.tasks.get(account, 0) + by
        if count > 0:
            worker.tasks[account] = count
        else:
            worker.tasks.pop(account, None)
            self._share(worker, account, 0.0, now)
        part = threads / after if after > threads else 1.0
        for each, number in worker.tasks.items():
            self._share(worker, each, float(min(after, threads)) if number == after else number * part, now)
        if len(worker.tasks) == 1 and count <= 0:
            (worker.owner,) = worker.tasks
            worker.tasks = None

    def _share(self, worker: Worker, account: Account, share: float, now: float) -> None:
        before = worker.shares.get(account, 0.0)
        if share != before:
            worker.shares[account] = share
            if not share:
                del worker.shares[account]
            self._occupy(worker, account, share - before, now)

    def _occupy(self, worker: Worker, account: Account, more: float, now: float) -> None:
        self.settle(account, now)
        self.occupies += more
        account.occupies += more
        if not worker.is_running:
            account.pauses += more

    def leave(self, worker: Worker, now: float) -> None:
        """Count the threads of a worker no more; it may still have tasks."""
        self.advance(now)
        self.number -= worker.threads
        self.paused -= not worker.is_running
        for account, share in worker.occupants().items():
            self._occupy(worker, account, -share, now)
        worker.lost, worker.threads = worker.threads, 0
        worker.shares = dict.fromkeys(worker.shares, 0.0)

    def pause(self, worker: Worker, now: float, *, is_running: bool) -> None:
        """Note that a worker was paused, or goes on."""
        worker.is_running = is_running
        by = -1 if is_running else 1
        self.paused += by
        for account, share in worker.occupants().items():
            self.settle(account, now)
            account.pauses += by * share
