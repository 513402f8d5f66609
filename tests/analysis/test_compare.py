"""Runs compared: differences add up whatever the numbers, and steps are found again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_otel.analysis.compare import OTHER_STEPS, Change, Explained, compare
from dask_otel.analysis.run import Run, RunPath, RunStep, RunVerdict
from dask_otel.diagnosis.parts import GAPS, PARTS

seconds = st.floats(0, 1000, allow_subnormal=False)


def made(*, root="etl", parts=None, path=None, gaps=None, other_steps=0.0, steps=(), seconds=None, **rest):
    on_path = None
    if path is not None or gaps is not None:
        runs = sum((path or {}).values()) + other_steps
        on_path = RunPath(runs, {}, gaps or {}, path or {}, {})
    total = sum((parts or {}).values()) if seconds is None else seconds
    values = {"trace_id": "1" * 32, "service": "", "start": 0.0, "end": total, "segments": 1, "result": "success"}
    values |= {"tasks": None, "failed": 0, "threads": 4.0, "verdict": RunVerdict((), "", None, None, (), ())}
    return Run(root=root, seconds=total, parts=parts or {}, path=on_path, steps=steps, **values | rest)


def step(label, tasks=1, compute=1.0, seconds=1.0):
    return RunStep(label, tasks, compute, (1.0, 1.0), 1.0, 0.0, seconds, seconds, 0)


@st.composite
def any_run(draw):
    """Parts and path may be there or not, and may not add up."""
    labels = [f"etl / {name}" for name in "abcd"]
    parts = draw(st.none() | st.dictionaries(st.sampled_from(PARTS), seconds))
    path = draw(st.none() | st.dictionaries(st.sampled_from(labels), seconds))
    gaps = draw(st.dictionaries(st.sampled_from(GAPS), seconds)) if path is not None else None
    steps = tuple(step(label, compute=draw(st.none() | seconds)) for label in draw(st.sets(st.sampled_from(labels))))
    return made(parts=parts, path=path, gaps=gaps, other_steps=draw(seconds), steps=steps, seconds=draw(seconds))


sides = st.lists(any_run(), min_size=1, max_size=4)


def whole(explained):
    return sum(change.difference for change in explained.changes.values()) + explained.rest


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(sides, sides)
def test_differences_add_up_to_the_whole(before, after):
    found = compare(before, after)
    for explained in (found.parts, found.path):
        if explained:
            assert whole(explained) == pytest.approx(found.seconds.difference, abs=1e-6)
    back = compare(after, before)
    assert back.seconds.difference == -found.seconds.difference
    for there, here in ((found.parts, back.parts), (found.path, back.path)):
        assert (there is None) == (here is None)
        if there:
            assert here.changes == {name: Change(each.after, each.before) for name, each in there.changes.items()}
    assert {each.label for each in found.steps} == {each.label for each in back.steps}


whole_runs = st.builds(
    lambda parts, client: made(parts=parts, path={}, gaps={"client": client, "graph": sum(parts.values()) - client}),
    st.dictionaries(st.sampled_from(PARTS), seconds, min_size=1),
    seconds,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(whole_runs, min_size=1, max_size=9), st.lists(whole_runs, min_size=1, max_size=9))
def test_nothing_is_left_over_if_each_run_adds_up(before, after):
    found = compare(before, after)
    assert found.parts.rest == pytest.approx(0.0, abs=1e-6)
    assert found.path.rest == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(sides)
def test_identical_runs_differ_by_nothing(runs):
    found = compare(runs, runs)
    changes = [found.seconds]
    for explained in (found.parts, found.path):
        changes += explained.changes.values() if explained else ()
    for each in found.steps:
        assert not each.is_new
        assert not each.is_gone
        changes += filter(None, (each.tasks, each.compute, each.seconds, each.critical, each.longest))
    assert {change.difference for change in changes} == {0.0}
    assert not found.is_slower(0.0)


def test_the_runs_in_the_middle_count():
    """So that parts add up, and one run that took very long does not matter."""
    before = [made(parts={"cpu": cpu, "tail": tail}) for cpu, tail in ((1.0, 99.0), (2.0, 8.0), (8.5, 1.0), (6.0, 5.0))]
    after = [made(parts={"cpu": 4.0, "queued": 8.0})]
    found = compare(before, after)
    assert (found.seconds.old, found.seconds.new) == (10.5, 12.0)  # of 9.5, 10, 11 and 100
    assert found.parts == Explained(
        {
            "queued": Change((0.0, 0.0, 0.0, 0.0), (8.0,)),
            "cpu": Change((8.5, 2.0, 6.0, 1.0), (4.0,)),
            "tail": Change((1.0, 8.0, 5.0, 99.0), (0.0,)),
        },
        rest=0.0,
    )
    assert [change.difference for change in found.parts.changes.values()] == [8.0, 0.0, -6.5]
    assert [found.before, found.after] == [before, after]


def test_what_traces_lack_is_not_explained():
    found = compare([made(parts={"cpu": 5.0}), made(seconds=11.0)], [made(parts={"cpu": 9.0})])
    assert (found.seconds.difference, found.parts.changes["cpu"].difference, found.parts.rest) == (1.0, 4.0, -3.0)
    assert found.path is None


def test_what_can_be_chance():
    assert Change((1.0,), (2.0,)).is_noise is None
    assert Change((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)).is_noise is False
    assert Change((4.0, 5.0, 6.0), (1.0, 2.0, 3.0)).is_noise is False  # faster
    assert Change((1.0, 5.0, 2.0), (3.0, 4.0, 6.0)).is_noise is True
    assert Change((1.0, 2.0), (1.0, 2.0)).is_noise is True


def test_steps_are_aligned_below_the_root():
    """The root may have another name, as a notebook's copy; ids always differ."""
    before = made(
        path={"etl / load / read": 4.0, "etl / old": 1.0},
        gaps={"graph": 1.0},
        steps=(step("etl / load / read", 10), step("etl / old"), step("etl / same")),
    )
    after = made(
        root="etl v2",
        path={"etl v2 / load / read": 9.0, "etl v2 / new": 0.5},
        gaps={"graph": 1.5, "queued": 1.0},
        steps=(step("etl v2 / load / read", 30, 30.0), step("etl v2 / new"), step("etl v2 / same")),
    )
    found = compare([before], [after])
    assert {name: change.difference for name, change in found.path.changes.items()} == {
        "load / read": 5.0,
        "gap: queued": 1.0,
        "gap: graph": 0.5,
        "new": 0.5,
        "old": -1.0,
    }
    assert [(each.label, each.is_new, each.is_gone) for each in found.steps] == [
        ("load / read", False, False),
        ("new", True, False),
        ("same", False, False),
        ("old", False, True),
    ]
    assert found.has_common_steps
    first, _, same, _ = found.steps
    assert (first.tasks, first.compute) == (Change((10,), (30,)), Change((1.0,), (30.0,)))
    assert same.critical == Change((0.0,), (0.0,))  # the path names all of its steps
    assert not compare([before], [made(steps=(step("train / fit"),))]).has_common_steps
    assert compare([before], [made()]).has_common_steps


def test_steps_that_a_path_does_not_name_are_unknown():
    vague = made(path={}, other_steps=5.0, steps=(step("etl / a"),))
    found = compare([vague], [made(path={"etl / a": 7.0}, steps=(step("etl / a"),))])
    assert found.steps[0].critical is None
    assert {name: change.difference for name, change in found.path.changes.items()} == {"a": 7.0, OTHER_STEPS: -5.0}


@pytest.mark.parametrize(
    ("before", "after", "allowed", "expected"),
    [
        ([10.0], [11.5], 0.1, True),
        ([10.0], [10.9], 0.1, False),
        ([10.0], [9.0], 0.0, False),
        ([10.0, 10.1, 9.9], [12.0, 12.1, 11.9], 0.1, True),
        ([10.0, 14.0, 9.9], [12.0, 12.1, 11.9], 0.1, False),  # of six runs, one of the old ones was the slowest
        ([10.0, 14.0], [12.0, 16.0], 0.1, False),
        ([0.0], [0.1], 0.1, True),
    ],
)
def test_slower_is_beyond_what_is_allowed_and_beyond_noise(before, after, allowed, expected):
    old, new = ([made(seconds=each) for each in side] for side in (before, after))
    assert compare(old, new).is_slower(allowed) is expected
