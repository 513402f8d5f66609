"""Spans and metrics are what the schema says: names, types, kinds of span, caps."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from support.memory import SCOPE
from support.records import FAILURE, group, pending, phase, segment, task

import dask_otel
from dask_otel.diagnosis.findings import FINDINGS
from dask_otel.diagnosis.parts import EDGES, GAPS, PARTS
from dask_otel.otlp.spans import SpanFactory, attributes, exception_event
from dask_otel.schema import (
    ATTRIBUTES,
    CRITICAL_EDGE,
    CRITICAL_GAP,
    EXCEPTION,
    LINK,
    LINK_TYPES,
    MAX_VALUE,
    MAX_VERDICTS,
    METRIC,
    METRICS,
    TASK_OUTCOMES,
    WALL,
    WATERFALL,
    Kind,
    clean,
    identifier,
)
from dask_otel.spantree.counts import OUTCOMES, FirstError

PACKAGE = Path(dask_otel.__file__).parent
FACTORY = SpanFactory(Resource({}), SCOPE, SpanLimits())
#: All that can be on a span of each kind.
RECORDS = {
    "span": [
        segment(dropped_groups=1, dropped_tasks=1, dropped_phases=1, dropped_spans=1, tally=segment().tally),
        segment(counted_in=("a", "b"), clients=("Client-a-1", "Client-b-2"), annotations={"team": ("red", "blue")}),
    ],
    "group": [group(), group(metrics=None, retried_error=FirstError("OSError", "away")), group(folded=2)],
    "task": [task()],
    "phase": [phase()],
    "pending": [replace(pending(), failure=FAILURE)],
}
TYPES = {
    "string": {str},
    "int": {int},
    "double": {float},
    "bool": {bool},
    "string[]": {list},
    "double[]": {list},
    "string or string[]": {str, list},
    "double; int for bytes and counts": {int, float},
}


def entry(name):
    """The schema's entry of a name; of two that match, the one without placeholders."""
    for known in ATTRIBUTES:
        pattern = re.sub(r"<\w+>", "[a-z0-9_]+", known.replace(".", r"\."))
        if name == known or (name not in ATTRIBUTES and re.fullmatch(pattern, name)):
            return ATTRIBUTES[known]
    raise KeyError(name)


@pytest.mark.parametrize("kind", RECORDS)
def test_each_kind_of_span_has_exactly_the_attributes_of_the_schema(kind):
    emitted = [values for record in RECORDS[kind] for values in (attributes(record), FACTORY.bare(record).attributes)]
    names = {entry(name).name for values in emitted for name in values}
    assert names == {name for name, attribute in ATTRIBUTES.items() if kind in attribute.on}
    for values in emitted:
        assert values["dask.kind"] == kind
        for name, value in values.items():
            assert type(value) in TYPES[entry(name).type], name
            if entry(name).type in ("string[]", "double[]"):
                assert {type(item) for item in value} == {float if entry(name).type == "double[]" else str}, name
            if entry(name).type.startswith("double;"):
                assert type(value) is (int if name.endswith((".bytes", ".count")) else float), name


def test_types_do_not_depend_on_the_value():
    """TraceQL's number literals match only their own type."""
    zero = segment(
        wall=dict.fromkeys(WALL, 0.0), threads_available=0.0, threads_others=0.0,
        metrics={("execute", "x", "a", "seconds"): 0, ("execute", "x", "a", "bytes"): 0.0},
    )  # fmt: skip
    for name, value in attributes(zero).items():
        assert type(value) in TYPES[entry(name).type], name
    assert type(attributes(zero)["dask.execute.a.seconds"]) is float
    assert type(attributes(zero)["dask.execute.a.bytes"]) is int


def test_events_and_links_have_the_attributes_of_the_schema():
    on = {kind: {name for name, each in ATTRIBUTES.items() if kind in each.on} for kind in (EXCEPTION, LINK)}
    assert set(exception_event(task())) == on[EXCEPTION]
    links = [link for records in RECORDS.values() for record in records for link in FACTORY.span(record).links]
    assert {name for link in links for name in link.attributes} == on[LINK]
    assert {value for link in links for value in link.attributes.values()} <= set(LINK_TYPES)


def test_texts_are_cut_at_the_cap_of_their_attribute():
    """In bytes; the rest of a span does not change."""
    long = "ä" * 5000
    info = replace(segment().span, id=long, tags=(long, long))
    run = task().run._replace(key=long, group=long, prefix=long, type=long, worker=long, worker_name=long)
    for record in (segment(span=info), group(group=long, name=long, span=info), task(run=run, span=info)):
        for name, value in FACTORY.span(record).attributes.items():
            if isinstance(value, str):
                size = len(value.encode())
                assert size <= entry(name).cap, name
                assert "ä" not in value or size > entry(name).cap - 3, name


def test_the_outcomes_of_the_span_tree_are_those_of_the_schema():
    assert list(TASK_OUTCOMES) == ["completed", *OUTCOMES]


def test_parts_gaps_and_edges_are_those_of_the_diagnosis():
    assert (tuple(WATERFALL), tuple(CRITICAL_GAP), tuple(CRITICAL_EDGE)) == (PARTS, GAPS, EDGES)


def test_each_verdict_has_a_series_that_is_kept_free():
    assert len(FINDINGS) <= MAX_VERDICTS


def test_metrics_have_attributes_of_the_schema():
    used = {name for metric in METRICS.values() for name in metric.attributes}
    assert used == {name for name, attribute in ATTRIBUTES.items() if METRIC in attribute.on}
    for metric in METRICS.values():
        assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.bounds) == sorted(metric.bounds)
        assert all(len(values) == len(metric.attributes) for values in metric.zeros)
        assert metric.folded >= len(metric.zeros)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_names_of_attributes_and_metrics_are_in_the_schema_only(path):
    if path.parent.name == "schema":
        return
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            assert not _is_name(node.value), f"{path.name}:{node.lineno}: {node.value}"


def _is_name(text):
    try:
        entry(text)
    except KeyError:
        return text in METRICS or any(text == name.partition("<")[0] != name for name in ATTRIBUTES)
    return text.startswith("dask")


#: Any text that Python can hold, lone surrogates included.
anything = st.text(st.characters(exclude_categories=()), max_size=50)


@given(anything, st.integers(3, 60))
def test_clean_is_valid_and_short(text, limit):
    assert len(clean(text, limit).encode("utf-8")) <= limit


@given(st.text(max_size=50))
def test_clean_leaves_good_text_alone(text):
    assert clean(text) == text


def test_clean_cuts_between_characters():
    cut = clean("🙂" * 1000)
    assert cut.endswith("🙂…")
    assert len(cut.encode()) <= MAX_VALUE


@given(st.one_of(anything, st.integers(), st.none(), st.tuples(anything)))
def test_identifier_has_only_what_names_may_have(value):
    assert re.fullmatch(r"[a-z0-9_]{1,64}", identifier(value))


@pytest.mark.parametrize(
    ("text", "expected"), [("thread-cpu", "thread_cpu"), ("Disk Read!", "disk_read"), ("", "unnamed")]
)
def test_identifier(text, expected):
    assert identifier(text) == expected
