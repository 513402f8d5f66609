"""What can become of tasks on a real cluster, and what the trace says of it."""

from __future__ import annotations

import asyncio
import itertools

import dask
import pytest
from distributed import Client, Event, Reschedule, Worker, fire_and_forget, get_client, span, wait, worker_client
from distributed.utils_test import inc, slowinc
from support import switches
from support.clusters import bridged, finished, trace_of, until
from support.measured import all_told
from support.trees import tree

FATES = (
    "dask.span.result", "dask.task.completed", "dask.task.erred", "dask.task.upstream_failed", "dask.task.cancelled",
    "dask.task.abandoned", "dask.task.retried", "dask.task.rescheduled", "dask.task.recomputed", "dask.task.lost",
)  # fmt: skip


def fail(x):
    raise ValueError(f"bad {x}")


async def lines(plugin, *attributes, tasks=False):
    return tree(await finished(plugin), *(attributes or FATES), tasks=tasks)


@bridged()
async def test_a_future_dropped_right_after_the_error(plugin, client, scheduler, *workers):
    with span("root"):
        future = client.submit(fail, 1, key="bad")
        await wait(future)
        del future
        await until(lambda: "bad" not in scheduler.tasks)
    assert await lines(plugin) == [
        "root [span] dask.span.result=error dask.task.completed=0 dask.task.erred=1 Error: ValueError: "
        "1 task erred; first: bad 1",
        "  bad [group] dask.task.completed=0 dask.task.erred=1 Error: ValueError: 1 task erred; first: bad 1",
    ]


@bridged()
async def test_failed_tasks_have_spans_with_the_exception(plugin, client, scheduler, a, b):
    with span("root"):
        bad = client.submit(fail, 1, key="bad", workers=[b.address])
        dependent = client.submit(inc, bad, key="dependent")
        await wait([bad, dependent])
    run_id = scheduler.tasks["bad"].run_id
    spans = await finished(plugin)
    assert tree(spans, "dask.task.picked", tasks=True) == [
        "root [span] Error: ValueError: 1 task erred, 1 task failed upstream; first: bad 1",
        "  bad [group] Error: ValueError: 1 task erred; first: bad 1",
        "    bad [task] dask.task.picked=erred Error: ValueError: bad 1",
        "  dependent [group] Error: ValueError: 1 task failed upstream; first: bad 1 dependency -> bad",
    ]
    task = next(s for s in spans if s.attributes["dask.kind"] == "task")
    assert task.attributes["dask.task.key"] == "bad"
    assert task.attributes["dask.task.run_id"] == run_id
    assert task.attributes["dask.worker.address"] == b.address
    assert task.attributes["dask.worker.name"] == str(b.name)
    assert task.attributes["thread.id"] > 0
    ((name, attributes),) = task.events
    assert name == "exception"
    assert attributes["exception.type"] == "ValueError"
    assert attributes["exception.message"] == "bad 1"
    assert "raise ValueError" in attributes["exception.stacktrace"]
    group = next(s for s in spans if s.name == "bad" and s.attributes["dask.kind"] == "group")
    # Workers' times are good to some milliseconds.
    assert (task.start, task.end) == pytest.approx((group.start, group.end), abs=0.1)
    assert group.start <= task.start < task.end <= group.end


_failed = set()


def fails_at_first(number):
    if number not in _failed:
        _failed.add(number)
        raise ConnectionError(f"{number} did not answer")
    return number


@bridged()
async def test_the_error_of_a_run_that_was_retried_with_success(plugin, client, scheduler, *workers):
    _failed.clear()
    with span("root"):
        await client.gather(client.map(fails_at_first, range(3), retries=2, key="flaky"))
        await client.submit(inc, 1, key="good")
    spans = {s.name: s for s in await finished(plugin)}
    flaky = spans["flaky"].attributes
    assert (flaky["dask.task.retried"], flaky["dask.task.completed"]) == (3, 3)
    assert flaky["dask.retry.error.type"] == "ConnectionError"
    assert flaky["dask.retry.error.message"] in {f"{n} did not answer" for n in range(3)}
    assert spans["flaky"].status == "Unset"
    assert "error.type" not in flaky
    assert not any(name.startswith("dask.retry") for s in ("good", "root") for name in spans[s].attributes)


@bridged()
async def test_a_run_that_stands_out_has_a_span(plugin, client, scheduler, *workers):
    with span("root"):
        delays = [0.02] * 5 + [0.8]  # a busy machine makes the short ones longer
        await wait([client.submit(slowinc, i, delay=delay, key=f"work-{i}") for i, delay in enumerate(delays)])
    tasks = [s for s in await finished(plugin) if s.attributes["dask.kind"] == "task"]
    assert [(s.attributes["dask.task.picked"], s.attributes["dask.task.key"]) for s in tasks] == [("outlier", "work-5")]


@bridged(slowest_tasks=5)
async def test_the_slowest_runs_have_spans(plugin, client, scheduler, *workers):
    with span("root"):
        slowest = (5, 6, 12, 13)
        await wait([client.submit(slowinc, i, delay=0.4 * (i in slowest), key=f"work-{i}") for i in range(14)])
        await wait(client.map(fail, range(30), key="bad"))
    spans = await finished(plugin)
    tasks = [s for s in spans if s.attributes["dask.kind"] == "task"]
    slow = [s for s in tasks if s.attributes["dask.task.picked"] in ("outlier", "slowest")]
    assert {s.attributes["dask.task.key"] for s in slow} > {f"work-{i}" for i in slowest}
    assert len(slow) == 5
    for each in slow:
        assert each.attributes["dask.duration.compute"] <= each.seconds + 1e-6
        assert each.attributes["dask.task.type"] == "int"
        assert each.attributes["dask.output.size"] == 28
    assert len([s for s in tasks if s.attributes["dask.task.picked"] == "erred"]) == 20
    assert {s.name: s.attributes.get("dask.truncated.tasks") for s in spans if s.attributes["dask.kind"] != "task"} == {
        "work": None,
        "bad": 10,
        "root": 10,
    }


@bridged(nthreads=[("127.0.0.1", 1)])
async def test_siblings_of_a_failed_task_are_abandoned(plugin, client, scheduler, worker):
    """The scheduler releases them by the same stimulus as a retry."""
    event = Event(client=client)
    switches.reset()

    async def hold_and_fail():
        await event.wait()
        raise ValueError("bad")

    def run_on(x):
        switches.go.wait(30)

    with span("root"):
        bad = client.submit(hold_and_fail, key="bad")
        others = [client.submit(run_on, i, key=f"other-{i}") for i in range(3)]
        total = client.submit(lambda *args: sum(args), bad, *others, key="total")
        del others
        await until(lambda: "other-2" in scheduler.tasks and scheduler.tasks["bad"].state == "processing")
        await event.set()
        await wait(total)
    assert await lines(plugin) == [
        "root [span] dask.span.result=error dask.task.completed=0 dask.task.erred=1 dask.task.upstream_failed=1 "
        "dask.task.abandoned=3 Error: ValueError: 1 task erred, 1 task failed upstream; first: bad",
        "  bad [group] dask.task.completed=0 dask.task.erred=1 Error: ValueError: 1 task erred; first: bad",
        "  other [group] dask.task.completed=0 dask.task.abandoned=3",
        "  total [group] dask.task.completed=0 dask.task.upstream_failed=1 "
        "Error: ValueError: 1 task failed upstream; first: bad dependency -> bad dependency -> other",
    ]
    switches.go.set()


@bridged(idle_timeout=0.1)
async def test_metrics_of_a_cancelled_task_that_runs_on_come_with_the_last_segment(plugin, client, scheduler, a, b):
    switches.reset()

    def run_on():
        switches.started.set()
        switches.go.wait(30)
        switches.done.set()

    with dask.config.set({"distributed.scheduler.work-stealing": False}), span("root") as root_id:
        future = client.submit(run_on, key="on", pure=False)
        await asyncio.to_thread(switches.started.wait, 30)
        await future.cancel()
        first = await trace_of(plugin, root_id)
        assert tree(first, *FATES) == [
            "root [span] dask.span.result=cancelled dask.task.completed=0 dask.task.cancelled=1",
            "  on [group] dask.task.completed=0 dask.task.cancelled=1",
        ]
        switches.go.set()
        await asyncio.to_thread(switches.done.wait, 30)
    dask_span = scheduler.extensions["spans"].spans[root_id]
    await until(lambda: any(key[2] == "cancelled" for key in dask_span.cumulative_worker_metrics))
    segments = [s for s in await finished(plugin) if s.name == "root"]
    assert [s.attributes["dask.span.segment"] for s in segments] == [0, 1]
    total = sum(v for s in segments for n, v in s.attributes.items() if n.startswith("dask.execute."))
    expected = sum(v for k, v in dask_span.cumulative_worker_metrics.items() if k[2] != "idle or other spans")
    assert total == pytest.approx(expected)


@bridged()
async def test_a_worker_lost_with_results_in_memory(plugin, client, scheduler, a, b):
    with span("root"):
        x = client.submit(inc, 1, key="x", workers=[a.address], allow_other_workers=True)
        y = client.submit(inc, x, key="y", workers=[b.address])
        await wait([x, y])
        await until(lambda: a.address in {ws.address for ws in scheduler.tasks["x"].who_has})
        await a.close()
        await until(lambda: a.address not in scheduler.workers)
        assert await x == 2
    assert (await lines(plugin))[0] in (
        "root [span] dask.span.result=success dask.task.completed=3 dask.task.recomputed=1",
        # y's worker had a copy of x
        "root [span] dask.span.result=success dask.task.completed=2",
    )


@bridged()
async def test_a_worker_lost_while_it_runs_a_task(plugin, client, scheduler, a, b):
    started = Event(client=client)

    async def once():
        if not await started.is_set():
            await started.set()
            await asyncio.sleep(600)
        return 1

    with span("root"):
        future = client.submit(once, key="x", workers=[a.address], allow_other_workers=True)
        await started.wait()
        await a.close()
        assert await future == 1
    spans = await finished(plugin)
    assert tree(spans, *FATES, "dask.metrics.complete")[0] == (
        "root [span] dask.span.result=success dask.task.completed=1 dask.task.lost=1 dask.metrics.complete=False"
    )


@bridged(cluster={"config": {"distributed.scheduler.allowed-failures": 0}})
async def test_killed_worker(plugin, client, scheduler, a, b):
    started = Event(client=client)

    async def hang():
        await started.set()
        await asyncio.sleep(600)

    with span("root"):
        future = client.submit(hang, key="x", workers=[a.address], allow_other_workers=True)
        await started.wait()
        await scheduler.remove_worker(a.address, stimulus_id="handle-worker-cleanup-1", close=False)
        await wait(future)
    spans = await finished(plugin)
    assert tree(spans, *FATES, tasks=True) == [
        "root [span] dask.span.result=error dask.task.completed=0 dask.task.erred=1 Error: KilledWorker: 1 task erred",
        "  x [group] dask.task.completed=0 dask.task.erred=1 Error: KilledWorker: 1 task erred",
        "    x [task] Error: KilledWorker: ",
    ]
    task = next(s for s in spans if s.attributes["dask.kind"] == "task")
    assert task.attributes["dask.worker.address"] == a.address
    assert "dask.task.run_id" not in task.attributes


@bridged(cluster={"config": {"distributed.scheduler.no-workers-timeout": "100ms"}})
async def test_a_task_that_no_worker_can_run(plugin, client, scheduler, *workers):
    scheduler.periodic_callbacks["no-workers-timeout"].callback_time = 50
    with span("root"):
        future = client.submit(inc, 1, key="x", resources={"GPU": 1})
        await wait(future)
    assert await lines(plugin, "dask.span.result", "dask.task.erred", tasks=True) == [
        "root [span] dask.span.result=error dask.task.erred=1 Error: NoValidWorkerError: 1 task erred",
        "  x [group] dask.task.erred=1 Error: NoValidWorkerError: 1 task erred",
        "    x [task] Error: NoValidWorkerError: ",
    ]


@bridged()
async def test_scale_down_moves_results_and_loses_nothing(plugin, client, scheduler, a, b):
    with span("root"):
        futures = client.map(inc, range(10), key="x")
        await wait(futures)
        await client.retire_workers([a.address])
        assert await client.gather(futures) == list(range(1, 11))
    assert await lines(plugin) == [
        "root [span] dask.span.result=success dask.task.completed=10",
        "  x [group] dask.task.completed=10",
    ]


@bridged(nthreads=[("127.0.0.1", 1)])
async def test_stolen_tasks_are_counted_once(plugin, client, scheduler, a):
    with span("root"):
        futures = [client.submit(slowinc, i, delay=0.05, key=f"x-{i}") for i in range(30)]
        await until(lambda: len(scheduler.tasks) == 30)
        async with Worker(scheduler.address):
            await wait(futures)
            spans = await finished(plugin)
    root = next(s for s in spans if s.name == "root").attributes
    assert (root["dask.task.count"], root["dask.task.completed"], root["dask.worker.count"]) == (30, 30, 2)
    assert root["dask.span.result"] == "success"


@bridged()
async def test_reschedule(plugin, client, scheduler, a, b):
    tried = Event(client=client)

    async def once():
        if not await tried.is_set():
            await tried.set()
            raise Reschedule
        return 1

    with span("root"):
        assert await client.submit(once, key="x") == 1
    assert await lines(plugin) == [
        "root [span] dask.span.result=success dask.task.completed=1 dask.task.rescheduled=1",
        "  x [group] dask.task.completed=1 dask.task.rescheduled=1",
    ]


@bridged()
async def test_tasks_that_submit_tasks(plugin, client, scheduler, *workers):
    def outer():
        with worker_client() as inner:
            return sum(inner.gather(inner.map(inc, range(3), key="inner")))

    async def outer_async():
        return await get_client().submit(inc, 1, key="inner-async")

    with span("root"):
        with span("threads"):
            assert await client.submit(outer, key="outer") == 6
        with span("async"):
            assert await client.submit(outer_async, key="outer-async") == 2
    assert await lines(plugin, "dask.task.completed") == [
        "root [span] dask.task.completed=6",
        "  threads [span] dask.task.completed=4",
        "    inner [group] dask.task.completed=3",
        "    outer [group] dask.task.completed=1",
        "  async [span] dask.task.completed=2",
        "    inner-async [group] dask.task.completed=1",
        "    outer-async [group] dask.task.completed=1",
    ]


@bridged(idle_timeout=0.1)
async def test_published_results_are_used_without_being_counted_again(plugin, client, scheduler, *workers):
    with span("producer") as producer:
        future = client.submit(inc, 1, key="x")
        await future
        await client.publish_dataset(data=future)
        del future
    await trace_of(plugin, producer)
    async with Client(scheduler.address, asynchronous=True) as other:
        with span("consumer"):
            data = await other.get_dataset("data")
            assert await other.submit(inc, data, key="y") == 3
        assert await lines(plugin, "dask.task.completed") == [
            "producer [span] dask.task.completed=1",
            "  x [group] dask.task.completed=1",
            "consumer [span] dask.task.completed=1",
            "  y [group] dask.task.completed=1 dependency -> x in another trace",
        ]


@bridged(nthreads=[("127.0.0.1", 1)])
async def test_queued_root_tasks(plugin, client, scheduler, worker):
    with span("root"):
        futures = client.map(slowinc, range(20), delay=0.02, key="x")
        await until(lambda: scheduler.queued)
        await wait(futures)
    assert await lines(plugin) == [
        "root [span] dask.span.result=success dask.task.completed=20",
        "  x [group] dask.task.completed=20",
    ]


@bridged()
async def test_fire_and_forget(plugin, client, scheduler, *workers):
    with span("root"):
        done = Event(client=client)

        async def work():
            await done.set()

        future = client.submit(work, key="x")
        fire_and_forget(future)
        del future
        await done.wait()
        await until(lambda: "x" not in scheduler.tasks)
    assert await lines(plugin) == [
        "root [span] dask.span.result=success dask.task.completed=1",
        "  x [group] dask.task.completed=1",
    ]


@bridged()
async def test_a_client_that_disconnects_half_way(plugin, client, scheduler, *workers):
    started = Event(client=client)

    async def hang():
        await started.set()
        await asyncio.sleep(600)

    other = await Client(scheduler.address, asynchronous=True)
    with span("root"):
        done = other.submit(inc, 1, key="done")
        await done
        futures = [other.submit(hang, key="x-0"), other.submit(hang, key="x-1", pure=False)]
        await started.wait()
        await other.close()
        await until(lambda: not scheduler.tasks)
        del done, futures
    assert await lines(plugin) == [
        "root [span] dask.span.result=success dask.task.completed=1 dask.task.abandoned=2",
        "  done [group] dask.task.completed=1",
        "  x [group] dask.task.completed=0 dask.task.abandoned=2",
    ]


@pytest.mark.filterwarnings("ignore:Dask annotations")
@bridged()
async def test_a_p2p_shuffle_has_its_own_metrics(plugin, client, scheduler, *workers):
    dd = pytest.importorskip("dask.dataframe")
    pytest.importorskip("pyarrow")
    import pandas as pd

    with dask.config.set({"dataframe.shuffle.method": "p2p"}), span("root") as root_id:
        frame = dd.from_pandas(pd.DataFrame({"x": range(100)}), npartitions=4).shuffle("x")
        assert len(await client.compute(frame)) == 100
    await all_told(workers)
    spans = await finished(plugin)
    root = next(s for s in spans if not s.parent_id).attributes
    dask_span = scheduler.extensions["spans"].spans[root_id]
    expected = {k: v for k, v in dask_span.cumulative_worker_metrics.items() if k[0] == "p2p"}
    assert expected
    for (_, where, activity, unit), value in expected.items():
        name = f"dask.p2p.{where}.{activity}.{unit}".replace("-", "_")
        assert root[name] == pytest.approx(value)


@bridged(idle_timeout=0.1)
async def test_a_finished_span_that_a_worker_loss_reactivates(plugin, client, scheduler, a, b):
    with span("root") as root_id:
        x = client.submit(inc, 1, key="x", workers=[a.address], allow_other_workers=True)
        await x
    await trace_of(plugin, root_id)
    await a.close()
    await until(lambda: scheduler.tasks["x"].state == "memory" and a.address not in scheduler.workers)
    spans = await finished(plugin)
    assert tree(spans, "dask.span.segment", "dask.span.result", "dask.task.count", "dask.task.recomputed") == [
        "root [span] dask.span.segment=0 dask.span.result=success dask.task.count=1",
        "  x [group] dask.task.count=1",
        "root [span] dask.span.segment=1 dask.span.result=success dask.task.count=0 dask.task.recomputed=1",
        "  x [group] dask.task.count=0 dask.task.recomputed=1",
    ]


@pytest.mark.slow  # ten times idle
@bridged(idle_timeout=0.05)
async def test_a_span_that_goes_idle_and_resumes_ten_times(plugin, client, scheduler, *workers):
    with span("root") as root_id:
        for number in range(10):
            await client.submit(inc, number, key=f"x-{number}")
            await asyncio.to_thread(
                plugin.exporter.wait, lambda spans, n=number: sum(s.name == "root" for s in spans) > n
            )
    segments = [s for s in await finished(plugin) if s.name == "root"]
    assert [s.attributes["dask.span.segment"] for s in segments] == list(range(10))
    assert len({s.span_id for s in segments}) == 10
    assert len({s.trace_id for s in segments}) == 1
    for before, after in itertools.pairwise(segments):
        assert after.attributes["dask.segment.previous_id"] == before.span_id
        assert before.end <= after.start
    assert sum(s.attributes["dask.task.completed"] for s in segments) == 10
    dask_span = scheduler.extensions["spans"].spans[root_id]
    assert sum(s.attributes["dask.duration.compute"] for s in segments) == pytest.approx(
        dask_span.all_durations["compute"]
    )
