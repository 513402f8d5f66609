"""The recorder alone, given the worst: series stay few, nothing is lost, and no counter goes back."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.measured import histogram, nonzero, size, value, values
from support.records import VERDICT, WATERFALL

from dask_otel.diagnosis.parts import PARTS, Waterfall
from dask_otel.diagnosis.verdict import Finding, Verdict
from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.series import OTHER, MetricSettings
from dask_otel.metrics.snapshot import Cluster, ExporterCounts, HistogramPoint, Snapshot
from dask_otel.schema import ATTRIBUTES, MAX_PREFIXES, MAX_SERIES, METRICS, TASK_DURATION, UNUSED_AFTER, Kind
from dask_otel.spantree.counts import OUTCOMES, Intervals
from dask_otel.spantree.events import Change, SpanInfo
from dask_otel.spantree.records import RootReasons, RootRun

SECONDS = (0.0005, 0.001, 0.003, 0.7, 5000.0, 100_000.0)
RESULTS = ("success", "error", "lost", "cancelled", "interrupted")


class Driven:
    """A recorder that records a lot, and plain sums of it."""

    def __init__(self, measure_settings=None):
        self.now = 1000.0
        self.recorder = Recorder(self.now, measure_settings or MetricSettings())
        self.sums = Counter()
        self.activities = defaultdict(float)
        #: The last that was shown of each counter.
        self.before = {}

    def sweep(self, seconds=1.0):
        self.now += seconds
        self.recorder.begin_sweep(self.now)

    def ran(self, prefix, seconds=(), errors=(), outcomes=(), since=None):
        """A group's tasks completed in so many seconds each, or failed in as many."""
        change = Change(since or self.now)
        change.prefix = prefix
        intervals = Intervals(TASK_DURATION.bounds)
        for error, each in [(None, each) for each in seconds] + list(errors):
            bucket = histogram([each], TASK_DURATION.bounds).index(1)
            interval = bisect_left(intervals.ends, each)
            change.uncounted += (each, "w", None)
            if error:
                change.run_failed(error, interval, each)
                change.count("erred")
            else:
                change.completed += 1
            self.sums["run", bool(error), bucket] += 1
            self.sums["seconds", bool(error)] += each
            self.sums["erred" if error else "completed"] += 1
        for outcome in outcomes:
            change.count(outcome)
            self.sums[outcome] += 1
        for _ in change.count_runs(intervals):
            pass
        self.recorder.change(change)

    def root(self, name, seconds, result, *, shown=False):
        span = SpanInfo(name, (name,), None, self.now)
        self.recorder.root_ended(RootRun(span, self.now, self.now + seconds, result, 1, 2), {2} if shown else ())
        self.sums["root", result] += 1

    def explained(self, name):
        self.recorder.root_explained(RootReasons(SpanInfo(name, (name,), None, self.now), WATERFALL, VERDICT))

    def activity(self, context, prefix, name, unit, amount):
        key = (context, prefix, name, unit)
        self.activities[key] += amount
        self.recorder.activity(key, key, self.activities[key])
        self.sums[unit] += amount

    def snapshot(self):
        snapshot = Snapshot(self.now, list(self.recorder.collect()))
        self.check(snapshot)
        return snapshot

    def check(self, snapshot):
        """What holds of every snapshot, after whatever came before."""
        assert size(snapshot) <= MAX_SERIES
        now = {}
        for each in snapshot.metrics:
            assert each.metric is METRICS[each.metric.name]
            if each.metric.kind in (Kind.COUNTER, Kind.HISTOGRAM):
                now |= {(each.metric.name, point.attributes): point for point in each.points}
            for at, name in enumerate(each.metric.attributes):
                if limit := ATTRIBUTES[name].max_values:
                    assert len({point.attributes[at] for point in each.points} - {OTHER, None}) <= limit
            for point in each.points:
                assert point.start <= self.now
        for key, point in now.items():
            before = self.before.get(key)
            if before is None or before.start != point.start:
                assert before is None or before.start < point.start  # it was forgotten meanwhile
            elif isinstance(point, HistogramPoint):
                assert all(b >= a for a, b in zip(before.counts, point.counts, strict=True))
                assert point.sum >= before.sum
            else:
                assert point.value >= before.value
        self.before |= now

    def check_nothing_lost(self):
        """However it was folded, it is all there."""
        snapshot = self.snapshot()
        found = Counter()
        for (_, outcome), count in values(snapshot, "dask.task.finished").items():
            found[outcome] += count
        assert nonzero(found) == {o: self.sums[o] for o in ("completed", *OUTCOMES) if self.sums[o]}
        for (_, error), point in values(snapshot, "dask.task.duration").items():
            found["seconds", bool(error)] += point.sum
            for bucket, count in enumerate(point.counts):
                found["run", bool(error), bucket] += count
        for key, sum_ in self.sums.items():
            if key[0] in ("run", "seconds"):
                assert found[key] == pytest.approx(sum_), key
        for (_, result), point in values(snapshot, "dask.span.duration").items():
            found["root", result] += sum(point.counts)
        assert {r: found["root", r] for r in RESULTS} == {r: self.sums["root", r] for r in RESULTS}
        assert sum(values(snapshot, "dask.activity.time").values()) == pytest.approx(self.sums["seconds"])
        assert sum(values(snapshot, "dask.activity.io").values()) == pytest.approx(self.sums["bytes"])
        return snapshot


def test_hostile():
    """Thousands of everything at once."""
    driven = Driven()
    for round_ in range(3):
        driven.sweep()
        for n in range(1000):
            name = f"{round_ * 700 + n}"
            driven.ran(f"p{name}", [0.01], [(f"Error{name}", 2.0)], OUTCOMES)
            driven.root(f"r{name}", 1.0, RESULTS[n % 5])
            driven.activity(f"p2p.{name}", None, f"a{name}", "bytes", 3)
            driven.activity("execute", f"p{name}", f"a{name}", "seconds", 0.5)
            driven.recorder.busy(f"r{name}", 1.0)
            driven.explained(f"r{name}")
        driven.recorder.open_roots({f"r{n}": 1 for n in range(2000)})
        exporter = [ExporterCounts(f"e{n}", 1, 2, 3, {f"d{n}": 1}, {f"f{n}": 1}) for n in range(300)]
        driven.recorder.bridge(exporter, {f"w{n}": n for n in range(300)})
        snapshot = driven.check_nothing_lost()
    # It is used, too, not only kept.
    assert size(snapshot) > 0.9 * MAX_SERIES
    assert sum(values(snapshot, "dask.span.active").values()) == 2000
    assert sum(values(snapshot, "dask.span.thread_time").values()) == 3000
    by_part = Counter()
    for (_, part), seconds in values(snapshot, "dask.waterfall.time").items():
        by_part[part] += seconds
    assert by_part == dict.fromkeys(set(PARTS) - {"unaccounted"}, 1500.0)
    assert sum(values(snapshot, "dask.verdicts").values()) == 3000
    assert sum(values(snapshot, "dask_otel.errors").values()) == sum(range(300))


def test_why_roots_were_slow():
    driven = Driven()
    driven.explained("a")
    driven.explained("a")
    waterfall, late = (
        Waterfall({"cpu": 3.0, "unaccounted": -1.0}, 1.0, 2.0),
        Finding("late_workers", "starting", 3, 2.5, "", ""),
    )
    span = SpanInfo("b", ("b", "inside"), None, driven.now)
    for reasons in ((waterfall, Verdict((late,))), (waterfall, Verdict(withheld="unknown")), (None, None)):
        driven.recorder.root_explained(RootReasons(span, *reasons))
    snapshot = driven.snapshot()
    assert values(snapshot, "dask.waterfall.time") == {
        ("b", "cpu"): 6.0, **{("a", part): 1.0 for part in PARTS if part != "unaccounted"},
    }  # fmt: skip
    assert values(snapshot, "dask.verdicts") == {("a", "skew"): 2, ("b", "late_workers"): 1}
    assert values(snapshot, "dask.verdict.time") == {("a", "skew"): 2.5, ("b", "late_workers"): 2.5}


def test_each_alone_is_bounded():
    """No one metric needs another to be full."""
    for flood in ("ran", "root", "activity", "busy", "bridge"):
        driven = Driven()
        driven.sweep()
        for n in range(4000):
            if flood == "ran":
                driven.ran(f"p{n % 60}", [0.01], [(f"E{n}", 0.1)], OUTCOMES)
            elif flood == "root":
                driven.root(f"r{n}", 1.0, RESULTS[n % 5])
            elif flood == "activity":
                driven.activity(f"c{n % 20}", f"p{n % 70}", f"a{n % 40}", ("seconds", "bytes")[n % 2], 1)
            elif flood == "busy":
                driven.recorder.busy(f"r{n}", 1.0)
            else:
                driven.recorder.bridge([ExporterCounts(f"e{n}", 1, 1, 1)], {f"w{n}": 1})
        driven.check_nothing_lost()


NAMES = st.integers(0, 80).map(str)
UNITS = st.sampled_from(("seconds", "bytes"))
STEP = st.one_of(
    st.tuples(st.just("sweep"), st.sampled_from((0.5, 1.0, UNUSED_AFTER / 3, UNUSED_AFTER))),
    st.tuples(
        st.just("ran"),
        NAMES,
        st.lists(st.sampled_from(SECONDS), max_size=3),
        st.lists(st.tuples(NAMES, st.sampled_from(SECONDS)), max_size=3),
        st.lists(st.sampled_from([o for o in OUTCOMES if o != "erred"]), max_size=3),
    ),
    st.tuples(st.just("root"), NAMES, st.sampled_from(SECONDS), st.sampled_from(RESULTS)),
    st.tuples(st.just("activity"), NAMES, st.none() | NAMES, NAMES, UNITS, st.integers(1, 9)),
    st.tuples(st.just("snapshot")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=80), st.integers(0, 60), st.booleans())
def test_whatever_comes(steps, crowd, forgets):
    driven = Driven()
    for n in range(crowd):  # so that there is little room from the start
        driven.ran(f"crowd{n}", [1.0], [(f"crowd{n}", 1.0)], OUTCOMES)
    for name, *arguments in steps:
        if name == "sweep" and not forgets:
            arguments = [1.0]
        getattr(driven, name)(*arguments)
    if forgets:
        driven.snapshot()
    else:
        driven.check_nothing_lost()


def test_tomorrows_names_have_a_place():
    driven = Driven()
    for n in range(2000):
        driven.ran(f"old{n}", [0.01], [(f"Old{n}", 0.1)])
    driven.ran("used", [0.01])
    driven.snapshot()
    driven.sweep(UNUSED_AFTER - 1)
    driven.ran("old1", [0.01])
    driven.ran("new", [0.01])
    snapshot = driven.snapshot()
    assert ("new", "completed") not in values(snapshot, "dask.task.finished")
    driven.sweep(2)
    for n in range(MAX_PREFIXES - 1):
        driven.ran(f"new{n}", [0.01])
    driven.ran("one too many", [0.01])
    snapshot = driven.snapshot()
    finished = values(snapshot, "dask.task.finished")
    assert finished["new0", "completed"] == 1
    assert finished["old1", "completed"] == 2
    assert ("old2", "completed") not in finished
    assert ("one too many", "completed") not in finished
    assert len({prefix for prefix, _ in finished}) == MAX_PREFIXES + 1
    driven.ran("new0", [0.01])
    assert value(driven.snapshot(), "dask.task.finished", "new0", "completed") == 2
    start = next(m for m in snapshot.metrics if m.metric.name == "dask.task.finished").points[-1].start
    assert start >= driven.now - 2 - 1e-6


def test_held_at_its_maximum():
    driven = Driven()
    shown = []
    for amount in (5.0, -4.0, 3.0, 3.0, float("nan")):
        driven.activity("execute", "p", "a", "seconds", amount)
        shown.append(value(driven.snapshot(), "dask.activity.time", "execute", "a", "p"))
    assert shown == [5.0, 5.0, 5.0, 7.0, 7.0]


def test_how_it_is_is_not_how_it_was():
    driven = Driven()
    state = {"tasks": {"memory": 3}, "threads": 1, "clients": 1, "managed": 1, "unmanaged": 2, "spilled": 0}
    driven.recorder.cluster(Cluster(workers={"paused": 1}, limit=5, **state), 0.25)
    snapshot = driven.snapshot()
    assert values(snapshot, "dask.scheduler.worker.count") == {("paused",): 1}
    assert value(snapshot, "dask.worker.memory.limit") == 5
    assert value(snapshot, "dask.scheduler.event_loop.delay") == 0.25
    driven.recorder.open_roots({"a": 2, "b": 1})
    driven.recorder.cluster(Cluster(workers={"running": 1}, limit=None, **state), 0.0)
    driven.recorder.open_roots({"b": 1})
    snapshot = driven.snapshot()
    assert nonzero(values(snapshot, "dask.scheduler.worker.count")) == {("running",): 1}
    assert nonzero(values(snapshot, "dask.span.active")) == {("b",): 1}
    assert not values(snapshot, "dask.worker.memory.limit")
    driven.recorder.cluster(Cluster(workers={"running": 1}, limit=7, **state), 0.0)
    driven.recorder.cluster(Cluster(workers={"running": 1}, limit=8, **state), 0.0)
    assert value(driven.snapshot(), "dask.worker.memory.limit") == 8


def test_an_example_is_handed_over_once_and_stands_where_it_was_counted():
    driven = Driven()
    driven.root("r", 0.05, "success")
    driven.root("r", 3.0, "success", shown=True)
    driven.root("r", 0.02, "error")
    point = value(driven.snapshot(), "dask.span.duration", "r", "success")
    (exemplar,) = point.exemplars
    assert exemplar[:1] + exemplar[2:] == (3.0, 1, 2)
    assert not value(driven.snapshot(), "dask.span.duration", "r", "success").exemplars
    assert not value(driven.snapshot(), "dask.span.duration", "r", "error").exemplars


def fill(driven, name):
    """Take all room for series of prefixes."""
    for n in range(MAX_PREFIXES):
        driven.ran(f"{name}{n}", [0.01], [(f"{name}{m}", 0.1) for m in range(9)])
    assert size(driven.snapshot()) > 0.9 * MAX_SERIES


def test_room_comes_back():
    driven = Driven()
    for name in ("monday", "tuesday", "monday", "tuesday"):
        fill(driven, name)
        driven.sweep(UNUSED_AFTER)
        # There is a name left for a root, but no room but that of the prefixes.
        driven.root(name, 1.0, "success")
        assert (name, "success") in values(driven.snapshot(), "dask.span.duration")


def test_what_is_not_wanted_takes_no_room():
    for excluded in (set(), {"dask.task.duration"}):
        driven = Driven(MetricSettings(excluded=frozenset(excluded)))
        for n in range(MAX_PREFIXES):
            driven.ran(f"p{n}", [0.01], [(f"e{m}", 0.1) for m in range(9)])
        for n in range(MAX_PREFIXES):
            driven.root(f"r{n}", 1.0, "success")
        snapshot = driven.snapshot()
        assert bool(values(snapshot, "dask.task.duration")) != bool(excluded)
        roots = values(snapshot, "dask.span.duration")
        assert len(roots) == (MAX_PREFIXES if excluded else 1)


def test_a_series_begins_before_what_it_counts():
    """What happened to a group may be recorded some sweeps later."""
    driven = Driven()
    since = driven.now + 1
    for _ in range(5):
        driven.sweep()
    driven.ran("late", seconds=[0.1], errors=[("ValueError", 0.1)], since=since)
    points = [point for each in driven.recorder.collect() for point in each.points if "late" in point.attributes]
    assert {point.start for point in points} == {since}
    assert len(points) == 4


def test_a_name_that_was_folded_is_recorded_once_there_is_room():
    """Although another one is folded before it, in each sweep."""
    driven = Driven()
    for n in range(MAX_PREFIXES):
        driven.ran(f"old{n}", [0.01])
    for seconds in (1.0, 1.0, UNUSED_AFTER):
        assert ("new", "completed") not in values(driven.snapshot(), "dask.task.finished")
        driven.sweep(seconds)
        for name in (OTHER, "new"):
            driven.ran(name, [0.01])
    assert value(driven.snapshot(), "dask.task.finished", "new", "completed") == 1
