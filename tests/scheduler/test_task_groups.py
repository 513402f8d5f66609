from __future__ import annotations

from distributed.scheduler import TaskGroup, TaskPrefix, TaskState

from dask_otel.scheduler.pace import Clock
from dask_otel.scheduler.task_groups import TaskGroupReader
from dask_otel.spantree.events import Change


def group_of(tasks: int) -> TaskGroup:
    group = TaskGroup("g", TaskPrefix("g"))
    group.span_id = "span"
    for number in range(tasks):
        TaskState(f"g-{number}", None, "released", group, False)
    return group


def reader(registry: dict[str, TaskGroup]) -> TaskGroupReader:
    return TaskGroupReader(registry, Clock())


def counted(groups: TaskGroupReader, group: TaskGroup) -> int:
    change = Change(0.0)
    groups.read_delta(group, change)
    return change.tasks


def test_only_what_is_new_counts():
    group = group_of(3)
    groups = reader({"g": group})
    assert counted(groups, group) == 3
    TaskState("g-new", None, "released", group, False)
    assert counted(groups, group) == 1
    assert counted(groups, group) == 0


def test_a_group_that_is_forgotten_while_a_sweep_runs_is_not_counted_again():
    group = group_of(3)
    registry = {"g": group}
    groups = reader(registry)
    del registry["g"]  # after the sweep took the inbox, before it reads the group
    assert counted(groups, group) == 3
    list(groups.forget_gone([], {group}.__contains__, touch=None))  # hooks have reported that its tasks were forgotten
    assert counted(groups, group) == 0
    list(groups.forget_gone([], set().__contains__, touch=None))
    assert groups.known() == []


def test_learned_numbers_are_the_zero():
    group = group_of(3)
    groups = reader({"g": group})
    assert groups.read_baseline(group).is_empty
    assert counted(groups, group) == 0
