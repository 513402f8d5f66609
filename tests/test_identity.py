from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.identity import Caller, Place, caller_of, group_id, origin_of, place, segment_id, trace_id

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


# Anchored ids

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = Caller(int(TRACE, 16), int(SPAN, 16), is_sampled=True)
ANCHORED = f"00-{TRACE}-{SPAN}-01"
OTHER = Caller(7, 8, is_sampled=False)
OTHERS = f"00-{7:032x}-{8:016x}-00;nonce"


@pytest.mark.parametrize(
    "id_",
    [
        *(ANCHORED, f"{ANCHORED};", f"{ANCHORED};1", f"{ANCHORED};a;b", f"{ANCHORED};-\n☃"),
        # Another bit of the flags is reserved or says how the trace id was made.
        *(f"00-{TRACE}-{SPAN}-03", f"00-{TRACE}-{SPAN}-ff"),
        # A later version may have more fields.
        *(f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-what-the-future-brings", f"fe-{TRACE}-{SPAN}-01-"),
    ],
)
def test_anchored_ids(id_):
    assert caller_of(id_) == CALLER


@pytest.mark.parametrize(
    "id_",
    [
        *("", "x", "5dc9b908-116b-49a5-b0d7-5a681f49a111", TRACE, f"{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}"),
        *(f" {ANCHORED}", f"{ANCHORED} ", f"{ANCHORED}\n", f"x{ANCHORED}", f";{ANCHORED}", f"{ANCHORED},1"),
        *(f"{ANCHORED}-00", f"{ANCHORED}-", f"{ANCHORED}-;1", f"01-{TRACE}-{SPAN}-01.", f"01-{TRACE}-{SPAN}-010"),
        *(f"ff-{TRACE}-{SPAN}-01", f"0-{TRACE}-{SPAN}-01", f"0x-{TRACE}-{SPAN}-01", f"000-{TRACE}-{SPAN}-01"),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-0g"),
        *(f"00-{TRACE[:-1]}-{SPAN}-01", f"00-{TRACE}0-{SPAN}-01", f"00-{TRACE}-{SPAN[:-1]}-01"),
        *(ANCHORED.upper(), f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN.upper()}-01", f"0A-{TRACE}-{SPAN}-01"),
        # Digits, but no ASCII.
        f"00-{TRACE[:-1]}\u0663-{SPAN}-01",
    ],
)
def test_ordinary_ids(id_):
    assert caller_of(id_) is None
    assert origin_of([id_]).trace_id() == trace_id(id_)


hexadecimal = st.text("0123456789abcdef", min_size=1, max_size=33)


@given(
    st.integers(0, 2**128 + 9), st.integers(0, 2**64 + 9), st.integers(0, 300), st.integers(0, 300), st.none() | texts
)
def test_reads_what_the_specification_allows(trace, span, flags, version, nonce):
    id_ = f"{version:02x}-{trace:032x}-{span:016x}-{flags:02x}" + ("" if nonce is None else f";{nonce}")
    valid = 0 < trace < 2**128 and 0 < span < 2**64 and flags < 256 and version < 255
    assert caller_of(id_) == (Caller(trace, span, is_sampled=flags % 2 == 1) if valid else None)


@given(st.text() | st.lists(hexadecimal, min_size=3, max_size=6).map("-".join))
def test_any_id_has_a_trace(id_):
    """Nothing that a person may write breaks it; the trace and the span fit their sizes."""
    caller = caller_of(id_)
    assert 0 < origin_of([id_]).trace_id() < 2**128
    assert caller is None or (0 < caller.trace_id < 2**128 and 0 < caller.span_id < 2**64)


@given(st.text("0123456789abcdef-;xF \n", max_size=3), st.integers(0, 60), st.integers(0, 3))
def test_a_changed_id_is_read_only_if_it_is_valid(text, at, length):
    """As a reader of the fields, one by one, would."""
    id_ = ANCHORED[:at] + text + ANCHORED[at + length :]
    version, *fields = id_.partition(";")[0].split("-")
    sizes = [32, 16, 2]
    valid = (
        [len(each) for each in (version, *fields[:3])] == [2, *sizes]
        and all(set(each) <= set("0123456789abcdef") for each in (version, *fields[:3]))
        and version != "ff"
        and int(fields[0], 16) > 0
        and int(fields[1], 16) > 0
        and (version != "00" or len(fields) == 3)
    )
    assert (caller_of(id_) is not None) == valid


# Which trace, below what


@pytest.mark.parametrize(
    ("ids", "trace"),
    [
        (["r"], trace_id("r")),
        (["r", "a", "b"], trace_id("r")),
        ([ANCHORED], CALLER.trace_id),
        ([ANCHORED, "a", "b"], CALLER.trace_id),
        (["r", "a", ANCHORED, "b"], CALLER.trace_id),
        ([ANCHORED, "a", OTHERS, "b"], OTHER.trace_id),
        ([ANCHORED, OTHERS, ANCHORED], CALLER.trace_id),
        (["r", ANCHORED.upper()], trace_id("r")),
    ],
)
def test_the_nearest_caller_decides_else_the_root(ids, trace):
    assert origin_of(ids).trace_id() == trace


def test_only_traces_of_roots_without_a_caller_roll_over():
    assert origin_of(["default"]).trace_id(2) == trace_id("default", 2)
    assert origin_of([ANCHORED]).trace_id(2) == CALLER.trace_id


def test_an_ordinary_span_costs_no_memory_of_its_own():
    root = origin_of(["r"])
    assert root.below("a").below("b") is root


def test_places():
    root, called, other = origin_of(["r"]), origin_of(["r", ANCHORED]), origin_of(["r", OTHERS])
    assert place(root, 0, None) == Place(trace_id("r"), None, is_top=True)
    assert place(root, 1, None) == Place(trace_id("r", 1), None, is_top=True)
    assert place(root, 0, (trace_id("r"), 5)) == Place(trace_id("r"), 5, is_top=False)
    assert place(called, 0, None) == Place(CALLER.trace_id, CALLER.span_id, is_top=True)
    assert place(called, 0, (trace_id("r"), 5)) == Place(CALLER.trace_id, CALLER.span_id, is_top=True)
    # In one trace, the cluster's own span is above; the caller's is above that one.
    assert place(called, 0, (CALLER.trace_id, 5)) == Place(CALLER.trace_id, 5, is_top=False)
    assert place(other, 0, (CALLER.trace_id, 5)) == Place(OTHER.trace_id, OTHER.span_id, is_top=True)


def test_a_caller_that_knows_the_trace_of_a_root_is_below_it():
    """A task of a root's trace may open spans: they are where Dask has them."""
    inner = origin_of(["r", f"00-{trace_id('r'):032x}-{SPAN}-01"])
    assert place(inner, 0, (trace_id("r"), 5)) == Place(trace_id("r"), 5, is_top=False)
