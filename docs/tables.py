"""Makes the tables of attributes, links and metrics in these pages from ``dask_otel/schema/``, in place.

``python docs/tables.py``. A table is between a line ``<!-- schema: its name -->`` and a line ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dask_otel import schema
from dask_otel.diagnosis.findings import FINDINGS, HINTS
from dask_otel.schema import (
    ATTRIBUTES,
    CALLER,
    CLIENT_PHASE,
    EVERY,
    GROUP,
    LINK_TYPES,
    METRICS,
    PENDING,
    PHASE,
    RESOURCE,
    SEGMENT,
    TASK,
    Attribute,
)

PAGES = [Path(__file__).with_name(name) for name in ("attributes.md", "metrics.md", "verdicts.md")]


def attributes(condition: Callable[[Attribute], bool]) -> str:
    """Return the table of some attributes of spans."""
    rows = [
        (f"`{each.name}`", ", ".join(filter(None, (each.type, each.unit))), each.meaning)
        for each in ATTRIBUTES.values()
        if condition(each)
    ]
    return _table(("name", "type, unit", "meaning"), rows)


def _resource() -> str:
    rows = [(f"`{each.name}`", each.meaning) for each in ATTRIBUTES.values() if RESOURCE in each.on]
    return _table(("name", "value"), rows)


def _links() -> str:
    return _table((f"`{schema.LINK_TYPE}`", "from → to"), [(f"`{type_}`", text) for type_, text in LINK_TYPES.items()])


def _verdicts() -> str:
    rows = [(f"`{id_}`", each.meaning, f"{each.remedy} ([more]({each.link}))") for id_, each in FINDINGS.items()]
    return _table(("id", "what takes the time", "what helps"), rows)


def _hints() -> str:
    return _table(("id", "what was noticed"), [(f"`{id_}`", text) for id_, text in HINTS.items()])


def _limits() -> str:
    rows = [
        ("group spans in a segment", "`otel.traces.max-groups`"),
        ("group spans in one segment of a top span and all segments inside it", f"{schema.MAX_GROUP_SPANS:,}"),
        ("spans of failed tasks in these segments together", f"{schema.MAX_ERRED_SPANS:,}"),
        ("spans of slow tasks in these segments together", f"{schema.MAX_SLOWEST_SPANS:,}"),
        ("spans of phases in a segment", f"{schema.MAX_PHASES:,}"),
        ("callers that a segment is linked to", f"{schema.MAX_CALLERS:,}"),
        ("links of a span", f"{schema.MAX_LINKS:,}"),
        ("text", f"{schema.MAX_VALUE:,} bytes"),
        ("names", f"{schema.MAX_NAME:,} bytes"),
        ("lists", f"about {schema.MAX_LIST:,} bytes"),
    ]
    return _table(("what", "limit"), rows)


def _metrics() -> str:
    rows = [
        (
            f"`{metric.name}`",
            f"{metric.kind.value}, {metric.unit}",
            ", ".join(f"`{name}`" for name in metric.attributes) or "none",
            metric.description,
            f"`{metric.prometheus_name}`",
        )
        for metric in METRICS.values()
    ]
    return _table(("name", "kind, unit", "attributes", "what it is", "in Prometheus"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(cells) for cells in (head, *rows)]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines[1:])])


def _is_reason(each: Attribute) -> bool:
    return each.name.startswith(("dask.verdict", "dask.waterfall.", "dask.critical."))


def _is_on_every(each: Attribute) -> bool:
    return {*EVERY} <= {*each.on}


#: By name in the marker.
TABLES: dict[str, Callable[[], str]] = {
    "resource": _resource,
    "every span": lambda: attributes(_is_on_every),
    "segments and group spans": lambda: attributes(
        lambda each: {SEGMENT, GROUP} <= {*each.on} and not _is_on_every(each) and not _is_reason(each)
    ),
    "segment": lambda: attributes(lambda each: SEGMENT in each.on and GROUP not in each.on and not _is_reason(each)),
    "group span": lambda: attributes(lambda each: GROUP in each.on and SEGMENT not in each.on),
    "why it was slow": lambda: attributes(lambda each: _is_reason(each) and SEGMENT in each.on),
    "task span": lambda: attributes(lambda each: TASK in each.on and not _is_on_every(each)),
    "phase": lambda: attributes(lambda each: PHASE in each.on and not _is_on_every(each)),
    "pending span": lambda: attributes(lambda each: PENDING in each.on and not _is_on_every(each)),
    "limits": _limits,
    "links": _links,
    "client phase": lambda: attributes(lambda each: CLIENT_PHASE in each.on),
    "caller span": lambda: attributes(lambda each: CALLER in each.on and SEGMENT not in each.on),
    "metrics": _metrics,
    "verdicts": _verdicts,
    "hints": _hints,
}


def rewritten(page: str) -> str:
    """Return a page with its tables as the schema has them."""
    return re.sub(
        r"(<!-- schema: ([\w ]+) -->\n).*?(\n<!-- end -->)",
        lambda match: match[1] + TABLES[match[2]]() + match[3],
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
