"""A fault in every part of the bridge: the workload does not notice, the log says it once, and it is counted."""

from __future__ import annotations

import asyncio
from operator import add

import pytest
from distributed import span
from distributed.utils_test import captured_logger, gen_cluster, inc
from opentelemetry.sdk.trace.sampling import Sampler
from support.measured import MeasuredPlugin
from support.memory import MemoryExporter, MemoryPlugin

from dask_otel import safety as safety_module
from dask_otel.preload import OTelPlugin

TWO_WORKERS = [("127.0.0.1", 1), ("127.0.0.1", 1)]
SECRET = "planted-secret"


class Injected(Exception):
    """Ours."""


class Odd:
    """Neither equal nor unequal to anything, like an array; and no text."""

    __eq__ = __str__ = __hash__ = lambda *args: fail()


def fail(*args, **kwargs):
    raise Injected(SECRET)


async def fail_later(*args, **kwargs):
    raise Injected(SECRET)


async def workload(client, scheduler, workers):
    """Two spans, a failure, a worker that leaves; return what came of it."""
    with span("root"):
        with span("sums"):
            numbers = client.map(inc, range(20), key="inc")
            total = await client.submit(sum, numbers, key="sum")
        bad = client.submit(add, 1, "x", key="bad")
        error = await bad.exception()
    joined = await client.submit(inc, total, key="more")
    await workers[-1].close()
    again = await client.gather(client.map(inc, range(5), key="again"))
    return total, type(error), joined, again


EXPECTED = (210, TypeError, 211, [1, 2, 3, 4, 5])


async def nothing():
    """Wait for nothing."""


#: What fails, and where the bridge counts it.
FAULTS = {
    "spantree.events.Change.ran": "transition hook",
    "scheduler.inbox.Inbox._erred": "transition hook",
    "scheduler.submissions.Submissions.taken_in": "update_graph hook",
    "scheduler.submissions.Submissions.logged": "log_event hook",
    "scheduler.submissions._submission": "update-graph hook",
    "scheduler.inbox.Inbox.heartbeat": "heartbeat hook",
    "scheduler.inbox.Inbox.worker_left": "remove_worker hook",
    "scheduler.inbox.Inbox.take": "sweep",
    "spantree.timing.Heartbeats.beat": "sweep",
    "spantree.timing.Heartbeats.left": "sweep",
    "spantree.events.Change.count_runs": "sweep",
    "scheduler.task_groups.TaskGroupReader.read_delta": "sweep",
    "scheduler.task_groups.TaskGroupReader.forget_gone": "sweep",
    "scheduler.sweep.span_info": "sweep",
    "spantree.lifecycle.SpanTree.add_change": "sweep",
    "spantree.lifecycle.SpanTree.add_metrics": "sweep",
    "spantree.lifecycle.SpanTree.add_graph": "sweep",
    "spantree.lifecycle.SpanTree.advance": "sweep",
    "spantree.lifecycle.close_segment": "sweep",
    "spantree.lifecycle.SpanTree.close": "closing of segments",
    "scheduler.sweep.Sweep.close": "closing",
    "scheduler.inbox.HeartbeatTap.remove": "closing",
    "otlp.exporter.TelemetryOutput.put": "sink",
    "otlp.exporter.TelemetryOutput.packing": "sink",
    "otlp.exporter.TelemetryOutput.close_spans": "closing",
    "otlp.exporter.TelemetryOutput.close_metrics": "closing",
    "otlp.queue.SpanQueue.put": "sink",
    "otlp.queue.SpanQueue.take": "exporter thread",
    "otlp.exporter.unpacked": "exporter memory",
    "otlp.spans.SpanFactory._identified": "conversion",
    "otlp.exporter.SpanExportQueue.export": "exporter memory",
    "metrics.recorder.Recorder.begin_sweep": "metrics",
    "metrics.recorder.Recorder.change": "metrics",
    "metrics.recorder.Recorder.busy": "metrics",
    "metrics.recorder.Recorder.count": "metrics",
    "metrics.recorder.Recorder.root_ended": "metrics",
    "metrics.recorder.Recorder.tasks_shown": "metrics",
    "metrics.recorder.Recorder.swept": "metrics",
    "scheduler.forgetting.Forgetting._find_new": "forgetting",
    "scheduler.forgetting.Forgetting._not_before": "forgetting",
    "scheduler.forgetting._remove": "forgetting",
    "scheduler.forgetting.LateMetrics.remove": "closing",
    "spantree.lifecycle.SpanTree.forget": "forgetting",
    "otlp.exporter.TelemetryOutput.mark": "forgetting",
}
#: In what the snapshot is made of; where nobody wants metrics, it is not made.
MEASURING = ("cluster", "activity", "open_roots", "bridge", "collect")


def with_workload(plugin, settle):
    """Run the workload on a cluster with the plugin; check that everything lives, and return the result and the log."""
    seen = {}

    @gen_cluster(client=True, nthreads=TWO_WORKERS, clean_kwargs={"threads": False})
    async def run(client, scheduler, *workers):
        with captured_logger("distributed.dask_otel") as log:
            await scheduler.register_scheduler_plugin(plugin, idempotent=True)
            seen["result"] = await asyncio.wait_for(workload(client, scheduler, workers), 30)
            await settle()
            assert scheduler.status.name == workers[0].status.name == "running"
            assert await client.submit(inc, 1, key="alive") == 2
            await asyncio.wait_for(plugin.before_close(), 30)
        seen["log"] = log.getvalue()

    run()
    return seen["result"], seen["log"]


@pytest.mark.slow  # a cluster for each
@pytest.mark.parametrize("target", FAULTS)
def test_the_workload_does_not_notice(target, monkeypatch):
    plugin = MemoryPlugin(idle_timeout=0.05, shutdown_timeout=10.0, forget_spans=0.05)
    monkeypatch.setattr("dask_otel.scheduler.forgetting.KEPT_NAMES", 0)
    monkeypatch.setattr(f"dask_otel.{target}", fail)
    where = FAULTS[target]

    async def counted():
        if not where.startswith("closing"):
            while not plugin.safety.failures[where, "Injected"]:
                await asyncio.sleep(0.01)

    result, log = with_workload(plugin, counted)
    assert result == EXPECTED
    assert plugin.safety.failures[where, "Injected"]
    # Each kind once: where spans are unknown, their metrics are, too.
    kinds = sum(place == where for place, _ in plugin.safety.failures)
    assert log.count(f"dask-otel failed in its {where} and goes on without") == kinds


#: What only verdicts need, and where its faults are counted. Those of one case do not hide each other.
VERDICT_FAULTS = {
    "run times": {
        "diagnosis.run_times.RunTimes.run": "run times",
        "diagnosis.run_times.RunTimes.graph_came": "run times",
        "diagnosis.run_times.RunTimes.worker_left": "run times",
        "diagnosis.run_times.RunTimes.take": "run times",
        "scheduler.evidence.Evidence.mark": "evidence",
        "scheduler.evidence.Evidence._read": "evidence",
    },
    "closing": {
        "spantree.facts.Groups.add": "verdict",
        "diagnosis.waterfall.Laps.of_groups": "verdict",
        "diagnosis.waterfall.Laps.waterfall": "verdict",
        "diagnosis.run_times.RunTimes.forget": "run times",
        "scheduler.evidence.Evidence.since": "evidence",
    },
    "start": {"diagnosis.run_times.RunTimes.worker_joined": "verdict"},
}


@pytest.mark.slow  # a cluster for each
@pytest.mark.parametrize("case", VERDICT_FAULTS)
def test_without_verdicts_spans_are_as_they_are(case, monkeypatch):
    plugin = MemoryPlugin(shutdown_timeout=10.0)
    called = set()
    for target in VERDICT_FAULTS[case]:

        def fault(*args, target=target, **kwargs):
            called.add(target)
            fail()

        monkeypatch.setattr(f"dask_otel.{target}", fault)

    result, _ = with_workload(plugin, nothing)
    assert result == EXPECTED
    assert called == set(VERDICT_FAULTS[case])
    assert {place for place, _ in plugin.safety.failures} == set(VERDICT_FAULTS[case].values())
    shown = {span.name: span.attributes for span in plugin.exporter.spans()}
    for name, tasks, completed in (("root", 22, 21), ("sums", 21, 21), ("again", 5, 5)):
        assert shown[name]["dask.task.count"] == tasks
        again = shown[name].get("dask.task.recomputed", 0)  # since its worker left
        assert shown[name]["dask.task.completed"] == completed + again


class Unsure(Sampler):
    """Fails, as somebody else's code may."""

    should_sample = fail

    def get_description(self):
        return "unsure"


class Failing(MemoryExporter):
    """So does this."""

    export = fail


@pytest.mark.parametrize(
    ("attribute", "value", "where"),
    [("exporter", Failing(), "exporter memory"), ("sampler", Unsure(), "sampler")],
    ids=["exporter", "sampler"],
)
def test_other_people_s_code_that_fails(attribute, value, where):
    plugin = MemoryPlugin(idle_timeout=0.05, shutdown_timeout=10.0)
    setattr(plugin, attribute, value)

    async def counted():
        while not plugin.safety.failures[where, "Injected"]:
            await asyncio.sleep(0.01)

    result, log = with_workload(plugin, counted)
    assert result == EXPECTED
    assert log.count(f"dask-otel failed in its {where}") == 1
    if attribute == "sampler":  # what it cannot decide is sent
        assert plugin.exporter.spans()
    else:
        assert plugin.sink.unsent


@pytest.mark.parametrize(
    "target",
    ["config.load", "otlp.exporter.connect", "scheduler.runtime.SpanTree", "scheduler.runtime.Sweep.read_baseline"],
)
def test_a_fault_at_the_start_leaves_the_bridge_off(target, monkeypatch):
    monkeypatch.setattr(f"dask_otel.{target}", fail)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")

    async def nothing():
        pass

    result, log = with_workload(OTelPlugin(), nothing)
    assert result == EXPECTED
    assert log.count("dask-otel failed in its start and goes on without") == 1


def test_after_too_many_in_a_row_it_turns_itself_off_and_says_so(monkeypatch):
    monkeypatch.setattr(safety_module, "MAX_IN_A_ROW", 5)
    plugin = MemoryPlugin(idle_timeout=0.05, sweep_interval=0.01, shutdown_timeout=10.0)
    monkeypatch.setattr("dask_otel.spantree.lifecycle.SpanTree.advance", fail)

    async def off():
        while plugin._bridge:
            await asyncio.sleep(0.01)

    result, log = with_workload(plugin, off)
    assert result == EXPECTED
    assert log.count("dask-otel turns itself off: its sweep has failed 5 times in a row") == 1
    assert "dask-otel stops: it has failed too often in a row" in log


def test_what_an_exception_says_is_not_logged_if_that_may_hold_secrets(monkeypatch):
    class Discreet(MemoryPlugin):
        def connect(self, scheduler, safety):
            safety.logs_messages = False  # as ``OTelPlugin.connect`` does
            return super().connect(scheduler, safety)

    plugin = Discreet(idle_timeout=0.05)
    monkeypatch.setattr("dask_otel.spantree.lifecycle.SpanTree.advance", fail)

    async def counted():
        while not plugin.safety.failures["sweep", "Injected"]:
            await asyncio.sleep(0.01)

    _, log = with_workload(plugin, counted)
    assert "Injected" in log
    assert "in fail" in log
    assert SECRET not in log


def test_failures_can_be_read_while_another_thread_counts_some():
    safety = safety_module.Safety()
    with captured_logger("distributed.dask_otel"):
        safety.caught("sweep", Injected())
        for number, _ in enumerate(safety.failures.items()):  # as the page does, on the event loop
            safety.caught(f"exporter {number}", Injected())
    assert len(safety.failures) == 2


def test_failures_far_between_turn_nothing_off():
    safety = safety_module.Safety()
    with captured_logger("distributed.dask_otel"):
        for _ in range(3 * safety_module.MAX_IN_A_ROW):
            safety.caught("sweep", Injected())
            safety.check_streaks()
            safety.check_streaks()  # a sweep in which nothing failed
    assert not safety.gave_up
    assert safety.failures["sweep", "Injected"] == 3 * safety_module.MAX_IN_A_ROW


def test_a_collector_may_be_away_for_as_long_as_it_likes():
    safety = safety_module.Safety()
    with captured_logger("distributed.dask_otel"):
        for _ in range(2 * safety_module.MAX_IN_A_ROW):
            with safety.guard("exporter otlp"):
                raise Injected
    assert not safety.gave_up


@pytest.mark.parametrize("part", MEASURING)
def test_a_snapshot_that_cannot_be_made_costs_no_trace_and_as_little_of_the_rest_as_can_be(part, monkeypatch):
    """More failures than may come in a row turn off nothing else."""
    plugin = MeasuredPlugin(idle_timeout=0.05, sweep_interval=0.01)
    monkeypatch.setattr(safety_module, "MAX_IN_A_ROW", 10)
    monkeypatch.setattr(f"dask_otel.metrics.recorder.Recorder.{part}", fail)

    async def counted():
        while plugin.safety.failures["metrics", "Injected"] <= 1.5 * safety_module.MAX_IN_A_ROW:
            await asyncio.sleep(0.01)

    result, log = with_workload(plugin, counted)
    assert result == EXPECTED
    assert log.count("dask-otel failed in its metrics and goes on without") == 1
    assert not plugin.safety.gave_up
    assert {"root", "sums"} <= {span.name for span in plugin.exporter.spans()}
    if part != "collect":
        names = {each.metric.name for each in plugin.last.metrics}
        assert "dask.task.finished" in names
        assert ("dask.scheduler.task.count" in names) == (part != "cluster")


def test_events_of_other_people_harm_nothing():
    plugin = MeasuredPlugin(idle_timeout=0.05, sweep_interval=0.01)

    async def logged():
        scheduler = plugin.scheduler
        for number in range(2 * safety_module.MAX_IN_A_ROW):
            scheduler.log_event("all", {"action": "remove-worker"})
            scheduler.log_event("all", {"action": "remove-worker", "expected": f"text {number}"})
            scheduler.log_event("all", "remove-worker")
            scheduler.log_event("mine", {"action": Odd()})
            scheduler.log_event("mine", {"action": "closing-worker"})
            scheduler.log_event(next(iter(scheduler.workers)), {"action": "closing-worker", "reason": Odd()})
            scheduler.log_event("scheduler", {"action": "update-graph", "status": f"text {number}"})
            scheduler.log_event("scheduler", {"action": "update-graph", "status": ["a"]})
        await plugin.keeping.fresh()

    result, log = with_workload(plugin, logged)
    assert result == EXPECTED
    assert "failed" not in log
    labels = {point.attributes for each in plugin.last.metrics for point in each.points}
    assert not any("text" in str(value) for each in labels for value in each)


@gen_cluster(client=True, nthreads=[])
async def test_a_sweep_that_fails_leaves_the_snapshot_that_was_due_to_the_next_one(client, scheduler):
    """It was due again a whole interval later."""
    plugin = MeasuredPlugin(sweep_interval=3600.0)
    await plugin.add_to(scheduler)
    due = [True]
    plugin.keeping.wants_metrics = lambda last=False: last or (bool(due) and due.pop())
    sweep = plugin._bridge.sweep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dask_otel.spantree.lifecycle.SpanTree.advance", fail)
        with pytest.raises(Injected):
            await sweep.sweep()
    assert not plugin.keeping.snapshots
    await sweep.sweep()
    assert len(plugin.keeping.snapshots) == 1
    await plugin.before_close()
