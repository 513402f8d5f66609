"""A real scheduler whose clients and workers follow a script: no processes, no wall clock, each play is the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any
from unittest import mock

import dask
from dask._expr import LLGExpr
from dask._task_spec import Task, TaskRef
from distributed import Scheduler
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol import Serialized, serialize, to_serialize
from distributed.scheduler import ClientState, WorkerState

from support.memory import MemoryPlugin
from support.task_groups import check_groups

__all__ = ["ScriptedScheduler", "quiet_bridge", "random_script"]

#: What a play may not depend on: what happens after some time.
CONFIG = {
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-ttl": None,
    "distributed.admin.low-level-log-length": 0,
}


def quiet_bridge() -> MemoryPlugin:
    """Make a bridge that does nothing by itself; it would wait for metrics, which such workers never send."""
    return MemoryPlugin(sweep_interval=3600.0, shutdown_timeout=0.0)


class _Connection:
    """In the place of the connection to a worker."""

    def send(self, *messages: Any) -> None:
        pass

    def closed(self) -> bool:
        return True


class Decisions(SchedulerPlugin):
    """Records what the scheduler decides, and what it sees of the groups that it decides by."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: In order.
        self.log: list[tuple[Any, ...]] = []
        for name in ("is_rootish", "decide_worker_rootish_queuing_disabled"):
            self._record(name, getattr(scheduler, name))
        for name in ("decide_worker_rootish_queuing_enabled", "decide_worker_non_rootish"):
            self._record_worker(name, getattr(scheduler, name))

    def _record(self, name: str, method: Callable[[Any], Any]) -> None:
        """Record the answers of a method that decides by the group of a task."""

        def recorder(task: Any) -> Any:
            before = seen(task.group)
            answer = method(task)
            self.log.append((name, task.key, before, str(answer), seen(task.group)))
            return answer

        setattr(self._scheduler, name, recorder)

    def _record_worker(self, name: str, method: Callable[..., Any]) -> None:
        def recorder(*task: Any) -> Any:
            answer = method(*task)
            self.log.append((name, *(each.key for each in task), str(answer)))
            return answer

        setattr(self._scheduler, name, recorder)

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **details: Any) -> None:
        for key in tasks:
            scheduler.tasks[key]._queueable = "shuffle" not in str(key)  # as Dask does for P2P

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **details: Any) -> None:
        worker = self._scheduler.tasks[key].processing_on
        self.log.append((key, start, finish, worker.address if worker else None, stimulus_id))

    def look(self, what: tuple[Any, ...]) -> None:
        """Record the state of the cluster, and how Dask would decide about each task."""
        scheduler = self._scheduler
        self.log.append(("step", *what))
        for task in scheduler.tasks.values():
            scheduler.is_rootish(task)
            holders = sorted(worker.address for worker in task.who_has or ())
            clients = sorted(client.client_key for client in task.who_wants or ())
            self.log.append((task.key, task.state, task.priority, task.nbytes, holders, clients))
        for worker in scheduler.workers.values():
            self.log.append((worker.address, [t.key for t in worker.processing], worker.nbytes, worker.occupancy))
        self.log.append(("queued", [task.key for task in scheduler.queued.sorted()]))
        self.log.append(("unrunnable", [task.key for task in scheduler.unrunnable]))
        self.log.append(("idle", list(scheduler.idle), sorted(map(str, scheduler.saturated)), scheduler.is_idle))


def seen(group: Any) -> tuple[Any, ...]:
    """All that Dask reads of a group when it decides."""
    left = group.states["released"] + group.states["waiting"]
    return (
        len(group),
        sorted(map(len, group.dependencies)),
        str(group.last_worker),
        group.last_worker_tasks_left,
        left > 1,
    )


class ScriptedScheduler:
    """A scheduler to play a script on.

    Parameters
    ----------
    install
        Called with the scheduler before anything happens.
    """

    config: Mapping[str, Any] = CONFIG
    #: Whether Dask checks itself.
    validate = True

    def __init__(self, workers: int = 3, *, saturation: Any = 1.1, install: Callable[[Scheduler], Any] | None = None):
        self._initial_workers = workers
        self._saturation = saturation
        self._install = install
        self.checks_dependencies = True
        #: What the step ``bridge`` registers.
        self.plugin: Any = None
        #: Of all task groups there have been.
        self.group_names: set[str] = set()
        self._now = 1_000_000.0
        self._joined = 0

    async def __aenter__(self) -> ScriptedScheduler:
        self._stack = AsyncExitStack()
        self._stack.enter_context(
            dask.config.set({**self.config, "distributed.scheduler.worker-saturation": self._saturation})
        )
        self._stack.enter_context(mock.patch("distributed.scheduler.time", self._time))
        scheduler = Scheduler(protocol="inproc", dashboard=False, dashboard_address=":0", validate=self.validate)
        self.scheduler = await self._stack.enter_async_context(scheduler)
        for callback in scheduler.periodic_callbacks.values():
            callback.stop()
        self.decisions = Decisions(scheduler)
        scheduler.add_plugin(self.decisions, name="decisions")
        for client in CLIENTS:
            scheduler.clients[client] = ClientState(client)
        for _ in range(self._initial_workers):
            await self.join()
        if self._install:
            await self._install(scheduler)
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self._stack.aclose()

    async def play(self, script: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Do all steps of a script: names of methods with their arguments; return the decisions."""
        for step, *arguments in script:
            self._now += 1.0
            await getattr(self, step)(*arguments)
            self.decisions.look((step, *arguments))
            self.group_names.update(self.scheduler.task_groups)
            self.scheduler.validate_state()
            check_groups(self.scheduler, dependencies_too=self.checks_dependencies)
        return self.log

    @property
    def log(self) -> list[tuple[Any, ...]]:
        """What has been decided."""
        return self.decisions.log

    @property
    def queue_lengths(self) -> list[int]:
        """Number of tasks that are queued, after each step."""
        return [len(entry[1]) for entry in self.log if entry[0] == "queued"]

    # Steps

    async def submit(
        self,
        client: str,
        span: Any,
        graph: Mapping[Any, Iterable[Any]],
        keys: Iterable[Any],
        annotations: Mapping[str, Any] | None = None,
    ) -> None:
        """A client submits a graph: the keys that each key depends on. A span by key, or one for all, or None."""
        tasks = {key: Task(key, max, *map(TaskRef, dependencies)) for key, dependencies in graph.items()}
        annotations = dict(annotations or {})
        if isinstance(span, dict):
            spans = span
            annotations["span"] = lambda key: annotation(spans.get(key))
        elif span is not None:
            annotations["span"] = annotation(span)
        await self.scheduler.stream_handlers["update-graph"](
            client=client,
            expr_ser=Serialized(*serialize(to_serialize(LLGExpr(tasks)))),
            keys=set(keys),
            span_metadata={"collections": []},
            internal_priority={key: number for number, key in enumerate(graph)},
            submitting_task=None,
            annotations=annotations,
            stimulus_id=f"update-graph-{self._now}",
        )

    async def finish(self, choices: Iterable[float]) -> None:
        """Tasks end on their workers, one after the other: which one is a fraction of all that run."""
        for choice in choices:
            running = self._running()
            if not running:
                return
            task = running[int(choice * len(running))]
            worker, seconds = task.processing_on.address, 0.1 + len(str(task.key)) / 100
            self._fetch(task, worker)
            self.scheduler.handle_task_finished(
                key=task.key, worker=worker, stimulus_id=f"task-finished-{self._now}", run_id=task.run_id, status="OK",
                nbytes=100 + len(str(task.key)), type=b"int", typename="int", metadata={}, thread=1,
                startstops=[{"action": "compute", "start": self._now - seconds, "stop": self._now}],
            )  # fmt: skip

    async def fail(self, choice: float) -> None:
        """A task fails."""
        running = self._running()
        if running:
            task = running[int(choice * len(running))]
            self.scheduler.handle_task_erred(
                key=task.key, worker=task.processing_on.address, stimulus_id=f"task-erred-{self._now}",
                run_id=task.run_id, exception=ValueError("bad"), traceback=None, exception_text="bad",
                traceback_text="",
            )  # fmt: skip

    async def retry(self) -> None:
        """A client retries all that failed."""
        try:
            self.scheduler.stimulus_retry([task.key for task in self.scheduler.tasks.values() if task.state == "erred"])
        except KeyError as error:
            # By then, Dask has made all transitions; it looks for a task which these made it forget.
            if error.args[0] in self.scheduler.tasks:
                raise

    async def release(self, client: str, fraction: float) -> None:
        """A client lets go of the oldest of its keys, a fraction of all."""
        state = self.scheduler.clients[client]
        held = [key for key, task in self.scheduler.tasks.items() if task in state.wants_what]
        held = held[: round(fraction * len(held))]
        self.scheduler.client_releases_keys(keys=held, client=client, stimulus_id=f"client-releases-keys-{self._now}")

    async def scatter(self, client: str, key: Any, choice: float) -> None:
        """A client puts data on a worker."""
        workers = list(self.scheduler.workers)
        task = self.scheduler.tasks.get(key)
        if workers and (task is None or task.state == "memory"):
            worker = workers[int(choice * len(workers))]
            self.scheduler.update_data(who_has={key: [worker]}, nbytes={key: 100}, client=client)

    async def join(self) -> None:
        """A worker joins."""
        scheduler, number = self.scheduler, self._joined
        self._joined += 1
        address = f"tcp://10.0.0.{number}:4000"
        worker = scheduler.workers[address] = WorkerState(
            address=address, status=Status.running, pid=number, name=f"worker-{number}", nthreads=1 + number % 2,
            memory_limit=2**33, local_directory="", nanny=None, server_id=address, scheduler=scheduler,
        )  # fmt: skip
        scheduler.running.add(worker)
        scheduler._refresh_no_workers_since()
        scheduler.aliases[worker.name] = address
        host = scheduler.host_info.setdefault(worker.host, {"addresses": set(), "nthreads": 0})
        host["addresses"].add(address)
        host["nthreads"] += worker.nthreads
        scheduler.total_memory += worker.memory_limit
        scheduler.total_nthreads += worker.nthreads
        scheduler.total_nthreads_history.append((self._now, scheduler.total_nthreads))
        scheduler.check_idle_saturated(worker)
        scheduler.stream_comms[address] = _Connection()
        self.has_joined(address)
        stimulus = f"add-worker-{self._now}"
        scheduler.transitions(scheduler.bulk_schedule_unrunnable_after_adding_worker(worker), stimulus)
        scheduler.stimulus_queue_slots_maybe_opened(stimulus_id=stimulus)

    def has_joined(self, address: str) -> None:
        """Called where Dask calls plugins."""

    async def leave(self, choice: float) -> None:
        """A worker is lost."""
        workers = list(self.scheduler.workers)
        if workers:
            address = workers[int(choice * len(workers))]
            await self.scheduler.remove_worker(address, stimulus_id=f"handle-worker-{self._now}", close=False)

    async def restart(self) -> None:
        """All that the scheduler knows is forgotten."""
        for client in list(self.scheduler.clients):
            await self.release(client, 1.0)
        self.scheduler._clear_task_state()

    async def bridge(self, comes: bool) -> None:
        """The bridge comes or goes, if there is one."""
        if self.plugin and comes:
            await self.scheduler.register_scheduler_plugin(self.plugin, idempotent=True)
        elif self.plugin:
            leaving = self.scheduler.plugins["dask-otel"]
            await self.scheduler.unregister_scheduler_plugin("dask-otel")
            await leaving.before_close()

    def _time(self) -> float:
        return self._now

    def _running(self) -> list[Any]:
        return [task for worker in self.scheduler.workers.values() for task in worker.processing]

    def _fetch(self, task: Any, worker: str) -> None:
        """A worker gets copies of what a task needs."""
        self.scheduler.add_keys(worker=worker, keys=sorted((each.key for each in task.dependencies), key=str))


def annotation(span: Any) -> Any:
    """What ``distributed.span`` annotates, for a tag or a tag and an id."""
    if span is None:
        return None
    tag, id_ = span if isinstance(span, tuple) else (span, f"id-{span}")
    return {"name": (tag,), "ids": (id_,)}


TOKENS = [f"{number:032x}" for number in range(1, 6)]
SPANS = ("alice", "bob", "carol", "dave", "erin")
CLIENTS = ("Client-a", "Client-b")


def random_script(seed: int, steps: int = 60) -> list[tuple[Any, ...]]:
    """Make a script in which tasks of few names are requested by many: their groups collide."""
    rng = random.Random(seed)
    functions = ["inc", "dec"][: rng.randint(1, 2)]
    spans = [*SPANS[: rng.randint(1, 5)], None]
    number = 0
    #: Keys that were submitted once, by whom.
    known: list[Any] = []
    script: list[tuple[Any, ...]] = []

    def inputs(most: int) -> list[Any]:
        return rng.sample(known, min(len(known), rng.randint(0, most)))

    def submission() -> tuple[Any, ...]:
        nonlocal number
        client, span = rng.choice(CLIENTS), rng.choice(spans)
        kind = rng.choice(["map", "map", "map", "chain", "array", "shuffle", "again"])
        graph: dict[Any, list[Any]] = {}
        wanted: list[Any] = []
        size = rng.choice([1, 2, 8, 20])
        if kind == "map":
            function, common = rng.choice(functions), inputs(2) if rng.random() < 0.4 else []
            for _ in range(size):
                number += 1
                graph[f"{function}-{number}"] = common
            wanted = list(graph)
        elif kind == "chain":  # groups that depend on several groups of others
            for _ in range(size):
                number += 1
                graph[f"load-{number}"] = []
                graph[f"use-{number}"] = [f"load-{number}", *inputs(1)]
                wanted.append(f"use-{number}")
        elif kind == "array":  # hashed names: the same collection, or other parts of it, by somebody else
            token, blocks = rng.choice(TOKENS), rng.sample(range(12), rng.randint(1, 12))
            for block in blocks:
                graph["ones-" + token, block] = []
                graph["sum-" + token, block] = [("ones-" + token, block)]
            final = f"finalize-hlgfinalizecompute-{rng.choice(TOKENS)}"
            if rng.random() < 0.5 and final not in known:
                graph[final] = [("sum-" + token, block) for block in blocks]
                wanted = [final]
            else:
                wanted = [("sum-" + token, block) for block in blocks]
        elif kind == "shuffle":
            number += 1
            for part in range(size):
                graph[f"shuffle-transfer-{number}{part:02d}"] = []
            graph[f"shuffle-barrier-{number}"] = list(graph)
            wanted = [f"shuffle-barrier-{number}"]
        elif known:  # results are requested again, with something new
            number += 1
            graph[f"again-{number}"] = inputs(6)
            wanted = [f"again-{number}"]
        known.extend(key for key in wanted if key not in known)
        if span and rng.random() < 0.25:  # layers of one graph in different spans
            span = {key: rng.choice(spans) for key in graph}
        return "submit", client, span, graph, wanted

    for _ in range(steps):
        step = rng.choices(
            ["submit", "finish", "release", "scatter", "join", "leave", "fail", "retry"], [40, 35, 12, 4, 2, 2, 3, 2]
        )[0]
        if step == "submit":
            script.append(submission())
        elif step == "finish":
            script.append((step, [rng.random() for _ in range(rng.choice([1, 5, 40]))]))
        elif step == "release":
            script.append((step, rng.choice(CLIENTS), rng.choice([0.5, 1.0])))
        elif step == "scatter":
            number += 1
            key = f"{rng.choice([*functions, 'load', 'data'])}-{number}"
            known.append(key)
            script.append((step, rng.choice(CLIENTS), key, rng.random()))
        elif step in ("leave", "fail"):
            script.append((step, rng.random()))
        else:
            script.append((step,))
    return script
