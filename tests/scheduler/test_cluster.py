"""Metrics of a real in-process cluster against Dask's own numbers; on each, ``measured`` checks what always holds."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from itertools import pairwise

import dask
import pytest
from distributed import Client, Event, LocalCluster, Nanny, Worker, span, wait
from distributed.metrics import context_meter
from distributed.metrics import time as dask_time
from distributed.scheduler import MemoryState
from distributed.spans import Span
from distributed.utils_test import gen_cluster, gen_test, inc
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, TraceIdRatioBased
from support.callers import anchored, inside
from support.clusters import busy_seconds, finished, until
from support.measured import MeasuredPlugin, all_told, bounds, check_series, histogram, measured, nonzero, value, values
from support.memory import MemoryPlugin
from support.trees import is_top

from dask_otel.diagnosis.parts import OVERHEAD_ACTIVITIES
from dask_otel.schema import WATERFALL

SPANS = {"client": True, "nthreads": [("127.0.0.1", 2)]}


def fail(x):
    raise ValueError(f"bad {x}")


def fail_otherwise(x):
    raise OSError(x)


def slow(seconds):
    time.sleep(seconds)
    return seconds


IDLE = "idle or other spans"


def check_state(snapshot, scheduler):
    """How the cluster is, by Dask's own count."""
    states = Counter()
    for group in scheduler.task_groups.values():
        states.update({state: n for state, n in group.states.items() if state != "forgotten"})
    found = values(snapshot, "dask.scheduler.task.count")
    assert nonzero(found) == {(state,): n for state, n in states.items() if n}
    assert nonzero(found) == {(s,): n for s, n in Counter(ts.state for ts in scheduler.tasks.values()).items()}
    workers = scheduler.workers.values()
    statuses = Counter(ws.status.name for ws in workers)
    assert nonzero(values(snapshot, "dask.scheduler.worker.count")) == {(s,): n for s, n in statuses.items()}
    assert value(snapshot, "dask.scheduler.thread.count") == sum(ws.nthreads for ws in workers)
    clients = [name for name in scheduler.clients if name != "fire-and-forget"]
    assert value(snapshot, "dask.scheduler.client.count") == len(clients)


def check_memory(snapshot, scheduler):
    memory = MemoryState.sum(*(ws.memory for ws in scheduler.workers.values()))
    assert values(snapshot, "dask.worker.memory.usage") == {
        ("managed",): memory.managed,
        ("unmanaged",): memory.unmanaged,
    }
    assert memory.managed + memory.unmanaged == memory.process
    assert value(snapshot, "dask.worker.memory.spilled") == memory.spilled
    assert value(snapshot, "dask.worker.memory.limit") == sum(ws.memory_limit for ws in scheduler.workers.values())


def check_activities(snapshot, scheduler):
    """Dask's fine metrics, by what the labels tell apart; only where none ever fell."""
    expected = {"seconds": defaultdict(float), "bytes": defaultdict(float)}
    for key, total in scheduler.cumulative_worker_metrics.items():
        if not isinstance(key, tuple) or key[-1] not in expected:
            continue
        context, *middle, activity, unit = key
        prefix = middle[0] if context == "execute" else None
        context = ".".join([context, *middle]) if context == "p2p" else context
        labels = (context.replace("-", "_"), activity.replace("-", "_"), prefix)
        expected[unit][labels] += total
    assert expected["seconds"]
    # Dask may hold zeros: a task that took no CPU time.
    for name, unit in (("dask.activity.time", "seconds"), ("dask.activity.io", "bytes")):
        assert nonzero(values(snapshot, name)) == pytest.approx(nonzero(expected[unit]), abs=1e-9)
    return expected


def check_thread_time(snapshot, scheduler):
    """Each root's busy seconds by Dask's own account, and with its idle ones all that there were."""
    roots = scheduler.extensions["spans"].root_spans
    busy = Counter()
    for root in roots:
        busy[(root.name[0],)] += busy_seconds(root.cumulative_worker_metrics)
    found = values(snapshot, "dask.span.thread_time")
    assert nonzero(found) == pytest.approx(nonzero(busy))
    merged = Span.merge(*roots)
    idle = merged.cumulative_worker_metrics["execute", "N/A", IDLE, "seconds"]
    total = merged.cumulative_worker_metrics
    overhead = sum(v for k, v in total.items() if k[0] == "execute" and k[2] in OVERHEAD_ACTIVITIES)
    assert sum(found.values()) + overhead + idle == pytest.approx(merged.active_cpu_seconds, abs=0.01)
    assert sum(found.values()) <= value(snapshot, "dask.scheduler.thread_time")


def paid(scheduler, since, until_):
    """Integral of the number of threads."""
    total = 0.0
    history = [*scheduler.total_nthreads_history, (until_, 0)]
    for (at, threads), (end, _) in pairwise(history):
        total += max(0.0, min(end, until_) - max(at, since)) * threads
    return total


# How the cluster is


@measured(
    nthreads=[("127.0.0.1", 1), ("127.0.0.1", 2), ("127.0.0.1", 3)],
    # Else a worker's memory monitor ends the pause.
    cluster={"worker_kwargs": {"memory_limit": 10**10}, "config": {"distributed.worker.memory.pause": False}},
)
async def test_how_the_cluster_is(plugin, client, scheduler, *workers):
    event = Event(client=client)
    async with Client(scheduler.address, asynchronous=True) as bob:
        data = await client.scatter({"x": b"x" * 1_000_000})
        with span("alice"):
            large = client.submit(lambda x: x * 3, data["x"], key="large")
            some = client.map(inc, range(5), key="some")
        with span("bob"):
            bad = bob.submit(fail, 1, key="bad")
            after = bob.submit(inc, bad, key="after")
            nowhere = bob.submit(inc, 1, key="nowhere", resources={"GPU": 1})
        await wait([large, *some])
        await wait([bad, after])
        del some[:3]
        await until(lambda: scheduler.task_groups["some"].states["forgotten"] == 3)
        with span("alice's other"):
            held = client.map(lambda i: event.wait(), range(20), key="held")
            later = client.map(lambda x: x, held, key="later")
        await until(lambda: scheduler.tasks["nowhere"].state == "no-worker")
        workers[0].status = type(workers[0].status).paused
        await until(lambda: scheduler.workers[workers[0].address].status.name == "paused")
        await plugin.keeping.until(lambda s: values(s, "dask.span.active").get(("alice",)) == 0)
        await all_told(workers)
        snapshot = await plugin.keeping.fresh()
        check_state(snapshot, scheduler)
        check_memory(snapshot, scheduler)
        assert value(snapshot, "dask.scheduler.client.count") == 2
        states = values(snapshot, "dask.scheduler.task.count")
        assert states["erred",] == 2
        assert states["no-worker",] == 1
        assert states["waiting",] == 20
        assert states["processing",] + states["queued",] + states["memory",] == 24
        assert values(snapshot, "dask.scheduler.worker.count")["paused",] == 1
        active = values(snapshot, "dask.span.active")
        assert active == {("bob",): 1, ("alice's other",): 1, ("alice",): 0}
        workers[0].status = type(workers[0].status).running
        await event.set()
        await wait(later)
        del later, held, nowhere
    snapshot = await plugin.keeping.fresh()
    check_state(snapshot, scheduler)
    assert value(snapshot, "dask.scheduler.client.count") == 1


@measured()
async def test_workers_that_come_and_go(plugin, client, scheduler, a, b):
    snapshot = await plugin.keeping.fresh()
    assert value(snapshot, "dask.worker.added") == 0  # since the bridge began
    async with Worker(scheduler.address, nthreads=5) as c:
        snapshot = await plugin.keeping.until(lambda s: value(s, "dask.worker.added") == 1)
        check_state(snapshot, scheduler)
        assert value(snapshot, "dask.scheduler.thread.count") == 8
        await scheduler.retire_workers([a.address])
        await until(lambda: a.address not in scheduler.workers)
        snapshot = await plugin.keeping.fresh()
        check_state(snapshot, scheduler)
        assert values(snapshot, "dask.worker.removed") == {(True,): 1, (False,): 0}
        await b.close()
        await until(lambda: b.address not in scheduler.workers)
        snapshot = await plugin.keeping.fresh()
        assert values(snapshot, "dask.worker.removed") == {(True,): 2, (False,): 0}
        await client.submit(inc, 1, workers=[c.address])
        await scheduler.remove_worker(c.address, stimulus_id="it is lost")
        snapshot = await plugin.keeping.fresh()
        assert values(snapshot, "dask.worker.removed") == {(True,): 2, (False,): 1}
    await until(lambda: not scheduler.workers)
    snapshot = await plugin.keeping.fresh()
    check_state(snapshot, scheduler)
    assert not values(snapshot, "dask.worker.memory.limit")


@measured()
async def test_thread_seconds_that_there_were(plugin, client, scheduler, a, b):
    first = await plugin.keeping.fresh()
    async with Worker(scheduler.address, nthreads=50):
        await plugin.keeping.until(lambda s: s.at > first.at + 0.5)
    await until(lambda: len(scheduler.workers) == 2)
    last = await plugin.keeping.fresh()
    spent = value(last, "dask.scheduler.thread_time") - value(first, "dask.scheduler.thread_time")
    # A snapshot is a little younger than the sweep that it tells of.
    assert spent == pytest.approx(paid(scheduler, first.at, last.at), abs=8 * 0.5)
    start = next(m for m in last.metrics if m.metric.name == "dask.scheduler.thread_time").points[0].start
    since_start = paid(scheduler, start, last.at)
    assert value(last, "dask.scheduler.thread_time") == pytest.approx(since_start, abs=8 * 0.5)
    assert spent > 3 * (last.at - first.at) + 50 * 0.1


# What tasks did


@pytest.mark.filterwarnings("ignore:Dask annotations")
@measured(nthreads=[("127.0.0.1", 1)] * 3)
async def test_two_tenants(plugin, client, scheduler, *workers):
    dd = pytest.importorskip("dask.dataframe")
    pytest.importorskip("pyarrow")
    import pandas as pd

    async with Client(scheduler.address, asynchronous=True) as bob:
        data = await client.scatter([b"x" * 100_000] * 3)
        with span("alice"):
            loaded = client.map(slow, [0.0, 0.01, 0.03, 0.15, 0.6], key="load")
            with span("use"):
                used = client.map(lambda x, y: (x, y), loaded, data * 2, key="use")
                alices = client.submit(sum, loaded, key="total")
        with span("bob"):
            # Of the same group as alice's: Dask counts them there.
            collided = bob.submit(slow, 0.02, key="load-99")
            failed = [bob.submit(fail, i, key=f"bad-{i}") for i in range(3)]
            failed.append(bob.submit(fail_otherwise, 1, key="bad-7"))
            poisoned = bob.map(inc, failed, key="poisoned")
            with dask.config.set({"dataframe.shuffle.method": "p2p"}):
                frame = dd.from_pandas(pd.DataFrame({"x": range(100)}), npartitions=4).shuffle("x")
                shuffled = bob.compute(frame)
        nobodys = client.map(slow, [0.011, 0.012, 0.013], key="nobodys")
        await wait([*used, alices, collided, *failed, *poisoned, *nobodys, shuffled])
        await all_told(workers)
        snapshot = await plugin.keeping.fresh()
        check_state(snapshot, scheduler)
        check_memory(snapshot, scheduler)
        check_thread_time(snapshot, scheduler)
        times = check_activities(snapshot, scheduler)
        assert {context.partition(".")[0] for context, _, _ in times["seconds"]} >= {"execute", "p2p", "gather_dep"}
        assert {root for (root,) in values(snapshot, "dask.span.thread_time")} == {"alice", "bob", "default"}
        durations = values(snapshot, "dask.task.duration")
        assert sum(durations["bad", "ValueError"].counts) == 3
        assert sum(durations["bad", "OSError"].counts) == 1
        assert ("bad", None) not in durations
        assert sum(durations["nobodys", None].counts) == 3
        finished_ = values(snapshot, "dask.task.finished")
        for name in ("load", "use", "total", "nobodys", "bad", "poisoned"):
            entered = scheduler.task_prefixes[name].state_counts
            assert finished_.get((name, "completed"), 0) == entered["memory"], name
            erred = finished_.get((name, "erred"), 0) + finished_.get((name, "upstream_failed"), 0)
            assert erred == entered["erred"], name
        assert finished_["load", "completed"] == 6
        assert finished_["poisoned", "upstream_failed"] == 4


@measured(nthreads=[("127.0.0.1", 2)])
async def test_activities_never_fall(plugin, client, scheduler, worker):
    async def digest(seconds):
        def task(seconds):
            context_meter.digest_metric("my-own", seconds, "seconds")
            context_meter.digest_metric("my-own", int(seconds * 100), "bytes")
            context_meter.digest_metric("my-own", seconds, "apples")

        await client.submit(task, seconds, key="digest", pure=False)
        await all_told([worker])
        snapshot = await plugin.keeping.fresh()
        name = ("execute", "my_own", "digest")
        return value(snapshot, "dask.activity.time", *name), value(snapshot, "dask.activity.io", *name)

    assert await digest(5.0) == (5.0, 500)
    assert await digest(-4.0) == (5.0, 500)
    assert scheduler.cumulative_worker_metrics["execute", "digest", "my-own", "seconds"] == 1.0
    assert await digest(3.0) == (5.0, 500)  # 4 in all
    assert await digest(3.0) == (7.0, 700)


@measured()
async def test_what_became_of_tasks(plugin, client, scheduler, a, b):
    event = Event(client=client)
    with span("root"):
        retried = client.submit(fail, 1, key="retried", retries=2)
        await wait(retried)
        held = client.map(lambda i: event.wait(), range(3), key="held")
        behind = client.map(lambda i, _: i, range(4), [held[0]] * 4, key="behind")
        await until(lambda: "behind" in scheduler.task_groups)
        await client.cancel(behind[:2], force=True)
        cancelled = {future.key for future in behind[:2]}
        await until(lambda: not cancelled & set(scheduler.tasks))
        await event.set()
        await wait([*held, *behind[2:]])
        del held, behind
        await until(lambda: not {"held", "behind"} & set(scheduler.task_groups))
        lost = client.submit(inc, 1, key="lost", workers=[a.address], allow_other_workers=True)
        await lost
        kept = client.submit(slow, 0.05, key="kept", workers=[b.address])
        await kept
    await a.close()
    await until(lambda: scheduler.tasks["lost"].state == "memory" and a.address not in scheduler.workers)
    snapshot = await plugin.keeping.fresh()
    assert nonzero(values(snapshot, "dask.task.finished")) == {
        ("retried", "retried"): 2,
        ("retried", "erred"): 1,
        ("held", "completed"): 3,
        ("behind", "cancelled"): 2,
        ("behind", "completed"): 2,
        ("lost", "completed"): 2,
        ("lost", "recomputed"): 1,
        ("kept", "completed"): 1,
    }


@measured(nthreads=[("127.0.0.1", 1)])
async def test_a_task_that_runs_again_is_counted_once_for_each_run(plugin, client, scheduler, worker):
    x = client.submit(slow, 0.05, key="x")
    y = client.submit(inc, x, key="y")
    await y  # because of which the worker goes on to know x
    del x
    await until(lambda: scheduler.tasks["x"].state == "released")
    await client.submit(slow, 0.05, key="x")
    snapshot = await plugin.keeping.fresh()
    assert value(snapshot, "dask.task.finished", "x", "completed") == 2
    runs = value(snapshot, "dask.task.duration", "x", None)
    assert runs.sum >= 0.1
    assert sum(runs.counts) == 2


class Unreadable:
    """Cannot be unpickled."""

    def __reduce__(self):
        return eval, ("1/0",)


@measured()
async def test_graphs(plugin, client, scheduler, *workers):
    with span("fine"):
        await client.gather(client.map(inc, range(3)))
    await client.submit(inc, 1, key="also")
    with span("broken"):
        broken = client.submit(inc, Unreadable(), key="broken")
        await wait(broken)
    gone = client.submit(inc, 5, key="gone")
    await gone
    snapshot = await plugin.keeping.fresh()
    assert values(snapshot, "dask.graph.updates") == {("OK",): 3, ("error",): 1, ("cancelled",): 0}
    lost = await client.scatter(1)
    await client.cancel(lost, force=True)
    await until(lambda: lost.key not in scheduler.tasks)
    client.submit(inc, lost, key="without")
    snapshot = await plugin.keeping.until(lambda s: value(s, "dask.graph.updates", "cancelled"))
    assert values(snapshot, "dask.graph.updates") == {("OK",): 3, ("error",): 1, ("cancelled",): 1}


# Root spans


def root_runs(spans):
    """Runs of roots in the order in which they ended, by their segments: name, seconds, result."""
    runs, begun = [], {}
    for each in spans:
        of = each.attributes["dask.span.id"]
        is_late = each.end == each.start and not each.attributes.get("dask.task.count")  # only metrics came
        if is_top(each) and not is_late:
            start, failed = begun.pop(of, (each.start, False))
            failed |= each.status == "Error"
            result = each.attributes["dask.span.result"]
            if result == "unfinished":
                begun[of] = start, failed
            else:
                result = "error" if failed and result != "interrupted" else result
                runs.append((each.attributes["dask.span.root"], each.end - start, result))
    assert not begun
    return runs


def check_root_runs(plugin, spans):
    found = values(plugin.last, "dask.span.duration")
    runs = defaultdict(list)
    for name, seconds, result in root_runs(spans):
        runs[name, result].append(seconds)
    assert found.keys() == runs.keys()
    for labels, seconds in runs.items():
        assert list(found[labels].counts) == histogram(seconds, bounds(plugin.last, "dask.span.duration"))
        assert found[labels].sum == pytest.approx(sum(seconds), abs=1e-5)
    check_reasons(plugin.last, spans)


def check_reasons(snapshot, spans):
    """Why roots were slow: the metrics sum up what their segments say."""
    parts, counts, seconds = Counter(), Counter(), Counter()
    for each in spans:
        root = each.attributes["dask.span.root"]
        for part, name in WATERFALL.items():
            parts[root, part] += max(0.0, each.attributes.get(name, 0.0))
        if "dask.verdict" in each.attributes:
            counts[root, each.attributes["dask.verdict"][0]] += 1
            seconds[root, each.attributes["dask.verdict"][0]] += each.attributes["dask.verdict.at_most"]
    assert nonzero(parts)
    assert values(snapshot, "dask.waterfall.time") == pytest.approx(nonzero(parts))
    assert values(snapshot, "dask.verdicts") == nonzero(counts)
    assert values(snapshot, "dask.verdict.time") == pytest.approx(nonzero(seconds))


def exemplars(plugin, name):
    """All exemplars of a metric, with the bucket that they were shown in."""
    found = []
    for snapshot in plugin.keeping.snapshots:
        for labels, point in values(snapshot, name).items():
            found += [(labels, point, exemplar) for exemplar in point.exemplars]
    return found


def check_exemplars(plugin, spans):
    """They are spans that were sent, and say what these say."""
    by_id = {(each.trace_id, each.span_id): each for each in spans}
    for name in ("dask.span.duration", "dask.task.duration"):
        for labels, point, exemplar in exemplars(plugin, name):
            shown = by_id[f"{exemplar.trace_id:032x}", f"{exemplar.span_id:016x}"]
            counts = histogram([exemplar.value], bounds(plugin.last, name))
            assert all(b >= a for a, b in zip(counts, point.counts, strict=True)), (labels, point, exemplar)
            if name == "dask.span.duration":
                assert labels == (shown.attributes["dask.span.root"], shown.attributes["dask.span.result"])
                assert is_top(shown)
                assert exemplar.value >= shown.seconds - 1e-6
            else:
                assert labels == (shown.attributes["dask.task.prefix"], shown.attributes.get("error.type"))
                assert shown.attributes["dask.kind"] == "task"
                assert exemplar.value == pytest.approx(shown.attributes["dask.duration.compute"], abs=1e-6)


async def several_roots(client):
    with span("quick"):
        await client.submit(inc, 1, key="quick")
    with span("fails"):
        await wait(client.submit(fail, 1, key="fails"))
    for number in range(6):
        with span("many"):
            await client.submit(slow, 0.01, key=f"many{number}")
    await client.submit(inc, 1, key="nobodys")


@measured(idle_timeout=0.1)
async def test_roots(plugin, client, scheduler, *workers):
    await several_roots(client)
    event = Event(client=client)
    with span("again"):
        await client.submit(inc, 1, key="again")
        await plugin.keeping.until(lambda s: ("again", "success") in values(s, "dask.span.duration"))
        await client.submit(inc, 1, key="again-2")
    with span("interrupted"):
        held = client.submit(event.wait, key="held")
        await until(lambda: "held" in scheduler.tasks)
    with span("given up"):
        gone = client.submit(event.wait, key="gone")
        await until(lambda: "gone" in scheduler.tasks)
        await client.cancel(gone)
        await until(lambda: "gone" not in scheduler.tasks)  # closing does not wait for it
    spans = await finished(plugin)
    check_root_runs(plugin, spans)
    counts = {labels: sum(p.counts) for labels, p in values(plugin.last, "dask.span.duration").items()}
    assert counts == {
        ("quick", "success"): 1,
        ("fails", "error"): 1,
        ("many", "success"): 6,
        ("default", "success"): 1,
        ("again", "success"): 2,
        ("interrupted", "interrupted"): 1,
        ("given up", "cancelled"): 1,
    }
    check_exemplars(plugin, spans)
    shown = {labels for labels, _, _ in exemplars(plugin, "dask.span.duration")}
    assert shown == set(counts)
    assert ("fails", "ValueError") in {labels for labels, _, _ in exemplars(plugin, "dask.task.duration")}
    await event.set()
    del held


@measured(idle_timeout=0.1)
async def test_runs_of_callers(plugin, client, scheduler, *workers):
    """Each top of a trace is a run, under the first tag of its path; thread-seconds are counted once."""
    for number in range(3):
        with inside(service="root-id", request=anchored(number + 1, 8)):
            await client.submit(slow, 0.01, key=f"many-{number}")
    with inside(request=anchored(4, 8)):
        await wait(client.submit(fail, 1, key="fails"))
    spans = await finished(plugin)
    check_root_runs(plugin, spans)
    counts = {labels: sum(p.counts) for labels, p in values(plugin.last, "dask.span.duration").items()}
    assert counts == {("service", "success"): 4, ("request", "error"): 1}
    check_exemplars(plugin, spans)
    shown = {exemplar.trace_id for _, _, exemplar in exemplars(plugin, "dask.span.duration")}
    assert 4 in shown


@pytest.mark.slow
@measured(idle_timeout=1.0, max_segment=0.3)
async def test_cuts_are_joined(plugin, client, scheduler, *workers):
    with span("long"):
        await client.gather([client.submit(slow, 0.9, key="long"), client.submit(fail, 1, key="bad")], errors="skip")
        await wait(client.submit(slow, 0.5, key="after"))
    await client.submit(slow, 0.9, key="nobodys")
    spans = await finished(plugin)
    check_root_runs(plugin, spans)
    roots = [each for each in spans if not each.parent_id]
    assert min(Counter(each.attributes["dask.span.root"] for each in roots).values()) > 1
    runs = {}
    for name, seconds, result in root_runs(spans):
        runs.setdefault(name, (seconds, result))
    assert runs["long"][1] == "error"
    assert runs["default"][1] == "success"
    assert 1.35 < runs["long"][0] < 5
    assert 0.85 < runs["default"][0] < 5


@measured(idle_timeout=0.1)
async def test_a_run_is_counted_once_though_its_metrics_come_late(plugin, client, scheduler, a, b):
    event = Event(client=client)
    with span("given up"):
        gone = client.submit(lambda: event.wait(), key="gone")
        await until(lambda: a.state.executing_count + b.state.executing_count)
        await client.cancel(gone)
    await plugin.keeping.until(lambda s: ("given up", "cancelled") in values(s, "dask.span.duration"))
    await event.set()
    await until(lambda: not a.state.executing_count + b.state.executing_count)
    await all_told([a, b])
    await finished(plugin)
    counts = {labels: sum(p.counts) for labels, p in values(plugin.last, "dask.span.duration").items()}
    assert counts == {("given up", "cancelled"): 1}


@measured(idle_timeout=0.1, sampler=ALWAYS_OFF)
async def test_without_traces_there_are_no_examples(plugin, client, scheduler, *workers):
    await several_roots(client)
    assert await finished(plugin) == []
    assert not exemplars(plugin, "dask.span.duration")
    assert not exemplars(plugin, "dask.task.duration")
    counts = {labels: sum(p.counts) for labels, p in values(plugin.last, "dask.span.duration").items()}
    assert counts["many", "success"] == 6


@measured(idle_timeout=0.1, slowest_tasks=5, sampler=TraceIdRatioBased(0.5))
async def test_examples_are_of_sampled_traces_only(plugin, client, scheduler, *workers):
    for number in range(30):
        with span("many"):
            await client.submit(inc, number, key=f"many{number}")
    spans = await finished(plugin)
    sampled = [each for each in spans if not each.parent_id]
    assert 0 < len(sampled) < 30
    check_exemplars(plugin, spans)
    assert exemplars(plugin, "dask.span.duration")
    assert exemplars(plugin, "dask.task.duration")
    assert sum(value(plugin.last, "dask.span.duration", "many", "success").counts) == 30


# What goes wrong


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@measured(nthreads=[("127.0.0.1", 1)] * 2, cluster={"Worker": Nanny, "timeout": 60})
async def test_killed_and_restarted(plugin, client, scheduler, a, b):
    # Functions of this file are unknown to workers that are processes.
    with span("root"):
        futures = client.map(time.sleep, [i / 100 for i in range(6)], key="work")
        await wait(futures)
    snapshot = await plugin.keeping.fresh()
    done = value(snapshot, "dask.task.finished", "work", "completed")
    assert done == 6
    os.kill(a.pid, signal.SIGKILL)
    await plugin.keeping.until(lambda s: value(s, "dask.worker.removed", False) == 1)
    await plugin.keeping.until(lambda s: value(s, "dask.worker.added") == 1)
    await client.restart()
    assert not scheduler.tasks
    with span("after"):
        again = client.map(time.sleep, [i / 100 for i in range(3)], key="work")
        await wait(again)
    snapshot = await plugin.keeping.fresh()
    check_state(snapshot, scheduler)
    assert value(snapshot, "dask.task.finished", "work", "completed") >= done + 3
    snapshot = await plugin.keeping.until(lambda s: value(s, "dask.worker.added") == 3)
    assert values(snapshot, "dask.worker.removed") == {(True,): 2, (False,): 1}


@gen_test()
async def test_scaled_down():
    """Dask does not call this expected: the cluster closes its workers itself."""
    local = {"n_workers": 3, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    async with LocalCluster(**local, asynchronous=True) as cluster, Client(cluster, asynchronous=True):
        plugin = MeasuredPlugin()
        await plugin.add_to(cluster.scheduler)
        cluster.scale(1)
        snapshot = await plugin.keeping.until(lambda s: sum(values(s, "dask.worker.removed").values()) == 2)
        assert values(snapshot, "dask.worker.removed") == {(True,): 2, (False,): 0}
        await finished(plugin)


@pytest.mark.parametrize("hangs", [False, True])
@gen_cluster(**SPANS)
async def test_spans_that_are_lost_at_the_end(client, scheduler, worker, hangs):
    goes_on = threading.Event()
    plugin = MeasuredPlugin(shutdown_timeout=1.0)
    plugin.exporter.export = lambda spans: goes_on.wait(60 * hangs) or SpanExportResult.FAILURE
    await plugin.add_to(scheduler)
    with span("root"):
        await wait(client.submit(inc, 1, key="x"))
    await plugin.before_close()
    (exporter,) = plugin.sink.exporters()
    assert exporter.failed == {"shutdown": 2}
    exported = values(plugin.last, "otel.sdk.exporter.span.exported")
    assert nonzero(exported) == {("memory", "dask_otel", "shutdown"): 2}
    assert not nonzero(values(plugin.last, "otel.sdk.processor.span.queue.size"))
    goes_on.set()


@measured(cluster={"config": {"distributed.admin.tick.interval": "20ms"}})
async def test_a_late_event_loop(plugin, client, scheduler, *workers):
    await plugin.keeping.fresh()
    number = len(plugin.keeping.snapshots)
    time.sleep(0.3)
    await plugin.keeping.fresh()
    delays = [value(snapshot, "dask.scheduler.event_loop.delay") for snapshot in plugin.keeping.snapshots[number:]]
    assert 0.25 <= max(delays) < 5
    assert min(delays) < max(delays)  # said once


@gen_cluster(**SPANS)
async def test_a_start_that_fails_listens_to_nothing(client, scheduler, worker):
    with span("root") as root_id:
        await wait(future := client.submit(inc, 1, key="x"))
    spans = scheduler.extensions["spans"].spans
    hidden = spans.pop(root_id)
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    await asyncio.sleep(0)
    spans[root_id] = hidden
    assert list(plugin.safety.failures) == [("start", "KeyError")]
    assert "digest_metric" not in vars(scheduler)
    del future


@gen_cluster(**SPANS)
async def test_activities_count_from_when_the_bridge_began(client, scheduler, worker):
    await client.submit(slow, 0.2, key="before")
    await all_told([worker])
    before = dask_time()
    assert any(k[1] == "before" for k in scheduler.cumulative_worker_metrics if k[0] == "execute")
    plugin = MeasuredPlugin()
    await plugin.add_to(scheduler)
    await client.submit(slow, 0.1, key="after")
    await all_told([worker])
    await plugin.keeping.fresh()
    await finished(plugin)
    for measured_ in plugin.last.metrics:
        for point in measured_.points:
            assert point.start >= before
            assert "before" not in point.attributes, (measured_.metric.name, point)


@measured(nthreads=[("127.0.0.1", 1)])
async def test_activities_begin_when_they_were_zero(plugin, client, scheduler, worker):
    before = await plugin.keeping.fresh()
    plugin.keeping.is_due = False
    await client.submit(slow, 0.2, key="x")
    await worker.heartbeat()
    swept = plugin._bridge.status()["sweep"]["at"]
    await until(lambda: plugin._bridge.status()["sweep"]["at"] > swept + 0.2)  # several
    plugin.keeping.is_due = True
    snapshot = await plugin.keeping.fresh()
    (each,) = (each for each in snapshot.metrics if each.metric.name == "dask.activity.time")
    (point,) = (point for point in each.points if point.attributes == ("execute", "thread_noncpu", "x"))
    assert point.value == scheduler.cumulative_worker_metrics["execute", "x", "thread-noncpu", "seconds"] > 0.19
    assert point.start <= before.at + 0.1


@gen_cluster(**SPANS)
async def test_a_second_bridge_goes_on_counting(client, scheduler, worker):
    snapshots = []
    for number in range(2):
        plugin = MeasuredPlugin()
        await plugin.add_to(scheduler)
        await client.submit(slow, 0.01, key=f"x-{number}")
        await client.unregister_scheduler_plugin(plugin.name)
        await finished(plugin)
        snapshots += plugin.keeping.snapshots
    check_series(snapshots)
    assert value(snapshots[-1], "dask.task.finished", "x", "completed") == 2
    assert value(snapshots[-1], "dask.graph.updates", "OK") == 2
