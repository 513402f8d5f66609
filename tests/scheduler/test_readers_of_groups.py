"""Fails, with its name, when a new ``distributed`` has a function that reads task groups which nobody has looked at.

``scheduler.split_groups`` answers for split groups in the two functions that decide by group. All others were read, and
may see the parts.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import distributed
import pytest
from distributed.scheduler import Scheduler

#: Only show what others decide.
SHOWN = ("dashboard", "diagnostics", "http")
#: How code gets to a group, or what only a group has.
NAMES = {"group", "group_key", "task_groups", "groups", "_groups", "last_worker", "last_worker_tasks_left"}

#: These decide which tasks run where: they see whole groups.
DECISIONS = (
    "scheduler.SchedulerState.is_rootish",
    "scheduler.SchedulerState.decide_worker_rootish_queuing_disabled",
)
#: What all others read groups for.
READERS = dict.fromkeys(DECISIONS, "decides") | {
    "scheduler.Computation.__init__": "makes the set of its groups",
    "scheduler.Computation._repr_html_": "shows the number of groups",
    "scheduler.Computation.states": "sums over groups: the same for parts",
    "scheduler.Computation.stop": "the latest of all groups: the same for parts",
    "scheduler.KilledWorker.__str__": "another last_worker",
    "scheduler.Scheduler._generate_taskstates": "logs one warning for each group: perhaps one for each part",
    "scheduler.Scheduler._to_dict": "a dump",
    "scheduler.SchedulerState.__init__": "makes the mapping",
    "scheduler.SchedulerState.__pdict__": "a dump",
    "scheduler.SchedulerState._add_to_memory": "counts types of results",
    "scheduler.SchedulerState._clear_task_state": "forgets all",
    "scheduler.SchedulerState._task_to_msg": "sends the span that counts a task",
    "scheduler.SchedulerState._transition": "forgets groups, by name",
    "scheduler.SchedulerState._transition_processing_memory": "counts durations",
    "scheduler.SchedulerState.is_idle": "whether all groups are done: the same for parts",
    "scheduler.SchedulerState.new_task": "finds or makes the group: new tasks enter the original, then move",
    "scheduler.TaskGroup.__init__": "makes it",
    "scheduler.TaskGroup.add": "files a task",
    "scheduler.TaskPrefix.__init__": "makes the collection of its groups",
    "scheduler.TaskPrefix.active": "sums over groups, shown only; not in new versions",
    "scheduler.TaskPrefix.add_group": "called for parts, too",
    "scheduler.TaskPrefix.groups": "lists them",
    "scheduler.TaskPrefix.remove_group": "called for parts, too",
    "scheduler.TaskState.__init__": "enters the group",
    "scheduler.TaskState.add_dependency": "notes what the group depends on; corrected when tasks move",
    "scheduler.TaskState.group_key": "the name",
    "scheduler.TaskState.prefix": "the same for parts",
    "scheduler.TaskState.set_nbytes": "counts bytes",
    "scheduler.TaskState.state": "counts states",
    "shuffle._scheduler_plugin.ShuffleSchedulerPlugin._create": "sends the span that counts a task",
    "spans.Span.__init__": "makes the set of its groups",
    "spans.Span.all_durations": "sums over groups",
    "spans.Span.done": "whether all groups are done",
    "spans.Span.duration": "sums over groups",
    "spans.Span.nbytes_total": "sums over groups",
    "spans.Span.start": "the earliest of all groups",
    "spans.Span.states": "sums over groups",
    "spans.Span.stop": "the latest of all groups",
    "spans.Span.traverse_groups": "lists them",
    "spans.SpansSchedulerExtension.observe_tasks": "files groups in spans, once tasks have moved",
}
#: Removed from ``distributed`` since the oldest version that is supported.
GONE = {"scheduler.TaskPrefix.active"}


def readers() -> dict[str, set[str]]:
    """Functions of ``distributed`` that read groups, and the names by which they do."""
    root = Path(distributed.__file__).parent
    found: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in SHOWN and "tests" not in parts:
            _read(ast.parse(path.read_text()), ".".join(parts), found, is_function=False)
    return found


def _read(node: ast.AST, name: str, found: dict[str, set[str]], *, is_function: bool) -> None:
    # ``match.group()`` is another one.
    calls = {id(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_function:
            _read(child, f"{name}.{child.name}", found, is_function=True)
        elif isinstance(child, ast.ClassDef) and not is_function:
            _read(child, f"{name}.{child.name}", found, is_function=False)
        elif is_function:
            for each in ast.walk(child):
                if isinstance(each, ast.Attribute) and each.attr in NAMES and id(each) not in calls:
                    found.setdefault(name, set()).add(each.attr)
                elif isinstance(each, ast.Name) and each.id in ("tg", "TaskGroup"):
                    found.setdefault(name, set()).add(each.id)


def test_every_reader_of_groups_has_been_looked_at():
    found = readers()
    new = {name: names for name, names in found.items() if name not in READERS}
    assert not new, f"do these decide by group? {new}"
    assert READERS.keys() - found.keys() <= GONE


@pytest.mark.parametrize("name", DECISIONS)
def test_what_decisions_read_of_a_group(name):
    source = textwrap.dedent(inspect.getsource(getattr(Scheduler, name.rpartition(".")[2])))
    nodes = list(ast.walk(ast.parse(source)))
    of_group = {each.attr for each in nodes if isinstance(each, ast.Attribute) and _is(each.value, "tg")}
    assert of_group <= {"dependencies", "last_worker", "last_worker_tasks_left", "states"}
    states = [
        each.slice.value
        for each in nodes
        if isinstance(each, ast.Subscript) and isinstance(each.value, ast.Attribute) and each.value.attr == "states"
    ]
    # The only question about states that ``WholeGroup`` answers.
    assert states in ([], ["released", "waiting"])
    assert ('tg.states["released"] + tg.states["waiting"] > 1' in source) == bool(states)
    others = {each.attr for each in nodes if isinstance(each, ast.Attribute) and _is(each.value, "ts")}
    assert others <= {
        "group",
        "resource_restrictions",
        "worker_restrictions",
        "host_restrictions",
        "run_spec",
        "_queueable",
    }


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
