"""The scheduler gives its workers the plugin, and workers that cannot use it log one line."""

from __future__ import annotations

import re

import pytest
from distributed import Worker
from distributed.utils_test import gen_cluster, inc
from support.clusters import until
from support.memory import MemoryPlugin
from support.processes import LOOPBACK, Process, cluster, our_errors

from dask_otel.worker.plugin import OTelWorkerPlugin


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
async def test_not_given(client, scheduler, worker):
    plugin = MemoryPlugin()
    await plugin.add_to(scheduler)
    await client.submit(inc, 1)
    assert "dask-otel" not in {*worker.plugins, *scheduler.worker_plugins}
    await plugin.before_close()


#: Files that come first on the path of the workers.
WORKERS = {
    "without the package": (
        {"dask_otel.py": "raise ModuleNotFoundError(\"No module named 'dask_otel'\")"},
        "dask-otel is off in this worker: cannot import it (ModuleNotFoundError: No module named 'dask_otel')",
    ),
    "with an older one": (
        {"dask_otel.py": "__version__ = '0.0.1'"},
        "dask-otel is off in this worker: it has version 0.0.1, and its scheduler",
    ),
    "with a broken one": (
        {"dask_otel.py": "1 / 0"},
        "dask-otel is off in this worker: cannot import it (ZeroDivisionError: division by zero)",
    ),
    "with a broken OpenTelemetry": (
        {"opentelemetry/__init__.py": "raise ImportError('broken')"},
        "dask-otel is off: cannot import",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", WORKERS)
def test_workers_that_cannot_use_it(tmp_path, which):
    files, line = WORKERS[which]
    path = tmp_path / "first"
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    env = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    with cluster(tmp_path, env=env, workers=0) as processes:
        worker = Process(
            "worker", processes.address, "--no-nanny", *LOOPBACK, folder=tmp_path, env={"PYTHONPATH": str(path)}
        )
        try:
            processes.client.wait_for_workers(1)
            assert processes.client.gather(processes.client.map(inc, range(10))) == list(range(1, 11))
        finally:
            worker.stop_or_kill()
        scheduler_log = processes.scheduler.log
    assert not our_errors(scheduler_log)
    assert "Traceback" not in worker.log
    above_info = [each for each in worker.log.splitlines() if re.search(" - (WARNING|ERROR|CRITICAL) - ", each)]
    assert [each for each in above_info if "otel" in each] == [each for each in above_info if line in each], worker.log
    assert sum(line in each for each in above_info) == 1
