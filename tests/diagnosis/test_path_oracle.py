"""The oracle of critical paths itself, where the answer is known by hand."""

from __future__ import annotations

from typing import Any

import pytest
from support.full_record import Arrival, Event, Move, Swept
from support.path_oracle import LapPath, lap_paths

A, B = "tcp://a", "tcp://b"


class Story:
    """Events of one root, or two, as a person tells them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._tasks: dict[str, int] = {}

    def graph(self, received: float, taken_in: float, *keys: str) -> None:
        roots = frozenset(self._root(key) for key in keys)
        self.events.append(Arrival(taken_in, "update-graph", received, roots))
        for key in keys:
            self.move(taken_in, key, "released", "waiting", "update-graph")

    def sent(self, at: float, key: str, by: str, to: str = A, start: str = "waiting", **details: Any) -> None:
        self.move(at, key, start, "processing", by, sent_to=to, **details)

    def ran(self, at: float, key: str, start: float, stop: float, on: str = A, thread: int = 1) -> None:
        steps = ({"action": "compute", "start": start, "stop": stop},)
        self.move(at, key, "processing", "memory", key, startstops=steps, worker=on, thread=thread)

    def move(self, at: float, key: str, start: str, finish: str, by: str, **details: Any) -> None:
        number = self._tasks.setdefault(key, len(self._tasks))
        root = self._root(key)
        self.events.append(Move(at, number, key, start, finish, by, root, root, key[0], **details))

    def _root(self, key: str) -> str:
        return "other" if key[0] == "o" else "root"

    def path(self) -> LapPath:
        return next(lap for lap in lap_paths([*self.events, Swept(99.0)]) if lap.root == "root")


@pytest.fixture
def story() -> Story:
    return Story()


def check(story: Story, seconds: dict[tuple[str, str], float], **gaps: float) -> None:
    path = story.path()
    runs = {(group, edge): each for (_, group), edges in path.groups.items() for edge, each in edges.items() if each}
    assert runs == pytest.approx(seconds)
    assert {cause: each for cause, each in path.gaps.items() if each} == pytest.approx(gaps)
    assert path.seconds == pytest.approx(path.last.end - path.start)


def test_a_chain(story):
    story.graph(0.0, 1.0, "x", "y")
    story.sent(1.0, "x", "update-graph")
    story.ran(5.5, "x", 2.0, 5.0)
    story.sent(5.5, "y", "x", B, lacks_input=True)
    story.ran(9.5, "y", 7.0, 9.0, B)
    check(story, {("x", "data"): 3.0, ("y", "data"): 2.0}, graph=1.0, dispatch=1.0, report=0.5, input=1.5)


def test_a_thread_that_is_busy_with_the_root_and_with_another_one(story):
    story.graph(0.0, 0.0, "x", "y", "o")
    for key in ("x", "y", "o"):
        story.sent(0.0, key, "update-graph")
    story.ran(3.5, "x", 0.0, 3.0)
    story.ran(6.0, "o", 3.0, 5.0)
    story.ran(9.5, "y", 6.0, 9.0)
    check(story, {("x", "data"): 3.0, ("y", "thread"): 3.0}, others=2.0, dispatch=1.0)


def test_a_place_in_the_queue(story):
    story.graph(0.0, 0.0, "x", "y", "o")
    story.sent(0.0, "x", "update-graph")
    story.move(0.0, "y", "waiting", "queued", "update-graph")
    story.ran(3.5, "x", 0.0, 3.0)
    story.sent(3.5, "y", "x", start="queued")
    story.ran(9.5, "y", 4.0, 9.0, thread=2)
    check(story, {("x", "data"): 3.0, ("y", "thread"): 5.0}, report=0.5, dispatch=0.5)


def test_a_place_in_the_queue_that_another_root_had(story):
    story.graph(0.0, 0.0, "y", "o")
    story.sent(0.0, "o", "update-graph")
    story.move(0.0, "y", "waiting", "queued", "update-graph")
    story.ran(3.5, "o", 0.0, 3.0)
    story.sent(3.5, "y", "o", start="queued")
    story.ran(9.5, "y", 4.0, 9.0, thread=2)
    check(story, {("y", "data"): 5.0}, others=3.5, dispatch=0.5)


def test_a_run_that_was_in_vain(story):
    story.graph(0.0, 0.0, "x")
    story.sent(0.0, "x", "update-graph")
    story.move(4.0, "x", "processing", "released", "handle-worker-cleanup-1")
    story.move(4.0, "x", "released", "waiting", "handle-worker-cleanup-1")
    story.sent(4.0, "x", "handle-worker-cleanup-1", B)
    story.ran(9.5, "x", 5.0, 9.0, B)
    check(story, {("x", "data"): 4.0}, lost=4.0, dispatch=1.0)


def test_a_clock_that_is_wrong(story):
    """What a worker says lies before what made it possible: the seconds still sum to the time that passed."""
    story.graph(0.0, 1.0, "x", "y", "z")
    story.sent(1.0, "x", "update-graph")
    story.ran(5.0, "x", 3.0, 7.0)
    story.sent(5.0, "y", "x", B)
    story.ran(9.0, "y", 4.0, 8.0, B)
    story.sent(9.0, "z", "y", B)
    story.ran(9.5, "z", 7.5, 7.6, B)
    check(story, {("x", "data"): 4.0, ("y", "data"): 1.0}, graph=1.0, dispatch=2.0)


def test_think_time_before_the_next_graph(story):
    story.graph(0.0, 0.0, "x")
    story.sent(0.0, "x", "update-graph")
    story.ran(1.0, "x", 0.0, 1.0)
    story.events.append(Arrival(4.0, "second", 3.0, frozenset(["root"])))
    story.move(4.0, "y", "released", "waiting", "second")
    story.sent(4.0, "y", "second")
    story.ran(5.0, "y", 4.0, 5.0)
    check(story, {("x", "data"): 1.0, ("y", "data"): 1.0}, client=2.0, graph=1.0)


def test_a_pause_that_a_sweep_has_seen_ends_the_lap(story):
    story.graph(0.0, 0.0, "x")
    story.sent(0.0, "x", "update-graph")
    story.ran(1.0, "x", 0.0, 1.0)
    story.events.append(Swept(2.0))
    story.move(4.0, "y", "released", "waiting", "whatever")
    first, second = lap_paths([*story.events, Swept(5.0)])
    assert (first.is_over, first.told, second.is_over, second.start) == (True, 1.0, False, 4.0)


def test_a_graph_that_came_while_the_last_task_ran_begins_its_lap_when_that_ended(story):
    story.graph(0.0, 0.0, "x")
    story.sent(0.0, "x", "update-graph")
    story.ran(2.0, "x", 0.0, 2.0)
    story.events += [Swept(2.5), Arrival(3.0, "second", 1.0, frozenset(["root"]))]
    story.move(3.0, "y", "released", "waiting", "second")
    first, second = lap_paths(story.events)
    assert (first.is_over, first.told, second.start) == (True, 2.0, 2.0)
