"""The queue's thread: what leaves together, what is tried again, and what closing does."""

from __future__ import annotations

import dataclasses
import logging
import threading
from time import monotonic

import pytest
from distributed.utils_test import captured_logger
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from support.memory import FACTORY, make_sink
from support.records import group, root_segment, segment

from dask_otel.cli.receiver import Receiver
from dask_otel.metrics.snapshot import Snapshot
from dask_otel.otlp import exporter as module
from dask_otel.otlp import transport
from dask_otel.otlp.environment import Limits
from dask_otel.otlp.exporter import ExportThread, MetricExportQueue, SpanExportQueue
from dask_otel.otlp.metrics import MetricFactory
from dask_otel.otlp.transport import ExportResult, RetryDecision, Sender, make_senders
from dask_otel.safety import Safety, log


def together(number: int, groups: int = 1):
    """A segment with its groups, recognisable by name."""
    records = [group(name=f"{number}.{i}", span_id=1000 * number + i + 1) for i in range(groups)]
    return [*records, root_segment(name=str(number), span_id=1000 * number + 999)]


def pipeline_of(exporter, *, safety=None, name="test", **limits):
    safety = safety or Safety()
    queue = SpanExportQueue(FACTORY, safety, Limits(**({"delay": 0.0} | limits)))
    return ExportThread(Sender(name, exporter), queue, safety)


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
        (sender,) = make_senders(receiver.endpoints[protocol])
        pipeline = ExportThread(sender, SpanExportQueue(sender.form(FACTORY), safety), safety)
        for number in range(20):
            pipeline.put(together(number, groups=40))
        pipeline.close(timeout=30)
        names = [span.name for span in receiver.wait(lambda spans: len(spans) >= 20 * 41, timeout=30)]
    assert names == [record.name for number in range(20) for record in together(number, groups=40)]
    assert pipeline.unsent == 0
    assert pipeline.queue.sent == {"group": 800, "span": 20}
    assert not safety.failures


def test_records_that_belong_together_leave_together():
    gate = Gate()
    pipeline = pipeline_of(gate, max_batch=10)
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


def test_segments_wait_for_others_to_share_a_request_with():
    gate = Gate()
    gate.open.set()
    pipeline = pipeline_of(gate, delay=3600.0, max_batch=20)
    for number in range(11):
        pipeline.put(together(number))
    gate.entered.wait(30)
    assert not pipeline._deadline.deadline
    pipeline.close(timeout=30)  # does not wait for the rest of the hour
    assert [len(names) for names in gate.names] == [20, 2]


def test_never_blocks_and_logs_what_it_drops_once_a_minute():
    gate = Gate()
    pipeline = pipeline_of(gate, max_waiting=20)
    pipeline.put(together(0))
    gate.entered.wait()
    with captured_logger("distributed.dask_otel") as logged:
        for number in range(1, 101):
            pipeline.put(together(number))
    assert logged.getvalue().count("has dropped") == 1
    gate.open.set()
    pipeline.close(timeout=30)
    sent = [name for names in gate.names for name in names]
    # The newest 20 segments; their groups are worth less.
    assert sent == ["0.0", "0", *map(str, range(81, 101))]
    assert pipeline.queue.dropped == {("group", "queue_full"): 100, ("span", "queue_full"): 80}
    assert pipeline.unsent == 202 - len(sent)


def test_closing_never_takes_longer_than_the_timeout():
    gate = Gate()
    pipeline = pipeline_of(gate)
    pipeline.put(together(1))
    gate.entered.wait()
    pipeline.put(together(2))
    begin = monotonic()
    with captured_logger("distributed.dask_otel") as logged:
        pipeline.close(timeout=0.2)
    assert monotonic() - begin < 30  # it would hang for ever
    assert (
        "could not send 4 spans with exporter 'test'; 4 were left when the time was over; it has sent 0"
        in logged.getvalue()
    )
    gate.open.set()


def test_a_record_that_cannot_be_converted_costs_only_its_attributes():
    gate, safety = Gate(), Safety()
    gate.open.set()
    pipeline = pipeline_of(gate, safety=safety)
    with captured_logger("distributed.dask_otel"):
        pipeline.put(
            [group(buckets="not buckets"), dataclasses.replace(group(), start="no time"), segment(name="good")]
        )
        pipeline.close(timeout=30)
    assert gate.names == [["inc", "good"]]
    assert pipeline.queue.dropped == {("group", "fault"): 1}
    assert sum(safety.failures.values()) == 3


def test_what_follows_a_request_shortly_shares_the_next_one():
    gate = Gate()
    gate.open.set()
    pipeline = pipeline_of(gate, delay=0.0, spacing=1.0)
    begin = monotonic()
    for number in range(3):
        pipeline.put(together(number))
        while not gate.names:
            threading.Event().wait(0.01)
    while len(gate.names) < 2:
        threading.Event().wait(0.01)
    assert monotonic() - begin >= 1.0
    pipeline.put(together(3))
    pipeline.close(timeout=30)  # which does not wait
    assert gate.names == [["0.0", "0"], ["1.0", "1", "2.0", "2"], ["3.0", "3"]]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_encoding_rests_between_spans(monkeypatch, protocol):
    """An event loop that needs the interpreter lock gets it then."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setattr(transport, "SLICE", 0.0)
    rests = []
    monkeypatch.setattr(transport, "sleep", lambda seconds: rests.append(threading.current_thread().name))
    with Receiver() as receiver:
        (sender,) = make_senders(receiver.endpoints[protocol])
        pipeline = ExportThread(sender, SpanExportQueue(sender.form(FACTORY), Safety()), Safety())
        pipeline.put(together(1, groups=99))
        pipeline.close(timeout=30)
    assert rests == ["dask-otel spans otlp"] * 100


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_span_that_cannot_be_encoded_loses_only_itself(monkeypatch, protocol):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    safety = Safety()
    with Receiver() as receiver, captured_logger("distributed.dask_otel"):
        (sender,) = make_senders(receiver.endpoints[protocol])
        pipeline = ExportThread(sender, SpanExportQueue(sender.form(FACTORY), safety), safety)
        pipeline.put([*together(1, groups=8), group(name="odd", span_id=2**64), *together(2, groups=8)])
        pipeline.close(timeout=30)
        names = [span.name for span in receiver.wait(lambda spans: len(spans) >= 18, timeout=30)]
    assert names == [record.name for number in (1, 2) for record in together(number, groups=8)]
    assert pipeline.queue.dropped == {("group", "fault"): 1}
    assert set(safety.failures) == {("conversion", "OverflowError")}


def test_an_exporter_that_hangs_holds_up_no_other():
    hanging, good = Gate(), Gate()
    good.open.set()
    sink = make_sink(Sender("hanging", hanging), Sender("good", good), Safety())
    sink.put(together(1))
    begin = monotonic()
    while not good.names:
        threading.Event().wait(0.01)
    with captured_logger("distributed.dask_otel"):
        sink.close(timeout=0.5)
    assert monotonic() - begin < 30
    assert good.names == [["1.0", "1"]]
    assert sink.unsent == 2
    hanging.open.set()


class Blocking(logging.Handler):
    """A handler that blocks, as one that sends over the network does."""

    def __init__(self):
        super().__init__()
        self.entered, self.goes_on = threading.Event(), threading.Event()

    def emit(self, record):
        self.entered.set()
        self.goes_on.wait(60)


class Away(Sender):
    """A collector that is away."""

    def send(self, data):
        return ExportResult(RetryDecision.LATER, "nobody there")

    def shutdown(self):
        pass


@pytest.mark.parametrize("items", ["spans", "metrics"])
def test_putting_does_not_wait_for_a_logging_handler(items):
    """The event loop puts; what an export thread logs meanwhile must not hold its lock."""
    safety, handler = Safety(), Blocking()
    if items == "spans":
        queue, put = SpanExportQueue(FACTORY, safety, Limits(delay=0.0)), together(1)
    else:
        scope = InstrumentationScope("test")
        queue = MetricExportQueue(MetricFactory(Resource({}), scope, lambda name, value: value))
        put = Snapshot(1.0, [])
    log.addHandler(handler)
    try:
        thread = ExportThread(Away("away"), queue, safety)
        thread.put(put)
        assert handler.entered.wait(30)
        putting = threading.Thread(target=thread.put, args=(put,), daemon=True)
        putting.start()
        putting.join(10)
        assert not putting.is_alive()
        assert thread.status()["failing"]
    finally:
        handler.goes_on.set()
        log.removeHandler(handler)
    with captured_logger("distributed.dask_otel"):
        thread.close(0.1)


class Way:
    """Notes how much time it was given, and whether not to try."""

    is_local = False

    def __init__(self, is_supported=True, is_failing=False):
        self.is_supported = is_supported
        self.is_failing = is_failing

    def close(self, timeout, *, last=None, give_up=False):
        self.timeout = timeout
        self.gave_up = give_up


@pytest.mark.parametrize(("timeout", "for_spans"), [(8.0, 7.0), (2.0, 1.5), (1.0, 0.75)])
def test_the_last_metrics_have_time_left(timeout, for_spans):
    sink = make_sink(Safety())
    spans, metrics = Way(), Way()
    sink.span_threads, sink.metric_threads = [spans], [metrics]
    sink.close(timeout)
    assert spans.timeout == for_spans
    assert metrics.timeout <= timeout - min(0.2, timeout / 5)


@pytest.mark.parametrize(
    ("spans", "metrics", "is_away", "gives_up"),
    [
        ([True], True, True, True),
        ([True, True], True, True, True),
        ([True, False], True, False, False),
        ([True], False, False, False),
        ([True], None, True, False),  # what is on its way may arrive
        ([False], True, False, False),  # perhaps elsewhere
        ([None], True, True, False),
        ([], True, True, False),
        ([None], None, False, False),
        ([False], False, False, False),
    ],
)
def test_whether_anybody_is_there(spans, metrics, is_away, gives_up):
    sink = make_sink(Safety())
    way = Way(is_failing=metrics)
    sink.span_threads, sink.metric_threads = [Way(is_failing=failing) for failing in spans], [way]
    assert sink.is_away is is_away
    assert sink.wants_metrics(last=True) is not gives_up
    sink.close(10.0)
    assert way.gave_up is gives_up


def test_no_time_is_kept_for_a_backend_that_takes_no_metrics():
    sink = make_sink(Safety())
    spans = Way()
    sink.span_threads, sink.metric_threads = [spans], [Way(is_supported=False)]
    sink.close(8.0)
    assert spans.timeout == 7.8


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
    pipeline = pipeline_of(sloppy)
    pipeline.put([])
    pipeline.put(together(1))
    pipeline.close(timeout=30)
    assert sloppy.names == [["1.0", "1"]]
    assert pipeline.unsent == 0


def test_what_an_exporter_that_raises_did_not_send_is_counted(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", (0.01, 0.05))
    monkeypatch.setattr(module, "GIVE_UP_AFTER", 1.0)
    sloppy, safety = Sloppy(OSError("no")), Safety()
    with captured_logger("distributed.dask_otel") as logged:
        pipeline = pipeline_of(sloppy, safety=safety)
        pipeline.put(together(1))
        while "has dropped" not in logged.getvalue():
            threading.Event().wait(0.01)
        pipeline.close(timeout=30)
    assert pipeline.queue.dropped == {("group", "refused"): 1, ("span", "refused"): 1}
    assert len(sloppy.names) == safety.failures[("exporter test", "OSError")] > 1
