"""Every way in which a cluster ends: what is open is closed and sent, or said to be lost; nothing takes too long."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import pytest
from distributed.utils_test import gen_cluster, inc
from support.environment import environment
from support.exits import WAYS
from support.memory import MemoryPlugin
from support.misbehaving import Hangs, Misbehaving
from support.processes import Process, cluster
from support.trees import check_shape, check_sums, tree
from support.wire import Wire
from support.workflows import NESTED, NESTED_ATTRIBUTES, nested

import dask_otel
from dask_otel.scheduler.runtime import FOR_EXIT

pytestmark = pytest.mark.slow

PROTOCOLS = ("grpc", "http/protobuf")
SETTINGS = {
    "DASK_OTEL__TRACES__IDLE_TIMEOUT": "1h",  # all is open at the end
    "DASK_OTEL__TRACES__LEVEL": "groups",
    "DASK_OTEL__SHUTDOWN_TIMEOUT": "30s",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
}
#: Where nothing can be sent.
HURRY = {"DASK_OTEL__SHUTDOWN_TIMEOUT": "3s"}
#: Processes that run at a time.
AT_ONCE = 4
#: Of the workflow, without tasks.
SPANS = len(NESTED)
LAST_WORD = re.compile(r"could not send (\d+) spans with exporter 'otlp'.*; it has sent (\d+)")


def exporting(endpoint: str, protocol: str) -> dict[str, str]:
    return SETTINGS | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}


def end(way: str, endpoint: str, protocol: str, folder: Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.exits", way],
        cwd=folder,
        env=environment(exporting(endpoint, protocol), settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class Ended(NamedTuple):
    """What a process has left when it had ended."""

    log: str
    #: What it sent to; None if that took nothing.
    receiver: Misbehaving | None


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """How each way ended, by way, protocol, and whether the collector hung: mostly they wait, so they wait together."""
    folder = tmp_path_factory.mktemp("ends")

    def run(way: str, protocol: str, hangs: bool) -> Ended:
        if hangs:
            with Wire("http://127.0.0.1:1", "hang") as wire:
                return Ended(end(way, wire.endpoint, protocol, folder, **HURRY).communicate(timeout=120)[0], None)
        with Misbehaving(protocol) as receiver:
            return Ended(end(way, receiver.endpoint, protocol, folder).communicate(timeout=120)[0], receiver)

    cases = [(way, protocol, hangs) for way in WAYS for hangs in (False, True) for protocol in PROTOCOLS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {case: pool.submit(run, *case) for case in cases}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("way", WAYS)
def test_all_is_sent(way, protocol, ends):
    log, receiver = ends[way, protocol, False].result()
    trace = re.search(r"^TRACE (\w+)", log, re.MULTILINE)
    assert trace, log
    spans = receiver.wait_for_trace(trace[1], timeout=1)  # the process has ended: all is there
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    check_shape(spans)
    check_sums(spans)
    assert len(spans) == sum(receiver.taken.values()) == SPANS
    assert "dask_otel - ERROR" not in log
    assert not LAST_WORD.search(log)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("way", WAYS)
def test_a_collector_that_hangs_delays_nothing_for_longer_than_the_timeout(way, protocol, ends):
    log, _ = ends[way, protocol, True].result()
    last = LAST_WORD.search(log)
    assert last, log
    assert [int(number) for number in last.groups()] == [SPANS, 0]
    said = [line for line in log[last.end() :].splitlines() if "dask_otel" in line]
    assert [line for line in said if "could not send the last metrics" not in line] == []
    assert "dask_otel - ERROR" not in log


def test_at_the_exit_of_the_interpreter_closing_takes_no_longer_than_dask_waits(tmp_path):
    """Dask gives itself 10 s, whatever our timeout; after that nobody would say what was lost."""
    with Misbehaving("grpc", lambda *_: Hangs()) as receiver:
        log, _ = end("interpreter_exits", receiver.endpoint, "grpc", tmp_path).communicate(timeout=60)
    assert LAST_WORD.search(log), log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_signals(number, protocol, tmp_path):
    with (
        Misbehaving(protocol) as receiver,
        cluster(tmp_path, env=exporting(receiver.endpoint, protocol)) as processes,
    ):
        root_id, _ = nested(processes.client)
        begin = monotonic()
        code = stop(processes.scheduler, number)
        took = monotonic() - begin
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=1)
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    assert code == 0
    assert took < 10.0  # a heartbeat's wait, and a second; the rest is Dask's, or a busy machine's


def test_a_second_ctrl_c_does_not_wait_but_sends(tmp_path):
    with (
        Misbehaving("grpc") as receiver,
        cluster(tmp_path, env=exporting(receiver.endpoint, "grpc")) as processes,
    ):
        root_id, _ = nested(processes.client)
        processes.scheduler.send(signal.SIGINT)
        processes.scheduler.wait_for("Received signal SIGINT")
        processes.scheduler.send(signal.SIGINT)
        processes.scheduler.join()
        spans = receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=1)
    assert {span.name for span in spans} >= {"Alice's workflow", "data load", "check"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_signal_while_the_collector_hangs(protocol, tmp_path):
    with (
        Wire("http://127.0.0.1:1", "hang") as wire,
        cluster(tmp_path, env=exporting(wire.endpoint, protocol) | HURRY) as processes,
    ):
        nested(processes.client)
        begin = monotonic()
        code = stop(processes.scheduler, signal.SIGTERM)
        took = monotonic() - begin
        last = LAST_WORD.search(processes.scheduler.log)
    assert last
    assert [int(each) for each in last.groups()] == [SPANS, 0]
    assert code == 0
    assert took < 3.0 + 7.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dask_and_the_interpreter_have_time_to_end_within_the_timeout(protocol, tmp_path):
    """The default timeout, 10 s: what follows closing needs CPU time, which a busy machine may not give at once."""
    with (
        Wire("http://127.0.0.1:1", "hang") as wire,
        cluster(
            tmp_path,
            env=exporting(wire.endpoint, protocol) | {"DASK_OTEL__SHUTDOWN_TIMEOUT": "10s"},
            workers=1,
        ) as processes,
    ):
        nested(processes.client)
        begin = monotonic()
        processes.scheduler.send(signal.SIGTERM)
        processes.scheduler.wait_for("Scheduler closing all comms")
        closed = monotonic()
        assert processes.scheduler.join() == 0
    assert LAST_WORD.search(processes.scheduler.log)
    assert closed - begin < 9.0  # 8 s, and a busy machine's


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_slow_steps_of_closing_count(client, scheduler, worker):
    plugin = MemoryPlugin(idle_timeout=600.0, shutdown_timeout=10.0)
    await plugin.add_to(scheduler)
    await client.submit(inc, 1)
    given = {}

    def note(name):
        method = getattr(plugin.sink, name)

        def noting(timeout):
            given[name] = timeout
            method(timeout)
            sleep(0.5)

        return noting

    async def slow_sweep():
        await sweep()
        await asyncio.sleep(0.5)

    with pytest.MonkeyPatch.context() as patch:
        sweep = plugin._bridge.sweep.close
        patch.setattr(plugin._bridge.sweep, "close", slow_sweep)
        for name in ("close_spans", "close_metrics"):
            patch.setattr(plugin.sink, name, note(name))
        await plugin.before_close()
    assert given["close_spans"] <= 10.0 - FOR_EXIT - 0.5
    assert given["close_metrics"] <= 10.0 - FOR_EXIT - 1.0


def stop(process: Process, number: int) -> int:
    process.send(number)
    return process.join()
