"""What Grafana would ask Prometheus for: the queries of all panels, with variables filled in as Grafana does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grafana" / "dashboards"
#: Pixels, and points, of a panel that is half as wide as a screen.
POINTS = 800


class Query(NamedTuple):
    """One query of one panel."""

    dashboard: str
    panel: str
    ref: str
    expression: str
    #: One value for all of the time shown.
    is_instant: bool


def load() -> dict[str, dict[str, Any]]:
    """All dashboards by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def queries() -> Iterator[Query]:
    """All queries of Prometheus."""
    for dashboard in load().values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                if target["datasource"]["type"] == "prometheus":
                    instant = target.get("instant", False)
                    yield Query(dashboard["uid"], panel["title"], target["refId"], target["expr"], instant)


class Times(NamedTuple):
    """The time shown, in seconds, and the shortest step that the data source allows."""

    span: float
    shortest: float = 15.0

    @property
    def step(self) -> float:
        """``$__interval``; Grafana rounds what the width gives, which matters for long spans only."""
        return max(self.shortest, self.span / POINTS)

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
    values = times.variables() | {name: _regex(value) for name, value in chosen.items()}
    for name in sorted(values, key=len, reverse=True):
        expression = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", lambda _, name=name: values[name], expression)
    assert "$" not in expression, expression
    return expression


def _regex(value: list[str] | str) -> str:
    """How Grafana writes values of a variable that may have several, into a regular expression in quotes."""
    if isinstance(value, str):
        return value
    escaped = [re.sub(r"[$^*{}\[\]+?.()|]", r"\\\\\g<0>", each.replace("\\", "\\\\\\\\")) for each in value]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
