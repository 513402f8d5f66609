"""Splits task groups that tasks of several spans would share, so that each task counts where it was requested.

Dask keeps the tasks of one name in one ``TaskGroup``, and a group in one span, that of its first task. So the second
span around ``client.map(f, ...)`` would have no tasks. Where a graph is taken in, each new task whose requested span is
not that of its group moves to a group of its own, a *part*, before Dask files it. From then on Dask itself counts,
times and measures the task in the right span.

Scheduling must not notice. Dask decides by the size and the dependencies of a group which tasks are root-like, and
without queueing, which worker they run on. For these two decisions a task's group is the *whole* group, as Dask alone
would have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial, wraps
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from distributed.scheduler import TaskGroup

from ..identity import segment_id
from ..patching import wrap
from ..safety import Safety
from .inbox import NOBODY, RequestedSpan

__all__ = ["GroupSplitter", "Misplaced", "splitter_of"]

#: Characters of a span's tags in the name of a part.
MAX_TAGS = 80
#: Groups that are remembered before those are looked for that nothing refers to any more.
MANY = 1000
#: For the log, where something failed.
WHERE = "splitting of task groups"


class Misplaced(NamedTuple):
    """New tasks of one group that request another span than that of their group."""

    group: Any
    #: Id of the requested span, as Dask has it, or ``NOBODY``.
    span_id: Any
    #: None if no span was requested.
    requested: RequestedSpan | None
    tasks: list[Any]


class WholeGroup:
    """What a ``TaskGroup`` would be had it not been split, for what Dask's decisions read of it.

    Also stands for a group that is not split but depends on one that is.
    """

    __slots__ = (
        "deciding",
        "dependencies",
        "elsewhere",
        "last_worker",
        "last_worker_tasks_left",
        "numbers",
        "original",
        "parts",
    )

    def __init__(self, original: Any) -> None:
        #: The latest group of this name that Dask made; new tasks enter it before they move.
        self.original = original
        #: By requested span.
        self.parts: dict[Any, Any] = {}
        #: Number of tasks that have ever been in other groups than ``original``.
        self.elsewhere = 0
        #: How many parts had the same name.
        self.numbers: dict[str, int] = {}
        self.dependencies: set[Any] = set(original.dependencies)
        self.last_worker = original.last_worker
        self.last_worker_tasks_left = original.last_worker_tasks_left
        #: The group of the task that Dask decides about.
        self.deciding = original

    def __len__(self) -> int:
        return int(self.original._size) + self.elsewhere

    @property
    def name(self) -> Any:
        """As of the ``TaskGroup``."""
        return self.original.name

    @property
    def prefix(self) -> Any:
        """As of the ``TaskGroup``."""
        return self.original.prefix

    @property
    def states(self) -> dict[str, int]:
        """How many tasks are still to run, as far as Dask asks: whether it is more than one.

        There may be a thousand parts, so those are only looked at if the prefix has such tasks: first the latest, which
        usually run last.
        """
        prefix = self.prefix.states
        if prefix["released"] + prefix["waiting"] <= 1:
            return {"released": 0, "waiting": prefix["released"] + prefix["waiting"]}
        total = 0
        for group in chain((self.deciding, self.original), reversed(self.parts.values())):
            if group is not self.deciding or not total:
                total += group.states["released"] + group.states["waiting"]
                if total > 1:
                    break
        return {"released": 0, "waiting": total}


class GroupSplitter:
    """Splits the groups of one scheduler, and answers for the groups that are split."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._safety = Safety()
        self._shows_tags = True
        self._splits = False
        #: Keys of tasks that the graph which is being taken in has made.
        self.new: set[Any] = set()  # stays the same object, as ``_before`` does
        #: What the groups of these tasks depended on before.
        self._before: dict[Any, set[Any]] = {}
        self._computation: Any = None
        #: Whole groups by name, and by each ``TaskGroup`` that is or was part of one.
        self._by_name: dict[Any, WholeGroup] = {}
        self._members: dict[Any, WholeGroup] = {}
        #: For what Dask takes a group in its decisions, until the next graph; None: for itself.
        self._stand_ins: dict[Any, WholeGroup | None] = {}
        self._purge_at = MANY
        #: Undo the wrappers: of ``new_task``, and of decisions.
        self._stop_noting: list[Callable[[], None]] = []
        self._stop_answering: list[Callable[[], None]] = []

    def install(self, safety: Safety, *, shows_tags: bool) -> None:
        """Begin to note which tasks are new.

        Parameters
        ----------
        shows_tags
            Whether the name of a part may contain the tags of its span.
        """
        self._safety, self._shows_tags, self._splits = safety, shows_tags, True
        if not self._stop_noting:
            self._stop_noting = [wrap(self._scheduler, "new_task", self._noting(self._scheduler.new_task))]

    def remove(self) -> None:
        """Split no more. Groups that are split stay so, hence Dask's decisions about them keep their wrappers."""
        self._splits = False
        self.taken_in()
        if not any(map(self._is_alive, self._members)) and self._members.keys().isdisjoint(self._dependencies()):
            for stop in (*self._stop_noting, *self._stop_answering):
                stop()
            self._stop_noting, self._stop_answering = [], []

    def is_part(self, group: Any, span_id: Any) -> bool:
        """Whether there is already another group for tasks of a group that a span requests."""
        whole = self._by_name.get(group.name) if self._by_name else None
        part = whole.parts.get(span_id) if whole is not None else None
        return part is not None and part is not group and self._is_alive(part)

    def is_part_of(self, group: Any) -> bool:
        """Whether a group was split from another one, and so has another name than its tasks' keys say."""
        whole = self._members.get(group) if self._members else None
        return whole is not None and whole.original is not group

    def split(self, misplaced: Collection[Misplaced], touched: Iterable[Any]) -> list[Misplaced]:
        """Move tasks to parts of their groups; to be called for each graph, before Dask files its tasks.

        Parameters
        ----------
        touched
            All tasks of the graph and their inputs.

        Returns
        -------
        Those that stay where they are, because something failed, or Dask cannot make their span.
        """
        stay = []
        moved = []
        for each in misplaced:
            part = None
            try:
                if not _can_be_made(each):
                    stay.append(each)
                    continue
                part = self._part(each)
                _move(each.tasks, each.group, part)
                self._members[part].elsewhere += len(each.tasks)
                moved.append(each)
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self._safety.caught(WHERE, error)
                stay.append(each)
            with self._safety.guard(WHERE):
                self._drop_if_empty(part)
        with self._safety.guard(WHERE):
            self._learn_dependencies()
        if moved:
            with self._safety.guard(WHERE):
                self._correct_dependencies(moved, touched)
            for group in {each.group for each in moved}:
                with self._safety.guard(WHERE):
                    self._drop_if_empty(group)
        return stay

    def taken_in(self) -> None:
        """Forget which tasks are new: they have been filed."""
        self.new.clear()
        self._before.clear()
        self._computation = None
        self._stand_ins.clear()

    # Bookkeeping

    def _wrap(self, **wrappers: Callable[..., Any]) -> list[Callable[[], None]]:
        """Wrap methods of the scheduler; each wrapper gets first what it wraps, which may be another wrapper."""
        return [
            wrap(self._scheduler, name, partial(wrapper, getattr(self._scheduler, name)))
            for name, wrapper in wrappers.items()
        ]

    def _noting(self, new_task: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a scheduler's method that makes each task; what it needs are its variables, to be fast."""
        new, before = self.new, self._before

        @wraps(new_task)
        def noted(key: Any, *args: Any, **details: Any) -> Any:
            task = new_task(key, *args, **details)
            try:
                if task.group in before and details.get("computation") is not None:  # nearly all tasks
                    new.add(key)
                else:
                    self._note(task, details.get("computation"))
            except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                self._safety.caught("new_task hook", error)
            return task

        return noted

    def _note(self, task: Any, computation: Any) -> None:
        group = task.group
        if self._splits and computation is not None:  # else it is not of a graph
            self.new.add(task.key)
            if group in self._before:
                return
            self._before[group] = set(group.dependencies)
            self._computation = computation
        self._stand_ins.clear()
        if self._by_name:  # Dask may have made a group again of which parts are left
            self._join(group)

    def _is_alive(self, group: Any) -> bool:
        return self._scheduler.task_groups.get(group.name) is group

    def _join(self, group: Any) -> WholeGroup | None:
        """Return the whole that a group belongs to, if there is one; the group may be new in it."""
        whole = self._by_name.get(group.name)
        if whole is not None and whole.original is not group:
            if not any(map(self._is_alive, whole.parts.values())):  # Dask would have forgotten it
                del self._by_name[group.name]
                return None
            whole.elsewhere += len(whole.original)
            whole.original = group
            self._add_member(group, whole)
        return whole

    def _add_member(self, group: Any, whole: WholeGroup) -> None:
        self._members[group] = whole
        if len(self._members) >= self._purge_at:
            with self._safety.guard(WHERE):
                self._purge()

    def _part(self, of: Misplaced) -> Any:
        """Return the group for tasks of a group that a span requests; make it if there is none."""
        group = of.group
        whole = self._join(group)
        if whole is None:
            if group in self._members:
                raise ValueError("the name of a part is the name of a group of Dask's, too")
            self._answer_for_wholes()
            whole = self._by_name[group.name] = WholeGroup(group)
            self._add_member(group, whole)
        part = whole.parts.get(of.span_id)
        if part is None or not self._is_alive(part):
            part = TaskGroup(self._name(whole, of), group.prefix)
            self._scheduler.task_groups[part.name] = part
            if self._computation is not None:
                self._computation.groups.add(part)
            whole.parts[of.span_id] = part
            self._add_member(part, whole)
        return part

    def _name(self, whole: WholeGroup, of: Misplaced) -> str:
        """Name a part after its span; Dask finds groups by name, so no two may have the same."""
        if of.requested is None:
            label = "default"
        elif self._shows_tags:
            label = "".join(char if char.isprintable() else "?" for char in " / ".join(map(str, of.requested.tags)))
            label = label if len(label) <= MAX_TAGS else f"{label[:MAX_TAGS]}…"
        else:
            label = f"span {segment_id(str(of.span_id), 0) >> 32:08x}"
        name = numbered = f"{whole.name} @ {label}"
        while numbered in self._scheduler.task_groups:
            number = whole.numbers[name] = whole.numbers.get(name, 1) + 1
            numbered = f"{name} #{number}"
        return numbered

    def _learn_dependencies(self) -> None:
        """Have whole groups depend on what Dask noted while all new tasks were in one group."""
        if self._members:
            for group in self._before:
                if group in self._members:
                    self._members[group].dependencies |= group.dependencies

    def _correct_dependencies(self, moved: Iterable[Misplaced], touched: Iterable[Any]) -> None:
        """Make groups depend on what their tasks depend on: Dask noted that while all were in one group."""
        stale: dict[Any, set[Any]] = {}
        for each in moved:
            groups = {each.group, each.tasks[0].group}
            for task in each.tasks:
                for dependent in task.dependents:
                    groups.add(dependent.group)
            for group in groups:
                if group not in stale:
                    stale[group] = self._before.get(group, group.dependencies)
        for task in touched:
            if task.dependencies and task.group in stale:
                stale[task.group].update([dependency.group for dependency in task.dependencies])
        for group, dependencies in stale.items():
            group.dependencies = dependencies

    def _drop_if_empty(self, group: Any) -> None:
        if group is not None and not len(group) and self._is_alive(group):
            group.prefix.remove_group(group)
            del self._scheduler.task_groups[group.name]
            if self._computation is not None:
                self._computation.groups.discard(group)

    def _dependencies(self) -> set[Any]:
        """Return all groups that a group of the scheduler depends on."""
        return {each for group in self._scheduler.task_groups.values() for each in group.dependencies}

    def _purge(self) -> None:
        """Forget groups that Dask has forgotten and that no group depends on."""
        for whole in self._by_name.values():
            whole.parts = {span_id: part for span_id, part in whole.parts.items() if self._is_alive(part)}
            whole.dependencies = self._as_wholes(whole.dependencies)
            whole.numbers = {}
        needed = self._dependencies()
        for whole in self._by_name.values():  # its original may be gone, and is still read
            needed |= whole.original.dependencies
        self._members = {
            group: whole for group, whole in self._members.items() if group in needed or self._is_alive(group)
        }
        self._by_name = {
            name: whole for name, whole in self._by_name.items() if whole.parts or self._is_alive(whole.original)
        }
        self._purge_at = max(MANY, 2 * len(self._members))

    # Dask's decisions

    def _answer_for_wholes(self) -> None:
        """Wrap the methods that decide by group, once there is a group that has been split."""
        if not self._stop_answering:
            self._stop_answering = self._wrap(
                is_rootish=self._is_rootish, decide_worker_rootish_queuing_disabled=self._decide_worker
            )

    def _is_rootish(self, is_rootish: Callable[..., Any], ts: Any, **details: Any) -> Any:
        group = ts.group
        whole = self._stand_ins[group] if group in self._stand_ins else self._stand_in(group)
        return is_rootish(ts, **details) if whole is None else self._decide_as(whole, is_rootish, ts, **details)

    def _decide_worker(self, decide_worker: Callable[..., Any], ts: Any, **details: Any) -> Any:
        group = ts.group
        whole = self._members.get(group)
        if whole is None or self._stand_ins.get(group, whole) is None:
            return decide_worker(ts, **details)
        return self._decide_as(whole, decide_worker, ts, **details)

    def _decide_as(self, whole: WholeGroup, decide: Callable[..., Any], task: Any, **details: Any) -> Any:
        """Have Dask decide about a task of a whole group."""
        group = whole.deciding = task.group
        task.group = whole
        try:
            return decide(task, **details)
        except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
            self._safety.caught("decision about a split group", error)
            self._stand_ins[group] = None  # it would fail for each task
        finally:
            task.group = group
        return decide(task, **details)

    def _stand_in(self, group: Any) -> WholeGroup | None:
        whole: WholeGroup | None = None
        with self._safety.guard("decision about a split group"):
            whole = self._members.get(group)
            if whole is not None:
                whole.dependencies = self._as_wholes(whole.dependencies | whole.original.dependencies)
            elif not self._members.keys().isdisjoint(group.dependencies):
                whole = WholeGroup(group)
                whole.dependencies = self._as_wholes(group.dependencies)
        self._stand_ins[group] = whole
        return whole

    def _as_wholes(self, groups: Iterable[Any]) -> set[Any]:
        """Return groups as Dask alone would have them."""
        return {self._members.get(each, each) for each in groups}


def _can_be_made(of: Misplaced) -> bool:
    """Whether Dask can make the requested span, and send it to workers: its tags may be anything."""
    if of.span_id == NOBODY:  # Dask fails at an annotation that is something else
        return not (of.tasks[0].annotations or {}).get("span")
    return (
        of.requested is not None
        and isinstance(of.span_id, str)
        and all(map(_is_sendable, (*of.requested.tags, *of.requested.ids)))
    )


def _is_sendable(value: Any) -> bool:
    """Whether a value is known to be hashable, and to fit into a message to a worker."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, float)


def _move(tasks: Collection[Any], group: Any, part: Any) -> None:
    """Move new tasks: they have no size, duration or type yet. The prefix of both groups has counted them already."""
    for state, count in Counter([task.state for task in tasks]).items():
        group.states[state] -= count
        part.states[state] += count
    group._size -= len(tasks)
    part._size += len(tasks)
    for task in tasks:
        task.group = part


#: The splitter of each scheduler that has split a group: its groups stay split if the bridge goes and comes again. Weak
#: on both sides: the wrappers keep it as long as the scheduler.
_splitters: WeakKeyDictionary[Any, ref[GroupSplitter]] = WeakKeyDictionary()


def splitter_of(scheduler: Any) -> GroupSplitter:
    """Return the splitter of a scheduler."""
    splitter = _splitters.get(scheduler, lambda: None)()
    if splitter is None:
        splitter = GroupSplitter(scheduler)
        _splitters[scheduler] = ref(splitter)
    return splitter
