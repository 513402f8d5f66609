"""What the threads of a cluster did for each root, and the critical path of each, from what happens to tasks.

The scheduler's hooks call it for every task, so each call does as little as possible.

A root has a lap from its first unfinished task until a sweep finds it without any. Tasks that had finished, and run
again only because their worker left, keep no lap going until a worker has them again: when a cluster closes, workers
often go first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from .critical_path import DATA, THREAD, Base, PathNode, path_from, path_of, path_to_arrival, path_to_run
from .occupancy import Account, Mark, Threads, Worker
from .parts import GroupKey, Lap

__all__ = ["GroupTimes", "RunTimes"]

#: Threads of a worker whose last runs are kept: tasks that secede use new ones.
MAX_THREADS = 1000
#: Seconds by which the time of a worker jumps when it estimates anew how far its clock is from the scheduler's.
JITTER = 0.01
#: Stands for a node where there is none.
NOWHERE = path_from(Base(0.0, None))
#: Roots that are looked at when a worker joins, leaves or is paused.
FEW = 20
#: Seconds within which tasks are sent at the same time: a large graph takes seconds.
TOGETHER = 0.01
#: States of tasks that have not ended, but ``processing``.
_WAITING = ("waiting", "queued", "no-worker")


class GroupTimes(NamedTuple):
    """Where what happens to the tasks of a group counts."""

    account: Account
    key: GroupKey


#: Of tasks that were sent to a worker; one for all that have the same values:
#: the worker; the node that made them runnable, or freed their places in the queue, and the edge; when they were sent;
#: why not as soon as the scheduler was told of that node; whether an input was on another worker.
Sent = tuple[Worker, PathNode, int, float, str, bool]


class RunTimes:
    """Keeps the times of all roots of a scheduler.

    Times are seconds since the epoch by the scheduler's clock, and must not go back.

    Parameters
    ----------
    cause_of
        Why a task was not sent earlier that a stimulus makes runnable which is neither a run nor a graph: see ``GAPS``.
    """

    def __init__(self, now: float, cause_of: Callable[[Any], str]) -> None:
        self.threads = Threads(now)
        self._cause_of = cause_of
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        #: Roots that have a lap; a set in order of insertion.
        self._active: dict[Account, None] = {}
        #: The same of roots whose lap has ended, but perhaps not their segment.
        self._resting: dict[Account, None] = {}
        #: The same of roots without unfinished tasks, of those that had none at the last ``take``; and laps that have
        #: ended since, each with the last node of its path.
        self._rested: dict[Account, None] = {}
        self._over: dict[Account, None] = {}
        self._ended: list[tuple[Lap, PathNode]] = []
        self._is_trusted = True
        #: Tasks that workers have.
        self._sent: dict[Any, Sent] = {}
        self._seceded: set[Any] = set()
        #: Tasks that wait for a place in the queue or for a worker, and the node that made them runnable.
        self._runnable: dict[Any, PathNode] = {}
        #: Why tasks wait that are runnable, if it is not that alone.
        self._waited: dict[Any, str] = {}
        #: Stimulus of the last run that the scheduler was told of, and its node.
        self._last_of: Any = None
        self._last = NOWHERE
        #: The worker and root of that run, and when, while its thread has not been counted as free: most often the next
        #: task takes it at once, and nothing changes.
        self._freed: tuple[Worker, Account, float] | None = None
        #: Stimulus of the last graph, when it came, and when it was taken in.
        self._graph: tuple[Any, Mark, float] = (None, Mark(now, 0.0, 0.0), now)
        #: What was sent by the last stimulus.
        self._burst_of: Any = None
        self._burst: dict[str, Sent] = {}

    def account(self, root_id: str) -> Account:
        """Return where what happens to the tasks of a root counts."""
        account = self._accounts.get(root_id)
        if account is None:
            account = self._accounts[root_id] = Account(root_id)
        return account

    # The cluster

    def worker_joined(self, address: str, threads: int, status: str, now: float) -> None:
        """Count the threads of a worker."""
        if address in self.threads.workers:
            return
        self._count_freed()
        self.threads.advance(now)
        self.threads.workers[address] = Worker(address, threads)
        self.threads.number += threads
        self.worker_status(address, status, now)
        self._reconsider_all(now)

    def worker_left(self, address: str, now: float) -> None:
        """Count the threads of a worker no more. Its tasks are released by transitions that may follow."""
        self._count_freed()
        worker = self.threads.workers.pop(address, None)
        if worker:
            self.threads.leave(worker, now)
            for account in self._active:
                account.displaced.pop(worker, None)
            self._reconsider_all(now)

    def worker_status(self, address: str, status: str, now: float) -> None:
        """Note Dask's status of a worker: ``running``, ``paused``, ``closing_gracefully`` …"""
        self._count_freed()
        worker, is_paused = self.threads.workers.get(address), status == "paused"
        if worker:
            worker.is_running = status == "running"
            if worker.is_paused != is_paused:
                self.threads.pause(worker, now, is_paused=is_paused)
                self._reconsider_all(now)

    def _reconsider_all(self, now: float) -> None:
        """Find out anew why threads are idle, unless that is much work: the next sweep does the same."""
        if len(self._active) <= FEW:
            for account in self._active:
                self.threads.reconsider(account, now)

    # Graphs

    def graph_came(self, now: float) -> Mark:
        """Return what ``graph_taken`` needs of the moment at which a graph comes."""
        self._count_freed()
        return self.threads.mark(now)

    def graph_taken(self, stimulus: Any, came: Mark, now: float) -> None:
        """Note that a graph has been taken in; transitions with its stimulus follow."""
        self._graph = stimulus, came, now

    # Tasks

    def enter(self, of: GroupTimes, key: Any, state: str, now: float, stimulus: Any) -> None:
        """Count a task that begins to wait, be queued or lack a worker, and was in none of these states."""
        account = of.account
        # Of many tasks of a graph, each but the first changes nothing but the numbers.
        if state == "waiting" and account.waiting:
            account.waiting += 1
            account.unfinished += 1
            return
        if state == "queued" and account.queued and self._comes_with_graph(account, stimulus):
            self._runnable[key] = account.arrival
            account.queued += 1
            account.unfinished += 1
            return
        self._count_freed()
        if not account.unfinished:
            self._wake(account, now, stimulus)
        account.unfinished += 1
        if state != "waiting":
            self._make_runnable(account, key, stimulus)
        self._count(account, state, 1, now)

    def leave(self, of: GroupTimes, key: Any, state: str, now: float) -> None:
        """Count no more a task that waited, was queued or lacked a worker, and ends without being sent."""
        self._count_freed()
        account = of.account
        self._runnable.pop(key, None)
        self._waited.pop(key, None)
        self._count(account, state, -1, now)
        self._less(account, now)

    def move(self, of: GroupTimes, key: Any, before: str, after: str, now: float, stimulus: Any) -> None:
        """Count a task that waits in another way."""
        self._count_freed()
        account = of.account
        if before == "waiting":
            self._make_runnable(account, key, stimulus)
        self._count(account, before, -1, now)
        self._count(account, after, 1, now)

    def send(
        self,
        of: GroupTimes,
        key: Any,
        before: str,
        address: str,
        now: float,
        stimulus: Any,
        ran_before: bool,
        is_remote: bool,
    ) -> None:
        """Count a task that is sent to a worker.

        Parameters
        ----------
        before
            The state in which it was counted; any other if it was not.
        ran_before
            Whether it has had a result.
        is_remote
            Whether an input was on another worker.
        """
        account, _ = of
        threads = self.threads
        worker = threads.workers.get(address)
        if worker is None:
            worker = Worker(address, 0)  # it has just left; what was sent to it will be released
        edge = DATA
        if before == "queued" or before == "no-worker":
            if before == "queued":
                waited = "queued"
                account.queued -= 1
                crossed = not account.queued
            else:
                waited = "no_worker"
                account.no_worker -= 1
                crossed = not account.no_worker
            node = self._runnable.pop(key, None)
            if node is None or node[0] is not account.base:
                node = account.origin
            if stimulus == self._last_of:
                last = self._last
                if last[0] is not account.base:
                    waited = "others"
                elif last[1] > node[1]:
                    node, edge = last, THREAD
            if self._waited and key in self._waited:
                waited = self._waited.pop(key)
        else:
            if before == "waiting":
                account.waiting -= 1
                crossed = not account.waiting
            else:
                crossed = True
                if not account.unfinished:
                    self._wake(account, now, stimulus)
                account.unfinished += 1
            if stimulus == self._last_of:
                node = self._last
                waited = "dispatch"
                if node[0] is not account.base:
                    node, waited = account.latest, "others"
            elif self._comes_with_graph(account, stimulus):
                node, waited = account.arrival, "dispatch"
            else:
                node, waited = self._released(account, stimulus, ran_before=ran_before)
        sent: Sent | None = None
        if stimulus is self._burst_of:
            sent = self._burst.get(address)
        else:
            self._burst_of = stimulus
            self._burst.clear()
        if (
            sent is None
            or sent[1] is not node
            or sent[4] != waited
            or sent[5] is not is_remote
            or sent[2] != edge
            or now - sent[3] > TOGETHER
        ):
            sent = self._burst[address] = (worker, node, edge, now, waited, is_remote)
        self._sent[key] = sent
        freed, self._freed = self._freed, None
        if freed is None or freed[0] is not worker or freed[1] is not account or stimulus != self._last_of:
            if freed is not None:
                self._count_freed(freed)
            account.processing += 1
            processing = worker.processing
            if worker.owner is account and processing >= worker.threads:
                worker.processing = processing + 1
                if processing == worker.threads:
                    account.stuck.add(worker)
            else:
                threads.change(worker, account, 1, now)
        if crossed or bool(account.stuck) is not account.is_stuck or threads.paused:
            threads.reconsider(account, now)

    def release(self, of: GroupTimes, key: Any, now: float, *, was_lost: bool = False) -> None:
        """Count a task no more that a worker has, and of which it reports no run.

        Parameters
        ----------
        was_lost
            Whether its worker has left.
        """
        self._count_freed()
        account = of.account
        sent = self._sent.pop(key, None)
        if sent is None:
            return
        worker, _, _, at, _, _ = sent
        if was_lost and worker.lost and worker.is_running:
            worker.lost -= 1
            account.lost += max(0.0, now - max(at, worker.last_told))
        self._exit(account, key, worker, now)
        self._less(account, now)

    def run(
        self,
        of: GroupTimes,
        key: Any,
        start: float,
        stop: float,
        thread: Any,
        now: float,
        stimulus: Any,
        again: float = 0.0,
    ) -> None:
        """Count a run that has ended.

        Parameters
        ----------
        start, stop
            By the clock of its worker.
        again
            Seconds of it that had been computed before.
        """
        account, group = of
        sent = self._sent.pop(key, None)
        if self._freed is not None:
            self._count_freed()
        if sent is None:  # it came when this did not count yet
            return
        worker, node, edge, at, waited, is_remote = sent
        base = account.base
        if node[0] is not base:
            node, edge = account.origin, DATA
        others_until = 0.0
        by_thread = worker.last
        last = by_thread.get(thread)
        # Of two runs on a thread the clocks may say that they overlap a little. Async tasks do overlap.
        free_by = max((start + stop) / 2, start + JITTER)
        if last is not None:
            if last[0] is base:
                if node[1] < last[1] <= free_by:
                    node, edge = last, THREAD
            else:
                others_until, own = self._displaced(worker, thread, last, account)
                if own is not None and node[1] < own[1] <= free_by:
                    node, edge = own, THREAD
        elif len(by_thread) >= MAX_THREADS:
            del by_thread[next(iter(by_thread))]
        by_thread[thread] = node = path_to_run(node, group, edge, start, stop, now, at, waited, others_until, is_remote)
        worker.last_told = now
        if node[1] > account.latest[1]:
            account.latest = node
        self._last_of, self._last = stimulus, node
        if again:
            account.recomputed += again
        if account.unfinished > 1:
            account.unfinished -= 1
            is_seceded = self._seceded and key in self._seceded
            if worker.owner is account and not is_seceded and not self.threads.paused:
                self._freed = worker, account, now
            else:
                self._exit(account, key, worker, now)
        else:
            self._exit(account, key, worker, now)
            self._less(account, now)

    def _displaced(
        self, worker: Worker, thread: Any, last: PathNode, account: Account
    ) -> tuple[float, PathNode | None]:
        """Look at the last run on a thread, of another root or an earlier lap, before one of a root takes its place.

        Returns
        -------
        Until when another root's lasted, and the last run there of the root itself.
        """
        owner: Account = last[0].owner
        if owner is account:
            return 0.0, None
        if last[0] is owner.base:
            owner.displaced.setdefault(worker, {})[thread] = last
        there = account.displaced.get(worker)
        own = there.pop(thread, None) if there else None
        return last[1], own if own is not None and own[0] is account.base else None

    def secede(self, of: GroupTimes, key: Any, now: float) -> None:
        """Note that a task has left its worker's pool of threads, where another one can run."""
        self._count_freed()
        sent = self._sent.get(key)
        if sent is not None and key not in self._seceded:
            self._seceded.add(key)
            self.threads.change(sent[0], of.account, -1, now)
            of.account.processing -= 1

    def steal(self, of: GroupTimes, key: Any, address: str, now: float) -> None:
        """Note that a task was taken from its worker and given to another one."""
        self._count_freed()
        sent, worker = self._sent.get(key), self.threads.workers.get(address)
        if sent is not None and worker is not None and key not in self._seceded:
            self.threads.change(sent[0], of.account, -1, now)
            self.threads.change(worker, of.account, 1, now)
            self._sent[key] = (worker, *sent[1:])

    # Sweeps

    def take(self) -> None:
        """Have ``laps`` return those that are over now."""
        self._count_freed()
        for account in self._rested:
            self._over[account] = None
        self._rested = {}

    def laps(self, now: float) -> Iterator[Lap | None]:
        """Return the laps that were over at the last ``take``, and find out anew why threads are idle.

        Lazy: each step is little work. A step that ends no lap yields None.
        """
        while self._over or self._ended:
            if not self._ended:
                self._end(next(iter(self._over)))
            lap, node = self._ended.pop(0)
            lap.path = path_of(node)
            yield lap if self._is_trusted else None
        for account in list(self._active):
            if account.base is not None and not account.rested:
                self.threads.look_again(account, now)
            yield None

    def cut(self, root_id: str, now: float) -> Lap | None:
        """End the lap of a root that goes on, and begin the next one; None if it has none."""
        self._count_freed()
        account = self._accounts.get(root_id)
        if account is None or account.base is None:
            return None
        if account.rested:
            self._rested.pop(account, None)
            self._over.pop(account, None)
            lap, node = account.end()
            self._active.pop(account, None)
            self._resting[account] = None
        else:
            self.threads.settle_all(account, now)
            lap, node = account.end()
            stopped = account.stopped
            account.begin(account.marked)
            account.stopped = stopped
        lap.path = path_of(node)
        return lap if self._is_trusted else None

    def _end(self, account: Account) -> None:
        """End a lap that is over."""
        del self._over[account]
        self._ended.append(account.end())
        self._active.pop(account, None)
        self._resting[account] = None

    def distrust(self) -> None:
        """Return no more laps: a transition was lost, so that no number can be relied on any more."""
        self._is_trusted = False

    def lap_start(self, root_id: str) -> float | None:
        """Return when the lap of a root began that is not over; None if there is none."""
        account = self._accounts.get(root_id)
        return account.base.start if account and account.base else None

    def forget(self, is_over: Callable[[str], bool]) -> Iterator[None]:
        """Forget when the last lap of roots ended whose segment is over. Lazy."""
        for account in list(self._resting):
            if account in self._resting and is_over(account.root_id):  # it may have begun a lap meanwhile
                account.stopped = None
                # They refer to each other: without this, only a full garbage collection would free them.
                account.latest = account.origin = account.arrival = NOWHERE
                account.displaced.clear()
                self._resting.pop(account, None)
            yield

    # Inside

    def _wake(self, account: Account, now: float, stimulus: Any) -> None:
        self._count_freed()
        if account.rested:
            self._rested.pop(account, None)
            if account in self._over:
                self._end(account)
        graph, came, _ = self._graph
        is_graph = stimulus == graph
        if account.base is None:
            # A graph may have come while the last task of the lap before still ran.
            account.begin(max(came, account.marked) if is_graph else self.threads.mark(now))
            self._resting.pop(account, None)
            self._active[account] = None
        elif account.rested and is_graph:  # the same lap goes on
            self.threads.settle_until(account, came, "client")
        account.rested = 0.0
        if is_graph:
            self.threads.settle_until(account, self.threads.mark(now), "graph")
            self._arrive(account, stimulus)
        elif account.marked.at < now:
            self.threads.settle_until(account, self.threads.mark(now), "client")

    def _arrive(self, account: Account, stimulus: Any) -> PathNode:
        """Return the node of the graph that comes with a stimulus."""
        if account.arrival_of != stimulus or account.arrival[0] is not account.base:
            _, came, taken_in = self._graph
            account.arrival = path_to_arrival(account.latest, came.at, taken_in)
            account.arrival_of = stimulus
            if account.arrival[1] > account.latest[1]:
                account.latest = account.arrival
        return account.arrival

    @staticmethod
    def _comes_with_graph(account: Account, stimulus: Any) -> bool:
        """Whether tasks come with the latest graph that the lap has a node of."""
        return stimulus is account.arrival_of and account.arrival[0] is account.base

    def _make_runnable(self, account: Account, key: Any, stimulus: Any) -> None:
        """Note what made a task runnable that is not sent yet."""
        self._runnable[key], waited = self._released(account, stimulus, ran_before=False)
        if waited == "lost":
            self._waited[key] = waited

    def _released(self, account: Account, stimulus: Any, *, ran_before: bool) -> tuple[PathNode, str]:
        """Return the node that made a task runnable, and why it was not sent at once."""
        if stimulus == self._last_of:
            return (self._last, "dispatch") if self._last[0] is account.base else (account.latest, "others")
        if stimulus == self._graph[0]:
            return self._arrive(account, stimulus), "dispatch"
        return account.latest, "lost" if ran_before else self._cause_of(stimulus)

    def _count(self, account: Account, state: str, by: int, now: float) -> None:
        if state == "waiting":
            account.waiting += by
            crossed = account.waiting == 0 or account.waiting == by
        elif state == "queued":
            account.queued += by
            crossed = account.queued == 0 or account.queued == by
        else:
            account.no_worker += by
            crossed = account.no_worker == 0 or account.no_worker == by
        if crossed:
            self.threads.reconsider(account, now)

    def _count_freed(self, freed: tuple[Worker, Account, float] | None = None) -> None:
        """Count the thread of the last run as free, or one that is given: the next task has not taken it."""
        if freed is None:
            freed, self._freed = self._freed, None
        if freed is not None:
            worker, account, now = freed
            account.processing -= 1
            self.threads.change(worker, account, -1, now)
            if bool(account.stuck) is not account.is_stuck or self.threads.paused:
                self.threads.reconsider(account, now)

    def _exit(self, account: Account, key: Any, worker: Worker, now: float) -> None:
        if self._seceded and key in self._seceded:
            self._seceded.discard(key)
        else:
            self._count_freed((worker, account, now))

    def _less(self, account: Account, now: float) -> None:
        account.unfinished -= 1
        if account.unfinished <= 0:
            account.unfinished = 0
            if account.base is not None and not account.rested:
                self.threads.settle(account, now)
                account.rested = self.threads.at
                account.cause = "client"
                self._rested[account] = None
