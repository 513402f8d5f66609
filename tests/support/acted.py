"""A real scheduler in virtual time, with workers, clients and faults that are only acted, at random.

Tasks are queued, stolen, lost and run again as the scheduler decides; how long they take, by which clock, and what
breaks, follows from a seed.
"""

from __future__ import annotations

import heapq
import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest import mock

from dask._expr import LLGExpr
from dask._task_spec import Task, TaskRef
from distributed.protocol import Serialized, serialize, to_serialize

from dask_otel.diagnosis.parts import Lap
from dask_otel.scheduler.pace import Clock, Unpaced

from .full_record import Cut, FullRecord, Swept
from .memory import MemoryPlugin
from .scripted import CONFIG, ScriptedScheduler

__all__ = ["ActedCluster"]

ROOTS = ("alice", "bob", "carol")
CLIENTS = ("Client-a", "Client-b")
#: By how much a worker's clock may be wrong, seconds.
SKEW = 0.06
SWEEP_INTERVAL = 0.25


@dataclass(eq=False)
class _Run:
    """A task that a worker has been sent."""

    key: Any
    run_id: int
    #: When it and its inputs are there.
    ready: float
    seconds: float
    fate: str
    #: Seconds after its start; 0.0 for never.
    secedes: float = 0.0
    thread: int = 0
    start: float = 0.0


@dataclass(eq=False)
class _Worker:
    address: str
    skew: float
    threads: set[int]
    loop: int
    pending: list[_Run] = field(default_factory=list)
    known: set[tuple[Any, int]] = field(default_factory=set)
    is_running: bool = True


class ActedCluster(ScriptedScheduler):
    """A cluster with the bridge that does by itself what its seed says."""

    #: Tasks are stolen when the seed says.
    config = CONFIG | {"distributed.scheduler.work-stealing": True}
    #: With errors, retries and lost workers at once, Dask does not always pass its own checks.
    validate = False

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        super().__init__(self._rng.choice((0, 1, 2, 3)), saturation=self._rng.choice((1.1, 1.1, "inf")))
        self._patches = ExitStack()
        self._numbers = count()
        self._acted: dict[str, _Worker] = {}
        #: What is to happen, by time.
        self._plan: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        #: Keys that clients wanted.
        self._known: list[str] = []
        self._faults = self._rng.random() < 0.8
        self._length = self._rng.choice((0.02, 0.1, 0.3))
        #: Laps as the bridge has counted them.
        self.laps: list[Lap] = []

    async def __aenter__(self) -> ActedCluster:
        for name in ("pace.time", "pace.monotonic", "run_times.time", "sweep.time"):
            self._patches.enter_context(mock.patch(f"dask_otel.scheduler.{name}", self._time))
        self._patches.enter_context(mock.patch("dask_otel.scheduler.runtime.CLOCK", Clock()))
        await super().__aenter__()
        self._take_in = self.scheduler.stream_handlers["update-graph"]
        self.scheduler.stream_handlers["update-graph"] = self._take_in_slowly
        max_segment = self._rng.choice((0.5, 3600.0, 3600.0))
        self.plugin = MemoryPlugin(sweep_interval=3600.0, shutdown_timeout=0.0, max_segment=max_segment)
        await self.plugin.add_to(self.scheduler)
        self.record = FullRecord(self.scheduler, self._time, self._time)
        self.scheduler.add_plugin(self.record, name="full record")
        bridge = self.plugin._bridge
        add_lap, cut = bridge.span_tree.add_lap, bridge.run_times.times.cut

        def note_lap(lap: Lap) -> None:
            self.laps.append(lap)
            add_lap(lap)

        def note_cut(root: str, now: float) -> Any:
            self.record.events.append(Cut(now, root))
            return cut(root, now)

        bridge.span_tree.add_lap, bridge.run_times.times.cut = note_lap, note_cut
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await super().__aexit__(*failure)
        self._patches.close()

    async def run(self, seconds: float) -> None:
        """Let things happen for some time, and all work end."""
        rng = self._rng
        begin = self._now
        actions = [self._join, self._lose, self._pause, self._steal, self._release, self._retry, self._reschedule]
        actions += [self._steal, self._submit, self._cut]
        for _ in range(rng.randint(1, 5)):
            self._at(rng.uniform(0, seconds / 2), self._submit)
        for _ in range(rng.randint(2, 12) if self._faults else 0):
            self._at(rng.uniform(0.05, seconds), rng.choice(actions))
        for number in range(int(2 * seconds / SWEEP_INTERVAL)):
            self._at((number + 1) * SWEEP_INTERVAL, self._sweep)
        self._at(seconds, self._settle)
        while self._plan and self._now < begin + 20 * seconds:
            at, _, action, arguments = heapq.heappop(self._plan)
            self._now = max(self._now, at)
            await action(*arguments)
            self._act()
        await self._sweep()

    def _at(self, after: float, action: Any, *arguments: Any) -> None:
        heapq.heappush(self._plan, (self._now + after, next(self._numbers), action, arguments))

    # Workers

    def _act(self) -> None:
        """Have workers notice what they have been sent, and start what can start."""
        rng = self._rng
        for address, state in self.scheduler.workers.items():
            if address not in self._acted:
                number = next(self._numbers)
                threads = {1000 * number + n for n in range(state.nthreads)}
                skew = rng.choice((0.0, rng.uniform(-SKEW, SKEW)))
                self._acted[address] = _Worker(address, skew, threads, 1000 * number + 999)
            worker = self._acted[address]
            for task in state.processing:
                if (task.key, task.run_id) not in worker.known:
                    worker.known.add((task.key, task.run_id))
                    transfer = rng.choice((0.0, rng.uniform(0, 0.05)))
                    fate = rng.choices(
                        ("done", "failed", "async", "known"), (30, 1, 1, 0.5) if self._faults else (30, 0, 1, 0)
                    )[0]
                    run = _Run(
                        task.key,
                        task.run_id,
                        self._now + rng.uniform(0.0005, 0.005) + transfer,
                        rng.expovariate(1 / self._length),
                        fate,
                    )
                    run.secedes = rng.random() * run.seconds if self._faults and rng.random() < 0.03 else 0.0
                    worker.pending.append(run)
                    self._at(run.ready - self._now, self._start, worker)
        for worker in self._acted.values():
            self._start_some(worker)

    async def _start(self, worker: _Worker) -> None:
        self._start_some(worker)

    def _start_some(self, worker: _Worker) -> None:
        for run in [each for each in worker.pending if each.ready <= self._now]:
            if not worker.is_running or self.scheduler.workers.get(worker.address) is None:
                return
            task = self.scheduler.tasks.get(run.key)
            if (
                not task
                or task.run_id != run.run_id
                or not task.processing_on
                or task.processing_on.address != worker.address
            ):
                worker.pending.remove(run)  # cancelled, or stolen
                worker.known.discard((run.key, run.run_id))
                continue
            if run.fate == "async":
                run.thread = worker.loop
            elif worker.threads:
                run.thread = worker.threads.pop()
            else:
                continue
            worker.pending.remove(run)
            run.start = self._now
            if run.secedes and run.fate != "async":
                self._at(run.secedes, self._secede, worker, run)
            self._at(run.seconds, self._stop, worker, run)

    async def _secede(self, worker: _Worker, run: _Run) -> None:
        worker.threads.add(next(self._numbers) + 10**7)
        self.scheduler.stream_handlers["long-running"](
            key=run.key,
            worker=worker.address,
            run_id=run.run_id,
            compute_duration=0.1,
            stimulus_id=f"secede-{self._now}",
        )

    async def _stop(self, worker: _Worker, run: _Run) -> None:
        """A run ends; the scheduler is told a little later."""
        if run.fate != "async" and not run.secedes:
            worker.threads.add(run.thread)
        self._at(
            self._rng.choice((0.0005, self._rng.uniform(0, 0.03))),
            self._told,
            worker,
            run,
            self._now - self._rng.uniform(0, 1e-5),
        )

    async def _told(self, worker: _Worker, run: _Run, stop: float) -> None:
        if worker.address not in self.scheduler.workers:
            return
        task = self.scheduler.tasks.get(run.key)
        if task and task.run_id == run.run_id:
            self._fetch(task, worker.address)
        steps = [{"action": "compute", "start": run.start + worker.skew, "stop": stop + worker.skew}]
        if self._rng.random() < 0.2:
            steps.insert(
                0, {"action": "transfer", "start": run.start + worker.skew - 0.01, "stop": run.start + worker.skew}
            )
        if self._rng.random() < 0.1:  # of a run before
            steps = [{"action": "compute", "start": run.start - 9.0, "stop": run.start - 8.0}, *steps]
        common = {"key": run.key, "worker": worker.address, "run_id": run.run_id, "thread": run.thread, "metadata": {}}
        if run.fate == "failed":
            self.scheduler.handle_task_erred(
                **common, stimulus_id=f"task-erred-{self._unique()}", startstops=steps, exception=ValueError("bad"),
                traceback=None, exception_text="bad", traceback_text="",
            )  # fmt: skip
        else:
            self.scheduler.handle_task_finished(
                **common, stimulus_id=f"task-finished-{self._unique()}", status="OK",
                startstops=() if run.fate == "known" else steps, nbytes=100, type=b"int", typename="int",
            )  # fmt: skip

    def _unique(self) -> int:
        """Number of a stimulus; workers may choose the same one."""
        return next(self._numbers) if self._rng.random() < 0.97 else 0

    # Clients

    async def _submit(self) -> None:
        rng = self._rng
        root = rng.choice(ROOTS)
        number = next(self._numbers)
        graph: dict[str, list[str]] = {}
        for layer in range(rng.randint(1, 3)):
            above = list(graph)
            for _ in range(rng.choice((1, 3, 8, 25))):
                inputs = rng.sample(above, min(len(above), rng.choice((0, 1, 2, len(above)))))
                if self._known and rng.random() < 0.1:
                    inputs.append(rng.choice(self._known))
                graph[f"{root}{layer}-{number}-{len(graph)}"] = inputs
        if rng.random() < 0.05:  # long, in groups that alternate
            keys = [f"{root}{n % 2}-{number}-{n}" for n in range(150)]
            graph = {key: keys[n - 1 : n] if n else [] for n, key in enumerate(keys)}
        elif rng.random() < 0.1:
            graph = {}
        wanted = [key for key in graph if rng.random() < 0.3] + list(graph)[-1:]
        held = [key for key in self._known if key in self.scheduler.tasks and self.scheduler.tasks[key].who_wants]
        wanted += rng.sample(held, min(len(held), rng.randint(0, 2)))  # known already
        graph = {key: [each for each in inputs if each in graph or each in held] for key, inputs in graph.items()}
        if not wanted:
            return
        self._known = held + [key for key in wanted if key in graph]
        inner = rng.choice((root, f"{root}/inner"))
        spans = {key: annotation(inner if rng.random() < 0.7 else rng.choice(ROOTS)) for key in graph}
        annotations = {"span": lambda key: spans[key]}
        if rng.random() < 0.5:
            annotations["retries"] = 1
        if self._faults and rng.random() < 0.15:  # perhaps on a worker that is not there
            annotations["workers"] = [f"tcp://10.0.0.{rng.randint(0, 3)}:4000"]
        tasks = {key: Task(key, max, *map(TaskRef, inputs)) for key, inputs in graph.items()}
        await self.scheduler.stream_handlers["update-graph"](
            client=rng.choice(CLIENTS),
            expr_ser=Serialized(*serialize(to_serialize(LLGExpr(tasks)))),
            keys=set(wanted),
            span_metadata={"collections": []},
            internal_priority={key: number for number, key in enumerate(graph)},
            submitting_task=None,
            annotations=annotations,
            stimulus_id=f"update-graph-{number}",
        )

    async def _take_in_slowly(self, *args: Any, **message: Any) -> None:
        self._now += self._rng.choice((0.0, self._rng.uniform(0, 0.05)))
        await self._take_in(*args, **message)

    async def _release(self) -> None:
        client = self._rng.choice(CLIENTS)
        state = self.scheduler.clients[client]
        held = sorted(task.key for task in state.wants_what)
        keys = self._rng.sample(held, self._rng.randint(0, len(held)))
        stimulus = self._rng.choice(("client-releases-keys", "cancel-key"))
        self.scheduler.client_releases_keys(keys=keys, client=client, stimulus_id=f"{stimulus}-{self._now}")

    async def _retry(self) -> None:
        await self.retry()

    async def _settle(self) -> None:
        """Nothing breaks any more: what can end ends, what cannot is released."""
        for worker in self._acted.values():
            await self._resume(worker)
        if not self.scheduler.workers:
            await self._join()

    # Faults

    async def _join(self) -> None:
        await self.join()

    def has_joined(self, address: str) -> None:
        for plugin in self.scheduler.plugins.values():
            plugin.add_worker(self.scheduler, address)

    async def _lose(self) -> None:
        if self.scheduler.workers:
            address = self._rng.choice(list(self.scheduler.workers))
            await self.scheduler.remove_worker(address, stimulus_id=f"handle-worker-cleanup-{self._now}", close=False)
            self._acted.pop(address, None)
            if self._rng.random() < 0.7:
                self._at(self._rng.uniform(0, 0.5), self._join)

    async def _pause(self) -> None:
        if self._acted:
            worker = self._rng.choice(list(self._acted.values()))
            worker.is_running = False
            self._status(worker, "paused")
            self._at(self._rng.uniform(0.05, 0.5), self._resume, worker)

    async def _resume(self, worker: _Worker) -> None:
        worker.is_running = True
        self._status(worker, "running")

    def _status(self, worker: _Worker, status: str) -> None:
        if worker.address in self.scheduler.workers:
            self.scheduler.handle_worker_status_change(status, worker.address, f"worker-status-change-{self._now}")

    async def _steal(self) -> None:
        victims = [worker for worker in self._acted.values() if worker.pending]
        if not victims or len(self.scheduler.workers) < 2:
            return
        victim = self._rng.choice(victims)
        run = self._rng.choice(victim.pending)
        task = self.scheduler.tasks.get(run.key)
        stealing = self.scheduler.extensions["stealing"]
        if (
            not task
            or not task.processing_on
            or task.processing_on.address != victim.address
            or task in stealing.in_flight
        ):
            return
        thief = self._rng.choice([each for each in self.scheduler.workers.values() if each.address != victim.address])
        stimulus = stealing.move_task_request(task, task.processing_on, thief)
        state = self._rng.choice(("ready", "ready", "executing", None))
        if state == "executing":
            pass
        elif run in victim.pending:
            victim.pending.remove(run)
            victim.known.discard((run.key, run.run_id))
        self.scheduler.stream_handlers["steal-response"](
            key=run.key, state=state, stimulus_id=stimulus, worker=victim.address
        )

    async def _reschedule(self) -> None:
        processing = [task for worker in self.scheduler.workers.values() for task in worker.processing]
        if processing:
            self.scheduler._reschedule(self._rng.choice(processing).key, stimulus_id=f"reschedule-{self._now}")

    # The bridge

    async def _sweep(self) -> None:
        self.record.events.append(Swept(self._now))
        await self.plugin._bridge.sweep.sweep()

    async def _cut(self) -> None:
        await self.plugin._bridge.sweep._cut_laps([f"id-{self._rng.choice(ROOTS)}"], Unpaced())


def annotation(path: str) -> Any:
    """What ``distributed.span`` annotates."""
    tags = tuple(path.split("/"))
    return {"name": tags, "ids": tuple(f"id-{'/'.join(tags[: n + 1])}" for n in range(len(tags)))}
