from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.watch.outcomes import first_error, outcome_of_release


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


@pytest.mark.parametrize(
    ("start", "stimulus", "expected"),
    [
        ("processing", "task-erred-1.5", "retried"),
        ("processing", "reschedule-1.5", "rescheduled"),
        ("processing", "cancel-key-1.5", "cancelled"),
        ("processing", "client-restart-1.5", "cancelled"),
        ("processing", "client-releases-keys-1.5", "abandoned"),
        ("processing", "remove-client-1.5", "abandoned"),
        ("processing", "handle-worker-cleanup-1.5", "lost"),
        ("processing", "check-worker-ttl-1.5", "lost"),
        ("waiting", "cancel-key-1.5", "cancelled"),
        ("queued", "client-releases-keys-1.5", "abandoned"),
        ("waiting", "handle-worker-cleanup-1.5", None),
        ("processing", "something-new-1.5", None),
    ],
)
def test_outcome_of_release(start, stimulus, expected):
    assert outcome_of_release(start, stimulus) == expected
