"""What happens to metrics on their way out."""

from __future__ import annotations

import logging
import threading
from time import monotonic

import pytest
from distributed.utils_test import captured_logger
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from support.misbehaving import Misbehaving
from support.records import segment
from support.snapshots import everything, points, snapshot
from support.wire import Wire

import dask_otel.otlp.exporter as module
from dask_otel.cli.receiver import Receiver
from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.series import MetricSettings
from dask_otel.otlp.environment import with_variables
from dask_otel.otlp.exporter import connect
from dask_otel.otlp_options import OtlpOptions
from dask_otel.privacy import Capture
from dask_otel.safety import Safety

PROTOCOLS = ["grpc", "http/protobuf"]
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")


def make_sink(endpoint=None):
    capture = dict.fromkeys(Capture.__dataclass_fields__, True)
    names = dict.fromkeys(("service_name", "instance_id", "version", "cluster_name"), "ours")
    options = OtlpOptions.from_call(endpoint=endpoint, traces=None, metrics=None)
    with with_variables(options.merged()):
        return connect(**names, safety=Safety(), capture=capture, max_rate=0)


def taken(number=1):
    """A snapshot in which something has happened so many times."""
    recorder = Recorder(900.0, MetricSettings())
    for _ in range(number):
        everything(recorder)
    return snapshot(recorder, 1000.0 + number)


def wait_until(condition):
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it has not come to that")


def completed(receiver):
    return [p.value for p in points(receiver.metrics) if p.attributes.get("dask.task.outcome") == "completed"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_arrive(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with Receiver() as receiver:
        sink = make_sink(receiver.endpoints[protocol])
        sink.put_metrics(taken())
        sink.close(PATIENCE)
    assert completed(receiver) == [2]
    resource = {
        each.key: each.value.string_value for each in receiver.metrics[0].resource_metrics[0].resource.attributes
    }
    assert resource["service.instance.id"] == resource["dask.cluster.name"] == "ours"
    (status,) = sink.status()["metrics"]
    assert (status["exports"], status["failing"], status["last_error"]) == (1, False, "")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_their_own_endpoint_wins(protocol, monkeypatch):
    with Receiver() as receiver:
        path = "/v1/metrics" if protocol != "grpc" else ""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", receiver.endpoints[protocol] + path)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", protocol)
        sink = make_sink()
        sink.put_metrics(taken())
        sink.close(PATIENCE)
    assert completed(receiver) == [2]


@pytest.fixture
def with_traces(monkeypatch):
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")


def asked_again(sink, number):
    """Put a snapshot, and wait until the backend has refused so many."""
    sink.put_metrics(taken())
    (thread,) = sink.metric_threads
    wait_until(lambda: not thread.is_supported and thread._unsupported_pause == min(60.0 * 2**number, 600.0))
    return sink.status()["metrics"][0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_backend_for_traces_is_no_failure_and_reported_once(protocol, with_traces, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    now = [monotonic()]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    with Misbehaving(protocol) as receiver, captured_logger("distributed.dask_otel", level=logging.DEBUG) as log:
        sink = make_sink(receiver.endpoint)
        sink.put([segment()])
        wait_until(lambda: sink.status()["exporters"][0]["sent"])
        asked = []
        asked_again(sink, 1)
        for second in range(1, 950):
            now[0] += 1.0
            if sink.wants_metrics():
                asked.append(second)
                asked_again(sink, len(asked) + 1)
        (status,) = sink.status()["metrics"]
        assert status["unsupported"].startswith("UNIMPLEMENTED" if protocol == "grpc" else "HTTP 404")
        assert (status["failing"], status["failures"], status["last_error"]) == (False, 0, "")
        assert sink.is_away is False
        sink.close(PATIENCE)
    # After a minute, twice as long each time; a snapshot is made only then.
    gaps = [after - before for before, after in zip([0, *asked], asked, strict=False)]
    assert [round(gap, -1) for gap in gaps] == [60, 120, 240, 480]
    (line,) = log.getvalue().splitlines()
    assert "takes no metrics" in line
    assert "OTEL_METRICS_EXPORTER=none switches metrics off" in line


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_backend_that_takes_metrics_later_gets_all_counts(protocol, with_traces, monkeypatch):
    """A collector is started again with a pipeline for metrics. What was counted before is not lost."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setattr(module, "UNSUPPORTED_BACK_OFF", (0.0, 0.0))
    with (
        Misbehaving(protocol) as traces_only,
        Receiver() as both,
        Wire(traces_only.endpoint) as wire,
        captured_logger("distributed.dask_otel", level=logging.INFO) as log,
    ):
        sink = make_sink(wire.endpoint)
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.status()["metrics"][0]["unsupported"])
        wire.stop()
        wire._target = ("127.0.0.1", int(both.endpoints[protocol].rpartition(":")[2]))
        wire.start()
        wait_until(lambda: sink.put_metrics(taken(2)) or completed(both))
        wait_until(lambda: not sink.status()["metrics"][0]["unsupported"])
        sink.close(PATIENCE)
    assert completed(both)[0] == 4
    assert log.getvalue().count("the backend of exporter 'otlp' takes metrics now") == 1


@pytest.mark.parametrize("variables", [{"METRICS_ENDPOINT": True}, {"traces": False}], ids=["named", "only metrics"])
def test_no_place_for_metrics_is_a_failure_where_they_were_asked_for(variables, monkeypatch):
    """Prometheus without its OTLP receiver answers 404, as a backend for traces does."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with Misbehaving("http/protobuf") as receiver, captured_logger("distributed.dask_otel") as log:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        if variables.get("METRICS_ENDPOINT"):
            monkeypatch.delenv("OTEL_TRACES_EXPORTER")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{receiver.endpoint}/v1/metrics")
        sink = make_sink()
        sink.put_metrics(taken())
        wait_until(lambda: sink.status()["metrics"][0]["failing"])
        sink.close(PATIENCE)
    assert "cannot send metrics with exporter 'otlp'" in log.getvalue()


def test_a_backend_that_took_metrics_before_fails_if_it_takes_none(with_traces, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with Answering() as receiver, captured_logger("distributed.dask_otel"):
        sink = make_sink(receiver.endpoints["http/protobuf"])
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.status()["metrics"][0]["exports"])
        receiver.fault["status"] = 404
        sink.put_metrics(taken(2))
        wait_until(lambda: sink.status()["metrics"][0]["failing"])
        assert sink.status()["metrics"][0]["unsupported"] == ""
        sink.close(PATIENCE)


@pytest.mark.parametrize("preference", ["cumulative", "delta", "LowMemory"])
def test_what_a_collector_that_was_away_gets(preference, monkeypatch):
    """Totals say it all; deltas count from the last that has arrived."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    monkeypatch.setattr(module, "METRICS_BACK_OFF", (3600.0, 3600.0))
    with Receiver() as receiver:
        endpoint = receiver.endpoints["grpc"]
        sink = make_sink(endpoint)
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.status()["metrics"][0]["exports"])
    sink.put_metrics(taken(2))
    wait_until(lambda: sink.status()["metrics"][0]["failing"])
    with Receiver(grpc_port=int(endpoint.rpartition(":")[2])) as again:
        wait_until(lambda: sink.put_metrics(taken(3)) or completed(again))
        sink.close(PATIENCE)
        durations = [
            p for p in points(again.metrics) if p.name == "dask.task.duration" and "error.type" not in p.attributes
        ]
    assert completed(again)[0] == (4 if preference == "delta" else 6)
    assert sum(durations[0].value) == (6 if preference == "cumulative" else 4)
    assert durations[0].is_delta == (preference != "cumulative")


def test_only_the_latest_snapshot_waits(monkeypatch):
    monkeypatch.setattr(module, "METRICS_BACK_OFF", (0.01, 0.01))
    with Misbehaving("grpc") as away:
        endpoint = away.endpoint
    sink = make_sink(endpoint)
    for number in range(1, 6):
        sink.put_metrics(taken(number))
    wait_until(lambda: sink.status()["metrics"][0]["failures"] >= 2)  # it is tried again without another
    with Receiver(grpc_port=int(endpoint.rpartition(":")[2])) as receiver:
        wait_until(lambda: completed(receiver))
        sink.close(PATIENCE)
    assert completed(receiver) == [10]


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "--web.enable-otlp-receiver"),
        ({"OTEL_METRICS_EXPORTER": "jaegre"}, "OTEL_METRICS_EXPORTER = 'jaegre' cannot be used"),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "udp"}, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL = 'udp'"),
    ],
)
def test_what_is_wrong_with_metrics_leaves_the_traces_on(variables, line, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with captured_logger("distributed.dask_otel", level=logging.ERROR) as log:
        sink = make_sink()
    assert line in log.getvalue()
    assert "sends no metrics" in log.getvalue()
    assert [each["name"] for each in sink.status()["exporters"]] == ["console"]
    assert sink.status()["metrics"] == []
    assert not sink.wants_metrics()
    sink.close(1)


def test_an_exporter_that_is_not_otlp(monkeypatch):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")
    sink = make_sink()
    sink.put_metrics(taken())
    sink.close(PATIENCE)
    (status,) = sink.status()["metrics"]
    assert (status["name"], status["exports"], status["failures"]) == ("console", 1, 0)


def test_when_the_next_is_wanted(monkeypatch):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10000")
    now = [100.0]
    monkeypatch.setattr("dask_otel.otlp.exporter.monotonic", lambda: now[0])
    sink = make_sink()
    wanted = []
    for _ in range(60):
        if sink.wants_metrics():
            wanted.append(now[0])
            sink.put_metrics(taken())
        now[0] += 1.0 if now[0] != 125.0 else 17.0  # a sweep that was late
    # The first at once, some soon after; a late one does not make those after it late.
    assert wanted == [100.0, 101.0, 103.0, 107.0, 115.0, 125.0, 142.0, 145.0, 155.0, 165.0, 175.0]
    sink.close(PATIENCE)


@pytest.mark.parametrize("was_reached", [True, False], ids=["is busy", "has dropped the connection"])
@pytest.mark.parametrize("first_answer", ["before it closes", "while it closes"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_last_snapshot_is_sent_though_something_is_wrong_for_a_moment(
    protocol, first_answer, was_reached, monkeypatch
):
    monkeypatch.setattr(module, "METRICS_LAST_CHANCE", PATIENCE)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    answers = []
    with Receiver() as receiver:
        sink = make_sink(receiver.endpoints[protocol])
        (meter,) = sink.metric_threads
        send = meter._sender.send

        def once_not(data):
            answers.append(1)
            if len(answers) == 2:
                return module.ExportResult(module.RetryDecision.LATER, "not now", was_reached=was_reached)
            answer = send(data)
            if first_answer == "while it closes":
                wait_until(lambda: meter._deadline.deadline)
            return answer

        monkeypatch.setattr(meter._sender, "send", once_not)
        sink.put_metrics(taken(1))
        wait_until(lambda: completed(receiver) if first_answer == "while it closes" else meter.status()["exports"])
        sink.put_metrics(taken(2))
        sink.close(PATIENCE)
    assert completed(receiver) == [2, 4]


def test_a_failure_to_send_the_last_snapshot_is_no_earlier_one(monkeypatch):
    """However soon it came: a collector that worked until then is waited for."""
    monkeypatch.setattr(module, "METRICS_LAST_CHANCE", 0.0)
    with Receiver() as receiver:
        sink = make_sink(receiver.endpoints["grpc"])
        (meter,) = sink.metric_threads
        sink.put_metrics(taken(1))
        wait_until(lambda: meter.is_failing is False)
        send, answers = meter._sender.send, iter([module.ExportResult(module.RetryDecision.LATER, "busy")])
        monkeypatch.setattr(meter._sender, "send", lambda data: next(answers, None) or send(data))
        sink.put_metrics(taken(2), last=True)
        sink.close_metrics(PATIENCE)
    assert completed(receiver) == [2, 4]


def sends_while_closing(meter):
    """Have the attempts counted that begin from now on."""
    send, counted = meter._sender.send, []
    meter._sender.send = lambda data: counted.append(1) or send(data)
    return counted


@pytest.mark.parametrize("traces", [True, False], ids=["spans failed too", "no spans are sent"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_how_often_the_last_snapshot_is_tried_where_nobody_is(protocol, traces, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    if traces:
        monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    with Wire("http://127.0.0.1:1") as wire, captured_logger("distributed.dask_otel") as log:
        wire.stop()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", wire.endpoint)
        sink = make_sink()
        (meter,) = sink.metric_threads
        sink.put([segment()])
        sink.put_metrics(taken(1))
        wait_until(lambda: meter.is_failing and all(pipeline.is_failing for pipeline in sink.span_threads))
        attempts = sends_while_closing(meter)
        sink.close_spans(PATIENCE)
        assert sink.wants_metrics(last=True) is not traces
        sink.put_metrics(taken(2), last=True)
        sink.close_metrics(PATIENCE)
        meter._thread.join(PATIENCE)  # nobody waits for it where it has nothing to do
    assert not meter._thread.is_alive()
    assert len(attempts) == (0 if traces else 1)
    assert log.getvalue().count("could not send the last metrics with exporter 'otlp'") == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_that_comes_back_when_closing_begins_gets_the_last_snapshot(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with Receiver() as receiver, Wire(receiver.endpoints[protocol]) as wire:
        wire.stop()
        sink = make_sink(wire.endpoint)
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.metric_threads[0].is_failing)
        wire.start()
        sink.put_metrics(taken(2), last=True)
        sink.close_metrics(PATIENCE)
    assert completed(receiver) == [4]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_does_not_wait_for_metrics_where_they_had_failed(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with Wire("http://127.0.0.1:1") as wire, captured_logger("distributed.dask_otel") as log:
        wire.stop()
        sink = make_sink(wire.endpoint)
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.metric_threads[0].is_failing)
        wire.mode = "hang"
        wire.start()
        sink.put_metrics(taken(2), last=True)
        sink.close_metrics(3600.0)
    assert log.getvalue().count("could not send the last metrics with exporter 'otlp': no answer in time") == 1


class Answering(Receiver):
    """A receiver whose metrics' service gives a fixed answer."""

    def __init__(self, **fault):
        super().__init__()
        self.fault, self.requests = fault, 0

    def take_metrics(self, request):
        super().take_metrics(request)
        self.requests += 1

    def handler(self):
        receiver = self

        class Handler(super().handler()):
            def send_response(self, code, message=None):
                super().send_response(receiver.fault.get("status", code), message)
                if "wait" in receiver.fault:
                    self.send_header("Retry-After", str(receiver.fault["wait"]))

            def end_headers(self):
                if "rejected" in receiver.fault:
                    response = ExportMetricsServiceResponse()
                    response.partial_success.rejected_data_points = receiver.fault["rejected"]
                    response.partial_success.error_message = "too old"
                    self.send_header("Content-Length", str(response.ByteSize()))
                    super().end_headers()
                    self.wfile.write(response.SerializeToString())
                else:
                    super().end_headers()

        return Handler


@pytest.fixture
def http(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")


def test_points_that_are_rejected_are_counted_and_said(http):
    with Answering(rejected=3) as receiver, captured_logger("distributed.dask_otel") as log:
        sink = make_sink(receiver.endpoints["http/protobuf"])
        for number in range(1, 4):
            sink.put_metrics(taken())
            wait_until(lambda n=number: sink.status()["metrics"][0]["exports"] == n)
        sink.close(PATIENCE)
    (status,) = sink.status()["metrics"]
    assert (status["rejected"], status["failing"], status["last_error"]) == (9, False, "too old")
    assert log.getvalue().count("dropped metrics of exporter 'otlp': 3 points (rejected); last error: too old") == 1


def test_a_collector_that_wants_to_be_left_alone_is(http):
    with Answering(status=429, wait=300) as receiver, captured_logger("distributed.dask_otel") as log:
        sink = make_sink(receiver.endpoints["http/protobuf"])
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.status()["metrics"][0]["failures"] == 1)
        for number in range(2, 6):
            sink.put_metrics(taken(number))
        begin = monotonic()
        sink.close(PATIENCE)
        assert monotonic() - begin < PATIENCE / 2
        # One more attempt, since it may be the last chance.
        assert receiver.requests == 2
    assert log.getvalue().count("could not send the last metrics with exporter 'otlp': HTTP 429") == 1


@pytest.mark.parametrize("status", [400, 401, 413, 503])
def test_the_last_snapshot_is_not_lost_without_a_word(status, http, monkeypatch):
    monkeypatch.setattr(module, "METRICS_BACK_OFF", (4 * PATIENCE, 4 * PATIENCE))
    monkeypatch.setattr(module, "SHUTDOWN_BACK_OFF", 4 * PATIENCE)
    with Answering() as receiver, captured_logger("distributed.dask_otel") as log:
        sink = make_sink(receiver.endpoints["http/protobuf"])
        sink.put_metrics(taken(1))
        wait_until(lambda: sink.status()["metrics"][0]["exports"])
        receiver.fault["status"] = status
        sink.put_metrics(taken(2))
        sink.close(PATIENCE)
    assert log.getvalue().count(f"could not send the last metrics with exporter 'otlp': HTTP {status}") == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_takes_no_longer_than_it_may(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with Wire("http://127.0.0.1:1", "hang") as wire, captured_logger("distributed.dask_otel") as log:
        sink = make_sink(wire.endpoint)
        sink.put_metrics(taken())
        begin = monotonic()
        sink.close(0.5)
        assert monotonic() - begin < PATIENCE
        wait_until(log.getvalue)
    assert log.getvalue().count("could not send the last metrics with exporter 'otlp': no answer in time") == 1
