from __future__ import annotations

from dask_otel.patching import wrap


class Target:
    def method(self):
        return ["dask"]


def around(target, name):
    """A wrapper as others may put one: it knows what it wraps."""
    inner = target.method
    return lambda: [*inner(), name]


def test_what_was_there_is_put_back():
    target = Target()
    undo = wrap(target, "method", around(target, "ours"))
    assert target.method() == ["dask", "ours"]
    undo()
    assert target.method() == ["dask"]
    assert vars(target) == {}


def test_a_wrapper_that_was_there_before_is_put_back():
    target = Target()
    target.method = around(target, "theirs")
    undo = wrap(target, "method", around(target, "ours"))
    undo()
    assert target.method() == ["dask", "theirs"]


def test_a_wrapper_that_came_after_stays():
    target = Target()
    undo = wrap(target, "method", around(target, "ours"))
    target.method = around(target, "theirs")
    undo()
    assert target.method() == ["dask", "ours", "theirs"]
