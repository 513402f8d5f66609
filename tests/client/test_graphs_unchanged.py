"""Whether the client is instrumented or not: the scheduler takes in the same graphs, and the results are the same.

Each warning of Dask's, such as those about annotations, fails these tests as it would any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from operator import add
from typing import Any, NamedTuple

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import GraphNode
from dask.tokenize import tokenize
from distributed import Client, LocalCluster, SchedulerPlugin, span, wait
from support.inside import Person, provider_of

import dask_otel

pytestmark = pytest.mark.slow

#: What the instrumented client adds.
OURS = {"otel", "span"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


#: What differs from one run to the next without us: some keys of Dask's own, addresses.
CHANGES = re.compile(r"(?<=finalize-hlgfinalizecompute-)[0-9a-f]{32}|\b0x[0-9a-f]+|inproc://[\w./]+")


def fixed(value: Any) -> str:
    """The text of something, without what differs from one run to the next."""
    return CHANGES.sub("*", str(value))


def _parts(node: Any) -> Any:
    """All that a task consists of; Dask's own description leaves arguments out."""
    if isinstance(node, GraphNode):
        slots = (name for each in type(node).__mro__ for name in getattr(each, "__slots__", ()))
        return type(node).__name__, {name: _parts(getattr(node, name, None)) for name in slots if name[0] != "_"}
    if isinstance(node, dict):
        return {key: _parts(each) for key, each in node.items()}
    if isinstance(node, (list, tuple)):
        return [_parts(each) for each in node]
    return sorted(map(str, node)) if isinstance(node, (set, frozenset)) else repr(node)


class Task(NamedTuple):
    """What the scheduler has of a task when it has taken it in."""

    key: str
    dependencies: list[str]
    #: The function with its arguments.
    runs: str
    annotations: str
    #: The user's, which is before that of the graph and that within the graph, where a random key can decide.
    priority: float


class Graph(NamedTuple):
    """A graph as the scheduler has taken it in."""

    wanted: list[str]
    tasks: list[Task]


class TakenIn(SchedulerPlugin):
    """Keeps the graphs that the scheduler takes in."""

    name = "taken-in"

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        #: Names of ours among the annotations of each graph.
        self.ours: list[set[str]] = []

    def update_graph(self, scheduler, *, keys, tasks, annotations, priority, **kwargs):
        found = []
        for key in tasks:
            own = {name: by_key[key] for name, by_key in annotations.items() if key in by_key}
            task = scheduler.tasks[key]
            theirs = sorted((name, value) for name, value in own.items() if name not in OURS)
            found.append(
                Task(
                    fixed(key),
                    sorted(fixed(each.key) for each in task.dependencies),
                    fixed(_parts(task.run_spec)),
                    fixed(theirs),
                    priority[key][0],
                )
            )
        self.ours.append(OURS & {name for name, by_key in annotations.items() if by_key})
        self.graphs.append(Graph(sorted(map(fixed, keys)), sorted(found)))


def inc(number: int) -> int:
    return number + 1


def total(numbers: Any) -> int:
    return sum(numbers["all"])


def arrays(client: Client) -> Any:
    """Each block has one dependency, and one that depends on it: which of several Dask fuses is a matter of chance."""
    x = da.ones((60, 60), chunks=20) + 1
    y = x[::2].map_blocks(np.negative).mean(axis=0)
    several = (x + x.T).compute(optimize_graph=False)
    return several, y.compute(), dask.compute(x.sum(), da.arange(60, chunks=20).std()), client.compute(x.max()).result()


def dataframes(client: Client) -> Any:
    frame = dd.from_pandas(pd.DataFrame({"a": np.arange(60) % 7, "b": np.arange(60)}), npartitions=4)
    other = dd.from_pandas(pd.DataFrame({"a": np.arange(7), "c": np.arange(7) * 10}), npartitions=2)
    merged = frame[frame.b > 5].merge(other, on="a", how="left")
    return frame.groupby("a").b.sum().compute(), merged.c.sum().compute(), frame.shuffle("a").b.max().compute()


def bags(client: Client) -> Any:
    bag = db.from_sequence(range(50), npartitions=5).map(inc)
    return bag.filter(lambda number: number % 2).sum().compute(), bag.frequencies().compute(), bag.fold(add).compute()


def delayed(client: Client) -> Any:
    numbers = [dask.delayed(inc, pure=True)(number) for number in range(5)]
    result = dask.delayed(total, pure=True)({"all": numbers})
    others = [dask.delayed(inc, pure=True)(number) for number in range(5, 10)]
    return result.compute(), dask.compute(*others, {"nested": dask.delayed(total, pure=True)({"all": others})})


def futures(client: Client) -> Any:
    one = client.submit(inc, 1)
    mapped = client.map(inc, range(20), batch_size=3)
    nested = client.submit(total, {"all": mapped[:5]}, key="nested", retries=2, priority=7)
    named = client.submit(
        inc, one, key="named", workers=[*client.scheduler_info()["workers"]], allow_other_workers=True
    )
    sums = client.map(add, [one, nested], [named, named], key=["sum-1", "sum-2"])
    return client.gather([one, mapped, nested, named, sums])


def persisted(client: Client) -> Any:
    x = (da.arange(60, chunks=20) + 1).persist()
    wait(x)
    bag = client.persist(db.from_sequence(range(20), npartitions=4).map(inc))
    return (x * 2).sum().compute(), client.submit(total, {"all": client.compute(bag)}, key="total").result()


def graphs_by_hand(client: Client) -> Any:
    return client.get({"x": (inc, 1), "y": (add, "x", "x"), ("z", 0): (inc, "y")}, ["y", ("z", 0)])


def several_collections(client: Client) -> Any:
    """Without a DataFrame, of which Dask warns when it is computed with others."""
    array = da.ones(60, chunks=20)
    bag = db.from_sequence(range(20), npartitions=4)
    return dask.compute(array.sum(), bag.sum(), [dask.delayed(inc, pure=True)(1)])


def annotated(client: Client) -> Any:
    """With a person's own annotations."""
    with dask.annotate(priority=5, retries=2, mine={"a": 1}):
        x = da.ones(60, chunks=20) + 1
    with dask.annotate(resources={}, retries=1):
        return x.sum().compute(optimize_graph=False), client.gather(client.map(inc, range(3), priority=3))


WORK = (arrays, dataframes, bags, delayed, futures, persisted, graphs_by_hand, several_collections, annotated)


@contextmanager
def instrumented() -> Iterator[None]:
    dask_otel.instrument()
    try:
        yield
    finally:
        dask_otel.uninstrument()


def do(work: Callable[[Client], Any], around: AbstractContextManager[Any]) -> tuple[TakenIn, str]:
    """Do some work on a new cluster, and return what the scheduler has taken in and the result."""
    taken_in = TakenIn()
    with (
        LocalCluster(1, processes=False, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        cluster.scheduler.add_plugin(taken_in)
        with around:
            result = work(client)
        assert taken_in.graphs
    return taken_in, tokenize(result)


@cache
def without(work: Callable[[Client], Any]) -> tuple[TakenIn, str]:
    """What the client does that is not instrumented."""
    return do(work, nullcontext())


@pytest.fixture
def person() -> Iterator[Person]:
    person = Person()
    with provider_of(person):
        yield person


def _request(person: Person, patch: pytest.MonkeyPatch) -> AbstractContextManager[Any]:
    return person.provider.get_tracer("test").start_as_current_span("request")


def _batch(person: Person, patch: pytest.MonkeyPatch) -> AbstractContextManager[Any]:
    patch.setenv("TRACEPARENT", TRACEPARENT)
    return nullcontext()


@contextmanager
def _linked(person: Person, patch: pytest.MonkeyPatch) -> Iterator[None]:
    with dask.config.set({"otel.client.context": "link"}), _request(person, patch):
        yield


def _spanned(person: Person, patch: pytest.MonkeyPatch) -> AbstractContextManager[Any]:
    return span("report")


CALLERS = {"request": _request, "batch job": _batch, "linked request": _linked, "Dask span": _spanned}


@pytest.mark.parametrize(
    ("caller", "work"),
    # Dask warns of DataFrames that are made in a Dask span, with or without us.
    [pytest.param(c, w, id=f"{c}-{w.__name__}") for c in CALLERS for w in WORK if (c, w) != ("Dask span", dataframes)],
)
def test_graphs_keys_and_results_are_the_same(work, caller, person, monkeypatch):
    expected, result = without(work)
    with instrumented():
        taken_in, same_result = do(work, CALLERS[caller](person, monkeypatch))
    assert taken_in.graphs == expected.graphs
    assert same_result == result
    # What is compared are graphs of a client that is instrumented, and of one that is not.
    assert taken_in.ours[0] == OURS
    assert all(each in (OURS, set()) for each in taken_in.ours)  # none if all tasks are known already
    assert not any(expected.ours)
