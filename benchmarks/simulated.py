"""A real scheduler, the bridge and all, with workers and a client that are only acted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import wraps
from operator import itemgetter

from dask._expr import LLGExpr
from dask._task_spec import Task, TaskRef
from distributed import Scheduler
from distributed.protocol import Serialized, serialize, to_serialize
from distributed.scheduler import ClientState, heartbeat_interval
from meter import Meter, Replay
from offline import Plugin
from workers import Workers

__all__ = ["CONFIG", "BridgedScheduler"]

#: Every task goes the same way, however many workers there are: it is not queued, stolen or lost.
CONFIG = {
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-saturation": "inf",
    "distributed.scheduler.worker-ttl": None,
}
#: Tasks that end within one second, after which there are heartbeats and a sweep.
TASKS_A_SECOND = 200
#: The client lets go of them when all have ended, faster.
RELEASED_A_SECOND = 2_000
CLIENT = "Client-simulated"


class BridgedScheduler:
    """A scheduler with the bridge.

    The meter tells Dask's own work (``dask``) from the bridge's: on submission (``graphs``), in the transition hook
    (``hooks``), on heartbeats (``beats``), and in sweeps (``sweeps``). Noting the transitions for the hook counts as
    Dask's: some 6 µs a task.

    Parameters
    ----------
    idle_timeout
        Seconds of rest after which a segment closes.
    """

    def __init__(self, workers, idle_timeout=0.0, *, verdicts=True):
        self._verdicts = verdicts
        self._number_of_workers = workers
        self._idle_timeout = idle_timeout
        #: Longest hold of the event loop by a sweep, seconds.
        self._hold = 0.0
        self.meter = Meter()
        self._heard = Counter()
        self._turn = 0

    async def __aenter__(self):
        scheduler = self.scheduler = await Scheduler(protocol="inproc", dashboard=False, dashboard_address=":0")
        meter, extension, handlers = self.meter, scheduler.extensions["spans"], scheduler.stream_handlers
        # Of the bridge's wrappers, what they wrap is Dask's.
        meter.wrap("dask", extension, "observe_tasks")
        dask_handler = handlers["update-graph"]

        @wraps(dask_handler)
        async def update_graph(*args, **message):
            await meter.wait("dask", dask_handler, *args, **message)

        handlers["update-graph"] = update_graph
        self.plugin = Plugin(idle_timeout=self._idle_timeout, verdicts=self._verdicts)
        await scheduler.register_scheduler_plugin(self.plugin, idempotent=True)
        meter.wrap("graphs", extension, "observe_tasks")
        for name in ("update_graph", "log_event"):
            meter.wrap("graphs", self.plugin, name)
        self._sweep = self.plugin._bridge.sweep.sweep
        # The hook and the tap hear of everything a little later.
        self._replay = Replay(scheduler.tasks, self.plugin.transition, meter)
        scheduler.add_plugin(self._replay, name="replay")
        del self.plugin.transition
        self._tap = extension.heartbeat
        del extension.heartbeat
        self._tap.__self__._original = lambda worker, metrics: None
        self._workers = Workers(scheduler)
        for number in range(self._number_of_workers):
            self._workers.add(number)
        return self

    async def __aexit__(self, *exc):
        await self.scheduler.close()

    def end_segments(self):
        """From now on a segment closes as soon as its work is done."""
        span_tree = self.plugin._bridge.span_tree
        span_tree.settings = replace(span_tree.settings, idle_timeout=0.0)

    def add_worker(self):
        """One more worker joins; returns its address."""
        self._number_of_workers += 1
        self.meter.call("beats", self._workers.add, self._number_of_workers)
        return list(self.scheduler.workers)[-1]

    async def remove_worker(self, address):
        await self.meter.wait("dask", self.scheduler.remove_worker, address, stimulus_id="leave", close=False)

    async def run(self, keys, span, *, segments=None, client=CLIENT, depends_on=None, **annotations):
        """Tasks in a span, from their submission until the bridge has sent it.

        Parameters
        ----------
        span
            The annotation; or what makes it of a key, for spans of one task each.
        segments
            Number of segments to wait for in the end.
        depends_on
            Keys by those that depend on them.

        Returns
        -------
        For each task, the µs of CPU by what they were for, and the number of heartbeats and of fine metrics with them;
        and the longest hold of the event loop by a sweep, seconds (``hold``).
        """
        if segments is None:
            segments = len(keys) if callable(span) else 1
        segments += self.plugin.sink.segments
        self.meter.seconds.clear()
        self._heard.clear()
        self._hold = 0.0
        await self._submit(keys, client, depends_on or {}, {"span": span} | annotations)
        await self._second()
        while unfinished := self._in_turn(keys):
            for batch in split(unfinished, TASKS_A_SECOND):
                messages = [self._workers.finished(task) for task in batch]
                self.meter.call("dask", self._finish, messages)
                await self._second()
        for batch in split(keys, RELEASED_A_SECOND):
            self.meter.call("dask", self.scheduler.client_releases_keys, keys=batch, client=client)
            await self._second()
        while self.plugin.sink.segments < segments:
            await self._second()
        assert not self.plugin.safety.failures
        micros = {what: seconds * 1e6 / len(keys) for what, seconds in self.meter.seconds.items()}
        return micros | {what: number / len(keys) for what, number in self._heard.items()} | {"hold": self._hold}

    async def _submit(self, keys, client, depends_on, annotations):
        if client not in self.scheduler.clients:
            self.scheduler.clients[client] = ClientState(client)
        tasks = {key: Task(key, max, *map(TaskRef, depends_on.get(key, ()))) for key in keys}
        graph = Serialized(*serialize(to_serialize(LLGExpr(tasks))))
        await self.meter.wait(
            "graphs",
            self.scheduler.stream_handlers["update-graph"],
            client=client,
            expr_ser=graph,
            keys=set(keys),
            span_metadata={"collections": []},
            internal_priority={key: number for number, key in enumerate(keys)},
            submitting_task=None,
            annotations=annotations,
        )

    def _in_turn(self, keys):
        """The tasks in the order in which they end: all workers are at work, each with its own."""
        places = Counter()
        tasks = []
        for task in map(self.scheduler.tasks.__getitem__, keys):
            if task.processing_on:
                tasks.append((places[task.processing_on], task))
                places[task.processing_on] += 1
        return [task for _, task in sorted(tasks, key=itemgetter(0))]

    def _finish(self, messages):
        for message in messages:
            self.scheduler.handle_task_finished(**message)

    async def _second(self):
        """What happens in a second beside the tasks: heartbeats, and a sweep."""
        self._replay.flush()
        workers = self.scheduler.workers
        # All at the end of the second: of a worker that sends two, the second one carries nothing.
        beats = [
            self._workers.heartbeat(each) for each in self._next(round(len(workers) / heartbeat_interval(len(workers))))
        ]
        self.meter.call("dask", self._hear, beats)
        heard = [(workers[beat["address"]], beat["extensions"]["spans"]) for beat in beats]
        self.meter.call("beats", self._listen_in, heard)
        self._heard.update(heartbeats=len(heard), metrics=sum(len(metrics) for _, metrics in heard))
        await self.meter.wait("sweeps", self._sweep)
        self._hold = max(self._hold, self.plugin._bridge.sweep.cost["longest_hold"])

    def _next(self, number):
        """Whose turn it is to send heartbeats."""
        workers = list(self.scheduler.workers)
        self._turn += number
        return [workers[turn % len(workers)] for turn in range(self._turn - number, self._turn)]

    def _listen_in(self, heard):
        for worker, metrics in heard:
            self._tap(worker, metrics)

    def _hear(self, beats):
        for beat in beats:
            self.scheduler.heartbeat_worker(**beat)


def split(keys, size):
    return [keys[i : i + size] for i in range(0, len(keys), size)]
