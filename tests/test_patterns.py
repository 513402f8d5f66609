"""What is called quick is quick, whatever the name."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_otel.config import is_quick
from dask_otel.schema import MAX_METRIC_VALUE

QUICK = [
    "(.*)'s workflow",
    "(.*) (.*)",
    "(.*?)( \\d+)?",
    "x{1,3}y*",
    "a{30}",
    "[a-z]+-\\d+",
    "a(b|c)d",
    "(?P<who>.*)'s (?P<what>.+)",
    "(?i)(?:a|b).*",
    r"\(.+\)\+\*\{",
    "[*+?)|]*[^]*+)]+",
    "alice|bob|carol|dave|erin",
]
SLOW = [
    "(a+)+b",
    "(a|a)*b",
    ".*.*.*b",
    "(a*)*",
    "((a)|b)+",
    "(?=(a+)+b)",
    "a{0,500}b{0,500}c{0,500}",
    "(?:(?:a+))+b",
    "a?" * 25 + "a" * 25,
    "(?:ab)+",  # harmless, but so would "(?:a+b)+" be let through
    # The same as "(a+)+b".
    "(?x)(a+) +b",
    "(?x:(a+) +b)",
    "(?x)(a+) # a remark\n+b",
    "(?:a+)(?#a remark)+b",
    "(a+)(?i)+b",  # valid in Python 3.10 only
    "([)a]+)+b",
    r"(\)+)+b",
]


@pytest.mark.parametrize("pattern", QUICK)
def test_quick(pattern):
    assert is_quick(pattern)


@pytest.mark.parametrize("pattern", SLOW)
def test_slow(pattern):
    assert not is_quick(pattern)


atoms = st.sampled_from(["a", "b", ".", "[ab]", "\\w", "(?:ab)", "(a)", "^", "$"])
parts = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,20}", "*?"])).map(lambda t: f"(?:{t[0]}){t[1]}"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=2).map(lambda two: f"(?:{'|'.join(two)})"),
    ),
    max_leaves=8,
)


@given(parts)
@settings(max_examples=300, deadline=None)
def test_no_pattern_that_is_called_quick_takes_long(pattern):
    if not is_quick(pattern):
        return
    begin = perf_counter()
    for name in ("a" * MAX_METRIC_VALUE, "ab" * (MAX_METRIC_VALUE // 2), "a" * (MAX_METRIC_VALUE - 1) + "!"):
        re.fullmatch(pattern, name)
    assert perf_counter() - begin < 2  # a hopeless one would take years; a busy machine is no fault
