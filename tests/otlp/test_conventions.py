from __future__ import annotations

import pytest
from support.records import RUN, group, pending, phase, segment, task

from dask_otel.otlp.spans import attributes, error_description, exception_event
from dask_otel.schema import MAX_SPAN_ACTIVITIES
from dask_otel.spantree.counts import Tally
from dask_otel.spantree.records import Failure


def test_segment():
    found = attributes(segment())
    assert found["dask.execute.thread_cpu.seconds"] == 2.0
    assert found["dask.execute.disk_read.bytes"] == 100
    assert found["dask.p2p.foreground.shard.seconds"] == 0.25
    assert found["dask.thread_time.busy"] == 2.0
    assert found["dask.efficiency"] == 0.2
    assert found["dask.span.queue_time"] == 1.0
    assert found["dask.duration.disk_read"] == 0.25
    assert found["dask.client.name"] == "alice"
    assert found["dask.segment.previous_id"] == "0000000000000004"
    assert found["dask.worker.share.max"] == pytest.approx(2 / 3)


def test_identity_comes_first_because_a_limit_cuts_the_last():
    for record in (segment(), group(), task(), phase(), pending()):
        assert list(attributes(record))[:4] == ["dask.kind", "dask.span.id", "dask.span.path", "dask.span.root"]


def test_what_was_not_measured_is_absent():
    found = attributes(
        segment(
            tally=Tally(),
            metrics={},
            graph_seconds=0.0,
            clients=(),
            collections=(),
            code=None,
            annotations={},
            previous_id=None,
            links=(),
            failure=None,
            counted_in=(),
            elsewhere=None,
            graph_failures={},
            truncated_groups=0,
            truncated_tasks=0,
            truncated_phases=0,
            submitters={},
            waterfall=None,
            critical=None,
            verdict=None,
        )
    )
    assert set(found) == {
        "dask.kind", "dask.span.id", "dask.span.path", "dask.span.root", "dask.span.tags", "dask.span.segment",
        "dask.span.result", "dask.task.count", "dask.task.completed", "dask.output.size",
        "dask.thread_time.available", "dask.thread_time.others", "dask.wall.executing", "dask.wall.queued",
        "dask.wall.no_worker", "dask.wall.idle", "dask.metrics.complete",
    }  # fmt: skip


def test_efficiency_is_absent_where_others_used_everything():
    assert "dask.efficiency" not in attributes(segment(threads_others=12.0))


def test_clashing_activity_names_are_summed_and_their_number_is_capped():
    clash = {("execute", "p", "disk-read", "bytes"): 1, ("execute", "p", "Disk Read", "bytes"): 2}
    assert attributes(segment(metrics=clash))["dask.execute.disk_read.bytes"] == 3
    many = {("execute", "p", f"mine-{i}", "seconds"): 1.0 for i in range(100)}
    found = {n: v for n, v in attributes(segment(metrics=many)).items() if n.startswith("dask.execute.")}
    assert len(found) == MAX_SPAN_ACTIVITIES + 1
    assert sum(found.values()) == 100


def test_metrics_of_a_shape_that_is_not_known_are_left_out():
    assert not [n for n in attributes(segment(metrics={("new", "x"): 1.0})) if n.startswith("dask.new")]


def test_several_clients_and_annotation_values():
    ids = tuple(f"Client-5dc9b908-116b-49a5-b0d7-5a681f49a11{i}" for i in range(2))
    found = attributes(segment(clients=ids, annotations={"team": ("red", "blue")}))
    assert found["dask.client.id"] == list(ids)
    assert "dask.client.name" not in found
    assert found["dask.annotation.team"] == ["red", "blue"]


def test_group():
    found = attributes(group())
    assert found["dask.task.types"] == ["int", "float"]
    assert found["dask.execute.thread_cpu.seconds"] == 1.5
    shared = attributes(group(metrics=None))
    assert shared["dask.group.prefix_shared"] is True
    assert not [name for name in shared if name.startswith("dask.execute.")]


def test_folded_groups_have_no_name():
    found = attributes(group(folded=12, metrics=None, name="other groups"))
    assert found["dask.group.folded"] == 12
    assert not {"dask.group.name", "dask.task.prefix", "dask.group.prefix_shared"} & set(found)


def test_task():
    found = attributes(task())
    assert found["dask.task.key"] == "('inc-123', 0)"
    assert found["dask.task.picked"] == "erred"
    assert found["dask.duration.transfer"] == 0.25
    assert found["error.type"] == "ValueError"
    assert exception_event(task()) == {
        "exception.type": "ValueError", "exception.message": "boom", "exception.stacktrace": "Traceback: …"
    }  # fmt: skip


def test_a_failure_without_a_run():
    run = RUN._replace(run_id=-1, worker=None, worker_name=None, thread=None, type=None, nbytes=None, durations={})
    found = attributes(task(run=run))
    assert not {"dask.task.run_id", "dask.worker.address", "dask.task.type", "dask.output.size"} & set(found)


def test_spans_that_count_elsewhere():
    found = attributes(segment(counted_in=("a", "b")))
    assert found["dask.span.counted_in"] == ["a", "b"]
    assert found["dask.elsewhere.count"] == 12
    assert found["dask.elsewhere.erred"] == 2
    assert attributes(segment())["dask.span.counted_in"] == "other-id"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure("ValueError", "boom", erred=1), "1 task erred; first: boom"),
        (Failure("_OTHER", "", erred=3), "3 tasks erred"),
        (Failure("ValueError", "boom", 2, 1), "2 tasks erred, 1 task failed upstream; first: boom"),
        (Failure("_OTHER", "", graphs=1), "1 graph could not be taken in"),
        (Failure("ValueError", "boom"), "boom"),
    ],
)
def test_error_description(failure, expected):
    assert error_description(failure) == expected
