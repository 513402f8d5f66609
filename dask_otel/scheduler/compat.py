"""What the bridge needs of ``distributed``, and how it listens to methods of Dask's objects.

Much of it is not public, so it is checked before anything is touched. If a new ``distributed`` renames a hook or an
attribute, it must be changed here: ``NEEDED`` lists them all.
"""

from __future__ import annotations

import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import distributed

from ..patching import wrap
from ..safety import Safety, log

__all__ = [
    "NEEDED",
    "NEEDED_TO_FORGET",
    "NEEDED_TO_JUDGE",
    "NEEDED_TO_SPLIT",
    "Tap",
    "can_forget",
    "can_judge",
    "can_split",
    "can_work",
    "missing",
]

#: Attributes by class.
NEEDED = {
    "distributed.scheduler.Scheduler": (
        "_active_graph_updates",
        "clients",
        "cumulative_worker_metrics",
        "digest_metric",
        "extensions",
        "id",
        "plugins",
        "stimulus_task_erred",
        "stream_handlers",
        "task_groups",
        "tasks",
        "total_nthreads",
        "total_nthreads_history",
        "workers",
    ),
    "distributed.scheduler.TaskState": (
        "annotations",
        "exception",
        "exception_blame",
        "exception_text",
        "group",
        "has_lost_dependencies",
        "prefix",
        "processing_on",
        "run_id",
        "state",
        "type",
        "waiters",
        "who_wants",
    ),
    "distributed.scheduler.TaskGroup": (
        "all_durations",
        "dependencies",
        "name",
        "nbytes_total",
        "prefix",
        "span_id",
        "states",
    ),
    "distributed.scheduler.TaskPrefix": ("name",),
    "distributed.scheduler.WorkerState": ("address", "memory", "memory_limit", "name", "status"),
    "distributed.scheduler.MemoryState": ("managed", "spilled", "unmanaged"),
    "distributed.spans.Span": ("enqueued", "id", "name", "parent"),
    "distributed.spans.SpansSchedulerExtension": ("heartbeat", "observe_tasks", "spans"),
    "distributed.diagnostics.plugin.SchedulerPlugin": (
        "add_worker",
        "before_close",
        "log_event",
        "remove_worker",
        "start",
        "transition",
        "update_graph",
    ),
}

#: What splitting task groups needs besides; the rest of the bridge does without.
NEEDED_TO_SPLIT = {
    "distributed.scheduler.Scheduler": ("decide_worker_rootish_queuing_disabled", "is_rootish", "new_task"),
    "distributed.scheduler.TaskState": ("dependencies", "dependents", "key"),
    "distributed.scheduler.TaskGroup": ("_size", "last_worker", "last_worker_tasks_left"),
    "distributed.scheduler.TaskPrefix": ("add_group", "remove_group"),
    "distributed.scheduler.Computation": ("groups",),
}

#: What forgetting spans needs besides; the rest of the bridge does without.
NEEDED_TO_FORGET = {
    "distributed.scheduler.TaskGroup": ("name", "states"),
    "distributed.spans.Span": ("children", "groups"),
    "distributed.spans.SpansSchedulerExtension": ("root_spans", "spans_search_by_name", "spans_search_by_tag"),
}

#: What verdicts need besides; the rest of the bridge does without.
NEEDED_TO_JUDGE = {
    "distributed.scheduler.TaskState": ("dependencies", "who_has"),
    "distributed.scheduler.Scheduler": ("address",),
    "distributed.scheduler.WorkerState": (
        "host",
        "long_running",
        "metrics",
        "nbytes",
        "nthreads",
        "processing",
    ),
}

_NO_SPANS = "the scheduler extension 'spans'"


def can_work(scheduler: Any) -> bool:
    """Whether a scheduler has what the bridge needs; if not, log what it lacks."""
    lacking = missing(scheduler)
    defaults = getattr(distributed.scheduler, "DEFAULT_EXTENSIONS", ())  # Dask promises it to nobody
    if lacking == [_NO_SPANS] and "spans" in defaults:  # it is not Dask that lacks it
        log.error(
            "dask-otel is off: this scheduler was made with extensions= that leave out 'spans', where Dask keeps its "
            'spans. Add "spans": distributed.spans.SpansSchedulerExtension to them.',
        )
    elif lacking:
        log.error(
            "dask-otel is off: distributed %s lacks %s. Upgrade dask-otel, or use a distributed that it supports.",
            distributed.__version__,
            ", ".join(lacking),
        )
    return not lacking


def missing(scheduler: Any) -> list[str]:
    """Name what a scheduler lacks that the bridge needs."""
    lacking = _lacking(NEEDED)
    if "spans" not in scheduler.extensions:
        lacking.append(_NO_SPANS)
    if not inspect.iscoroutinefunction(scheduler.stream_handlers.get("update-graph")):
        lacking.append("the stream handler 'update-graph'")
    return lacking


def can_split() -> bool:
    """Whether ``distributed`` has what splitting task groups needs; if not, log what it lacks."""
    lacking = _lacking(NEEDED_TO_SPLIT)
    if lacking:
        log.warning(
            "dask-otel: tasks count where Dask puts them, as with otel.split-groups: false: distributed %s lacks %s. "
            "Upgrade dask-otel, or use a distributed that it supports.",
            distributed.__version__,
            ", ".join(lacking),
        )
    return not lacking


def can_forget() -> bool:
    """Whether ``distributed`` has what forgetting spans needs; if not, log what it lacks."""
    lacking = _lacking(NEEDED_TO_FORGET)
    if lacking:
        log.warning(
            "dask-otel: spans are never forgotten, as with otel.forget-spans: null: distributed %s lacks %s. "
            "Upgrade dask-otel, or use a distributed that it supports.",
            distributed.__version__,
            ", ".join(lacking),
        )
    return not lacking


def can_judge() -> bool:
    """Whether ``distributed`` has what verdicts need; if not, log what it lacks."""
    lacking = _lacking(NEEDED_TO_JUDGE)
    if lacking:
        log.warning(
            "dask-otel: runs get no verdicts, as with otel.verdicts: false: distributed %s lacks %s. "
            "Upgrade dask-otel, or use a distributed that it supports.",
            distributed.__version__,
            ", ".join(lacking),
        )
    return not lacking


def _lacking(needed: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{path}.{name}" for path, names in needed.items() for name in names if not _has(path, name)]


def _has(path: str, name: str) -> bool:
    module, _, class_name = path.rpartition(".")
    class_ = getattr(importlib.import_module(module), class_name, None)
    if not isinstance(class_, type):
        return False
    return hasattr(class_, name) or any(name in vars(each).get("__annotations__", {}) for each in class_.__mro__)


class Tap:
    """Wraps a method of one object, and listens to its calls between ``install`` and ``remove``."""

    def __init__(self, target: Any, name: str, safety: Safety) -> None:
        self._target = target
        self._name = name
        self._safety = safety
        self._listening = False
        self._original = getattr(target, name)
        self._undo: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Begin to listen."""
        self._listening = True
        self._original = getattr(self._target, self._name)
        self._undo = wrap(self._target, self._name, self._called)

    def remove(self) -> None:
        """Stop listening, and give the object its own method back, unless somebody wrapped it after us."""
        self._listening = False
        self._undo()

    @abstractmethod
    def _called(self, *args: Any, **details: Any) -> Any:
        """Call the original, and note the call while listening."""
