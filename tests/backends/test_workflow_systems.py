"""The examples for Prefect and Airflow, in environments of their own: whole traces in a real Jaeger.

Both install hundreds of packages, with versions that other programs do not have. ``DASK_OTEL_TEST_PREFECT`` and
``DASK_OTEL_TEST_AIRFLOW`` name the interpreters: ``pip install '.[prefect]'``, ``pip install '.[airflow]'``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from support.backends import free_port, skip
from support.environment import environment
from support.processes import Process, Processes, cluster, our_errors
from support.trees import whole

#: Both start servers of their own: each step takes up to a quarter of a minute, and longer on a busy machine.
PATIENCE = 120.0
pytestmark = [pytest.mark.backend, pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]

EXAMPLES = Path(__file__).parents[2] / "examples"


def interpreter(system: str) -> Path:
    """The interpreter of an environment with the system; without it the test is skipped.

    In CI it must be named, or be ``none`` where another run of the tests has it.
    """
    variable = f"DASK_OTEL_TEST_{system.upper()}"
    python = os.environ.get(variable)
    if python == "none":
        pytest.skip("with the newest versions only")
    return Path(python) if python else skip(f"needs {system}: set {variable} to the interpreter of its environment")


@pytest.fixture
def sends(jaeger) -> dict[str, str]:
    """The environment of all programs: traces go to Jaeger."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"],
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "DO_NOT_TRACK": "1",
        # Whether a step takes long is a matter of chance.
        "DASK_OTEL__CLIENT__PHASE_THRESHOLD": "1 hour",
    }


@pytest.fixture
def dask_cluster(tmp_path, sends) -> Iterator[Processes]:
    env = sends | {"DASK_OTEL__ANNOTATIONS": "prefect_run,airflow_run"}
    with cluster(tmp_path, env=env, workers=1) as processes:
        yield processes
    assert not our_errors(processes.scheduler.log)


def segments(spans):
    return [each for each in spans if each.attributes.get("dask.kind") == "span"]


def test_prefect(jaeger, tmp_path, dask_cluster, sends):
    """The trace has Prefect's span of the flow run; its name is Prefect's own for each run, and not in Dask's spans."""
    python = interpreter("prefect")
    env = sends | {
        "OTEL_SERVICE_NAME": "prefect",
        "DASK_SCHEDULER_ADDRESS": dask_cluster.address,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": f"{PATIENCE:.0f}",
    }
    # Its flow is run by a program as in the example, which then says which trace it was.
    program = (
        "import prefect_flow, opentelemetry.trace as trace\n"
        "from prefect import flow\n"
        "@flow(flow_run_name='outer')\n"
        "def outer():\n"
        "    print('TRACE', f'{trace.get_current_span().get_span_context().trace_id:032x}', prefect_flow.total(4))\n"
        "outer()"
    )
    done = subprocess.run(
        [python.with_name("opentelemetry-instrument"), python, "-c", program],
        env=environment(env) | {"PYTHONPATH": str(EXAMPLES)},
        cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace_id, result = re.search(r"^TRACE (\w{32}) (\d+)$", done.stdout, re.MULTILINE).groups()
    assert result == "6"
    spans = jaeger.trace(trace_id, lambda spans: len(spans) >= 5)
    (run,) = [each for each in spans if each.parent_id == next(top.span_id for top in spans if not top.parent_id)]
    assert re.fullmatch(r"[a-z]+-[a-z]+", run.name)
    assert whole(spans) == [
        "prefect  outer Ok",
        f"  prefect  {run.name} Ok",
        "    prefect  total",
        "      dask-scheduler span total",
        "        dask-scheduler group sum",
    ]
    (segment,) = segments(spans)
    assert segment.attributes["dask.annotation.prefect_run"] == run.attributes["prefect.run.id"]
    assert segment.attributes["dask.client.name"] == f"prefect-{run.name}"


class Airflow:
    """Airflow's API, scheduler and reader of DAGs, with SQLite."""

    def __init__(self, python: Path, folder: Path, stack: ExitStack, env: dict[str, str]) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        env = env | {
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": f"{port}",
            "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(64).hex(),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self._url}/execution/",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__PARALLELISM": "1",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "true",
            "AIRFLOW__TRACES__OTEL_ON": "true",
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": f"{PATIENCE}",
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        (folder / "dags").mkdir()
        (folder / "dags/airflow_dag.py").write_text((EXAMPLES / "airflow_dag.py").read_text(encoding="utf-8"))
        made = Process("db", "migrate", folder=folder, env=env, module="airflow", python=str(python))
        assert made.join(PATIENCE) == 0, made.log
        commands = {
            "dag-processor": ("--num-runs", "1"),
            "api-server": ("--workers", "1"),
            "scheduler": ("--skip-serve-logs",),
        }
        self._processes = {}
        for command, options in commands.items():
            process = Process(command, *options, folder=folder, env=env, module="airflow", python=str(python))
            stack.callback(process.stop_or_kill)
            self._processes[command] = process

    def run(self, dag: str) -> None:
        """Start a run of a DAG."""
        self._processes["api-server"].wait_for("Uvicorn running on", PATIENCE)
        self._processes["dag-processor"].join(PATIENCE)  # it has read the DAG
        token = self._ask("auth/token")["access_token"]
        self._ask(f"api/v2/dags/{dag}/dagRuns", {"logical_date": None}, Authorization=f"Bearer {token}")

    @property
    def log(self) -> str:
        return "".join(process.log for process in self._processes.values())

    def _ask(self, path: str, content: object = None, **headers: str) -> dict[str, str]:
        data = None if content is None else json.dumps(content).encode()
        request = Request(f"{self._url}/{path}", data, {"Content-Type": "application/json", **headers})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)


def test_airflow(jaeger, tmp_path, dask_cluster, sends):
    """A task that submits work, and a program in a task, to which a macro hands the trace on."""
    env = sends | {
        "BATCH_JOB": str(EXAMPLES / "batch_job.py"),
        "DASK_DISTRIBUTED__CLIENT__PRELOAD": "dask_otel",
        "DASK_SCHEDULER_ADDRESS": dask_cluster.address,
        "OTEL_SERVICE_NAME": "airflow",
    }
    with ExitStack() as stack:
        folder = tmp_path / "airflow"
        folder.mkdir()
        airflow = Airflow(interpreter("airflow"), folder, stack, env)
        airflow.run("dask_total")
        sent = lambda spans: any(each.name.startswith("dag_run") for each in spans) and len(segments(spans)) == 2  # noqa: E731
        try:
            spans = jaeger.find("airflow", sent, PATIENCE)
        except AssertionError as error:
            raise AssertionError(airflow.log) from error
        assert not our_errors(airflow.log)
    assert whole(spans) == [
        "airflow  dag_run.dask_total Ok",
        "  airflow  task_run.program Ok",
        "    airflow  worker.program",
        "      airflow  nightly report",
        "        dask-scheduler span nightly report",
        "          dask-scheduler group sum",
        "  airflow  task_run.total Ok",
        "    airflow  worker.total",
        "      dask-scheduler span worker.total",
        "        dask-scheduler group sum",
    ]
    first, _ = sorted(segments(spans), key=lambda each: each.start)
    assert first.attributes["dask.annotation.airflow_run"].startswith("manual__")
    assert first.attributes["dask.client.name"] == "airflow-dask_total-total"
