"""Every attribute of spans, links, events, the resource and metrics, once: name, type, unit, cap and meaning.

To add an attribute to a span, add an entry here and set it in ``otlp/spans.py``. Sizes and counts are ints, seconds and
ratios doubles: TraceQL's literals match only their own type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from .limits import (
    MAX_ACTIVITIES,
    MAX_COMPONENTS,
    MAX_CONTEXTS,
    MAX_ERROR_TYPES,
    MAX_LIST,
    MAX_NAME,
    MAX_PHASES,
    MAX_PREFIXES,
    MAX_PROGRESS_SPANS,
    MAX_ROOT_NAMES,
    MAX_SPAN_ACTIVITIES,
    MAX_STEPS,
    MAX_SUBMITTERS,
    MAX_TRACEBACK,
    MAX_VALUE,
)

#: Values of ``dask.kind``, and what an attribute can be on besides.
SEGMENT, GROUP, TASK, PHASE, PENDING = "span", "group", "task", "phase", "pending"
#: Another value of ``dask.kind``: a call to an actor, with the attributes of a task span but ``dask.task.run_id``.
ACTOR_CALL = "actor"
LINK, EXCEPTION, RESOURCE, METRIC = "link", "exception", "resource", "metric"
#: A span that an instrumented client makes, or on which it sums up what it did; and the phase spans below it.
CALLER, CLIENT_PHASE = "caller", "client phase"

EVERY = (SEGMENT, GROUP, TASK, PHASE, PENDING)
_SUMMED = (SEGMENT, GROUP)

Type = Literal[
    "string",
    "int",
    "double",
    "bool",
    "string[]",
    "double[]",
    "string or string[]",
    "double; int for bytes and counts",
]
#: What has one value in most cases.
_ONE_OR_MORE: Type = "string or string[]"
_BY_UNIT: Type = "double; int for bytes and counts"


@dataclass(frozen=True)
class Attribute:
    """What never changes about an attribute."""

    #: May hold placeholders: ``dask.duration.<action>``.
    name: str
    type: Type
    #: Of a number that is no count: ``s``, ``bytes``, ``0…1``.
    unit: str
    #: Kinds of span, ``caller``, ``client phase``, ``link``, ``exception``, ``resource``, ``metric``.
    on: tuple[str, ...]
    meaning: str
    #: Bytes of a text; a list has ``MAX_LIST``.
    cap: int
    #: Values in metrics at a time, if users or programs invent them; else 0.
    max_values: int


#: By name, in the order of the documentation.
ATTRIBUTES: dict[str, Attribute] = {}


def _attribute(
    name: str, type_: Type, on: Sequence[str], meaning: str, unit: str = "", cap: int = 0, max_values: int = 0
) -> str:
    ATTRIBUTES[name] = Attribute(name, type_, unit, tuple(on), meaning, cap or MAX_VALUE, max_values)
    return name


def _pattern(name: str, type_: Type, on: Sequence[str], meaning: str, unit: str = "") -> Callable[..., str]:
    """Return a function that puts its arguments in the place of a name's placeholders."""
    _attribute(name, type_, on, meaning, unit=unit)
    return re.sub(r"<\w+>", "{}", name).format


# fmt: off
KIND = _attribute("dask.kind", "string", EVERY, meaning=
    "`span` for a segment, `group` for a group span, `task` for a task span, `phase` for a [phase](#phases), `pending` "
    "for a pending span, `actor` for a [call to an actor](inside.md#actors)")
SPAN_ID = _attribute("dask.span.id", "string", (*EVERY, CALLER), meaning="id of the Dask span")
SPAN_PATH = _attribute("dask.span.path", "string", EVERY, cap=MAX_NAME, meaning=
    "tags of the Dask span from the root down, joined: `Alice's workflow / data load`")
SPAN_ROOT = _attribute("dask.span.root", "string", (*EVERY, METRIC), cap=MAX_NAME, max_values=MAX_ROOT_NAMES, meaning=
    "tag of the root span, so that one search finds all spans of a workflow")
ERROR_TYPE = _attribute("error.type", "string", (*EVERY, CALLER, METRIC), max_values=MAX_ERROR_TYPES, meaning=
    "type of the first exception, read from its pickle or its `repr` ([how](truth.md#what-became-of-a-task)), or "
    "`_OTHER` if neither contains it. A span with this attribute has the status Error; the status description has the "
    "number of failed tasks and the first message. On a top span whose result is `lost` or `interrupted`, that word")
DROPPED_ATTRIBUTES = _attribute("dask.dropped.attributes", "bool", EVERY, meaning=
    "true on a span whose other attributes could not be converted")

TASK_COUNT = _attribute("dask.task.count", "int", _SUMMED, meaning="tasks that were added to the scheduler")
#: By outcome.
TASK_OUTCOMES = {
    outcome: _attribute(f"dask.task.{outcome}", "int", _SUMMED, meaning)
    for outcome, meaning in {
        "completed": "runs of tasks that ended with a result",
        "erred": "tasks that raised an exception; absent if 0, as are the other outcomes below",
        "upstream_failed": "tasks that never ran, because a task that they depend on failed",
        "cancelled": "tasks that `cancel` or `restart` ended",
        "abandoned": "unfinished tasks that were released because no client and no task needed them any more",
        "retried": "failed runs after which the task ran again (`retries=`)",
        "rescheduled": "runs that were started again on another worker, after `Reschedule` or a failed steal; P2P "
        "shuffles use this regularly",
        "recomputed": "runs of tasks that had finished before",
        "lost": "runs that ended because their worker left; such a task runs again. Also tasks that can never run, "
        "because scattered data that they need was lost",
    }.items()
}
TRUNCATED_TASKS = _attribute("dask.truncated.tasks", "int", _SUMMED, meaning="failed tasks that have no task span")
OUTPUT_SIZE = _attribute("dask.output.size", "int", (*_SUMMED, TASK), unit="bytes", meaning=
    "size of the results (`nbytes_total`); negative on a segment or group span if results shrank in a recomputation")
DURATION = _pattern("dask.duration.<action>", "double", (*_SUMMED, TASK), unit="s", meaning=
    "time of the runs by action (`all_durations`): `compute`, `transfer`, `disk_read`, `disk_write`, `deserialize`")
EXECUTE = _pattern("dask.execute.<activity>.<unit>", _BY_UNIT, _SUMMED, meaning=
    "fine performance metrics of tasks: `dask.execute.thread_cpu.seconds`, `dask.execute.disk_read.bytes` … The "
    f"first {MAX_SPAN_ACTIVITIES} activities by name have attributes, the others are summed under `other`. A group "
    "span has them only if no other group of the segment has the same prefix")
WORKER_COUNT = _attribute("dask.worker.count", "int", _SUMMED, meaning="workers that ran tasks")
WORKER_SHARE_MAX = _attribute("dask.worker.share.max", "double", _SUMMED, unit="0…1", meaning=
    "share of the compute time that the busiest worker had")
CRITICAL_SECONDS = _attribute("dask.critical.seconds", "double", _SUMMED, unit="s", meaning=
    "on segments of root Dask spans: seconds of the [critical path](#the-critical-path) in which a task ran; with the "
    "gaps they sum to the duration. On a group span: those of its tasks; absent if it was sent before they were known")
#: By what the run waited for.
CRITICAL_EDGE = {
    edge: _attribute(f"dask.critical.{edge}.seconds", "double", _SUMMED, meaning, unit="s")
    for edge, meaning in {
        "data": "part of it in tasks that waited for their inputs: make them faster; absent if 0",
        "thread": "part of it in tasks that waited for a thread: more threads help; absent if 0",
    }.items()
}

SPAN_TAGS = _attribute("dask.span.tags", "string[]", [SEGMENT], meaning=
    "tags of the Dask span from the root down: `Span.name`")
SPAN_SEGMENT = _attribute("dask.span.segment", "int", [SEGMENT], meaning=
    "number of the segment in its Dask span: 0, 1, 2 …; if the Dask span was forgotten and came back, from the time of "
    "that in ms on")
SEGMENT_PREVIOUS_ID = _attribute("dask.segment.previous_id", "string", [SEGMENT], meaning=
    "span id of the previous segment of the same Dask span. Only on a segment without parent whose previous segment is "
    "in the same trace; every other segment has a link of type `continues` instead")
SPAN_RESULT = _attribute("dask.span.result", "string", [SEGMENT, CALLER, METRIC], meaning=
    "`success`, `error`, `cancelled`, `lost` (tasks can never run, because scattered data that they need was lost "
    "with its worker), `unfinished` (cut because of `otel.traces.max-segment`, or because dask-otel was registered "
    "again with other settings), `interrupted` (the cluster closed before all tasks had finished)")
SPAN_COUNTED_IN = _attribute("dask.span.counted_in", _ONE_OR_MORE, [SEGMENT], meaning=
    "ids of Dask spans that count tasks which this span requested, see "
    "[below](#tasks-that-were-there-already)")
ELSEWHERE_COUNT = _attribute("dask.elsewhere.count", "int", [SEGMENT], meaning=
    "tasks that this span, or one inside it, requested and that Dask counts in a span outside it. The other counts, "
    "sizes and durations of this segment do not include them. If two spans inside it requested the same task, the task "
    "counts twice; so does a result that is requested twice")
ELSEWHERE = _pattern("dask.elsewhere.<outcome>", "int", [SEGMENT], meaning=
    "outcomes of these tasks: `completed`, `erred` … as for `dask.task.*`")
#: By the status of ``update_graph``.
GRAPH_FAILURES = {
    "error": _attribute(
        "dask.graph.failed", "int", [SEGMENT], "graphs that the scheduler failed to process; the status is Error"
    ),
    "cancelled": _attribute(
        "dask.graph.cancelled", "int", [SEGMENT], "graphs that were cancelled because data that they needed was lost"
    ),
}
TRUNCATED_GROUPS = _attribute("dask.truncated.groups", "int", [SEGMENT], meaning=
    "groups of this segment and the segments below it that have no group span, because they were folded into the span "
    "`other groups` or because of `otel.traces.level`")
TRUNCATED_PHASES = _attribute("dask.truncated.phases", "int", [SEGMENT], meaning=
    f"phases of this segment and the segments below it that have no span: beyond {MAX_PHASES} of a segment, or because "
    "of `otel.traces.level`")
DROPPED_GROUPS = _attribute("dask.dropped.groups", "int", [SEGMENT], meaning=
    "group spans of this segment that were dropped, because the queue was full or `otel.traces.max-rate` was reached")
DROPPED_TASKS = _attribute("dask.dropped.tasks", "int", [SEGMENT], meaning=
    "task spans of this segment that were dropped for the same reasons")
DROPPED_PHASES = _attribute("dask.dropped.phases", "int", [SEGMENT], meaning=
    "phases of this segment that were dropped for the same reasons")
DROPPED_SPANS = _attribute("dask.dropped.spans", "int", [SEGMENT], meaning=
    "on segments of top spans: other spans of the trace that were lost before this segment was sent. They are segments "
    "for which the queue had no room, and spans that the collector refused")
SPAN_QUEUE_TIME = _attribute("dask.span.queue_time", "double", [SEGMENT], unit="s", meaning=
    "time from the start of the segment to the start of its first run")
#: By what a segment was waiting for.
WALL = {
    part: _attribute(f"dask.wall.{part}", "double", [SEGMENT], meaning, unit="s")
    for part, meaning in {
        "executing": "part of the segment's duration in which a worker had at least one of its tasks. The four parts "
        "sum to the duration. dask-otel notices changes between the other three parts only at its next sweep",
        "queued": "part in which no worker had a task, but tasks were queued or waited for other tasks, or a graph was "
        "[taken in](#phases)",
        "no_worker": "part in which all unfinished tasks waited for a suitable worker",
        "idle": "part in which no task was unfinished: think time",
    }.items()
}
VERDICT = _attribute("dask.verdict", "string[]", [SEGMENT, METRIC], meaning=
    "on segments of root Dask spans, as are all attributes of [verdicts](#why-it-was-slow): ids of the reasons why it "
    "took long, the most costly first. Absent if no reason was found. On metrics, the first one")
VERDICT_TEXT = _attribute("dask.verdict.text", "string", [SEGMENT], meaning=
    "the first reason in two sentences: the numbers that show it, and what helps")
VERDICT_AT_MOST = _attribute("dask.verdict.at_most", "double", [SEGMENT], unit="s", meaning=
    "seconds that could be saved at most, if that reason went away")
VERDICT_SECONDS = _attribute("dask.verdict.seconds", "double", [SEGMENT], unit="s", meaning=
    "wall seconds of the part of the waterfall that the reason is about")
VERDICT_HINTS = _attribute("dask.verdict.hints", "string[]", [SEGMENT], meaning=
    "ids of what else was noticed, and did not cost time")
VERDICT_WITHHELD = _attribute("dask.verdict.withheld", "string", [SEGMENT], meaning=
    "why there is no verdict, though there may be a reason for one")
WATERFALL_THREADS = _attribute("dask.waterfall.threads", "double", [SEGMENT], meaning=
    "mean number of threads that the cluster had while it had any. A part divided by it is wall seconds; those of all "
    "parts sum to the duration")
#: By part.
WATERFALL = {
    part: _attribute(f"dask.waterfall.{part}.seconds", "double", [SEGMENT], meaning, unit="s")
    for part, meaning in {
        "cpu": "thread-seconds in which tasks of the root used a core; absent if 0, as are the parts below. All parts "
        "sum to the thread-seconds that the cluster had",
        "noncpu": "tasks ran and waited: for the interpreter lock, the network, a disk, a core",
        "disk": "workers read or wrote spilled results for the tasks",
        "serialize": "tasks, inputs and results were serialised, deserialised or compressed",
        "p2p": "P2P shuffles",
        "lost": "runs that failed, were cancelled or were lost with their worker, and those that repeated lost work",
        "overhead": "Dask's own work around the tasks in the worker's threads",
        "handed": "a worker had the task, but did not run it: its inputs were on their way, or the worker was busy",
        "unaccounted": "negative: fine metrics report more than workers can have done, because tasks secede",
        "others": "threads had tasks of other root spans",
        "starting": "idle: the cluster had no worker yet",
        "paused": "idle: the worker was paused, since its memory was nearly full",
        "queued": "idle: tasks were queued on the scheduler",
        "no_worker": "idle: tasks waited for a suitable worker",
        "imbalance": "idle: other workers had more tasks than threads",
        "dependencies": "idle: all tasks that were left waited for others",
        "tail": "idle: all tasks that were left ran",
        "graph": "idle: a graph was sent or taken in",
        "client": "idle: no task was unfinished: think time",
    }.items()
}
#: By cause.
CRITICAL_GAP = {
    cause: _attribute(f"dask.critical.gap.{cause}.seconds", "double", [SEGMENT], meaning, unit="s")
    for cause, meaning in {
        "client": "seconds of the critical path in which nothing was submitted; absent if 0, as are the gaps below",
        "graph": "a graph was sent or taken in",
        "report": "a worker had finished a task, and the scheduler had not yet heard of it",
        "queued": "a task was queued on the scheduler",
        "no_worker": "a task waited for a suitable worker",
        "others": "a thread had tasks of other root spans",
        "lost": "work was lost with a worker, and done again",
        "input": "inputs were on their way from other workers",
        "dispatch": "a task was on its way to a worker, or the worker was busy",
        "unfinished": "after the last run that has ended, until the segment ended: tasks that were cancelled, lost or "
        "failed without a run, and those that go on in the next segment",
    }.items()
}
CRITICAL_STEPS = _attribute("dask.critical.steps", "string[]", [SEGMENT], meaning=
    f"the groups that take most of the critical path, up to {MAX_STEPS}, the longest first: path of their span and "
    "their prefix, `Alice's workflow / data load / read_parquet`")
CRITICAL_STEPS_SECONDS = _attribute("dask.critical.steps.seconds", "double[]", [SEGMENT], unit="s", meaning=
    "seconds of the critical path that they take, in the same order")
GRAPH_UPDATE_TIME = _attribute("dask.graph.update_time", "double", [SEGMENT], unit="s", meaning=
    "time that the scheduler took to process the graphs; the time of one graph is divided between its spans by number "
    "of tasks")
THREAD_TIME_AVAILABLE = _attribute("dask.thread_time.available", "double", [SEGMENT], unit="s", meaning=
    "thread-seconds that the cluster had during the segment")
THREAD_TIME_BUSY = _attribute("dask.thread_time.busy", "double", [SEGMENT], unit="s", meaning=
    "thread-seconds that the tasks used: the sum of `dask.execute.*.seconds` without `executor` and `other`, which are "
    "overhead of Dask's")
THREAD_TIME_OTHERS = _attribute("dask.thread_time.others", "double", [SEGMENT], unit="s", meaning=
    "thread-seconds that other root spans used during the segment. Absent if that is more than the cluster had: "
    "heartbeats report use with a delay, and tasks that [secede](#threads-that-are-not-counted) use additional "
    "threads")
EFFICIENCY = _attribute("dask.efficiency", "double", [SEGMENT], unit="0…1", meaning=
    "busy / (available - others). Absent if busy is larger than the divisor, because tasks that "
    "[secede](#threads-that-are-not-counted) use additional threads")
METRICS_COMPLETE = _attribute("dask.metrics.complete", "bool", [SEGMENT], meaning=
    "false if fine metrics may be missing: a worker left, stopped sending heartbeats, or the cluster closed before "
    "the worker had delivered them")
CLIENT_ID = _attribute("dask.client.id", _ONE_OR_MORE, [SEGMENT], meaning="ids of the clients that submitted")
CLIENT_NAME = _attribute("dask.client.name", _ONE_OR_MORE, [SEGMENT], meaning="their names, if set: `Client(name=…)`")
#: By what is known of a submitter.
SUBMITTERS = {
    what: _attribute(name, _ONE_OR_MORE, [SEGMENT], meaning)
    for what, name, meaning in (
        ("service", "service.peer.name", "on segments of top spans: the service that submitted the work, which is the "
         "resource attribute `service.name` of the program with the [instrumented client](requests.md#who-asked). This "
         f"attribute and the next two have up to {MAX_SUBMITTERS} values"),
        ("user", "dask.client.user", "on segments of top spans: the user that the client's program runs as, if its "
         "setting `otel.capture.user` is `true`"),
        ("host", "dask.client.host", "likewise, the host that it runs on"),
    )
}
COLLECTIONS = _attribute("dask.collections", "string[]", [SEGMENT], meaning=
    "types of the collections that were computed")
ANNOTATION = _pattern("dask.annotation.<name>", _ONE_OR_MORE, [SEGMENT], meaning=
    "values of a Dask annotation that the setting `otel.annotations` lists")
P2P = _pattern("dask.p2p.<where>.<activity>.<unit>", _BY_UNIT, [SEGMENT], meaning=
    "fine performance metrics of P2P shuffles")
CODE_FILE_PATH = _attribute("code.file.path", "string", [SEGMENT], meaning=
    "file that submitted, if the client sends it (`distributed.diagnostics.computations.nframes`)")
CODE_LINE_NUMBER = _attribute("code.line.number", "int", [SEGMENT], meaning="line of that file")

GROUP_NAME = _attribute("dask.group.name", "string", [GROUP, TASK], cap=MAX_NAME, meaning=
    "name of the group: `TaskGroup.name`")
TASK_PREFIX = _attribute("dask.task.prefix", "string", [GROUP, TASK, METRIC],
    cap=MAX_NAME, max_values=MAX_PREFIXES, meaning=
    "prefix of the group: `TaskGroup.prefix.name`")
GROUP_DEPENDENCIES = _attribute("dask.group.dependencies", "string[]", [GROUP], meaning=
    "names of the groups that it depends on, as many as fit")
TASK_TYPES = _attribute("dask.task.types", "string[]", [GROUP], meaning="types of the results, the most frequent first")
#: By quantile.
TASK_DURATION_QUANTILES = {
    q: _attribute(f"dask.task.duration.{name}", "double", [GROUP], meaning, unit="s")
    for q, name, meaning in (
        (0.5, "p50", "median of the compute times, from logarithmic buckets: ± 4.9 %; exact if the group had one run"),
        (0.95, "p95", "95th percentile of the compute times, likewise"),
        (1.0, "max", "longest compute time, likewise"),
    )
}
RETRY_ERROR_TYPE = _attribute("dask.retry.error.type", "string", [GROUP], meaning=
    "type of the exception of the first run that failed and after which the task ran again (`dask.task.retried`)")
RETRY_ERROR_MESSAGE = _attribute("dask.retry.error.message", "string", [GROUP], meaning="message of that exception")
GROUP_FOLDED = _attribute("dask.group.folded", "int", [GROUP], meaning=
    "on the span `other groups`: number of groups that were folded into it. It has no group name, prefix or fine "
    "metrics")
GROUP_PREFIX_SHARED = _attribute("dask.group.prefix_shared", "bool", [GROUP], meaning=
    "true if several groups of the segment have the same prefix: Dask does not separate their fine metrics")

TASK_KEY = _attribute("dask.task.key", "string", [TASK], cap=MAX_NAME, meaning="key of the task")
TASK_RUN_ID = _attribute("dask.task.run_id", "int", [TASK], meaning=
    "Dask's number of the run; absent if the task never ran")
TASK_PICKED = _attribute("dask.task.picked", "string", [TASK], meaning=
    "why the task has a span: `erred`; `outlier`, if its run [stands out](settings.md#which-tasks-get-a-span); "
    "`slowest`, if it is one of those that `otel.traces.slowest-tasks` adds")
TASK_TYPE = _attribute("dask.task.type", "string", [TASK], meaning="type of the result")
WORKER_ADDRESS = _attribute("dask.worker.address", "string", [TASK], meaning="address of the worker that ran the task")
WORKER_NAME = _attribute("dask.worker.name", "string", [TASK], meaning="name of that worker")
THREAD_ID = _attribute("thread.id", "int", [TASK], meaning="id of the thread that ran the task")

#: Value of ``dask.phase`` on spans of the scheduler.
TAKE_IN = "take_in"
PHASE_NAME = _attribute("dask.phase", "string", [PHASE, CLIENT_PHASE], meaning=
    "what was done: `take_in`, the scheduler's processing of a graph that a client submitted; in an instrumented "
    "client, `optimize`, `serialize`, `submit`, `wait` or `gather`")
GRAPH_TASK_COUNT = _attribute("dask.graph.task.count", "int", [PHASE, CLIENT_PHASE], meaning=
    "tasks of the graph; absent if the graph could not be taken in. In a client, on `submit` if `Client.submit` or "
    "`Client.map` made the graph, or if it is a dictionary: only the scheduler knows the number for collections")
GRAPH_SIZE = _attribute("dask.graph.size", "int", [PHASE, CLIENT_PHASE, CALLER], unit="bytes", meaning=
    "size of the serialised graph as the scheduler received it; in a client, on `serialize`, as it was made")
GATHER_SIZE = _attribute("dask.gather.size", "int", [CLIENT_PHASE, CALLER], unit="bytes", meaning=
    "size of the results in memory, [if it is known](attributes.md#work-of-an-instrumented-client); on `gather`")
#: Sums on the caller's span; by phase.
PHASE_TIMES = {
    phase: _attribute(f"dask.{phase}.time", "double", [CALLER], meaning, unit="s")
    for phase, meaning in {
        "optimize": "time to collect and optimise the graphs of collections, until they were submitted",
        "serialize": "time to make the futures of graphs and to serialise the graphs",
        "submit": "time to hand the graphs to the connection to the scheduler; not how long sending took",
        "wait": "time that calls waited until the tasks had ended",
        "gather": "time that calls took to fetch results after that",
    }.items()
}
SUBMIT_COUNT = _attribute("dask.submit.count", "int", [CALLER], meaning="graphs that were submitted")

PROGRESS_COMPLETED = _attribute("dask.progress.completed", "int", [PENDING], meaning=
    "tasks of the run that had completed; absent if the run had too many open spans to count them")
PROGRESS_COUNT = _attribute("dask.progress.count", "int", [PENDING], meaning=
    "tasks of the run that had been added to the scheduler; absent likewise")
PROGRESS_RUNNING = _attribute("dask.progress.running", "string[]", [PENDING], meaning=
    f"paths of the spans that had unfinished tasks of their own, at most {MAX_PROGRESS_SPANS}")

EXCEPTION_TYPE = _attribute("exception.type", "string", [EXCEPTION], meaning="type of the exception")
EXCEPTION_MESSAGE = _attribute("exception.message", "string", [EXCEPTION], meaning="message of the exception")
EXCEPTION_STACKTRACE = _attribute("exception.stacktrace", "string", [EXCEPTION], meaning=
    f"the last {MAX_TRACEBACK:,} characters of the traceback")

LINK_TYPE = _attribute("dask.link.type", "string", [LINK], meaning="why a span refers to another one")
#: Values of ``dask.link.type``: from which span, to which.
LINK_TYPES = {
    "dependency": "group span → the latest group span of a group that it depends on, also in another trace",
    "continues": "segment → the previous segment of the same Dask span, except where `dask.segment.previous_id` names "
    "it",
    "counted_in": "segment → the segment of another trace that counts tasks which this one requested",
    "caller": "segment of a top span → the span of the caller that submitted its work, with "
    "`otel.client.context: link`, see [below](#work-that-is-linked-to-its-caller)",
    "within": "segment in a caller's trace → the segment of the Dask span around it, see "
    "[below](#work-in-a-callers-trace)",
    "work": "caller's span → the first segment of a root Dask span that has a trace of its own, see "
    "[below](#work-in-a-callers-trace)",
}

for _name, _meaning in {
    "service.name": "`OTEL_SERVICE_NAME`, else `dask-scheduler`",
    "service.instance.id": "the scheduler's id",
    "service.version": "the version of `distributed`",
    "host.name": "the scheduler's host",
    "process.pid": "the scheduler's process",
    "process.runtime.name": "its Python implementation",
    "process.runtime.version": "the version of its Python",
    "process.runtime.description": "the same in full",
    "telemetry.sdk.name": "OpenTelemetry's own",
    "telemetry.sdk.language": "OpenTelemetry's own",
    "telemetry.sdk.version": "OpenTelemetry's own",
}.items():
    _attribute(_name, "int" if _name == "process.pid" else "string", [RESOURCE], _meaning)
CLUSTER_NAME = _attribute("dask.cluster.name", "string", [RESOURCE], meaning=
    "the setting `otel.cluster-name`, else `DASK_GATEWAY_CLUSTER_NAME`, if set")

WATERFALL_PART = _attribute("dask.waterfall.part", "string", [METRIC], meaning=
    "what thread-seconds went into, as in `dask.waterfall.<part>.seconds`")
TASK_STATE = _attribute("dask.task.state", "string", [METRIC], meaning="state of a task on the scheduler")
TASK_OUTCOME = _attribute("dask.task.outcome", "string", [METRIC], meaning=
    "what became of a task, as in `dask.task.<outcome>`")
WORKER_STATUS = _attribute("dask.worker.status", "string", [METRIC], meaning="status of a worker")
WORKER_EXPECTED = _attribute("dask.worker.expected", "bool", [METRIC], meaning="whether the worker was asked to leave")
GRAPH_STATUS = _attribute("dask.graph.status", "string", [METRIC], meaning="`OK`, `error`, `cancelled`")
MEMORY_STATE = _attribute("dask.memory.state", "string", [METRIC], meaning="`managed`, `unmanaged`")
CONTEXT = _attribute("dask.context", "string", [METRIC], max_values=MAX_CONTEXTS, meaning=
    "`execute`, `gather_dep`, `get_data`, `memory_monitor`, `p2p.<where>`")
ACTIVITY = _attribute("dask.activity", "string", [METRIC], max_values=MAX_ACTIVITIES, meaning="what a worker did")
COMPONENT_NAME = _attribute("otel.component.name", "string", [METRIC], max_values=MAX_COMPONENTS, meaning=
    "name of the exporter")
COMPONENT_TYPE = _attribute("otel.component.type", "string", [METRIC], meaning="`dask_otel`")
ERROR_WHERE = _attribute("dask_otel.error.where", "string", [METRIC], max_values=MAX_COMPONENTS, meaning=
    "part of dask-otel that failed")
# fmt: on


@lru_cache(4096, typed=True)
def identifier(text: Hashable) -> str:
    """Return ``text`` as part of an attribute's name: only ``[a-z0-9_]``."""
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")[:64] or "unnamed"


#: What is between the counts and the first exception in a status description; and how counts begin.
FIRST = "; first: "
_COUNTS = re.compile(r"\d+ tasks? (erred|failed upstream)")


def clean(text: str, limit: int = MAX_VALUE) -> str:
    """Return valid UTF-8 text of at most ``limit`` bytes, without a character cut in two.

    A lone surrogate would lose the whole batch that it is exported in.
    """
    if len(text) <= limit and text.isascii():  # nearly all are, and this takes a third of the time
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def shorten(text: str, limit: int) -> str:
    """Return valid UTF-8 text of at most ``limit`` bytes with the start and the end of a longer one, for a person."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    start = 2 * (limit - 3) // 3
    end = len(data) - (limit - 3 - start)
    return f"{data[:start].decode('utf-8', 'ignore')}…{data[end:].decode('utf-8', 'ignore')}"


def typed_error(type_: str, description: str) -> str:
    """Return a span's status description with the type of the first exception, which need not be that of all."""
    counts, first, message = description.partition(FIRST)
    if first:
        return f"{counts}{FIRST}{type_}: {message}"
    if _COUNTS.match(description):
        return f"{description}{FIRST}{type_}"
    return f"{type_}: {description}" if description else type_


def clean_items(texts: Sequence[str], limit: int = MAX_LIST) -> list[str]:
    """Return valid texts of about ``limit`` bytes together; if some are left out, the last item is their number."""
    out: list[str] = []
    room = limit
    for number, text in enumerate(texts):
        item = clean(text, limit)
        room -= len(item.encode())
        if room < 0 and out:
            return [*out, f"… ({len(texts) - number} more)"]
        out.append(item)
    return out
