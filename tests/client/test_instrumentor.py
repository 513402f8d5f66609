"""Programs under ``opentelemetry-instrument``: whatever is broken, they run as ever, other instrumentations as well."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
from packaging.requirements import Requirement
from support.backends import skip
from support.environment import environment
from support.processes import PATIENCE, cluster
from support.virtual_envs import virtual_env

from dask_otel import trace_id
from dask_otel.cli.receiver import Receiver, Span
from dask_otel.client.instrumentor import DaskInstrumentor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT = 100
#: With the instrumentation of logging, which is not installed everywhere, nothing is logged to standard error.
DISABLED = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "logging"}
#: For programs that use the instrumentor themselves, or not at all.
ALSO_DASK = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "logging,dask"}
#: The console script ``opentelemetry-instrument``, which the environments that are made here lack.
INSTRUMENT = ("-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()")
DISTRIBUTION = distribution("dask-otel")
#: What ``opentelemetry-instrument`` reads of a distribution.
METADATA = {
    f"dask_otel-{DISTRIBUTION.version}.dist-info/{name}": DISTRIBUTION.read_text(name)
    for name in ("METADATA", "entry_points.txt")
}
#: Computes something in a Dask span; prints what the tests look for.
WORK = """
import os
with Client(os.environ["CLUSTER"], set_as_default=False) as client:
    with span("report") as id_:
        print("RESULT", client.submit(sum, [1, 2], pure=False).result())
    print("ID", id_)
"""
IMPORT = "from distributed import Client, span"
#: How a program uses the instrumentor itself.
BY_HAND = "from dask_otel.client.instrumentor import DaskInstrumentor as Dask"
#: An instrumentation of others is on: that of Dask has not ended the auto-instrumentation before or after its turn.
OTHERS = """
from opentelemetry.instrumentation.requests import RequestsInstrumentor
print("OTHERS", RequestsInstrumentor().is_instrumented_by_opentelemetry)
"""
#: What the program and the cluster send for ``WORK``.
TRACE = ["program: report", "  dask-scheduler: report"]
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture(scope="module", autouse=True)
def _auto_instrumentation():
    if find_spec("opentelemetry.distro") is None:
        skip("needs opentelemetry-distro and the instrumentations: pip install '.[test,instrumented]'")
    named = {each.name for each in entry_points(group="opentelemetry_instrumentor")}
    assert "dask" in named, "install the package again: what is installed is of a version without instrumentor"


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A cluster that sends whole Dask spans, and what they are sent to."""
    with Receiver() as receiver:
        sending = {"DASK_OTEL__TRACES__LEVEL": "spans"} | _sending_to(receiver)
        with cluster(tmp_path_factory.mktemp("cluster"), env=sending, workers=1) as started:
            yield receiver, started.address


def _sending_to(receiver: Receiver) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoints["http/protobuf"],
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


class Ended:
    """A program that has ended, without an error.

    Parameters
    ----------
    name
        That of the program, in the resource of the spans that it has sent.
    """

    def __init__(self, process: subprocess.CompletedProcess[str], receiver: Receiver, name: str) -> None:
        assert process.returncode == 0, process.stderr
        self.log = process.stderr
        #: The rest of each line, by its first word.
        self.printed = dict(line.partition(" ")[::2] for line in process.stdout.splitlines())
        self._receiver = receiver
        self._name = name

    @property
    def sent(self) -> list[str]:
        """Names of the spans that the program itself has sent."""
        spans = self._receiver.wait(lambda spans: True, 0)
        return [span.name for span in spans if span.resource.get("program") == self._name]

    @property
    def is_instrumented(self) -> bool:
        """Whether the Dask span was a span of the program, in one trace with what the cluster has sent."""
        if re.fullmatch(UUID, self.printed["ID"]):
            assert self.sent == []
            return False
        id_ = trace_id(self.printed["ID"])
        spans = self._receiver.wait(lambda all_: sum(span.trace_id == id_ for span in all_) == len(TRACE), PATIENCE)
        assert _lines([span for span in spans if span.trace_id == id_]) == TRACE
        assert self.sent == ["report"]
        return True


def _lines(spans: Sequence[Span]) -> list[str]:
    """Service and name of each span of a trace, children indented."""
    lines: list[str] = []

    def add(parent: str, depth: int) -> None:
        for span in spans:
            if span.parent_id == parent:
                lines.append(f"{'  ' * depth}{span.resource['service.name']}: {span.name}")
                add(span.span_id, depth + 1)

    add("", 0)
    return lines


@pytest.fixture
def run(tmp_path, processes):
    """Runs a program under ``opentelemetry-instrument``."""
    receiver, address = processes

    def run(*program: str, python: str = "", **env: str) -> Ended:
        name = uuid4().hex
        own = {
            "CLUSTER": address,
            "DASK_OTEL__CLIENT__PHASE_THRESHOLD": "1h",
            "OTEL_RESOURCE_ATTRIBUTES": f"program={name}",
            "OTEL_SERVICE_NAME": "program",
        } | DISABLED
        process = subprocess.run(
            [python or sys.executable, *INSTRUMENT, python or sys.executable, "-c", "\n".join(program)],
            cwd=tmp_path,
            env=environment(_sending_to(receiver), own, env) | ({"PYTHONPATH": ""} if python else {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        return Ended(process, receiver, name)

    return run


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(IMPORT, id="by the program"),
        pytest.param("from dask.distributed import Client, span", id="by Dask"),
        pytest.param("from distributed.client import Client\nfrom distributed.spans import span", id="a part of it"),
        pytest.param("from other import Client, span", id="by another module"),
        pytest.param(
            "from threading import Thread\nthread = Thread(target=__import__, args=['distributed'])\n"
            f"thread.start()\nthread.join()\n{IMPORT}",
            id="in a thread",
        ),
    ],
)
def test_clients_are_instrumented_once_distributed_is_imported(run, tmp_path, imports):
    (tmp_path / "other.py").write_text(IMPORT)
    loaded = "import sys\nprint('LOADED', *sorted({'dask', 'distributed', 'yaml', 'tornado'} & set(sys.modules)))"
    program = run(loaded, imports, WORK, OTHERS)
    assert program.printed["LOADED"] == ""
    assert program.printed["RESULT"] == "3"
    assert program.is_instrumented
    assert program.printed["OTHERS"] == "True"
    assert program.log == ""


def test_a_program_can_switch_it_off(run):
    program = run(IMPORT, WORK, OTHERS, **ALSO_DASK)
    assert not program.is_instrumented
    assert program.printed["OTHERS"] == "True"


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        pytest.param("Dask().instrument()", IMPORT, True, id="before the import"),
        pytest.param(IMPORT, "Dask().instrument()", True, id="after it"),
        pytest.param("Dask().instrument(); Dask().uninstrument()", IMPORT, False, id="undone before"),
        pytest.param(f"{IMPORT}\nDask().instrument()", "Dask().uninstrument()", False, id="undone after"),
        pytest.param(
            "Dask().instrument(); Dask().uninstrument(); Dask().instrument()", IMPORT, True, id="undone, redone"
        ),
        pytest.param(
            "import dask_otel; dask_otel.instrument()", f"Dask().instrument(); {IMPORT}", True, id="beside our function"
        ),
    ],
)
def test_a_program_can_use_it_itself(run, first, then, expected):
    program = run(BY_HAND, first, then, WORK, **ALSO_DASK)
    assert program.is_instrumented is expected
    assert program.printed["RESULT"] == "3"
    assert program.log == ""


def test_a_second_time_changes_nothing_but_for_the_warning_of_opentelemetry(run):
    program = run(IMPORT, BY_HAND, "Dask().instrument()", WORK)
    assert program.is_instrumented
    assert program.log.splitlines() == ["Attempting to instrument while already instrumented"]


def test_options_are_said_to_be_ignored(run):
    program = run(IMPORT, BY_HAND, "Dask().instrument(tracer_provider=None)", WORK, **ALSO_DASK)
    assert program.is_instrumented
    (line,) = program.log.splitlines()
    assert line.endswith("WARNING - dask-otel: DaskInstrumentor has no options; ignored: tracer_provider")


#: What is broken: files that differ, distributions that are missing, and what is logged.
OURS = {
    "cannot be imported": (
        {"dask_otel/client/instrumentation.py": "1 / 0"},
        "dask-otel is off: cannot import dask_otel.client.instrumentation (ZeroDivisionError: division by zero)",
    ),
    "raises": (
        {"dask_otel/client/instrumentation.py": "def instrument():\n    1 / 0"},
        "dask-otel failed in its instrumentor and goes on without; the cluster is not affected.",
    ),
    "is not whole": (
        {"dask_otel/client/instrumentation.py": ""},
        "dask-otel failed in its instrumentor and goes on without; the cluster is not affected.",
    ),
}


@pytest.mark.parametrize("broken", OURS)
def test_a_broken_package_costs_the_program_nothing_but_a_line(run, tmp_path, broken):
    files, line = OURS[broken]
    program = run(IMPORT, WORK, OTHERS, python=virtual_env(tmp_path / "env", files=files | METADATA))
    assert program.printed["RESULT"] == "3"
    assert not program.is_instrumented
    assert program.printed["OTHERS"] == "True"
    (logged,) = re.findall(r"^.* - ERROR - (dask-otel.*)$", program.log, re.MULTILINE)
    assert logged.startswith(line)


#: What is broken: files that differ, distributions that are missing, and the error that the program gets.
DASK = {
    "distributed raises": (
        {"distributed/__init__.py": "raise RuntimeError('wrong ABI')"},
        (),
        "RuntimeError wrong ABI",
    ),
    "distributed exits": ({"distributed/__init__.py": "raise SystemExit('wrong ABI')"}, (), "SystemExit wrong ABI"),
    "distributed is missing": ({}, ("distributed",), "ModuleNotFoundError No module named 'distributed'"),
    "Dask raises": ({"dask/__init__.py": "raise OSError('wrong ABI')"}, (), "OSError wrong ABI"),
    "Dask is missing": ({}, ("dask", "distributed"), "ModuleNotFoundError No module named 'distributed'"),
}
CATCH = """
try:
    import distributed
except BaseException as error:
    print("CAUGHT", type(error).__name__, error)
"""


@pytest.mark.parametrize("broken", DASK)
def test_a_broken_dask_is_as_broken_as_without(run, tmp_path, broken):
    files, without, error = DASK[broken]
    python = virtual_env(tmp_path / "env", files=files | METADATA, without=without)
    program = run(CATCH, CATCH, OTHERS, python=python)
    assert program.printed == {"CAUGHT": error, "OTHERS": "True"}
    assert program.log == ""


def old_distributed(folder: Path) -> str:
    """The interpreter of an environment whose distributed says that it is older than what is supported."""
    (info,) = (file for file in distribution("distributed").files if file.name == "METADATA")
    text = (distribution("distributed").read_text("METADATA")).replace(
        f"\nVersion: {version('distributed')}\n", "\nVersion: 2025.7.0\n"
    )
    return virtual_env(folder, files={str(info): text} | METADATA)


def test_an_old_dask_is_left_alone(run, tmp_path):
    if "instruments" not in DISTRIBUTION.metadata.get_all("Provides-Extra"):
        skip("needs the package as it is now: pip install -e .")
    program = run(IMPORT, WORK, OTHERS, python=old_distributed(tmp_path / "env"))
    assert program.printed["RESULT"] == "3"
    assert not program.is_instrumented
    assert program.printed["OTHERS"] == "True"


def test_a_program_that_uses_it_itself_is_told_that_its_dask_is_old(run, tmp_path):
    program = run(
        IMPORT,
        BY_HAND,
        "Dask().instrument()",
        WORK,
        python=old_distributed(tmp_path / "env"),
        **ALSO_DASK,
    )
    assert program.printed["RESULT"] == "3"
    assert not program.is_instrumented
    assert '"distributed>=2025.9.0"' in program.log
    assert '"distributed 2025.7.0"' in program.log


def requirements(project: str, name: str) -> dict[str, str]:
    """Oldest versions by package, in a list of pyproject.toml."""
    listed = re.search(rf"^{name} = \[(.*?)\]$", project, re.DOTALL | re.MULTILINE)[1]
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', listed))


def test_the_versions_are_those_of_the_package():
    """What ``opentelemetry-instrument`` reads, what the instrumentor says, and what the package requires."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra, required = requirements(project, "instruments"), requirements(project, "dependencies")
    assert extra == {name: required[name] for name in ("dask", "distributed")}
    said = [Requirement(each) for each in DaskInstrumentor().instrumentation_dependencies()]
    assert {each.name: str(each.specifier) for each in said} == {name: f">={least}" for name, least in extra.items()}
    (entry,) = entry_points(group="opentelemetry_instrumentor", name="dask")
    assert f'[project.entry-points.opentelemetry_instrumentor]\ndask = "{entry.value}"' in project
    assert entry.load() is DaskInstrumentor
