"""What is collected for verdicts, against what the workers of a real cluster report."""

from __future__ import annotations

import time
from itertools import chain

import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Event, wait
from hypothesis import given
from hypothesis import strategies as st
from support.clusters import bridged, until

from dask_otel.diagnosis.evidence import Departure
from dask_otel.scheduler.evidence import MAX_PEAKS, Peaks

#: Only the sweeps that a test asks for.
BY_HAND = {"sweep_interval": 3600.0, "idle_timeout": 0.0}


def hold(number):
    Event("others" if number else "first").wait()


def silence(*workers):
    """Let workers report only what a test asks for."""
    for worker in workers:
        worker.periodic_callbacks["heartbeat"].stop()


async def sweep(plugin, *workers):
    for worker in workers:
        await worker.heartbeat()
    await plugin._bridge.sweep.sweep()
    return plugin._bridge.evidence


@bridged(**BY_HAND, cluster={"config": {"distributed.admin.tick.interval": "20ms"}})
async def test_what_busy_workers_report(plugin, client, scheduler, a, b):
    silence(a, b)
    evidence = await sweep(plugin, a, b)
    await sweep(plugin)
    held = client.map(hold, range(3))
    await until(lambda: len(b.state.executing) == 2 and len(a.state.executing) == 1)
    await sweep(plugin, a, b)
    mark = evidence.mark()
    assert mark.sample == 0  # what opens in a sweep has begun before it
    found = evidence.since(mark)
    reports = [scheduler.workers[worker.address].metrics for worker in (a, b)]
    assert found.process_cpu == pytest.approx(sum(each["cpu"] for each in reports) / 200)
    assert (found.process_threads, found.process_tasks) == (1.5, 1.5)
    assert (found.machine_cpus, found.machine_tasks) == (CPU_COUNT, 3)
    assert found.machine_cpu == found.process_machine_cpu == pytest.approx(2 * found.process_cpu)
    assert found.machine_busy is None if psutil.cpu_count() != CPU_COUNT else 0.0 <= found.machine_busy <= CPU_COUNT
    assert (found.machines_unknown, found.machines_limited) == (0.0, float(found.machine_busy is None))
    delays = [max(0.0, each["event_loop_interval"] - 0.02) for each in reports]
    assert found.worker_loop_delay == pytest.approx(sum(delays) / 2)
    assert found.memory_peak == max(each["memory"] / a.memory_manager.memory_limit for each in reports)
    assert 0.0 < found.unmanaged <= 1.0
    assert (found.spilled, found.departed, found.threads_start, found.threads_most) == (0, 0, 3, 3)
    assert found.garbage_collection is not None
    assert found.late_ticks < 0.2

    # A run that begins now takes what comes now: one worker is not busy any more, and the scheduler is late.
    await Event("first").set()
    await wait(held[:1])
    await sweep(plugin, a, b)
    await sweep(plugin)
    mark = evidence.mark()
    time.sleep(0.25)
    await sweep(plugin, a, b)
    found = evidence.since(mark)
    busy = [worker for worker in (a, b) if worker.state.executing]
    assert found.machine_tasks == 2
    assert found.process_tasks == 2 / len(busy)
    assert 0.2 < found.late_ticks < 1.0
    await Event("others").set()
    await wait(held)


@bridged(**BY_HAND)
async def test_a_worker_that_is_lost(plugin, client, scheduler, a, b):
    silence(a, b)
    evidence = await sweep(plugin)
    mark = evidence.mark()
    (result,) = client.map(range, [5], workers=[b.address], key="made")
    await wait(result)
    held = client.map(hold, range(2), workers=[b.address], allow_other_workers=True)
    await until(lambda: len(b.state.executing) == 2)
    await sweep(plugin, a, b)
    worker = scheduler.workers[b.address]
    memory = worker.metrics["memory"]
    await scheduler.remove_worker(b.address, stimulus_id="test", close=True)
    await sweep(plugin)
    lost = Departure(memory, worker.memory_limit, 2, 1, "hold")
    found = evidence.since(mark)
    assert (found.departures, found.departed) == ((lost,), 1)
    assert (found.threads_start, found.threads_most) == (3, 3)
    assert evidence.since(evidence._mark()).departures == ()
    await Event("first").set()
    await Event("others").set()
    await wait(held)
    # One that says that it leaves is not lost.
    await a.close()
    await until(lambda: not scheduler.workers)
    assert evidence.since(mark).departed == 1
    await sweep(plugin)
    assert not evidence._machines
    assert not evidence._processes


@bridged(**BY_HAND)
async def test_a_worker_that_reports_otherwise_is_left_out(plugin, client, scheduler, a, b):
    silence(a, b)
    evidence = await sweep(plugin)
    held = client.map(hold, range(3))
    await until(lambda: len(b.state.executing) == 2 and len(a.state.executing) == 1)
    await sweep(plugin, a, b)
    await a.heartbeat()
    known = scheduler.workers[a.address].metrics
    scheduler.workers[a.address].metrics = {name: known[name] for name in known if name != "task_counts"}
    await sweep(plugin, b)
    assert plugin.safety.failures == {("evidence", "KeyError"): 1}
    assert evidence.since(evidence.mark()).process_tasks == pytest.approx(5 / 3)  # of two samples
    plugin.safety._failures.clear()
    scheduler.workers[a.address].metrics = known
    await Event("first").set()
    await Event("others").set()
    await wait(held)


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=3), max_size=MAX_PEAKS // 2), st.integers(0, MAX_PEAKS))
def test_peaks(values, since):
    peaks = Peaks()
    for sample, some in enumerate(values):
        for value in some:
            peaks.add(sample, value)
    assert peaks.since(since) == max(chain(*values[since:]), default=None)


def test_peaks_are_bounded():
    peaks = Peaks()
    for sample in range(10 * MAX_PEAKS):
        peaks.add(sample, -sample)
    assert len(peaks._values) <= MAX_PEAKS
    assert peaks.since(0) == 0
    assert peaks.since(10 * MAX_PEAKS - 1) == 1 - 10 * MAX_PEAKS
