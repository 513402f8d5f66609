"""What the bridge sent, against what Dask says and what the recorder saw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial as partial_
from typing import Any

from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from support.trees import check_shape, check_sums, children_of

from dask_otel import trace_id
from dask_otel.otlp.exporter import MAX_FINISHED
from dask_otel.spantree.records import ENDS

from .accounts import ByGroup, Numbers, bridge_numbers
from .plan import Plan
from .recorder import Recorder

__all__ = ["Outcome", "compare", "lineage_of"]

#: What became of tasks that another span counts.
_ELSEWHERE = ("completed", "erred", "upstream_failed")
_COUNTS = re.compile(r"dask\.(task|elsewhere)\.[a-z_]+$")
#: Spans of single tasks a group.
_MAX_ERRED, _MAX_SLOWEST = 20, 5


@dataclass
class Outcome:
    """What came of a run."""

    seed: int
    faults: int = 0
    comparisons: int = 0
    #: Tasks that clients requested as new; those of them that Dask alone would have in another group; and how often
    #: one was requested again by a span that does not count it.
    tasks: int = 0
    collided: int = 0
    elsewhere: int = 0
    #: Roots that were forgotten.
    forgotten: int = 0
    #: Spans of workers' processes, and those of runs and calls among them; spans whose parent a process that ended has
    #: not sent; and spans of runs that were not reported since the worker was losing its connection.
    worker_spans: int = 0
    task_spans: int = 0
    lost_parents: int = 0
    unreported: int = 0
    #: Of instrumented clients, and how often the program entered ``with span(...)``.
    submissions: int = 0
    blocks: int = 0
    differences: list[str] = field(default_factory=list)

    def differ(self, path: str, what: str, bridge: object, dask: object) -> None:
        """Note a difference."""
        self.differences.append(f"seed {self.seed} | {path} | {what} | bridge {bridge} | dask {dask}")

    def check(self, path: str, what: str, bridge: Any, dask: Any) -> None:
        """Compare two values."""
        self.comparisons += 1
        if bridge != dask:
            self.differ(path, what, bridge, dask)

    def check_numbers(self, path: str, bridge: Numbers, dask: Numbers) -> None:
        """Compare all numbers of one span or group; what is absent is zero."""
        for name in sorted(bridge.keys() | dask.keys()):
            self.comparisons += 1
            if abs(bridge[name] - dask[name]) > 1e-6:  # floats, added up in another order
                self.differ(path, name, bridge[name], dask[name])


def compare(
    outcome: Outcome,
    plan: Plan,
    dask: ByGroup,
    spans: Sequence[Any],
    finished: Sequence[Mapping[str, Any]],
    recorder: Recorder,
) -> None:
    """Compare everything.

    Parameters
    ----------
    finished
        Runs that the page lists.
    """
    known = recorder.known
    lineage = lineage_of(recorder)
    unsampled = {id_ for id_, ids in lineage.items() if not _is_sampled(ids, plan.sampler)}
    #: Those of which some below are not sent.
    partial = {above for id_ in unsampled for above in lineage[id_]} - unsampled
    # The bridge makes a span for a graph that failed without one.
    unsampled_graphs = {
        each["id"] for each in finished if each["id"] not in lineage and not _is_sampled([each["id"]], plan.sampler)
    }
    left_out = _LeftOut.of(plan, known)
    without_groups = {id_ for id_ in lineage if left_out.lacks_groups(id_)}
    dask = {key: numbers for key, numbers in dask.items() if key[0] not in unsampled | left_out.spans}
    paths = {each.attributes["dask.span.id"]: each.attributes["dask.span.path"] for each in spans}
    paths = {id_: f"{path} [{id_[:8]}]" for id_, path in paths.items()}
    by_kind = {kind: [s for s in spans if s.attributes["dask.kind"] == kind] for kind in ("span", "group", "task")}
    # Others are in the place of group spans, for spans of workers.
    by_kind["group"] = [each for each in by_kind["group"] if "dask.task.count" in each.attributes]
    bridge = bridge_numbers(by_kind["span"] + by_kind["group"])
    _check_traces(
        outcome, paths, by_kind["span"], lineage, unsampled | unsampled_graphs, None if left_out.spans else finished
    )
    folded = _check_folding(outcome, paths, dask, by_kind["span"], by_kind["group"], partial, without_groups)
    for id_, group in sorted(bridge.keys() | dask.keys()):
        if id_ in left_out.spans or (group and id_ in folded and (id_, group) not in folded[id_]):
            continue
        if group and id_ in without_groups:
            continue
        mine, theirs = bridge.get((id_, group), Counter()), dask.get((id_, group), Counter())
        if group:  # Dask has fine metrics of spans only
            mine = Counter({name: value for name, value in mine.items() if not name.startswith("dask.execute.")})
        outcome.check_numbers(f"{paths.get(id_, id_)} {group}".rstrip(), mine, theirs)
    unknown = [s for s in by_kind["span"] if s.attributes["dask.span.id"] not in recorder.lineage.keys() | known.keys()]
    if not (left_out.spans or unsampled_graphs):
        _compare_graphs(outcome, "default", unknown, [recorder.graphs[""]])
    failed = [each for each in unknown if "dask.graph.cancelled" not in each.attributes]
    outcome.check("default", "not Error", [each.name for each in failed if each.status != "Error"], [])
    by_id: dict[str, list[Any]] = {id_: [] for id_ in lineage.keys() - unsampled - left_out.spans}
    for segment in by_kind["span"]:
        if segment not in unknown and segment.attributes["dask.span.id"] not in left_out.spans:
            by_id[segment.attributes["dask.span.id"]].append(segment)
    if plan.split_groups:
        _compare_requested(outcome, paths, by_id, recorder)
    for id_, segments in by_id.items():
        _compare_elsewhere(outcome, paths.get(id_, id_), id_, segments, lineage, recorder)
    if not plan.inside:  # else levels and rates leave some out
        phases = [each for each in spans if each.attributes["dask.kind"] == "phase"]
        ids = (by_id.keys() & recorder.lineage.keys()) - partial  # requested ones
        _compare_phases(outcome, plan, paths, ids, by_id, phases, lineage, recorder)
    for span in by_kind["span"]:
        _check_segment(outcome, paths[span.attributes["dask.span.id"]], span)
    without_tasks = {id_ for id_ in lineage if left_out.lacks_tasks(id_)}
    for span in by_kind["group"]:
        if span.attributes["dask.span.id"] not in without_tasks:
            _check_tasks(outcome, paths[span.attributes["dask.span.id"]], span, by_kind["task"], recorder)
    _compare_erred(outcome, paths, by_kind["task"], recorder, folded, unsampled | without_tasks)
    checks = partial_(check_shape, spans, all_sent=not unsampled), partial_(check_sums, spans, partial | without_groups)
    for check in checks:
        outcome.comparisons += 1
        try:
            check()
        except AssertionError as error:
            outcome.differ("-", check.func.__name__, error, "-")


@dataclass(frozen=True)
class _LeftOut:
    """What settings leave out of the traces, unless spans of workers are below it."""

    #: Ids of the spans of work without a span.
    defaults: Set[str]
    #: Those of them that are not sent.
    spans: Set[str]
    #: Whether groups are left out, and tasks: of these, and of all other spans.
    groups_of_defaults: bool
    groups: bool
    tasks: bool

    @classmethod
    def of(cls, plan: Plan, known: Mapping[str, Any]) -> _LeftOut:
        defaults = {id_ for id_, span in known.items() if span.name == ("default",)}
        if plan.inside is None:
            return cls(defaults, set(), groups_of_defaults=False, groups=False, tasks=False)
        level, max_rate, default_spans = plan.inside.level, plan.inside.max_rate, plan.inside.default_spans
        return cls(
            defaults,
            defaults if default_spans == "off" else set(),
            groups_of_defaults=default_spans != "full",
            groups=level == "spans" or max_rate > 0,
            tasks=level != "tasks" or max_rate > 0,
        )

    def lacks_groups(self, id_: str) -> bool:
        """Whether groups of a span are left out."""
        return self.groups or (self.groups_of_defaults and id_ in self.defaults)

    def lacks_tasks(self, id_: str) -> bool:
        """Whether tasks of a span are left out."""
        return self.tasks or self.lacks_groups(id_)


def _is_sampled(ids: Sequence[str], sampler: str) -> bool:
    """Whether the scheduler sends a Dask span, by the ids from its root down."""
    trace, is_sampled, _ = _where(ids)
    if sampler == "parentbased_traceidratio" and not trace:
        return TraceIdRatioBased(0.5).should_sample(None, int(trace_id(ids[0]), 16), "").decision.is_sampled()
    return is_sampled or sampler == "always_on"


def _where(ids: Sequence[str]) -> tuple[str, bool, bool]:
    """Trace of a Dask span by the ids from its root down, empty if the root's; if it is sampled; if it is on top."""
    trace, is_sampled, is_top = "", True, True
    for depth, id_ in enumerate(ids):
        is_top = depth == 0
        if id_.startswith("00-"):
            own, flags = id_[3:35], int(id_[53:55], 16)
            if own != trace:
                trace, is_sampled, is_top = own, bool(flags & 1), True
    return trace, is_sampled, is_top


def _check_traces(
    outcome: Outcome,
    paths: Mapping[str, str],
    segments: Sequence[Any],
    lineage: Mapping[str, Sequence[str]],
    unsampled: Set[str],
    finished: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Check in which trace each segment is, and below what; and which runs the page lists, unless some are left out."""
    dask_ids = {(each.trace_id, each.span_id): each.attributes["dask.span.id"] for each in segments}
    tops: Counter[tuple[str, str]] = Counter()
    for segment in segments:
        id_ = segment.attributes["dask.span.id"]
        ids = lineage.get(id_, (id_,))
        trace, _, is_top = _where(ids)
        outcome.check(paths[id_], "sampled", id_ not in unsampled, True)
        if trace or segment.attributes["dask.span.root"] != "default":  # which may roll over
            outcome.check(paths[id_], "trace", segment.trace_id, trace or trace_id(ids[0]))
        if is_top:
            tops[id_, segment.trace_id] += 1
            outcome.check(paths[id_], "parent", segment.parent_id, id_[36:52] if id_.startswith("00-") else "")
        else:
            outcome.check(paths[id_], "parent", dask_ids.get((segment.trace_id, segment.parent_id)), ids[-2])
    if finished is not None and len(finished) < MAX_FINISHED:
        listed = Counter((each["id"], each["trace_id"]) for each in finished if each["trace_id"])
        outcome.check("-", "finished", listed, tops)
        ids_left_out = {each["id"] for each in finished if not each["trace_id"]}
        outcome.check("-", "finished and not sampled", ids_left_out - unsampled, set())


def _check_folding(
    outcome: Outcome,
    paths: Mapping[str, str],
    dask: ByGroup,
    segments: Sequence[Any],
    groups: Sequence[Any],
    partial: Set[str],
    without_groups: Set[str],
) -> dict[str, set[tuple[str, str]]]:
    """Check how many groups are said to be left out.

    Returns
    -------
    By id of each span with groups that were folded: those that were not, id of the span and name, as far as all that
    they did is in one segment.
    """
    shown: dict[str, set[tuple[str, str]]] = {}
    for segment in segments:
        id_ = segment.attributes["dask.span.id"]
        if id_ in without_groups:
            continue
        inside = children_of(segment, (*segments, *groups))
        own = [s for s in inside if s.attributes["dask.kind"] == "group"]
        left_out = sum(s.attributes.get("dask.group.folded", 0) for s in own)
        below = sum(s.attributes.get("dask.truncated.groups", 0) for s in inside if s not in own)
        path = paths[id_]
        if id_ not in partial:
            outcome.check(path, "groups left out", segment.attributes.get("dask.truncated.groups", 0), left_out + below)
        names = {(id_, s.attributes["dask.group.name"]) for s in own if "dask.group.folded" not in s.attributes}
        if sum(each.attributes["dask.span.id"] == id_ for each in segments) == 1:
            every = {(each, name) for each, name in dask if each == id_ and name}
            outcome.check(path, "dask.group.folded", left_out, len(every - names))
            if left_out:
                shown[id_] = names
        elif left_out:
            shown[id_] = set()
    return shown


def lineage_of(recorder: Recorder) -> dict[str, tuple[str, ...]]:
    """Return the ids of each span that there has been, from its root down."""
    return recorder.lineage | {id_: tuple(_lineage(span)) for id_, span in recorder.known.items()}


def _lineage(span: Any) -> list[str]:
    return [*(_lineage(span.parent) if span.parent else []), span.id]


def _compare_requested(
    outcome: Outcome,
    paths: Mapping[str, str],
    segments: Mapping[str, Sequence[Any]],
    recorder: Recorder,
) -> None:
    """Compare how many tasks are in each span with how many were requested as new in it; without one, in ``default``.

    Scattered data, which nobody requested, counts where Dask has it.
    """
    known = recorder.known
    defaults = {id_ for id_, span in known.items() if span.name == ("default",)}
    requested: Counter[str] = Counter()
    for life in recorder.lives:
        owner = life.task.group.span_id
        if life.requested is not None:
            requested.update(life.requested or ("default",))
        elif owner in defaults:
            requested["default"] += bool(segments.get(owner))
        elif owner:
            requested.update(_lineage(known[owner]))
    counted: Counter[str] = Counter()
    for id_, each in segments.items():
        counted["default" if id_ in defaults else id_] += sum(s.attributes["dask.task.count"] for s in each)
    for id_ in counted.keys() | {"default"}:
        if id_ == "default" and not defaults <= segments.keys():
            continue  # some are left out
        outcome.check(paths.get(id_, id_), "tasks requested", counted[id_], requested[id_])
    outcome.check("-", "tasks outside the span that requested them", recorder.misplaced, [])
    outcome.tasks = sum(life.requested is not None for life in recorder.lives)
    outcome.collided = sum(life.has_collided for life in recorder.lives)
    outcome.elsewhere = sum(outcomes.total() for outcomes in recorder.elsewhere.values())


def _compare_elsewhere(
    outcome: Outcome, path: str, id_: str, segments: Sequence[Any], lineage: Mapping[str, Any], recorder: Recorder
) -> None:
    """Compare what became of tasks that a span requested, wherever Dask counts them."""

    def inside(other: str) -> bool:
        return id_ in lineage.get(other, ())

    elsewhere: Numbers = Counter()
    for (requesting, owner), outcomes in recorder.elsewhere.items():
        if inside(requesting) and not inside(owner):
            elsewhere.update(outcomes)
    for name in _ELSEWHERE:
        sent = sum(segment.attributes.get(f"dask.elsewhere.{name}", 0) for segment in segments)
        outcome.check(path, f"dask.elsewhere.{name}", sent, elsewhere[name])
    counted_in: set[str] = set()
    for segment in segments:
        ids = segment.attributes.get("dask.span.counted_in", [])
        counted_in |= {ids} if isinstance(ids, str) else set(ids)
    owners = {owner for requesting, owner in recorder.elsewhere if requesting == id_}
    outcome.check(path, "dask.span.counted_in", sorted(counted_in), sorted(owners))
    _compare_graphs(outcome, path, segments, [graphs for around, graphs in recorder.graphs.items() if inside(around)])
    # A run that is lost or interrupted has that status, too, though no task of it failed.
    errors = [s for s in segments if s.status == "Error" and s.attributes["error.type"] not in ENDS]
    has_failed = bool(errors)
    outcome.comparisons += 3
    for segment in segments:
        ended = segment.attributes.get("error.type") in ENDS
        if ended and (
            segment.attributes["dask.span.result"] not in ENDS or "did not end" not in segment.status_message
        ):
            outcome.differ(path, "status of a run that did not end", segment.status_message, segment.attributes)
    if any(map(inside, recorder.must_fail)) and not has_failed:
        outcome.differ(path, "status", "not Error", "Error")
    if has_failed and not any(map(inside, recorder.may_fail)):
        outcome.differ(path, "status", f"Error: {[segment.status_message for segment in errors]}", "not Error")
    lives = [life for life in recorder.lives if any(map(inside, life.requesting))]
    if lives and all(life.has_completed for life in lives) and not any(map(inside, recorder.unclean)):
        results = {segment.attributes["dask.span.result"] for segment in segments}
        outcome.check(path, "dask.span.result", results - {"success", "unfinished", "interrupted"}, set())


def _compare_graphs(outcome: Outcome, path: str, segments: Sequence[Any], seen: Sequence[Numbers]) -> None:
    """Compare how many graphs were not taken in."""
    for status, name in (("error", "failed"), ("cancelled", "cancelled")):
        sent = sum(segment.attributes.get(f"dask.graph.{name}", 0) for segment in segments)
        outcome.check(path, f"dask.graph.{name}", sent, sum(graphs[status] for graphs in seen))


def _compare_phases(
    outcome: Outcome,
    plan: Plan,
    paths: Mapping[str, str],
    ids: Set[str],
    segments: Mapping[str, Sequence[Any]],
    phases: Sequence[Any],
    lineage: Mapping[str, Sequence[str]],
    recorder: Recorder,
) -> None:
    """Compare how many graphs were requested in each span, and those inside it, with the spans of phases."""
    for id_ in ids:
        sent = sum(id_ in lineage.get(each.attributes["dask.span.id"], ()) for each in phases)
        sent += sum(each.attributes.get("dask.truncated.phases", 0) for each in segments[id_])
        graphs = sum(count for around, count in recorder.graphs_of.items() if id_ in lineage.get(around, ()))
        # A graph that was requested in no span is shown where most of its tasks are.
        elsewhere = 0 if plan.phase_threshold else min(max(0, sent - graphs), recorder.graphs_of[""])
        outcome.check(paths.get(id_, id_), "phases", sent, 0 if plan.phase_threshold else graphs + elsewhere)


def _check_segment(outcome: Outcome, path: str, segment: Any) -> None:
    """What holds of every segment."""
    for name, value in segment.attributes.items():
        if _COUNTS.match(name):
            outcome.comparisons += 1
            if value < 0:
                outcome.differ(path, name, value, "not negative")
    thread_time = {
        each: segment.attributes.get(f"dask.thread_time.{each}", 0.0) for each in ("available", "busy", "others")
    }
    outcome.comparisons += 2
    if "dask.efficiency" in segment.attributes and thread_time["busy"] > thread_time["available"]:
        outcome.differ(path, "busy > available, with efficiency", thread_time, "-")
    if thread_time["others"] > thread_time["available"]:
        outcome.differ(path, "others > available", thread_time, "-")
    walls = sum(value for name, value in segment.attributes.items() if name.startswith("dask.wall."))
    outcome.check_numbers(path, Counter({"sum of dask.wall": walls}), Counter({"sum of dask.wall": segment.seconds}))


def _check_tasks(outcome: Outcome, path: str, group: Any, tasks: Sequence[Any], recorder: Recorder) -> None:
    """What holds of the task spans of every group span, besides those that workers have made."""
    name = group.attributes.get("dask.group.name", "other groups")
    children = [task for task in tasks if task.parent_id == group.span_id]
    if "dask.group.folded" not in group.attributes:
        names = {task.attributes["dask.group.name"] for task in children}
        outcome.check(path, "groups of tasks", names - {name}, set())
    picked = Counter(task.attributes["dask.task.picked"] for task in children)
    erred, completed = (group.attributes.get(f"dask.task.{each}", 0) for each in ("erred", "completed"))
    made = _made_by_workers(group, recorder)
    slow = picked["outlier"] + picked["slowest"]
    for what, number, all_, most, reported in (
        ("spans of erred tasks", picked["erred"], erred, _MAX_ERRED, made["erred"]),
        ("spans of slow tasks", slow, completed, _MAX_SLOWEST, made["completed"]),
    ):
        least = max(0, min(most, all_) - reported)
        outcome.check(f"{path} {name}", what, number, min(max(number, least), most, all_))


def _made_by_workers(group: Any, recorder: Recorder) -> Counter[str]:
    """How many spans workers have made of a group's tasks, or all that may be in it, by outcome of the task."""
    made: Counter[str] = Counter()
    id_, name = group.attributes["dask.span.id"], group.attributes.get("dask.group.name")
    for of, counts in recorder.with_span.items():
        if of.span_id == id_ and name in (None, str(of.name)):
            made.update(counts)
    return made


def _compare_erred(
    outcome: Outcome,
    paths: Mapping[str, str],
    tasks: Sequence[Any],
    recorder: Recorder,
    folded: Mapping[str, set[tuple[str, str]]],
    without_tasks: Set[str],
) -> None:
    """Compare which failed tasks have a span, besides those that workers have made."""
    sent: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        if task.attributes["dask.task.picked"] == "erred":
            key = task.attributes["dask.span.id"], task.attributes["dask.group.name"]
            sent.setdefault(key, []).append(task.attributes["dask.task.key"])
    seen: dict[tuple[str, str], list[str]] = {}
    for group, keys in recorder.erred.items():
        seen.setdefault((group.span_id, str(group.name)), []).extend(keys)
    for id_, name in sorted(sent.keys() | seen.keys()):
        if id_ in without_tasks:
            continue
        shown, keys = sorted(sent.get((id_, name), [])), sorted(seen.get((id_, name), []))
        if id_ in folded and (id_, name) not in folded[id_]:  # so many for all that were folded
            outcome.check(f"{paths.get(id_, id_)} {name}", "erred tasks", set(shown) - set(keys), set())
        elif len(keys) <= _MAX_ERRED:
            outcome.check(f"{paths.get(id_, id_)} {name}", "erred tasks", shown, keys)
