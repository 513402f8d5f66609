"""Every way in which a collector fails, over gRPC and HTTP: every span is sent, or counted as lost for a reason."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from time import monotonic

import pytest
from distributed.utils_test import captured_logger
from opentelemetry.sdk.metrics.export import MetricsData
from support.memory import FACTORY
from support.misbehaving import Hangs, Misbehaving, Rejects, Says, in_turn
from support.records import group, root_segment, segment, task
from support.wire import Wire

from dask_otel.cli.receiver import Receiver
from dask_otel.otlp import exporter as module
from dask_otel.otlp import exporter as patience
from dask_otel.otlp import transport
from dask_otel.otlp.environment import METRICS, Limits
from dask_otel.otlp.exporter import ExportThread, SpanExportQueue
from dask_otel.otlp.transport import RetryDecision, make_senders
from dask_otel.safety import Safety

#: Real servers that are away, slow and back again.
pytestmark = pytest.mark.slow

PATIENCE = 30.0


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
    monkeypatch.setattr(module, "BACK_OFF", (0.02, 0.1))
    return request.param


def bundle(number: int, tasks: int = 1):
    """A group with tasks, and their segment."""
    ids = iter(range(1000 * number, 1000 * number + 1000))
    return [
        *(task(name=f"{number}.t{i}", span_id=next(ids)) for i in range(tasks)),
        group(name=f"{number}.g", span_id=next(ids)),
        segment(name=f"{number}", span_id=next(ids)),
    ]


class Run:
    """A pipeline to an endpoint, and what it was given."""

    def __init__(self, endpoint: str, **limits) -> None:
        (sender,) = make_senders(endpoint)
        self.safety = Safety()
        self.queue = SpanExportQueue(sender.form(FACTORY), self.safety, Limits(**({"delay": 0.05} | limits)))
        self.pipeline = ExportThread(sender, self.queue, self.safety)
        self.names: list[str] = []

    def put(self, *bundles) -> None:
        for records in bundles:
            self.names += [record.name for record in records]
            self.pipeline.put(records)

    def wait_until(self, condition) -> None:
        for _ in range(int(PATIENCE / 0.005)):
            if condition():
                return
            threading.Event().wait(0.005)
        raise TimeoutError(self.pipeline.status())

    def settle(self) -> None:
        """Wait until all is sent or dropped."""
        self.wait_until(
            lambda: (
                self.queue.sent.total() + self.queue.dropped.total() == len(self.names)
                and self.pipeline.unsent == self.queue.dropped.total()
            )
        )

    def check(self, receiver, *, again=()) -> None:
        """All that was put in is sent or dropped or left, and what was sent has arrived, once but for ``again``."""
        left = self.pipeline.unsent - self.queue.dropped.total()
        assert self.queue.sent.total() + self.queue.dropped.total() + left == len(self.names)
        assert sum(receiver.taken.values()) - len(again) == self.queue.sent.total()
        assert {name for name, times in receiver.taken.items() if times > 1} == set(again)


@contextmanager
def running(endpoint: str, *, close: float = PATIENCE, **limits):
    with captured_logger("distributed.dask_otel") as log:
        run = Run(endpoint, **limits)
        run.log = log
        yield run
        run.pipeline.close(close)
        assert not run.safety.failures, run.safety.failures


def test_healthy(protocol):
    with Misbehaving(protocol) as receiver, running(receiver.endpoint) as run:
        run.put(*map(bundle, range(10)))
        run.settle()
        run.check(receiver)
        assert run.queue.sent == {"task": 10, "group": 10, "span": 10}
        run.wait_until(lambda: run.pipeline.is_failing is False)
    assert run.log.getvalue() == ""


def test_down_at_the_start(protocol):
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint) as wire:
        wire.stop()
        with running(wire.endpoint) as run:
            run.put(*map(bundle, range(10)))
            run.wait_until(lambda: run.pipeline.is_failing)
            run.put(*map(bundle, range(10, 20)))
            wire.start()
            run.settle()
            run.check(receiver)
            assert run.queue.sent.total() == 60
    assert run.log.getvalue().count("cannot send spans") == 1


def test_refused_half_way_and_back(protocol):
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint) as wire, running(wire.endpoint) as run:
        for number in range(3):
            run.put(bundle(2 * number))
            run.settle()
            wire.stop()
            run.put(bundle(2 * number + 1))
            run.wait_until(lambda: run.pipeline.is_failing)
            wire.start()
            run.settle()
        run.check(receiver)
        assert run.queue.sent.total() == 18


@pytest.mark.slow
def test_hanging(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint, "hang") as wire, running(wire.endpoint) as run:
        run.put(bundle(1))
        run.wait_until(lambda: run.pipeline.is_failing)
        wire.mode = "up"
        wire.stop()
        wire.start()
        run.settle()
        run.check(receiver)
        assert run.queue.sent.total() == 3


@pytest.mark.slow
def test_takes_a_request_and_never_answers(protocol, monkeypatch):
    """Nobody can know that it has arrived: it is sent again, and the backend sees the same ids."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    rule = in_turn(Hangs())
    with Misbehaving(protocol, rule) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        assert len(receiver.requests) == 2
        run.check(receiver)


def test_what_was_taken_but_answered_with_a_failure_arrives_twice(protocol):
    with (
        Misbehaving(protocol, in_turn(Says(503, "UNAVAILABLE", takes=True))) as receiver,
        running(receiver.endpoint) as run,
    ):
        run.put(bundle(1))
        run.settle()
        run.check(receiver, again=run.names)
        assert run.queue.sent.total() == 3


BUSY = [
    pytest.param(Says(429, "UNAVAILABLE", "slow down", wait=1), id="429"),
    pytest.param(Says(503, "RESOURCE_EXHAUSTED", "quota", wait=1), id="503"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", BUSY)
def test_waits_as_long_as_the_collector_asks(protocol, fault):
    with Misbehaving(protocol, in_turn(fault, fault)) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        run.check(receiver)
        times = [at for at, _ in receiver.requests]
        assert len(times) == 3
        assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))
    assert fault.message in run.log.getvalue()


@pytest.mark.parametrize(
    "fault",
    [
        Says(502, "UNAVAILABLE"),
        Says(504, "DEADLINE_EXCEEDED"),
        Says(429, "RESOURCE_EXHAUSTED", "rate limit: 15000 spans of size 3 MB"),
        Says(503, "ABORTED"),
        Says(500, "INTERNAL"),
        Says(404, "UNIMPLEMENTED"),
        Says(401, "UNAUTHENTICATED"),
        Says(403, "PERMISSION_DENIED"),
        Says(302, "UNKNOWN", headers=(("Location", "/elsewhere"),)),
        Says(200, "UNKNOWN", "<html>welcome</html>", headers=(("Content-Type", "text/html"),)),
    ],
    ids=lambda fault: f"{fault.http}-{fault.grpc}",
)
def test_tries_again_until_somebody_mends_it(protocol, fault):
    with Misbehaving(protocol, lambda *_: fault) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.wait_until(lambda: len(receiver.requests) >= 4)
        receiver.rule = in_turn()
        run.settle()
        run.check(receiver)
        assert run.queue.sent.total() == 3
        said = f"HTTP {fault.http}" if protocol != "grpc" else fault.grpc
        assert said in run.pipeline.last_error
    assert said in run.log.getvalue()


def test_what_is_refused_for_ten_minutes_is_given_up(protocol, monkeypatch):
    monkeypatch.setattr(module, "GIVE_UP_AFTER", 0.3)
    rule = lambda number, names: Says(404, "UNIMPLEMENTED") if "1" in names else None  # noqa: E731
    with Misbehaving(protocol, rule) as receiver, running(receiver.endpoint, max_batch=3) as run:
        run.put(bundle(1), bundle(2))
        run.settle()
        run.check(receiver)
        assert run.queue.dropped == {(kind, "refused"): 1 for kind in ("task", "group", "span")}
        assert set(receiver.taken) == {"2.t0", "2.g", "2"}
    assert run.log.getvalue().count("has dropped") == 1


def test_an_overloaded_collector_is_waited_for_as_long_as_it_takes(protocol, monkeypatch):
    monkeypatch.setattr(module, "GIVE_UP_AFTER", 0.0)
    busy = Says(503, "UNAVAILABLE")
    with Misbehaving(protocol, in_turn(*[busy] * 20)) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        run.check(receiver)
        assert run.queue.sent.total() == 3


def test_reset_half_way(protocol):
    with (
        Misbehaving(protocol) as receiver,
        Wire(receiver.endpoint, "cut", cut_after=3000) as wire,
        running(wire.endpoint) as run,
    ):
        run.put(*map(bundle, range(100)))
        run.wait_until(lambda: run.pipeline.is_failing)
        wire.mode = "up"
        run.settle()
        run.check(receiver)
        assert run.queue.sent.total() == 300


def test_partial_success_is_counted_and_said(protocol):
    with Misbehaving(protocol, in_turn(Rejects(2, "spans are too old"))) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        run.check(receiver)
        assert run.queue.dropped.total() == 2
        assert {reason for _, reason in run.queue.dropped} == {"rejected"}
    assert "spans are too old" in run.log.getvalue()
    assert len(receiver.requests) == 1  # it is not to be sent again


def test_too_large_a_batch_is_halved(protocol):
    with Misbehaving(protocol, max_bytes=20_000) as receiver, running(receiver.endpoint) as run:
        run.put(*map(bundle, range(100)))
        run.settle()
        run.check(receiver)
        assert run.queue.sent.total() == 300
    assert run.log.getvalue() == ""


def test_a_span_that_is_too_large_costs_only_itself(protocol):
    with Misbehaving(protocol, max_bytes=5_000) as receiver, running(receiver.endpoint) as run:
        large = {("execute", "inc", "a" * 60 + str(n), "seconds"): 1.0 for n in range(31)}
        records = bundle(1)
        records[-1].metrics = large
        run.put(records, bundle(2))
        run.settle()
        run.check(receiver)
        assert run.queue.dropped == {("span", "too_large"): 1}
    assert "too large" in run.pipeline.last_error or "larger than max" in run.pipeline.last_error


@pytest.mark.parametrize("bad", [["7.t0"], ["0.t0", "99"], []])
def test_an_invalid_span_costs_only_itself(protocol, bad):
    rule = lambda number, names: Says(400, "INVALID_ARGUMENT") if set(bad) & set(names) else None  # noqa: E731
    with Misbehaving(protocol, rule) as receiver, running(receiver.endpoint) as run:
        run.put(*map(bundle, range(100)))
        run.settle()
        run.check(receiver)
        assert set(run.names) - set(receiver.taken) == set(bad)
        assert run.queue.dropped.total() == len(bad)
        run.put([root_segment(name="root")])
        (root,) = (s for s in receiver.wait(lambda spans: spans[-1].name == "root", PATIENCE) if s.name == "root")
        assert root.attributes.get("dask.dropped.spans", 0) == len(bad)


def test_a_collector_that_finds_everything_invalid_is_not_asked_for_ever(protocol):
    with Misbehaving(protocol, lambda *_: Says(400, "INVALID_ARGUMENT")) as receiver, running(receiver.endpoint) as run:
        run.put(*map(bundle, range(160)))
        run.settle()
        run.check(receiver)
        assert run.queue.dropped.total() == 480
        assert len(receiver.requests) <= 3 * module.MAX_REQUESTS  # there are at most three batches


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "lone \ud800 surrogate"},
        {"group": "x" * 10_000_000},
        {"dependencies": ("\udfff",) * 1000},
        {"types": {"t" * 10_000_000: 1, "\ud800": 2}},
    ],
    ids=["surrogate", "ten megabytes", "surrogates", "large types"],
)
def test_text_that_no_collector_takes_costs_nothing_else(protocol, bad):
    with Misbehaving(protocol) as receiver, running(receiver.endpoint) as run:
        run.put([group(**({"name": "odd", "span_id": 5} | bad)), segment(name="good", span_id=6)])
        run.settle()
        assert run.queue.sent == {"group": 1, "span": 1}
        assert receiver.taken["good"] == 1


def test_tls_to_a_plain_port(protocol):
    with Misbehaving(protocol) as receiver, running(receiver.endpoint.replace("http", "https"), close=10) as run:
        run.put(bundle(1))
        run.wait_until(lambda: run.pipeline.is_failing)
        run.check(receiver)
    assert run.queue.dropped == {(kind, "shutdown"): 1 for kind in ("task", "group", "span")}
    assert "SSL" in run.log.getvalue() or "UNAVAILABLE" in run.log.getvalue()


def test_the_other_protocol_s_port(protocol):
    with Receiver() as receiver:
        other = next(each for name, each in receiver.endpoints.items() if name != protocol)
        with running(other, close=10) as run:
            run.put(bundle(1))
            run.wait_until(lambda: run.pipeline.is_failing)
        assert receiver.wait(lambda spans: True, timeout=1) == []
    assert run.pipeline.unsent == run.queue.dropped.total() == 3


def test_a_host_that_does_not_exist(protocol):
    with running("http://no-such-host.invalid:4317", close=10) as run:
        run.put(bundle(1))
        run.wait_until(lambda: run.pipeline.is_failing)
    assert run.pipeline.unsent == 3
    assert "no-such-host" in run.log.getvalue()


def test_closing_waits_for_a_collector_that_was_there(protocol):
    with Misbehaving(protocol) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        receiver.rule = lambda number, names: Says(503, "UNAVAILABLE") if number < 4 else None
        run.put(bundle(2))
    run.check(receiver)
    assert run.queue.sent.total() == 6


def test_closing_waits_for_one_that_answers_while_it_closes(protocol):
    def rule(number, names):
        if number == 0:
            run.wait_until(lambda: run.pipeline._deadline.deadline)
        return Says(503, "UNAVAILABLE") if 0 < number < 4 else None

    with Misbehaving(protocol, rule) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        run.wait_until(lambda: receiver.requests)
        run.put(bundle(2))
    run.check(receiver)
    assert run.queue.sent.total() == 6


def test_one_that_comes_back_when_closing_begins(protocol):
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint) as wire, running(wire.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        wire.stop()
        run.put(bundle(2))
        run.wait_until(lambda: run.pipeline.is_failing)
        wire.start()
    run.check(receiver)
    assert run.queue.sent.total() == 6


def test_a_channel_that_has_just_failed_to_connect_is_not_waited_for(monkeypatch):
    """It fails all requests until its back-off is over; a new one asks who is there."""
    never = (("grpc.initial_reconnect_backoff_ms", 600_000), ("grpc.max_reconnect_backoff_ms", 600_000))
    monkeypatch.setattr(transport, "CHANNEL_OPTIONS", never)
    monkeypatch.setattr(module, "BACK_OFF", (0.02, 0.1))
    with Misbehaving("grpc") as receiver, Wire(receiver.endpoint) as wire:
        wire.stop()
        (other,) = make_senders(wire.endpoint, METRICS)  # shares its channel's connection, as metrics do
        assert other.send(MetricsData([])).decision is RetryDecision.LATER
        with running(wire.endpoint) as run:
            run.put(bundle(1))
            run.wait_until(lambda: run.pipeline.is_failing)
            wire.start()
        other.shutdown()
    run.check(receiver)
    assert run.queue.sent.total() == 3


def attempts_while_closing(run):
    """Have the attempts counted that begin after closing has begun."""
    send, counted = run.pipeline._sender.send, []

    def counting(request):
        if run.pipeline._deadline.deadline:
            counted.append(len(request.resource_spans[0].scope_spans[0].spans))
        return send(request)

    run.pipeline._sender.send = counting
    return counted


def test_one_attempt_is_made_where_nobody_has_been_there(protocol):
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint) as wire:
        wire.stop()
        with running(wire.endpoint, max_batch=3) as run:
            run.put(bundle(1), bundle(2))
            run.wait_until(lambda: run.pipeline.is_failing)
            attempts = attempts_while_closing(run)
    assert attempts == [3]  # and none for the batch that waits behind it
    assert run.queue.dropped.total() == 6


def test_one_attempt_is_made_where_closing_is_the_first_to_ask(protocol):
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint) as wire:
        wire.stop()
        with running(wire.endpoint, delay=3600.0) as run:
            attempts = attempts_while_closing(run)
            run.put(bundle(1))
    assert attempts == [3]


def test_one_that_worked_and_cannot_be_reached_for_a_moment(protocol, monkeypatch):
    monkeypatch.setattr(patience, "LAST_CHANCE", PATIENCE)
    with Misbehaving(protocol) as receiver, Wire(receiver.endpoint) as wire, running(wire.endpoint) as run:
        run.put(bundle(1))
        run.settle()
        wire.stop()
        attempts = attempts_while_closing(run)
        run.queue.delay = 3600.0
        run.put(bundle(2))
        closing = threading.Thread(target=run.pipeline.close, args=(PATIENCE,))
        closing.start()
        run.wait_until(lambda: len(attempts) > 1)
        wire.start()
        closing.join()
    run.check(receiver)
    assert run.queue.sent.total() == 6


def test_closing_does_not_wait_for_an_attempt_at_one_that_had_failed(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with Wire("http://127.0.0.1:1") as wire:
        wire.stop()
        with running(wire.endpoint, close=3600.0) as run:
            run.put(bundle(1))
            run.wait_until(lambda: run.pipeline.is_failing)
            wire.mode = "hang"
            wire.start()
        assert run.pipeline.abandoned
    assert "3 were left when the time was over" in run.log.getvalue()


@pytest.mark.slow
def test_closing_waits_for_one_that_asks_for_it(protocol):
    rule = in_turn(Says(503, "RESOURCE_EXHAUSTED", wait=1))
    with Misbehaving(protocol, rule) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
    run.check(receiver)
    assert run.queue.sent.total() == 3


def test_closing_does_not_wait_long_for_one_that_was_not(protocol, monkeypatch):
    monkeypatch.setattr(patience, "LAST_CHANCE", 0.5)
    with Misbehaving(protocol, lambda *_: Says(503, "UNAVAILABLE")) as receiver, running(receiver.endpoint) as run:
        run.put(bundle(1))
        begin = monotonic()
    assert monotonic() - begin < PATIENCE / 2
    run.check(receiver)
    assert receiver.requests
    why = "1 group (shutdown), 1 span (shutdown), 1 task (shutdown)"
    assert f"could not send 3 spans with exporter 'otlp': {why}; it has sent 0" in run.log.getvalue()
