"""``dask-otel doctor --scheduler``, of real schedulers that run without dask-otel."""

from __future__ import annotations

import asyncio
import sys

import dask
import pytest
from distributed import Client, LocalCluster
from support.processes import LOOPBACK, Process, cluster

from dask_otel.cli import remote
from dask_otel.cli.remote import VARIABLE, Facts, why_without
from dask_otel.safety import log

LOCAL = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0", "protocol": "tcp"}
ASKS = f"start it with --preload dask_otel, or with {VARIABLE}=dask_otel"
ADD = "add --preload dask_otel to its command line"


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
        ([], {}, {}, [f"nothing there asks for it: {ASKS}"]),
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
                "distributed.worker.preload there names dask_otel, and in a worker it does nothing yet: name it in "
                "distributed.scheduler.preload"
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
            ["it is off, since its log says: dask-otel is off: OTEL_SDK_DISABLED is true"],
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
                "why it runs without cannot be told, since it does not answer that (The 'run_function' handler has "
                "been explicitly disallowed in Scheduler, possibly due to security concerns.)",
            ],
        ),
    ],
    ids=[
        "variable, other preload", "setting, other preloads", "set here, other preload", "set here", "nothing",
        "wrong variable", "for workers", "other variable", "off", "not installed", "no answer",
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


@pytest.mark.slow
def test_workers_that_have_it_instead(ask, tmp_path):
    with cluster(tmp_path, options=(), workers=0) as processes:
        worker = Process(
            "worker", processes.address, "--no-nanny", "--preload", "dask_otel", *LOOPBACK, folder=tmp_path
        )
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
    assert line.endswith("where it does nothing yet: start the scheduler with --preload dask_otel")


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
                f"the setting distributed.scheduler.preload there is json, whatever {VARIABLE}=dask_otel says: add "
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
                "distributed.client.preload there names dask_otel, and in a client it does nothing yet: name it in "
                "distributed.scheduler.preload",
                "  distributed.client.preload here names dask_otel, and in a client it does nothing yet",
            )


def test_preloaded_but_not_started():
    facts = Facts(preloads=["dask_otel"], log=["dask-otel failed in its start and goes on without"])
    assert why_without(facts, {}) == [
        "it was preloaded, but did not start: see what the scheduler's log says of distributed.dask_otel"
    ]


def test_a_question_that_fails_is_said():
    class Broken:
        async def run_function(self, function):
            return {"status": "error", "exception_text": "ImportError('x')"}

    facts = asyncio.run(remote.ask_facts(Broken()))
    assert facts.unknown == "the question failed there: ImportError('x')"
