"""Time: the workers' heartbeats, the cluster's thread-seconds, and the parts of a segment's wall time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, KeysView
from typing import Protocol

from .counts import Load

__all__ = ["Activity", "Happened", "Heartbeats", "Threads", "Wall", "fit"]

#: Seconds without a heartbeat after which a worker is not waited for; Dask itself waits 5 minutes.
SILENT = 30.0
#: The last two heartbeats of a worker that has sent none.
_NEVER = (0.0, 0.0)


def fit(start: float, end: float, low: float, high: float) -> tuple[float, float]:
    """Clip an interval to another one; an interval that lies entirely outside is moved instead.

    A run that was under way when its segment was cut overlaps an end. One outside was reported by a clock that is
    wrong: clipping would leave it no duration at all.
    """
    length = min(max(0.0, end - start), high - low)
    if end <= low:
        return low, min(high, low + length)
    if start >= high:
        return max(low, high - length), high
    return max(start, low), min(max(start, end), high)


class Heartbeats:
    """The times of the last two heartbeats of each worker: those of the sweeps that counted them.

    Fine metrics travel on heartbeats. The first heartbeat after the end of a task may have been made before it; the
    second one surely carries the task's metrics. A run ends, for this, with the sweep that counts it, so all that
    matters of a heartbeat is between which sweeps it arrived.
    """

    def __init__(self) -> None:
        self._last_two: dict[str, tuple[float, float]] = {}
        #: Addresses of the workers that are part of the cluster, always up to date.
        self.here: KeysView[str] = self._last_two.keys()

    def joined(self, worker: str) -> None:
        """Add a worker. Joining carries no metrics, so it is not a heartbeat."""
        self._last_two.setdefault(worker, _NEVER)

    def beat(self, heartbeats: Iterable[tuple[str, int]], now: float) -> None:
        """Add heartbeats that arrived since the last sweep: workers, and how many of each."""
        last_two = self._last_two
        for worker, number in heartbeats:
            last_two[worker] = (now if number > 1 else last_two.get(worker, _NEVER)[1], now)

    def left(self, worker: str) -> None:
        """Forget a worker that has left."""
        self._last_two.pop(worker, None)

    def has_delivered(self, worker: str, since: float) -> bool:
        """Whether two heartbeats came after ``since``."""
        return self._last_two.get(worker, _NEVER)[0] > since

    def was_heard(self, worker: str, since: float) -> bool:
        """Whether a heartbeat came after ``since``; most likely it had all metrics."""
        return self._last_two.get(worker, _NEVER)[1] > since

    def is_awaited(self, worker: str, since: float, now: float) -> bool:
        """Whether metrics of a run that ended at ``since`` may still come."""
        if worker not in self._last_two:
            return False
        return not self.has_delivered(worker, since) and now - max(since, self._last_two[worker][1]) < SILENT


class Threads:
    """How many threads the cluster had, when."""

    def __init__(self, start: float, count: int) -> None:
        self._times = [start]
        self._counts = [count]
        #: Thread-seconds up to each time, and seconds without threads: a sum over all changes would take longer the
        #: more workers come and go.
        self._sums = [0.0]
        self._without = [0.0]

    def add(self, time: float, count: int) -> None:
        """Note a change; times must not go backwards, an earlier one counts from the latest."""
        time = max(time, self._times[-1])
        self._sums.append(self._sum(time))
        self._without.append(self._without_until(time))
        self._times.append(time)
        self._counts.append(count)

    def available(self, start: float, end: float) -> float:
        """Thread-seconds that the cluster had between two times."""
        return max(0.0, self._sum(end) - self._sum(start))

    def without(self, start: float, end: float) -> float:
        """Seconds between two times in which the cluster had no thread."""
        return max(0.0, self._without_until(end) - self._without_until(start))

    def lacked(self, start: float, end: float) -> float:
        """Thread-seconds between two times by which there were fewer threads than the most, until there were so many.

        What was later does not count: a cluster that has shrunk was not too small at first. Seconds without any thread
        do not count either, see ``without``.
        """
        start = max(start, self._times[0])
        first, last = bisect_right(self._times, start) - 1, bisect_left(self._times, end)
        counts = self._counts[first:last]
        if not counts:
            return 0.0
        most = max(counts)
        grown = max(start, self._times[first + counts.index(most)])
        return max(0.0, most * (grown - start - self.without(start, grown)) - self.available(start, grown))

    def _without_until(self, time: float) -> float:
        at = bisect_right(self._times, time) - 1
        return self._without[at] + (time - self._times[at]) * (not self._counts[at]) if at >= 0 else self._without[0]

    def _sum(self, time: float) -> float:
        at = bisect_right(self._times, time) - 1
        return self._sums[at] + (time - self._times[at]) * self._counts[at] if at >= 0 else self._sums[0]

    def forget(self, before: float) -> None:
        """Drop what only matters for times before ``before``."""
        keep = max(0, bisect_right(self._times, before) - 1)
        if keep:
            del self._times[:keep], self._counts[:keep], self._sums[:keep], self._without[:keep]


def _state(load: Load) -> str:
    if load.processing:
        return "executing"
    if load.queued or load.waiting:
        return "queued"
    return "no_worker" if load.no_worker else "idle"


class Happened(Protocol):
    """When something happened to tasks; 0.0 for never."""

    since: float
    began: float
    run_start: float
    run_stop: float


class Activity:
    """What has happened to a segment's tasks since its wall time was last accounted for; 0.0 for never."""

    __slots__ = ("began", "run_start", "run_stop", "since")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        #: When something happened for the first time.
        self.since = 0.0
        #: When a task was sent to a worker for the first time.
        self.began = 0.0
        #: Within which tasks ran that have ended.
        self.run_start = self.run_stop = 0.0

    def add(self, of: Happened) -> None:
        """Note what a sweep saw."""
        self.since = _earlier(self.since, of.since)
        self.began = _earlier(self.began, of.began)
        self.run_start = _earlier(self.run_start, of.run_start)
        self.run_stop = max(self.run_stop, of.run_stop)


def _earlier(one: float, other: float) -> float:
    return min(one, other) if one and other else one or other


class Wall:
    """A segment's duration, divided by what its tasks were doing.

    When tasks were sent to workers and when they ended is known to the moment, other changes to one sweep.
    """

    __slots__ = ("_parts", "_state", "_until")

    def __init__(self, start: float) -> None:
        self._parts = {"executing": 0.0, "queued": 0.0, "no_worker": 0.0, "idle": 0.0}
        self._state = "queued"
        self._until = start

    def advance(self, now: float, load: Load, activity: Activity) -> None:
        """Account for the time until now.

        Parameters
        ----------
        load
            The state from now on.
        activity
            What has happened since the last call.
        """
        now = max(now, self._until)
        before, after = self._state, _state(load)
        begin = end = now
        if before == "executing":
            begin = self._until
        elif starts := [start for start in (activity.began, activity.run_start) if start]:
            begin = min(max(min(starts), self._until), now)
        if after != "executing" and activity.run_stop:
            end = min(max(activity.run_stop, begin), now)
        # Tasks that end a time of idleness wait before they run.
        woken = begin
        if before == "idle" and activity.since:
            woken = min(max(activity.since, self._until), begin)
        self._parts[before] += woken - self._until
        self._parts["no_worker" if after == "no_worker" else "queued"] += begin - woken
        self._parts["executing"] += end - begin
        self._parts[after] += now - end
        self._state, self._until = after, now

    def until(self, end: float) -> dict[str, float]:
        """Parts of the duration up to ``end``, in seconds; they sum to it."""
        parts = dict(self._parts)
        ahead = end - self._until
        if ahead >= 0:
            parts[self._state] += ahead
            return parts
        # The work ended before it was noticed; what was counted since is mostly idle.
        excess = -ahead
        for name in ("idle", self._state, "queued", "no_worker", "executing"):
            cut = min(excess, parts[name])
            parts[name] -= cut
            excess -= cut
        return parts
