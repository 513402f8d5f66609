"""Which traces are sent, by the standard variables ``OTEL_TRACES_SAMPLER`` and ``OTEL_TRACES_SAMPLER_ARG``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from ..errors import Remarks, SettingError
from ..identity import Caller
from ..safety import Safety
from ..schema import MAX_NAME, SPAN_ROOT, clean
from ..spantree.records import Record
from .environment import read_variable

__all__ = ["Decided", "Sampling", "caller_context", "make_sampler"]

_BUILT_IN: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda ratio: ALWAYS_ON,
    "always_off": lambda ratio: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda ratio: ParentBased(ALWAYS_ON),
    "parentbased_always_off": lambda ratio: ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": lambda ratio: ParentBased(TraceIdRatioBased(ratio)),
}
_GROUP = "opentelemetry_traces_sampler"
#: Traces whose decision is remembered. The built-in samplers would decide the same again.
MAX_REMEMBERED = 10_000


def make_sampler(remarks: Remarks) -> Sampler | None:
    """Make the sampler that the variables name; None for ``parentbased_always_on``.

    As in the SDK, that is the default, and what is used instead of one that does not exist or does not start.
    """
    name = read_variable("OTEL_TRACES_SAMPLER")
    argument = read_variable("OTEL_TRACES_SAMPLER_ARG")
    if not name:
        return None
    make = _BUILT_IN.get(name.lower())
    if make:
        has_ratio = name.lower().endswith("traceidratio")
        ratio = _ratio(argument, remarks) if has_ratio else 1.0
        if ratio == 0.0 or name.lower().endswith("always_off"):
            what = "every trace without a sampled caller" if name.lower().startswith("parentbased") else "every trace"
            given = f" with OTEL_TRACES_SAMPLER_ARG={argument}" if has_ratio else ""
            remarks.reading(f"OTEL_TRACES_SAMPLER={name}{given} excludes {what}")
        return make(ratio)
    try:
        return _from_entry_point(name, argument)
    except SettingError as error:
        remarks.fall_back(error, "parentbased_always_on is used, the default")
        return None


def _from_entry_point(name: str, argument: str) -> Sampler:
    """A factory that takes the argument as text; the SDK finds these for its own provider only."""
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    if name not in installed:
        allowed = ", ".join(sorted({*_BUILT_IN, *installed}))
        raise SettingError("OTEL_TRACES_SAMPLER", name, f"one of {allowed}")
    try:
        sampler: Any = installed[name].load()(argument)
    except Exception as error:
        raise SettingError("OTEL_TRACES_SAMPLER", name, f"one that starts, but this one raises {error}") from error
    if not isinstance(sampler, Sampler):
        raise SettingError("OTEL_TRACES_SAMPLER", name, f"a Sampler, but this one makes a {type(sampler).__name__}")
    return sampler


def _ratio(argument: str, remarks: Remarks) -> float:
    try:
        ratio = float(argument or 1.0)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        error = SettingError("OTEL_TRACES_SAMPLER_ARG", argument, "a ratio from 0 to 1, e.g. 0.1")
        remarks.fall_back(error, "1.0 is used, which sends every trace")
        return 1.0
    return ratio


class Decided(NamedTuple):
    """What a sampler decided of a trace."""

    takes: bool
    #: For the spans at the top of the trace.
    attributes: Mapping[str, Any] = {}
    #: For all its spans.
    state: TraceState | None = None


_TAKEN, _LEFT_OUT = Decided(takes=True), Decided(takes=False)


class Sampling:
    """Decides once per trace, when its first tasks arrive or its first span leaves: by its id, caller and name.

    Callers in one trace need not agree on whether it is sampled: the decision is for the cluster's spans below one.

    Parameters
    ----------
    shown
        Says how a span's tags may be shown, also to a sampler.
    """

    def __init__(
        self, sampler: Sampler | None, shown: Callable[[tuple[str, ...]], tuple[str, ...]], safety: Safety
    ) -> None:
        self._safety = safety
        self._sampler = sampler
        self._shown = shown
        #: By trace, the oldest first. Export threads look up single traces while the event loop adds some, which a
        #: plain dict allows; nobody else may iterate over it.
        self._decisions: dict[tuple[int, Caller | None], Decided] = {}

    @property
    def has_sampler(self) -> bool:
        """Whether anything but the caller of a trace decides."""
        return self._sampler is not None

    def decided(self, record: Record) -> Decided:
        """What was decided of the trace of a record."""
        return self.decide(record.trace_id, record.caller, record.span.tags, record.top.tags)

    def decide(self, trace_id: int, caller: Caller | None, tags: tuple[str, ...], top: tuple[str, ...]) -> Decided:
        """Decide of a trace, once, by the tags of one of its Dask spans and of the one at its top."""
        if self._sampler is None:
            return _TAKEN if caller is None or caller.is_sampled else _LEFT_OUT
        key = trace_id, caller
        decided = self._decisions.get(key)
        if decided is None:
            decided = _TAKEN  # if the sampler fails
            with self._safety.guard("sampler"):
                decided = self._ask(self._sampler, trace_id, caller, tags, top)
            self._decisions[key] = decided
            if len(self._decisions) > MAX_REMEMBERED:
                del self._decisions[next(iter(self._decisions))]
        return decided

    def known(self, record: Record) -> Decided:
        """What was decided of the trace of a record that is sent, if it is remembered; for other threads."""
        return self._decisions.get((record.trace_id, record.caller), _TAKEN)

    def _ask(
        self,
        sampler: Sampler,
        trace_id: int,
        caller: Caller | None,
        tags: tuple[str, ...],
        top: tuple[str, ...],
    ) -> Decided:
        root, name = self._shown(tags)[0], self._shown(top)[-1]
        # Not None: that would be whatever span is current here.
        context, kind = Context(), SpanKind.INTERNAL
        if caller:
            context = set_span_in_context(NonRecordingSpan(caller_context(caller)), context)
            kind = SpanKind.SERVER
        attributes = {SPAN_ROOT: clean(root, MAX_NAME)}
        result = sampler.should_sample(context, trace_id, clean(name, MAX_NAME), kind, attributes)
        takes = result.decision is Decision.RECORD_AND_SAMPLE
        return Decided(takes, dict(result.attributes or {}), result.trace_state)


def caller_context(caller: Caller, state: TraceState | None = None) -> SpanContext:
    """Make OpenTelemetry's description of a caller."""
    flags = TraceFlags(TraceFlags.SAMPLED if caller.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(caller.trace_id, caller.span_id, is_remote=True, trace_flags=flags, trace_state=state)
