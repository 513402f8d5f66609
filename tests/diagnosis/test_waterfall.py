"""The parts of a segment sum to what the cluster had, and its path to its duration, whatever laps and clocks say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_otel.diagnosis.parts import GAPS, IDLE, PARTS, CriticalPath, GroupKey, Lap, OnPath
from dask_otel.diagnosis.waterfall import ACTIVITIES, Laps

INC, SUM = GroupKey("span", "inc"), GroupKey("span", "sum")


def lap(start, end, *, path_end=None, occupied=0.0, idle=None, groups=None, gaps=None, **more):
    """A lap of a root whose path ends with it, if nothing else is said."""
    path = CriticalPath(start, end if path_end is None else path_end, groups or {}, gaps or {})
    values = {"paused": 0.0, "others": 0.0} | more
    return Lap("root", start, end, occupied, idle=idle or {}, path=path, **values)


def laps(*some):
    """Laps of one segment."""
    total = Laps()
    for each in some:
        total.add(each)
    return total


def execute(**seconds):
    """Fine metrics of a segment."""
    return {("execute", None, activity.replace("_", "-"), "seconds"): value for activity, value in seconds.items()}


def test_every_part():
    one = lap(
        100.0,
        110.0,
        occupied=24.0,
        paused=2.0,
        others=3.0,
        lost=1.0,
        recomputed=1.5,
        idle={"queued": 1.0, "no_worker": 1.5, "imbalance": 0.5, "dependencies": 4.0, "tail": 6.0},
    )
    metrics = execute(
        thread_cpu=8.0, thread_noncpu=4.0, disk_read=0.5, disk_write=0.5, deserialize=1.0, executor=0.75, other=0.25
    ) | {("execute", None, "failed", "seconds"): 0.5, ("execute", None, "p2p-get-output-cpu", "seconds"): 1.0}
    # The same again, and a coroutine that waits.
    metrics |= {
        ("p2p", "foreground", "get-output-cpu", "seconds"): 1.0,
        ("p2p", "background-comms", "idle", "seconds"): 9.0,
    }
    metrics["execute", None, "memory-read", "bytes"] = 1e9
    found = laps(one).waterfall(metrics, 100.0, 110.0, 40.0, 0.0)
    assert found.parts == pytest.approx(
        {
            "cpu": 7.0,  # a third of what ran again is not on processors
            "noncpu": 3.5,
            "disk": 1.0,
            "serialize": 1.0,
            "p2p": 1.0,
            "overhead": 1.0,
            "lost": 3.0,
            "paused": 2.0,
            "handed": 4.5,
            "others": 3.0,
            "queued": 1.0,
            "no_worker": 1.5,
            "imbalance": 0.5,
            "dependencies": 4.0,
            "tail": 6.0,
        }
    )
    assert (found.threads, found.seconds) == (4.0, 10.0)
    assert found.wall("tail") == 1.5


def test_pauses_between_laps_are_the_clients_but_not_before_the_first():
    first = lap(100.0, 102.0, occupied=4.0, pause_idle=50.0, pause_others=7.0, gaps={"dispatch": 2.0})
    second = lap(105.0, 106.0, occupied=2.0, pause_idle=5.0, pause_others=1.0, gaps={"dispatch": 1.0})
    total = laps(first, second)
    assert total.waterfall(execute(thread_cpu=6.0), 100.0, 106.0, 12.0, 0.0).parts == {
        "cpu": 6.0,
        "others": 1.0,
        "client": 5.0,
    }
    assert total.path(100.0, 106.0).gaps == {"dispatch": 3.0, "client": 3.0}


def test_without_workers_at_first():
    one = lap(100.0, 110.0, occupied=12.0)
    found = laps(one).waterfall(execute(thread_cpu=12.0), 100.0, 110.0, 12.0, 4.0)
    assert (found.threads, found.parts) == (2.0, {"cpu": 12.0, "starting": 8.0})
    assert found.wall("starting") == 4.0
    never = laps(lap(100.0, 110.0)).waterfall({}, 100.0, 110.0, 0.0, 10.0)
    assert (never.threads, never.parts) == (1.0, {"starting": 10.0})


def test_what_was_taken_in_before_the_lap_began_is_the_graphs_and_what_had_no_run_is_unfinished():
    one = lap(101.0, 104.0, path_end=103.0, occupied=6.0, groups={INC: OnPath(1.5, 0.5)})
    total = laps(one)
    assert total.waterfall(execute(thread_cpu=6.0), 100.0, 104.0, 8.0, 0.0).parts == {"cpu": 6.0, "graph": 2.0}
    path = total.path(100.0, 104.0)
    assert (path.seconds, path.gaps) == (2.0, {"graph": 1.0, "unfinished": 1.0})


def test_a_report_that_came_after_the_end_is_not_counted():
    """The scheduler is told of the last run a little later than it ended."""
    one = lap(100.0, 104.5, path_end=104.0, occupied=9.0, groups={INC: OnPath(4.0)})
    found = laps(one).waterfall(execute(thread_cpu=7.5), 100.0, 104.0, 8.0, 0.0)
    assert found.parts == {"cpu": 7.5, "handed": 0.5}


def test_metrics_that_threads_had_no_time_for_are_unaccounted():
    """Tasks that secede use additional threads."""
    found = laps(lap(100.0, 102.0, occupied=2.0)).waterfall(execute(thread_noncpu=5.0), 100.0, 102.0, 4.0, 0.0)
    assert found.parts == {"noncpu": 5.0, "unaccounted": -3.0, "client": 2.0}


def test_of_groups_is_what_came_since_their_span_before():
    total = laps(lap(100.0, 103.0, groups={INC: OnPath(1.0, 1.0), SUM: OnPath(0.5)}))
    assert total.of_groups("span", ["inc", "sum"], is_known=True) == OnPath(1.5, 1.0)
    assert total.of_groups("span", ["inc"], is_known=True) == OnPath()
    total.add(lap(103.0, 105.0, groups={INC: OnPath(0.25)}))
    many = {"inc", "sum", *map(str, range(5000))}
    assert total.of_groups("span", many, is_known=True) == OnPath(0.25)
    assert total.of_groups("other", many, is_known=True) == OnPath()
    assert total.path(100.0, 105.0).groups == {INC: OnPath(1.25, 1.0), SUM: OnPath(0.5)}


def test_of_groups_is_not_known_while_a_lap_goes_on_nor_after():
    total = laps(lap(100.0, 103.0, groups={INC: OnPath(1.0)}))
    assert total.of_groups("span", ["inc"], is_known=False) is None
    total.add(lap(103.0, 105.0, groups={INC: OnPath(0.25)}))
    assert total.of_groups("span", ["inc"], is_known=True) is None
    assert total.of_groups("other", ["sum"], is_known=True) == OnPath()


def test_of_groups_beyond_those_that_are_kept_is_not_known(monkeypatch):
    monkeypatch.setattr("dask_otel.diagnosis.waterfall.MAX_GROUPS", 1)
    total = laps(lap(100.0, 103.0, groups={INC: OnPath(1.0), SUM: OnPath(2.0)}))
    assert total.of_groups("span", ["inc"], is_known=True) == OnPath(1.0)
    assert total.of_groups("span", ["sum"], is_known=True) is None


some_seconds = st.floats(0.0, 50.0)


@st.composite
def any_laps(draw):
    """Laps in order, with whatever in them; and a segment around them, or not quite."""
    at, some = 1000.0, []
    for _ in range(draw(st.integers(1, 4))):
        start = at + draw(some_seconds)
        at = start + draw(some_seconds)
        some.append(
            lap(
                start,
                at,
                path_end=at + draw(st.floats(-0.06, 0.06)),
                occupied=draw(some_seconds),
                paused=draw(some_seconds),
                others=draw(some_seconds),
                lost=draw(some_seconds),
                recomputed=draw(some_seconds),
                idle=draw(st.dictionaries(st.sampled_from(IDLE), some_seconds)),
                groups={INC: OnPath(draw(some_seconds), draw(some_seconds))},
                gaps=draw(st.dictionaries(st.sampled_from(GAPS), some_seconds)),
                pause_idle=draw(some_seconds),
                pause_others=draw(some_seconds),
            )
        )
    start = some[0].start + draw(st.floats(-1.0, 1.0))
    return some, start, max(start, at + draw(st.floats(-1.0, 1.0)))


@given(
    any_laps(),
    st.dictionaries(st.sampled_from([*ACTIVITIES, "mine"]), some_seconds),
    st.floats(0.0, 1000.0),
    st.floats(0.0, 1.0),
)
def test_parts_and_path_add_up(given_laps, activities, available, without):
    some, start, end = given_laps
    total = laps(*some)
    metrics = {("execute", None, activity, "seconds"): value for activity, value in activities.items()}
    found = total.waterfall(metrics, start, end, available, without * (end - start))
    assert sum(found.parts.values()) == pytest.approx(found.threads * found.seconds, abs=1e-6, rel=1e-9)
    assert sum(found.wall(part) for part in PARTS) == pytest.approx(end - start, abs=1e-6)
    assert all(value > 0 for part, value in found.parts.items() if part != "unaccounted")
    assert found.parts.get("unaccounted", 0.0) <= 0
    path = total.path(start, end)
    assert path.seconds + sum(path.gaps.values()) == pytest.approx(end - start, abs=1e-6)
    assert all(value > 0 for value in path.gaps.values())
