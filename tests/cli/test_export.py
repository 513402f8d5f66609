"""`dask-otel export` as a person runs it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner
from support.environment import environment

from dask_otel.analysis.chrome import ChromeWriter
from dask_otel.cli.main import dask_otel as commands

TRACES = ("0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736")


def request(trace_id, root):
    attributes = {"dask.kind": "span", "dask.span.path": root, "dask.span.root": root}
    span = {
        "traceId": trace_id,
        "spanId": "00f067aa0ba902b7",
        "name": root,
        "startTimeUnixNano": "1800000000000000000",
        "endTimeUnixNano": "1800000001000000001",
        "attributes": [{"key": name, "value": {"stringValue": value}} for name, value in attributes.items()],
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "traces.jsonl"
    lines = [json.dumps(request(trace_id, root)) for trace_id, root in zip(TRACES, ("Alice's", "Bob's"), strict=True)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(commands, ["export", *map(str, arguments)])


def names(file):
    return sorted(each["name"] for each in json.loads(file.read_bytes())["traceEvents"] if each["ph"] == "X")


def test_what_is_asked_for(source, tmp_path):
    file = tmp_path / "out.json"
    chrome = ("--format", "chrome", "-o", file)
    done = run(source, *chrome)
    assert done.exit_code == 0
    assert done.output.startswith(f"2 spans of 2 traces: open {file} in https://ui.perfetto.dev, chrome://tracing")
    assert names(file) == ["Alice's", "Bob's"]
    for selection, found in {
        (source, "--root", "Bob's"): "Bob's",
        (source, "--trace", TRACES[0]): "Alice's",
        (tmp_path, "--trace", TRACES[1]): "Bob's",
        (TRACES[1], "--from", source): "Bob's",
    }.items():
        file.unlink(missing_ok=True)
        done = run(*selection, *chrome)
        assert done.exit_code == 0, done.output
        assert names(file) == [found]
        file.unlink()
    with dask.config.set({"otel.traces.folder": str(tmp_path)}):
        assert run(TRACES[0], *chrome).exit_code == 0
    assert names(file) == ["Alice's"]


def test_a_file_that_exists_is_replaced_when_all_is_written(source, tmp_path, monkeypatch):
    file, link = tmp_path / "out.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    monkeypatch.setattr(ChromeWriter, "end", _no_space)
    before = sorted(tmp_path.iterdir())
    done = run(source, "--format", "chrome", "-o", link)
    assert (done.exit_code, done.output) == (2, f"Error: {link}: No space left on device; give another file to -o\n")
    assert file.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    assert run(source, "--format", "chrome", "-o", link).exit_code == 0
    assert names(file) == ["Alice's", "Bob's"]
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == before


def _no_space(self):
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch.jsonl"], "nosuch.jsonl: there is no such file or folder; an address begins with http://"),
        ([TRACES[0]], "where is this trace? Give --from http://"),
        (["SOURCE", "--from", "http://localhost:1"], "are two sources: give a trace id before --from"),
        ([TRACES[0], "--trace", TRACES[1], "--from", "SOURCE"], "are two traces: give one of them"),
        (["SOURCE", "--trace", "a" * 32], "has no trace " + "a" * 32),
        (["SOURCE", "--trace", "nonsense"], "'nonsense' has to be a trace id"),
        (["SOURCE", "--root", "Carol's"], 'root spans: "Alice\'s", "Bob\'s"'),
        ([str(Path(__file__))], "OTLP in JSON"),
        (["http://127.0.0.1:9"], "127.0.0.1:9"),
        (["UNTIMED"], "untimed.jsonl: there are no spans to export"),
        (["SOURCE", "-o", "/nosuch/folder/file"], "/nosuch/folder/file: No such file or directory; give another file"),
        (["SOURCE", "-o", "/tmp"], "/tmp: Is a directory; give another file"),
    ],
)
def test_bad_input(source, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("COLUMNS", "1000")
    untimed = tmp_path / "untimed.jsonl"
    untimed.write_text('{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "1", "spanId": "2"}]}]}]}\n')
    arguments = [{"SOURCE": str(source), "UNTIMED": str(untimed)}.get(each, each) for each in arguments]
    output = [] if "-o" in arguments else ["-o", tmp_path / "out"]
    before = sorted(tmp_path.iterdir())
    done = run(*arguments, *output)
    assert done.exit_code == 2
    assert done.output.startswith("Error: ")
    assert message in " ".join(done.output.split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_standard_output(source):
    command = [str(Path(sys.executable).with_name("dask-otel")), "export", str(source), "-o", "-"]
    done = subprocess.run([*command, "--format", "chrome"], env=environment(), capture_output=True, check=True)
    assert len(json.loads(done.stdout)["traceEvents"]) > 2
    assert done.stderr.startswith(b"2 spans of 2 traces: open it in ")
    terminal, ours = os.openpty()
    refused = subprocess.run(command, env=environment(), stdout=ours, stderr=subprocess.PIPE, text=True)
    os.close(ours)
    os.close(terminal)
    assert refused.returncode == 2
    assert "a terminal cannot show Perfetto's format" in " ".join(refused.stderr.split())
    gone = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    gone.stdout.close()  # as `head` does
    assert (gone.stderr.read(), gone.wait()) == (b"", 1)
    gone.stderr.close()
