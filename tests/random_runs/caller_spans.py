"""Spans of the program that submits, against what it did, and whose traces the cluster's work is in."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distributed import Scheduler
from opentelemetry.context import Context

from dask_otel import schema
from dask_otel.client import implicit_spans, phase_spans
from dask_otel.client.submitting import safety
from dask_otel.scheduler.cluster import _recorders

from .callers import PROGRAM, Callers
from .compare import Outcome
from .plan import Plan
from .recorder import Recorder
from .submissions import Ids, Outside, SpanOf, Submission

__all__ = ["check_caller_spans", "check_client", "check_metrics", "is_of_program"]

#: What leaves a block without an error.
_NO_ERROR = ("CancelledError", "GeneratorExit")
#: Callers that a segment has links to.
MAX_CALLERS = 8
#: How tasks end, as the recorder sees it.
_OUTCOMES = ("completed", "erred", "upstream_failed")


def is_of_program(span: Any) -> bool:
    """Whether a span is the program's: one of its own, a block's, or that of a phase; not one of a task."""
    has = span.attributes.keys() & {PROGRAM, schema.SPAN_ID, schema.PHASE_NAME}
    return bool(has) and schema.KIND not in span.attributes


def check_caller_spans(
    outcome: Outcome, plan: Plan, spans: Sequence[Any], recorder: Recorder, callers: Callers
) -> None:
    """Check the program's spans, and the scheduler's and the workers' by them.

    Orphans among the workers' spans are found elsewhere.
    """
    assert plan.calling
    ids = Counter((each.trace_id, each.span_id) for each in spans)
    outcome.check("-", "span ids that were sent twice", {id_ for id_, times in ids.items() if times > 1}, set())
    programs = [each for each in spans if is_of_program(each)]
    clusters = [each for each in spans if each.resource["service.name"] == "dask-scheduler"]
    submitted = [each for each in recorder.submitted if each.outside]
    outcome.submissions, outcome.blocks = len(submitted), len(callers.blocks)
    _check_made(outcome, programs, callers)
    _check_blocks(outcome, plan, programs, callers)
    lineages = {each.inside: each.lineage for each in callers.blocks if each.inside and each.inside != each.around}
    for each in submitted:
        _check_submission(outcome, plan, each, lineages)
    _check_apart(outcome, submitted, lineages)
    if plan.calling.context != "none":
        # But for what is in another Dask span inside the block whose span is current.
        inside = {each.outside for each in submitted if each.outside and each.around == each.outside.opened}
        own = [s for s in submitted if s.outside not in inside or lineages.get(s.outside.caller, s.around) == s.around]
        _check_traces(outcome, own, clusters, programs)
    every = _callers(submitted, callers)
    unsampled = {each for each in every if not each.is_sampled}
    if plan.sampler != "always_on":
        traces = {each.trace_id for each in unsampled} - {each.trace_id for each in every - unsampled}
        sent = [each.name for each in spans if each.trace_id in traces]
        outcome.check("-", "spans of callers that are not sampled", sent, [])
    elsewhere = {each[:2] for each in callers.elsewhere | unsampled}
    for span in (*programs, *clusters):
        outcome.comparisons += 1
        parent = span.trace_id, span.parent_id
        if span.parent_id and parent not in ids and parent not in elsewhere:
            outcome.differ(_path(span), "orphan", span.parent_id, "a parent in its trace")


def _check_made(outcome: Outcome, programs: Sequence[Any], callers: Callers) -> None:
    """Check spans that the program made itself: nothing that happens to its work concerns their status."""
    sent = {(s.trace_id, s.span_id): (s.parent_id, s.status) for s in programs if PROGRAM in s.attributes}
    made = {each[:2]: (parent, "Unset") for each, parent in callers.made.items() if each.is_sampled}
    for id_ in sent.keys() | made.keys():
        outcome.check(str(id_), "parent and status of the program's span", sent.get(id_), made.get(id_))


def _check_blocks(outcome: Outcome, plan: Plan, programs: Sequence[Any], callers: Callers) -> None:
    """Check that each block that is sampled has its spans, one inside the other, and the status of the block."""
    assert plan.calling
    sent: dict[str, list[Any]] = defaultdict(list)
    for span in programs:
        if schema.SPAN_ID in span.attributes:
            sent[span.attributes[schema.SPAN_ID]].append(span)
    known: set[str] = set()
    for block in callers.blocks:
        path = "/".join(block.tags)
        has_spans = plan.calling.context != "none"
        outcome.check(path, "block has a span", block.inside != block.around, has_spans)
        known.update(block.ids)
        spans = [span for id_ in block.ids for span in sent[id_]]
        if not (has_spans and block.inside and block.inside.is_sampled):
            outcome.check(path, "spans of a block that is not sampled", spans, [])
            continue
        outcome.check(path, "spans of a block", [each.name for each in spans], [*block.tags])
        above = [block.around.span_id if block.around else "", *(each.span_id for each in spans)]
        outcome.check(path, "parents", [*(each.parent_id for each in spans), block.inside.span_id], above)
        result = ("Unset", None)
        if block.error:
            name = block.error.__name__
            result = ("Unset" if name in _NO_ERROR else "Error", "cancelled" if name == "CancelledError" else None)
        results = {(each.status, each.attributes.get(schema.SPAN_RESULT)) for each in spans}
        outcome.check(path, "status of a block", results, {result})
    outcome.check("-", "spans of no block", sent.keys() - known, set())


def _check_submission(outcome: Outcome, plan: Plan, submission: Submission, lineages: Mapping[SpanOf, Ids]) -> None:
    """Check in which Dask span a submission is: the open one, that of the caller's block, or an implicit one.

    Parameters
    ----------
    lineages
        By spans of blocks, the ids of the Dask spans.
    """
    assert plan.calling
    assert submission.outside
    around, (caller, opened, _) = submission.around, submission.outside
    path = "/".join(around)
    if caller is None or plan.calling.context == "none":
        outcome.check(path, "Dask span without a caller", around, opened)
        return
    block = lineages.get(caller)
    if block and opened[: len(block)] in ((), block):  # in the block, or in a thread that has not got Dask's context
        outcome.check(path, "Dask span of a block", around, opened or block)
        return
    outcome.check(path, "Dask span inside the open one", around[: len(opened)], opened)
    if plan.calling.context == "parent" or not caller.is_sampled:
        outcome.check(path, "Dask span of its caller", _anchor(around), caller)


def _anchor(around: Ids) -> SpanOf | None:
    """Return the caller whose ``traceparent`` a Dask span's id is."""
    version, *parts = around[-1].partition(";")[0].split("-") if around else [""]
    return SpanOf(parts[0], parts[1], bool(int(parts[2], 16) & 1)) if version == "00" and len(parts) == 3 else None


def _check_apart(outcome: Outcome, submitted: Iterable[Submission], blocks: Mapping[SpanOf, Ids]) -> None:
    """Check that what has one caller and client is in one Dask span; and if that is implicit, nothing else is in it."""
    callers: dict[str, set[tuple[SpanOf, str]]] = defaultdict(set)
    lineages: dict[str, set[Ids]] = defaultdict(set)
    arounds: dict[Outside, set[Ids]] = defaultdict(set)
    for each in submitted:
        if each.outside and each.around:
            arounds[each.outside].add(each.around)
            lineages[each.around[-1]].add(each.around)
            caller, opened, client = each.outside
            if caller and each.around not in (opened, blocks.get(caller)):
                callers[each.around[-1]].add((caller, client))
    for what, values in (("callers", callers), ("lineages", lineages)):
        for id_, found in values.items():
            outcome.check(id_, f"{what} of a Dask span", len(found), 1)
    for outside, found in arounds.items():
        outcome.check(str(outside), "Dask spans of a caller", len(found), 1)


def _check_traces(
    outcome: Outcome, submitted: Iterable[Submission], clusters: Sequence[Any], programs: Sequence[Any]
) -> None:
    """Check that work is in the trace of its caller, or in one that is linked with that, both ways."""
    segments: dict[str, list[Any]] = defaultdict(list)
    for span in sorted(clusters, key=lambda each: each.start):
        if span.attributes[schema.KIND] == "span":
            segments[span.attributes[schema.SPAN_ID]].append(span)
    leads: dict[Any, set[Any]] = defaultdict(set)
    for span in programs:
        for trace_id, span_id, _ in span.links:
            leads[span.trace_id, trace_id, span_id].add((span.trace_id, span.span_id, "caller"))
    here = {(each.trace_id, each.span_id) for each in programs}
    for each in submitted:
        caller = each.outside and each.outside.caller
        for segment in segments[each.around[-1]] if caller and each.around else ():
            outcome.comparisons += 1
            if segment.trace_id == caller.trace_id:
                continue
            roots = segments[each.around[0]]
            back = {link for root in roots for link in root.links if link[2] == "caller"}
            there = leads[caller.trace_id, roots[0].trace_id, roots[0].span_id]
            if caller[:2] not in here:  # no span to link from
                there = {(*caller[:2], "caller")}
            is_full = len(back) >= MAX_CALLERS
            if roots[0].trace_id != segment.trace_id or not there or not (there & back or is_full):
                outcome.differ(_path(segment), "trace", f"{segment.trace_id} {back}", f"{caller} {there}")


def _callers(submitted: Iterable[Submission], callers: Callers) -> set[SpanOf]:
    """Return all spans of callers, also those in other processes."""
    found = {each.outside.caller for each in submitted if each.outside}
    for block in callers.blocks:
        found |= {block.inside, *(_anchor((id_,)) for id_ in block.ids)}
    return {each for each in found if each} | callers.made.keys() | callers.elsewhere


def check_metrics(outcome: Outcome, scheduler: Scheduler, recorder: Recorder) -> None:
    """Check that metrics count all tasks, whoever the caller is."""
    counted: Counter[Any] = Counter()
    for points in _recorders[scheduler].collect():
        if points.metric == schema.TASK_FINISHED:
            for point in points.points:
                counted[point.attributes[1]] += point.value
    seen = sum(recorder.outcomes.values(), Counter())
    for name in _OUTCOMES:
        outcome.check("-", f"dask.task.finished {name}", counted[name], seen[name])


def check_client(outcome: Outcome) -> None:
    """Check at the end that nothing has failed in the clients, and that they keep nothing of spans that are gone."""
    outcome.check("-", "failed in clients", dict(safety.failures), {})
    known: list[Mapping[Any, Any]] = [implicit_spans._known, implicit_spans._linked]
    known += [phases._sums for phases in phase_spans._all]
    kept = {id(span): span for each in known for span in each}
    # Clients and workers that were made under a span keep their context.
    names = [s.name for s in kept.values() if not any(isinstance(each, Context) for each in gc.get_referrers(s))]
    outcome.check("-", "kept in clients", names, [])


def _path(span: Any) -> str:
    return span.attributes.get("dask.span.path", span.name)
