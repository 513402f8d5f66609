"""From snapshot to OTLP, over the real exporters' encoding."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource
from support.memory import SCOPE
from support.snapshots import everything, points, snapshot

from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.series import MetricSettings
from dask_otel.metrics.snapshot import Snapshot, deltas
from dask_otel.otlp.metrics import MetricFactory
from dask_otel.privacy import Capture, Redactor
from dask_otel.schema import METRICS, Kind

DELTA = frozenset({Kind.COUNTER, Kind.HISTOGRAM})


def sent(snapshot: Snapshot, capture: Capture | None = None, kinds=frozenset()):
    redactor = Redactor(capture or Capture())
    factory = MetricFactory(Resource({"service.name": "test"}), SCOPE, redactor.metric_attribute, kinds)
    return points([encode_metrics(factory.data(snapshot))])


def test_all_metrics_of_the_catalog_are_sent_as_it_says():
    recorder = Recorder(900.0, MetricSettings())
    everything(recorder)
    arrived = sent(snapshot(recorder))
    assert {point.name for point in arrived} == set(METRICS)
    for point in arrived:
        metric = METRICS[point.name]
        assert (point.unit, point.kind) == (metric.unit, metric.kind.value)
        assert set(point.attributes) <= set(metric.attributes)
        assert not point.is_delta
        assert (point.start, point.time) == (0.0 if point.kind == "gauge" else 900.0, 1000.0)
        if point.kind != "histogram":
            assert isinstance(point.value, float if point.unit == "s" else int), point
    for metric in METRICS.values():
        assert {name for point in arrived if point.name == metric.name for name in point.attributes} == set(
            metric.attributes
        )


def test_a_histogram():
    recorder = Recorder(900.0, MetricSettings(span_bounds=(1.0, 5.0)))
    everything(recorder)
    (point,) = [point for point in sent(snapshot(recorder)) if point.name == "dask.span.duration"]
    assert point.attributes == {"dask.span.root": "etl", "dask.span.result": "success"}
    assert (point.value, point.sum, point.bounds) == ((0, 1, 0), 4.0, (1.0, 5.0))
    assert point.exemplars == ((4.0, f"{1:032x}", f"{2:016x}"),)
    (again,) = [point for point in sent(snapshot(recorder)) if point.name == "dask.span.duration"]
    assert again.exemplars == ()  # each is sent once


def test_what_was_counted_since_the_last_time():
    recorder = Recorder(900.0, MetricSettings())
    everything(recorder)
    first = snapshot(recorder, 1000.0)
    recorder.begin_sweep(1005.0)
    everything(recorder)
    second = snapshot(recorder, 1010.0)
    arrived = sent(deltas(second, first, DELTA), kinds=DELTA)
    durations = [point for point in arrived if point.name == "dask.task.duration"]
    assert [(point.is_delta, point.start, sum(point.value), point.sum) for point in durations] == [
        (True, 1000.0, 1, 1.0),
        (True, 1000.0, 2, 2.0),
    ]
    completed = next(point for point in arrived if point.attributes.get("dask.task.outcome") == "completed")
    assert (completed.value, completed.start, completed.is_delta) == (2, 1000.0, True)
    # Only what has changed; how it is now is always said.
    assert "dask.activity.time" not in {point.name for point in arrived}
    (threads,) = [point for point in arrived if point.name == "dask.scheduler.thread.count"]
    assert (threads.value, threads.is_delta) == (4, False)


def test_deltas_add_up_to_totals():
    recorder = Recorder(900.0, MetricSettings())
    before, total = None, 0
    for number in range(5):
        recorder.begin_sweep(900.0 + number)
        if number != 2:
            everything(recorder)
        now = snapshot(recorder, 1000.0 + number)
        found = [point for point in sent(deltas(now, before, DELTA)) if point.name == "dask.task.duration"]
        total += sum(sum(point.value) for point in found)
        before = now
    assert total == sum(sum(point.value) for point in sent(snapshot(recorder)) if point.name == "dask.task.duration")


def test_pseudonyms():
    recorder = Recorder(900.0, MetricSettings())
    everything(recorder, prefix="secret", root="secret", error="SecretError")
    hidden = Capture(keys=False, tags=False, types=False)
    arrived = sent(snapshot(recorder), hidden)
    values = {str(value) for point in arrived for value in point.attributes.values()}
    assert not {value for value in values if "secret" in value.lower()}
    assert {point.attributes["dask.task.prefix"] for point in arrived if "dask.task.prefix" in point.attributes} != {
        "other"
    }
    assert "_OTHER" in values
    # What stands for many names is no name.
    many = Recorder(900.0, MetricSettings())
    for number in range(60):
        everything(many, prefix=f"secret-{number}", root=f"secret-{number}")
    assert "other" in {point.attributes.get("dask.task.prefix") for point in sent(snapshot(many), hidden)}


def test_names_that_are_shown_as_one_are_one():
    recorder = Recorder(900.0, MetricSettings())
    for number in range(3):
        everything(recorder, error=f"OwnError{number}")
    arrived = sent(snapshot(recorder), Capture(types=False))
    (failed,) = [p for p in arrived if p.name == "dask.task.duration" and "error.type" in p.attributes]
    assert (failed.attributes["error.type"], sum(failed.value), failed.sum) == ("_OTHER", 3, 3.0)
    keys = [(p.name, tuple(sorted(p.attributes.items()))) for p in arrived]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", ["\ud800", "x" * 5000, "", "\x00", "ü" * 300])
def test_strange_names_lose_nothing(name):
    recorder = Recorder(900.0, MetricSettings())
    everything(recorder, prefix=name, root=name, error=name)
    arrived = sent(snapshot(recorder))
    assert {point.name for point in arrived} == set(METRICS)
    assert all(len(str(value)) <= 200 for point in arrived for value in point.attributes.values())


def test_long_names_stay_apart():
    recorder = Recorder(900.0, MetricSettings())
    for end in "ab":
        everything(recorder, prefix="x" * 5000 + end)
    prefixes = {point.attributes.get("dask.task.prefix") for point in sent(snapshot(recorder))} - {None}
    assert len(prefixes) == 2


def test_a_clock_that_was_set_back_moves_what_was_counted():
    recorder = Recorder(2000.0, MetricSettings())
    everything(recorder)
    recorder.begin_sweep(2001.0)
    everything(recorder, prefix="later")
    later = snapshot(recorder, 2500.0)._replace(clock_offset=1500.0)
    arrived = [point for point in sent(later) if point.kind != "gauge"]
    starts = {
        point.attributes.get("dask.task.prefix"): point.start for point in arrived if point.name == "dask.task.finished"
    }
    assert starts == {"inc": 500.0, "later": 500.0}
    assert {point.start for point in arrived} == {500.0}


def test_no_point_ends_before_it_begins():
    recorder = Recorder(2000.0, MetricSettings())
    everything(recorder)
    assert all(point.start <= point.time for point in sent(snapshot(recorder, 1000.0)))
