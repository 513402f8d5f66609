"""What holds of a scheduler's task groups and prefixes at any time, which Dask's own validation does not look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from distributed import Scheduler

__all__ = ["check_groups"]


def check_groups(scheduler: Scheduler) -> None:
    """Groups and prefixes have the tasks, counts and dependencies that they should have."""
    tasks: dict[Any, list[Any]] = defaultdict(list)
    for task in scheduler.tasks.values():
        tasks[task.group].append(task)
    assert tasks.keys() == set(scheduler.task_groups.values()), "groups without tasks, or not registered"
    sums: dict[Any, Counter[str]] = defaultdict(Counter)
    for name, group in scheduler.task_groups.items():
        assert group.name == name
        assert group in group.prefix.groups, group
        assert scheduler.task_prefixes[group.prefix.name] is group.prefix, group
        states = Counter(task.state for task in tasks[group])
        counts = +Counter(group.states)
        gone = counts.pop("forgotten", 0)
        assert counts == states, (group, states)
        assert len(group) == sum(states.values()) + gone, group
        dependencies = {dependency.group for task in tasks[group] for dependency in task.dependencies}
        # Dask does not take away what only tasks depended on that are gone.
        assert dependencies <= group.dependencies, (group, dependencies - group.dependencies)
        lost = any(task.has_lost_dependencies for task in tasks[group])
        assert gone or lost or dependencies == group.dependencies, (group, group.dependencies - dependencies)
        assert all(task.prefix is group.prefix for task in tasks[group]), group
        sums[group.prefix].update(group.states)
    for prefix in scheduler.task_prefixes.values():
        assert set(prefix.groups) <= tasks.keys(), prefix
        assert +Counter(prefix.states) == +sums[prefix], prefix
        assert len(prefix) == sums[prefix].total(), prefix
    for computation in scheduler.computations:
        assert all(len(group) for group in computation.groups), computation
