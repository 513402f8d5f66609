"""What Grafana would ask Prometheus for: the queries of all panels, with variables filled in as Grafana does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grafana" / "dashboards"
#: Pixels of the screen; a panel asks for as many points as it has, unless it says otherwise.
SCREEN = 1600


class Query(NamedTuple):
    """One query of one panel."""

    dashboard: str
    panel: str
    ref: str
    expression: str
    #: One value for all of the time shown.
    is_instant: bool
    #: For how many it asks.
    points: float


def load() -> dict[str, dict[str, Any]]:
    """All dashboards by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def queries() -> Iterator[Query]:
    """All queries of Prometheus."""
    for dashboard in load().values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                if target["datasource"]["type"] == "prometheus":
                    yield Query(
                        dashboard["uid"],
                        panel["title"],
                        target["refId"],
                        target["expr"],
                        target.get("instant", False),
                        panel.get("maxDataPoints", SCREEN * panel["gridPos"]["w"] / 24),
                    )


class Times(NamedTuple):
    """The time shown, in seconds, the points that a panel asks for, and the shortest step of the data source."""

    span: float
    points: float = SCREEN / 2
    shortest: float = 15.0

    @property
    def step(self) -> float:
        """``$__interval``; Grafana rounds what the width gives, which matters for long spans only."""
        return max(self.shortest, self.span / self.points)

    def variables(self) -> dict[str, str]:
        rate = max(self.step + self.shortest, 4 * self.shortest)
        return {
            "__interval_ms": f"{self.step * 1000:.0f}",
            "__interval": _duration(self.step),
            "__rate_interval": _duration(rate),
            "__range_ms": f"{self.span * 1000:.0f}",
            "__range_s": f"{self.span:.0f}",
            "__range": f"{self.span:.0f}s",
        }


def fill(expression: str, times: Times, chosen: Mapping[str, list[str] | str]) -> str:
    """Fill in Grafana's own variables and the dashboard's: a list is what was ticked, a text is taken as it is."""
    values = times.variables() | {f"{name}:regex": _regex(value) for name, value in chosen.items()}
    for name in sorted(values, key=len, reverse=True):
        pattern = rf"\$\{{{name}\}}" if ":" in name else rf"\$(?:{name}\b|\{{{name}\}})"
        expression = re.sub(pattern, lambda _, name=name: values[name], expression)
    return expression


def _regex(value: list[str] | str) -> str:
    """How Grafana writes what was ticked as a regular expression."""
    if isinstance(value, str):
        return value
    escaped = [re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", each) for each in value]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
