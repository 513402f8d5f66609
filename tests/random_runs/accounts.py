"""Numbers by span and by group: what Dask says, and what the bridge sent."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .recorder import Recorder

__all__ = ["ByGroup", "Numbers", "bridge_numbers", "dask_numbers"]

#: Numbers of one span or group, by attribute.
Numbers = Counter[str]
#: By id of the span and name of the group, the latter empty for the span as a whole.
ByGroup = dict[tuple[str, str], Numbers]

#: What is compared with Dask's own numbers.
_COMPARED = re.compile(r"dask\.(task\.(count|completed|erred|upstream_failed)$|output\.size$|(duration|execute|p2p)\.)")


def dask_numbers(recorder: Recorder) -> ByGroup:
    """What Dask says of each span and of each group in it."""
    numbers: ByGroup = {}
    requested = {life.task.group.span_id for life in recorder.lives if life.requesting}
    for span in recorder.spans:  # an id that was forgotten and made again has several
        if span.name == ("default",) and span.id not in requested:
            continue  # nothing but scattered data: no segment, by design
        numbers.setdefault((span.id, ""), Counter()).update(_numbers(span, span.traverse_groups(), recorder))
        for (context, where, activity, unit), value in span.cumulative_worker_metrics.items():
            if activity != "idle or other spans":
                middle = f"{context}.{_identifier(where)}" if context == "p2p" else context
                numbers[span.id, ""][f"dask.{middle}.{_identifier(activity)}.{_identifier(unit)}"] += value
        for group in span.groups:  # several may have the same name
            own = numbers.setdefault((span.id, str(group.name)), Counter())
            own.update(_numbers(group, [group], recorder))
    return numbers


def _numbers(totals: Any, groups: Any, recorder: Recorder) -> Numbers:
    """What a TaskGroup or Span says of itself."""
    numbers: Numbers = Counter()
    numbers["dask.task.count"] = sum(totals.states.values())
    numbers["dask.output.size"] = totals.nbytes_total
    for action, seconds in totals.all_durations.items():
        numbers[f"dask.duration.{_identifier(action)}"] += seconds
    for group in groups:
        numbers.update({f"dask.task.{outcome}": n for outcome, n in recorder.outcomes.get(group, {}).items()})
    return numbers


def _identifier(text: object) -> str:
    """Part of an attribute's name, by docs/attributes.md."""
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")


def bridge_numbers(spans: Sequence[Any]) -> ByGroup:
    """What the bridge sent, added up over segments; without groups that were folded into one."""
    numbers: ByGroup = {}
    for each in spans:
        if "dask.group.folded" in each.attributes:
            continue
        key = each.attributes["dask.span.id"], each.attributes.get("dask.group.name", "")
        total = numbers.setdefault(key, Counter())
        total.update({name: value for name, value in each.attributes.items() if _COMPARED.match(name)})
    return numbers
