"""What the mirror knows about time: the workers' heartbeats, the cluster's threads, a segment's wall time."""

from __future__ import annotations

from bisect import bisect_right

from .tally import Load

__all__ = ["Heartbeats", "Threads", "Wall", "fit"]

#: A worker that has not been heard of for this long is not waited for (Dask itself waits 5 minutes).
SILENT = 30.0


def fit(start: float, end: float, low: float, high: float) -> tuple[float, float]:
    """Bring an interval into another one: what sticks out is cut off; one that is all outside is moved.

    A run that was under way when its segment was cut sticks out. One outside was reported by a clock that is off;
    cutting would leave it no duration at all.
    """
    length = min(max(0.0, end - start), high - low)
    if end <= low:
        return low, min(high, low + length)
    if start >= high:
        return max(low, high - length), high
    return max(start, low), min(max(start, end), high)


class Heartbeats:
    """When each live worker was last heard of.

    Fine metrics travel on heartbeats, and one that arrives after a task ended may have been drawn up before: the
    second one has the task's metrics for sure.
    """

    def __init__(self) -> None:
        self._last_two: dict[str, tuple[float, float]] = {}

    def joined(self, worker: str, now: float) -> None:
        """Note a new worker. Joining carries no metrics, so it is not a heartbeat."""
        self._last_two.setdefault(worker, (0.0, 0.0))

    def beat(self, worker: str, now: float) -> None:
        """Note a heartbeat."""
        before = self._last_two.get(worker)
        self._last_two[worker] = (before[1] if before else 0.0, now)

    def left(self, worker: str) -> None:
        """Forget a worker."""
        self._last_two.pop(worker, None)

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self._last_two = {
            worker: (first + seconds, second + seconds) for worker, (first, second) in self._last_two.items()
        }

    @property
    def workers(self) -> int:
        """Number of workers that are part of the cluster."""
        return len(self._last_two)

    def is_here(self, worker: str) -> bool:
        """Whether the worker is part of the cluster."""
        return worker in self._last_two

    def has_delivered(self, worker: str, since: float) -> bool:
        """Whether two heartbeats came after ``since``."""
        return self._last_two.get(worker, (0.0, 0.0))[0] > since

    def was_heard(self, worker: str, since: float) -> bool:
        """Whether a heartbeat came after ``since``; most likely it had all."""
        return self._last_two.get(worker, (0.0, 0.0))[1] > since

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

    def add(self, time: float, count: int) -> None:
        """Note a change; times must not go backwards, an earlier one counts from the latest."""
        self._times.append(max(time, self._times[-1]))
        self._counts.append(count)

    def available(self, start: float, end: float) -> float:
        """Thread-seconds that the cluster had between two times."""
        total = 0.0
        at = max(0, bisect_right(self._times, start) - 1)
        for i in range(at, len(self._times)):
            begin = max(start, self._times[i])
            stop = min(end, self._times[i + 1]) if i + 1 < len(self._times) else end
            if begin >= end:
                break
            total += (stop - begin) * self._counts[i]
        return total

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self._times = [time + seconds for time in self._times]

    def forget(self, before: float) -> None:
        """Drop what only matters for times before ``before``."""
        keep = max(0, bisect_right(self._times, before) - 1)
        if keep:
            del self._times[:keep], self._counts[:keep]


def _state(load: Load) -> str:
    if load.processing:
        return "executing"
    if load.queued or load.waiting:
        return "queued"
    return "no_worker" if load.no_worker else "idle"


class Wall:
    """A segment's duration, divided by what its tasks were doing; exact to one sweep."""

    __slots__ = ("_parts", "_state", "_until")

    def __init__(self, start: float) -> None:
        self._parts = {"executing": 0.0, "queued": 0.0, "no_worker": 0.0, "idle": 0.0}
        self._state = "queued"
        self._until = start

    def advance(self, now: float, load: Load, run_start: float, run_stop: float) -> None:
        """Account for the time until now.

        Parameters
        ----------
        load
            The state from now on.
        run_start, run_stop
            The time within which tasks ran that ended since the last call; 0.0 where none did.
        """
        now = max(now, self._until)
        before, after = self._state, _state(load)
        begin = end = now
        if before == "executing":
            begin = self._until
        elif run_stop:
            begin = min(max(run_start, self._until), now)
        if after != "executing" and run_stop:
            end = min(max(run_stop, begin), now)
        self._parts[before] += begin - self._until
        self._parts["executing"] += end - begin
        self._parts[after] += now - end
        self._state, self._until = after, now

    def shift(self, seconds: float) -> None:
        """Move all times: the clock was set."""
        self._until += seconds

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
