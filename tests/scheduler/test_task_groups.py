from __future__ import annotations

from distributed.scheduler import TaskGroup, TaskPrefix, TaskState

from dask_otel.scheduler.task_groups import Groups
from dask_otel.spantree.events import Change


def group_of(tasks: int) -> TaskGroup:
    group = TaskGroup("g", TaskPrefix("g"))
    group.span_id = "span"
    for number in range(tasks):
        TaskState(f"g-{number}", None, "released", group, False)
    return group


def counted(groups: Groups, group: TaskGroup) -> int:
    change = Change(0.0)
    groups.complete(group, change)
    return change.tasks


def test_only_what_is_new_counts():
    group = group_of(3)
    groups = Groups({"g": group})
    assert counted(groups, group) == 3
    TaskState("g-new", None, "released", group, False)
    assert counted(groups, group) == 1
    assert counted(groups, group) == 0


def test_a_group_that_is_forgotten_while_a_sweep_runs_is_not_counted_again():
    group = group_of(3)
    registry = {"g": group}
    groups = Groups(registry)
    del registry["g"]  # after the sweep drained the latches, before it looks at the group
    assert counted(groups, group) == 3
    list(groups.forget({group}.__contains__, [], touch=None))  # the hooks have latched that its tasks were forgotten
    assert counted(groups, group) == 0
    list(groups.forget(set().__contains__, [], touch=None))
    assert groups.known() == []


def test_learned_numbers_are_the_zero():
    group = group_of(3)
    groups = Groups({"g": group})
    assert groups.learn(group).is_empty
    assert counted(groups, group) == 0
