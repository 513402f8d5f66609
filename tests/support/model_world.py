"""A cluster, its span tree, and an oracle for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from unittest import mock

from dask_otel.spantree.ledger import Budget
from dask_otel.spantree.lifecycle import SpanTree
from dask_otel.spantree.to_records import Level, SpanTreeSettings

from .model_cluster import Cluster
from .model_oracle import Oracle

#: What a trace may hold: so little that it is used up.
BUDGET = Budget(0, groups=6, erred=3, slowest=4)


def _nothing() -> None:
    pass


class World:
    """Does what ``scheduler/sweep.py`` does, and has everything checked that comes out."""

    def __init__(self, cluster: Cluster, max_groups: int, level: Level, times: Mapping[str, float]) -> None:
        self.cluster = cluster
        self.span_tree = SpanTree(cluster.now, 2, SpanTreeSettings(max_groups=max_groups, level=level, **times))
        cluster.span_tree = self.span_tree
        self.oracle = Oracle(cluster, max_groups, BUDGET, level)
        self.workers: set[str] = set()
        #: Workers that joined or left since the last sweep; of one that left, how many heartbeats came before.
        self.events: list[tuple[str, str, int]] = []
        #: Number of heartbeats by worker since the last sweep.
        self.heartbeats: Counter[str] = Counter()
        #: No check has failed yet.
        self.intact = True
        budget = partial(Budget, groups=BUDGET.groups, erred=BUDGET.erred, slowest=BUDGET.slowest)
        self._patches = (
            mock.patch("dask_otel.spantree.tree.Budget", budget),
            mock.patch("dask_otel.spantree.events.MAX_SLOWEST", 1),
            mock.patch("dask_otel.spantree.to_records.FOLDED_AT_ONCE", 1),
            mock.patch("dask_otel.spantree.lifecycle.LOOKS_AT_ONCE", 1),
        )
        for patch in self._patches:
            patch.start()

    def worker(self, how: str, worker: str = "") -> None:
        """A worker joins or leaves, or all beat."""
        if how == "beats":
            self.heartbeats.update(sorted(self.workers))
            self.oracle.beats += 1
        elif how == "joins":
            self.events.append(("joined", worker, 0))
            self.workers.add(worker)
        else:
            self.events.append(("left", worker, self.heartbeats.pop(worker, 0)))
            self.workers.discard(worker)
            self.oracle.all_stay = False
        self.span_tree.threads.add(self.cluster.now, 2 * len(self.workers))

    def set_clock_back(self, seconds: float) -> None:
        """The clock of dask-otel goes on; what it reports is in the system's new time."""
        self.cluster.offset += seconds
        self.oracle.steady = False

    def sweep(
        self,
        busy: bool,
        *,
        meanwhile: Callable[[], None] = _nothing,
        after: int = -1,
        then: Callable[[], None] = _nothing,
    ) -> None:
        """While one is on its way, tasks go on; between its steps, workers come and go."""
        self.intact = False  # unless it gets to the end
        events, self.events = self.events, []
        now = self.cluster.now
        for kind, worker, before in events:
            if before:
                self.span_tree.add_heartbeats([(worker, before)], now)
            for _ in self.span_tree.add_worker_event(kind, worker):
                pass
        self.span_tree.add_heartbeats(self.heartbeats.items(), now)
        self.heartbeats.clear()
        if self.cluster.tell(self.span_tree, self.oracle.account, meanwhile):
            self.oracle.beats = 0
        for step, record in enumerate(self.span_tree.advance(now, self.cluster.offset, taking_in_graph=busy)):
            self.oracle.take(record)
            if step == after:
                then()
        self.intact = True

    def forget(self, root_id: str) -> bool:
        """Forget a root, as ``scheduler/forgetting.py`` does, if it may be; return whether it was."""
        ids, tree = self.cluster.below(root_id), self.span_tree
        if not tree.rests_since(root_id) or not self.cluster.is_over(ids):
            return False
        if not tree.is_complete(ids) or tree.send_held(ids, self.cluster.now):
            return False
        tree.forget(reversed(ids))
        assert not any(map(tree.forest.knows, ids))
        self.oracle.forget(ids)
        self.cluster.forget(ids)
        self.oracle.begin_again(ids)
        return True

    def close(self) -> None:
        """The cluster closes."""
        try:
            if self.intact:
                self.sweep(True)
                for record in self.span_tree.close(self.cluster.now, self.cluster.offset):
                    self.oracle.take(record)
                self.oracle.check_end(self.span_tree)
        finally:
            for patch in self._patches:
                patch.stop()
