"""A cluster that runs nothing: it tells the span tree what the watch would tell of Dask, and remembers what it told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from dask_otel.identity import group_id, origin_of, segment_id
from dask_otel.spantree.counts import FirstError, Load
from dask_otel.spantree.events import Change, Claim, Graph, Picks, SpanInfo, TaskError, TaskRun, WorkerSpan
from dask_otel.spantree.ledger import GroupLedger
from dask_otel.spantree.lifecycle import SpanTree

from .callers import anchored
from .model_data import AGAIN, STATES, Account, Group, Latch, Task, numbers, path_of, without_prefix


class Cluster:
    """Spans, groups and tasks, and what has happened to them since it was last told."""

    def __init__(self) -> None:
        #: The clock of dask-otel, and by how much the system's clock was set back.
        self.now = 1_000_000.0
        self.offset = 0.0
        self.spans: dict[str, SpanInfo] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self.inbox: dict[Group, Latch] = {}
        #: All that a group's next span could show.
        self.picks: dict[GroupLedger, Picks] = {}
        self.claims: dict[tuple[str, str], Claim] = {}
        self.graphs: list[Graph] = []
        self.metrics: dict[str, Counter[tuple[object, ...]]] = {}
        #: Spans that workers have made, and the trace and span ids of all their parents.
        self.worker_spans: list[WorkerSpan] = []
        self.parents: set[tuple[int, int]] = set()
        #: Unfinished tasks of each span, as told.
        self.unfinished: Counter[str] = Counter()
        #: Ids of default spans, and of those below, that were forgotten: Dask never makes one again.
        self.gone: set[str] = set()
        #: Ids of segments that have been open, and of those that were told of a run.
        self.opened: set[int] = set()
        self.lasting: set[int] = set()
        self._numbers = count(1)
        #: Set once there is one.
        self.span_tree: SpanTree | None = None

    # What happens

    def add_span(self, tag: str, parent_id: str | None) -> None:
        above = self.spans[parent_id] if parent_id else None
        span_id = f"{path_of(parent_id)}/{tag}" if parent_id else tag
        if trace := tag.partition("!")[2]:  # it was opened by a caller in this trace
            span_id = anchored(int(trace), 8, span_id)
        tags = (*above.tags, tag) if above else (tag.partition("#")[0],)
        if span_id not in self.gone:
            self.spans.setdefault(span_id, SpanInfo(span_id, tags, parent_id, self.now))

    def below(self, root_id: str) -> list[str]:
        """Ids of a root and of all spans below it, parents before children."""
        found = [root_id]
        for each in found:  # which grows
            found += [info.id for info in self.spans.values() if info.parent_id == each]
        return found

    def is_over(self, span_ids: list[str]) -> bool:
        """Whether nothing of spans is unfinished, and nothing is still to be told."""
        ids = set(span_ids)
        told = {group.span_id for group in self.inbox} | {graph.span_id for graph in self.graphs} | set(self.metrics)
        told |= {made.span_id for made in self.worker_spans} | {each for pair in self.claims for each in pair}
        tasks = [task for group in self.groups.values() if group.span_id in ids for task in group.tasks]
        return ids.isdisjoint(told) and not any(task.is_unfinished or task.provisional for task in tasks)

    def forget(self, span_ids: list[str]) -> None:
        """Groups and results are gone; if the spans come back, they are new ones with the same ids."""
        self.now += 0.01
        for key in [key for key in self.groups if key[0] in span_ids]:
            del self.groups[key]
        for_good = self.spans[span_ids[0]].is_default
        for span_id in span_ids:
            info = self.spans.pop(span_id)
            if for_good:
                self.gone.add(span_id)
            else:
                self.spans[span_id] = replace(info, enqueued=self.now)

    def group(self, span_id: str, name: str) -> Group:
        return self.groups.setdefault((span_id, name), Group(span_id, name))

    def tasks(self, *states: str) -> list[Task]:
        return [task for group in self.groups.values() for task in group.tasks if task.state in states]

    def enter(self, group: Group, state: str) -> Task:
        """A new task."""
        task = Task(group, state, self.now, parent=self._parent(group))
        group.tasks.append(task)
        group.totals["tasks"] += 1
        self.touch(group).change.active = True
        return task

    def request(self, task: Task, span_id: str) -> None:
        """A span requests a task that is there."""
        if span_id == task.group.span_id or span_id in task.requesting:
            return
        claim = self._claim(span_id, task.group.span_id)
        claim.tasks += 1
        if task.is_unfinished:
            task.requesting += (span_id,)
            claim.load = claim.load.plus(Load(**{task.state: 1}))
        else:
            claim.last_event = self.now
            claim.completed += 1

    def move(self, task: Task, state: str, worker: str = "") -> None:
        """Another state."""
        latch = self.touch(task.group)
        if state == "processing":
            latch.change.sent_to[worker] = None
        for span_id in task.requesting:
            claim = self._claim(span_id, task.group.span_id)
            ahead = Load(**{state: 1}) if state in STATES else Load()
            claim.load = claim.load.plus(ahead.minus(Load(**{task.state: 1})))
        task.state, task.since = state, self.now

    def end(
        self,
        task: Task,
        outcome: str,
        *,
        length: float | None = None,
        skew: float = 0.0,
        worker: str = "",
        for_good: bool = False,
    ) -> None:
        """A task ends, with a run of at most this length by a clock that is off by ``skew``.

        ``for_good``: it is lost and can never run.
        """
        group, change = task.group, self.touch(task.group).change
        run = None
        if length is not None:
            stop = self.now + skew
            run = stop - max(0.0, min(length, self.now - task.since)), stop
        message = f"message {next(self._numbers)}" if outcome == "erred" else ""
        if outcome != "completed":
            change.last_event = self.now
        if run:
            change.hull(*run)
            change.workers[worker] = change.workers.get(worker, 0.0) + run[1] - run[0]
            group.durations["compute"] += round((run[1] - run[0]) * 1e6)
        change.picks = change.picks or Picks()
        if outcome == "erred":
            change.picks.add_erred(self._run(group, run, message))
            change.error = change.error or FirstError("ValueError", message)
        elif outcome == "completed" and run:
            described = self._run(group, run)
            self.touch(group).picks.add_slow(described)
            change.picks.add_slow(described)
        change.active = True
        self._count(task, outcome, run, message, for_good=for_good)
        if task.provisional:
            task.provisional = False
            self._count(task, "recomputed")
        goes_on = outcome in AGAIN and not for_good
        self.move(task, {"completed": "memory"}.get(outcome, "waiting" if goes_on else "gone"))
        if not task.is_unfinished:
            task.requesting = ()

    def make_span(self, task: Task) -> None:
        """A worker makes the span of a run, or of a call to an actor."""
        group = task.group
        self.parents.add(task.parent)
        self.worker_spans.append(WorkerSpan(group.span_id, group.name, group.name.partition("-")[0], *task.parent))

    def _parent(self, group: Group) -> tuple[int, int]:
        """What a worker computes, or the scheduler writes into a new task."""
        info = self.spans[group.span_id]
        ids = [info.id]
        while (above := self.spans[ids[0]].parent_id) is not None:
            ids.insert(0, above)
        origin = origin_of(ids)
        at = self.span_tree.parent_segment(info.id, ids[0], info.enqueued) if self.span_tree else None
        if at:
            return origin.trace_id(at[0]), segment_id(info.id, at[1])
        return origin.trace_id(), group_id(info.id, group.name, 0)

    def release(self, task: Task) -> None:
        """Nobody needs the result any more that was to be computed again."""
        task.provisional = False
        self.move(task, "gone")
        task.requesting = ()

    def scatter(self, group: Group, tasks: int, nbytes: int) -> None:
        """Data appears without a run, or grows."""
        group.totals.update(tasks=tasks, nbytes=nbytes)
        self.touch(group)

    def lose_result(self, task: Task, state: str) -> None:
        """Its worker left."""
        task.provisional = True
        self.move(task, state)

    def _count(
        self,
        task: Task,
        outcome: str,
        run: tuple[float, float] | None = None,
        message: str = "",
        *,
        for_good: bool = False,
    ) -> None:
        latch = self.touch(task.group)
        latch.change.count(outcome)
        latch.change.lost_for_good += for_good
        latch.messages.update([message] if message else [])
        error = FirstError("ValueError", message) if message else None
        for span_id in task.requesting if outcome != "recomputed" else ():
            claim = self._claim(span_id, task.group.span_id)
            claim.count(outcome)
            claim.lost_for_good += for_good
            if run:
                claim.hull(*run)
            if outcome != "completed":
                claim.last_event = self.now
            claim.error = claim.error or error

    def _run(self, group: Group, run: tuple[float, float] | None, message: str = "") -> TaskRun:
        number = next(self._numbers)
        start, stop = run or (self.now, self.now)
        error = TaskError("ValueError", message, "") if message else None
        unknown = (None,) * 5
        return TaskRun(f"key {number}", group.name, group.name, number, start, stop, stop - start, {}, *unknown, error)

    def touch(self, group: Group) -> Latch:
        """Have it looked at."""
        latch = self.inbox.get(group)
        if latch is None:
            latch = self.inbox[group] = Latch(Change(self.now))
        return latch

    def _claim(self, requesting: str, owning: str) -> Claim:
        return self.claims.setdefault((requesting, owning), Claim(requesting, owning, self.now))

    # What is told

    def tell(self, span_tree: SpanTree, account: Callable[[str], Account], meanwhile: Callable[[], None]) -> bool:
        """Report everything, in the order of a sweep; things happen meanwhile. Return whether any group had changed."""
        inbox, self.inbox = self.inbox, {}
        claims, self.claims = self.claims, {}
        graphs, self.graphs = self.graphs, []
        metrics, self.metrics = self.metrics, {}
        worker_spans, self.worker_spans = self.worker_spans, []
        meanwhile()
        for graph in graphs:
            self._learn(span_tree, graph.span_id)
            span_tree.add_graph(graph, self.now)
            told = account(graph.span_id)
            told.graph_seconds += graph.seconds
            told.graphs.update([graph.failure] if graph.failure else [])
        for group, latch in inbox.items():
            self._learn(span_tree, group.span_id)
            self._complete(group, latch.change)
            told = account(group.span_id)
            told.numbers.update(numbers(latch.change))
            told.groups.update(() if latch.change.is_empty else [group.name])
            told.messages |= latch.messages
            ran = latch.change.run_stop > latch.change.run_start
            span_tree.add_change(latch.change, self.now)
            self._check_picks(span_tree, group, latch)
            self._expect(span_tree, group.span_id, latch.change.load, ran)
        for made in worker_spans:
            self._learn(span_tree, made.span_id)
            span_tree.add_worker_span(made, self.now)
        for claim in claims.values():
            self._learn(span_tree, claim.requesting, claim.owning)
            told = account(claim.requesting)
            told.claims[claim.requesting, claim.owning].update(numbers(claim))
            told.messages.update([claim.error.message] if claim.error else [])
            ran = claim.run_stop > claim.run_start
            span_tree.add_claim(claim, self.now)
            self._expect(span_tree, claim.requesting, claim.load, ran)
        for span_id, values in metrics.items():
            self._learn(span_tree, span_id)
            for key, value in values.items():
                account(span_id).metrics[without_prefix(key)] += value
            span_tree.add_metrics(span_id, dict(values), self.now)
        return bool(inbox)

    def _check_picks(self, span_tree: SpanTree, group: Group, latch: Latch) -> None:
        """Whatever was not told of: the slowest runs of the group are those that they would be."""
        ledger = span_tree.forest.nodes[group.span_id].ledger
        counted = ledger.groups.get(group.name) if ledger else None
        if counted:
            picks = self.picks.setdefault(counted, Picks())
            picks.add(latch.picks)
            got = counted.picks.slowest if counted.picks else []
            assert [run.seconds for run in got] == [run.seconds for run in picks.slowest]

    def _complete(self, group: Group, change: Change) -> None:
        self._name(group, change)
        change.dependencies = group.dependencies
        new = Counter(group.totals)
        new.subtract(group.told)
        change.tasks, change.nbytes, group.told = new["tasks"], new["nbytes"], Counter(group.totals)
        change.durations = dict(group.durations - group.told_durations)
        group.told_durations = Counter(group.durations)
        load = group.load()
        change.load, change.unfinished, group.told_load = load.minus(group.told_load), load.unfinished, load

    @staticmethod
    def _name(group: Group, change: Change) -> None:
        change.span_id, change.name, change.prefix = group.span_id, group.name, group.name.partition("-")[0]

    def _expect(self, span_tree: SpanTree, span_id: str, load: Load, ran: bool) -> None:
        self.unfinished[span_id] += load.unfinished
        segment = span_tree.forest.nodes[span_id].segment
        if segment and segment.id not in self.opened:
            self.opened.add(segment.id)
            assert segment.start <= self.now + 1.0, "begins in the future"  # by more than a clock is adjusted
        if segment and ran and self.now > segment.start:
            self.lasting.add(segment.id)

    def _learn(self, span_tree: SpanTree, *span_ids: str) -> None:
        for span_id in span_ids:
            info = self.spans[span_id]
            if not span_tree.forest.knows(span_id):
                self._learn(span_tree, *filter(None, [info.parent_id]))
                span_tree.add_span(info)
