"""A large trace stays below the 5 MB at which Tempo drops one."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from support.large import GROUPS, TASKS, large_trace

from dask_otel.otlp.spans import SpanFactory
from dask_otel.spantree.records import GroupRecord, SegmentRecord

TEMPO_DROPS = 5_000_000


def test_a_hundred_thousand_tasks_in_three_thousand_groups():
    records = large_trace()
    factory = SpanFactory(Resource({"service.name": "test"}), InstrumentationScope("dask_otel"), SpanLimits())
    size = encode_spans([factory.span(record) for record in records]).ByteSize()
    assert size < TEMPO_DROPS, (size, len(records))
    assert len(records) < 3000
    root = records[-1]
    assert isinstance(root, SegmentRecord)
    assert root.tally.tasks == TASKS
    shown = [record for record in records if isinstance(record, GroupRecord)]
    assert sum(record.tally.tasks for record in shown) == TASKS
    assert sum(record.folded or 1 for record in shown) == GROUPS
    assert root.truncated_groups == sum(record.folded for record in shown)
    assert root.truncated_tasks == sum(record.truncated_tasks for record in shown) == 300 * 25 - 200
