"""Records to OTel spans, as a pure function: attributes, links, events, status.

A test compares the result with what a tracer makes. Names, types and caps of attributes are those of ``schema/``. What
was not measured is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, Protocol

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from .. import schema
from ..diagnosis.parts import OVERHEAD_ACTIVITIES, CriticalPath, OnPath, Waterfall
from ..diagnosis.verdict import Verdict
from ..identity import client_names
from ..schema import (
    MAX_LINKS,
    MAX_NAME,
    MAX_SPAN_ACTIVITIES,
    MAX_STEP,
    MAX_STEPS,
    MAX_VALUE,
    clean,
    clean_items,
    identifier,
    shorten,
)
from ..spantree.counts import Tally, quantile
from ..spantree.events import Metrics
from ..spantree.records import (
    Failure,
    GroupRecord,
    ParentGroupRecord,
    PendingRecord,
    PhaseRecord,
    Record,
    SegmentRecord,
    StandInRecord,
    TaskRecord,
)
from ..spantree.records import Link as RecordLink
from .sampling import Decided, caller_context

__all__ = [
    "KINDS",
    "Attributes",
    "Bounded",
    "SpanData",
    "SpanFactory",
    "SpanForm",
    "attributes",
    "cleaned",
    "error_description",
    "exception_event",
    "identity",
    "kind_of",
]

Attributes = dict[str, "str | bool | int | float | list[str] | list[float]"]

#: Value of ``dask.kind``.
KINDS: dict[type[Record], str] = {
    SegmentRecord: schema.SEGMENT,
    GroupRecord: schema.GROUP,
    ParentGroupRecord: schema.GROUP,
    StandInRecord: schema.GROUP,
    TaskRecord: schema.TASK,
    PhaseRecord: schema.PHASE,
    PendingRecord: schema.PENDING,
}
#: OTLP's ints have 64 bits.
_LEAST, _GREATEST = -(2**63), 2**63 - 1
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)


class Bounded(NamedTuple):
    """Attributes with valid texts, and how many others are over the limit."""

    values: Attributes
    dropped: int = 0


class SpanData(NamedTuple):
    """What a span says, within the limits: the SDK's spans and OTLP's are both made of it."""

    name: str
    trace_id: int
    span_id: int
    state: TraceState | None
    parent: SpanContext | None
    kind: SpanKind
    #: Nanoseconds since the epoch.
    start: int
    end: int
    status: Status
    attributes: Bounded
    #: With name and time, nanoseconds since the epoch; and how many others there are.
    events: Sequence[tuple[str, int, Bounded]]
    dropped_events: int
    #: With trace id and span id; and how many others there are.
    links: Sequence[tuple[int, int, Bounded]]
    dropped_links: int


class SpanForm(Protocol):
    """Makes spans of records, and requests of spans, as an exporter takes them."""

    def span(self, record: Record) -> Any:
        """Make a span of a record."""

    def bare(self, record: Record) -> Any:
        """Make a span of what identifies a record."""

    def request(self, spans: Iterable[Any]) -> Any:
        """Put spans together."""


class SpanFactory:
    """Makes the OTel spans of one scheduler.

    Parameters
    ----------
    limits
        From the standard ``OTEL_*_LIMIT`` variables.
    redact
        Removes what must not be shown from a record.
    decided
        Returns the sampler's decision on a record's trace.
    """

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        limits: SpanLimits,
        redact: Callable[[Record], Record] = lambda record: record,
        decided: Callable[[Record], Decided] = lambda record: Decided(takes=True),
    ) -> None:
        self.resource = resource
        self.scope = scope
        self._redact = redact
        self._decided = decided
        self._limits = limits

    def span(self, record: Record) -> ReadableSpan:
        """Make a span of a record."""
        return self._readable(self.data(record))

    def bare(self, record: Record) -> ReadableSpan:
        """Make a span of what identifies a record."""
        return self._readable(self.bare_data(record))

    def data(self, record: Record) -> SpanData:
        """Return what the span of a record says."""
        record = self._redact(record)
        failure = record.failure
        status = Status(StatusCode.ERROR, clean(error_description(failure))) if failure else _UNSET
        data = self._identified(record, attributes(record), status)
        links = record.links[: self._max_links]
        return data._replace(
            links=[(link.trace_id, link.span_id, self._link_attributes(link)) for link in links],
            dropped_links=len(record.links) - len(links),
            **self._exception(record),
        )

    def bare_data(self, record: Record) -> SpanData:
        """Return what identifies a record, whose other values cannot be converted: it may have children."""
        record = self._redact(record)
        values = identity(record) | {schema.DROPPED_ATTRIBUTES: True}
        return self._identified(record, values, Status(StatusCode.ERROR) if record.failure else _UNSET)

    def request(self, spans: Iterable[ReadableSpan]) -> list[ReadableSpan]:
        """Put spans together."""
        return list(spans)

    def _identified(self, record: Record, values: Attributes, status: Status) -> SpanData:
        limits = self._limits
        _, extra, state = self._decided(record)
        parent = None if record.parent_id is None else _context(record.trace_id, record.parent_id, state)
        kind = SpanKind.INTERNAL
        if record.is_top:
            values = values | dict(extra)
            if record.caller:
                parent, kind = caller_context(record.caller, state), SpanKind.SERVER
        return SpanData(
            name=clean(record.name, MAX_NAME) or "(no name)",
            trace_id=record.trace_id,
            span_id=record.span_id,
            state=state,
            parent=parent,
            kind=kind,
            start=_nanoseconds(record.start),
            end=_nanoseconds(record.end),
            status=status,
            attributes=_bounded(values, limits.max_span_attributes, limits.max_span_attribute_length),
            events=(),
            dropped_events=0,
            links=(),
            dropped_links=0,
        )

    def _exception(self, record: Record) -> dict[str, Any]:
        exception, limits = exception_event(record), self._limits
        if not exception:
            return {}
        if limits.max_events == 0:
            return {"dropped_events": 1}
        bounded = _bounded(exception, limits.max_event_attributes, limits.max_attribute_length)
        return {"events": [("exception", _nanoseconds(record.end), bounded)]}

    @property
    def _max_links(self) -> int:
        most = self._limits.max_links
        return MAX_LINKS if most is None else min(MAX_LINKS, most)

    def _link_attributes(self, link: RecordLink) -> Bounded:
        limits = self._limits
        return _bounded({schema.LINK_TYPE: link.kind}, limits.max_link_attributes, limits.max_attribute_length)

    def _readable(self, data: SpanData) -> ReadableSpan:
        """Make a span as exporters for anything but OTLP take it.

        Directly: a tracer's ``start_span`` takes no span id and costs eight times as much.
        """
        events: BoundedList[Event] = BoundedList(None)
        for name, at, bounded in data.events:
            events.append(Event(name, _sdk_attributes(bounded), at))
        events.dropped = data.dropped_events
        links: BoundedList[Link] = BoundedList(None)
        for trace_id, span_id, bounded in data.links:
            links.append(Link(_context(trace_id, span_id), _sdk_attributes(bounded)))
        links.dropped = data.dropped_links
        return ReadableSpan(
            name=data.name,
            context=_context(data.trace_id, data.span_id, data.state),
            parent=data.parent,
            resource=self.resource,
            attributes=_sdk_attributes(data.attributes),
            events=events,
            links=links,
            kind=data.kind,
            status=data.status,
            start_time=data.start,
            end_time=data.end,
            instrumentation_scope=self.scope,
        )


def kind_of(record: Record) -> str:
    """Value of ``dask.kind``."""
    return KINDS[type(record)]


def attributes(record: Record) -> Attributes:
    """Attributes of a record, the more important first: ``OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT`` cuts the last ones."""
    if isinstance(record, SegmentRecord):
        return _segment(record)
    if isinstance(record, GroupRecord):
        return _group(record)
    if isinstance(record, TaskRecord):
        return _task(record)
    if isinstance(record, StandInRecord):
        return identity(record) | {schema.GROUP_NAME: record.group, schema.TASK_PREFIX: record.name}
    if isinstance(record, PhaseRecord):
        return _phase(record)
    return _pending(record) if isinstance(record, PendingRecord) else identity(record)


def identity(record: Record) -> Attributes:
    """Attributes that every span has."""
    span = record.span
    out: Attributes = {
        schema.KIND: kind_of(record),
        schema.SPAN_ID: span.id,
        schema.SPAN_PATH: span.path,
        schema.SPAN_ROOT: span.tags[0],
    }
    if record.failure:
        out[schema.ERROR_TYPE] = record.failure.type
    return out


def error_description(failure: Failure) -> str:
    """Status description: how much failed, and the first exception's message (the type is ``error.type``)."""
    counts = []
    if failure.erred:
        counts.append(f"{_tasks(failure.erred)} erred")
    if failure.upstream_failed:
        counts.append(f"{_tasks(failure.upstream_failed)} failed upstream")
    if failure.graphs:
        counts.append(f"{failure.graphs} {'graph' if failure.graphs == 1 else 'graphs'} could not be taken in")
    if failure.unfinished:
        return f"{_tasks(failure.unfinished)} did not end"
    if not counts:  # a task's own
        return failure.message
    return ", ".join(counts) + (f"{schema.FIRST}{failure.message}" if failure.message else "")


def exception_event(record: Record) -> Attributes | None:
    """Attributes of the event ``exception`` of a failed task's span."""
    if not isinstance(record, TaskRecord) or not record.run.error:
        return None
    error = record.run.error
    out: Attributes = {schema.EXCEPTION_TYPE: error.type, schema.EXCEPTION_MESSAGE: error.message}
    if error.traceback:
        out[schema.EXCEPTION_STACKTRACE] = error.traceback
    return out


def _segment(record: SegmentRecord) -> Attributes:
    out = identity(record)
    out[schema.SPAN_TAGS] = list(record.span.tags)
    out[schema.SPAN_SEGMENT] = record.number
    out[schema.SPAN_RESULT] = record.result
    if record.previous_id is not None:
        out[schema.SEGMENT_PREVIOUS_ID] = f"{record.previous_id:016x}"
    if record.counted_in:
        out[schema.SPAN_COUNTED_IN] = _one_or_list(record.counted_in)
    if record.elsewhere:
        tally = record.elsewhere
        out |= {schema.ELSEWHERE_COUNT: tally.tasks, schema.ELSEWHERE("completed"): tally.completed}
        out |= {schema.ELSEWHERE(outcome): count for outcome, count in tally.outcomes.items()}
    out |= _tally(record.tally)
    out |= _nonzero(
        {name: record.graph_failures.get(status, 0) for status, name in schema.GRAPH_FAILURES.items()}
        | {
            schema.TRUNCATED_GROUPS: record.truncated_groups,
            schema.TRUNCATED_TASKS: record.truncated_tasks,
            schema.TRUNCATED_PHASES: record.truncated_phases,
            schema.DROPPED_GROUPS: record.dropped_groups,
            schema.DROPPED_TASKS: record.dropped_tasks,
            schema.DROPPED_PHASES: record.dropped_phases,
            schema.DROPPED_SPANS: record.dropped_spans,
        }
    )
    out |= _verdict(record.verdict)
    out |= _thread_time(record)
    if record.tally.run_start:
        out[schema.SPAN_QUEUE_TIME] = max(0.0, record.tally.run_start - record.start)
    out |= {schema.WALL[part]: seconds for part, seconds in record.wall.items()}
    out |= _nonzero({schema.GRAPH_UPDATE_TIME: record.graph_seconds})
    out[schema.METRICS_COMPLETE] = record.metrics_complete
    if record.waterfall:
        out |= _waterfall(record.waterfall)
    if record.critical:
        out |= _critical_path(record.critical)
    if record.clients:
        out[schema.CLIENT_ID] = _one_or_list(record.clients)
        if names := client_names(record.clients):
            out[schema.CLIENT_NAME] = _one_or_list(names)
    out |= {schema.SUBMITTERS[what]: _one_or_list(values) for what, values in record.submitters.items()}
    if record.collections:
        out[schema.COLLECTIONS] = list(record.collections)
    if record.code:
        out[schema.CODE_FILE_PATH], out[schema.CODE_LINE_NUMBER] = record.code
    out |= {schema.ANNOTATION(name): _one_or_list(values) for name, values in record.annotations.items()}
    out |= _fine_metrics(record.metrics)
    return out


def _group(record: GroupRecord) -> Attributes:
    out = identity(record)
    if record.folded:
        out[schema.GROUP_FOLDED] = record.folded
    else:
        out[schema.GROUP_NAME] = record.group
        out[schema.TASK_PREFIX] = record.name
    if record.dependencies:
        out[schema.GROUP_DEPENDENCIES] = list(record.dependencies)
    out |= _tally(record.tally)
    out |= _nonzero({schema.TRUNCATED_TASKS: record.truncated_tasks})
    if record.critical is not None:
        out |= _on_path(record.critical)
    if record.retried_error:
        out[schema.RETRY_ERROR_TYPE] = record.retried_error.type
        out[schema.RETRY_ERROR_MESSAGE] = record.retried_error.message
    if record.types:
        out[schema.TASK_TYPES] = sorted(record.types, key=lambda type_: (-record.types[type_], type_))
    if record.buckets:
        only = record.tally.durations.get("compute") if sum(record.buckets.values()) == 1 else None
        out |= {
            name: quantile(record.buckets, q) if only is None else only / 1e6
            for q, name in schema.TASK_DURATION_QUANTILES.items()
        }
    if record.metrics is not None:
        out |= _fine_metrics(record.metrics)
    elif not record.folded:
        out[schema.GROUP_PREFIX_SHARED] = True
    return out


def _task(record: TaskRecord) -> Attributes:
    run = record.run
    out = identity(record)
    out[schema.TASK_KEY] = run.key
    out[schema.GROUP_NAME] = run.group
    out[schema.TASK_PREFIX] = run.prefix
    if run.run_id >= 0:
        out[schema.TASK_RUN_ID] = run.run_id
    out[schema.TASK_PICKED] = record.reason
    optional = {
        schema.TASK_TYPE: run.type,
        schema.OUTPUT_SIZE: run.nbytes,
        schema.WORKER_ADDRESS: run.worker,
        schema.WORKER_NAME: run.worker_name,
        schema.THREAD_ID: run.thread,
    }
    out |= {name: value for name, value in optional.items() if value is not None}
    out |= _durations(run.durations)
    return out


def _phase(record: PhaseRecord) -> Attributes:
    phase = record.phase
    out = identity(record) | {schema.PHASE_NAME: schema.TAKE_IN}
    optional = {schema.GRAPH_TASK_COUNT: phase.tasks, schema.GRAPH_SIZE: phase.size}
    return out | {name: value for name, value in optional.items() if value is not None}


def _pending(record: PendingRecord) -> Attributes:
    out = identity(record)
    if record.tasks is not None and record.completed is not None:
        out |= {schema.PROGRESS_COMPLETED: record.completed, schema.PROGRESS_COUNT: record.tasks}
    if record.active:
        out[schema.PROGRESS_RUNNING] = [" / ".join(tags) for tags in record.active]
    return out


def _tally(tally: Tally) -> Attributes:
    out: Attributes = {schema.TASK_COUNT: tally.tasks, schema.TASK_OUTCOMES["completed"]: tally.completed}
    out |= {schema.TASK_OUTCOMES[outcome]: count for outcome, count in tally.outcomes.items()}
    out[schema.OUTPUT_SIZE] = tally.nbytes
    out |= _durations(tally.durations)
    if tally.workers:
        out[schema.WORKER_COUNT] = len(tally.workers)
        if total := sum(tally.workers.values()):
            out[schema.WORKER_SHARE_MAX] = max(tally.workers.values()) / total
    return out


def _durations(micros: Mapping[str, int]) -> Attributes:
    """Sum seconds by action; names that differ only in what a name may not hold become one."""
    out: dict[str, float] = {}
    for action, value in micros.items():
        name = schema.DURATION(identifier(action))
        out[name] = out.get(name, 0.0) + value / 1e6
    return dict(out)


def _thread_time(record: SegmentRecord) -> Attributes:
    """How many thread-seconds the cluster had, and how many of them were used.

    A task that secedes is busy in an additional thread, so that more may be used than there were: then the ratio, and
    what other roots used, mean nothing.
    """
    busy = sum(
        value
        for key, value in record.metrics.items()
        if key[0] == "execute" and key[-1] == "seconds" and key[2] not in OVERHEAD_ACTIVITIES
    )
    mine = record.threads_available - record.threads_others
    out: Attributes = {schema.THREAD_TIME_AVAILABLE: record.threads_available}
    if mine >= 0:
        out[schema.THREAD_TIME_OTHERS] = record.threads_others
    if record.metrics:
        out[schema.THREAD_TIME_BUSY] = float(busy)
        if 0 <= busy <= mine and mine > 0:
            out[schema.EFFICIENCY] = busy / mine
    return out


def _verdict(verdict: Verdict | None) -> Attributes:
    out: Attributes = {}
    if verdict and verdict.findings:
        first = verdict.findings[0]
        out[schema.VERDICT] = [finding.id for finding in verdict.findings]
        out[schema.VERDICT_TEXT] = verdict.text
        out[schema.VERDICT_AT_MOST] = float(first.at_most)
        out[schema.VERDICT_SECONDS] = float(first.seconds)
    if verdict and verdict.hints:
        out[schema.VERDICT_HINTS] = list(verdict.hints)
    if verdict and verdict.withheld:
        out[schema.VERDICT_WITHHELD] = verdict.withheld
    return out


def _waterfall(waterfall: Waterfall) -> Attributes:
    out: Attributes = {schema.WATERFALL_THREADS: float(waterfall.threads)}
    return out | _nonzero({name: float(waterfall.parts.get(part, 0.0)) for part, name in schema.WATERFALL.items()})


def _critical_path(path: CriticalPath) -> Attributes:
    out = _on_path(OnPath(path.along("data"), path.along("thread")))
    out |= _nonzero({name: float(path.gaps.get(cause, 0.0)) for cause, name in schema.CRITICAL_GAP.items()})
    if steps := path.steps(MAX_STEPS):
        # Cut here, so that no item is left out of one of the lists only.
        out[schema.CRITICAL_STEPS] = [shorten(str(step), MAX_STEP) for step, _ in steps]
        out[schema.CRITICAL_STEPS_SECONDS] = [float(seconds) for _, seconds in steps]
    return out


def _on_path(seconds: OnPath) -> Attributes:
    out: Attributes = {schema.CRITICAL_SECONDS: float(seconds.seconds)}
    return out | _nonzero({name: float(getattr(seconds, edge)) for edge, name in schema.CRITICAL_EDGE.items()})


def _fine_metrics(metrics: Metrics) -> Attributes:
    """Sum fine metrics over prefixes: ``("execute", prefix, activity, unit)``, ``("p2p", where, activity, unit)``."""
    #: By where, for P2P.
    sums: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for key, value in metrics.items():
        if len(key) == 4 and key[0] in ("execute", "p2p"):
            where: tuple[str, ...] = (identifier(key[1]),) if key[0] == "p2p" else ()
            activity = (identifier(key[2]), identifier(key[3]))
            by_activity = sums.setdefault(where, {})
            by_activity[activity] = by_activity.get(activity, 0) + value
    out: Attributes = {}
    for where, by_activity in sums.items():
        for (name, unit), value in _capped(by_activity).items():
            # One type for each name: bytes and counts are ints, seconds and users' own units doubles.
            number = round(value) if unit in ("bytes", "count") else float(value)
            out[schema.P2P(*where, name, unit) if where else schema.EXECUTE(name, unit)] = number
    return out


def _capped(by_activity: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
    names = sorted({name for name, _ in by_activity})
    if len(names) <= MAX_SPAN_ACTIVITIES:
        return by_activity
    kept = set(names[:MAX_SPAN_ACTIVITIES])
    out: dict[tuple[str, str], float] = {}
    for (name, unit), value in by_activity.items():
        capped = (name if name in kept else "other", unit)
        out[capped] = out.get(capped, 0) + value
    return out


def _nonzero(numbers: Mapping[str, float]) -> Attributes:
    return {name: number for name, number in numbers.items() if number}


def _one_or_list(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _tasks(number: int) -> str:
    return f"{number} {'task' if number == 1 else 'tasks'}"


def _bounded(values: Attributes, limit: int | None, longest: int | None) -> Bounded:
    """Clean the values and keep the first ``limit`` of them; the SDK alone would keep the last."""
    kept = values if limit is None or len(values) <= limit else dict(islice(values.items(), limit))
    # Cut here: the SDK warns of each value that it cuts.
    return Bounded(cleaned(kept, longest), len(values) - len(kept))


def _sdk_attributes(bounded: Bounded) -> BoundedAttributes:
    attributes = BoundedAttributes(None, bounded.values)
    attributes.dropped = bounded.dropped
    return attributes


def cleaned(values: Attributes, longest: int | None = None) -> Attributes:
    """Return attributes with valid texts, cut to the caps of the schema and to ``longest`` characters."""
    return {
        # Most values are numbers; to ask here takes a third of the time of a call.
        _name(name): value
        if type(value) is float or (type(value) is int and _LEAST <= value <= _GREATEST)
        else _clean(name, value, longest)
        for name, value in values.items()
    }


@lru_cache(4096)
def _name(name: str) -> str:
    return clean(name, MAX_NAME)


def _clean(
    name: str, value: str | bool | int | float | list[str] | list[float], longest: int | None
) -> str | bool | int | float | list[str] | list[float]:
    if isinstance(value, str):
        known = schema.ATTRIBUTES.get(name)
        return clean(value, known.cap if known else MAX_VALUE)[:longest]
    if isinstance(value, list):
        texts = [item for item in value if isinstance(item, str)]
        return [item[:longest] for item in clean_items(texts)] if texts else value
    if isinstance(value, int) and not _LEAST <= value <= _GREATEST:
        return float(value)
    return value


def _context(trace_id: int, span_id: int, state: TraceState | None = None) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
