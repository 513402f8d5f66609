"""``dask-otel doctor --scheduler``: addresses where no scheduler answers, and schedulers that run without dask-otel."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import socket
import sys
import threading
import time
import warnings

import dask
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster
from distributed.security import Security
from support.environment import clear_variables
from support.misbehaving import Strict
from support.processes import LOOPBACK, Process, cluster
from support.wire import Wire

from dask_otel.cli.doctor_scheduler import VARIABLE, Facts, ask_facts, why_without
from dask_otel.cli.main import dask_otel
from dask_otel.safety import log

#: Attempts to connect that Dask gives up leave their sockets open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
LOCAL = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0", "protocol": "tcp"}
START = f"start it with --preload dask_otel, or with {VARIABLE}=dask_otel"
ADD = "add --preload dask_otel to its command line"


@pytest.fixture
def ask(monkeypatch):
    """`dask-otel doctor --scheduler` of an address: the exit code, and the lines it prints."""
    monkeypatch.setenv("COLUMNS", "1000")
    for name in list(os.environ):
        if name.startswith("DASK_"):
            monkeypatch.delenv(name)

    def run(address):
        result = CliRunner().invoke(dask_otel, ["doctor", "--scheduler", address])
        assert not result.exception or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output.splitlines()

    return run


@pytest.fixture(scope="module")
def _only_what_is_new_is_collected():
    """Looking through all that the tests have imported takes longer than most of them."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _collect_what_dask_leaves_open(_only_what_is_new_is_collected):
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("", "--scheduler needs the address of a scheduler, e.g. tcp://scheduler:8786"),
        ("tcp://", "needs the address of a scheduler"),
        ("http://host:8787/status", "is a web address, such as the dashboard's: .* usually tcp://host:8786"),
        ("HTTPS://user:secret@host/x", "is a web address, .* usually tcp://host:8786"),
        ("gateway://1.2.3.4:443/dask.abc", "dask-gateway's own client only: open /otel/"),
        ("inproc://10.0.0.1/1/2", "from its own process only: make the cluster with protocol='tcp'"),
        ("ucx://host:8786", "needs the package distributed-ucxx, here too"),
        ("ucxx://host:8786", "needs the package distributed-ucxx, here too"),
        ("foo://host:8786", "scheme that Dask does not know here .*: give an address like tcp://scheduler:8786"),
        ("host", "no address with a host and a port: give the scheduler's, e.g. tcp://host:8786"),
        ("tcp://host", "no address with a host and a port: .* tcp://host:8786"),
        ("tcp://host:port", "no address with a host and a port: .* tcp://host:8786"),
        ("tcp://host:123456", "no address with a host and a port: .* tcp://host:8786"),
        ("tcp:/host:8786", "no address with a host and a port: .* tcp://scheduler:8786"),
        ("tls://host", "no address with a host and a port: .* tls://host:8786"),
        (":8786", "no address with a host and a port: .* tcp://scheduler:8786"),
        ("8786", "no address with a host and a port: .* tcp://scheduler:8786"),
        ("scheduler.json", "no address with a host and a port"),
        ("tls://host:8786", "needs TLS, which is not configured here: set .*DASK_DISTRIBUTED__COMM__TLS__CA_FILE"),
        ("wss://host:8786", "needs TLS, which is not configured here"),
        ("127.0.0.1:1", "no scheduler answers at .*; nothing listens there; give the address that workers use"),
        ("tcp://127.0.0.1:1", "nothing listens there"),
        ("localhost:1", "nothing listens there"),
        ("[::1]:1", "nothing listens there"),
        ("ws://127.0.0.1:1", "nothing listens there"),
        ("tcp://no-such-host.invalid:8786", "'no-such-host.invalid' has no address here"),
    ],
)
def test_an_address_that_is_none(ask, monkeypatch, address, line):
    monkeypatch.setattr("dask_otel.cli.doctor_scheduler.TIMEOUT", 2.0)
    code, (printed,) = ask(address)
    assert code == 1
    assert re.search(line, printed), printed
    assert "secret" not in printed


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("dask_otel.cli.doctor_scheduler.TIMEOUT", 4.0)


@pytest.mark.slow
def test_the_dashboard_s_port(ask, quick):
    with LocalCluster(**LOCAL) as cluster:
        port = cluster.scheduler.http_server.port
        _, (line,) = ask(f"tcp://127.0.0.1:{port}")
    assert "a web server that listens there, perhaps the dashboard's: give the scheduler's own port" in line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_protocol(ask, quick):
    with LocalCluster(**LOCAL) as cluster:
        address = cluster.scheduler_address
        _, (line,) = ask(address.replace("tcp", "ws"))
    assert line.endswith(f"the scheduler there does not use ws: give {address}")
    gc.collect()  # a websocket that Dask gives up on leaves its socket open


@pytest.fixture(scope="module")
def tls_cluster():
    with LocalCluster(**LOCAL | {"protocol": "tls"}, security=Security.temporary()) as cluster:
        yield cluster


def test_tls_that_was_not_asked_for(ask, quick, tls_cluster):
    _, (line,) = ask(tls_cluster.scheduler_address.replace("tls", "tcp"))
    assert line.endswith(f"it hangs up: if the cluster uses TLS, give {tls_cluster.scheduler_address}")


def _files(security, folder):
    """Dask's settings for the certificates that a temporary `Security` keeps in memory."""
    files = {
        "ca-file": security.tls_ca_file,
        "client.cert": security.tls_client_cert,
        "client.key": security.tls_client_key,
    }
    settings = {}
    for name, content in files.items():
        (folder / name).write_text(content)
        settings[f"distributed.comm.tls.{name}"] = str(folder / name)
    return settings


def test_certificates(ask, quick, tls_cluster, tmp_path):
    address = tls_cluster.scheduler_address
    with dask.config.set(_files(tls_cluster.security, tmp_path)):
        _, out = ask(address)
        assert out == [
            f"✗ the scheduler at {address} runs without dask-otel: nothing there preloads it: start it with "
            "--preload dask_otel, or with DASK_DISTRIBUTED__SCHEDULER__PRELOAD=dask_otel"
        ]
        with LocalCluster(**LOCAL) as plain:
            _, (line,) = ask(plain.scheduler_address.replace("tcp", "tls"))
            assert line.endswith(f"the scheduler there does not use tls: give {plain.scheduler_address}")
    with dask.config.set(_files(Security.temporary(), tmp_path)):
        _, (line,) = ask(address)
        assert line.endswith("the certificates here are not those of this cluster: see distributed.comm.tls")
    with dask.config.set(dict.fromkeys(_files(tls_cluster.security, tmp_path), "/no/file")):
        _, (line,) = ask(address)
        assert line.startswith("Error: the TLS configuration here cannot be used (")


def test_blanks_and_a_slash_do_not_matter(ask):
    with LocalCluster(**LOCAL) as cluster:
        _, (line,) = ask(f" {cluster.scheduler_address}/ ")
        assert "runs without dask-otel" in line
        _, (line,) = ask(cluster.scheduler_address.removeprefix("tcp://"))
        assert "runs without dask-otel" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "there", "here", "lines"),
    [
        # The gateway's case, and that of a chart with extra arguments.
        (
            ["--preload", "json"],
            {VARIABLE: "dask_otel"},
            {},
            [f"the scheduler was started with --preload json, which makes Dask ignore {VARIABLE}=dask_otel: {ADD}"],
        ),
        (
            ["--preload=json", "--preload", "csv"],
            {"DASK_CONFIG": "."},
            {},
            [
                "the scheduler was started with --preload csv --preload json, which makes Dask ignore the setting "
                f"distributed.scheduler.preload: ['dask_otel']: {ADD}"
            ],
        ),
        (
            ["--preload", "json"],
            {},
            {VARIABLE: "dask_otel"},
            [
                f"the scheduler was started with --preload json and without dask_otel: {ADD} (the setting and the "
                "variable are ignored beside --preload)",
                f"{VARIABLE}=dask_otel is set here, but not in the scheduler's process: set it where that is started",
            ],
        ),
        (
            [],
            {},
            {VARIABLE: "dask_otel"},
            [f"{VARIABLE}=dask_otel is set here, but not in the scheduler's process: set it where that is started"],
        ),
        ([], {}, {}, [f"nothing there preloads it: {START}"]),
        (
            [],
            {"DASK_SCHEDULER__PRELOAD": "dask-otel"},
            {},
            [
                "DASK_SCHEDULER__PRELOAD=dask-otel is set there, which Dask does not read as a preload: use "
                f"{VARIABLE}=dask_otel"
            ],
        ),
        (
            [],
            {"DASK_DISTRIBUTED__WORKER__PRELOAD": "dask_otel"},
            {},
            [
                "distributed.worker.preload there names dask_otel, and in a worker it does not send the cluster's "
                "traces: name it in distributed.scheduler.preload"
            ],
        ),
        (
            [],
            {VARIABLE: "json"},
            {},
            ["the scheduler preloads json only: add dask_otel to these"],
        ),
        (
            ["--preload", "dask_otel"],
            {"OTEL_SDK_DISABLED": "true"},
            {},
            ["it is off: OTEL_SDK_DISABLED is true: unset it to send traces and metrics"],
        ),
        (
            ["--preload", "dask_otel"],
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "nowhere:0"},
            {},
            [
                "it is off: OTEL_EXPORTER_OTLP_ENDPOINT = 'nowhere:0' cannot be used: it must be a URL like "
                "http://collector:4317"
            ],
        ),
        (
            [],
            {"PYTHONPATH": "."},
            {},
            [f"dask-otel is not installed there ({sys.executable}): install it with that Python, and preload it"],
        ),
        (
            [],
            {"DASK_DISTRIBUTED__SCHEDULER__BLOCKED_HANDLERS": '["run_function"]'},
            {},
            [
                "start it with --preload dask_otel on its command line",
                "the cause is not known, since it does not answer the question (The 'run_function' handler has "
                "been explicitly disallowed in Scheduler, possibly due to security concerns.)",
            ],
        ),
    ],
    ids=[
        "variable, other preload", "setting, other preloads", "set here, other preload", "set here", "nothing",
        "wrong variable", "for workers", "other variable", "off", "bad variable", "not installed", "no answer",
    ],
)  # fmt: skip
def test_a_scheduler_without(ask, monkeypatch, tmp_path, options, there, here, lines):
    (tmp_path / "otel.yaml").write_text("distributed: {scheduler: {preload: [dask_otel]}}")
    if "PYTHONPATH" in there:
        there = {"PYTHONPATH": str(tmp_path)}
        (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['dask_otel'] = None")
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    with cluster(tmp_path, env=there, options=options, workers=0) as processes:
        code, (first, *others) = ask(processes.address)
        assert ("Traceback" in processes.scheduler.log) == ("BLOCKED" in str(there))
    assert code == 1
    assert first == f"✗ the scheduler at {processes.address} runs without dask-otel: {lines[0]}"
    assert [each.strip() for each in others] == lines[1:]


@pytest.mark.slow
def test_a_scheduler_with_it_beside_another_preload(ask, tmp_path):
    options = ["--preload", "json", "--preload", "dask_otel"]
    with cluster(tmp_path, env={"OTEL_TRACES_EXPORTER": "none"}, options=options, workers=0) as processes:
        _, out = ask(processes.address)
    assert "✓ is on" in out


def test_a_folder_of_traces_that_cannot_be_used(ask, tmp_path, monkeypatch):
    clear_variables(monkeypatch)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    (tmp_path / "traces").touch()
    settings = {"distributed.scheduler.preload": ["dask_otel"], "otel.traces.folder": str(tmp_path / "traces")}
    settings |= {"otel.traces.idle-timeout": "0s", "otel.sweep-interval": "10ms"}
    with dask.config.set(settings), LocalCluster(**LOCAL | {"n_workers": 1}) as cluster, Client(cluster) as client:
        bridge = cluster.scheduler.plugins["dask-otel"]
        assert client.submit(sum, [1, 2]).result() == 3
        (worker,) = cluster.workers.values()
        assert not any("otel" in name for name in worker.plugins)  # spans of tasks would have no parents in a backend
        while not bridge.sink.status()["exporters"][0]["dropped"]:
            time.sleep(0.01)
        code, out = ask(cluster.scheduler_address)
    assert code == 1
    place = f"exporter folder, {tmp_path / 'traces'}"
    assert any(line.startswith(f"✗ {place}: Traces cannot be kept there: it has to be a folder") for line in out), out
    assert "  reported: File exists" in "\n".join(out)
    assert any("spans dropped: refused" in line for line in out)


@pytest.mark.slow
def test_workers_that_have_it_instead(ask, tmp_path):
    with cluster(tmp_path, options=(), workers=0) as processes:
        worker = Process("worker", processes.address, "--preload", "dask_otel", *LOOPBACK, folder=tmp_path)
        nanny = Process("worker", processes.address, "--preload-nanny", "dask_otel", *LOOPBACK, folder=tmp_path)
        try:
            processes.client.wait_for_workers(2)
            info = processes.client.scheduler_info()["workers"]
            code, (line,) = ask(processes.address)
        finally:
            worker.stop()
            nanny.stop()
    assert code == 1
    names = (
        [each for each in info if f"the worker {each}" in line],
        [each for each in info if f"the nanny {each}" in line],
    )
    assert [len(each) for each in names] == [1, 1]
    assert names[0] != names[1]
    assert line.endswith("where it does not send the cluster's traces: start the scheduler with --preload dask_otel")


class TestLocal:
    """A cluster in a person's own process, in which there was another one before."""

    @pytest.fixture(autouse=True)
    def _earlier_cluster(self):
        log.error("dask-otel turns itself off: this is about an earlier cluster")

    def check(self, ask, cluster, *lines):
        code, out = ask(cluster.scheduler_address)
        assert code == 1
        assert out == [f"✗ the scheduler at {cluster.scheduler_address} runs without dask-otel: {lines[0]}", *lines[1:]]

    def test_scheduler_options_with_another_preload(self, ask):
        # Those of dask-jobqueue (``scheduler_options``) go the same way.
        with (
            dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}),
            LocalCluster(**LOCAL, scheduler_kwargs={"preload": ["json"]}) as cluster,
        ):
            self.check(
                ask,
                cluster,
                "the scheduler was made with preload=['json'], which makes Dask ignore the setting "
                "distributed.scheduler.preload: ['dask_otel']: add 'dask_otel' to that list",
            )

    def test_a_setting_that_comes_late(self, ask):
        with LocalCluster(**LOCAL) as cluster, dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}):
            self.check(
                ask,
                cluster,
                "the setting distributed.scheduler.preload: ['dask_otel'] was set after the scheduler had been made: "
                "set it before",
            )

    def test_a_variable_that_comes_late(self, ask, monkeypatch):
        monkeypatch.setenv(VARIABLE, "dask_otel")
        with LocalCluster(**LOCAL) as cluster:
            self.check(
                ask,
                cluster,
                f"{VARIABLE}=dask_otel was set after Dask had read its configuration: set it before Python starts, or "
                "use dask.config.set({'distributed.scheduler.preload': ['dask_otel']}) before the scheduler is made",
            )

    def test_another_setting_over_the_variable(self, ask, monkeypatch):
        monkeypatch.setenv(VARIABLE, "dask_otel")
        with dask.config.set({"distributed.scheduler.preload": "json"}), LocalCluster(**LOCAL) as cluster:
            self.check(
                ask,
                cluster,
                f"the setting distributed.scheduler.preload there is json, in spite of {VARIABLE}=dask_otel: add "
                "dask_otel to it before the scheduler starts",
            )

    def test_a_client_that_has_it_instead(self, ask):
        with (
            LocalCluster(**LOCAL) as cluster,
            dask.config.set({"distributed.client.preload": ["dask_otel"]}),
            Client(cluster),
        ):
            self.check(
                ask,
                cluster,
                "distributed.client.preload there names dask_otel, and in a client it does not send the cluster's "
                "traces: name it in distributed.scheduler.preload",
                "  distributed.client.preload here names dask_otel, and in a client it does not send the cluster's "
                "traces",
            )


def test_preloaded_but_not_started():
    facts = Facts(preloads=["dask_otel"], log=["dask-otel failed in its start and goes on without"])
    assert why_without(facts) == [
        "it was preloaded, but did not start: see the lines of distributed.dask_otel in the scheduler's log"
    ]


def test_a_question_that_fails_is_reported():
    class Broken:
        async def run_function(self, function):
            return {"status": "error", "exception_text": "ImportError('x')"}

    facts = asyncio.run(ask_facts(Broken()))
    assert facts.unknown == "the question failed there: ImportError('x')"


@pytest.mark.slow
class TestAnotherMachine:
    """The scheduler is on another machine than the doctor."""

    @pytest.fixture
    def first_lines(self, ask, monkeypatch):
        monkeypatch.setattr("dask_otel.cli.doctor_scheduler.gethostname", lambda: "laptop")
        clear_variables(monkeypatch, proxies=True)

        def run(endpoint, **variables):
            named = {"ENDPOINT": endpoint, "PROTOCOL": "http/protobuf"} | variables
            for name, value in named.items():
                monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
            monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
            failed = threading.Event()
            watch = logging.Handler()
            watch.emit = lambda record: failed.set() if "cannot send metrics" in record.getMessage() else None
            log.addHandler(watch)
            try:
                with (
                    dask.config.set({"distributed.scheduler.preload": ["dask_otel"]}),
                    LocalCluster(**LOCAL) as cluster,
                ):
                    assert failed.wait(60)
                    code, lines = ask(cluster.scheduler_address)
            finally:
                log.removeHandler(watch)
            assert code == 1
            return lines[0], lines[-1]

        return run

    def test_a_port_that_both_can_reach_is_tried_from_here(self, first_lines):
        with Strict(socket.gethostname()) as server:
            first, _ = first_lines(server.endpoint)
        assert "use OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc" in first
        assert first.endswith(f"The port was tried from here, not from {socket.gethostname()}.")

    def test_a_loopback_port_is_not_tried(self, first_lines):
        with Strict("127.0.0.1") as server:
            first, _ = first_lines(server.endpoint)
            assert server.greetings == 0
        assert first.endswith("Or it is a port for gRPC: use OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc.")

    def test_a_loopback_address_is_named_as_the_scheduler_s(self, first_lines):
        first, last = first_lines("http://127.0.0.1:1")
        assert first.endswith(
            f"127.0.0.1 is {socket.gethostname()} itself: name the collector's host if it is another."
        )
        assert last == "Variables and settings are those of the scheduler's process: set them where it is started."

    def test_one_that_hangs_is_to_be_tried_there(self, first_lines):
        with Wire("http://127.0.0.1:1", "hang") as wire:
            first, _ = first_lines(wire.endpoint, TIMEOUT="0.3")
        assert first.endswith(f"run dask-otel doctor --endpoint {wire.endpoint} on {socket.gethostname()}.")

    def test_a_refusal_at_one_of_its_addresses_leaves_both_causes(self, first_lines):
        first, _ = first_lines("http://localhost:1", PROTOCOL="grpc")
        assert (
            ": Nothing listens there, or the port does not speak gRPC as configured, with or without TLS: gRPC" in first
        )
        assert f"run dask-otel doctor --endpoint http://localhost:1 on {socket.gethostname()}. localhost is" in first
