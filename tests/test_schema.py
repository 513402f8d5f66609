from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.schema import MAX_VALUE, clean, identifier

#: Any text that Python can hold, lone surrogates included.
anything = st.text(st.characters(exclude_categories=()), max_size=50)


@given(anything, st.integers(3, 60))
def test_clean_is_valid_and_short(text, limit):
    assert len(clean(text, limit).encode("utf-8")) <= limit


@given(st.text(max_size=50))
def test_clean_leaves_good_text_alone(text):
    assert clean(text) == text


def test_clean_cuts_between_characters():
    cut = clean("🙂" * 1000)
    assert cut.endswith("🙂…")
    assert len(cut.encode()) <= MAX_VALUE


@given(st.one_of(anything, st.integers(), st.none(), st.tuples(anything)))
def test_identifier_has_only_what_names_may_have(value):
    assert re.fullmatch(r"[a-z0-9_]{1,64}", identifier(value))


@pytest.mark.parametrize(
    ("text", "expected"), [("thread-cpu", "thread_cpu"), ("Disk Read!", "disk_read"), ("", "unnamed")]
)
def test_identifier(text, expected):
    assert identifier(text) == expected
