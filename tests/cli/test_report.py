"""``dask-otel report``: all that it prints and writes, and what it says of bad input."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from pathlib import Path

import pytest
from support.browser import browser, needs_browser
from support.runs import MadeRun, run_command, write

from dask_otel import schema
from dask_otel.diagnosis.findings import FINDINGS

PAGE = Path(__file__).parents[2] / "docs/compare.md"
#: As a scheduler says it.
WHY = (
    "Threads were idle for 3 s of 10 s while the last tasks ran: the longest task of 'etl / load / read' took 6 s, the "
    f"median one 2 s. {FINDINGS['stragglers'].advice}"
)
#: Names that people can give, and that must not be more than names.
EVIL = "<script>alert(1)</script> \x1b[31m\n\u202e"


def etl(number=1, at=0.0, **rest):
    values = {
        schema.TASK_COUNT: 12,
        schema.TASK_OUTCOMES["erred"]: 3,
        schema.VERDICT: ("stragglers", "late_workers"),
        schema.VERDICT_TEXT: WHY,
        schema.VERDICT_SECONDS: 3.0,
        schema.VERDICT_AT_MOST: 2.5,
        schema.VERDICT_HINTS: ("failed_tasks",),
    }
    run = MadeRun(
        number,
        at=at,
        parts={"cpu": 5.0, "noncpu": 1.0, "tail": 3.0, "starting": 1.0},
        path={"etl / load / read": 7.0, "etl / sum": 0.5},
        gaps={"graph": 1.5, "client": 0.5},
        result="error",
        **{schema.CRITICAL_SECONDS: 8.0} | values | rest,
    )
    edges = {schema.CRITICAL_SECONDS: 7.0, schema.CRITICAL_EDGE["data"]: 6.0, schema.CRITICAL_EDGE["thread"]: 1.0}
    run.group("etl / load / read", 0, 5, tasks=5, compute=12.0, p50=3.0, longest=6.0, **edges)
    run.group("etl / load / read", 4, 9, tasks=5, compute=8.0, p50=4.0, longest=5.0)
    run.group("etl / sum", 9, 10, tasks=2, compute=0.5, p50=0.25, longest=0.3)
    run.failed("etl / load / read", "ValueError", "bad")
    return run.failed("etl / load / read", "ValueError", "bad")


REPORT = f"""\
etl: error, took 10 s, 12 tasks (3 failed), 4 threads
2027-01-15 08:00:00 UTC · trace 00000000000000000000000000000001 · from dask-scheduler

stragglers: {WHY}
Without it, the run would be 2.5 s faster at most, 25% of the time.
Next: late_workers (workers came when the run had begun).
Also noticed: failed_tasks (tasks failed).

What the threads did
  cpu       5 s  50%  ████████████  tasks used a core
  tail      3 s  30%  ███████▎      idle: all tasks that were left ran already
  noncpu    1 s  10%  ██▍           tasks waited: for the GIL, input or output, a free core
  starting  1 s  10%  ██▍           idle: the cluster had no worker yet

Critical path: what followed one another, from the first task to the last
  etl / load / read     7 s  70%  ████████████████▊  6 s after their inputs, 1 s after a thread was free
  gap: graph          1.5 s  15%  ███▋               a graph was sent or taken in
  etl / sum          500 ms   5%  █▎
  gap: client        500 ms   5%  █▎                 nothing was asked for
  other steps        500 ms   5%  █▎                 the trace does not say how long each

Steps, in the order in which they began
  step               tasks  compute     median  longest  on the path  after  open for
  etl / load / read     10     20 s  3 s … 4 s      6 s          7 s    0 s       9 s
  etl / sum              2   500 ms     250 ms   300 ms       500 ms    9 s       1 s

What failed
  etl / load / read: ValueError: bad (2 tasks)
  1 failed task without a span
"""


def test_a_report(tmp_path):
    assert run_command("report", write(tmp_path / "runs.jsonl", etl())).output == REPORT
    assert f"```text\n{REPORT}```" in PAGE.read_text(encoding="utf-8")


def test_the_latest_run_is_reported_and_the_others_are_named(tmp_path):
    """The runs of a name, those of a trace, and those in a file or folder."""
    train = MadeRun(4, root="train", at=30.0, seconds=1.0)
    write(tmp_path / "a.jsonl", etl(1), etl(2, at=10.0))
    write(tmp_path / "b.jsonl", etl(3, at=20.0, **{schema.TASK_COUNT: 99}), train)
    latest = run_command("report", tmp_path)
    assert latest.output.startswith("train: success, took 1 s\n")
    assert "No verdict: the trace has no waterfall." in latest.output
    named = run_command("report", "etl", "--from", tmp_path)
    assert "99 tasks" in named.output
    assert named.output.endswith(
        "\nOther runs there\n"
        "  2 runs of etl, the latest of them at 2027-01-15 08:00:10 UTC in trace 00000000000000000000000000000002\n"
        "  1 run of train at 2027-01-15 08:00:30 UTC in trace 00000000000000000000000000000004\n"
    )
    for before in (
        ("etl@2", "--from", tmp_path),
        (f"{2:032X}", "--from", tmp_path),
        (tmp_path / "a.jsonl",),
        (tmp_path, "--trace", f"{2:032x}"),
        (f"{tmp_path}@3",),
    ):
        assert "· trace 00000000000000000000000000000002 ·" in run_command("report", *before).output
    assert "trace 00000000000000000000000000000003" in run_command("report", tmp_path, "--root", "etl").output


def test_roots_of_the_same_trace_are_named(tmp_path):
    run, other = etl(), MadeRun(2, root="train", seconds=20.0, at=-1.0)
    object.__setattr__(other.spans[0], "trace_id", run.trace_id)
    run.spans += other.spans
    done = run_command("report", write(tmp_path / "runs.jsonl", run))
    assert done.output.startswith("etl: ")
    assert "  train, in the same trace, took 20 s: --root 'train'\n" in done.output


@pytest.mark.parametrize(
    ("attributes", "parts", "expected"),
    [
        ({}, {"cpu": 9.5, "client": 0.5}, "Nothing stands out: "),
        (
            {},
            None,
            "No verdict: the trace has no waterfall. Its dask-otel was an older one, or otel.verdicts was false",
        ),
        ({schema.VERDICT_WITHHELD: "a worker left"}, {"cpu": 10.0}, "No verdict: a worker left\n"),
    ],
)
def test_why_there_is_no_verdict(tmp_path, attributes, parts, expected):
    made = MadeRun(parts=parts, **attributes)
    assert f"\n\n{expected}" in run_command("report", write(tmp_path / "run.jsonl", made)).output


def test_only_the_most_costly_of_many_steps_are_shown(tmp_path):
    run = etl()
    for number in range(30):
        run.group(f"etl / many / {number}", 9, 10, compute=0.1)
    path = write(tmp_path / "runs.jsonl", run)
    done = run_command("report", path).output
    assert done.count("etl / many / ") == 13
    assert "  17 more steps, which cost less: --all\n" in done
    assert "etl / load / read     10" in done
    assert run_command("report", path, "--all").output.count("etl / many / ") == 30


def test_json_has_all(tmp_path):
    data = json.loads(run_command("report", write(tmp_path / "runs.jsonl", etl()), "--json").output)
    assert (data["root"], data["seconds"], data["not_explained"]) == ("etl", 10.0, 0.0)
    assert data["verdict"]["ids"] == ["stragglers", "late_workers"]
    assert data["path"]["gaps"] == {"client": 0.5, "graph": 1.5}
    assert [step["label"] for step in data["steps"]] == ["etl / load / read", "etl / sum"]


def test_numbers_that_are_none_are_missing(tmp_path):
    odd = {schema.VERDICT: ("io",), schema.VERDICT_AT_MOST: -math.inf, schema.WATERFALL["tail"]: math.nan}
    odd |= {schema.CRITICAL_STEPS: ("etl / a", "etl / b"), schema.CRITICAL_STEPS_SECONDS: (math.inf, "long")}
    made = MadeRun(parts={"cpu": math.inf, "noncpu": 4.0}, gaps={"graph": math.inf, "input": 1.0}, **odd)
    path = write(tmp_path / "run.jsonl", made)
    data = json.loads(run_command("report", path, "--json").output, parse_constant=pytest.fail)
    assert (data["parts"], data["path"]["gaps"]) == ({"noncpu": 4.0}, {"input": 1.0})
    assert data["verdict"]["at_most"] is None
    assert "  noncpu         4 s  40%" in run_command("report", path, "--html", tmp_path / "page.html").output


def evil():
    run = MadeRun(root=EVIL, parts={"cpu": 10.0}, message=EVIL, status="error", **{schema.VERDICT_TEXT: EVIL})
    run.group(f"{EVIL} / {EVIL}", 0, 1).failed(f"{EVIL} / x", EVIL, EVIL)
    for span in run.spans:
        span.attributes[schema.VERDICT] = (EVIL,)
    return run


def test_names_are_no_more_than_names(tmp_path):
    """Neither a terminal nor a browser obeys them."""
    html = tmp_path / "page.html"
    done = run_command("report", write(tmp_path / "runs.jsonl", evil()), "--html", html)
    assert not {"\x1b", "\u202e"} & {*done.output}
    page = html.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_bar_puts_the_parts_side_by_side(tmp_path):
    html = tmp_path / "page.html"
    run_command("report", write(tmp_path / "runs.jsonl", etl()), "--html", html)
    stack = re.search('<svg class="stack".*?</svg>', html.read_text(encoding="utf-8"))[0]
    assert re.findall('rect class="(.*?)" x="(.*?)%" y="0" width="(.*?)%" height="100%"><title>(.*?)<', stack) == [
        ("work", "0.000", "50.000", "cpu: 5 s"),
        ("blocked", "50.000", "10.000", "noncpu: 1 s"),
        ("idle", "60.000", "10.000", "starting: 1 s"),
        ("idle", "70.000", "30.000", "tail: 3 s"),
    ]


@needs_browser
@pytest.mark.slow
def test_the_page_loads_nothing_and_fits(tmp_path):
    pages = {name: tmp_path / f"{name}.html" for name in ("etl", "evil")}
    for name, run in (("etl", etl()), ("evil", evil())):
        run_command("report", write(tmp_path / f"{name}.jsonl", run), "--html", pages[name])

    async def look():
        async with browser(tmp_path / "profile") as page:
            for path in pages.values():
                for width, scheme in ((1280, "light"), (1280, "dark"), (360, "light")):
                    await page.open(path.as_uri(), width=width, scheme=scheme)
                    assert await page.overflow() == [0, []]
                assert await page.run("performance.getEntriesByType('resource').length") == 0
                assert await page.run("document.querySelectorAll('script').length") == 0
            assert page.messages == []
            await page.open(pages["etl"].as_uri())
            link = await page.run("document.querySelector('.verdict a').href")
            assert link == FINDINGS["stragglers"].link

    asyncio.run(look())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/missing.jsonl"], "{tmp}/missing.jsonl: there is no such file or folder"),
        (["{tmp}/empty.jsonl"], "{tmp}/empty.jsonl"),
        (["{tmp}/text.jsonl"], "{tmp}/text.jsonl"),
        (["{tmp}/foreign.jsonl"], "{tmp}/foreign.jsonl: there is no finished run of Dask\n"),
        (["{tmp}/runs.jsonl", "--root", "train"], "there is no finished run of 'train', but of 'etl'\n"),
        (["{tmp}/runs.jsonl@2"], "{tmp}/runs.jsonl has only 1 of these runs, not 2\n"),
        (["{tmp}/runs.jsonl@0"], "numbers of runs begin with @1"),
        (
            ["train", "--from", "{tmp}/runs.jsonl"],
            "there is no finished run of 'train' in {tmp}/runs.jsonl, but of 'etl'",
        ),
        (
            ["f" * 32, "--from", "{tmp}/runs.jsonl"],
            "there is no finished run of Dask in {tmp}/runs.jsonl, but of 'etl'",
        ),
        (["http://me:{secret}@localhost:1/?key={secret}"], "http://localhost:1/: an address goes behind --from"),
        (["htp://me:{secret}@localhost:1"], "htp://localhost:1: there is no such file or folder"),
        (["etl", "--from", "htp://me:{secret}@localhost:1"], "source='htp://localhost:1': there is no such file"),
        (["{tmp}/evil.jsonl"], "an object with �]0;�, a in the place of resourceSpans"),
        (["{tmp}/deep.jsonl"], "{tmp}/deep.jsonl, line 1: not a trace: not JSON (it is nested too deeply)"),
        (["etl", "--from", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
        ([""], "a trace id, name of a root span, file or folder is needed"),
        (["{tmp}/runs.jsonl", "--html", "{tmp}/no/page.html"], "--html {tmp}/no/page.html: cannot be written: No such"),
    ],
)
def test_bad_input(tmp_path, arguments, expected):
    write(tmp_path / "runs.jsonl", etl())
    foreign = MadeRun()
    foreign.spans[0].attributes.clear()
    write(tmp_path / "foreign.jsonl", foreign)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.jsonl").write_text("no JSON\n")
    (tmp_path / "evil.jsonl").write_text(json.dumps({"\x1b]0;\x07": 1, "a": 2}))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    done = run_command("report", *(each.format(tmp=tmp_path, secret="s3cret") for each in arguments), exit_code=2)
    assert done.output.startswith("Error: ")
    assert "s3cret" not in done.output
    assert done.output[:-1].isprintable()
    assert expected.format(tmp=tmp_path) in done.output


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_otel.analysis.run", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    done = run_command("report", write(tmp_path / "runs.jsonl", etl()), exit_code=2)
    assert "pip install 'dask-otel[analysis]'" in done.output
