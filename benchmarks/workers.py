"""Workers that are only acted: to a scheduler they look as real ones do."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from distributed.core import Status
from distributed.metrics import time
from distributed.scheduler import WorkerState

__all__ = ["Workers"]

#: What a worker measures of each task.
ACTIVITIES = (
    ("deserialize", "seconds"),
    ("thread-cpu", "seconds"),
    ("thread-noncpu", "seconds"),
    ("memory-read", "count"),
    ("memory-read", "bytes"),
)


class Deaf:
    """In the place of the connection to a worker."""

    def send(self, *messages):
        pass

    def closed(self):
        return True


class Workers:
    """All workers of a scheduler."""

    def __init__(self, scheduler):
        self._scheduler = scheduler
        self._random = random.Random(0)
        #: Of each, the fine metrics since its last heartbeat.
        self._metrics = defaultdict(Counter)

    def add(self, number):
        """One more joins."""
        scheduler, address = self._scheduler, f"tcp://10.0.{number // 250}.{number % 250}:4000"
        worker = scheduler.workers[address] = WorkerState(
            address=address,
            status=Status.running,
            pid=number,
            name=f"worker-{number}",
            nthreads=2,
            memory_limit=2**33,
            local_directory="",
            nanny=None,
            server_id=address,
            scheduler=scheduler,
        )
        scheduler.running.add(worker)
        scheduler.aliases[worker.name] = address
        host = scheduler.host_info.setdefault(address.split(":")[1][2:], {"addresses": set(), "nthreads": 0})
        host["addresses"].add(address)
        host["nthreads"] += worker.nthreads
        scheduler.total_memory += worker.memory_limit
        scheduler.stream_comms[address] = Deaf()
        scheduler.total_nthreads += worker.nthreads
        scheduler.total_nthreads_history.append((time(), scheduler.total_nthreads))
        scheduler.check_idle_saturated(worker)
        for plugin in scheduler.plugins.values():
            plugin.add_worker(scheduler, address)

    def finished(self, task):
        """What a worker says of a task; its metrics follow with its next heartbeat."""
        worker, seconds, now = task.processing_on.address, self._random.lognormvariate(-5.0, 1.0), time()
        for activity in ACTIVITIES:
            self._metrics[worker][("execute", task.group.span_id, task.prefix.name, *activity)] += seconds
        return {
            "key": task.key,
            "worker": worker,
            "stimulus_id": "task-finished-1",
            "run_id": task.run_id,
            "status": "OK",
            "nbytes": 28,
            "type": b"int",
            "typename": "int",
            "metadata": {},
            "thread": 1,
            "startstops": [{"action": "compute", "start": now - seconds, "stop": now}],
        }

    def heartbeat(self, worker):
        """What a worker sends with a heartbeat."""
        metrics = self._metrics.pop(worker, {})
        return {
            "address": worker,
            "resolve_address": False,
            "now": time(),
            "executing": {},
            "metrics": {
                "bandwidth": {"total": 1e8, "workers": {}, "types": {}},
                "cpu": 100.0,
                "task_counts": {"executing": 2},
                "event_loop_interval": 0.02,
                "digests_total_since_heartbeat": metrics,
                "memory": 2**27,
                "spilled_bytes": {"memory": 0, "disk": 0},
            },
            "extensions": {"spans": metrics},
        }
