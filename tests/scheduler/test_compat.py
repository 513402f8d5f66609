"""Fails, with the name of what changed, when a new ``distributed`` changes what the bridge rests on."""

from __future__ import annotations

import inspect
import re
from unittest.mock import patch

import pytest
from distributed import Client, Nanny, Scheduler, Worker, span, wait
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from distributed.utils_test import captured_logger, gen_cluster, gen_test, inc, slowinc
from support.clusters import finished
from support.memory import MemoryPlugin
from support.trees import forest

from dask_otel.scheduler import outcomes
from dask_otel.scheduler.compat import can_split, can_work, missing


class Recorder(SchedulerPlugin):
    """Keeps what Dask gives to a plugin."""

    def __init__(self):
        self.transitions, self.graphs, self.events, self.workers = [], [], [], []

    def transition(self, key, start, finish, *args, stimulus_id, **details):
        self.transitions.append((start, finish, stimulus_id, details))

    def update_graph(self, scheduler, **details):
        self.graphs.append(details)

    def log_event(self, topic, msg):
        self.events.append((topic, msg))

    def remove_worker(self, scheduler, worker, **details):
        self.workers.append(worker)


def fail(x):
    raise ValueError("bad")


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_the_shapes_of_what_dask_says(client, scheduler, a, b):
    recorder = Recorder()
    scheduler.add_plugin(recorder, name="recorder")
    messages, observed, heartbeats = [], [], []
    handler, extension = scheduler.stream_handlers["update-graph"], scheduler.extensions["spans"]
    observe, heartbeat = extension.observe_tasks, extension.heartbeat

    async def spy_on_graphs(**message):
        messages.append(message)
        return await handler(**message)

    def spy_on_tasks(tasks, **details):
        observed.append((type(tasks), [task.annotations for task in tasks], details))
        return observe(tasks, **details)

    def spy_on_heartbeats(worker, data):
        heartbeats.append((worker.address, data))
        return heartbeat(worker, data)

    scheduler.stream_handlers["update-graph"] = spy_on_graphs
    extension.observe_tasks, extension.heartbeat = spy_on_tasks, spy_on_heartbeats
    with span("a", "b") as span_id:
        good = client.submit(slowinc, 1, delay=0.01, key="good", workers=[a.address])
        bad = client.submit(fail, good, key="bad")
        poisoned = client.submit(inc, bad, key="poisoned")
        await wait([good, bad, poisoned])
    while not any(data for _, data in heartbeats):
        await a.heartbeat()
        await b.heartbeat()

    assert {"client", "keys", "annotations", "span_metadata"} <= set(messages[0])
    asked = messages[0]["annotations"]["span"]
    assert asked["name"] == ("a", "b")
    assert asked["ids"][-1] == span_id
    assert all(isinstance(id_, str) for id_ in asked["ids"])
    assert messages[0]["span_metadata"]["collections"] == [{"type": "Future"}]
    assert "good" in messages[0]["keys"]
    kind, annotations, details = observed[0]
    assert kind is list
    assert annotations[0]["span"] == asked
    assert set(details) == {"span_metadata", "code"}

    assert {"client", "tasks", "annotations", "stimulus_id"} <= set(recorder.graphs[0])
    (event,) = [m for t, m in recorder.events if t == "scheduler" and m.get("action") == "update-graph"][:1]
    assert event["status"] == "OK"
    assert event["stimulus_id"] == recorder.graphs[0]["stimulus_id"]
    assert event["metrics"]["duration_seconds"] > 0

    done = next(d for s, f, _, d in recorder.transitions if (s, f) == ("processing", "memory"))
    assert {"worker", "nbytes", "typename", "thread", "startstops"} <= set(done)
    assert {"action", "start", "stop"} <= set(done["startstops"][0])
    (stimulus, erred) = next((i, d) for s, f, i, d in recorder.transitions if (s, f) == ("processing", "erred"))
    assert {"worker", "exception_text", "traceback_text", "startstops", "thread"} <= set(erred)
    assert erred["exception_text"] == "ValueError('bad')"
    assert stimulus.startswith("task-erred-")
    assert ("released", "erred") in {(s, f) for s, f, _, _ in recorder.transitions}
    task = scheduler.tasks["bad"]
    assert task.exception_blame is task
    assert scheduler.tasks["poisoned"].exception_blame is task
    assert isinstance(task.run_id, int)
    group = scheduler.task_groups["good"]
    assert group.span_id == span_id
    assert set(group.states) >= {"processing", "queued", "no-worker", "waiting", "memory", "erred", "released"}

    keys = {key for _, data in heartbeats for key in data}
    assert keys
    for context, id_, prefix, activity, unit in keys:
        assert context in ("execute", "p2p")
        assert id_ == span_id
        assert prefix in ("good", "bad")
        assert isinstance(activity, str)
        assert unit in ("seconds", "bytes", "count")


#: The beginning of each stimulus that an outcome rests on, and the function of Dask that makes it.
STIMULI = {
    "cancel-key": Scheduler.stimulus_cancel,
    "client-restart": Client._restart,
    "client-restart-workers": Client._restart_workers,
    "task-erred": Worker.execute,
    "execute-unknown-error": Worker.execute,
    "stimulus-retry": Scheduler.stimulus_retry,
    "update-graph": Scheduler.update_graph,
    "handle-worker-cleanup": Scheduler.handle_worker,
    "check-worker-ttl": Scheduler.check_worker_ttl,
    "retire-workers": Scheduler.retire_workers,
    "cancelled-by-worker-close": Worker.execute,
    "worker-close": Worker.close_gracefully,
    "nanny-close": Nanny._unregister,
    "worker-send-comm-fail": Scheduler.worker_send,
    "send-all-comm-fail": Scheduler.send_all,
}


@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_begin_as_they_did(stimulus):
    where = STIMULI[stimulus]
    source = inspect.getsource(where)
    found = re.search("f[\"']" + stimulus + "-[{g]", source)
    assert found, f"{where.__qualname__} no longer makes a stimulus {stimulus!r}"


def test_every_stimulus_that_an_outcome_rests_on_is_looked_for():
    assert {*outcomes.CANCELLED, *outcomes.RETRIED, *outcomes.ASKED_FOR, *outcomes.LOST} == set(STIMULI)


@pytest.mark.parametrize(
    ("stimulus", "where"),
    [
        ("client-releases-keys", Scheduler.client_releases_keys),
        ("remove-client", Scheduler.remove_client),
        ("check-no-workers-timeout", Scheduler._check_no_workers),
    ],
)
def test_stimuli_of_which_no_outcome_is_made(stimulus, where):
    """Such a release is ``abandoned``, or ``upstream_failed``: by the state of the task."""
    assert stimulus in inspect.getsource(where), f"{where.__qualname__} no longer makes a stimulus {stimulus!r}"


@gen_cluster(nthreads=[])
async def test_nothing_is_missing(scheduler):
    assert missing(scheduler) == []


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_distributed_that_lacks_something_is_left_alone(client, scheduler, worker):
    plugin = MemoryPlugin()
    handler = scheduler.stream_handlers["update-graph"]
    observe = SpansSchedulerExtension.observe_tasks
    del SpansSchedulerExtension.observe_tasks
    try:
        with captured_logger("distributed.dask_otel") as log:
            await plugin.add_to(scheduler)
    finally:
        SpansSchedulerExtension.observe_tasks = observe
    assert "dask-otel is off: distributed" in log.getvalue()
    assert "lacks distributed.spans.SpansSchedulerExtension.observe_tasks." in log.getvalue()
    assert log.getvalue().count("\n") == 1
    assert scheduler.stream_handlers["update-graph"] is handler
    assert "heartbeat" not in vars(scheduler.extensions["spans"])
    assert await client.submit(inc, 1) == 2


@gen_test()
async def test_a_person_who_chose_the_extensions_without_spans_is_told_so():
    chosen = {name: each for name, each in DEFAULT_EXTENSIONS.items() if name != "spans"}
    async with Scheduler(extensions=chosen, port=0, dashboard_address="127.0.0.1:0") as scheduler:
        with captured_logger("distributed.dask_otel") as log:
            await MemoryPlugin().add_to(scheduler)
    assert log.getvalue() == (
        "dask-otel is off: this scheduler was made with extensions= that leave out 'spans', where Dask keeps its "
        'spans. Add "spans": distributed.spans.SpansSchedulerExtension to them.\n'
    )
    # What it advises works.
    chosen["spans"] = SpansSchedulerExtension
    async with Scheduler(extensions=chosen, port=0, dashboard_address="127.0.0.1:0") as scheduler:
        assert missing(scheduler) == []


@gen_cluster(nthreads=[])
async def test_a_distributed_without_spans_is_another_matter(scheduler):
    with (
        patch.dict(DEFAULT_EXTENSIONS),
        patch.dict(scheduler.extensions),
        captured_logger("distributed.dask_otel") as log,
    ):
        del DEFAULT_EXTENSIONS["spans"], scheduler.extensions["spans"]
        assert not can_work(scheduler)
    assert "lacks the scheduler extension 'spans'. Upgrade dask-otel" in log.getvalue()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_distributed_whose_groups_cannot_be_split(client, scheduler, worker):
    """The rest of the bridge does without; tasks count where Dask puts them."""
    plugin = MemoryPlugin()
    lacking = {"distributed.scheduler.Scheduler": ("is_rootish", "renamed")}
    with pytest.MonkeyPatch.context() as patch, captured_logger("distributed.dask_otel") as log:
        patch.setattr("dask_otel.scheduler.compat.NEEDED_TO_SPLIT", lacking)
        await plugin.add_to(scheduler)
    assert "lacks distributed.scheduler.Scheduler.renamed." in log.getvalue()
    assert log.getvalue().count("\n") == 1
    assert "new_task" not in vars(scheduler)
    futures = []
    for name in ("alice", "bob"):
        with span(name):
            futures.append(client.submit(inc, 1, pure=False))
            await wait(futures)
    assert set(scheduler.task_groups) == {"inc"}
    assert forest(await finished(plugin), "dask.task.count", "dask.elsewhere.completed") == [
        "alice [span] task.count=2",
        "  inc [group] task.count=2",
        "bob [span] task.count=0 elsewhere.completed=1 counted_in -> alice in another trace",
    ]


@gen_cluster(nthreads=[])
async def test_what_splitting_needs_is_there(scheduler):
    assert can_split()
