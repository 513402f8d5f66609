"""What starting the bridge does to a scheduler: as little as can be, and not on its event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from distributed.utils_test import gen_cluster, inc
from support.environment import environment
from support.memory import MemoryPlugin

pytestmark = pytest.mark.slow

#: Starts a scheduler with the bridge; prints what was imported, and in which thread, as "name thread".
STARTS = """
import asyncio, importlib.abc, sys, threading
import dask, distributed

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        thread = "main" if threading.current_thread() is threading.main_thread() else "other"
        print(name, thread, flush=True)

async def run():
    scheduler = distributed.Scheduler(port=0, dashboard_address="127.0.0.1:0")
    sys.meta_path.insert(0, Finder())
    async with scheduler:
        assert "dask-otel" in scheduler.plugins

with dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}):
    asyncio.run(run())
"""
PROTOCOLS = {"grpc": "requests", "http/protobuf": "grpc"}


def imports(tmp_path, **variables):
    """By module, the threads in which it was looked for."""
    env = environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, variables)
    done = subprocess.run(
        [sys.executable, "-c", STARTS], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    found: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        module, thread = line.split()
        found.setdefault(module, set()).add(thread)
    return found, done


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_takes_long_is_imported_in_a_thread_and_only_what_is_used(protocol, tmp_path):
    found, done = imports(tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert done.returncode == 0, done.stderr
    (used,) = set(PROTOCOLS.values()) - {PROTOCOLS[protocol]}
    for module in ("opentelemetry", "opentelemetry.sdk.trace", "opentelemetry.sdk.metrics", used):
        assert found[module] == {"other"}, module
    assert PROTOCOLS[protocol] not in found


def test_what_is_off_imports_no_exporter(tmp_path):
    found, done = imports(tmp_path, OTEL_SDK_DISABLED="true")
    assert "OTEL_SDK_DISABLED is true" in done.stderr
    assert not {"grpc", "requests"} & set(found)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_two_that_are_registered_at_once(client, scheduler, worker):
    """The second takes part in the bridge of the first, as if it had come later."""
    go = asyncio.Event()

    class Slow(MemoryPlugin):
        async def prepare(self):
            await go.wait()

    plugins = [Slow(), Slow()]
    adding = [asyncio.create_task(plugin.add_to(scheduler)) for plugin in plugins]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*adding)
    first, second = plugins
    assert [each for each in scheduler.plugins.values() if isinstance(each, MemoryPlugin)] == [second]
    assert first.is_on
    assert second.exporter is first.exporter
    assert await client.submit(inc, 1) == 2
    await first.before_close()
    assert {each.name for each in first.exporter.spans()} >= {"inc"}
    assert first.name not in scheduler.plugins


@gen_cluster(client=True, nthreads=[])
async def test_one_that_cannot_prepare_starts_all_the_same(client, scheduler):
    class Broken(MemoryPlugin):
        async def prepare(self):
            raise OSError("no threads")

    plugin = Broken()
    await plugin.add_to(scheduler)
    assert plugin._bridge
    await plugin.before_close()
