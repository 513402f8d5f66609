"""What must hold of a scheduler's task groups, whoever made them; ``validate=True`` checks none of it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from distributed import Scheduler

from dask_otel.cli.receiver import Span


def check_groups(scheduler: Scheduler, *, dependencies_too: bool = True) -> None:
    """Check that groups, prefixes, computations and spans agree with each other, and with the tasks."""
    tasks: defaultdict[Any, list[Any]] = defaultdict(list)
    for task in scheduler.tasks.values():
        tasks[task.group].append(task)
        assert scheduler.task_groups.get(task.group.name) is task.group, task
        assert task.prefix is task.group.prefix
        assert task.prefix is scheduler.task_prefixes[task.prefix.name]
    of_prefix: defaultdict[Any, list[Any]] = defaultdict(list)
    for name, group in scheduler.task_groups.items():
        of_prefix[group.prefix].append(group)
        assert group.name == name
        live = Counter(task.state for task in tasks[group])
        assert live, f"{group} is registered, and has no tasks"
        assert live == +Counter({**group.states, "forgotten": 0}), group
        assert len(group) == sum(group.states.values())
        dependencies = {dependency.group for task in tasks[group] for dependency in task.dependencies}
        lost = any(task.has_lost_dependencies for task in tasks[group])
        if not dependencies_too:
            pass
        elif group.states["forgotten"] or lost:  # the group keeps what it depended on
            assert dependencies <= group.dependencies, group
        else:
            assert dependencies == group.dependencies, group
        if group.span_id:
            assert group in scheduler.extensions["spans"].spans[group.span_id].groups
    for prefix in scheduler.task_prefixes.values():
        groups = of_prefix[prefix]
        assert set(prefix.groups) == set(groups)
        assert len(prefix) == sum(map(len, groups))
        assert +Counter(prefix.states) == sum((+Counter(group.states) for group in groups), Counter())
        assert prefix.nbytes_total == sum(group.nbytes_total for group in groups)
    if len(scheduler.computations) < scheduler.computations.maxlen:
        computed = {group for computation in scheduler.computations for group in computation.groups}
        for group, members in tasks.items():  # one that scattered data made is in none
            scattered = group.states["forgotten"] or any(task.run_spec is None for task in members)
            assert group in computed or scattered, group
    for computation in scheduler.computations:
        assert all(len(group) for group in computation.groups)
    for span in scheduler.extensions["spans"].spans.values():
        assert all(group.span_id == span.id and len(group) for group in span.groups)


def check_spans(scheduler: Scheduler, spans: Iterable[Span]) -> None:
    """Check that the segments of each Dask span add up to what Dask's own ``Span`` has."""
    segments: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.attributes["dask.kind"] == "span":
            segments[span.attributes["dask.span.id"]].append(span)
    for id_, of_dask in scheduler.extensions["spans"].spans.items():
        metrics = {key: n for key, n in of_dask.cumulative_worker_metrics.items() if "idle or other spans" not in key}
        expected = _sum(
            [
                {"dask.task.count": sum(of_dask.states.values()), "dask.output.size": of_dask.nbytes_total},
                {f"dask.duration.{_clean(action)}": n for action, n in of_dask.all_durations.items()},
                *({f"dask.execute.{_clean(key[2])}.{key[3]}": n} for key, n in metrics.items() if key[0] == "execute"),
                *(
                    {f"dask.p2p.{_clean(key[1])}.{_clean(key[2])}.{key[3]}": n}
                    for key, n in metrics.items()
                    if key[0] == "p2p"
                ),
            ]
        )
        if not segments[id_]:  # scattered data is no trace
            assert not of_dask.all_durations
            continue
        found = _sum(segment.attributes for segment in segments[id_])
        expected = {name: number for name, number in expected.items() if number}
        assert {name: found.get(name) for name in expected} == pytest.approx(expected, abs=2e-6), of_dask
        more = {name for name in found if name.startswith(("dask.duration.", "dask.execute.", "dask.p2p."))}
        assert more <= set(expected), of_dask


def _sum(numbers: Iterable[Any]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for each in numbers:
        total.update({name: n for name, n in each.items() if isinstance(n, (int, float))})
    return dict(total)


def _clean(name: str) -> str:
    return re.sub(r"\W", "_", name.lower())
