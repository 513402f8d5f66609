"""The thread that ends spans: it is there while there is something to do, and a processor may do anything to it."""

from __future__ import annotations

import logging
import threading

import pytest

from dask_otel.safety import Safety
from dask_otel.worker import ending
from dask_otel.worker.ending import EndingThread


def threads():
    return [each for each in threading.enumerate() if each.name == "dask-otel task spans"]


@pytest.fixture
def safety():
    return Safety()


def test_it_calls_all_in_order_and_ends(safety):
    called = []
    thread = EndingThread(safety)
    for number in range(100):
        thread.call(lambda number=number: called.append(number))
    assert thread.stop(30)
    assert called == list(range(100))
    assert not threads()
    # It may be needed again: a run that outlives the plugin ends later.
    thread.call(lambda: called.append("late"))
    assert thread.stop(30)
    assert called[-1] == "late"


def test_it_is_gone_if_there_is_nothing_to_do(safety, monkeypatch):
    monkeypatch.setattr(ending, "IDLE", 0.01)
    thread = EndingThread(safety)
    done = threading.Event()
    thread.call(done.set)
    assert done.wait(30)
    for each in threads():
        each.join(30)
    assert not threads()
    again = threading.Event()
    thread.call(again.set)
    assert again.wait(30)


def test_what_raises_harms_nothing_else(safety):
    called = []
    thread = EndingThread(safety)
    for _ in range(200):
        thread.call(lambda: 1 / 0)
    thread.call(lambda: called.append(1))
    assert thread.stop(30)
    assert called == [1]
    assert safety.failures == {("task span (end)", "ZeroDivisionError"): 200}
    assert not safety.gave_up


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_the_thread_does_not_end_the_next(safety):
    called = []
    thread = EndingThread(safety)

    def leave():
        raise SystemExit

    for number in range(3):
        thread.call(leave)
        thread.call(lambda number=number: called.append(number))
    assert thread.stop(30)
    assert called == [0, 1, 2]
    for each in threads():
        each.join(30)  # or what ended it would be reported while the next test runs


def test_ends_that_wait_are_limited(safety, caplog):
    """A processor that hangs holds only this thread, and memory stays limited."""
    entered, go, called = threading.Event(), threading.Event(), []
    thread = EndingThread(safety, max_waiting=10)

    def hang():
        entered.set()
        assert go.wait(30)

    thread.call(hang)
    assert entered.wait(30)
    with caplog.at_level(logging.WARNING, logger="distributed.dask_otel"):
        for number in range(15):
            thread.call(lambda number=number: called.append(number))
    assert thread.dropped == 5
    assert len({record.getMessage() for record in caplog.records}) == 1
    assert not thread.stop(0.01)
    go.set()
    assert thread.stop(30)
    assert called == list(range(10))


def test_it_is_in_no_context_of_a_task(safety):
    """Instrumented threads take over the context of whoever starts them: that of the first task."""
    from contextvars import ContextVar, copy_context

    variable = ContextVar("variable", default="none")
    seen = []
    start = threading.Thread.start

    def started(self):
        seen.append(copy_context().get(variable))
        start(self)

    variable.set("a task")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", started)
        thread = EndingThread(safety)
        thread.call(lambda: None)
    assert thread.stop(30)
    assert seen == [None]
