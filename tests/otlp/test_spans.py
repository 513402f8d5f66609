from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from support.records import CALLER, INFO, group, pending, phase, root_segment, segment, task

from dask_otel.diagnosis.parts import GAPS, PARTS, CriticalPath, GroupKey, OnPath, Step, Waterfall
from dask_otel.diagnosis.verdict import Verdict
from dask_otel.otlp.spans import SpanFactory, attributes, error_description, exception_event

RESOURCE = Resource({"service.name": "test"})
SCOPE = InstrumentationScope("dask_otel", "1.0")


def made_by_a_tracer(record, limits):
    """The same span, made the way the SDK wants it."""

    class Ids(IdGenerator):
        def generate_trace_id(self):
            return record.trace_id

        def generate_span_id(self):
            return record.span_id

    def context(trace_id, span_id):
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1))

    exporter = InMemorySpanExporter()
    provider = TracerProvider(ALWAYS_ON, RESOURCE, id_generator=Ids(), span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent, kind = None, SpanKind.INTERNAL
    if record.parent_id is not None:
        above = context(record.trace_id, record.parent_id)
        if record.is_top:
            kind = SpanKind.SERVER
            above = SpanContext(*CALLER[:2], is_remote=True, trace_flags=TraceFlags(record.caller.is_sampled))
        parent = set_span_in_context(NonRecordingSpan(above))
    span = provider.get_tracer("dask_otel", "1.0").start_span(
        record.name,
        context=parent,
        kind=kind,
        attributes=attributes(record),
        links=[Link(context(link.trace_id, link.span_id), {"dask.link.type": link.kind}) for link in record.links],
        start_time=round(record.start * 1e9),
    )
    exception = exception_event(record)
    if exception:
        span.add_event("exception", exception, round(record.end * 1e9))
    if record.failure:
        span.set_status(Status(StatusCode.ERROR, error_description(record.failure)))
    span.end(round(record.end * 1e9))
    (finished,) = exporter.get_finished_spans()
    provider.shutdown()
    return finished


@pytest.mark.parametrize(
    "record",
    [
        *(segment(), group(), root_segment(), task(), phase(), pending()),
        segment(top=INFO, caller=CALLER, parent_id=CALLER.span_id),
        segment(top=INFO, caller=CALLER._replace(is_sampled=False), parent_id=CALLER.span_id),
        group(top=INFO, caller=CALLER),
    ],
    ids=["segment", "group", "root", "task", "phase", "pending", "called", "called unsampled", "in a called one"],
)
def test_is_what_a_tracer_would_have_made(record):
    limits = SpanLimits()
    ours = SpanFactory(RESOURCE, SCOPE, limits).span(record)
    theirs = made_by_a_tracer(record, limits)
    assert encode_spans([ours]) == encode_spans([theirs])
    assert ours.to_json() == theirs.to_json()


def reasons(record):
    return {
        name: value
        for name, value in attributes(record).items()
        if name.startswith(("dask.waterfall", "dask.critical", "dask.verdict"))
    }


def test_why_a_root_was_slow():
    assert reasons(segment()) == {
        "dask.verdict": ["skew", "gil"],
        "dask.verdict.text": "One of 8 tasks of Alice's workflow / data load / inc took 3 s, the others 0.2 s. "
        "Divide the data into smaller partitions.",
        "dask.verdict.at_most": 1.25,
        "dask.verdict.seconds": 1.5,
        "dask.verdict.hints": ["unused_memory"],
        "dask.verdict.withheld": "fine metrics are missing",
        "dask.waterfall.threads": 2.0,
        **{f"dask.waterfall.{part}.seconds": 0.5 for part in PARTS},
        "dask.waterfall.unaccounted.seconds": -0.5,
        "dask.critical.seconds": 1.875,
        "dask.critical.data.seconds": 1.5,
        "dask.critical.thread.seconds": 0.375,
        **{f"dask.critical.gap.{cause}.seconds": 0.125 for cause in GAPS},
        "dask.critical.steps": ["Alice's workflow / data load / inc", "load-123"],
        "dask.critical.steps.seconds": [1.25, 0.5],
    }
    assert reasons(group()) == {
        "dask.critical.seconds": 1.25, "dask.critical.data.seconds": 1.0, "dask.critical.thread.seconds": 0.25,
    }  # fmt: skip


def test_what_is_not_known_of_a_verdict_is_absent():
    healthy = {"verdict": Verdict(), "waterfall": Waterfall({"cpu": 3.0}, 1.0, 3.0), "critical": CriticalPath(0, 0)}
    assert reasons(segment(**healthy)) == {
        "dask.waterfall.threads": 1.0, "dask.waterfall.cpu.seconds": 3.0, "dask.critical.seconds": 0.0,
    }  # fmt: skip
    assert reasons(segment(waterfall=None, critical=None, verdict=None)) == reasons(group(critical=None)) == {}
    assert reasons(group(critical=OnPath())) == {"dask.critical.seconds": 0.0}


def test_the_steps_of_a_path_and_their_seconds_stay_together():
    """A list of texts has a limit in bytes, beyond which items are left out."""
    keys = [GroupKey("id", f"group-{number}") for number in range(20)]
    path = CriticalPath(
        0.0,
        300.0,
        groups={key: OnPath(data=float(number)) for number, key in enumerate(keys)},
        titles={key: Step(("ä" * 200, "x" * 200), key.name) for key in keys},
    )
    sent = SpanFactory(RESOURCE, SCOPE, SpanLimits()).span(segment(critical=path)).attributes
    assert [step[-8:] for step in sent["dask.critical.steps"]] == [f"group-{number}" for number in range(19, 9, -1)]
    assert sent["dask.critical.steps.seconds"] == tuple(map(float, range(19, 9, -1)))


def test_beyond_the_limit_only_fine_metrics_are_missing():
    """The limit is 128, and a segment may have 32 activities in each of several units."""
    many = {("execute", "inc", f"activity-{n}", unit): 1 for n in range(32) for unit in ("seconds", "bytes")}
    record = root_segment(metrics=many)
    sent = SpanFactory(RESOURCE, SCOPE, SpanLimits()).span(record)
    missing = attributes(record).keys() - sent.attributes.keys()
    assert 0 < len(missing) == sent.dropped_attributes < len(many)
    assert all(name.startswith("dask.execute.") for name in missing)


def test_limits_keep_the_first_and_count_the_rest():
    record = segment()
    factory = SpanFactory(RESOURCE, SCOPE, SpanLimits(max_span_attributes=4, max_links=0, max_span_attribute_length=5))
    span = factory.span(record)
    assert span.attributes == {
        "dask.kind": "span", "dask.span.id": "dask-", "dask.span.path": "Alice", "dask.span.root": "Alice",
    }  # fmt: skip
    assert span.dropped_attributes == len(attributes(record)) - 4
    assert span.dropped_links == 1


def test_success_leaves_the_status_unset():
    span = SpanFactory(RESOURCE, SCOPE, SpanLimits()).span(segment(failure=None))
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("name", ["", "\ud800", "x" * 10_000, "🙂" * 3000, "\x00\x1b[31m"])
def test_any_name_can_be_sent(name):
    span = SpanFactory(RESOURCE, SCOPE, SpanLimits()).span(segment(name=name))
    data = encode_spans([span]).SerializeToString()
    assert 0 < len(data) < 10_000
    assert span.name
