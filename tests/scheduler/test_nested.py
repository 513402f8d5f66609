"""What tasks submit: in the Dask span of the task, with its context, below its span; in whole traces."""

from __future__ import annotations

import threading
import warnings

import dask
import dask.bag
import pytest
from distributed import Client, Event, get_client, span
from distributed import worker_client as open_worker_client
from distributed.utils_test import gen_cluster
from opentelemetry import baggage, trace
from support.both import both, everything, shape
from support.clusters import until
from support.inside import shared, spanned

from dask_otel.client import submitting
from dask_otel.client.submitting import Addition, add_to_submissions
from dask_otel.worker.plugin import OTelWorkerPlugin


def child(name):
    with trace.get_tracer("person").start_as_current_span(name):
        pass


def leaf(x=0):
    child("inner")
    return x


def by_submit():
    child("before")
    return get_client().submit(leaf, 1, key="leaf").result()


def by_worker_client():
    child("before")
    with open_worker_client() as client:
        return client.submit(leaf, 1, key="leaf").result()


def by_map():
    child("before")
    return sum(get_client().gather(get_client().map(leaf, [1], key="leaf")))


def by_delayed():
    child("before")
    return dask.delayed(leaf)(1, dask_key_name="leaf").compute()


def by_persist():
    child("before")
    (made,) = dask.persist(dask.delayed(leaf)(1, dask_key_name="leaf"))
    return made.compute()


def by_get():
    child("before")
    return get_client().get({"leaf": (leaf, 1)}, "leaf")


async def by_coroutine():
    child("before")
    return await get_client().submit(leaf, 1, key="leaf")


WAYS = [by_submit, by_worker_client, by_map, by_delayed, by_persist, by_get, by_coroutine]


@pytest.mark.parametrize("outer", WAYS, ids=[outer.__name__ for outer in WAYS])
def test_below_the_task(outer):
    @both()
    async def run(person, plugin, client, scheduler, worker):
        with span("etl"):
            future = client.submit(outer, key="outer")
        assert await future == 1
        assert [each.name for each in scheduler.extensions["spans"].spans.values()] == [("etl",)]
        assert shape(await everything(person, plugin, worker), "dask.task.count") == [
            "etl [span] dask.task.count=2",
            "  leaf [group] dask.task.count=1",
            "  outer [group] dask.task.count=1",
            "    ~outer [task]",
            "      ~before",
            "      ~leaf [task]",
            "        ~inner",
        ]

    run()


def outermost():
    return get_client().submit(by_submit, key="middle").result()


@both(cluster={"nthreads": [("127.0.0.1", 4)]})
async def test_a_task_without_a_span_passes_the_context_on(person, plugin, client, scheduler, worker):
    """What it submits is below its group; and one more level."""
    seen = []
    shared["seen"] = seen

    def last():
        from support.inside import shared

        shared["seen"].append((dict(baggage.get_all()), trace.get_current_span().get_span_context().trace_state))

    def middle():
        child("inner")
        return get_client().submit(last, key="last").result()

    carrier = {"traceparent": f"00-{7:032x}-{8:016x}-01", "tracestate": "a=1", "baggage": "user=Alice"}
    with span("etl"), dask.annotate(otel=carrier):
        await client.submit(lambda: get_client().submit(middle, key="middle").result(), key="outer")
    assert seen == [({"user": "Alice"}, {})]
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  last [group]",
        "  middle [group]",
        "    ~middle [task]",
        "      ~inner",
        "      ~last [task]",
        "  outer [group]",
    ]
    assert {each.name for each in person.tasks()} == {"middle", "last"}


@both()
async def test_a_dask_span_that_a_task_opens(person, plugin, client, scheduler, worker):
    """Below the task's Dask span in the same trace; a root of its own, if the task was requested outside of any."""

    def outer():
        child("before")
        with span("part"):
            return get_client().submit(leaf, pure=False).result()

    with span("etl"):
        await client.submit(outer, key="first")
    await client.submit(outer, key="second")
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  part [span]",
        "    leaf [group]",
        "  first [group]",
        "    ~first [task]",
        "      ~before",
        "      ~leaf [task]",
        "        ~inner",
        "default: second [span]",
        "  second [group]",
        "    ~second [task]",
        "      ~before",
        "part [span]",
        "  leaf [group]",
        "    ~leaf [task]",
        "      ~inner",
    ]


@both(cluster={"nthreads": [("127.0.0.1", 4)]})
async def test_what_the_scheduler_wrote_for_the_task_is_not_passed_on(person, plugin, client, scheduler, worker):
    def outer(key):
        return get_client().submit(leaf, key=key).result()

    futures = []
    for epoch in range(2):
        with span(f"epoch {epoch}"):
            futures.append(client.submit(outer, f"leaf_{'ab'[epoch]}", key=f"fit-{epoch}"))
    await client.gather(futures)
    assert scheduler.tasks["fit-1"].annotations["otel"] == {"dask-group": "fit @ epoch 1"}
    assert shape(await everything(person, plugin, worker), "dask.group.name") == [
        "epoch 0 [span]",
        "  fit [group] dask.group.name=fit",
        "  leaf_a [group] dask.group.name=leaf_a",
        "    ~leaf_a [task] dask.group.name=leaf_a",
        "      ~inner",
        "epoch 1 [span]",
        "  fit [group] dask.group.name=fit @ epoch 1",
        "  leaf_b [group] dask.group.name=leaf_b",
        "    ~leaf_b [task] dask.group.name=leaf_b",
        "      ~inner",
    ]


@both(max_segment=1.0, idle_timeout=0.2)
async def test_a_trace_that_was_full_when_the_task_submitted(person, plugin, client, scheduler, worker):
    """What it submits is in the trace of its Dask span's later segment, not in that of the task's span."""

    def outer():
        child("before")
        Event("gate").wait()
        return get_client().submit(leaf, key="leaf").result()

    future = client.submit(outer, key="outer")
    await until(lambda: plugin.exporter.spans())
    await Event("gate", client=client).set()
    await future
    spans = await everything(person, plugin, worker)
    tasks = {each.name: each for each in person.tasks()}
    (parent,) = [each for each in spans if each.span_id == tasks["leaf"].parent_id]
    assert parent.attributes["dask.kind"] == "span"
    assert parent.trace_id == tasks["leaf"].trace_id != tasks["outer"].trace_id


@both()
async def test_what_a_call_to_an_actor_submits(person, plugin, client, scheduler, worker):
    class Loader:
        def load(self):
            child("before")
            return get_client().submit(leaf, 1, key="leaf").result()

        async def load_async(self):
            return await get_client().submit(leaf, 2, key="leaf_async")

    with span("etl"):
        actor = await client.submit(Loader, actor=True, key="loader")
    assert await actor.load() == 1
    assert await actor.load_async() == 2
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  leaf [group]",
        "  leaf_async [group]",
        "    ~leaf_async [task]",
        "      ~inner",
        "  loader [group]",
        "    ~loader.load [actor]",
        "      ~before",
        "      ~leaf [task]",
        "        ~inner",
    ]


@both()
async def test_each_run_of_a_retried_task_has_what_it_submitted(person, plugin, client, scheduler, worker):
    def outer():
        from support.inside import shared

        child("before")
        got = get_client().submit(leaf, key=f"leaf-{len(shared['runs'])}").result()
        shared["runs"].append(got)
        if len(shared["runs"]) == 1:
            raise ValueError("once")

    shared["runs"] = []
    with span("etl"):
        await client.submit(outer, key="outer", retries=1)
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  leaf [group]",
        "  outer [group]",
        *["    ~outer [task] Error: ValueError", "      ~before", "      ~leaf [task]", "        ~inner"],
        *["    ~outer [task]", "      ~before", "      ~leaf [task]", "        ~inner"],
    ]


@both()
async def test_a_thread_that_goes_on_after_the_task(person, plugin, client, scheduler, worker):
    """With its context, what it submits is below the span that has ended."""

    def outer():
        import contextvars

        from support.inside import shared

        child("before")
        nested, context = get_client(), contextvars.copy_context()

        def later():
            Event("gate").wait()
            shared["later"] = nested.submit(leaf, key="leaf")
            shared["later"].result()

        shared["thread"] = threading.Thread(target=context.run, args=(later,))
        shared["thread"].start()

    with span("etl"):
        await client.submit(outer, key="outer")
    await Event("gate", client=client).set()
    await until(lambda: not shared["thread"].is_alive())
    shared.clear()
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  leaf [group]",
        "  outer [group]",
        "    ~outer [task]",
        "      ~before",
        "      ~leaf [task]",
        "        ~inner",
    ]


@both()
async def test_a_thread_with_opentelemetrys_context_only(person, plugin, client, scheduler, worker):
    """As in threads that OpenTelemetry instruments: Dask's own part of the context, with the Dask span, is missing."""

    def outer():
        from opentelemetry import context

        nested, current = get_client(), context.get_current()
        child("before")

        def inner():
            token = context.attach(current)
            nested.submit(leaf, key="leaf").result()
            context.detach(token)

        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()

    with span("etl"):
        await client.submit(outer, key="outer")
    assert shape(await everything(person, plugin, worker)) == [
        "etl [span]",
        "  outer [group]",
        "    ~outer [task]",
        "      ~before",
        "default: leaf [span]",
        "  leaf [group]",
        "    ~leaf [task]",
        "      ~inner",
    ]


# The client's method


@spanned()
async def test_dask_sees_the_same_graph(person, client, scheduler, worker):
    """No warning, the same keys; and the annotation is not open in the task's own code."""
    pandas = pytest.importorskip("pandas")
    dataframe = pytest.importorskip("dask.dataframe")

    def outer():
        child("before")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Dask warns of its own annotation.
            warnings.filterwarnings("ignore", message=r"Dask annotations \{'span': \{[^}]*\}\} detected")
            frame = dataframe.from_pandas(pandas.DataFrame({"x": range(10)}), npartitions=2)
            total = frame[frame.x > 3].x.sum()
            assert total.compute() == 39
            bag = dask.bag.from_sequence(range(4), npartitions=2).map(leaf)
            return sorted(map(str, total.__dask_keys__())), bag.compute(), dask.get_annotations()

    carrier = {"baggage": "a=b"}
    with span("etl"), dask.annotate(otel=carrier):
        keys, numbers, annotations = await client.submit(outer, key="outer")
    assert numbers == [0, 1, 2, 3]
    assert annotations.keys() == {"span"}
    frame = dataframe.from_pandas(pandas.DataFrame({"x": range(10)}), npartitions=2)
    assert keys == sorted(map(str, frame[frame.x > 3].x.sum().__dask_keys__()))


@spanned(config={"distributed.diagnostics.computations.nframes": 1})
async def test_dask_sees_the_users_line_of_code(person, client, scheduler, worker):
    await client.submit(by_submit)
    codes = {frames[-1].code.partition("(")[0] for each in scheduler.computations for frames in each.code}
    assert codes == {"def by_submit", "@spanned"}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_the_client_is_given_back(client, scheduler, a, b):
    """Once the last worker of the process has let go."""
    original = Client._graph_to_futures
    for worker in (a, b):
        await worker.plugin_add(OTelWorkerPlugin())
    wrapped = Client._graph_to_futures
    assert wrapped is not original
    await a.plugin_remove("dask-otel")
    assert Client._graph_to_futures is wrapped
    await b.plugin_remove("dask-otel")
    assert Client._graph_to_futures is original
    assert not submitting._sources


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_source_that_fails(client, scheduler, worker, caplog):
    def source(client, opened):
        raise RuntimeError("no")

    undo = add_to_submissions(source)
    try:
        assert await client.submit(leaf, 1) == 1
    finally:
        undo()
    assert "dask-otel failed in its caller (submission)" in caplog.text


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_an_annotation_that_is_open_has_priority(client, scheduler, worker):
    undo = add_to_submissions(lambda client, opened: Addition({"otel": {"a": "b"}}))
    try:
        first = client.submit(leaf, key="first")
        with dask.annotate(otel={"c": "d"}):
            second = client.submit(leaf, key="second")
        await client.gather([first, second])
    finally:
        undo()
    third = client.submit(leaf, key="third")
    await third
    found = [scheduler.tasks[key].annotations.get("otel") for key in ("first", "second", "third")]
    assert found == [{"a": "b"}, {"c": "d"}, None]
