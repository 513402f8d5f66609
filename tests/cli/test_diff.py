"""``dask-otel diff``: what it prints, its exit codes, and what it says of bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from time import sleep

import dask
import pytest
import yaml
from distributed import span
from distributed.utils_test import gen_cluster
from support.clusters import TWO_WORKERS, one_clock
from support.environment import clear_variables, environment
from support.runs import MadeRun, run_command, write

import dask_otel
from dask_otel.cli import diff as module
from dask_otel.schema import CRITICAL_SECONDS, SPAN_RESULT, TASK_COUNT

BRIDGE = {"otel.sweep-interval": "50ms", "otel.traces.idle-timeout": "300ms"}
PAGE = Path(__file__).parents[2] / "docs/compare.md"


def etl(number, seconds=10.0, *, root="etl", read=5.0, tasks=10, step="load / read", **rest):
    """A run of which reading takes ``read`` seconds, waiting for something outside."""
    rest = {"threads": 4.0, TASK_COUNT: tasks, CRITICAL_SECONDS: read + 3.0} | rest
    run = MadeRun(
        number,
        root=root,
        at=100.0 * number,
        seconds=seconds,
        parts={"cpu": seconds - read - 1.0, "noncpu": read, "starting": 1.0},
        path={f"{root} / {step}": read, f"{root} / sum": 3.0},
        gaps={"graph": seconds - read - 3.0},
        **rest,
    )
    run.group(f"{root} / {step}", 0, read, tasks=tasks - 2, compute=4 * read, p50=1.0, longest=2.0)
    return run.group(f"{root} / sum", read, seconds, tasks=2, compute=3.0, p50=1.5, longest=2.0)


DIFF = """\
etl: 20% slower, 10 s → 12 s (+2 s)
before  3 runs  9.9 s … 10.1 s   10 tasks  4 threads  2027-01-15 08:01:40 UTC  to 2027-01-15 08:05:00 UTC
after   3 runs  11.9 s … 12.1 s  20 tasks  4 threads  2027-01-15 08:06:40 UTC  to 2027-01-15 08:10:00 UTC

Most of it: load / read (+2.5 s) on the critical path, and noncpu (+2.5 s) by what the threads did.
Probability of such a difference by chance: 0.05.

By what the threads did
          before  after  difference  of the whole
  noncpu     5 s  7.5 s      +2.5 s          125%  tasks waited: for the GIL, input or output, a free core
  cpu        4 s  3.5 s     -500 ms          -25%  tasks used a core

By what is on the critical path
               before  after  difference  of the whole
  load / read     5 s  7.5 s      +2.5 s          125%
  gap: graph      2 s  1.5 s     -500 ms          -25%  a graph was sent or taken in

By step, those that cost most of the difference first
  step          tasks      compute          a task  on the path     open for
  load / read  8 → 18  20 s → 30 s  2.5 s → 1.67 s  5 s → 7.5 s  5 s → 7.5 s
  sum               2          3 s           1.5 s          3 s  5 s → 4.5 s

Failed: slower than the 10% that are allowed.
"""


@pytest.fixture
def sides(tmp_path):
    """Two folders with three runs each."""
    for name, runs in (
        ("old", [etl(number, seconds) for number, seconds in ((1, 10.0), (2, 9.9), (3, 10.1))]),
        ("new", [etl(number, seconds, read=7.5, tasks=20) for number, seconds in ((4, 12.0), (5, 11.9), (6, 12.1))]),
    ):
        (tmp_path / name).mkdir()
        for number, run in enumerate(runs):
            write(tmp_path / name / f"{number}.jsonl", run)
    return tmp_path / "old", tmp_path / "new"


def test_a_comparison(sides):
    done = run_command("diff", *sides, "--fail-if-slower", "10%", exit_code=1)
    assert done.output == DIFF
    assert f"```text\n{DIFF}```" in PAGE.read_text(encoding="utf-8")


def test_the_recipes_for_ci(sides, tmp_path, monkeypatch):
    """They are YAML, and their commands are right."""
    monkeypatch.chdir(tmp_path)
    recipes = re.findall("```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    github, gitlab = map(yaml.safe_load, recipes)
    commands = [step["run"] for step in github["jobs"]["speed"]["steps"] if "run" in step], gitlab["speed"]["script"]
    for lines in commands:
        command = next(line for line in lines if "dask-otel diff" in line)
        for name, place in zip(("old", "new"), sides, strict=True):
            command = command.replace(f'"$RUNNER_TEMP/{name}"', str(place)).replace(f"/tmp/{name}", str(place))
        _, *arguments = command.split()
        assert run_command(*arguments, exit_code=1).output == DIFF
        assert (tmp_path / "diff.html").exists()
        (tmp_path / "diff.html").unlink()


def test_exit_codes(sides, tmp_path):
    old, new = sides
    assert run_command("diff", old, new, "--fail-if-slower", "20%").output.endswith(
        "\nPassed: not slower than the 20% that are allowed.\n"
    )
    assert "allowed" not in run_command("diff", old, new).output
    faster = run_command("diff", new, old, "--fail-if-slower", "0%").output
    assert faster.startswith("etl: 17% faster, 12 s → 10 s (-2 s)\n")
    assert "Most of it: load / read (-2.5 s) on the critical path" in faster
    # One run as slow as the old ones: it can be chance.
    write(tmp_path / "new" / "0.jsonl", etl(4, 9.95))
    chance = run_command("diff", old, new, "--fail-if-slower", "10%").output
    assert chance.startswith("etl: 19% slower, which can be chance, 10 s → 11.9 s (+1.9 s)\n")
    assert chance.endswith("\nPassed: slower than the 10% that are allowed, but that can be chance.\n")


def test_runs_are_chosen_by_number_and_put_together_by_commas(sides, tmp_path):
    old, new = sides
    every = write(tmp_path / "all.jsonl", *(etl(number, 10.0 + number) for number in range(1, 7)))

    def compared(*arguments):
        data = json.loads(run_command("diff", *arguments, "--json").output)
        return [[int(run["trace_id"]) for run in data[side]] for side in ("before", "after")]

    assert compared("etl@2-4", "etl@1", "--from", every) == [[3, 4, 5], [6]]
    assert compared(f"{1:032x}, etl@2", "etl@1", "--from", every) == [[1, 5], [6]]
    assert compared(f"{old / '0.jsonl'},{old / '1.jsonl'}", new) == [[1, 2], [4, 5, 6]]


def test_json_has_all(sides):
    done = run_command("diff", *sides, "--json", "--fail-if-slower", "10%", exit_code=1)
    data = json.loads(done.output)
    assert (data["is_slower"], data["allowed"]) == (True, 0.1)
    change = {"before": 5.0, "after": 7.5, "difference": 2.5, "chance": 0.05, "can_be_chance": False}
    assert data["critical_path"]["changes"]["load / read"] == pytest.approx(change)
    assert data["critical_path"]["not_explained"] == pytest.approx(0.0, abs=1e-9)
    assert data["steps"][0]["label"] == "load / read"


def test_identical_runs(sides):
    done = run_command("diff", sides[0], sides[0], "--fail-if-slower", "0%").output
    assert done.startswith("etl: the same time, 10 s → 10 s (0 s)\n")
    assert "difference  of the whole" not in done


def test_only_runs_that_succeeded_are_compared(sides, tmp_path):
    old, new = sides
    failed = write(new / "3.jsonl", etl(9, 1.0, **{SPAN_RESULT: "error"}))
    done = run_command("diff", old, new)
    assert "after   3 runs  11.9 s … 12.1 s" in done.output
    assert f"Warning: {new}: 1 run left out: error in trace {9:032x}\n" in done.output
    assert "10 s → 1 s" in run_command("diff", old, failed).output
    refused = run_command("diff", old, failed, "--fail-if-slower", "10%", exit_code=2)
    assert f"{failed}: no run has succeeded (error in trace {9:032x})" in refused.output


def test_the_page(sides, tmp_path):
    html = tmp_path / "page.html"
    run_command("diff", *sides, "--html", html, "--fail-if-slower", "10%", exit_code=1)
    page = html.read_text(encoding="utf-8")
    for text in (
        "etl: 20% slower, 10 s → 12 s (+2 s)",
        "Failed: slower than",
        "8 → 18",
        'class="more"',
        "9.9 s … 10.1 s",
    ):
        assert text in page
    evil = "<script>x</script>"
    steps = {"step": f"{evil} / {evil}"}
    old, new = (write(tmp_path / f"{number}.jsonl", etl(number, root=evil, read=number, **steps)) for number in (1, 2))
    run_command("diff", old, new, "--html", html)
    assert "<script" not in html.read_text(encoding="utf-8")


def test_a_run_that_took_no_time(tmp_path):
    none, some = write(tmp_path / "a.jsonl", MadeRun(1, seconds=0.0)), write(tmp_path / "b.jsonl", MadeRun(2))
    assert run_command("diff", none, some).output.startswith("etl: slower, 0 s → 10 s (+10 s)\n")
    assert run_command("diff", some, none).output.startswith("etl: 100% faster, 10 s → 0 s (-10 s)\n")


def test_a_renamed_root_and_other_work(tmp_path):
    old = write(tmp_path / "old.jsonl", etl(1))
    renamed = write(tmp_path / "renamed.jsonl", etl(2, root="etl v2"))
    assert run_command("diff", old, renamed).output.startswith("etl → etl v2: the same time, 10 s → 10 s (0 s)\n")
    other = MadeRun(3, root="train").group("train / fit", 0, 1)
    refused = run_command("diff", old, write(tmp_path / "other.jsonl", other), exit_code=2)
    assert "'etl' and 'train' have no step in common" in refused.output
    moved = write(tmp_path / "moved.jsonl", MadeRun(4).group("etl / elsewhere", 0, 1))
    told = run_command("diff", old, moved).output
    assert "No step is in both" in told
    assert "One side has no waterfalls and no critical paths" in told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/old", "{tmp}/missing/"], "{tmp}/missing/: there is no such file or folder"),
        (["{tmp}/old", "{tmp}/two.jsonl", "--root", "b"], "{tmp}/old: there is no finished run of 'b', but of 'etl'"),
        (["{tmp}/two.jsonl", "{tmp}/two.jsonl"], "both have runs of 'a', 'b'; choose one with --root"),
        (["{tmp}/old", "{tmp}/two.jsonl"], "they have no root span in common: 'a', 'b', 'etl'; choose one with --root"),
        (["{tmp}/old", "{tmp}/new", "--fail-if-slower", "10"], "'10' is no percentage from 0% up, such as 10%"),
        (["{tmp}/old", "{tmp}/new", "--fail-if-slower", "-1%"], "'-1%' is no percentage"),
        (["{tmp}/old"], "Missing argument 'AFTER'"),
    ],
)
def test_bad_input(sides, tmp_path, arguments, expected):
    write(tmp_path / "two.jsonl", etl(1, root="a"), etl(2, root="b"))
    done = run_command("diff", *(each.format(tmp=tmp_path) for each in arguments), exit_code=2)
    assert expected.format(tmp=tmp_path) in done.output


def test_a_fault_of_ours_is_not_taken_for_slower(sides, monkeypatch):
    monkeypatch.setattr(module, "title", lambda _: 1 / 0)
    assert "ZeroDivisionError" in run_command("diff", *sides, exit_code=2).output


def read(number, seconds):
    sleep(seconds)


@pytest.mark.slow
@gen_cluster(client=True, nthreads=TWO_WORKERS, config=BRIDGE)
async def test_the_step_and_the_part_that_made_real_runs_slower(client, scheduler, *workers, tmp_path, monkeypatch):
    clear_variables(monkeypatch)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    plugin = dask_otel.OTelPlugin()
    with one_clock(), dask.config.set({"otel.traces.folder": str(tmp_path)}):
        await scheduler.register_scheduler_plugin(plugin, idempotent=False)
        await client.submit(read, 0, 0.0, key="warm up")
        for seconds in (0.05, 0.4):
            with span("nightly"):
                with span("load"):
                    inputs = client.map(read, range(6), seconds=seconds)
                await client.submit(len, inputs, key=f"total-{seconds}")
        await plugin.before_close()
    found = json.loads(run_command("diff", "nightly@2", "nightly@1", "--from", tmp_path, "--json").output)
    assert found["seconds"]["difference"] > 0.5
    for explained, name in ((found["critical_path"], "load / read"), (found["parts"], "noncpu")):
        assert next(iter(explained["changes"])) == name
        assert explained["not_explained"] == pytest.approx(0.0, abs=1e-3)
    assert [step["label"] for step in found["steps"]] == ["load / read", "total"]
    told = run_command("report", "nightly", "--from", tmp_path).output
    assert told.startswith("nightly: success, took ")
    assert "not explained" not in told
    assert "  nightly / load / read      6 " in told


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_changes_no_exit_code(sides):
    read, written = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-c",
        "from dask_otel.cli import main; main()",
        "diff",
        *sides,
        "--fail-if-slower",
        "10%",
    ]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, env=environment())
    os.close(written)
    assert (done.returncode, done.stderr) == (1, "")
