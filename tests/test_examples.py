"""The files in ``examples/``, and the recipe for notebooks, each run as far as its system can be had without a cluster.

Their packages are not those of the other tests: ``pip install '.[examples]'``. Not run: the images of the container and
of Kubernetes, and Helm's chart, which is in no package index. Those for Prefect and Airflow are run by
``backends/test_workflow_systems.py``.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.backends import free_port
from support.environment import environment
from support.notebooks import shown_below
from support.processes import PATIENCE, Process, cluster
from support.trees import tree

from dask_otel.cli.receiver import Receiver
from dask_otel.otlp.environment import make_resource

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: What each example says of a missing package; what CI has run is in ``docs/recipes.md``.
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def need(*packages):
    if "DASK_OTEL_TEST_SYSTEMS" not in os.environ:
        for package in packages:
            pytest.importorskip(package, reason="pip install '.[examples]'")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_says_first_what_happens_without_the_package_and_is_on_the_page(path):
    text = path.read_text(encoding="utf-8")
    assert re.search("[Ii]f dask-otel is missing|Without the line that installs", "\n".join(text.splitlines()[:4]))
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert f"(../examples/{path.relative_to(EXAMPLES).as_posix()})" in page


def test_scheduler_and_collector_have_the_same_names_everywhere():
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert set(re.findall(r"http://[\w.]+:\d+", text)) == {
        "http://collector:4317",
        "http://collector.observability:4317",
    }
    assert set(re.findall(r"\bdask_otel\w*", text)) == {"dask_otel"}


@pytest.mark.slow
def test_slurm():
    """The job's script is rendered, and the scheduler of this process has the bridge; no job is submitted."""
    need("dask_jobqueue")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "slurm.py"], env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "#SBATCH -p regular" in done.stdout
    assert "otel" not in done.stdout.removesuffix("True\n")
    assert done.stdout.endswith("True\n")


@pytest.mark.slow
def test_mpi(tmp_path):
    need("dask_mpi", "mpi4py")
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert mpirun
    env = environment({"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
    done = subprocess.run(
        [mpirun, "--oversubscribe", "-n", "3", sys.executable, EXAMPLES / "mpi.py"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.split() == ["3", "True"], done.stderr


def recipes_for_notebooks():
    """The cells of the page, and of its part about a cluster that is already running."""
    page = (ROOT / "docs/notebook.md").read_text(encoding="utf-8")
    parts = page, page.partition("## A cluster that is already running")[2]
    return [re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in parts]


@pytest.mark.slow
def test_a_notebook_shows_links_and_a_run(tmp_path):
    need("nbclient", "ipykernel")
    cells = [*recipes_for_notebooks()[0][:4], "client.close(); cluster.close()"]
    quiet = "ignore:Port"  # somebody else's cluster may have Dask's usual one
    settings, described, linked, (run,), closed = shown_below(
        cells, tmp_path, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none", PYTHONWARNINGS=quiet
    )
    assert settings == closed == []
    for (link,) in (described, linked):
        assert link["text/html"].count("<a ") == 1
        assert "<iframe" not in link["text/html"]
    assert re.match(r"training took .* · success · 1 task; page: http://\S+/otel/run/\w+/\w+$", run["text/plain"])
    assert run["text/html"].count("<iframe ") == 1


@pytest.mark.slow
def test_a_notebook_shows_where_a_running_cluster_sends_below_the_cell_that_registers(tmp_path):
    need("nbclient", "ipykernel")
    (settings, *_), registering = recipes_for_notebooks()
    assert len(registering) == 2
    with Receiver() as receiver, cluster(tmp_path, options=(), workers=0) as processes:
        endpoint = receiver.endpoints["grpc"]
        cells = [
            settings,
            "from distributed import Client; import dask_otel",
            f"client = Client({processes.address!r})",
            *registering,
            "client.close()",
            f"client = await Client({processes.address!r}, asynchronous=True)",
            "await client.register_plugin(dask_otel.OTelPlugin())",
        ]
        shown = shown_below([each.replace("http://localhost:4317", endpoint) for each in cells], tmp_path)
        port = processes.client.scheduler_info()["services"]["dashboard"]
    *before, (given,), (from_env,), closed, created, (line, warning) = shown
    assert [*before, closed, created] == [[]] * 5
    for each in (given, from_env):
        where = rf"dask-otel .*spans and .*metrics to {endpoint} \(on the scheduler's host,"
        assert re.match(where, each["text/plain"])
        assert f'<a href="http://127.0.0.1:{port}/otel/"' in each["text/html"]
    assert "to http://localhost:4317 (on the scheduler's host" in line["text/plain"]
    assert "UserWarning: dask-otel does not use OTEL_EXPORTER_OTLP_ENDPOINT of this process" in warning["text"]


#: In a process of its own: dask-gateway's client does not close all that it opens.
GATEWAY_CLIENT = """
import json, os, sys
from urllib.request import urlopen
from dask_gateway import BasicAuth, Gateway

address, proxy = sys.argv[1:]
with Gateway(address, proxy, auth=BasicAuth("Doe, Alice")) as gateway, gateway.new_cluster() as cluster:
    with cluster.get_client() as client:
        variables = client.run_on_scheduler(lambda: dict(os.environ))
    page = cluster.dashboard_link.replace("/status", "/otel/status.json")
    print(json.dumps([cluster.name, variables, json.load(urlopen(page, timeout=20))]))
"""


@pytest.mark.slow
def test_gateway(tmp_path, monkeypatch):
    """A real gateway with its local backend starts a cluster with the bridge, which has its name and the user's."""
    need("dask_gateway", "dask_gateway_server", "sqlalchemy")
    api, http, tcp = (f"127.0.0.1:{free_port()}" for _ in range(3))
    config = tmp_path / "dask_gateway_config.py"
    config.write_text(
        (EXAMPLES / "gateway/dask_gateway_config.py").read_text(encoding="utf-8")
        + f"""
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.DaskGateway.address = "{api}"
c.Proxy.address = "{http}"
c.Proxy.tcp_address = "{tcp}"
c.UnsafeLocalBackend.inherited_environment = ["PATH", "PYTHONPATH"]
"""
    )
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    gateway = Process("--config", str(config), folder=tmp_path, env=env, module="dask_gateway_server")
    try:
        gateway.wait_for("200 GET /api/v1/routes")  # by the gateway's proxy
        done = subprocess.run(
            [sys.executable, "-c", GATEWAY_CLIENT, f"http://{http}", f"gateway://{tcp}"],
            env=environment(), capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + gateway.log
        name, variables, status = json.loads(done.stdout)
        assert status["on"]
        assert status["cluster"] == name
        assert status["exporters"][0]["target"] == "http://collector:4317"
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", variables["OTEL_RESOURCE_ATTRIBUTES"])
        described = make_resource(service_name="", instance_id="", version="", cluster_name=None).attributes
        assert described["user.name"] == "Doe, Alice"
    finally:
        gateway.stop_or_kill()


#: Runs in a process of its own, because a tracer provider is global: the code of a caller, and then its spans.
CALLER = """
import json, sys
import dask_otel
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
FastAPIInstrumentor().instrument()
dask_otel.instrument()
exec(sys.argv[1])
spans = [[each.name, f"{each.context.trace_id:032x}", f"{each.context.span_id:016x}"]
         for each in exporter.get_finished_spans()]
print(json.dumps([result, spans]))
"""
REQUEST = """
from fastapi.testclient import TestClient
from fastapi_app import app

with TestClient(app) as client:
    result = client.get("/total/4").json()
"""


class Calls:
    """Runs programs with a cluster."""

    def __init__(self, processes, receiver, folder):
        self._processes, self._receiver, self._folder = processes, receiver, folder
        (self.worker,) = processes.workers
        #: What the last program logged.
        self.log = ""

    def __call__(self, *arguments, segments=1, **variables):
        """Run a program; return what it printed last, and all spans when there are so many of Dask spans."""
        variables |= {"DASK_SCHEDULER_ADDRESS": self._processes.address, "PYTHONPATH": str(EXAMPLES)}
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment(variables), cwd=self._folder, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.log = done.stderr
        is_over = lambda spans: sum(each.attributes["dask.kind"] == "span" for each in spans) == segments  # noqa: E731
        return done.stdout.splitlines()[-1], self._receiver.wait(is_over, timeout=PATIENCE)


@pytest.fixture
def calls(tmp_path):
    with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["grpc"], "DASK_OTEL__ANNOTATIONS": "mlflow_run"}
        with cluster(tmp_path, env=env, workers=1) as processes:
            yield Calls(processes, receiver, tmp_path)


@pytest.mark.slow
def test_fastapi(calls):
    """A request, its Dask span, and the group of its task are one trace."""
    need("fastapi", "httpx", "opentelemetry.instrumentation.fastapi")
    printed, spans = calls("-c", CALLER, REQUEST)
    result, callers = json.loads(printed)
    assert result == 6
    name = "GET /total/{n}"
    (request,) = [each for each in callers if each[0] == name]
    assert tree(spans) == [f"{name} [span] <- caller", "  sum [group]"]
    assert [(each.trace_id, each.parent_id) for each in spans if each.name == name] == [tuple(request[1:])]


@pytest.mark.slow
def test_a_program_that_a_batch_system_starts(calls):
    """Here without a tracer provider: it has no span of its own."""
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7"
    variables = {
        "DASK_DISTRIBUTED__CLIENT__PRELOAD": "dask_otel",
        "TRACEPARENT": f"00-{trace_id}-{parent_id}-01",
    }
    printed, spans = calls(EXAMPLES / "batch_job.py", **variables)
    assert printed == "6"
    assert tree(spans) == ["nightly report [span] <- caller", "  sum [group]"]
    assert [(each.trace_id, each.parent_id) for each in spans if each.name == "nightly report"] == [
        (trace_id, parent_id)
    ]


@pytest.mark.slow
def test_log_lines(calls):
    """Lines of the client and of a task have the id of the trace."""
    printed, spans = calls(EXAMPLES / "log_lines.py")
    assert printed == "6"
    assert tree(spans) == ["total [span]", "  work [group]"]
    (trace_id,) = {each.trace_id for each in spans}
    assert re.findall(r"INFO trace_id=(\S+) - starts$", calls.log, re.MULTILINE) == [trace_id]
    assert calls.worker.wait_for(r"INFO trace_id=(\S+) work-\w+ sum of 4 numbers\n")[1] == trace_id


@pytest.mark.slow
def test_mlflow(calls, tmp_path):
    need("mlflow")
    variables = {
        "MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "DO_NOT_TRACK": "1",
    }
    run, spans = calls(EXAMPLES / "mlflow_run.py", **variables)
    assert tree(spans) == ["total [span]", "  sum [group]"]
    (segment,) = [each for each in spans if each.name == "total"]
    assert segment.attributes["dask.annotation.mlflow_run"] == run
    (tag,) = (tmp_path / "runs").glob(f"*/{run}/tags/dask.trace_id")
    assert tag.read_text(encoding="utf-8") == segment.trace_id


def without_none(value):
    """Kubernetes takes null for absent."""
    if isinstance(value, dict):
        return {name: without_none(each) for name, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


def cluster_schema():
    need("dask_kubernetes")
    import dask_kubernetes

    folder = Path(dask_kubernetes.__file__).parent / "operator/deployment/helm/dask-kubernetes-operator/crds"
    definition = yaml.safe_load((folder / "daskcluster.yaml").read_text(encoding="utf-8"))
    (version,) = definition["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def test_the_cluster_for_the_operator_is_one_to_its_schema():
    import jsonschema

    schema = cluster_schema()
    resource = yaml.safe_load((EXAMPLES / "kubernetes/cluster.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(resource, schema)
    resource["spec"]["scheduler"]["spec"]["containers"][0]["args"] = "dask scheduler"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, schema)


def test_the_variables_for_helm_are_such_as_a_container_takes():
    """The chart copies ``scheduler.env`` into the scheduler's container. It is in no package index."""
    import jsonschema

    schema = cluster_schema()
    resource = yaml.safe_load((EXAMPLES / "kubernetes/cluster.yaml").read_text(encoding="utf-8"))
    env = yaml.safe_load((EXAMPLES / "helm/values.yaml").read_text(encoding="utf-8"))["scheduler"]["env"]
    resource["spec"]["scheduler"]["spec"]["containers"][0]["env"] = env
    jsonschema.validate(resource, schema)
    (key,) = [each["valueFrom"]["secretKeyRef"] for each in env if "valueFrom" in each]
    del key["key"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource, schema)


def test_the_key_is_in_a_secret():
    """A header in the file would be readable for all who can read the resource."""
    resource = yaml.safe_load((EXAMPLES / "kubernetes/cluster.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((EXAMPLES / "helm/values.yaml").read_text(encoding="utf-8"))
    (scheduler,) = resource["spec"]["scheduler"]["spec"]["containers"]
    for env in (scheduler["env"], values["scheduler"]["env"]):
        (headers,) = [each for each in env if each["name"] == "OTEL_EXPORTER_OTLP_HEADERS"]
        assert headers.keys() == {"name", "valueFrom"}
        assert headers["valueFrom"]["secretKeyRef"].keys() >= {"name", "key"}


def test_what_kubecluster_makes_is_one_to_the_schema_and_has_no_other_preload():
    import jsonschema

    schema = cluster_schema()
    spec = runpy.run_path(str(EXAMPLES / "kubernetes/kubecluster.py"))["SPEC"]
    jsonschema.validate(without_none(spec), schema)
    (scheduler,) = spec["spec"]["scheduler"]["spec"]["containers"]
    assert "--preload" not in scheduler["args"]  # it would make Dask ignore the variable
    assert {"name": "DASK_DISTRIBUTED__SCHEDULER__PRELOAD", "value": "dask_otel"} in scheduler["env"]
    assert "secretKeyRef" in str(scheduler["env"])
    assert "secretKeyRef" not in str(spec["spec"]["worker"])


@pytest.mark.slow
def test_a_scheduler_without_the_package_does_not_start(tmp_path):
    """What each example warns of."""
    scheduler = Process("scheduler", "--port", "0", "--preload", "no_such_package", folder=tmp_path)
    scheduler.wait_for("ModuleNotFoundError: No module named 'no_such_package'")
    assert scheduler.join() != 0
