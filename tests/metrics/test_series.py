"""Values of attributes: so many at a time, with room for new ones after a day; rewritten, valid, short."""

from __future__ import annotations

import re
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from dask_otel.metrics.series import MAX_REMEMBERED, OTHER, OpenAttribute, Rewriting
from dask_otel.schema import MAX_METRIC_VALUE, MAX_PREFIXES, UNUSED_AFTER


def make(most=3):
    forgotten = []
    return OpenAttribute(forgotten.append, most), forgotten


def test_so_many_at_a_time():
    names, forgotten = make(MAX_PREFIXES)
    assert [names.use(str(n), 0.0) for n in range(MAX_PREFIXES)] == [str(n) for n in range(MAX_PREFIXES)]
    assert names.use("one more", 0.0) == OTHER
    assert names.use("0", 0.0) == "0"
    assert not forgotten


def test_a_place_that_nobody_used_for_a_day_goes_to_another():
    names, forgotten = make()
    for at, name in enumerate("abc"):
        names.use(name, at)
    names.use("a", 10.0)
    assert names.use("d", UNUSED_AFTER + 0.9) == OTHER
    assert names.use("d", UNUSED_AFTER + 1.0) == "d"
    assert forgotten == ["b"]
    assert names.use("b", UNUSED_AFTER + 1.0) == OTHER
    assert names.use("a", UNUSED_AFTER + 2.0) == "a"
    assert names.use("b", UNUSED_AFTER + 2.0) == "b"
    assert forgotten == ["b", "c"]


def test_a_place_that_nobody_wants_is_kept():
    names, forgotten = make()
    names.use("a", 0.0)
    assert names.use("b", 10 * UNUSED_AFTER) == "b"
    assert names.use("a", 10 * UNUSED_AFTER) == "a"
    assert not forgotten


def test_one_that_is_called_like_the_rest_is_among_the_rest():
    names, forgotten = make(1)
    assert names.use(OTHER, 0.0) == OTHER
    assert names.use("a", 0.0) == "a"
    names.forget_unused(UNUSED_AFTER)
    assert forgotten == ["a"]


STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, UNUSED_AFTER * 0.7)), max_size=60)


@given(STEPS, st.integers(1, 4))
def test_against_a_model(steps, most):
    names, forgotten = make(most)
    model, gone, now = OrderedDict(), [], 0.0
    for name, pause in steps:
        now += pause
        if name not in model and len(model) >= most:
            for old in [each for each, used in model.items() if now - used >= UNUSED_AFTER]:
                del model[old]
                gone.append(old)
        has_place = name in model or len(model) < most
        if has_place:
            model[name] = now
            model.move_to_end(name)
        assert names.use(name, now) == (name if has_place else OTHER)
        assert forgotten == gone


def test_rewriting_takes_the_first_that_matches_all():
    rewrite = Rewriting(
        [
            (re.compile(r"job-(\d)\d*"), r"job \1…"),
            (re.compile(r"job-.*"), "job"),
            (re.compile(r"request (?P<what>\w+) .*"), r"request \g<what>"),
        ]
    )
    expected = {
        "job-123": "job 1…",
        "job-12x": "job",
        "job-x": "job",
        "a job-x": "a job-x",
        "request load 7f3a": "request load",
        "request load": "request load",
    }
    assert {name: rewrite(name) for name in expected} == expected


def test_a_name_that_is_rewritten_to_nothing():
    assert Rewriting([(re.compile(r".*"), "")])("x") == "unnamed"
    assert Rewriting()("") == "unnamed"


@given(
    st.lists(
        st.text(st.characters(exclude_categories=()), max_size=3 * MAX_METRIC_VALUE),
        unique=True,
        min_size=2,
        max_size=2,
    )
)
def test_values_are_valid_text_and_stay_distinct(pair):
    rewrite = Rewriting()
    rewritten = [rewrite(name) for name in pair]
    for name, each in zip(pair, rewritten, strict=True):
        assert 0 < len(each) <= MAX_METRIC_VALUE
        each.encode()
        assert each == rewrite(name)
        if 0 < len(name) <= MAX_METRIC_VALUE and name.isascii():
            assert each == name


def test_long_values_stay_distinct():
    rewrite = Rewriting()
    assert rewrite("\ud800x") == "?x"
    long = ["x" * 1000 + each for each in ("", "a", "b")]
    assert len({rewrite(name) for name in long}) == 3
    assert rewrite("x" * MAX_METRIC_VALUE) == "x" * MAX_METRIC_VALUE
    assert all(len(rewrite(name)) == MAX_METRIC_VALUE for name in long)


def test_what_is_remembered_is_bounded_and_changes_nothing():
    rewrite = Rewriting([(re.compile(r"n(\d)\d*"), r"\1")])
    for n in range(2 * MAX_REMEMBERED + 10):
        assert rewrite(f"n{n}") == str(n)[0]
        assert len(rewrite._remembered) <= MAX_REMEMBERED
