"""Which spans share a line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dask_otel.analysis.lanes import NONE, depths, divide

TIMES = st.integers(0, 12)  # few, so that many are the same


@st.composite
def forests(draw):
    """Starts, ends, parents, and the numbers of the spans on a track; any shape, also those that make no sense."""
    count = draw(st.integers(0, 14))
    spans = [sorted(draw(st.tuples(TIMES, TIMES))) for _ in range(count)]
    parents = [draw(st.integers(NONE, count - 1)) for _ in range(count)]
    track = [number for number in range(count) if draw(st.integers(0, 9)) > 1]
    return [start for start, _ in spans], [end for _, end in spans], parents, track


def ancestors(span, parents):
    out = []
    while parents[span] != NONE and parents[span] not in out:
        span = parents[span]
        out.append(span)
    return out


@given(forests())
def test_spans_of_a_lane_nest_in_their_ancestors(forest):
    starts, ends, parents, track = forest
    placed = list(divide(track, starts, ends, parents, depths(parents)))
    assert sorted(span for span, _ in placed) == track
    lanes = {}
    for span, lane in placed:
        stack = lanes.setdefault(lane, [])
        while stack and ends[stack[-1]] <= starts[span]:
            stack.pop()
        if stack:
            assert ends[span] <= ends[stack[-1]]
            assert stack[-1] in ancestors(span, parents)
        stack.append(span)
    # As many lanes as spans at one time, at most.
    most = max((sum(starts[each] <= at <= ends[each] for each in track) for at in range(13)), default=0)
    assert sorted(lanes) == list(range(len(lanes)))
    assert len(lanes) <= most


@given(forests())
def test_a_file_sorted_by_start_and_length_has_the_same_order(forest):
    """As readers of Chrome's format sort: no span is then within one that only starts at the same time."""
    starts, ends, parents, track = forest
    by_lane = {}
    for span, lane in divide(track, starts, ends, parents, depths(parents)):
        by_lane.setdefault(lane, []).append(span)
    for spans in by_lane.values():
        assert sorted(spans, key=lambda span: (starts[span], starts[span] - ends[span])) == spans


def test_a_tree():
    #            0 root  1 child  2 overlaps 1  3 in 2  4 after 1  5 no child of root's
    starts, ends = [0, 1, 2, 3, 5, 6], [9, 4, 6, 6, 9, 8]
    parents = [NONE, 0, 0, 2, 0, NONE]
    assert dict(divide(range(6), starts, ends, parents, depths(parents))) == {0: 0, 1: 0, 2: 1, 3: 1, 4: 0, 5: 1}
