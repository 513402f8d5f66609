"""Fine performance metrics as attributes: summed over prefixes, their number capped."""

from __future__ import annotations

from collections.abc import Mapping

from ..mirror.identifier import identifier
from ..mirror.model import Metrics

__all__ = ["fine_metrics"]

#: Distinct activities per context; the sums of the rest are under ``other``.
MAX_ACTIVITIES = 32


def fine_metrics(metrics: Metrics) -> dict[str, int | float]:
    """Sum fine metrics over prefixes: ``("execute", prefix, activity, unit)``, ``("p2p", where, activity, unit)``."""
    sums: dict[str, dict[tuple[str, str], float]] = {}
    for key, value in metrics.items():
        if key[0] == "execute" and len(key) == 4:
            context = "execute"
        elif key[0] == "p2p" and len(key) == 4:
            context = f"p2p.{identifier(key[1])}"
        else:
            continue
        by_activity = sums.setdefault(context, {})
        activity = (identifier(key[2]), identifier(key[3]))
        by_activity[activity] = by_activity.get(activity, 0) + value
    out: dict[str, int | float] = {}
    for context, by_activity in sums.items():
        for (activity_name, unit), value in _capped(by_activity).items():
            out[f"dask.{context}.{activity_name}.{unit}"] = _number(value, unit)
    return out


def _capped(by_activity: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
    names = sorted({activity for activity, _ in by_activity})
    if len(names) <= MAX_ACTIVITIES:
        return by_activity
    kept = set(names[:MAX_ACTIVITIES])
    out: dict[tuple[str, str], float] = {}
    for (activity, unit), value in by_activity.items():
        capped = (activity if activity in kept else "other", unit)
        out[capped] = out.get(capped, 0) + value
    return out


def _number(value: float, unit: str) -> int | float:
    """One type for each name: bytes and counts are ints, seconds and users' own units doubles."""
    return round(value) if unit in ("bytes", "count") else float(value)
