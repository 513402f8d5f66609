"""The user's own instrumentation of requests and grpc sees nothing of our exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: instrumentation patches the libraries for good.
CODE = """
import sys

sys.path.insert(0, {tests!r})

import grpc
import requests
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

theirs = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(theirs))
RequestsInstrumentor().instrument()
GrpcInstrumentorClient().instrument()

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from support.memory import make_sink
from support.misbehaving import Misbehaving, Says, in_turn
from support.records import segment

from dask_otel.otlp.transport import make_senders
from dask_otel.safety import Safety

with Misbehaving({protocol!r}, in_turn(Says(503, "UNAVAILABLE"))) as receiver:
    with trace.get_tracer("theirs").start_as_current_span("their work"):
        (sender,) = make_senders(receiver.endpoint)
        sink = make_sink(sender, Safety())
        sink.put([segment(name="one")])
        receiver.wait(lambda spans: spans, timeout=20)
        sink.close(10)
    print("sent", len(receiver.requests), "traceparent" in repr(receiver.headers).lower())
    print("theirs", [span.name for span in theirs.get_finished_spans()])
    # That they would have seen it:
    if {protocol!r} == "grpc":
        channel = grpc.insecure_channel(receiver.endpoint.partition("//")[2])
        TraceServiceStub(channel).Export(ExportTraceServiceRequest())
    else:
        requests.post(receiver.endpoint, data=b"")
    print("control", len(theirs.get_finished_spans()) - 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_no_span_of_theirs(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    code = CODE.format(tests=str(Path(__file__).parents[1]), protocol=protocol)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines() == ["sent 2 False", "theirs ['their work']", "control 1"], result.stderr
