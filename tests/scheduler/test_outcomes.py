from __future__ import annotations

import pytest
from distributed.protocol import pickle
from distributed.scheduler import KilledWorker, NoWorkerError
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.scheduler.outcomes import error_of, first_error, outcome_of_release


class CustomError(Exception):
    pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (repr(ValueError("boom")), ("ValueError", "boom")),
        (repr(KeyError("a key")), ("KeyError", "a key")),
        (repr(CustomError(1, "two")), ("CustomError", "1, 'two'")),
        (repr(ValueError()), ("ValueError", "")),
        (repr(ValueError("line\nbreak 'quoted'")), ("ValueError", "line\nbreak 'quoted'")),
        ("package.module.Error('x')", ("Error", "x")),
        ("<some object at 0x7f>", ("_OTHER", "<some object at 0x7f>")),
        ("ValueError('unfinished", ("_OTHER", "ValueError('unfinished")),
        (None, ("_OTHER", "")),
        ("", ("_OTHER", "")),
    ],
)
def test_first_error(text, expected):
    assert first_error(text) == expected


@given(st.text(max_size=200))
def test_first_error_takes_any_text(text):
    type_, message = first_error(text)
    assert type_
    assert isinstance(message, str)


@given(st.text(max_size=200))
def test_first_error_gives_back_any_message(message):
    assert first_error(repr(ValueError(message))) == ("ValueError", message)


class Task:
    """What a scheduler's TaskState says of itself after its release."""

    def __init__(self, wanted=True, blame=None, lost=False):
        self.who_wants, self.waiters = {"client"} if wanted else set(), set()
        self.exception_blame, self.has_lost_dependencies = blame, lost


@pytest.mark.parametrize(
    ("task", "start", "stimulus", "expected"),
    [
        (Task(), "processing", "task-erred-1.5", "retried"),
        (Task(), "processing", "execute-unknown-error-1.5", "retried"),
        (Task(), "processing", "reschedule-1.5", "rescheduled"),
        (Task(), "processing", "steal-1.5", "rescheduled"),
        (Task(), "processing", "something-new-1.5", "rescheduled"),
        (Task(), "processing", "handle-worker-cleanup-1.5", "lost"),
        (Task(), "processing", "check-worker-ttl-1.5", "lost"),
        (Task(), "processing", "client-restart-workers-1.5", "lost"),
        (Task(), "waiting", "handle-worker-cleanup-1.5", None),
        (Task(wanted=False), "processing", "cancel-key-1.5", "cancelled"),
        (Task(wanted=False), "waiting", "cancel-key-1.5", "cancelled"),
        (Task(wanted=False), "processing", "client-restart-1.5", "cancelled"),
        (Task(wanted=False), "processing", "client-releases-keys-1.5", "abandoned"),
        (Task(wanted=False), "queued", "remove-client-1.5", "abandoned"),
        # A task that nobody needs any more because what needed it has failed
        (Task(wanted=False), "processing", "task-erred-1.5", "abandoned"),
        (Task(wanted=False), "queued", "task-erred-1.5", "abandoned"),
        (Task(wanted=False), "processing", "handle-worker-cleanup-1.5", "abandoned"),
        # A task that will be erred next, because one that it needs has failed
        (Task(blame="another"), "waiting", "task-erred-1.5", None),
        (Task(lost=True), "waiting", "handle-worker-cleanup-1.5", "lost"),
    ],
)
def test_outcome_of_release(task, start, stimulus, expected):
    assert outcome_of_release(task, start, stimulus) == expected


def test_a_long_text_is_cut_but_keeps_its_type():
    type_, message = first_error(f"ValueError('{'x' * 10**7}')")
    assert type_ == "ValueError"
    assert len(message) < 5000


@pytest.mark.parametrize("error", [KilledWorker("key", None, 3), NoWorkerError("key", 1.0), MemoryError("too large")])
def test_exceptions_of_the_scheduler_itself_are_told_from_their_pickle(error):
    task = Task()
    task.exception, task.exception_text = pickle.dumps(error), None
    assert error_of(task) == (type(error).__name__, "")
