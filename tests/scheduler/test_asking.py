"""Workers are asked for the fine metrics that they owe when the scheduler closes, instead of being waited for."""

from __future__ import annotations

import asyncio
import pickletools
from time import perf_counter

import dask
import pytest
from distributed import Worker, span
from distributed.utils_test import captured_logger, gen_cluster, inc, slowinc
from support.clusters import busy_seconds, close
from support.memory import MemoryPlugin
from support.misbehaving import Misbehaving
from support.processes import cluster
from support.trees import check_shape, check_sums
from support.workflows import nested

import dask_otel
from dask_otel.scheduler import runtime

TWO = [("127.0.0.1", 1), ("127.0.0.1", 2)]


def stop_heartbeats(*workers):
    for worker in workers:
        worker.periodic_callbacks["heartbeat"].stop()


def note_asks(monkeypatch):
    """Have noted which workers are asked, and what came of it."""
    answers = {}
    ask = runtime.ask_for_heartbeats

    async def noting(scheduler, worker):
        answers[worker] = None
        answers[worker] = await ask(scheduler, worker)
        return answers[worker]

    monkeypatch.setattr(runtime, "ask_for_heartbeats", noting)
    return answers


async def work(client, *workers):
    """Run tasks on each worker in a span; return its id."""
    with span("root") as root_id:
        for number, worker in enumerate(workers):
            futures = client.map(slowinc, range(4), delay=0.02, key=f"work_{number}", workers=[worker.address])
            await client.gather(futures)
    return root_id


def root_of(plugin):
    spans = plugin.exporter.spans()
    check_shape(spans)
    check_sums(spans)
    assert not plugin.safety.failures
    return next(each.attributes for each in spans if not each.parent_id)


def check_complete(scheduler, root_id, attributes):
    """All that Dask itself has of the span."""
    metrics = scheduler.extensions["spans"].spans[root_id].cumulative_worker_metrics
    seconds = busy_seconds(metrics)
    assert attributes["dask.thread_time.busy"] == pytest.approx(seconds)
    assert seconds >= 8 * 0.02
    assert attributes["dask.metrics.complete"] is True


def test_the_worker_needs_no_module_of_ours():
    names = [argument for code, argument, _ in pickletools.genops(runtime._FUNCTION) if "UNICODE" in code.name]
    assert names[:2] == ["builtins", "eval"]
    assert [code.name for code, _, _ in pickletools.genops(runtime._FUNCTION)].count("STACK_GLOBAL") == 1


@gen_cluster(client=True, nthreads=TWO)
async def test_no_regular_heartbeat_is_needed(client, scheduler, a, b):
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    stop_heartbeats(a, b)
    root_id = await work(client, a, b)
    await close(scheduler, client)
    check_complete(scheduler, root_id, root_of(plugin))


@pytest.mark.slow
def test_no_regular_heartbeat_is_needed_between_processes(tmp_path):
    def stop_heartbeat(dask_worker):
        dask_worker.periodic_callbacks["heartbeat"].stop()

    with Misbehaving("grpc") as receiver:
        settings = {"DASK_OTEL__TRACES__IDLE_TIMEOUT": "1h", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
        with cluster(tmp_path, env=settings) as processes:
            processes.client.run(stop_heartbeat)
            root_id, _ = nested(processes.client)
            processes.scheduler.stop()
            for worker in processes.workers:
                worker.join()
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=1)
    check_sums(spans)
    root = next(each.attributes for each in spans if not each.parent_id)
    assert root["dask.metrics.complete"] is True
    assert root["dask.thread_time.busy"] > 10 * 0.02
    for worker in processes.workers:
        assert "Run out-of-band function 'dask_otel_asks_for_heartbeat'" in worker.log
        assert "during heartbeat" not in worker.log


@gen_cluster(client=True, nthreads=TWO)
async def test_only_those_that_owe_are_asked(client, scheduler, a, b):
    with pytest.MonkeyPatch.context() as patch:
        asked = note_asks(patch)
        plugin = MemoryPlugin(idle_timeout=600.0)
        await plugin.add_to(scheduler)
        stop_heartbeats(a, b)
        await work(client, a)
        await plugin.before_close()
    assert asked == {a.address: True}
    assert root_of(plugin)["dask.metrics.complete"] is True


@pytest.mark.parametrize("why", ["all has come", "the worker has left", "nothing has run"])
@gen_cluster(client=True, nthreads=TWO[:1])
async def test_nobody_is_asked_where_nothing_is_owed(client, scheduler, worker, why):
    with pytest.MonkeyPatch.context() as patch:
        asked = note_asks(patch)
        plugin = MemoryPlugin(idle_timeout=600.0)
        await plugin.add_to(scheduler)
        if why != "nothing has run":
            await work(client, worker)
        if why == "all has come":
            await plugin._bridge.sweep.sweep()
            await worker.heartbeat()
            await worker.heartbeat()
        elif why == "the worker has left":
            await worker.close()
            while scheduler.workers:
                await asyncio.sleep(0.01)
        await close(scheduler, client)
    assert asked == {}
    assert not plugin.safety.failures


@pytest.mark.parametrize("who", ["the worker refuses", "the configuration says so"])
@gen_cluster(client=True, nthreads=TWO)
async def test_workers_that_may_not_be_asked_are_waited_for(client, scheduler, a, b, who):
    blocked = {"distributed.worker.blocked-handlers": ["run"]} if who == "the configuration says so" else {}
    a.blocked_handlers = b.blocked_handlers = ["run"]
    with pytest.MonkeyPatch.context() as patch, dask.config.set(blocked), captured_logger("distributed.core") as log:
        asked = note_asks(patch)
        patch.setattr(runtime, "heartbeat_interval", lambda workers: 600.0)
        plugin = MemoryPlugin(idle_timeout=600.0, shutdown_timeout=3600.0)
        await plugin.add_to(scheduler)
        root_id = await work(client, a, b)
        await close(scheduler, client)
    assert asked == dict.fromkeys([a.address, b.address], False)
    assert ("explicitly disallowed" in log.getvalue()) is not bool(blocked)
    check_complete(scheduler, root_id, root_of(plugin))


@gen_cluster(client=True, nthreads=TWO)
async def test_a_worker_that_does_not_answer_is_not_waited_for_longer_than_before(client, scheduler, a, b):
    asked = asyncio.Event()

    async def never(**kwargs):
        asked.set()
        await asyncio.sleep(3600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "heartbeat_interval", lambda workers: 0.1)
        plugin = MemoryPlugin(idle_timeout=600.0)
        await plugin.add_to(scheduler)
        stop_heartbeats(a, b)
        a.handlers["run"] = never
        await work(client, a, b)
        await plugin.before_close()
    assert asked.is_set()
    attributes = root_of(plugin)
    assert attributes["dask.metrics.complete"] is False
    assert attributes["dask.thread_time.busy"] >= 4 * 0.02  # b's have come


@gen_cluster(client=True, nthreads=TWO[:1])
async def test_a_wait_leaves_half_the_time_for_the_spans_however_long_the_sweep_before_takes(client, scheduler, worker):
    ahead = 0.0

    async def slow_sweep():
        nonlocal ahead
        await sweep()
        ahead += 2000.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "heartbeat_interval", lambda workers: 600.0)
        plugin = MemoryPlugin(idle_timeout=600.0, sweep_interval=3600.0, shutdown_timeout=3600.0)
        await plugin.add_to(scheduler)
        stop_heartbeats(worker)
        worker.blocked_handlers = ["run"]
        await work(client, worker)
        sweep = plugin._bridge.sweep.sweep
        patch.setattr(plugin._bridge.sweep, "sweep", slow_sweep)
        patch.setattr(runtime, "perf_counter", lambda: perf_counter() + ahead)
        await close(scheduler, client)
    assert root_of(plugin)["dask.metrics.complete"] is False


@gen_cluster(client=True, nthreads=TWO[:1])
async def test_workers_are_not_waited_for_where_no_collector_is_there(client, scheduler, worker):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "heartbeat_interval", lambda workers: 3600.0)
        plugin = MemoryPlugin(idle_timeout=600.0, shutdown_timeout=7200.0)
        await plugin.add_to(scheduler)
        stop_heartbeats(worker)
        worker.handlers["run"] = worker.handlers["ping"]  # it answers, but sends no heartbeat
        worker.blocked_handlers = ["run"]
        plugin.sink.span_threads[0].is_failing = True
        await work(client, worker)
        await close(scheduler, client)
    assert root_of(plugin)["dask.metrics.complete"] is False


@gen_cluster(client=True, nthreads=TWO[:1])
async def test_a_worker_goes_on_as_before(client, scheduler, worker: Worker):
    """A bridge that is unregistered asks too."""
    plugin = MemoryPlugin(idle_timeout=600.0)
    await plugin.add_to(scheduler)
    root_id = await work(client, worker)
    await plugin.before_close()
    check_root = root_of(plugin)
    assert check_root["dask.metrics.complete"] is True
    assert await client.submit(inc, 1) == 2
    assert worker.address in scheduler.workers
    assert root_id in scheduler.extensions["spans"].spans
