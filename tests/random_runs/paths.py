"""Critical paths and waterfalls of a run, against the oracles that have the full record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from distributed import Scheduler
from distributed.metrics import time
from support.full_record import Cut, FullRecord, Swept
from support.occupancy_oracle import occupancy
from support.path_oracle import LapPath, lap_paths

from dask_otel.diagnosis.parts import EDGES, GAPS, PARTS, Lap
from dask_otel.diagnosis.run_times import TOGETHER
from dask_otel.scheduler import run_times

from .compare import Outcome

__all__ = ["Paths"]

#: Seconds by which a path may miss the duration of its segment.
TOLERANCE = 1e-3
#: Thread-seconds: what was taken from another worker was so a little earlier.
OCCUPANCY_TOLERANCE = 0.02


class Paths:
    """The full record of a scheduler, by the times that the bridge has read."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._now, self._next = time(), 0.0
        run_times.time = self._read  # type: ignore[attr-defined]
        self._scheduler = scheduler
        # Its wrappers are inside those of the bridge, and its hooks are called after the bridge's.
        self._record = FullRecord(scheduler, lambda: self._now, self._read_before)
        self._laps: list[Lap] = []

    def _read(self) -> float:
        self._now, self._next = self._next or time(), 0.0
        return self._now

    def _read_before(self) -> float:
        """Read the time for the bridge, which is about to: threads of workers may run between the two."""
        self._next = time()
        asyncio.get_running_loop().call_soon(setattr, self, "_next", 0.0)
        return self._next

    def follow(self, plugin: Any) -> None:
        """Note what a bridge has begun to count."""
        self._scheduler.add_plugin(self._record, name=self._record.name)
        bridge = plugin._bridge
        times, tree = bridge.run_times.times, bridge.span_tree
        times.take = partial(self._take, times.take)
        times.cut = partial(self._cut, times.cut)
        tree.add_lap = partial(self._add_lap, tree.add_lap)

    def _take(self, take: Any) -> None:
        self._record.events.append(Swept(self._read()))
        take()

    def _cut(self, cut: Any, root_id: str, now: float) -> Any:
        self._record.events.append(Cut(now, root_id))
        return cut(root_id, now)

    def _add_lap(self, add_lap: Any, lap: Lap) -> None:
        self._laps.append(lap)
        add_lap(lap)

    def check(self, outcome: Outcome, spans: Sequence[Any], lineage: Mapping[str, Sequence[str]]) -> None:
        """Compare laps with what the oracles say, and spans with themselves and with the laps.

        Parameters
        ----------
        lineage
            Ids of each span that there has been, from its root down.
        """
        events = self._record.events
        paths = {(path.root, path.start): path for path in lap_paths(events) if path.is_over}
        laps = {(lap.root_id, lap.start): lap for lap in self._laps}
        outcome.check("-", "laps", sorted(laps), sorted(paths))
        for key in laps.keys() & paths.keys():
            root, lap = key[0], laps[key]
            mine, theirs = _of_lap(lap), _of_path(paths[key])
            for name in mine.keys() | theirs.keys():
                outcome.comparisons += 1
                # Tasks that are sent within a moment count as sent at once, which moves seconds from cause to cause.
                tolerance = TOGETHER * len(list(paths[key].last.chain)) if name.startswith("gap ") else 1e-6
                if abs(mine[name] - theirs[name]) > tolerance:
                    outcome.differ(root, name, mine[name], theirs[name])
            expected = occupancy(events, root, lap.start, lap.end)
            for what in ("occupied", "others"):
                outcome.comparisons += 1
                if abs(getattr(lap, what) - getattr(expected, what)) > OCCUPANCY_TOLERANCE:
                    outcome.differ(root, what, getattr(lap, what), getattr(expected, what))
        seconds: Counter[str] = Counter()
        for lap in self._laps:
            seconds[lap.root_id] += lap.path.seconds
        _check_spans(outcome, spans, {id_: ids[0] for id_, ids in lineage.items()}, seconds)


def _of_lap(lap: Lap) -> Counter[str]:
    numbers: Counter[str] = Counter({f"gap {cause}": seconds for cause, seconds in lap.path.gaps.items()})
    for group, on in lap.path.groups.items():
        numbers[f"{group.name} of {group.span_id} data"] = on.data
        numbers[f"{group.name} of {group.span_id} thread"] = on.thread
    numbers["length of the path"] = lap.path.end - lap.path.start
    return numbers


def _of_path(path: LapPath) -> Counter[str]:
    numbers: Counter[str] = Counter({f"gap {cause}": seconds for cause, seconds in path.gaps.items()})
    for (span_id, name), edges in path.groups.items():
        for edge, seconds in edges.items():
            numbers[f"{name} of {span_id} {edge}"] = seconds
    numbers["length of the path"] = path.last.end - path.start
    return numbers


def _check_spans(outcome: Outcome, spans: Sequence[Any], roots: Mapping[str, str], laps: Mapping[str, float]) -> None:
    """What holds of the spans of each root, which may be in several traces.

    Parameters
    ----------
    roots
        Ids of the roots of spans.
    laps
        Seconds of runs on the paths of each root.
    """
    on_roots: Counter[str] = Counter()
    on_groups: Counter[str] = Counter()
    for span in spans:
        attributes = span.attributes
        root = roots.get(attributes["dask.span.id"], "")
        on_path = attributes.get("dask.critical.seconds", 0.0)
        if "dask.waterfall.threads" in attributes:
            path = f"{attributes['dask.span.path']} [{root[:8]}]"
            _check_segment(outcome, path, span, on_path)
            on_roots[root] += on_path
        elif attributes["dask.kind"] == "group":
            on_groups[root] += on_path
    for root, seconds in on_roots.items():
        outcome.comparisons += 2
        if on_groups[root] > seconds + TOLERANCE:
            outcome.differ(root, "groups on the critical path", on_groups[root], seconds)
        if seconds > laps[root] + TOLERANCE:
            outcome.differ(root, "critical path of all segments", seconds, laps[root])


def _check_segment(outcome: Outcome, path: str, segment: Any, on_path: float) -> None:
    attributes = segment.attributes

    def total(name: str, of: Sequence[str]) -> float:
        return float(sum(attributes.get(f"dask.{name}.{each}.seconds", 0.0) for each in of))

    threads = attributes["dask.waterfall.threads"]
    for what, sent, expected, tolerance in (
        ("critical path", on_path + total("critical.gap", GAPS), segment.seconds, TOLERANCE),
        ("edges of the critical path", total("critical", EDGES), on_path, 1e-6),
        ("waterfall", total("waterfall", PARTS), threads * segment.seconds, TOLERANCE * max(1.0, threads)),
    ):
        outcome.comparisons += 1
        if abs(sent - expected) > tolerance:
            outcome.differ(path, what, sent, expected)
