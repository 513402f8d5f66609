"""Data frames back to the spans that they were made of."""

from __future__ import annotations

import math
from typing import Any

from dask_otel.analysis import Runs
from dask_otel.cli.receiver import Span

_COLUMNS = ("trace_id", "span_id", "parent_id", "name", "service", "kind", "start", "end", "duration", "status")
_STATUS = {"unset": "Unset", "ok": "Ok", "error": "Error"}


def loaded_spans(runs: Runs) -> list[Span]:
    """Return the spans of all frames, with the types of Python; attributes that are absent are left out."""
    links: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for row in _rows(runs.links):
        link = (row["linked_trace_id"], row["linked_span_id"], row.get("type", ""))
        links.setdefault((row["trace_id"], row["span_id"]), []).append(link)
    return [
        Span(
            name=row["name"],
            trace_id=row["trace_id"],
            span_id=row["span_id"],
            parent_id=row.get("parent_id", ""),
            start=row["start"].value / 1e9,
            end=row["end"].value / 1e9,
            attributes={name: value for name, value in row.items() if name not in (*_COLUMNS, "status_message")},
            links=tuple(links.get((row["trace_id"], row["span_id"]), ())),
            status=_STATUS[row["status"]],
            status_message=row.get("status_message", ""),
            resource={"service.name": row["service"]},
        )
        for frame in (runs.spans, runs.groups, runs.tasks, runs.phases, runs.others)
        for row in _rows(frame)
    ]


def _rows(frame: Any) -> list[dict[str, Any]]:
    """Rows without what is missing."""
    return [
        {name: _plain(value) for name, value in row.items() if isinstance(value, tuple) or not _is_missing(value)}
        for row in frame.to_dict("records")
    ]


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
