"""``client.register_plugin(OTelPlugin(...))``: the client learns where the scheduler sends, or why it cannot send."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout

import dask
import pytest
from distributed import Client, LocalCluster, span
from distributed.protocol.pickle import dumps, loads
from distributed.utils_test import captured_logger
from support.backends import free_port
from support.environment import clear_variables, environment
from support.misbehaving import Misbehaving
from support.processes import OURS, PATIENCE, cluster
from support.trees import check_shape, tree
from support.workflows import NESTED, NESTED_ATTRIBUTES, nested

import dask_otel
from dask_otel.cli.receiver import Receiver

pytestmark = pytest.mark.slow

FAST = {"otel.traces.idle-timeout": "300ms", "otel.sweep-interval": "50ms"}
SECRET = "s3cr3t-of-mine"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    clear_variables(monkeypatch)


@pytest.fixture
def receivers():
    with Receiver() as one, Receiver() as other:
        yield one, other


SCRIPT = """
import sys
from distributed import Client
import dask_otel

if __name__ == "__main__":
    client = Client(sys.argv[1])
    plugin = eval(sys.argv[2], {"OTelPlugin": dask_otel.OTelPlugin})
    returned = client.register_plugin(plugin)
    print("registered:", returned)
"""


def register(processes, folder, plugin, **variables):
    """Register a plugin in a process of its own, which ends at once."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, processes.address, plugin],
        cwd=folder,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_script_prints_where_the_scheduler_sends_and_warns_of_variables_that_are_not_used(receivers, tmp_path):
    endpoint = receivers[0].endpoints["http/protobuf"]
    ours = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_HEADERS": f"key={SECRET}"}
    with cluster(tmp_path, options=(), workers=1) as processes:
        done = register(processes, tmp_path, "OTelPlugin()", **ours)
        assert done.returncode == 0, done.stderr
        # The line comes before the call returns, as the next line of the script.
        line, after = done.stdout.splitlines()
        assert re.fullmatch(
            r"dask-otel will send spans and metrics to http://localhost:4317 \(on the scheduler's host, \S+\); "
            r"page: http://127\.0\.0\.1:\d+/otel/",
            line,
        )
        assert after == "registered: None"
        assert (
            "<string>:9: UserWarning: dask-otel does not use OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS "
            "of this process: the scheduler's process has other values, or none." in done.stderr
        )
        ours["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
        done = register(processes, tmp_path, "OTelPlugin.from_env()", **ours)
        assert done.returncode == 0, done.stderr
        assert not OURS.search(done.stderr), done.stderr
        assert done.stdout.startswith(
            f"dask-otel will send spans to {endpoint}/v1/traces, metrics to {endpoint}/v1/metrics"
        )
        # The scheduler's variables and those of this process agree now.
        root_id, _ = nested(processes.client)
        spans = receivers[0].wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        assert SECRET not in processes.scheduler.log
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED


def test_the_client_that_registers_prints_and_its_line_can_be_hidden(receivers, tmp_path, capfd):
    with cluster(tmp_path, options=(), workers=0) as processes, Client(processes.address) as other:
        # The other client is the current one.
        processes.client.register_plugin(dask_otel.OTelPlugin(receivers[0].endpoints["grpc"]))
        (line,) = capfd.readouterr().out.splitlines()
        assert line.startswith(f"dask-otel will send spans and metrics to {receivers[0].endpoints['grpc']} (on the ")
        with redirect_stdout(None):
            other.register_plugin(dask_otel.OTelPlugin(receivers[1].endpoints["grpc"]))
    assert capfd.readouterr() == ("", "")


def test_a_client_that_cannot_ask_registers_all_the_same(receivers, capfd):
    blocked = {"distributed.scheduler.blocked-handlers": ["otel_registered"]}
    with (
        dask.config.set(FAST | blocked),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
        captured_logger("distributed.dask_otel") as log,
    ):
        client.register_plugin(dask_otel.OTelPlugin(receivers[0].endpoints["grpc"]))
        root_id, _ = nested(client)
        receivers[0].wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
    assert "otel_registered" in log.getvalue()
    assert capfd.readouterr().out == ""


def test_an_asynchronous_client_prints_and_warns_before_its_result(receivers, capfd, monkeypatch):
    async def run():
        async with (
            LocalCluster(n_workers=0, dashboard_address=":0", asynchronous=True, processes=False) as local,
            Client(local, asynchronous=True) as client,
        ):
            missing = {"certificate": "/missing.pem"}
            with pytest.warns(UserWarning, match="sends no metrics: ") as warned:
                await client.register_plugin(dask_otel.OTelPlugin(receivers[0].endpoints["grpc"], metrics=missing))
            return capfd.readouterr().out, [each.filename for each in warned]

    out, files = asyncio.run(run())
    assert out.startswith(f"dask-otel will send spans to {receivers[0].endpoints['grpc']}; page: http")
    assert files == [__file__]


def test_a_scheduler_that_cannot_send_raises_in_the_client_and_what_was_there_stays(receivers, tmp_path):
    endpoint = receivers[0].endpoints["grpc"]
    missing = str(tmp_path / "missing.pem")
    with cluster(tmp_path, options=()) as processes:
        client = processes.client
        with pytest.raises(
            RuntimeError, match=r"cannot send from the scheduler on \S+: OTEL_EXPORTER_OTLP_CERTIFICATE = "
        ):
            client.register_plugin(dask_otel.OTelPlugin("https://c:4317", certificate=missing))
        assert "dask-otel" not in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
        client.register_plugin(dask_otel.OTelPlugin(endpoint))
        with span("root") as root_id:
            client.submit(sum, [1], key="before").result()
            with pytest.raises(RuntimeError, match="the earlier registration stays active"):
                client.register_plugin(dask_otel.OTelPlugin("https://c:4317", certificate=missing))
            client.submit(sum, [2], key="after").result()
        spans = receivers[0].wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
    assert sorted(each.name for each in spans) == ["after", "before", "root"]


def test_a_signal_that_cannot_be_sent_is_a_warning(receivers, tmp_path, capfd):
    with cluster(tmp_path, options=(), workers=0) as processes:
        missing = {"certificate": str(tmp_path / "missing.pem")}
        amiss = "^dask-otel sends no metrics: OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE = "
        with pytest.warns(UserWarning, match=amiss) as warned:
            processes.client.register_plugin(dask_otel.OTelPlugin(receivers[0].endpoints["grpc"], metrics=missing))
        assert [each.filename for each in warned] == [__file__]
    assert capfd.readouterr().out.startswith("dask-otel will send spans to http://127")


def test_registered_again_replaces_the_preload_and_loses_nothing(receivers, tmp_path):
    one, other = receivers
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": one.endpoints["grpc"]}
    with cluster(tmp_path, env=env) as processes:
        client = processes.client
        with span("root") as root_id:
            client.submit(sum, [1], key="first").result()
            client.register_plugin(dask_otel.OTelPlugin())  # the same
            client.submit(sum, [2], key="second").result()
            client.register_plugin(dask_otel.OTelPlugin(other.endpoints["http/protobuf"], protocol="http/protobuf"))
            client.submit(sum, [3], key="third").result()
        trace_id = dask_otel.trace_id(root_id)
        before, after = (each.wait_for_trace(trace_id, timeout=60) for each in receivers)
        log = processes.scheduler.log
    assert sorted(each.name for each in before) == ["first", "root", "second"]
    assert sorted(each.name for each in after) == ["root", "third"]
    check_shape([*before, *after], all_sent=False)
    assert log.count("is on and sends to") == 2
    assert "overwriting" not in log


def test_registered_again_a_name_keeps_its_pseudonym(receivers, tmp_path):
    one, other = receivers
    hidden = {"DASK_OTEL__CAPTURE__TAGS": "false", "DASK_OTEL__CAPTURE__KEYS": "false"}
    with cluster(tmp_path, env={"OTEL_EXPORTER_OTLP_ENDPOINT": one.endpoints["grpc"], **hidden}) as processes:
        client = processes.client
        with span("root") as root_id:
            client.submit(sum, [1], key="work-1").result()
            client.register_plugin(dask_otel.OTelPlugin(other.endpoints["grpc"]))
            client.submit(sum, [2], key="work-2").result()
        trace_id = dask_otel.trace_id(root_id)
        before, after = (each.wait_for_trace(trace_id, timeout=60) for each in receivers)
    names = [sorted(each.name for each in spans) for spans in (before, after)]
    assert names[0] == names[1]
    assert [name.partition(" ")[0] for name in names[0]] == ["span", "tasks"]


def test_spans_that_could_not_be_sent_arrive_when_the_right_endpoint_is_registered(receivers, tmp_path):
    """As when OTelPlugin() was registered first, which sends to a collector beside the scheduler that is not there."""
    with cluster(tmp_path, options=()) as processes:
        client = processes.client
        client.register_plugin(dask_otel.OTelPlugin(f"http://127.0.0.1:{free_port()}"))
        root_id, _ = nested(client)
        processes.scheduler.wait_for("cannot send spans with exporter 'otlp'")
        client.register_plugin(dask_otel.OTelPlugin(receivers[0].endpoints["grpc"]))
        spans = receivers[0].wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        log = processes.scheduler.log
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
    assert not re.search(r"could not send \d+ spans", log)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_headers_arrive_and_are_in_no_log(protocol, tmp_path):
    def plugins(dask_scheduler):  # the scheduler cannot import this module
        return [repr(each) + repr(vars(each)) for name, each in dask_scheduler.plugins.items() if name == "dask-otel"]

    with (
        Misbehaving(protocol) as receiver,
        cluster(tmp_path, options=(), env={"DASK_LOGGING__DISTRIBUTED": "debug"}) as processes,
    ):
        plugin = dask_otel.OTelPlugin(receiver.endpoint, protocol=protocol, headers={"X-Key": SECRET}, metrics=False)
        processes.client.register_plugin(plugin)
        root_id, _ = nested(processes.client)
        receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        info = repr(processes.client.scheduler_info()) + repr(processes.client.run_on_scheduler(plugins))
        log = processes.scheduler.log
    assert {name.lower(): value for name, value in receiver.headers[0].items()}["x-key"] == SECRET
    assert "register_scheduler_plugin" in log  # the message with the pickle is there
    assert "OTEL_EXPORTER_OTLP_HEADERS" in info
    assert SECRET not in log + info


def test_a_scheduler_without_the_package_logs_no_header(monkeypatch):
    pickled = dumps(dask_otel.OTelPlugin("http://c:4317", headers={"key": SECRET}))
    monkeypatch.setitem(sys.modules, "dask_otel.preload", None)
    with captured_logger("distributed.protocol.pickle", level=logging.INFO) as log, pytest.raises(ModuleNotFoundError):
        loads(pickled)
    assert "Failed to deserialize" in log.getvalue()
    assert SECRET not in log.getvalue()


def test_the_environment_of_a_local_cluster_that_was_set_too_late(receivers, monkeypatch, capfd):
    """Registered again with other variables in the same process, the plugin sends to the new endpoint."""
    with (
        dask.config.set(FAST),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
    ):
        client.register_plugin(dask_otel.OTelPlugin())
        line = capfd.readouterr().out
        assert line.startswith("dask-otel will send spans and metrics to http://localhost:4317; page: ")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receivers[0].endpoints["grpc"])
        before = dict(os.environ)
        client.register_plugin(dask_otel.OTelPlugin())
        (line,) = capfd.readouterr().out.splitlines()
        assert receivers[0].endpoints["grpc"] in line
        root_id, _ = nested(client)
        spans = receivers[0].wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        assert dict(os.environ) == before
    assert tree(spans, *NESTED_ATTRIBUTES) == NESTED
