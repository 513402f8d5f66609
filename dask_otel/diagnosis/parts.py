"""The parts of a waterfall and of a critical path: their names, and the plain data that is passed on.

Times are seconds since the epoch by the scheduler's clock. What is counted for all threads is in thread-seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "EDGES",
    "GAPS",
    "IDLE",
    "LABELS",
    "OVERHEAD_ACTIVITIES",
    "OWN",
    "PARTS",
    "CriticalPath",
    "GroupKey",
    "Lap",
    "OnPath",
    "Step",
    "Waterfall",
]

#: What threads did that had tasks of the root, as fine metrics say; ``handed`` is the rest: a worker had the task, but
#: it did not run.
OWN = ("cpu", "noncpu", "disk", "serialize", "p2p", "lost", "overhead", "handed")
#: Activities of fine metrics that are overhead of Dask's, during which threads do not work.
OVERHEAD_ACTIVITIES = ("executor", "other")
#: Why other threads were idle. If several causes apply, it is the first one.
IDLE = (
    "starting",
    "paused",
    "queued",
    "no_worker",
    "imbalance",
    "dependencies",
    "tail",
    "graph",
    "client",
)
#: All parts of a waterfall. ``unaccounted`` is negative: fine metrics have more than workers had tasks.
PARTS = (*OWN, "unaccounted", "others", *IDLE)

#: What the parts are called for people.
LABELS = {
    "cpu": "computing",
    "noncpu": "tasks that wait",
    "disk": "reading and writing spilled data",
    "serialize": "serialising",
    "p2p": "P2P shuffles",
    "lost": "failed and lost runs",
    "overhead": "Dask's overhead",
    "handed": "with a worker, not running yet",
    "unaccounted": "counted twice",
    "others": "other root spans",
    "starting": "no workers yet",
    "paused": "workers paused",
    "queued": "queued",
    "no_worker": "no suitable worker",
    "imbalance": "other workers have the tasks",
    "dependencies": "tasks wait for others",
    "tail": "the last tasks",
    "graph": "graph on its way",
    "client": "think time",
}

#: Why the critical path waited between two runs; ``unfinished``: after the last run that has ended.
GAPS = (
    "client",
    "graph",
    "report",
    "queued",
    "no_worker",
    "others",
    "lost",
    "input",
    "dispatch",
    "unfinished",
)
#: What a run on the critical path waited for: its inputs, or a thread on which another run was.
EDGES = ("data", "thread")


class GroupKey(NamedTuple):
    """A group of tasks: id of its Dask span, and its name."""

    span_id: str
    name: str


class Step(NamedTuple):
    """What people call a group of tasks. Pseudonyms may take the place of these names, see ``privacy.py``."""

    #: Tags of its Dask span, from the root down; empty in a text that says them elsewhere.
    tags: tuple[str, ...]
    #: Prefix of the group; empty for the span as a whole.
    prefix: str

    def __str__(self) -> str:
        return " / ".join(filter(None, (*self.tags, self.prefix)))


class OnPath(NamedTuple):
    """Seconds that runs of a group are on the critical path, by the edge that leads to them."""

    data: float = 0.0
    thread: float = 0.0

    @property
    def seconds(self) -> float:
        """Both."""
        return self.data + self.thread


@dataclass(slots=True)
class CriticalPath:
    """The runs and the gaps between them that made up the time from ``start`` to ``end``: their seconds sum to it."""

    start: float
    end: float
    groups: dict[GroupKey, OnPath] = field(default_factory=dict)
    #: By cause, see ``GAPS``.
    gaps: dict[str, float] = field(default_factory=dict)
    #: Seconds in groups beyond the number that is kept.
    other_groups: OnPath = field(default_factory=OnPath)
    #: What the groups are called.
    titles: dict[GroupKey, Step] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of runs."""
        return self.along("data") + self.along("thread")

    def along(self, edge: str) -> float:
        """Seconds of runs to which an edge leads, see ``EDGES``."""
        return float(sum(getattr(each, edge) for each in (*self.groups.values(), self.other_groups)))

    def steps(self, most: int) -> list[tuple[Step, float]]:
        """Return the groups that take the most of the path, the longest first, with their seconds."""
        longest = sorted(self.groups.items(), key=lambda item: (-item[1].seconds, item[0]))[:most]
        return [(self.titles.get(key) or Step((), key.name), each.seconds) for key, each in longest if each.seconds]


@dataclass(slots=True)
class Lap:
    """What threads did while a root had unfinished tasks, without a pause that a sweep has seen.

    In thread-seconds.
    """

    #: Id of the root.
    root_id: str
    #: When it began, and when the last task had ended.
    start: float
    end: float
    #: Threads that had tasks of the root; and of these, those of paused workers.
    occupied: float
    paused: float
    #: Threads that had tasks of other roots.
    others: float
    #: Idle threads, by cause, see ``IDLE``.
    idle: dict[str, float]
    path: CriticalPath
    #: Threads that ran what was lost with its worker, at least; and threads that ran again what had finished before.
    lost: float = 0.0
    recomputed: float = 0.0
    #: Since the lap before: threads that had tasks of other roots, and idle ones.
    pause_others: float = 0.0
    pause_idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Thread-seconds of a root's segment by part: what the cluster had, divided."""

    #: By part, see ``PARTS``; their sum is ``threads * seconds``.
    parts: Mapping[str, float]
    #: Mean number of threads while there were any.
    threads: float
    #: Duration of the segment.
    seconds: float

    def wall(self, part: str) -> float:
        """Wall seconds of a part: those of all parts sum to the duration."""
        return self.parts.get(part, 0.0) / self.threads if self.threads else 0.0
