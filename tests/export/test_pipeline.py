"""The queue and its thread, against a real OTLP receiver."""

from __future__ import annotations

import dataclasses
import threading
from time import monotonic

import pytest
from distributed.utils_test import captured_logger
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from support.records import group, segment

from dask_otel.cli.receiver import Receiver
from dask_otel.export import pipeline as module
from dask_otel.export.pipeline import FanOut, Pipeline
from dask_otel.export.provider import make_exporters
from dask_otel.export.spans import SpanFactory
from dask_otel.safety import Safety

FACTORY = SpanFactory(Resource({"service.name": "test"}), InstrumentationScope("dask_otel", "1"), SpanLimits())


def together(number: int, groups: int = 1):
    """A segment with its groups, recognisable by name."""
    records = [group(name=f"{number}.{i}", span_id=1000 * number + i + 1) for i in range(groups)]
    return [*records, segment(name=str(number), span_id=1000 * number + 999, parent_id=None, links=())]


class Gate(SpanExporter):
    """An exporter that hangs until it is let go, as with a collector that never answers."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.names: list[list[str]] = []

    def export(self, spans):
        self.entered.set()
        self.open.wait()
        self.names.append([span.name for span in spans])
        return SpanExportResult.SUCCESS

    def shutdown(self):
        """Real ones end their waiting here; this one is worse."""


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_sends_all_in_order(monkeypatch, protocol):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    safety = Safety()
    with Receiver() as receiver:
        (exporter,) = make_exporters(receiver.endpoints[protocol]).values()
        pipeline = Pipeline("otlp", exporter, FACTORY.span, safety)
        for number in range(20):
            pipeline.put(together(number, groups=40))
        pipeline.close(timeout=30)
        names = [span.name for span in receiver.wait(lambda spans: len(spans) >= 20 * 41, timeout=30)]
    assert names == [record.name for number in range(20) for record in together(number, groups=40)]
    assert pipeline.unsent == 0
    assert not safety.failures


def test_records_that_belong_together_leave_together(monkeypatch):
    monkeypatch.setattr(module, "MAX_BATCH", 10)
    gate = Gate()
    pipeline = Pipeline("gate", gate, FACTORY.span, Safety())
    pipeline.put(together(0))
    gate.entered.wait()
    for number, groups in ((1, 5), (2, 5), (3, 2), (4, 12)):
        pipeline.put(together(number, groups))
    gate.open.set()
    pipeline.close(timeout=30)
    # 6, 6 do not fit in one batch of 10; 6 and 3 do; 13 fit in none.
    assert [[name.split(".")[0] for name in names] for names in gate.names] == [
        ["0"] * 2,
        ["1"] * 6,
        ["2"] * 6 + ["3"] * 3,
        ["4"] * 10,
        ["4"] * 3,
    ]


def test_never_blocks_and_drops_the_oldest_when_full():
    gate = Gate()
    pipeline = Pipeline("gate", gate, FACTORY.span, Safety(), max_waiting=20)
    pipeline.put(together(0))
    gate.entered.wait()
    with captured_logger("distributed.dask_otel") as log:
        for number in range(1, 101):
            pipeline.put(together(number))
    assert log.getvalue().count("has dropped") == 1  # once a minute
    gate.open.set()
    pipeline.close(timeout=30)
    sent = [name for names in gate.names for name in names]
    assert sent[:2] == ["0.0", "0"]
    assert sent[2:] == [record.name for number in range(92, 101) for record in together(number)]
    assert pipeline.unsent == 202 - len(sent)


def test_a_collector_that_comes_late_gets_everything(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", (0.01, 0.05))
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 10_000)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with Receiver() as receiver:
        endpoint = receiver.endpoints["grpc"]
        receiver._grpc.stop(None).wait()  # nothing answers on the port
        (exporter,) = make_exporters(endpoint).values()
        pipeline = Pipeline("otlp", exporter, FACTORY.span, Safety())
        with captured_logger("distributed.dask_otel") as log:
            pipeline.put(together(1))
            while "tries again" not in log.getvalue():
                threading.Event().wait(0.01)
        with Receiver(grpc_port=int(endpoint.rsplit(":", 1)[1])) as late:
            assert len(late.wait(lambda spans: len(spans) >= 2, timeout=30)) >= 2
            while pipeline.unsent:  # an answer that came too late means another attempt
                threading.Event().wait(0.01)
            pipeline.close(timeout=30)
    assert pipeline.unsent == 0


def test_closing_never_takes_longer_than_the_timeout():
    gate = Gate()
    pipeline = Pipeline("gate", gate, FACTORY.span, Safety())
    pipeline.put(together(1))
    gate.entered.wait()
    pipeline.put(together(2))
    begin = monotonic()
    with captured_logger("distributed.dask_otel") as log:
        pipeline.close(timeout=0.2)
    assert monotonic() - begin < 2
    assert "could not send 4 spans" in log.getvalue()
    gate.open.set()


def test_one_record_that_cannot_be_converted_costs_only_itself():
    gate = Gate()
    gate.open.set()
    safety = Safety()
    pipeline = Pipeline("gate", gate, FACTORY.span, safety)
    with captured_logger("distributed.dask_otel"):
        pipeline.put([dataclasses.replace(group(), start="not a time"), segment(name="good")])
        pipeline.close(timeout=30)
    assert gate.names == [["good"]]
    assert list(safety.failures.values()) == [1]


def test_an_exporter_that_hangs_holds_up_no_other():
    hanging, good = Gate(), Gate()
    good.open.set()
    fan = FanOut([Pipeline("hanging", hanging, FACTORY.span, Safety()), Pipeline("good", good, FACTORY.span, Safety())])
    fan.put(together(1))
    begin = monotonic()
    with captured_logger("distributed.dask_otel"):
        fan.close(timeout=0.5)
    assert monotonic() - begin < 5
    assert good.names == [["1.0", "1"]]
    assert fan.unsent == 2
    hanging.open.set()


class Sloppy(Gate):
    """An exporter that returns nothing, as some do; or raises."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def export(self, spans):
        self.names.append([span.name for span in spans])
        if self.error:
            raise self.error


def test_an_exporter_that_returns_nothing_gets_each_span_once():
    sloppy = Sloppy()
    pipeline = Pipeline("sloppy", sloppy, FACTORY.span, Safety())
    pipeline.put([])
    pipeline.put(together(1))
    pipeline.close(timeout=30)
    assert sloppy.names == [["1.0", "1"]]
    assert pipeline.unsent == 0


def test_what_an_exporter_that_raises_did_not_send_is_counted(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", (0.01, 0.05))
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 3)
    sloppy, safety = Sloppy(OSError("no")), Safety()
    with captured_logger("distributed.dask_otel") as log:
        pipeline = Pipeline("sloppy", sloppy, FACTORY.span, safety)
        pipeline.put(together(1))
        while "gives up 2 spans" not in log.getvalue():
            threading.Event().wait(0.01)
        pipeline.close(timeout=30)
    assert pipeline.unsent == 2
    assert safety.failures == {("exporter sloppy", "OSError"): 3}
