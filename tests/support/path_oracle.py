"""Critical paths from a full record: by the definitions, without regard to what it takes.

Nothing is folded, counted or forgotten; every question is answered by reading all events up to the one in question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dask_otel.spantree.events import latest_run

from .full_record import Arrival, Cut, Event, Move, Swept

__all__ = ["LapPath", "Node", "is_lost", "lap_paths"]

UNFINISHED = ("waiting", "queued", "no-worker", "processing")
RUNNABLE = ("queued", "no-worker", "processing")
#: Beginnings of stimuli: by which tasks are sent anew, since their runs were in vain; by which a person requests that;
#: and by which a person requests tasks.
LOST = (
    *("handle-worker-cleanup", "check-worker-ttl", "retire-workers", "client-restart-workers", "worker-close"),
    *("cancelled-by-worker-close", "nanny-close", "worker-send-comm-fail", "send-all-comm-fail"),
    *("task-erred", "execute-unknown-error", "reschedule", "steal", "worker-closing"),
)
RETRY = "stimulus-retry"
#: Seconds by which the time of a worker may jump from one run to the next.
JITTER = 0.01
ASKED_FOR = ("update-graph", RETRY)


@dataclass(eq=False)
class Node:
    """A run that has ended, a graph that has arrived, or the begin of a lap."""

    end: float
    #: When the scheduler was told, or had taken the graph in; and the number of that event.
    told: float
    number: int
    stimulus: str = ""
    before: Node | None = None
    #: Of a run.
    group: tuple[str, str] | None = None
    place: tuple[str, int | None] | None = None
    edge: str = "data"
    seconds: float = 0.0
    gaps: Counter[str] = field(default_factory=Counter)

    @property
    def chain(self) -> Iterator[Node]:
        """It, and all before it."""
        node: Node | None = self
        while node:
            yield node
            node = node.before


@dataclass(eq=False)
class LapPath:
    """The critical path of a lap."""

    root: str
    #: Its begin, and all that has ended in it, in the order in which the scheduler was told.
    nodes: list[Node]
    #: When the scheduler was told that the last task has ended; None while one is unfinished.
    told: float | None = None
    #: Whether a sweep has seen that.
    is_over: bool = False

    @property
    def start(self) -> float:
        """When it began."""
        return self.nodes[0].end

    @property
    def last(self) -> Node:
        """Where its path ends: what ended last."""
        return _latest(self.nodes)

    @property
    def groups(self) -> dict[tuple[str, str], Counter[str]]:
        """Seconds on the path by group and edge."""
        found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for node in self.last.chain:
            if node.group:
                found[node.group][node.edge] += node.seconds
        return found

    @property
    def gaps(self) -> Counter[str]:
        """Seconds between runs, by cause."""
        total: Counter[str] = Counter()
        for node in self.last.chain:
            total.update(node.gaps)
        return total

    @property
    def seconds(self) -> float:
        """All."""
        return sum(sum(each.values()) for each in self.groups.values()) + sum(self.gaps.values())


def lap_paths(events: Sequence[Event]) -> list[LapPath]:
    """All laps of all roots, in the order in which they began."""
    laps: list[LapPath] = []
    arrivals = [(number, event) for number, event in enumerate(events) if isinstance(event, Arrival)]
    #: By number of their event, those of all runs.
    nodes: dict[int, Node] = {}
    current: dict[str, LapPath] = {}
    #: When the last lap of each root ended. A graph that came before that begins its lap there: laps do not overlap.
    ended: dict[str, float] = {}
    unfinished: dict[str, set[int]] = defaultdict(set)
    #: Tasks whose results were lost with a worker, while no other worker has them.
    lost: set[int] = set()
    for number, event in enumerate(events):
        if isinstance(event, Swept):
            for root in [root for root in current if not unfinished[root]]:
                lap = current.pop(root)
                lap.is_over = True
                ended[root] = lap.told or event.at
        if isinstance(event, Cut) and event.root in current:
            current[event.root].is_over = True
            if unfinished[event.root]:
                laps.append(LapPath(event.root, [Node(event.at, event.at, number)]))
                current[event.root] = laps[-1]
            else:
                ended[event.root] = current.pop(event.root).told or event.at
        if not isinstance(event, Move) or not event.root or event.start == event.finish:
            continue
        if event.task in lost and event.finish in ("waiting", "queued", "no-worker"):
            continue
        lost.discard(event.task)
        if is_lost(event):
            lost.add(event.task)
            continue
        graph, arrival = _arrival(arrivals, number, event)
        was_at_rest = not unfinished[event.root]
        if event.finish in UNFINISHED:
            if event.root not in current:
                start = max(arrival.received, ended.get(event.root, 0.0)) if arrival else event.at
                current[event.root] = LapPath(event.root, [Node(start, start, number)])
                laps.append(current[event.root])
            unfinished[event.root].add(event.task)
            current[event.root].told = None
        lap = current.get(event.root)
        if lap is None:
            continue
        # A graph counts from when something waits for it: one of results that are there changes nothing.
        is_awaited = (was_at_rest and unfinished[event.root]) or _is_release(event)
        if arrival and is_awaited and all(node.stimulus != arrival.stimulus for node in lap.nodes):
            lap.nodes.append(_arrived(lap, arrival, graph))
        if _is_run(event):
            nodes[number] = _Run(events, number, lap, event, nodes).node()
            lap.nodes.append(nodes[number])
        if event.finish not in UNFINISHED and event.task in unfinished[event.root]:
            unfinished[event.root].remove(event.task)
            if not unfinished[event.root]:
                lap.told = event.at
    return laps


def _arrival(arrivals: Sequence[tuple[int, Arrival]], number: int, move: Move) -> tuple[int, Arrival | None]:
    """The graph whose stimulus has a task move, if it has tasks of the same root."""
    for n, event in reversed(arrivals):
        if n < number and event.stimulus == move.stimulus and move.root in event.roots:
            return n, event
    return -1, None


def _is_run(move: Move) -> bool:
    """Whether a run has ended."""
    return move.start != move.finish and move.finish in ("memory", "erred") and bool(move.startstops)


def is_lost(move: Move) -> bool:
    """Whether the task runs again only because its result was lost: until a worker has it, this keeps no lap going."""
    lost = move.start == "released" and move.finish == "waiting" and move.had_result
    return lost and not move.stimulus.startswith(ASKED_FOR)


def _is_release(move: Move) -> bool:
    """Whether a task has become runnable."""
    return move.start == "waiting" and move.finish in RUNNABLE


def _stop(run: Move) -> float:
    return max(step["stop"] for step in latest_run(run.startstops)) + run.offset


def _latest(nodes: Sequence[Node]) -> Node:
    """What ended last; of equal ones, what the scheduler was told of first."""
    return max(nodes, key=lambda node: node.end)


def _arrived(lap: LapPath, arrival: Arrival, number: int) -> Node:
    before = _latest(lap.nodes)
    node = Node(max(before.end, arrival.at), arrival.at, number, arrival.stimulus, before)
    come = max(before.end, arrival.received)
    node.gaps["client"] = come - before.end
    node.gaps["graph"] = node.end - come
    return node


class _Run:
    """A run that has ended, whose node is to be made."""

    def __init__(
        self, events: Sequence[Event], number: int, lap: LapPath, run: Move, nodes: Mapping[int, Node]
    ) -> None:
        self._lap = lap
        #: Of all runs before, of whatever root.
        self._nodes = nodes
        self._number = number
        self._run = run
        steps = latest_run(run.startstops)
        computes = [step["start"] for step in steps if step["action"] == "compute"]
        self._start = min(computes or [step["start"] for step in steps]) + run.offset
        #: Until when a run before it on its thread may have ended: later, it is an async task beside it.
        self._free_by = max((self._start + _stop(run)) / 2, self._start + JITTER)
        self._stop = _stop(run)
        self._place = run.worker, run.thread
        moves = [(n, each) for n, each in enumerate(events[:number]) if isinstance(each, Move)]
        #: All runs before, of whatever root; and what its task did before, the latest last.
        self._runs = [(n, each) for n, each in moves if _is_run(each)]
        self._moves = [(n, each) for n, each in moves if each.task == run.task and each.start != each.finish]
        self._released = self._last(_is_release)
        self._sent = self._last(lambda move: move.finish == "processing")
        waited = self._last(lambda move: move.finish == "waiting" and move.start == "released")
        #: Whether it is in no state of waiting before it is sent.
        self._is_lost = waited is not None and is_lost(waited[1])
        if self._is_lost:
            self._released = self._sent

    def _last(self, holds: Callable[[Move], bool]) -> tuple[int, Move] | None:
        return next(((n, move) for n, move in reversed(self._moves) if holds(move)), None)

    def node(self) -> Node:
        """Find what it waited for, and why."""
        before, edge = self._before()
        begin = max(self._start, before.end)
        node = Node(
            max(self._stop, before.end), self._run.at, self._number, self._run.stimulus, before,
            group=(self._run.span, self._run.group), place=self._place, edge=edge,
            seconds=max(0.0, self._stop - begin),
        )  # fmt: skip
        self._divide(node.gaps, before, begin)
        return node

    def _before(self) -> tuple[Node, str]:
        nodes = self._lap.nodes
        n, stimulus = (self._released[0], self._released[1].stimulus) if self._released else (-1, "")
        then = [node for node in nodes if node.number < n] or nodes[:1]
        graphs = [node for node in then if not node.group and node.stimulus == stimulus]
        by = self._by(stimulus, n) or graphs
        # What anything else made runnable hangs on what came last then.
        candidates = [(by[0] if by else _latest(then), "data")]
        if self._sent and self._sent[1].start in ("queued", "no-worker") and not self._is_lost:
            candidates += [(node, "thread") for node in self._by(self._sent[1].stimulus, self._sent[0])]
        there = [node for node in nodes if node.place == self._place][-1:]
        candidates += [(node, "thread") for node in there if node.end <= self._free_by]
        return max(candidates, key=lambda each: each[0].end)

    def _by(self, stimulus: str, number: int) -> list[Node]:
        """The node of the run whose end had a stimulus; none if that was another root's."""
        n, run = self._run_by(stimulus, number)
        return [node for node in self._lap.nodes if run and node.group and node.number == n]

    def _run_by(self, stimulus: str, number: int) -> tuple[int, Move | None]:
        """The run whose end had a stimulus: the last one before; workers may choose equal ones again later."""
        last = [(n, run) for n, run in self._runs if n < number][-1:]
        return last[0] if last and last[0][1].stimulus == stimulus else (-1, None)

    def _divide(self, gaps: Counter[str], before: Node, begin: float) -> None:
        """Say what the time from the end before it to its begin was for."""
        sent = self._sent[1].at if self._sent else before.end
        # What was sent before did not wait for the report.
        waits = max(before.end, min(before.told, sent, begin))
        on_worker = max(waits, min(sent, begin))
        theirs = max(on_worker, min(self._end_of_others(before.end), begin))
        gaps["report"] += waits - before.end
        gaps[self._cause()] += on_worker - waits
        gaps["others"] += theirs - on_worker
        gaps["input" if self._sent and self._sent[1].lacks_input else "dispatch"] += begin - theirs

    def _cause(self) -> str:
        """Why it was not sent."""
        if not self._sent or not self._released:
            return "dispatch"
        why = self._why_not_released()
        if self._released[0] == self._sent[0] or why == "lost":
            return why
        if self._is_by_others(*self._sent):
            return "others"
        return "queued" if self._sent[1].start == "queued" else "no_worker"

    def _why_not_released(self) -> str:
        assert self._released
        n, released = self._released
        if self._is_by_others(n, released):
            return "others"
        is_graph = any(node.stimulus == released.stimulus for node in self._lap.nodes if not node.group)
        if self._by(released.stimulus, n) or is_graph:
            return "dispatch"
        if (released.finish == "processing" and released.had_result) or released.stimulus.startswith(LOST):
            return "lost"
        return "client" if released.stimulus.startswith(RETRY) else "dispatch"

    def _is_by_others(self, number: int, move: Move) -> bool:
        """Whether a task moved since another root's run ended."""
        _, run = self._run_by(move.stimulus, number)
        return run is not None and run.root != self._run.root

    def _end_of_others(self, end: float) -> float:
        """When another root's run ended that was the latest on its thread."""
        runs = [(n, run) for n, run in self._runs if (run.worker, run.thread) == self._place][-1:]
        theirs = [self._nodes[n].end for n, run in runs if run.root != self._run.root and n in self._nodes]
        return max([end, *theirs])
