"""A cluster in this process, and what a run has made of it so far."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import dask
from distributed import Client, Future, Scheduler, Worker, span
from distributed.core import Status

from .apart import Apart, busy_keys, heartbeat
from .callers import Callers
from .tasks import Counting

__all__ = ["Cluster", "Person", "until"]

#: What makes ids of spans that callers open differ: people may make the same choices.
_nonces = itertools.count()


@dataclass(eq=False)
class Person:
    """A client, and what it holds."""

    client: Client
    futures: list[Future] = field(default_factory=list)

    def keep(self, rng: random.Random, futures: Sequence[Future]) -> None:
        """Hold futures, or not."""
        if rng.random() < 0.9:
            self.futures += futures

    def some(self, rng: random.Random, most: int = 4) -> list[Future]:
        """Choose a few futures."""
        return rng.sample(self.futures, min(len(self.futures), rng.randint(1, most)))


@dataclass
class Cluster:
    """The cluster and its clients; what they hold may be chosen from at random."""

    scheduler: Scheduler
    memory_limit: int
    #: None if clients are not instrumented.
    callers: Callers | None
    people: list[Person] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    #: Workers in processes of their own, and what starts one; None if a run has none.
    apart: list[Apart] = field(default_factory=list)
    start_apart: Callable[[dict[str, Any]], Awaitable[Apart]] | None = None
    #: Annotations of spans that may be entered again, by anybody.
    spans: list[Any] = field(default_factory=list)
    #: Functions that were called for ranges of numbers, with options.
    calls: list[tuple[Any, range, dict[str, Any]]] = field(default_factory=list)

    async def add_worker(self, rng: random.Random) -> None:
        """Start a worker."""
        worker = Worker(
            self.scheduler.address,
            nthreads=rng.randint(1, 2),
            memory_limit=self.memory_limit,
            dashboard_address=":0",
            dashboard=False,
            validate=True,
            local_directory=tempfile.gettempdir(),
        )
        self.workers.append(await worker)

    async def add_apart(self, rng: random.Random) -> None:
        """Start a worker in a process of its own."""
        assert self.start_apart
        name, nthreads = f"apart {len(self.apart)}", rng.randint(1, 2)
        options = {"scheduler_ip": self.scheduler.address, "nthreads": nthreads, "memory_limit": self.memory_limit}
        self.apart.append(await self.start_apart(options | {"name": name}))

    async def run_apart(self, function: Any, **arguments: Any) -> dict[str, Any]:
        """Call a function in the processes that are there; return what it returned, by address."""
        addresses = [each.address for each in self.apart if each.address in self.scheduler.workers]
        if not addresses:
            return {}
        run = self.people[0].client.run(function, workers=addresses, on_error="ignore", **arguments)
        answers: dict[str, Any] = await asyncio.wait_for(run, 30)
        return answers

    @property
    def running(self) -> list[Worker]:
        """Workers that are there and not paused."""
        return [worker for worker in self.workers if worker.status == Status.running]

    def around(self) -> AbstractContextManager[Any]:
        """In an instrumented program, enter requests, spans of its own and blocks, or some of them, or none."""
        return self.callers.around() if self.callers else nullcontext()

    def inside(self, rng: random.Random) -> AbstractContextManager[Any]:
        """Enter a new span, one that was there before, or none; in an instrumented program, see ``around``."""
        if self.callers is None:
            return self._inside(rng)
        stack = ExitStack()
        if self.callers.rng.random() < 0.5:
            stack.enter_context(self._inside(rng))
        stack.enter_context(self.around())
        return stack

    def _inside(self, rng: random.Random) -> AbstractContextManager[Any]:
        if rng.random() < 0.2:
            return nullcontext()
        if self.spans and rng.random() < 0.5:
            annotation = rng.choice(self.spans)
            if rng.random() < 0.4:
                with dask.annotate(span=annotation), span(rng.choice("xyz")):
                    annotation = self._called(rng, dask.get_annotations()["span"], new=1)
        else:
            tags = rng.choices(("alice", "bob", "step"), k=rng.randint(1, 3))
            with span(*tags):
                annotation = self._called(rng, dask.get_annotations()["span"], new=len(tags))
        self.spans.append(annotation)
        return dask.annotate(span=annotation)

    def _called(self, rng: random.Random, annotation: Any, new: int) -> Any:
        """Have some of the innermost spans, which are new, be opened by callers; a few ids are no valid ones.

        An instrumented program has callers of its own.
        """
        ids = list(annotation["ids"])
        for depth in range(len(ids) - new, len(ids)) if self.callers is None else ():
            if rng.random() < 0.3:
                version, trace, sampled = rng.choice(("00", "00", "00", "ff")), rng.randint(1, 4), rng.random() < 0.7
                ids[depth] = f"{version}-{trace:032x}-{rng.randint(1, 5):016x}-{sampled:02x};{next(_nonces)}"
        return annotation | {"ids": tuple(ids)}

    def make_actor(self, person: Person) -> Future:
        """Submit an actor."""
        # Without a restriction Dask queues one of many, which its validation then fails on.
        workers = {"workers": [worker.address for worker in self.running], "allow_other_workers": True}
        return person.client.submit(Counting, actor=True, pure=False, **workers)

    def victim(self, rng: random.Random) -> Worker:
        """Choose a worker."""
        return rng.choice(self.running or self.workers)

    def worker_of(self, key: Any) -> Worker | None:
        """Find the worker that runs a task, or holds its result."""
        task = self.scheduler.tasks.get(key)
        states = [*([task.processing_on] if task and task.processing_on else []), *(task.who_has or () if task else ())]
        addresses = {state.address for state in states}
        return next((worker for worker in self.running if worker.address in addresses), None)

    async def heartbeats(self, interval: float) -> None:
        """Have workers send heartbeats, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            for worker in self.running:
                await worker.heartbeat()

    async def settled(self, seconds: float) -> None:
        """Wait until every future that is held has a result, or none."""
        held = [future for person in self.people for future in person.futures]
        await until(lambda: all(future.status != "pending" for future in held), seconds)

    async def finish(self, rng: random.Random) -> None:
        """Bring all to rest: what can still run has run, workers have told all they know."""
        await self.settled(2)
        for person in self.people:
            if rng.random() < 0.5:
                person.futures = []
        at_rest = -1
        while at_rest != self.scheduler.transition_counter:
            if not self.running:  # the last one may only now be gone
                await self.add_worker(rng)
            if not await until(lambda: not self._busy(), 60):
                states = Counter(task.state for task in self.scheduler.tasks.values())
                raise TimeoutError(f"not at rest: {self._busy()}; {states}")
            if any((await self.run_apart(busy_keys)).values()):
                continue
            at_rest = self.scheduler.transition_counter
            await asyncio.sleep(0.1)  # two sweeps: the bridge waits for heartbeats after what it has seen
            await self.deliver()

    async def deliver(self) -> None:
        """Have workers deliver all that they know."""
        for _ in range(2):
            for worker in self.running:
                await worker.heartbeat()
            await self.run_apart(heartbeat)

    async def close_workers(self) -> None:
        """Close workers, but don't wait long: one that was stopped before may never have done."""
        closing = [asyncio.create_task(worker.close(executor_wait=False)) for worker in self.workers]
        await asyncio.wait(closing, timeout=3)

    def _busy(self) -> list[str]:
        """What is still going on."""
        busy = [str(task) for task in self.scheduler.tasks.values() if task.state in ("processing", "queued")]
        for worker in self.running:  # one that is gone may never have done
            busy += map(str, [*worker.active_keys, *worker.state.in_flight_tasks])
        if self.scheduler._active_graph_updates:
            busy.append("a graph")
        here = {worker.address for worker in self.running} | {each.address for each in self.apart if each.is_alive}
        if here != set(self.scheduler.workers):
            busy.append("a worker that comes or goes")
        return busy


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds, or some seconds have passed; return whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return condition()
