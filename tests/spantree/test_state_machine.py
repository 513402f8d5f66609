"""Anything in any order: whatever the span tree is told, the records add up and hang together."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.callers import anchored
from support.model_cluster import Cluster
from support.model_data import AGAIN, STATES, Group, Task
from support.model_world import World

from dask_otel.spantree.events import Dependency, Graph, Phase
from dask_otel.spantree.to_records import Level

#: Runs longer, and differently each time, with so many examples.
EXAMPLES = os.environ.get("DASK_OTEL_TEST_EXAMPLES")
NAMES = ("inc-1", "inc-2", "dec-1", "load", "sum-9", "mul-3")
#: Those with ``!`` are opened by callers.
CALLED, INNER = anchored(1, 8, "a!1"), anchored(1, 8, "b/y!1")
SOME_SPANS = [
    [],
    [("a", None), ("x", "a"), ("b", None)],
    [("default#1", None), ("b", None)],
    [("a!1", None), ("x", CALLED), ("b", None), ("y!1", "b"), ("x!2", INNER), ("y", INNER)],
]


some = st.integers(0, 10_000)
state = st.sampled_from(STATES)
worker = st.sampled_from(["w0", "w1", "w2"])
seconds = st.sampled_from
have_spans = precondition(lambda self: self.cluster.spans)
have_unfinished = precondition(lambda self: self.cluster.tasks(*STATES))
have_running = precondition(lambda self: self.cluster.tasks("processing"))
have_results = precondition(lambda self: self.cluster.tasks("memory"))


class Machine(RuleBasedStateMachine):
    """What may happen to a cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.world: World | None = None

    @initialize(
        idle_timeout=seconds([0.0, 1.0, 5.0]),
        max_segment=seconds([3.0, 20.0, 60.0, 3600.0]),
        pending_span_after=seconds([2.0, 10.0, 4000.0]),
        max_groups=st.integers(1, 3),
        level=st.sampled_from([Level.TASKS, Level.TASKS, Level.SPANS]),
        spans=st.sampled_from(SOME_SPANS),
    )
    def begin(self, spans: list[tuple[str, str | None]], max_groups: int, level: Level, **times: float) -> None:
        self.world = World(self.cluster, max_groups, level, times)
        for tag, above in spans:
            self.cluster.add_span(tag, above)
        self.world.worker("joins", "w0")

    # Spans and graphs

    @rule(tag=st.sampled_from(["a", "b", "a!1", "b!2", "default#1", "default#2"]))
    def add_root(self, tag: str) -> None:
        self.cluster.add_span(tag, None)

    @have_spans
    @rule(i=some, tag=st.sampled_from(["x", "y", "x!1", "y!2"]))
    def add_child(self, i: int, tag: str) -> None:
        above = self._span(i)
        if above.count("/") < 3:
            self.cluster.add_span(tag, above)

    @have_spans
    @rule(
        i=some,
        failure=st.sampled_from(["", "", "error", "cancelled"]),
        ago=seconds([0.0, 0.5, 10.0]),
        is_slow=st.booleans(),
    )
    def graph(self, i: int, failure: str, ago: float, is_slow: bool) -> None:
        now = self.cluster.now
        phase = Phase(now - ago, now, 3, 100, failure == "error") if is_slow else None
        self.cluster.graphs.append(
            Graph(self._span(i), seconds=0.1, failure=failure, since=now - ago, until=now, phase=phase)
        )

    @have_spans
    @rule(
        i=some,
        what=st.sampled_from([("execute", "inc"), ("execute", "load"), ("p2p", "foreground")]),
        unit=st.sampled_from(["seconds", "bytes"]),
        value=st.integers(1, 1000),
    )
    def metrics(self, i: int, what: tuple[str, str], unit: str, value: int) -> None:
        self.cluster.metrics.setdefault(self._span(i), Counter()).update({(*what, "x", unit): value})

    # Tasks

    @have_spans
    @rule(i=some, j=some, k=some, n=st.integers(1, 3), at=state, is_home=st.booleans())
    def enter(self, i: int, j: int, k: int, n: int, at: str, is_home: bool) -> None:
        group = self._group(i, NAMES[j % len(NAMES)])
        for _ in range(n):
            task = self.cluster.enter(group, at)
            if not is_home:
                self.cluster.request(task, self._span(k))

    @have_spans
    @rule(i=some, names=st.sets(st.sampled_from(NAMES), min_size=3), run=st.booleans(), w=worker)
    def many_groups(self, i: int, names: set[str], run: bool, w: str) -> None:
        on: tuple[Dependency, ...] = ()
        for name in sorted(names):
            group = self._group(i, name)
            self.cluster.enter(group, "processing")
            group.dependencies = group.dependencies or on
            on = (Dependency(group.span_id, name),)
            if run:
                self._run([group.tasks[-1]], "completed", 0.5, w)

    @precondition(lambda self: len(self.cluster.groups) > 1)
    @rule(i=some, j=some)
    def depend(self, i: int, j: int) -> None:
        groups = list(self.cluster.groups.values())
        group, on = groups[i % len(groups)], groups[j % len(groups)]
        if group is not on:
            group.dependencies += (Dependency(on.span_id, on.name),)
            self.cluster.touch(group)

    @have_unfinished
    @rule(i=some, k=some)
    def request_what_is_to_come(self, i: int, k: int) -> None:
        self.cluster.request(self._tasks(i, *STATES)[0], self._span(k))

    @have_results
    @rule(i=some, k=some)
    def request_what_is_there(self, i: int, k: int) -> None:
        self.cluster.request(self._tasks(i, "memory")[0], self._span(k))

    @have_unfinished
    @rule(i=some, to=state, w=worker)
    def move(self, i: int, to: str, w: str) -> None:
        self.cluster.move(self._tasks(i, *STATES)[0], to, w)

    @have_running
    @rule(i=some, n=st.integers(1, 4), length=seconds([0.0, 0.5, 100.0]), skew=seconds([0, 0, -30, 3]), w=worker)
    def finish(self, i: int, n: int, length: float, skew: float, w: str) -> None:
        self._run(self._tasks(i, "processing")[:n], "completed", length, w, skew)

    @have_running
    @rule(i=some, n=st.integers(1, 4), length=seconds([None, 0.5]), w=worker)
    def err(self, i: int, n: int, length: float | None, w: str) -> None:
        self._run(self._tasks(i, "processing")[:n], "erred", length, w)

    @have_unfinished
    @rule(i=some, outcome=st.sampled_from(["cancelled", "abandoned", "upstream_failed", "lost for good", *AGAIN]))
    def end_otherwise(self, i: int, outcome: str) -> None:
        task = self._tasks(i, *STATES)[0]
        if not task.provisional:
            self.cluster.end(task, outcome.split()[0], for_good=outcome == "lost for good")
            self.world.oracle.all_stay &= not outcome.startswith("lost")

    @have_results
    @rule(i=some, to=st.sampled_from(["waiting", "no_worker", "processing"]))
    def lose_result(self, i: int, to: str) -> None:
        self.cluster.lose_result(self._tasks(i, "memory")[0], to)

    @have_unfinished
    @rule(i=some)
    def release(self, i: int) -> None:
        task = self._tasks(i, *STATES)[0]
        if task.provisional:
            self.cluster.release(task)

    @have_spans
    @rule(i=some, name=st.sampled_from(NAMES), n=st.integers(0, 2), nbytes=st.integers(-50, 50))
    def scatter(self, i: int, name: str, n: int, nbytes: int) -> None:
        self.cluster.scatter(self._group(i, name), n, nbytes)

    @rule(w=worker)
    def everything_ends(self, w: str) -> None:
        self._run(self.cluster.tasks(*STATES), "completed", 0.2, w)
        self.sweep(8, 5.0, True, False)

    @have_unfinished
    @rule(i=some, n=st.integers(1, 3))
    def workers_make_spans(self, i: int, n: int) -> None:
        for task in self._tasks(i, *STATES)[:n]:
            self.cluster.make_span(task)

    @have_results
    @rule(i=some)
    def a_call_to_an_actor(self, i: int) -> None:
        self.cluster.make_span(self._tasks(i, "memory")[0])

    @have_spans
    @rule(i=some)
    def forget_a_root(self, i: int) -> None:
        root = self._span(i)
        while above := self.cluster.spans[root].parent_id:
            root = above
        if self.world.forget(root):
            event("forgotten")

    @have_spans
    @rule(i=some, w=worker)
    def everything_ends_and_a_root_is_forgotten(self, i: int, w: str) -> None:
        self.everything_ends(w)
        if self.cluster.spans:
            self.forget_a_root(i)

    # Workers and time

    @rule(w=worker, how=st.sampled_from(["joins", "leaves"]))
    def a_worker_comes_or_goes(self, w: str, how: str) -> None:
        self.world.worker(how, w)

    @rule(
        n=st.integers(1, 10),
        step=seconds([0.1, 1.0, 5.0]),
        beats=st.booleans(),
        busy=st.booleans(),
    )
    def sweep(self, n: int, step: float, beats: bool, busy: bool) -> None:
        for _ in range(n):
            self.cluster.now += step
            if beats:
                self.world.worker("beats")
            self.world.sweep(busy)

    @rule(w=worker, after=st.integers(0, 6), how=st.sampled_from(["leaves", "joins", "beats"]))
    def a_worker_comes_or_goes_during_a_sweep(self, w: str, after: int, how: str) -> None:
        self.cluster.now += 1.0
        self.world.sweep(False, after=after, then=lambda: self.world.worker(how, w))

    @have_running
    @rule(i=some, w=worker)
    def a_task_ends_during_a_sweep(self, i: int, w: str) -> None:
        def end() -> None:
            self._run(self._tasks(i, "processing")[:1], "completed", 0.5, w)

        self.cluster.now += 1.0
        self.world.sweep(False, meanwhile=end)

    @rule(step=seconds([0.1, 0.7, 30.0, 4000.0]))
    def time_passes(self, step: float) -> None:
        self.cluster.now += step

    @rule(step=seconds([0.1, 0.2, 3.0, 100.0]))
    def set_clock_back(self, step: float) -> None:
        self.world.set_clock_back(step)

    def teardown(self) -> None:
        if self.world:
            self.world.close()

    # Inside

    def _span(self, i: int) -> str:
        return list(self.cluster.spans)[i % len(self.cluster.spans)]

    def _group(self, i: int, name: str) -> Group:
        return self.cluster.group(self._span(i), name)

    def _tasks(self, i: int, *states: str) -> list[Task]:
        """All in these states, in an order that begins anywhere."""
        tasks = self.cluster.tasks(*states)
        return tasks[i % len(tasks) :] + tasks[: i % len(tasks)]

    def _run(self, tasks: list[Task], outcome: str, length: float | None, w: str, skew: float = 0.0) -> None:
        self.world.oracle.all_stay &= w in self.world.workers
        for task in tasks:
            self.cluster.end(task, outcome, length=length, skew=skew, worker=w)


TestSpanTree = pytest.mark.slow(Machine.TestCase)
TestSpanTree.settings = settings(
    max_examples=int(EXAMPLES or 500),
    stateful_step_count=50,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
