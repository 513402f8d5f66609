"""`dask-otel demo` as a person runs it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from urllib.request import urlopen

import pytest
from distributed import Client
from support.environment import environment

from dask_otel.cli.demo import DOCUMENTATION, STEPS
from dask_otel.cli.demo import run as run_workflow
from dask_otel.cli.receiver import Receiver

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("dask-otel"))


def run(*arguments, **env):
    return subprocess.run([COMMAND, *arguments], env=environment(env), capture_output=True, text=True, timeout=110)


@pytest.fixture
def dashboard_s_port():
    """Dask's usual port is taken, as by a cluster of one's own."""
    with socket.socket() as taken:
        with suppress(OSError):  # taken by another: as good
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        yield


@pytest.mark.parametrize(("protocol", "encoding"), [("grpc", "utf-8"), ("http/protobuf", "ascii")])
def test_draws_the_trace_it_received_beside_a_cluster_of_ones_own(tmp_path, protocol, encoding, dashboard_s_port):
    picture = tmp_path / "trace.svg"
    done = run(
        "demo", "--svg", str(picture), COLUMNS="140", OTEL_EXPORTER_OTLP_PROTOCOL=protocol, PYTHONIOENCODING=encoding,
        PATH=os.defpath,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 140
    about, picture_of_it, legend, why, steps = map(str.split, re.split(r"\n\s*\n", done.stdout.strip()))
    assert " ".join(about).startswith("What Dask's scheduler recorded of a workflow with 80 tasks on a local cluster")
    assert "one takes far longer than the others, on purpose" in " ".join(about)
    assert picture_of_it[:6] == ["what", "when", "duration", "tasks", "compute", "busy"]
    assert "a part of the workflow" in " ".join(legend)
    # Whether it is the first reason depends on what else the machine does.
    assert re.match(r"Why it took so long: .*\b(skew|stragglers)\b.* the last tasks [\d.]+ s \d+%", " ".join(why))
    assert "A cure saves at most" in " ".join(why)
    for step in (
        "ENDPOINT=http://localhost:4317",
        "dask scheduler --preload dask_otel",
        "demo --endpoint http",
        "demo --keep",
        DOCUMENTATION,
    ):
        assert step in " ".join(steps)
    assert f" {COMMAND} demo --keep" in done.stdout  # its environment is not activated
    assert (ROOT / DOCUMENTATION).exists()
    rows = [re.sub(r"[│├└─ ]+", " ", line).split("█")[0].strip() for line in done.stdout.splitlines()]
    text = "\n".join(rows)
    for name in ("Alice's workflow", "data load", "ML preprocessing", "Model training", "Quality gate"):
        assert name in text
    assert "1 retried" in done.stdout
    assert "1 task erred; first: ValueError: score" in done.stdout
    assert "train" in text
    svg = picture.read_text()
    assert svg.startswith("<svg")
    assert "Quality" in svg


class Terminal:
    """The demo in a terminal of its own, where Ctrl-C reaches all processes of the demo."""

    def __init__(self, *arguments, width):
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored if a shell runs the tests in the background
            os.execve(COMMAND, [COMMAND, "demo", *arguments], environment({"COLUMNS": str(width)}))
        self._read = b""
        self.text = ""

    def read(self, until=None):
        """Read until a text has been printed, or the program has ended."""
        deadline = monotonic() + 110
        while until is None or until not in self.text:
            assert select.select([self._terminal], [], [], max(0, deadline - monotonic()))[0], self.text
            try:
                found = os.read(self._terminal, 65536)
            except OSError:  # Linux: the other end is closed
                found = b""
            if not found:
                assert until is None, self.text
                break
            # All of it: a character or a colour can come in two parts. Without colours, and with what a progress bar
            # draws anew.
            self._read += found
            text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", self._read.decode(errors="replace"))
            self.text = text.replace("\r\n", "\n")
        return self.text

    def wait(self):
        """Read all; return the exit code."""
        self.read()
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self):
        """Press Ctrl-C; return what is printed after it, and the exit code."""
        before = len(self.text)
        os.write(self._terminal, b"\x03")
        code = self.wait()
        return self.text[before:], code


def test_keep_gives_links_until_ctrl_c():
    width = 60
    terminal = Terminal("--keep", width=width)
    text = terminal.read("until Ctrl-C.\n")
    # The columns that are not there are not explained.
    assert re.search("^duration  ", text, re.MULTILINE)
    assert not re.search("^compute  ", text, re.MULTILINE)
    assert not re.search("^busy  ", text, re.MULTILINE)
    picture = text[text.index("what  ") : text.index("a part of the workflow")]
    assert max(len(line.rstrip()) for line in picture.splitlines()) <= width
    page = re.search(r"http://127.0.0.1:\d+/otel/", text)[0]
    with urlopen(page, timeout=10) as answer:
        assert b"spans" in answer.read()
    (run,) = re.findall(rf"{page}run/[0-9a-f]{{32}}(?!\S)", text)
    with urlopen(run, timeout=10) as answer:
        assert b"Quality gate" in answer.read()
    with Client(re.search(r"tcp://\S+", text)[0]) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    printed, code = terminal.end()
    assert (printed.strip().removeprefix("^C"), code) == ("", 0)


def test_the_progress_bar_names_what_is_going_on():
    terminal = Terminal(width=100)
    assert terminal.wait() == 0
    drawn = terminal.text.partition("What Dask's scheduler recorded")[0]
    labels = list(dict.fromkeys(re.findall(r"\d:\d\d:\d\d ([^\r\n]*\w)", drawn)))
    assert labels == ["starting a client and dask-otel", *STEPS, "collecting the spans"]
    assert "waiting" not in drawn


@pytest.mark.filterwarnings("ignore")  # Dask and pandas warn of each other
def test_a_step_is_named_before_it_runs(tmp_path):
    folder = tmp_path / "dataset"
    with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
        steps = run_workflow(client, folder)
        next(steps)  # the root span's id
        seen = [(name, folder.exists(), folder.with_suffix(".failed").exists()) for name in steps]
    assert seen == list(zip(STEPS, (False, True, True, True), (False, False, False, True), strict=True))


def test_sigterm_is_as_silent_as_ctrl_c():
    with subprocess.Popen(
        [COMMAND, "demo", "--keep"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while "until Ctrl-C" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.terminate()
        after = process.communicate(timeout=60)
    assert (process.returncode, *after) == (143, "", "")


def test_ctrl_c_while_tasks_run_is_silent():
    terminal = Terminal(width=100)
    terminal.read("data load")
    printed, code = terminal.end()
    assert "Traceback" not in printed
    assert "Abort" not in printed
    assert code == 130


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_sends_to_an_endpoint(protocol):
    with Receiver() as receiver:
        done = run(
            "demo", "--endpoint", receiver.endpoints[protocol], OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            DASK_OTEL__TRACE_URL="http://my.jaeger/trace/{trace_id}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        trace_id = re.search(r"Trace ([0-9a-f]{32}) was sent", done.stdout)[1]
        assert f"http://my.jaeger/trace/{trace_id}" in done.stdout
        assert "on purpose" in done.stdout
        assert len(receiver.wait_for_trace(trace_id, timeout=10)) >= 10


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [
        ("http://127.0.0.1:1", "is a collector running there, and host and port right?"),
        ("http://host:port", "give a URL like http://localhost:4317"),
        ("nonsense", "give a URL like http://localhost:4317"),
        ("localhost:4317", "give a URL like http://localhost:4317"),
    ],
)
def test_an_endpoint_without_a_scheme_or_where_nothing_listens(endpoint, advice):
    done = run("demo", "--endpoint", endpoint)
    assert done.returncode == 2
    assert endpoint in done.stderr
    assert advice in done.stderr
    assert "Traceback" not in done.stderr


def test_sdk_disabled():
    done = run("demo", OTEL_SDK_DISABLED="true")
    assert done.returncode == 1
    assert "OTEL_SDK_DISABLED" in done.stderr


def test_without_the_extra(tmp_path):
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text("raise ImportError('no click', name='click')")
    done = run("demo", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "needs click: pip install 'dask-otel[cli]'" in done.stderr


def test_version_and_help():
    assert run("--version").stdout.startswith("dask-otel, version 0.")
    assert "demo" in run("--help").stdout


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "udp", 1),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/file", 1),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x", 2),  # the command cannot begin
    ],
)
def test_a_bad_variable_is_named(variable, value, code):
    done = run("demo", **{variable: value})
    assert done.returncode == code
    assert f"{variable} = '{value}' cannot be used: it must be " in done.stderr
    assert "Traceback" not in done.stderr
