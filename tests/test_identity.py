from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dask_otel.identity import group_id, segment_id, trace_id

texts = st.text(st.characters(), max_size=20)


def test_never_changes():
    """Other processes, and links that people keep, rest on these."""
    span = "5dc9b908-116b-49a5-b0d7-5a681f49a111"
    assert f"{trace_id(span):032x}" == "2ac3398355aa14d06ccabe5939d81b2f"
    assert f"{segment_id(span, 0):016x}" == "05f44d73d15970a2"
    assert f"{group_id(span, 'inc', 0):016x}" == "ffa060f97a2d6f46"


@given(st.lists(st.tuples(texts, texts, st.integers(0, 5)), unique=True, min_size=2, max_size=2))
def test_different_arguments_give_different_ids(pair):
    (span_a, group_a, n_a), (span_b, group_b, n_b) = pair
    assert group_id(span_a, group_a, n_a) != group_id(span_b, group_b, n_b)


@given(texts, st.integers(0, 1000))
def test_fits_its_size(span, number):
    assert 0 < trace_id(span, number) < 2**128
    assert 0 < segment_id(span, number) < 2**64
    assert 0 < group_id(span, span, number) < 2**64


def test_low_bits_are_uniform_so_that_ratio_samplers_keep_the_ratio():
    low = [trace_id(f"span-{i}") & (2**64 - 1) for i in range(20_000)]
    assert 0.09 < sum(bits < 2**64 // 10 for bits in low) / len(low) < 0.11
