"""What the span of a run says: of tasks that look like anything, and of clocks that go back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from distributed.utils import set_thread_state
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext

from dask_otel.identity import group_id, trace_id
from dask_otel.messages import SpanMade
from dask_otel.privacy import Capture, Redactor
from dask_otel.safety import Safety
from dask_otel.worker.lazy_span import Budget
from dask_otel.worker.task_span import Outcome, Run, RunWithMore, SpanSource, end_span

REDACTOR = Redactor(Capture())
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("tests")


def source(**changes):
    parts = {
        "tracer": lambda: TRACER,
        "report": [].append,
        "worker": lambda: ("tcp://127.0.0.1:1", "0"),
        "budget": Budget(0),
        "redactor": REDACTOR,
        "safety": Safety(),
    }
    return SpanSource(**parts | changes)


def run(key="load-1", span_id="b", annotations=None, task=None, **changes):
    annotations = {"span": {"name": ("etl", "load"), "ids": ("a", "b")}} if annotations is None else annotations
    return Run(source(**changes), key, span_id, annotations, 1, task)


def test_where_it_is():
    context = run().context()
    assert (context.trace_id, context.span_id) == (trace_id("a"), group_id("b", "load", 0))
    assert context.is_remote
    assert context.trace_flags.sampled
    default = run(span_id="c", annotations={}).context()
    assert (default.trace_id, default.span_id) == (trace_id("c"), group_id("c", "load", 0))


def test_a_task_in_another_span_than_its_annotation_says_is_in_no_trace():
    """Its root is not known, and is not guessed."""
    made = run(span_id="other")
    assert made.context() == INVALID_SPAN_CONTEXT
    assert not made.can_record()
    assert made.make() is None


def test_two_threads_ask_where_it_is(monkeypatch):
    """Neither gets an answer that is not the last."""
    entered, go = threading.Event(), threading.Event()
    made = run()
    look_up = Run._look_up

    def slow(self):
        if not entered.is_set():
            entered.set()
            assert go.wait(60)
        return look_up(self)

    monkeypatch.setattr(Run, "_look_up", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(made.context)
        assert entered.wait(60)
        second = made.context()
        go.set()
        assert first.result(60) == second == run().context()
    assert second.is_valid


def test_a_parent_that_is_given_out_is_reported_once():
    reported = []
    parts = source(report=reported.append)
    annotations = {"span": {"name": ("etl", "load"), "ids": ("a", "b")}}
    runs = [Run(parts, f"load-{number}", "b", annotations, number, None) for number in (1, 2)]
    parent = runs[0].context()
    assert [each.given_out() for each in [*runs, *runs]] == [parent] * 4
    assert reported == [SpanMade("load-1", None, "b", "load", parent.trace_id, 0, parent.span_id)]


def test_long_carriers_are_not_remembered():
    parts = source()
    annotations = {"span": {"name": ("etl", "load"), "ids": ("a", "b")}}
    for length in (10, 10_000):
        carrier = (("baggage", "a=" + "b" * length),)
        made = RunWithMore(parts, "load-1", "b", annotations, 1, None, carrier=carrier, base=Context())
        assert made.context().is_valid
    assert len(parts.known) == 1


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=6,
)


@given(
    key=st.text() | st.integers() | st.binary() | st.tuples(st.text(), st.integers()),
    span_id=st.text(),
    requested=JUNK | st.fixed_dictionaries({"name": JUNK, "ids": JUNK}),
)
def test_it_never_raises(key, span_id, requested):
    made = run(key, span_id, {"span": requested})
    assert isinstance(made.context(), SpanContext)
    assert isinstance(made.name, str)
    span = made.make()
    assert (span is not None) == made.can_record() == made.context().is_valid
    if span is not None:
        end_span(span, Outcome(1.8e9, None, int, 1, 2, ()), REDACTOR)
        assert not span.is_recording()


def test_it_begins_as_its_thread_says():
    """Else as its task does; a time before the run is that of an earlier run."""
    task = SimpleNamespace(key="load-1", start_time=None)
    made = run(task=task)
    began = made.entered
    starts = [made.make().start_time]
    task.start_time = began + 1
    starts.append(made.make().start_time)
    with set_thread_state(key="load-1", start_time=began + 2, execution_state={}):
        starts.append(made.make().start_time)
    with set_thread_state(key="other", start_time=began + 3, execution_state={}):
        starts.append(made.make().start_time)
    task.start_time = began - 10
    starts.append(made.make().start_time)
    made.task = None
    starts.append(made.make().start_time)
    assert [round((each / 1e9 - began) * 1e3) for each in starts] == [0, 1000, 2000, 1000, 0, 0]


def test_it_ends_not_before_it_begins():
    """The clock may have been set back meanwhile."""
    span = run().make()
    end_span(span, Outcome(1.0), REDACTOR)
    assert span.end_time == span.start_time


def test_times_are_rounded_outwards_to_microseconds():
    made = run()
    made.entered = 1_800_000_000.1234567
    span = made.make()
    end_span(span, Outcome(1_800_000_000.7654321), REDACTOR)
    assert (span.start_time, span.end_time) == (1_800_000_000_123_456_000, 1_800_000_000_765_433_000)


@pytest.mark.parametrize("fails", ["set_attributes", "add_event", "end"])
def test_it_ends_whatever_fails(fails):
    span = run().make()
    ended = []
    real = span.end
    span.end = lambda at: (ended.append(at), real(at))
    if fails != "end":
        setattr(span, fails, lambda *args, **kwargs: 1 / 0)
        error = SimpleNamespace(type="ValueError", message="no", traceback="")
        with pytest.raises((ZeroDivisionError, AttributeError)):
            end_span(span, Outcome(1.9e9, error, nbytes=1), REDACTOR)
    else:
        end_span(span, Outcome(1.9e9), REDACTOR)
    assert len(ended) == 1
    assert not span.is_recording()


def test_what_the_task_has_set_stays():
    from opentelemetry.trace import StatusCode

    span = run().make()
    span.set_status(StatusCode.OK)
    span.update_name("mine")
    end_span(span, Outcome(1.9e9, nbytes=1, type=int), REDACTOR)
    assert (span.name, span.status.status_code) == ("mine", StatusCode.OK)
