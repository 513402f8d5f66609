"""Every cap on what dask-otel sends: on texts, lists, links, spans of a trace, and series of metrics."""

from __future__ import annotations

#: Bytes of a text; Tempo cuts at 2,048.
MAX_VALUE = 2000
#: Bytes of a name. Names are on every span, so they make up most of a trace's size.
MAX_NAME = 250
#: Bytes of a list, about.
MAX_LIST = 1000
#: Characters of a traceback, of which the end is kept.
MAX_TRACEBACK = 1900

#: Links of a span; a group names its other dependencies in an attribute.
MAX_LINKS = 32
#: Activities that a span has attributes for, in each context; the others are summed under ``other``.
MAX_SPAN_ACTIVITIES = 32
#: Groups that a group depends on.
MAX_DEPENDENCIES = 128
#: Spans that a pending span names.
MAX_PROGRESS_SPANS = 32
#: Services, users and hosts that submitted to a segment, of each; and spans of callers that it links to.
MAX_SUBMITTERS = 32
MAX_CALLERS = 8
#: Spans of phases of a segment.
MAX_PHASES = 20
#: Types of results of the span ``other groups``.
MAX_TYPES = 32
#: Steps of a critical path that a segment names, and bytes of each, so that they fit in a list.
MAX_STEPS = 10
MAX_STEP = MAX_LIST // MAX_STEPS
#: Values of one annotation that one graph may add to a segment.
MAX_ANNOTATION_VALUES = 32

#: Task spans of a group: of failed tasks, and of runs that stand out or are the slowest.
MAX_ERRED = 20
MAX_SLOWEST = 5
#: Spans in the trace of one segment of a root and all segments below it. Together they stay below the 5 MB at which
#: Tempo drops a trace; the span of a failed task carries a traceback and is four times as large as others.
MAX_GROUP_SPANS = 1000
MAX_ERRED_SPANS = 200
MAX_SLOWEST_SPANS = 800

#: Series of one scheduler, counted as Prometheus does: a histogram has one for each bucket, its sum and its count.
MAX_SERIES = 3000
#: Values of attributes of metrics at a time; the others are recorded as ``other``.
MAX_PREFIXES = 50
MAX_ROOT_NAMES = 50
MAX_CONTEXTS = 16
MAX_ACTIVITIES = 32
MAX_ERROR_TYPES = 32
MAX_COMPONENTS = 32
#: Ids of verdicts that there may be.
MAX_VERDICTS = 32
#: Characters of an attribute of a metric.
MAX_METRIC_VALUE = 200
#: Seconds after which a value that was not recorded makes room for another one.
UNUSED_AFTER = 86_400.0
