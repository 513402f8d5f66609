"""A run out of its spans: how long it took, what its threads did, its critical path, its steps, its verdict.

A run is what one trace has of one root: all segments of root spans of that name, joined. Its numbers are sums over
these segments, so what was between two segments is no part of it. What the spans do not have is None, or absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

import numpy as np
import pandas as pd

from .. import schema

__all__ = ["Failures", "Frames", "Run", "RunPath", "RunStep", "RunVerdict", "below_root", "runs_of"]

#: Results of segments, the worst first; ``unfinished`` counts only at the end.
_RESULTS = ("error", "lost", "interrupted", "unfinished", "cancelled", "success")
#: Between the tags of a span's path, and between a path and a prefix.
_SEPARATOR = " / "


class Frames(Protocol):
    """Spans as ``load`` returns them."""

    spans: pd.DataFrame
    groups: pd.DataFrame
    tasks: pd.DataFrame


@dataclass(frozen=True)
class RunStep:
    """Groups of tasks with the same span path and the same prefix."""

    #: ``span path / prefix``.
    label: str
    tasks: int | None
    #: Thread-seconds of runs.
    compute: float | None
    #: Bounds of the median of compute times; they are equal if one group makes up the step.
    p50: tuple[float, float] | None
    #: The longest compute time.
    longest: float | None
    #: When its first group began and its last one ended: seconds since the epoch.
    start: float
    end: float
    #: Time in which one of its groups was open.
    seconds: float
    #: Failed tasks.
    erred: int


@dataclass(frozen=True)
class RunPath:
    """The critical path: runs of tasks and gaps between them, one after the other."""

    #: Seconds of runs, and these by what they waited for (``data``, ``thread``).
    seconds: float
    edges: Mapping[str, float]
    #: By cause.
    gaps: Mapping[str, float]
    #: Seconds of runs by the label of their step.
    steps: Mapping[str, float]
    #: Seconds by the label of a step and edge, as far as groups have them.
    step_edges: Mapping[str, Mapping[str, float]]

    @property
    def other_steps(self) -> float:
        """Seconds of runs in steps that the trace does not name."""
        return self.seconds - sum(self.steps.values())


@dataclass(frozen=True)
class RunVerdict:
    """What dask-otel found while the run was going on."""

    #: The most costly first.
    ids: tuple[str, ...]
    #: Of the first; as is the rest.
    text: str
    seconds: float | None
    at_most: float | None
    hints: tuple[str, ...]
    withheld: tuple[str, ...]


@dataclass(frozen=True)
class Failures:
    """Failed tasks of one step with the same exception."""

    label: str
    type: str
    message: str
    tasks: int


@dataclass(frozen=True)
class Run:
    """One root in one trace."""

    trace_id: str
    #: Name of the root, and of the service that sent it.
    root: str
    service: str
    #: Seconds since the epoch.
    start: float
    end: float
    #: Sum over the segments.
    seconds: float
    segments: int
    result: str
    tasks: int | None
    failed: int
    #: Mean number of threads; None without a waterfall.
    threads: float | None
    #: Wall seconds by part; empty without a waterfall.
    parts: Mapping[str, float]
    path: RunPath | None
    verdict: RunVerdict
    #: In the order in which they began.
    steps: Sequence[RunStep] = ()
    failures: Sequence[Failures] = ()
    #: Failed tasks beyond those of ``failures``: they have no span of their own.
    failures_without_span: int = 0
    #: Descriptions of segments with the status Error.
    errors: tuple[str, ...] = field(default=())

    @property
    def not_explained(self) -> float:
        """Seconds that no part of the waterfall has: the waterfall of a segment is missing."""
        return self.seconds - sum(self.parts.values())


def below_root(label: str, root: str) -> str:
    """Return the label of a step without the root's name, which may differ between runs."""
    return label.removeprefix(root + _SEPARATOR)


def runs_of(frames: Frames) -> list[Run]:
    """Return all runs, in order of time.

    A trace has several if several roots were computed in a caller's trace. Traces without segments of roots have none.
    """
    spans = frames.spans
    if not len(spans):
        return []
    tops = spans[
        (_column(spans, schema.KIND) == schema.SEGMENT).fillna(False)
        & (_column(spans, schema.SPAN_PATH) == _column(spans, schema.SPAN_ROOT)).fillna(False)
        & spans["duration"].notna()
    ]
    steps = _steps(frames.groups)
    failures = _failures(frames.tasks)
    found = [
        _run(key, top, steps.get(key, []), failures.get(key, []))
        for key, top in _by_run(tops)
    ]  # fmt: skip
    return sorted(found, key=lambda run: (run.start, run.trace_id, run.root))


def _by_run(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    if len(frame):
        yield from frame.sort_values(["start", "span_id"]).groupby(["trace_id", schema.SPAN_ROOT], sort=False)


def _column(frame: pd.DataFrame, name: str) -> Any:
    """Return a column; one of missing values if no span has the attribute."""
    return frame[name] if name in frame else pd.Series(pd.NA, frame.index, "object")


def _numbers(frame: pd.DataFrame, name: str) -> Any:
    """Return a column of floats, with NaN where a value is missing or infinite."""
    if name not in frame:
        return np.full(len(frame), np.nan)
    values = frame[name].to_numpy("float64", na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _times(frame: pd.DataFrame, name: str) -> Any:
    """Return times as nanoseconds since the epoch."""
    return frame[name].dt.as_unit("ns").astype("int64").to_numpy()


def _total(frame: pd.DataFrame, name: str) -> float | None:
    """Return the sum of what is known; None if nothing is."""
    values = _numbers(frame, name)
    return None if np.isnan(values).all() else float(np.nansum(values))


def _run(key: tuple[str, str], tops: pd.DataFrame, steps: list[_Step], failures: list[Failures]) -> Run:
    trace_id, root = key
    durations = tops["duration"].to_numpy("float64")
    parts, threads = _waterfall(tops, durations)
    tasks, failed = _total(tops, schema.TASK_COUNT), _total(tops, schema.TASK_OUTCOMES["erred"])
    results = [str(result) for result in _column(tops, schema.SPAN_RESULT).dropna()]
    ended = [result for result in results[:-1] if result != "unfinished"] + results[-1:]
    errors = tops.loc[(tops["status"] == "error").fillna(False), "status_message"].dropna()
    return Run(
        trace_id=trace_id,
        root=root,
        service=next((str(each) for each in tops["service"].dropna()), ""),
        start=_times(tops, "start").min() / 1e9,
        end=_times(tops, "end").max() / 1e9,
        seconds=float(durations.sum()),
        segments=len(tops),
        result=min(ended, key=lambda each: _RESULTS.index(each) if each in _RESULTS else 0, default=""),
        tasks=None if tasks is None else int(tasks),
        failed=int(failed or 0),
        threads=threads,
        parts=parts,
        path=_path(tops, steps),
        verdict=_verdict(tops),
        steps=[step for step, _, _ in steps],
        failures=failures,
        failures_without_span=max(0, int(failed or 0) - sum(each.tasks for each in failures)),
        errors=tuple(dict.fromkeys(str(each) for each in errors if each)),
    )


def _waterfall(tops: pd.DataFrame, durations: Any) -> tuple[dict[str, float], float | None]:
    """Return the wall seconds of each part, and the mean number of threads."""
    threads = _numbers(tops, schema.WATERFALL_THREADS)
    has = threads > 0
    if not has.any():
        return {}, None
    parts = {}
    for part, name in schema.WATERFALL.items():
        values = _numbers(tops, name)[has]
        if not np.isnan(values).all():
            parts[part] = float(np.nansum(values / threads[has]))
    weights = durations[has]
    mean = np.average(threads[has], weights=weights) if weights.sum() else threads[has].mean()
    return parts, float(mean)


def _path(tops: pd.DataFrame, steps: Sequence[_Step]) -> RunPath | None:
    """Return the critical path. Groups and the list of the root can both lack some of a step: the larger is right."""
    seconds = _total(tops, schema.CRITICAL_SECONDS)
    gaps = {cause: total for cause, name in schema.CRITICAL_GAP.items() if (total := _total(tops, name)) is not None}
    if seconds is None and not gaps:
        return None
    listed = _listed(tops)
    by_step = {step.label: on_path for step, on_path, _ in steps if on_path}
    labels: dict[str, list[str]] = {}
    for step, _, _ in steps:
        labels.setdefault(schema.clean(step.label, schema.MAX_STEP), []).append(step.label)
    for cut, value in listed.items():
        if len(full := labels.get(cut, [])) == 1:
            by_step[full[0]] = max(value, by_step.get(full[0], 0.0))
    nameless = {cut: value for cut, value in listed.items() if cut not in labels}
    if sum(by_step.values()) + sum(nameless.values()) <= (seconds or 0.0) * (1 + 1e-9):
        by_step |= nameless
    return RunPath(
        seconds=seconds or 0.0,
        edges={edge: total for edge, name in schema.CRITICAL_EDGE.items() if (total := _total(tops, name)) is not None},
        gaps=gaps,
        steps=dict(sorted(by_step.items(), key=lambda item: (-item[1], item[0]))),
        step_edges={step.label: edges for step, _, edges in steps if edges},
    )


def _listed(tops: pd.DataFrame) -> dict[str, float]:
    """Return the seconds that roots list, by the labels of steps, which are cut if they are long."""
    out: dict[str, float] = {}
    if schema.CRITICAL_STEPS in tops and schema.CRITICAL_STEPS_SECONDS in tops:
        for labels, values in zip(tops[schema.CRITICAL_STEPS], tops[schema.CRITICAL_STEPS_SECONDS], strict=True):
            known = values if isinstance(values, Sequence | np.ndarray) else ()
            for label, value in zip(_texts(labels), known, strict=False):  # a remark may follow the labels
                if isinstance(value, int | float) and isfinite(value):
                    out[label] = out.get(label, 0.0) + value
    return out


def _verdict(tops: pd.DataFrame) -> RunVerdict:
    """Return the verdict of the segment in which most was lost, with the ids of all."""
    seconds = _numbers(tops, schema.VERDICT_SECONDS)
    order = np.argsort(-np.nan_to_num(seconds), kind="stable")
    ordered = tops.iloc[order]
    first = ordered.iloc[0]
    at_most = _numbers(ordered, schema.VERDICT_AT_MOST)[0]
    has = bool(_texts(first.get(schema.VERDICT)))
    return RunVerdict(
        ids=_distinct(_column(ordered, schema.VERDICT)),
        text=" ".join(_texts(first.get(schema.VERDICT_TEXT))) if has else "",
        seconds=float(seconds[order[0]]) if has and not np.isnan(seconds[order[0]]) else None,
        at_most=float(at_most) if has and not np.isnan(at_most) else None,
        hints=_distinct(_column(ordered, schema.VERDICT_HINTS)),
        withheld=_distinct(_column(ordered, schema.VERDICT_WITHHELD)),
    )


def _distinct(lists: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for each in lists for text in _texts(each)))


def _texts(value: object) -> tuple[str, ...]:
    """Return the items of a list, the value itself, or nothing if it is missing."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value) if isinstance(value, Sequence | np.ndarray) else ()


#: A step, its seconds on the critical path, and these by edge.
_Step = tuple[RunStep, float, dict[str, float]]


def _steps(groups: pd.DataFrame) -> dict[tuple[str, str], list[_Step]]:
    """Return the steps of each run."""
    if not len(groups):
        return {}
    prefix = _column(groups, schema.TASK_PREFIX)
    # The span that stands for other groups has no prefix.
    prefix = prefix.where(prefix.notna(), groups["name"])
    columns = {
        "trace": groups["trace_id"].astype(object),
        "root": _column(groups, schema.SPAN_ROOT).astype(object),
        "label": _column(groups, schema.SPAN_PATH).astype(object) + _SEPARATOR + prefix.astype(object),
        "start": _times(groups, "start"),
        "end": _times(groups, "end"),
        "tasks": _numbers(groups, schema.TASK_COUNT),
        "erred": _numbers(groups, schema.TASK_OUTCOMES["erred"]),
        "compute": _numbers(groups, schema.DURATION("compute")),
        "p50": _numbers(groups, schema.TASK_DURATION_QUANTILES[0.5]),
        "longest": _numbers(groups, schema.TASK_DURATION_QUANTILES[1.0]),
        "path": _numbers(groups, schema.CRITICAL_SECONDS),
        **{edge: _numbers(groups, name) for edge, name in schema.CRITICAL_EDGE.items()},
    }
    frame = pd.DataFrame(columns, index=groups.index)
    keys = ["trace", "root", "label"]
    frame = frame[groups["duration"].notna()].dropna(subset=keys).sort_values(["start", "end"], kind="stable")
    grouped = frame.groupby(keys, sort=False)
    # Of the time of a group, what is after the end of all earlier ones: their sum is the time in which one was open.
    earlier = grouped["end"].cummax().groupby([frame[key] for key in keys], sort=False).shift()
    begin = frame["start"].where(earlier.isna(), np.maximum(frame["start"], earlier.fillna(0).astype("int64")))
    frame["seconds"] = (frame["end"] - begin).clip(lower=0) / 1e9
    grouped = frame.groupby(keys, sort=False)
    sums = grouped[["tasks", "compute", "erred", "seconds", "path", *schema.CRITICAL_EDGE]].sum(min_count=1)
    bounds = grouped.agg(
        start=("start", "min"), end=("end", "max"), low=("p50", "min"), high=("p50", "max"), longest=("longest", "max")
    )
    out: dict[tuple[str, str], list[_Step]] = {}
    for row in sums.join(bounds).sort_values(["start", "end"], kind="stable").reset_index().to_dict("records"):
        known = {name: value for name, value in row.items() if value == value}  # NaN differs from itself
        step = RunStep(
            label=row["label"],
            tasks=int(known["tasks"]) if "tasks" in known else None,
            compute=known.get("compute"),
            p50=(row["low"], row["high"]) if "low" in known else None,
            longest=known.get("longest"),
            start=row["start"] / 1e9,
            end=row["end"] / 1e9,
            seconds=row["seconds"],
            erred=int(known.get("erred", 0)),
        )
        edges = {edge: known[edge] for edge in schema.CRITICAL_EDGE if known.get(edge)}
        out.setdefault((row["trace"], row["root"]), []).append((step, known.get("path", 0.0), edges))
    return out


def _failures(tasks: pd.DataFrame) -> dict[tuple[str, str], list[Failures]]:
    """Return the failed tasks of each run, the most frequent first."""
    if not len(tasks):
        return {}
    failed = tasks[(tasks["status"] == "error").fillna(False)]
    columns = {
        "trace": failed["trace_id"],
        "root": _column(failed, schema.SPAN_ROOT),
        "label": _column(failed, schema.SPAN_PATH).astype(object)
        + _SEPARATOR
        + _column(failed, schema.TASK_PREFIX).astype(object).fillna(failed["name"]),
        "type": _column(failed, schema.ERROR_TYPE).astype(object).fillna(""),
        "message": failed["status_message"].astype(object).fillna(""),
    }
    counts = pd.DataFrame(columns).value_counts(sort=False).reset_index(name="tasks")
    out: dict[tuple[str, str], list[Failures]] = {}
    for row in counts.sort_values(["tasks", "label", "message"], ascending=[False, True, True]).to_dict("records"):
        out.setdefault((row["trace"], row["root"]), []).append(
            Failures(row["label"], row["type"], row["message"], int(row["tasks"]))
        )
    return out
