"""Where code is, as it can ask inside tasks and outside: the filter for log records, ``trace_id`` and ``trace_url``."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import re
import subprocess
import sys
import threading
from pathlib import Path

import dask
import pytest
from distributed import span
from distributed.utils_test import gen_cluster
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from support.environment import environment
from support.inside import Person, ended, shared, spanned

import dask_otel
from dask_otel import current
from dask_otel.identity import group_id, trace_id


def filtered(**already):
    """What a filter puts on a record, here and now."""
    record = logging.makeLogRecord(already)
    assert dask_otel.TaskFilter().filter(record) is True
    return record.dask_key, record.trace_id, record.span_id


def logs(x):
    return filtered()


async def logs_later(x):
    await asyncio.sleep(0)
    return filtered()


def logs_below(x):
    """Before its span is made, in a span of the task's own, and after."""
    before = filtered()
    with trace.get_tracer("person").start_as_current_span("GET") as own:
        inside = filtered()
    ids = own.get_span_context()
    return before, inside, (f"{ids.trace_id:032x}", f"{ids.span_id:016x}"), filtered()


def asks(x):
    ids = dask_otel.trace_id(), dask_otel.trace_url()
    with span("nested"):
        return *ids, dask_otel.trace_id()


def asks_and_uses(x):
    made = trace.get_current_span().get_span_context().trace_id
    return f"{made:032x}", dask_otel.trace_id(), dask_otel.trace_url()


def group_of(root, group):
    return f"{group_id(root, group, 0):016x}"


@spanned()
async def test_the_filter_makes_no_span(person, client, scheduler, worker):
    with span("etl") as root:
        in_thread = client.submit(logs, 1, key="read-1")
        in_loop = client.submit(logs_later, 1, key="wait-1")
    assert await in_thread == ("read-1", dask_otel.trace_id(root), group_of(root, "read"))
    assert await in_loop == ("wait-1", dask_otel.trace_id(root), group_of(root, "wait"))
    await ended(worker)
    assert person.spans == []


@spanned()
async def test_the_filter_has_the_ids_of_the_current_span(person, client, scheduler, worker):
    with span("etl") as root:
        future = client.submit(logs_below, 1, key="read-1")
    before, inside, own, after = await future
    await ended(worker)
    (task,) = person.tasks()
    assert before == ("read-1", dask_otel.trace_id(root), group_of(root, "read"))
    assert inside == ("read-1", *own)
    assert own[0] == task.trace_id
    assert after == ("read-1", task.trace_id, task.span_id)


@spanned(make=lambda: None)
async def test_the_filter_in_a_process_without_a_provider(nobody, client, scheduler, worker):
    with span("etl") as root:
        assert await client.submit(logs, 1, key="read-1") == (
            "read-1", dask_otel.trace_id(root), group_of(root, "read"),
        )  # fmt: skip


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_the_filter_on_a_worker_without_the_plugin(client, scheduler, worker):
    with span("etl") as root:
        assert await client.submit(logs, 1, key="read-1") == ("read-1", dask_otel.trace_id(root), "-")
    assert await client.submit(logs, 2, key="alone-2") == ("alone-2", "-", "-")


def test_the_filter_outside_of_tasks():
    assert filtered() == ("-", "-", "-")
    with dask.annotate(span={"name": ("etl",), "ids": ("root",)}):
        assert filtered() == ("-", dask_otel.trace_id("root"), "-")


def test_what_a_record_has_stays():
    assert filtered(trace_id="mine") == ("-", "mine", "-")


@pytest.mark.parametrize("fault", ["current_run", "get_current_span"])
def test_a_fault_in_the_filter(monkeypatch, fault):
    def broken():
        raise RuntimeError("injected")

    monkeypatch.setattr(current, fault, broken)
    assert filtered() == ("-", "-", "-")


def test_the_filter_in_a_logging_configuration(capsys):
    log = logging.getLogger("test_current")
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "incremental": False,
                "disable_existing_loggers": False,
                "filters": {"task": {"()": "dask_otel.TaskFilter"}},
                "formatters": {"task": {"format": "%(dask_key)s %(trace_id)s %(span_id)s %(message)s"}},
                "handlers": {"task": {"class": "logging.StreamHandler", "filters": ["task"], "formatter": "task"}},
                "loggers": {"test_current": {"handlers": ["task"], "propagate": False}},
            }
        )
        log.warning("here")
    finally:
        log.handlers.clear()
        log.propagate = True
    assert capsys.readouterr().err == "- - - here\n"


@pytest.mark.slow
def test_the_example_of_a_logging_configuration():
    """Dask reads it while distributed is being imported."""
    example = Path(__file__).parents[1] / "examples/logging.yaml"
    code = "import distributed, logging; logging.getLogger('distributed').warning('here')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({"DASK_CONFIG": str(example)}), capture_output=True, text=True
    )
    assert re.fullmatch(r"\S+ \S+ - distributed - WARNING - \[- -\] here\n", done.stderr)


@pytest.mark.slow
def test_the_example_without_the_package(tmp_path):
    """What the example warns of."""
    example = Path(__file__).parents[1] / "examples/logging.yaml"
    config = tmp_path / "logging.yaml"
    config.write_text(example.read_text(encoding="utf-8").replace("dask_otel.", "no_such_package."))
    done = subprocess.run(
        [sys.executable, "-c", "import distributed"],
        env=environment({"DASK_CONFIG": str(config)}), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("ValueError: Unable to configure filter 'task'")


def leaves_a_thread(x):
    def wait():
        shared["over"].wait(30)
        shared["later"] = filtered(), dask_otel.trace_id()

    import contextvars

    shared["thread"] = threading.Thread(target=contextvars.copy_context().run, args=(wait,))
    shared["thread"].start()


@spanned()
async def test_after_the_run(person, client, scheduler, worker):
    shared["over"] = threading.Event()
    with span("etl") as root:
        await client.submit(leaves_a_thread, 1, key="read-1")
    shared["over"].set()
    await asyncio.to_thread(shared["thread"].join, 30)
    assert shared.pop("later") == (
        ("read-1", dask_otel.trace_id(root), group_of(root, "read")),
        dask_otel.trace_id(root),
    )
    await ended(worker)
    assert person.spans == []


URL = {"otel.trace-url": "http://jaeger/trace/{trace_id}"}


@spanned(config=URL)
async def test_trace_id_and_url_of_a_task_make_no_span(person, client, scheduler, worker):
    with span("etl") as root, span("load"):
        future = client.submit(asks, 1, key="read-1")
    of_root = dask_otel.trace_id(root)
    assert await future == (of_root, f"http://jaeger/trace/{of_root}", of_root)
    await ended(worker)
    assert person.spans == []


@spanned(config=URL)
async def test_trace_id_and_url_of_a_task_whose_span_is_made(person, client, scheduler, worker):
    with span("etl") as root:
        future = client.submit(asks_and_uses, 1, key="read-1")
    of_root = dask_otel.trace_id(root)
    assert await future == (of_root, of_root, f"http://jaeger/trace/{of_root}")
    await ended(worker)
    assert [each.trace_id for each in person.spans] == [of_root]


@spanned(make=lambda: Person(sampler=ALWAYS_OFF), config=URL)
async def test_trace_id_and_url_of_a_task_that_is_not_sampled(person, client, scheduler, worker):
    with span("etl") as root:
        future = client.submit(asks_and_uses, 1, key="read-1")
    of_root = dask_otel.trace_id(root)
    assert await future == (of_root, of_root, f"http://jaeger/trace/{of_root}")
    await ended(worker)
    assert person.spans == []


@spanned(config=URL)
async def test_a_caller_that_did_not_sample(person, client, scheduler, worker):
    root = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"
    with dask.annotate(span={"name": ("etl",), "ids": (root,)}):
        future = client.submit(asks_and_uses, 1, key="read-1")
    caller = root.split("-")[1]
    assert await future == (caller, caller, f"http://jaeger/trace/{caller}")
    await ended(worker)
    assert person.spans == []


@spanned(config=URL)
async def test_trace_id_and_url_of_a_task_outside_of_spans(person, client, scheduler, worker):
    future = client.submit(asks, 1, key="read-1")
    here, url, _ = await future
    assert here == f"{trace_id(scheduler.task_groups['read'].span_id):032x}"
    assert url == f"http://jaeger/trace/{here}"


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], config=URL)
async def test_trace_id_and_url_on_a_worker_without_the_plugin(client, scheduler, worker):
    with span("etl") as root:
        future = client.submit(asks, 1, key="read-1")
    of_root = dask_otel.trace_id(root)
    assert await future == (of_root, f"http://jaeger/trace/{of_root}", of_root)
    with pytest.raises(ValueError, match="no span here"):
        await client.submit(dask_otel.trace_id)
    assert await client.submit(dask_otel.trace_url) is None
