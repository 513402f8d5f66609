"""Which spans share a line."""

from __future__ import annotations

from itertools import pairwise

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
def test_what_starts_at_the_same_time_on_a_lane_is_shorter_or_within(forest):
    """Readers of Chrome's format sort by start and length: they must not see a span within one that is no ancestor."""
    starts, ends, parents, track = forest
    by_lane = {}
    for span, lane in divide(track, starts, ends, parents, depths(parents)):
        by_lane.setdefault(lane, []).append(span)
    for spans in by_lane.values():
        for first, second in pairwise(spans):
            if starts[first] == starts[second]:
                assert ends[first] > starts[first]
                assert ends[first] >= ends[second]
                assert first in ancestors(second, parents)


def test_a_tree():
    # 0: root, 1: child, 2: overlaps 1, 3: in 2, 4: after 1, 5: no child of the root's, 6: in 7, which takes as long
    starts, ends = [0, 1, 2, 3, 5, 6, 10, 10], [9, 4, 6, 6, 9, 8, 12, 12]
    parents = [NONE, 0, 0, 2, 0, NONE, 7, NONE]
    assert list(divide(range(8), starts, ends, parents, depths(parents))) == [
        (0, 0), (1, 0), (2, 1), (3, 1), (4, 0), (5, 1), (7, 0), (6, 0),
    ]  # fmt: skip
