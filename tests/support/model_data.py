"""Task groups and tasks of no cluster, and accounts of what the span tree was told of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from dask_otel.spantree.counts import Load, Tally
from dask_otel.spantree.events import Change, Dependency, Picks

STATES = ("processing", "queued", "no_worker", "waiting")
#: Outcomes after which the task runs again.
AGAIN = ("retried", "rescheduled", "lost")


def path_of(span_id: str) -> str:
    """The path that an id is, or has after the ``traceparent`` of a caller."""
    return span_id.rpartition(";")[2]


def is_inside(span_id: str, above: str) -> bool:
    """Whether a span is another one or below it."""
    return span_id == above or path_of(span_id).startswith(path_of(above) + "/")


def without_prefix(key: tuple[object, ...]) -> tuple[object, ...]:
    """The key of a fine metric, summed over prefixes."""
    return (key[0], None, *key[2:]) if key[0] == "execute" else key


def numbers(tally: Tally) -> Counter[str]:
    """All that adds up."""
    durations = {f"µs of {action}": micros for action, micros in tally.durations.items()}
    return Counter(
        tasks=tally.tasks,
        completed=tally.completed,
        nbytes=tally.nbytes,
        for_good=tally.lost_for_good,
        **tally.outcomes,
        **durations,
    )


@dataclass
class Account:
    """What was told of a segment."""

    numbers: Counter[str] = field(default_factory=Counter)
    #: By requesting and owning span.
    claims: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    #: Of errors.
    messages: set[str] = field(default_factory=set)
    #: Without their prefix.
    metrics: Counter[tuple[object, ...]] = field(default_factory=Counter)
    #: Names of the span's own groups.
    groups: set[str] = field(default_factory=set)
    graphs: Counter[str] = field(default_factory=Counter)
    graph_seconds: float = 0.0

    def add(self, other: Account) -> None:
        """Add a child's."""
        self.numbers.update(other.numbers)
        for pair, counts in other.claims.items():
            self.claims[pair].update(counts)
        self.messages |= other.messages
        self.metrics.update(other.metrics)
        self.graphs.update(other.graphs)
        self.graph_seconds += other.graph_seconds


@dataclass(eq=False)
class Group:
    """A TaskGroup: running totals."""

    span_id: str
    name: str
    tasks: list[Task] = field(default_factory=list)
    dependencies: tuple[Dependency, ...] = ()
    totals: Counter[str] = field(default_factory=Counter)
    durations: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    told_durations: Counter[str] = field(default_factory=Counter)
    told_load: Load = field(default_factory=Load)

    def load(self) -> Load:
        states = Counter(task.state for task in self.tasks)
        return Load(*(states[state] for state in STATES), sum(task.provisional for task in self.tasks))


@dataclass(eq=False)
class Task:
    """One task; in ``memory`` or ``gone`` when it is no longer unfinished."""

    group: Group
    state: str
    since: float
    #: Other spans than its own that requested it, and for which it has not ended yet.
    requesting: tuple[str, ...] = ()
    provisional: bool = False
    #: Trace and span id of the parent that the span of a run has.
    parent: tuple[int, int] = (0, 0)

    @property
    def is_unfinished(self) -> bool:
        return self.state in STATES


@dataclass
class Latch:
    """A change in the making."""

    change: Change
    #: Of errors.
    messages: set[str] = field(default_factory=set)
    #: With runs that need not be told of.
    picks: Picks = field(default_factory=Picks)
