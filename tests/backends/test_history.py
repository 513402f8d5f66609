"""Runs that a real backend has, as data frames."""

from __future__ import annotations

import json

import pytest
from support.loaded import loaded_spans
from support.processes import cluster, our_errors
from support.runs import run_command
from support.trees import check_shape, check_sums, tree
from support.workflows import NESTED_ATTRIBUTES, nested

import dask_otel
from dask_otel.analysis import LoadError, LoadWarning, load
from dask_otel.schema import ATTRIBUTES, RESOURCE

pytestmark = [pytest.mark.backend, pytest.mark.slow]


RESOURCE_NAMES = {name for name, each in ATTRIBUTES.items() if RESOURCE in each.on}


def as_loaded(name, value):
    """A list is a tuple; so is one value of what may have several."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if name in ATTRIBUTES and ATTRIBUTES[name].type == "string or string[]" else value


def has_root(spans):
    return any(not span.parent_id for span in spans)


def test_runs_from_jaeger(jaeger, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoints["grpc"], "OTEL_SERVICE_NAME": f"history {tmp_path.name}"}
    with cluster(tmp_path, env=env) as processes:
        ids = [dask_otel.trace_id(nested(processes.client)[0]) for _ in range(2)]
        told = {trace_id: jaeger.trace(trace_id, has_root) for trace_id in ids}
        assert our_errors(processes.scheduler.log) == []
    one = load(jaeger.ui, trace_ids=ids[0].upper())
    assert (one.trace_ids, len(one.spans), len(one.groups), len(one.tasks)) == ([ids[0]], 5, 4, 1)
    spans = loaded_spans(one)
    # Not always those of one workflow alone: the second one may request a result again that was just released.
    assert tree(spans, *NESTED_ATTRIBUTES) == tree(told[ids[0]], *NESTED_ATTRIBUTES)
    check_shape(spans)
    check_sums(spans)

    service = env["OTEL_SERVICE_NAME"]
    with pytest.warns(LoadWarning, match="more traces than limit=2"):
        both = load(f"jaeger+{jaeger.ui}/", service=service, root="Alice's workflow", limit=2)
    assert both.trace_ids == ids
    assert {span.resource["service.name"] for span in loaded_spans(both)} == {service}
    for span in loaded_spans(both):
        (same,) = [each for each in told[span.trace_id] if each.span_id == span.span_id]
        assert (span.name, span.parent_id, span.links) == (same.name, same.parent_id, same.links)
        assert (span.start, span.end) == (same.start, same.end)
        extra = {name for name in span.attributes if name in RESOURCE_NAMES or name.startswith("exception.")}
        values = {name: value for name, value in span.attributes.items() if name not in extra}
        assert values == {name: as_loaded(name, value) for name, value in same.attributes.items()}

    middle = both.trace(ids[1]).spans["start"].min()
    assert load(jaeger.ui, service=service, since=middle).trace_ids == ids[1:]
    assert load(jaeger.ui, service=service, until=middle).trace_ids == ids[:1]
    with pytest.raises(LoadError, match="no trace 00000000000000000000000000000abc: look at trace_ids="):
        load(jaeger.ui, trace_ids="abc")
    with pytest.raises(LoadError, match=f"no trace of service='nobody' now: it has .*{service!r}"):
        load(jaeger.ui, service="nobody")

    where = ("--from", jaeger.ui, "--service", service)
    for run in (ids[1], "Alice's workflow", "Alice's workflow@1"):
        assert f"· trace {ids[1]} · from {service}\n" in run_command("report", run, *where).output
    printed = run_command("diff", "Alice's workflow@2", ids[1], *where, "--json").stdout
    compared = json.loads(printed[printed.index("{") :])  # before click 8.2, warnings are there, too
    assert [compared[side][0]["trace_id"] for side in ("before", "after")] == ids
    assert compared["parts"]["not_explained"] == pytest.approx(0.0, abs=1e-6)
    labels = {"data load / load", "prepare / scale / scale", "prepare / scale / total", "check / check"}
    assert {step["label"] for step in compared["steps"]} == labels
