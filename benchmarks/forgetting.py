"""What forgetting costs: CPU time in µs for each root, in ms for the longest step on the event loop, and memory.

Simulated roots have real spans in Dask's own extension, and no scheduler; ``--real`` ones are those of a live cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from time import process_time
from uuid import uuid4

import dask
import psutil
from distributed import Client, LocalCluster, span
from distributed.scheduler import TaskGroup, TaskPrefix
from distributed.spans import SpansSchedulerExtension
from offline import Count, Plugin

from dask_otel.safety import Safety
from dask_otel.scheduler.forgetting import Forgetting, memory_of
from dask_otel.scheduler.inbox import Inbox
from dask_otel.scheduler.pace import Clock
from dask_otel.spantree.events import Change, SpanInfo
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.to_records import SpanTreeSettings

#: Seconds; roots that end in the meantime are kept.
AFTER = 3600.0
#: Simulated roots that begin and end between two sweeps, and how many names they have.
AT_ONCE, NAMES = 1000, 20


#: Dask's own logs grow until they are full.
SHORT_LOGS = {
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.admin.low-level-log-length": 10,
    "distributed.admin.log-length": 10,
}


class Scheduler:
    """What forgetting needs of one."""

    def __init__(self):
        self.total_nthreads_history = [(0.0, 4)]
        self.task_groups, self.tasks, self.workers = {}, {}, {}
        self.extensions = {"spans": SpansSchedulerExtension(self)}


def rss():
    gc.collect()
    return psutil.Process().memory_info().rss


def simulated(roots, kept):
    """Roots with one span below each and one group in it; ``kept`` of them are there before any is due."""
    scheduler, clock, safety = Scheduler(), Clock(), Safety()
    extension = scheduler.extensions["spans"]
    now = 1e9
    span_tree = SpanTree(now, 4, SpanTreeSettings(idle_timeout=0.0), 0, memory_of(scheduler).ids)
    inbox = Inbox(scheduler, clock, safety)
    forgetting = Forgetting(scheduler, span_tree, inbox, lambda group: False, _Sink(), AFTER, safety)
    prefix = TaskPrefix("inc")
    step = AFTER * AT_ONCE / kept
    spent = longest = 0.0
    print("roots so far   known   RSS, MiB   µs a root   longest step, ms", flush=True)
    for number in range(0, roots, AT_ONCE):
        now += step
        for _ in range(AT_ONCE):
            tag, ids = f"GET /items/{number // AT_ONCE % NAMES}", (str(uuid4()), str(uuid4()))
            made = extension._ensure_span((tag, "load"), ids)
            group = TaskGroup("inc", prefix)
            prefix.remove_group(group)  # as when Dask forgets it
            group.states["forgotten"] = 1
            made.groups.add(group)
            span_tree.add_span(SpanInfo(ids[0], (tag,), None, now))
            span_tree.add_span(SpanInfo(ids[1], (tag, "load"), ids[0], now))
            change = Change(now)
            change.span_id, change.name, change.prefix = ids[1], "inc", "inc"
            change.active, change.tasks, change.completed = True, 1, 1
            span_tree.add_change(change, now)
        for _ in span_tree.advance(now):
            pass
        span_tree.roots.drain()
        begin = process_time()
        for _ in forgetting.forget_some(now):
            end = process_time()  # the machine may do something else meanwhile
            spent, longest = spent + end - begin, max(longest, end - begin)
            begin = end
        if (number + AT_ONCE) % (roots // 10) == 0:
            each = 1e6 * spent / (number + AT_ONCE)
            line = f"{number + AT_ONCE:12,} {len(extension.root_spans):7,} {rss() / 2**20:10.1f} {each:11.1f}"
            print(f"{line} {1e3 * longest:18.2f}", flush=True)
            longest = 0.0
    if safety.failures:
        print(safety.failures)


class _Sink(Count):
    def mark(self):
        return ()

    def is_settled(self, mark):
        return True


async def real(roots):
    """Roots of a live cluster, forgotten as soon as they may be."""
    plugin = _Forgets()
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    async with LocalCluster(**options, asynchronous=True) as cluster, Client(cluster, asynchronous=True) as client:
        await cluster.scheduler.register_scheduler_plugin(plugin, idempotent=True)
        extension = cluster.scheduler.extensions["spans"]
        print("roots so far   in Dask   in the span tree   RSS, MiB", flush=True)
        for number in range(1, roots + 1):
            with span(f"root {number % NAMES}"), span("load"):
                await client.submit(int, number, key=f"int_{number}", pure=False)
            if number % (roots // 10) == 0:
                known = len(plugin._bridge.span_tree.forest.nodes)
                line = f"{number:12,} {len(extension.root_spans):9,} {known:18,} {rss() / 2**20:10.1f}"
                print(line, flush=True)
        print(f"forgotten: {plugin._bridge.status()['forgotten']}; workers left: {len(cluster.scheduler.workers)}")
        print(f"failures: {dict(plugin.safety.failures)}")


class _Forgets(Plugin):
    def __init__(self):
        super().__init__(sweep_interval=0.5, idle_timeout=0.2)

    def connect(self, scheduler, safety):
        settings, _ = super().connect(scheduler, safety)
        return settings.__class__(**(vars(settings) | {"forget_spans": 5.0})), _Sink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--roots", type=int, default=100_000)
    parser.add_argument("--kept", type=int, default=10_000)
    parser.add_argument("--real", action="store_true")
    arguments = parser.parse_args()
    if arguments.real:
        dask.config.set(SHORT_LOGS)
        asyncio.run(real(arguments.roots))
    else:
        simulated(arguments.roots, arguments.kept)
