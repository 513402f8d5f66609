"""What clients, workers and the scheduler write for each other about spans; pure.

**From the worker.** It reports a span when it makes it, as an event of the topic ``TOPIC`` on the stream that results
travel on, and before the task's result. Dask takes in events of any topic: a scheduler without dask-otel ignores them,
while a stream message of a name that the scheduler does not know would end the connection, and with it the worker.

**From the scheduler.** A task's annotation ``ANNOTATION`` holds what the client's propagators wrote into it
(``traceparent``, ``baggage`` …), and may hold two fields of the scheduler's, where it knows better than the worker:
``PARENT_FIELD`` and ``GROUP_FIELD``. They are about this task and are not passed on to the tasks that it submits.

**Between tasks.** The annotation of what a task submits has its span, if it is made, as ``PARENT_FIELD``. The scheduler
leaves this where both are in one trace.

**From the client.** Beside the annotation ``ANNOTATION``, a graph's ``span_metadata``, which Dask sends once with each
graph, may have an entry ``SUBMITTER``: who submits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "ACTION",
    "ANNOTATION",
    "GROUP_FIELD",
    "OF_ONE_TASK",
    "PARENT_FIELD",
    "SUBMITTER",
    "TOPIC",
    "SpanMade",
    "Submitter",
]

#: Name of the annotation with the carrier of a task's context.
ANNOTATION = "otel"
#: In that annotation, the parent of the task's span, as a W3C ``traceparent`` with the sampled flag. Without it, the
#: parent is the first group span of the task's group.
PARENT_FIELD = "dask-parent"
#: In that annotation, the name of the task's group, if it is not that of the task's key.
GROUP_FIELD = "dask-group"
#: Fields that are about one task, not about what it submits.
OF_ONE_TASK = frozenset((PARENT_FIELD, GROUP_FIELD))

#: In the ``span_metadata`` of a graph, what ``Submitter`` writes.
SUBMITTER = "dask-otel"

#: Types of Dask's keys.
_KEYS = (str, bytes, int, float, tuple)

#: Topic of the events.
TOPIC = "dask-otel"
#: What the events are about.
ACTION = "span-made"


class SpanMade(NamedTuple):
    """A worker has made the span of a run, or of a call to an actor; or has given out the id of its parent instead."""

    #: Of the task; of an actor's call, the actor's.
    key: Any
    #: Dask's number of the run; None for an actor's call, which is no run, and if no span was made.
    run_id: int | None
    #: Id of the Dask span, and name of the group.
    dask_span_id: str
    group: str
    #: Of the span that was made, 0 if there is none, and its parent in the same trace.
    trace_id: int
    span_id: int
    parent_id: int

    def to_event(self) -> dict[str, Any]:
        """Return the event: what msgpack can write, ids as in W3C trace context."""
        return {
            "action": ACTION,
            "key": self.key,
            "run-id": self.run_id,
            "dask-span-id": self.dask_span_id,
            "group": self.group,
            "trace-id": f"{self.trace_id:032x}",
            "span-id": f"{self.span_id:016x}",
            "parent-id": f"{self.parent_id:016x}",
        }

    @staticmethod
    def parent_of(event: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what identifies the parent in an event, as it is there. Raises KeyError if it is not."""
        return event["parent-id"], event["trace-id"], event["dask-span-id"], event["group"]

    @classmethod
    def from_event(cls, event: Any) -> SpanMade | None:
        """Read an event; None if it is something else: anybody can log anything under any topic."""
        try:
            if event["action"] != ACTION:
                return None
            key, run_id = event["key"], event["run-id"]
            hash(key)
            if not isinstance(key, _KEYS) or type(run_id) not in (int, type(None)):
                return None
            return cls(
                key,
                run_id,
                str(event["dask-span-id"]),
                str(event["group"]),
                *(int(event[f"{name}-id"], 16) for name in ("trace", "span", "parent")),
            )
        except (KeyError, TypeError, ValueError):
            return None


class Submitter(NamedTuple):
    """Who submits a graph; what is not known, or not to be recorded, is empty."""

    #: Name of the caller's service, as in its resource attribute ``service.name``.
    service: str = ""
    user: str = ""
    host: str = ""
    #: The caller's span, as a W3C ``traceparent``, if the root is to have a trace of its own that is linked with it.
    caller: str = ""

    def to_metadata(self) -> dict[str, dict[str, str]]:
        """Return what to add to the ``span_metadata`` of a graph; empty if nothing is known."""
        # Text without a type of its own, which the scheduler might not have.
        known = {
            name: str.encode(value, "utf-8", "replace").decode() for name, value in self._asdict().items() if value
        }
        return {SUBMITTER: known} if known else {}

    @classmethod
    def from_metadata(cls, metadata: Any) -> Submitter:
        """Read the ``span_metadata`` of a graph, which may be anything: clients of any version send it."""
        written = metadata.get(SUBMITTER) if isinstance(metadata, Mapping) else None
        if not isinstance(written, Mapping):
            return cls()
        fields = {name: written.get(name) for name in cls._fields}
        return cls(**{name: value for name, value in fields.items() if isinstance(value, str)})
