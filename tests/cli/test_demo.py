"""`dask-otel demo` as a person runs it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.environment import environment

from dask_otel.cli.receiver import Receiver

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_draws_the_trace_it_received_beside_a_cluster_of_ones_own(tmp_path, protocol, dashboard_s_port):
    picture = tmp_path / "trace.svg"
    done = run("demo", "--svg", str(picture), COLUMNS="140", OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [re.sub(r"[│├└─ ]+", " ", line).split("█")[0].strip() for line in done.stdout.splitlines()]
    assert re.match(
        r"\d+ spans arrived over OTLP, as trace [0-9a-f]{32}.\n",
        done.stdout.strip(),
    )
    text = "\n".join(rows)
    for name in ("Alice's workflow", "data load", "ML preprocessing", "Model training", "Quality gate"):
        assert name in text
    assert "1 retried" in done.stdout
    assert "ValueError: 1 task erred; first: score" in done.stdout
    assert "train" in text
    svg = picture.read_text()
    assert svg.startswith("<svg")
    assert "Quality" in svg


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
        assert len(receiver.wait_for_trace(trace_id, timeout=10)) >= 10


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://host:port", "nonsense"])
def test_an_endpoint_where_nothing_listens(endpoint):
    done = run("demo", "--endpoint", endpoint)
    assert done.returncode == 2
    assert endpoint in done.stderr
    assert "give a URL like http://localhost:4317" in done.stderr
    assert "Traceback" not in done.stderr


def test_sdk_disabled():
    done = run("demo", OTEL_SDK_DISABLED="true")
    assert done.returncode == 1
    assert "OTEL_SDK_DISABLED" in done.stderr


def test_without_the_extra(tmp_path):
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text("raise ImportError('no click', name='click')")
    done = run("demo", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "needs click: pip install 'dask-otel[cli]'" in done.stderr


def test_version_and_help():
    assert run("--version").stdout.startswith("dask-otel, version 0.")
    assert "demo" in run("--help").stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "udp"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/file"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
    ],
)
def test_a_bad_variable_is_named(variable, value):
    done = run("demo", **{variable: value})
    assert done.returncode == 1
    assert f"{variable} = '{value}' cannot be used: it must be " in done.stderr
    assert "Traceback" not in done.stderr
