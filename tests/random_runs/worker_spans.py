"""Spans that workers' tasks made, against the scheduler's: no orphan, no double, and each as its run ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence, Set
from typing import Any

from distributed.utils import key_split_group

from dask_otel.identity import group_id

from .cluster import Cluster
from .compare import Outcome
from .recorder import Id, Recorder
from .sending import PEOPLE
from .uses import KEY, RAISED, WORKER

__all__ = ["check_worker_spans"]

#: What a run raises that is no error.
_NO_ERROR = ("", "Reschedule", "CancelledError")


def check_worker_spans(
    outcome: Outcome, spans: Sequence[Any], recorder: Recorder, sent: Set[str], cluster: Cluster
) -> None:
    """Check the spans of all processes together.

    Parameters
    ----------
    sent
        ``service.instance.id`` of the processes that have sent all their spans; others were killed, or have ended.
    """
    ids = Counter(map(_id, spans))
    outcome.check("-", "span ids that were sent twice", {id_ for id_, times in ids.items() if times > 1}, set())
    people = [each for each in spans if each.resource["service.name"] == PEOPLE]
    tasks = [each for each in people if "dask.kind" in each.attributes]
    outcome.worker_spans, outcome.task_spans = len(people), len(tasks)
    lost = {each.address for each in cluster.apart if each.instance not in sent}
    _check_parents(outcome, people, ids, recorder, sent, lost)
    _check_reports(outcome, tasks, ids, recorder, lost)
    _check_runs(outcome, spans, tasks, recorder)
    _check_children(outcome, spans, people)


def _check_parents(
    outcome: Outcome,
    people: Sequence[Any],
    ids: Container[Id],
    recorder: Recorder,
    sent: Set[str],
    lost: Set[str],
) -> None:
    """Find orphans: those that are a person's own loss are counted, others are differences.

    Parameters
    ----------
    lost
        Addresses of workers in processes that have not sent all their spans.
    """
    groups = {life.task.group for life in recorder.lives}
    of_scheduler = {f"{group_id(group.span_id, str(group.name), 0):016x}" for group in groups if group.span_id}
    workers = {report.id: report.worker for report in recorder.reports}
    reported = {report.parent for report in recorder.reports}
    for span in people:
        outcome.comparisons += 1
        parent = span.trace_id, span.parent_id
        if parent in ids:
            continue
        is_task = "dask.kind" in span.attributes
        own = span.attributes["dask.worker.address"] if is_task else span.attributes.get(WORKER)
        if parent in workers:
            is_lost = workers[parent] in lost
        else:  # a task may be below the one that has submitted it, anywhere
            is_lost = bool(lost) if is_task else span.resource["service.instance.id"] not in sent
        if is_lost and parent[1] not in of_scheduler:
            outcome.lost_parents += 1  # the process ended before it sent the span
        elif own in recorder.left and parent not in reported:
            outcome.unreported += 1  # the scheduler cannot know of it
        else:
            outcome.differ(_path(span), "orphan", span.parent_id, "a parent in its trace")


def _check_reports(
    outcome: Outcome, tasks: Sequence[Any], ids: Container[Id], recorder: Recorder, lost: Set[str]
) -> None:
    """Check that workers have reported the spans that arrived, and that those and their parents have arrived."""
    made_by = {report.id: report.worker for report in recorder.reports}
    for report in recorder.reports:
        path = f"{report.made.key} run {report.made.run_id}"
        if made_by.get(report.parent) not in lost:
            outcome.check(path, "parent was sent", report.parent in ids, True)
        if report.worker and report.worker not in lost:
            outcome.check(path, "span was sent", report.id in ids, True)
    for span in tasks:
        if span.attributes["dask.worker.address"] in recorder.left and _id(span) not in made_by:
            outcome.unreported += 1
        else:
            outcome.check(_path(span), "was reported", _id(span) in made_by, True)


def _check_runs(outcome: Outcome, spans: Sequence[Any], tasks: Sequence[Any], recorder: Recorder) -> None:
    """Check that no run has two spans, and the status of each that its worker made."""
    runs = Counter(
        (each.attributes["dask.task.key"], each.attributes["dask.task.run_id"])
        for each in spans
        if "dask.task.run_id" in each.attributes
    )
    outcome.check("-", "runs with two spans", {run: times for run, times in runs.items() if times > 1}, {})
    for span in tasks:
        failed = span.status == "Error"
        raised = span.attributes.get(RAISED)
        was_closed = span.attributes["dask.worker.address"] in recorder.left and not failed
        if raised is not None and not was_closed:  # which may cancel a run that has just raised
            error = "" if raised in _NO_ERROR else raised
            outcome.check(_path(span), "error.type", span.attributes.get("error.type", ""), error)
            outcome.check(_path(span), "Error", failed, bool(error))
        run = span.attributes["dask.task.key"], span.attributes.get("dask.task.run_id")
        if run in recorder.runs:
            how, group = recorder.runs[run]
            outcome.check(_path(span), "Error as the scheduler has it", failed, how == "erred")
            outcome.check(_path(span), "dask.span.id", span.attributes["dask.span.id"], group.span_id)
            outcome.check(_path(span), "dask.group.name", span.attributes["dask.group.name"], str(group.name))


def _check_children(outcome: Outcome, spans: Sequence[Any], people: Sequence[Any]) -> None:
    """Check that each child is below the span of its own task, or that of the task's group."""
    by_id = {_id(each): each for each in spans}
    for span in people:
        parent = by_id.get((span.trace_id, span.parent_id))
        key = span.attributes.get(KEY)
        if parent is None or not key:
            continue
        above = parent.attributes
        if above.get("dask.task.prefix") in ("spawn", "hand_on"):
            continue  # which may have submitted the task, and so be its parent
        if above.get("dask.kind") == "task":
            outcome.check(_path(span), "task of its parent", above["dask.task.key"], key)
        elif above.get("dask.kind") == "group" and not key.startswith("Counting"):  # the name of an actor's method
            group = above["dask.group.name"].partition(" @ ")[0]
            outcome.check(_path(span), "group of its parent", group, key_split_group(key))
        elif KEY in above:
            outcome.check(_path(span), "task of its parent", above[KEY], key)


def _id(span: Any) -> Id:
    return span.trace_id, span.span_id


def _path(span: Any) -> str:
    attributes = span.attributes
    if "dask.kind" in attributes:
        return f"{attributes['dask.task.key']} run {attributes.get('dask.task.run_id')}"
    return f"{span.name} of {attributes.get(KEY)} on {attributes.get(WORKER)}"
