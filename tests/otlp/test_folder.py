"""The folder in which traces are kept: its bound, its files, and all ways in which a disk fails."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import fields
from time import monotonic, sleep

import pytest
from distributed.utils_test import captured_logger
from support.environment import clear_variables, environment
from support.records import group, root_segment, segment, task

from dask_otel.cli.receiver import Receiver
from dask_otel.otlp.exporter import connect
from dask_otel.otlp.folder import FILES, FolderSender, TraceFolder
from dask_otel.otlp.transport import RetryDecision
from dask_otel.privacy import Capture
from dask_otel.safety import Safety

KIB = 1024


def connected(folder, size=2**20):
    capture = {field.name: True for field in fields(Capture)}
    names = {"service_name": "ours", "instance_id": "Scheduler-1/2", "version": "1", "cluster_name": None}
    return connect(**names, safety=Safety(), capture=capture, max_rate=0, folder=str(folder), folder_size=size)


@pytest.fixture
def _nothing_else(monkeypatch):
    clear_variables(monkeypatch)
    for name, value in {"TRACES_EXPORTER": "none", "METRICS_EXPORTER": "none", "BSP_SCHEDULE_DELAY": "0"}.items():
        monkeypatch.setenv(f"OTEL_{name}", value)


def line(number, size=KIB):
    text = b'{"n":%d,"x":"' % number
    return text + b"x" * (size - len(text) - 3) + b'"}\n'


def numbers(folder):
    """What is in each file, in the order of their names' numbers; fails if a line is not whole."""
    found = sorted(folder.glob("dask-otel-*"), key=lambda path: int(path.stem.rpartition("-")[2]))
    assert all(path.read_bytes().endswith(b"\n") for path in found)
    return [[json.loads(each)["n"] for each in path.read_text().splitlines()] for path in found]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("dask-otel-*"))


def test_the_oldest_files_make_room_and_only_ours(tmp_path):
    others = {"dask-otel-notes.txt": b"mine", "a.jsonl": b"{}\n", "dask-otel-20200101T000000Z-x.jsonl": b"mine"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    ours = tmp_path / "dask-otel-20200101T000000Z-Scheduler-9-0.jsonl"
    ours.write_bytes(b"x" * 60 * KIB)  # of a scheduler that ended long ago
    os.utime(ours, (1, 1))
    (tmp_path / "dask-otel-20200101T000000Z-Scheduler-9-1.jsonl").symlink_to("a.jsonl")
    bound = 64 * KIB
    folder = TraceFolder(str(tmp_path), bound, "Scheduler-1")
    for number in range(200):
        folder.append(line(number))
        assert sum(path.stat().st_size for path in tmp_path.glob("*Scheduler-1*")) <= bound
    assert not ours.exists()
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
    os.unlink(tmp_path / "dask-otel-20200101T000000Z-Scheduler-9-1.jsonl")
    for name in others:
        os.unlink(tmp_path / name)
    kept = numbers(tmp_path)
    assert [number for each in kept for number in each] == list(range(200 - 64, 200))
    assert {len(each) for each in kept} == {64 // FILES}


def test_schedulers_that_share_a_folder(tmp_path):
    bound = 64 * KIB
    folders = [TraceFolder(str(tmp_path), bound, "../Scheduler 1") for _ in range(3)]  # as if their ids were the same
    for number in range(300):
        folders[number % 3].append(line(number))
        assert size_of(tmp_path) <= bound + 2 * bound // FILES
    kept = numbers(tmp_path)
    assert [len({number % 3 for number in each}) for each in kept] == [1] * len(kept)  # each is of one of them
    assert [sum(number % 3 == n for each in kept for number in each) >= 16 for n in range(3)] == [True] * 3
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


def test_files_and_folders_that_are_removed_are_made_again(tmp_path):
    path = tmp_path / "a" / "b"
    folder = TraceFolder(str(path), 64 * KIB, "s")
    folder.append(line(0))
    folder.append(line(1))
    assert numbers(path) == [[0, 1]]
    for each in path.iterdir():
        each.unlink()
    folder.append(line(2))
    assert numbers(path) == [[2]]
    for each in path.iterdir():
        each.unlink()
    path.rmdir()
    (tmp_path / "a").rmdir()
    folder.append(line(3))
    assert numbers(path) == [[3]]
    path.rename(tmp_path / "moved")
    folder.append(line(4))
    assert (numbers(path), numbers(tmp_path / "moved")) == ([[4]], [[3]])


#: Writes lines until the disk is full, twice, then with room again; prints what became of each.
FULL = """
import resource, sys
from dask_otel.otlp.folder import FolderSender
sender = FolderSender(sys.argv[1], 2**20, "s")
def send(*numbers):
    for number in numbers:
        print(*sender.send(b'{"n":%d,"x":"%s"}\\n' % (number, b"x" * 988)).__dict__.values(), sep=", ")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
send(0, 1, 2, 3)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
send(4)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of files' sizes")
def test_a_disk_that_is_full_loses_whole_lines(tmp_path):
    """A file may have 2,500 bytes: of the third line, half fits in."""
    out = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, env=environment()
    ).stdout
    results = [each.split(", ")[:2] for each in out.splitlines()]
    assert results == [
        *([f"{RetryDecision.SENT}", ""],) * 2,
        *([f"{RetryDecision.REFUSED}", "File too large"],) * 2,
        [f"{RetryDecision.SENT}", ""],
    ]
    assert numbers(tmp_path) == [[0, 1, 4]]


@pytest.mark.usefixtures("_nothing_else")
def test_a_folder_that_cannot_be_used_affects_nothing_else(tmp_path, monkeypatch):
    in_the_way = tmp_path / "traces"
    in_the_way.write_text("a file")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with Receiver() as receiver, captured_logger("distributed.dask_otel", level=logging.DEBUG) as log:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
        output = connected(in_the_way)
        for number in range(5):
            output.put([task(span_id=10 * number + 1), segment(span_id=10 * number + 2)])
            mark = output.mark()
            wait_until(lambda mark=mark: output.is_settled(mark))
        assert not output.is_away
        backend, folder = output.status()["exporters"]
        assert (backend["sent"], backend["dropped"]) == ({"task": 5, "span": 5}, [])
        assert (folder["name"], folder["target"], folder["failing"]) == ("folder", str(in_the_way), True)
        assert folder["last_error"] == "File exists"
        assert (folder["sent"], folder["in_flight"], folder["queue"]["spans"]) == ({}, 0, 0)
        assert folder["dropped"] == [{"kind": kind, "reason": "refused", "count": 5} for kind in ("span", "task")]
        in_the_way.unlink()
        output.put([segment(span_id=99)])
        begin = monotonic()
        output.close(30)
        assert monotonic() - begin < 5
        assert len(receiver.wait(lambda spans: True, 1)) == 11
    assert len(spans_in(in_the_way)) == 1
    lines = log.getvalue().splitlines()
    assert [each for each in lines if "cannot send" in each] == [
        f"dask-otel cannot send spans with exporter 'folder' to {in_the_way} (File exists); they are lost there; it "
        "tries again with the next ones. Nothing else is affected"
    ]
    assert sum("has dropped" in each for each in lines) == 1
    assert any("sends spans again with exporter 'folder'" in each for each in lines)


@pytest.mark.usefixtures("_nothing_else")
def test_all_that_is_sampled_is_in_the_folder_without_any_backend(tmp_path):
    output = connected(tmp_path)
    records = [task(span_id=1), group(span_id=2), segment(span_id=3), root_segment(span_id=4)]
    output.put(records)
    assert not output.wants_metrics(last=True)
    output.close(30)
    assert [each["spanId"] for each in spans_in(tmp_path)] == [f"{record.span_id:016x}" for record in records]
    (path,) = tmp_path.iterdir()
    assert "-Scheduler-1_2-" in path.name
    assert output.status()["exporters"][0]["sent"] == {"task": 1, "group": 1, "span": 2}


@pytest.mark.usefixtures("_nothing_else")
def test_a_request_that_is_too_large_for_a_file_is_divided(tmp_path):
    output = connected(tmp_path, size=FILES * 8 * KIB)
    output.put([task(span_id=number) for number in range(1, 21)])
    output.put([segment(name="x" * 200, span_id=21, annotations={f"{n}": ["y" * 1900] for n in range(8)})])
    output.close(30)
    assert {int(each["spanId"], 16) for each in spans_in(tmp_path)} <= set(range(1, 21))
    (status,) = output.status()["exporters"]
    assert status["failing"] is False
    assert (status["sent"], status["dropped"]) == (
        {"task": 20},
        [{"kind": "span", "reason": "too_large", "count": 1}],
    )
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 8 * KIB


@pytest.mark.usefixtures("_nothing_else")
def test_a_collector_that_is_away_gets_no_more_time_since_the_folder_works(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    output = connected(tmp_path)
    output.put([segment(span_id=1)])
    wait_until(lambda: output.span_threads[0].is_failing and output.span_threads[1].is_failing is False)
    output.metric_threads[0].is_failing = True
    assert not output.wants_metrics(last=True)
    output.close(30)


def test_whether_a_folder_can_be_used_is_tried(tmp_path):
    FolderSender(str(tmp_path / "new"), 2**20, "doctor").folder.check()
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        FolderSender(str(tmp_path / "file"), 2**20, "doctor").folder.check()


def spans_in(folder):
    return [
        span
        for path in sorted(folder.iterdir())
        for each in path.read_text().splitlines()
        for by_scope in json.loads(each)["resourceSpans"][0]["scopeSpans"]
        for span in by_scope["spans"]
    ]


def wait_until(condition, patience=30.0):
    deadline = monotonic() + patience
    while not condition():
        assert monotonic() < deadline
        sleep(0.005)
