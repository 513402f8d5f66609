"""Why a run took long, as pages show it."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from support.records import group, root_segment

import dask_otel.status
from dask_otel.diagnosis.parts import GAPS, LABELS, PARTS, Waterfall
from dask_otel.diagnosis.verdict import Finding, Verdict
from dask_otel.otlp.recent_runs import RecentRuns
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import Safety
from dask_otel.status.reasons import _GAPS, Part, Reasons, reasons
from dask_otel.status.render import inline

#: What the row of a root segment with all fields says; its waterfall has half a second of each part, for two threads.
FULL = Reasons(
    id=f"{2:016x}",
    name="data load",
    verdict=["skew", "gil"],
    text=[
        (
            "One of 8 tasks of Alice's workflow / data load / inc took 3 s, the others 0.2 s. "
            "Divide the data into smaller partitions.",
            False,
        )
    ],
    at_most="1.25 s",
    hints=["no worker has used as much as 70 % of its memory, in a run of at least 30 s"],
    withheld="fine metrics are missing",
    parts=[
        Part(
            part,
            LABELS[part],
            "\N{MINUS SIGN}250 ms" if part == "unaccounted" else "250 ms",
            "\N{MINUS SIGN}6%" if part == "unaccounted" else "6%",
            pytest.approx(100 / 18 * (number - (number > PARTS.index("unaccounted")))),
            0.0 if part == "unaccounted" else pytest.approx(100 / 18),
        )
        for number, part in enumerate(PARTS)
    ],
    steps=[("Alice's workflow / data load / inc", "1.25 s"), ("load-123", "500 ms")],
    path="1.88 s in tasks (1.5 s after their inputs, 375 ms after a thread), 125 ms without work, "
    "125 ms until a graph had arrived, 125 ms until the scheduler had heard of a result",
    is_running=False,
)


def rows(*records, **capture):
    runs = RecentRuns(1, Redactor(Capture(**capture)), Safety())
    return [runs.row(record) for record in records]


def test_all_that_is_known():
    assert reasons(rows(group(), root_segment())) == [FULL]
    assert reasons(rows(group(), root_segment(waterfall=None, verdict=None, critical=None))) == []


def test_small_parts_are_one_and_links_to_dask_s_documentation_are_links():
    text = "Read https://docs.dask.org/en/stable/x.html#y. See also https://evil.example/, http://docs.dask.org/."
    finding = Finding("busy_worker", "handed", 1.0, 0.75, "", text)
    shares = {"cpu": 79.2, "disk": 0.4, "tail": 20.0, "graph": 0.4}
    (found,) = reasons(rows(root_segment(verdict=Verdict((finding,)), waterfall=Waterfall(shares, 2.0, 50.0))))
    assert found.parts == [
        Part("cpu", "computing", "39.6 s", "79%", 0.0, pytest.approx(79.2)),
        Part("tail", "the last tasks", "10 s", "20%", pytest.approx(79.2), pytest.approx(20.0)),
        Part("rest", "the rest", "400 ms", "1%", pytest.approx(99.2), pytest.approx(0.8)),
    ]
    assert found.verdict == ["busy worker"]
    assert found.text == [
        (" Read ", False),
        ("https://docs.dask.org/en/stable/x.html#y", True),
        (". See also https://evil.example/, http://docs.dask.org/.", False),
    ]


def test_a_waterfall_without_threads_has_no_parts():
    (found,) = reasons(rows(root_segment(waterfall=Waterfall({"cpu": 0.0}, 0.0, 1.0))))
    assert found.parts == []


def test_each_part_has_a_label_and_a_colour_and_each_gap_a_name():
    style = (Path(dask_otel.status.__file__).parent / "run_style.html").read_text(encoding="utf-8")
    colours = re.findall(r"\.p-(\w+) \{ --part: (#\w{6}) \}", style)
    assert {name for name, _ in colours} == {*PARTS, "rest"} - {"unaccounted"}
    assert tuple(LABELS) == PARTS
    assert tuple(_GAPS) == GAPS


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        (root_segment().verdict, "skew a cure saves at most 1.25 s"),
        (Verdict(withheld="nobody <knows>"), "No verdict: nobody <knows>"),
        (Verdict(), "Nothing stands out: no cause took much of the time"),
    ],
    ids=["slow", "withheld", "healthy"],
)
def test_in_words(verdict, shown):
    html = inline(rows(root_segment(verdict=verdict)), 0).html.rpartition("</style>")[2]
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())
    assert f"Why it took so long {shown}" in text
    assert ("No verdict on a part of it: fine metrics are missing Less costly: gil" in text) == bool(verdict.findings)
    assert "computing 250 ms, 6% tasks that wait 250 ms, 6%" in text


def test_names_can_be_hidden():
    html = inline(rows(root_segment(verdict=root_segment().verdict), tags=False, keys=False), 0).html
    assert "a cure saves at most" in html
    for name in ("Alice", "data load", "load-123", "inc "):
        assert name not in html
