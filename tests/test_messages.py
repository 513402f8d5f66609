"""What clients, workers and the scheduler write for each other."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.messages import SUBMITTER, SpanMade, Submitter

KEYS = st.recursive(
    st.one_of(st.text(), st.binary(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False)),
    lambda keys: st.lists(keys, min_size=1, max_size=3).map(tuple),
    max_leaves=5,
)


@given(
    st.builds(
        SpanMade,
        KEYS,
        st.none() | st.integers(0, 2**62),
        st.text(),
        st.text(),
        st.integers(1, 2**128 - 1),
        st.integers(1, 2**64 - 1),
        st.integers(1, 2**64 - 1),
    )
)
def test_an_event_says_all_and_can_be_sent(made):
    data = msgpack.packb(made.to_event(), use_bin_type=True, unicode_errors="surrogatepass")
    event = msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=False, unicode_errors="surrogatepass")
    assert SpanMade.from_event(event) == made


GOOD = SpanMade("inc-1", 1, "span", "inc", 1, 2, 3).to_event()


@pytest.mark.parametrize(
    "event",
    [None, "text", 5, [], {}, {"action": "other"}, *({**GOOD, name: "no id"} for name in ("trace-id", "span-id"))]
    + [{name: value for name, value in GOOD.items() if name != left_out} for left_out in GOOD]
    + [{**GOOD, "parent-id": None}],
)
def test_what_somebody_else_logs_is_no_report(event):
    assert SpanMade.from_event(event) is None


def test_who_submits():
    alice = Submitter(service="web", user="alice", caller="traceparent")
    assert alice.to_metadata() == {SUBMITTER: {"service": "web", "user": "alice", "caller": "traceparent"}}
    assert Submitter.from_metadata({"collections": [], **alice.to_metadata()}) == alice
    assert Submitter().to_metadata() == {}


@pytest.mark.parametrize(
    "metadata", [None, 1, [], {}, {SUBMITTER: None}, {SUBMITTER: "web"}, {SUBMITTER: {"service": 1, "user": None}}]
)
def test_other_metadata_names_nobody(metadata):
    assert Submitter.from_metadata(metadata) == Submitter()
