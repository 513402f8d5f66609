"""The waterfall and the critical path of a root's segment, from its laps and its fine metrics.

Laps begin and end when the scheduler was told, segments when the work began and ended; what is between the two is put
where it belongs, so that the parts sum to what the cluster had, and the path to the duration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from .parts import GAPS, OVERHEAD_ACTIVITIES, PARTS, CriticalPath, GroupKey, Lap, OnPath, Waterfall

__all__ = ["ACTIVITIES", "Laps"]

#: Parts by Dask's activity, see ``_part`` for others.
ACTIVITIES = {
    "thread-cpu": "cpu",
    "thread-noncpu": "noncpu",
    "disk-read": "disk",
    "disk-write": "disk",
    "serialize": "serialize",
    "deserialize": "serialize",
    "compress": "serialize",
    "decompress": "serialize",
    **dict.fromkeys(OVERHEAD_ACTIVITIES, "overhead"),
    "failed": "lost",
    "cancelled": "lost",
}
#: Parts from which is taken what laps have too much, the first ones first.
_CUT_FIRST = ("handed", "tail", "client", "graph", *PARTS[::-1])
#: The same of a path.
_GAPS_CUT_FIRST = ("unfinished", "report", "graph", "client", "dispatch", *GAPS)
#: Groups of a segment's path that are kept apart.
MAX_GROUPS = 2000
NOTHING = OnPath()
#: Seconds with threads from which their mean number is known.
MOMENT = 0.001
#: Thread-seconds that are not a rounding error; and a part that is one.
SOME, NEGLIGIBLE = 1e-6, 1e-9


class Laps:
    """The laps of a root's segment, summed."""

    def __init__(self) -> None:
        #: When the first one began, the last one ended, and the path has come so far.
        self.start = self.end = self._path_end = 0.0
        self._occupied = self._paused = self._others = self._without_threads = 0.0
        self._lost = self._recomputed = 0.0
        self._idle: dict[str, float] = {}
        self._gaps: dict[str, float] = {}
        self._groups: dict[GroupKey, OnPath] = {}
        self._other_groups = NOTHING
        #: What group spans that have been sent say of their groups; and Dask spans of which some could not know it.
        self._sent: dict[GroupKey, OnPath] = {}
        self._unknown: set[str] = set()

    def add(self, lap: Lap) -> None:
        """Add a lap that follows those before."""
        path = lap.path
        if self.start:
            self._others += lap.pause_others
            _add(self._idle, "client", lap.pause_idle)
            _add(self._gaps, "client", path.start - self._path_end)
        else:
            self.start = lap.start
        self.end, self._path_end = lap.end, path.end
        self._occupied += lap.occupied
        self._paused += lap.paused
        self._others += lap.others
        self._lost += lap.lost
        self._recomputed += lap.recomputed
        for cause, seconds in lap.idle.items():
            _add(self._idle, cause, seconds)
        for cause, seconds in path.gaps.items():
            _add(self._gaps, cause, seconds)
        for key, on_path in path.groups.items():
            if key in self._groups or len(self._groups) < MAX_GROUPS:
                self._groups[key] = _plus(self._groups.get(key, NOTHING), on_path)
            else:
                self._other_groups = _plus(self._other_groups, on_path)
        self._other_groups = _plus(self._other_groups, path.other_groups)

    def of_groups(self, span_id: str, names: Collection[str], *, is_known: bool) -> OnPath | None:
        """Return the seconds on the path of groups of a Dask span, since their span before; None if not known.

        Parameters
        ----------
        is_known
            Whether no lap that goes on can still add to them.
        """
        if len(names) < len(self._groups):
            keys = [key for name in names if (key := GroupKey(span_id, name)) in self._groups]
        else:
            keys = [key for key in self._groups if key.span_id == span_id and key.name in names]
        # What is not kept apart may be among the others.
        if not is_known or (len(keys) < len(names) and self._other_groups.seconds):
            self._unknown.add(span_id)
        if span_id in self._unknown:
            return None
        data = thread = 0.0
        for key in keys:
            before, now = self._sent.get(key, NOTHING), self._groups[key]
            data += now.data - before.data
            thread += now.thread - before.thread
            self._sent[key] = now
        return OnPath(max(0.0, data), max(0.0, thread))

    def path(self, start: float, end: float) -> CriticalPath:
        """Return the critical path of the segment from ``start`` to ``end``."""
        # By clocks that are off, a lap may begin before the path of the one before ends.
        gaps = {cause: max(0.0, seconds) for cause, seconds in self._gaps.items()}
        lead, rest = self.start - start, end - self._path_end
        _add(gaps, "graph", max(0.0, lead))
        _add(gaps, "unfinished", max(0.0, rest))
        groups, others = dict(self._groups), self._other_groups
        duration = end - start
        seconds = sum(each.seconds for each in groups.values()) + others.seconds
        excess = seconds + sum(gaps.values()) - duration
        _cut(gaps, excess, _GAPS_CUT_FIRST)
        if seconds > duration:  # by clocks that are wrong
            part = max(0.0, duration) / seconds
            groups = {key: OnPath(each.data * part, each.thread * part) for key, each in groups.items()}
            others = OnPath(others.data * part, others.thread * part)
        elif excess < 0.0:
            _add(gaps, "client", -excess)
        gaps = {cause: value for cause, value in gaps.items() if value > NEGLIGIBLE}
        return CriticalPath(start, end, groups, gaps, others)

    def waterfall(
        self, metrics: Mapping[tuple[object, ...], float], start: float, end: float, available: float, without: float
    ) -> Waterfall:
        """Return the waterfall of the segment from ``start`` to ``end``.

        Parameters
        ----------
        metrics
            Fine metrics of the segment: ``("execute", prefix, activity, unit)``. Those of the context ``p2p`` are left
            out: they repeat what shuffles do in tasks, and add what goes on beside threads, most of it idle.
        available, without
            Thread-seconds that the cluster had, and seconds in which it had no thread.
        """
        duration = end - start
        threads = 1.0
        if available > SOME and duration - without > MOMENT:
            threads = available / (duration - without)
        else:
            without = duration
        parts = dict.fromkeys(PARTS, 0.0)
        for key, value in metrics.items():
            if key[0] == "execute" and key[-1] == "seconds":
                parts[_part(str(key[-2]))] += value
        again = min(self._recomputed, parts["cpu"] + parts["noncpu"])
        if again > 0.0:
            of_cpu = again * parts["cpu"] / (parts["cpu"] + parts["noncpu"])
            parts["cpu"] -= of_cpu
            parts["noncpu"] -= again - of_cpu
            parts["lost"] += again
        rest = self._occupied - sum(parts.values())
        if rest < 0.0:
            parts["unaccounted"] = rest
        else:
            lost = min(rest, self._lost)
            paused = min(rest - lost, self._paused)
            parts["lost"] += lost
            parts["paused"] += paused
            parts["handed"] = rest - lost - paused
        parts["others"] += self._others
        for cause, seconds in self._idle.items():
            parts[cause] += seconds
        parts["starting"] += without * threads
        parts["graph"] += max(0.0, min(self.start - start, duration)) * threads
        excess = sum(parts.values()) - threads * duration
        if excess < 0.0:
            parts["client"] -= excess
        else:
            _cut(parts, excess, _CUT_FIRST)
        return Waterfall({part: value for part, value in parts.items() if abs(value) > NEGLIGIBLE}, threads, duration)


def _part(activity: str) -> str:
    """Return the part to which an activity belongs.

    What users measure in their tasks is neither in ``thread-cpu`` nor in ``thread-noncpu``. It is taken for waiting,
    since it is wall time unless they say otherwise.
    """
    return "p2p" if activity.startswith("p2p-") else ACTIVITIES.get(activity, "noncpu")


def _plus(one: OnPath, other: OnPath) -> OnPath:
    return OnPath(one.data + other.data, one.thread + other.thread)


def _add(sums: dict[str, float], name: str, value: float) -> None:
    if value:
        sums[name] = sums.get(name, 0.0) + value


def _cut(sums: dict[str, float], excess: float, order: Iterable[str]) -> None:
    """Take what is too much from sums, from the first ones first; none becomes negative."""
    for name in order:
        if excess <= 0.0:
            return
        part = min(excess, max(0.0, sums.get(name, 0.0)))
        if part:
            sums[name] -= part
            excess -= part
