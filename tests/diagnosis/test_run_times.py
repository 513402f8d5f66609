"""What is not in the random workloads of ``test_acted_clusters.py``."""

from __future__ import annotations

from dask_otel.diagnosis.parts import GroupKey
from dask_otel.diagnosis.run_times import GroupTimes, RunTimes

INC = GroupKey("span", "inc")


def one_run(times):
    """A graph of one task, which a worker runs from 2 s to 5 s."""
    of = GroupTimes(times.account("root"), INC)
    times.worker_joined("worker", 1, "running", 0.0)
    times.graph_taken("graph", times.graph_came(1.0), 1.5)
    times.enter(of, "a", "waiting", 1.5, "graph")
    times.send(of, "a", "waiting", "worker", 1.5, "graph", False, False)
    times.run(of, "a", 2.0, 5.0, 1, 5.25, "finished-a")
    times.take()


def test_a_lap():
    times = RunTimes(0.0, lambda stimulus: "dispatch")
    one_run(times)
    (lap,) = filter(None, times.laps(6.0))
    assert (lap.start, lap.end, lap.occupied, lap.idle) == (1.0, 5.25, 3.75, {"graph": 0.5})
    assert (lap.path.start, lap.path.end) == (1.0, 5.0)
    assert (lap.path.groups, lap.path.gaps) == ({INC: (3.0, 0.0)}, {"graph": 0.5, "dispatch": 0.5})


def test_a_lap_begins_where_the_one_before_ended_if_its_graph_came_earlier():
    times = RunTimes(0.0, lambda stimulus: "dispatch")
    came = times.graph_came(4.0)
    one_run(times)
    times.graph_taken("second", came, 6.5)
    times.enter(GroupTimes(times.account("root"), INC), "b", "waiting", 6.5, "second")
    (lap,) = filter(None, times.laps(7.0))
    assert (lap.end, times.lap_start("root")) == (5.25, 5.25)


def test_no_lap_once_a_transition_was_lost():
    times = RunTimes(0.0, lambda stimulus: "dispatch")
    times.distrust()
    one_run(times)
    assert not list(filter(None, times.laps(6.0)))
    assert times.cut("root", 7.0) is None


def test_a_lap_that_begins_while_others_are_forgotten_goes_on():
    times = RunTimes(0.0, lambda stimulus: "dispatch")
    one_run(times)
    others = GroupTimes(times.account("other"), INC)
    times.graph_taken("graph of another", times.graph_came(6.0), 6.0)
    times.send(others, "b", "", "worker", 6.0, "graph of another", False, False)
    times.run(others, "b", 6.0, 7.0, 1, 7.0, "finished-b")
    times.take()
    assert len(list(times.laps(8.0))) == 2
    forgetting = times.forget(lambda root: True)
    next(forgetting)
    times.graph_taken("again", times.graph_came(9.0), 9.0)
    times.send(others, "c", "", "worker", 9.0, "again", False, False)
    list(forgetting)
    times.send(others, "d", "", "worker", 9.0, "again", False, False)
    times.run(others, "d", 9.0, 10.0, 1, 10.0, "finished-d")
    times.run(others, "c", 10.0, 11.0, 1, 11.0, "finished-c")
    times.take()
    (lap,) = times.laps(12.0)
    assert (lap.path.start, lap.path.seconds, sum(lap.path.gaps.values())) == (9.0, 2.0, 0.0)
