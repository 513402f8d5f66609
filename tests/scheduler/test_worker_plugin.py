"""The scheduler gives its workers the plugin, and workers that cannot use it log one line."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from operator import neg

import dask
import pytest
from distributed import Worker, span
from distributed.core import CommClosedError
from distributed.utils_test import gen_cluster, inc
from support.both import shape
from support.clusters import until
from support.inside import PROVIDER, spans_of
from support.memory import MemoryPlugin
from support.processes import LOOPBACK, Process, cluster
from support.virtual_envs import PACKAGE, other_python, virtual_env

from dask_otel import OTelPlugin, __version__
from dask_otel.cli.receiver import Receiver
from dask_otel.worker.plugin import OTelWorkerPlugin

#: What a log has above INFO, but for what Dask says of versions that differ.
LOUD = re.compile("(?:WARNING|ERROR|CRITICAL) - (?!Mismatched versions found).*|Traceback .*")
WHY = re.compile("(?:INFO|WARNING) - dask-otel is off in this worker: (.*)")


def has_it(worker):
    return isinstance(worker.plugins.get("dask-otel"), OTelWorkerPlugin) and "execute" in vars(worker)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_given_and_taken_back(client, scheduler, worker):
    plugin = MemoryPlugin(gives_worker_plugin=True)
    await plugin.add_to(scheduler)
    await until(lambda: has_it(worker))
    async with Worker(scheduler.address, nthreads=1) as later:
        assert has_it(later)
        assert await client.submit(inc, 1) == 2
        await client.unregister_scheduler_plugin("dask-otel")
        await until(lambda: not has_it(worker) and not has_it(later))
        assert "execute" not in vars(worker)
        assert "dask-otel" not in scheduler.worker_plugins
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_what_the_scheduler_does_not_capture(client, scheduler, worker):
    """Workers leave it out, too; and what their own settings exclude."""
    plugin = MemoryPlugin(gives_worker_plugin=True, hidden=("keys", "tags"))
    await plugin.add_to(scheduler)
    with dask.config.set({"otel.capture.message": False}):
        async with Worker(scheduler.address, nthreads=1) as later:
            capture = spans_of(later)._redactor.capture
    left_out = {name for name, is_captured in vars(capture).items() if not is_captured}
    assert left_out == {"keys", "tags", "message"}
    await plugin.before_close()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_one_that_a_client_has_registered_since_stays(client, scheduler, worker):
    plugin = MemoryPlugin(gives_worker_plugin=True)
    await plugin.add_to(scheduler)
    await until(lambda: has_it(worker))
    await client.register_plugin(OTelWorkerPlugin())
    await client.unregister_scheduler_plugin("dask-otel")
    await until(lambda: plugin._bridge is None)
    assert has_it(worker)
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_one_that_a_client_has_registered_before_stays(client, scheduler, worker):
    await client.register_plugin(OTelWorkerPlugin())
    its = scheduler.worker_plugins["dask-otel"]
    plugin = MemoryPlugin(gives_worker_plugin=True)
    await plugin.add_to(scheduler)
    await plugin._bridge._handing_out
    assert scheduler.worker_plugins["dask-otel"] is its
    await client.unregister_scheduler_plugin("dask-otel")
    await until(lambda: plugin._bridge is None)
    assert has_it(worker)
    assert not plugin.safety.failures


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_worker_that_leaves_while_it_is_given(client, scheduler, worker, monkeypatch):
    plugin = MemoryPlugin(gives_worker_plugin=True)

    async def broadcast(**message):
        raise CommClosedError("in test")

    monkeypatch.setattr(scheduler, "broadcast", broadcast)
    await plugin.add_to(scheduler)
    await plugin._bridge._handing_out
    assert not plugin.safety.failures
    await plugin.before_close()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_not_given(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    await client.submit(inc, 1)
    assert "dask-otel" not in {*worker.plugins, *scheduler.worker_plugins}
    await plugin.before_close()


def version(text):
    """Files of the package with another version."""
    ours = (PACKAGE / "__init__.py").read_text()
    return {"dask_otel/__init__.py": ours.replace(f'__version__ = "{__version__}"', f'__version__ = "{text}"')}


#: Environments of workers, and why dask-otel is off in them.
ENVIRONMENTS = {
    "complete": ({}, None),
    "no dask-otel": ({"package": False}, "cannot import it (ModuleNotFoundError: No module named 'dask_otel')"),
    "older dask-otel": ({"files": version("0.0.1")}, f"it has version 0.0.1, and its scheduler {__version__}"),
    "newer dask-otel": ({"files": version("99.0")}, f"it has version 99.0, and its scheduler {__version__}"),
    "broken dask-otel": (
        {"files": {"dask_otel/worker/execution.py": "1 / 0"}},
        "cannot import it (ZeroDivisionError: division by zero)",
    ),
    "no API of OpenTelemetry": (
        {"without": ["opentelemetry-api"]},
        "cannot import it (ModuleNotFoundError: No module named 'opentelemetry.trace')",
    ),
    "broken API of OpenTelemetry": (
        {"files": {"opentelemetry/trace/__init__.py": "raise RuntimeError('broken\\nin two lines')"}},
        "cannot import it (RuntimeError: broken in two lines)",
    ),
    # The context of tasks needs the API only.
    "no SDK of OpenTelemetry": ({"without": ["opentelemetry-sdk"]}, None),
}


@pytest.mark.slow
def test_workers_with_other_environments(tmp_path):
    check_workers(tmp_path, ENVIRONMENTS)


@pytest.mark.slow
def test_workers_with_another_python(tmp_path):
    python = other_python()
    names = ("complete", "no dask-otel", "newer dask-otel", "broken API of OpenTelemetry")
    check_workers(tmp_path, {name: (ENVIRONMENTS[name][0] | {"like": python}, ENVIRONMENTS[name][1]) for name in names})


#: A person's code that uses OpenTelemetry. Functions of a test are sent as byte code, which another Python cannot run.
GET = "__import__('opentelemetry.trace').trace.get_tracer('person').start_span('GET').end()"


def check_workers(tmp_path, environments):
    """Give the plugin to real workers and take it back, twice: they come later, and they are there."""
    provider = tmp_path / "provider.py"
    provider.write_text(PROVIDER)
    with Receiver() as receiver, ExitStack() as stack:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"], "OTEL_METRICS_EXPORTER": "none"}
        processes = stack.enter_context(cluster(tmp_path, env=env, workers=0))
        client, workers = processes.client, {}
        for name, (how, _) in environments.items():
            options = ("--preload", str(provider)) if name == "complete" else ()
            workers[name] = Process(
                "worker", processes.address, "--name", name, "--nthreads", "1", "--no-nanny", *options, *LOOPBACK,
                folder=tmp_path, env=env | {"OTEL_SERVICE_NAME": name}, python=virtual_env(tmp_path / name, **how),
            )  # fmt: skip
            stack.callback(workers[name].stop_or_kill)

        def logged(text, times):
            for worker in workers.values():
                worker.wait_for(f"(?s)({text}.*){{{times}}}")

        def run(title):
            """Run tasks on each worker, and one that uses OpenTelemetry on each worker with dask-otel."""
            with span(title):
                negative = [
                    client.submit(neg, number, key=(f"negative {title}", name, number), workers=[name])
                    for name in workers
                    for number in range(5)
                ]
                read = [
                    client.submit(eval, GET, key=(f"read {title}", name), workers=[name])
                    for name, (_, why) in environments.items()
                    if why is None
                ]
                assert client.gather(negative) == [-number for number in range(5)] * len(workers)
                assert client.gather(read) == [None] * len(read)

        logged("Starting Worker plugin dask-otel", 1)
        run("first")
        client.unregister_scheduler_plugin("dask-otel")
        logged("Removing Worker plugin dask-otel", 1)
        run("without")
        client.register_plugin(OTelPlugin())
        logged("Starting Worker plugin dask-otel", 2)
        run("second")
        client.unregister_scheduler_plugin("dask-otel")
        logged("Removing Worker plugin dask-otel", 2)
        run("without again")
        sent = {"first": 1, "second": 1, "GET": 4}
        spans = receiver.wait(lambda spans: sent.items() <= Counter(each.name for each in spans).items(), timeout=60)
        logs = {name: worker.log for name, worker in workers.items()}
        scheduler_log = processes.scheduler.log
    assert {name: WHY.findall(log) for name, log in logs.items()} == {
        name: [] if why is None else [why] * 2 for name, (_, why) in environments.items()
    }
    assert {name: len(LOUD.findall(log)) for name, log in logs.items()} == {
        name: 0 if why is None or "No module named 'dask_otel'" in why else 2 for name, (_, why) in environments.items()
    }
    assert not LOUD.findall(scheduler_log)
    assert shape(spans, "dask.worker.name", "dask.worker.count") == [
        f"first [span] dask.worker.count={len(workers)}",
        f"  negative first [group] dask.worker.count={len(workers)}",
        f"  read first [group] dask.worker.count={sum(why is None for _, why in environments.values())}",
        "    ~read first [task] dask.worker.name=complete",
        "      ~GET",
        "~GET",
        f"second [span] dask.worker.count={len(workers)}",
        f"  negative second [group] dask.worker.count={len(workers)}",
        f"  read second [group] dask.worker.count={sum(why is None for _, why in environments.values())}",
        "    ~read second [task] dask.worker.name=complete",
        "      ~GET",
        "~GET",
    ]
