"""Panels and dashboards as Grafana's JSON: what they have in common is said here once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "Dashboard",
    "Panel",
    "Target",
    "bars",
    "choice",
    "heatmap",
    "lines",
    "query",
    "row",
    "spans",
    "stacked",
    "stat",
    "table",
    "text",
    "total",
    "traces",
]

Panel = dict[str, Any]
Target = dict[str, Any]

PROMETHEUS = {"type": "prometheus", "uid": "${metrics}"}
TEMPO = {"type": "tempo", "uid": "${traces}"}
#: Where the scheduler's own pages are, in the compose file.
DASK = "http://localhost:8787"
#: Of the grid.
WIDTH = 24


def query(expression: str, legend: str = "", **more: Any) -> Target:
    """Return a query over the time shown, one value for each bar or point."""
    return {"datasource": PROMETHEUS, "expr": expression, "legendFormat": legend, "range": True, **more}


def total(expression: str, legend: str = "", **more: Any) -> Target:
    """Return a query of one value for all of the time shown."""
    return {"datasource": PROMETHEUS, "expr": expression, "legendFormat": legend, "instant": True, **more}


def lines(title: str, about: str, targets: Sequence[Target], unit: str, **more: Any) -> Panel:
    """Return a chart of how something was."""
    return _chart(title, about, targets, unit, {"fillOpacity": 10, "lineWidth": 1, "showPoints": "auto"}, **more)


def stacked(title: str, about: str, targets: Sequence[Target], unit: str, **more: Any) -> Panel:
    """Return a chart of parts of a whole."""
    custom = {"fillOpacity": 50, "lineWidth": 1, "showPoints": "auto", "stacking": {"mode": "normal", "group": "A"}}
    return _chart(title, about, targets, unit, custom, **more)


def bars(title: str, about: str, targets: Sequence[Target], unit: str, **more: Any) -> Panel:
    """Return a chart of what happened in each step, stacked."""
    custom = {
        "drawStyle": "bars",
        "fillOpacity": 70,
        "lineWidth": 1,
        "stacking": {"mode": "normal", "group": "A"},
        "barAlignment": -1,  # a value is that of the time before it
    }
    return _chart(title, about, targets, unit, custom, **more)


def _chart(
    title: str,
    about: str,
    targets: Sequence[Target],
    unit: str,
    custom: dict[str, Any],
    *,
    width: int = 12,
    overrides: Sequence[Any] = (),
    most: float | None = None,
) -> Panel:
    defaults: dict[str, Any] = {"unit": unit, "min": 0, "custom": custom}
    if most is not None:
        defaults["max"] = most
    return {
        **_panel("timeseries", title, about, targets, width, 8),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def stat(title: str, about: str, target: Target, unit: str, *, width: int = 4, bad_from: float | None = None) -> Panel:
    """Return one number; red from ``bad_from`` on."""
    steps: list[dict[str, Any]] = [{"color": "text", "value": None}]
    if bad_from is not None:
        steps.append({"color": "red", "value": bad_from})
    return {
        **_panel("stat", title, about, [target], width, 4),
        # Else "now" would be hours for a panel that is so narrow, if the time shown is long.
        "maxDataPoints": 11000,
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def table(
    title: str,
    about: str,
    columns: Sequence[tuple[str, str, str]],
    by: Sequence[tuple[str, str]],
    sort: str,
    **more: Any,
) -> Panel:
    """Return a table with a row for each combination of labels.

    Parameters
    ----------
    columns
        Title, expression and unit of each.
    by
        Labels, and their titles.
    """
    targets = [total(expression, format="table") for _, expression, _ in columns]
    titles = {f"Value #{_ref(number)}": column for number, (column, _, _) in enumerate(columns)}
    units = [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, _, unit in columns
    ]
    order = {name: number for number, name in enumerate([label for label, _ in by] + list(titles))}
    return {
        **_panel("table", title, about, targets, more.get("width", WIDTH), more.get("height", 9)),
        "fieldConfig": {"defaults": {}, "overrides": units},
        "options": {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": sort, "desc": True}]},
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": order,
                    "renameByName": dict(by) | titles,
                },
            },
        ],
    }


def heatmap(title: str, about: str, expression: str, *, width: int = 12) -> Panel:
    """Return how durations were spread over time; ``expression`` by ``le``."""
    return {
        **_panel("heatmap", title, about, [query(expression, "{{le}}", format="heatmap", exemplar=True)], width, 8),
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "steps": 64,
                "exponent": 0.5,
                "scale": "exponential",
                "fill": "dark-orange",
                "reverse": False,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
            "yAxis": {"axisPlacement": "left", "unit": "s", "reverse": False},
        },
    }


def spans(title: str, about: str, search: str, *, width: int = WIDTH) -> Panel:
    """Return a table of spans with the attributes that they are searched for or selected by, the latest first."""
    panel = traces(title, about, search, width=width)
    panel["targets"][0]["tableType"] = "spans"
    panel["options"]["sortBy"] = [{"displayName": "Start time", "desc": True}]
    panel["transformations"] = []
    return panel


def traces(title: str, about: str, search: str, *, width: int = WIDTH) -> Panel:
    """Return a table of traces, the longest first; a click on an id opens one. ``search`` is TraceQL."""
    target = {
        "datasource": TEMPO,
        "query": search,
        "queryType": "traceql",
        "tableType": "traces",
        "limit": 200,
        "spss": 1,
        "filters": [],
    }
    return {
        **_panel("table", title, about, [target], width, 10),
        "datasource": TEMPO,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": "Duration", "desc": True}]},
        "transformations": [{"id": "organize", "options": {"excludeByName": {"nested": True}}}],
    }


def row(title: str) -> Panel:
    """Return a heading."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "width": WIDTH, "height": 1}


def _panel(type_: str, title: str, about: str, targets: Sequence[Target], width: int, height: int) -> Panel:
    return {
        "type": type_,
        "title": title,
        "description": about,
        "datasource": PROMETHEUS,
        "targets": [{"refId": _ref(number), **target} for number, target in enumerate(targets)],
        "width": width,
        "height": height,
    }


def _ref(number: int) -> str:
    return chr(ord("A") + number)


class Dashboard:
    """A dashboard; panels go from left to right, in rows."""

    def __init__(self, uid: str, title: str, about: str, variables: Sequence[dict[str, Any]], span: str) -> None:
        self._about = {"uid": uid, "title": title, "description": about}
        self._variables = [_source("metrics", "prometheus"), _source("traces", "tempo"), *variables]
        self._span = span
        self._panels: list[Panel] = []
        self._x = self._y = self._row_height = 0

    def add(self, *panels: Panel) -> None:
        """Put panels after those that are there."""
        for panel in panels:
            width, height = panel.pop("width"), panel.pop("height")
            if self._x + width > WIDTH:
                self._x, self._y, self._row_height = 0, self._y + self._row_height, 0
            panel["gridPos"] = {"h": height, "w": width, "x": self._x, "y": self._y}
            panel["id"] = len(self._panels) + 1
            self._panels.append(panel)
            self._x += width
            self._row_height = max(self._row_height, height)

    def json(self) -> dict[str, Any]:
        """Return it as Grafana reads it."""
        return {
            **self._about,
            "schemaVersion": 42,
            "tags": ["dask"],
            "editable": True,
            "graphTooltip": 1,
            "timezone": "browser",
            "refresh": "15s",
            "time": {"from": f"now-{self._span}", "to": "now"},
            "annotations": {"list": []},
            "templating": {"list": self._variables},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Dask",
                    "tags": ["dask"],
                    "asDropdown": False,
                    "icon": "external link",
                    "includeVars": True,
                    "keepTime": True,
                    "targetBlank": False,
                    "tooltip": "",
                    "url": "",
                },
                _link("Dask's dashboard", DASK + "/status", "Task stream, workers and memory now"),
                _link("dask-otel's page", DASK + "/otel/", "Running spans, and whether dask-otel can send"),
            ],
            "panels": self._panels,
        }


def choice(name: str, label: str, values: str) -> dict[str, Any]:
    """Return a variable whose values a query of Prometheus gives."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": PROMETHEUS,
        "definition": values,
        "query": {"qryType": 1, "query": values, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
    }


def text(name: str, label: str, value: str) -> dict[str, Any]:
    """Return a variable that a person types."""
    return {
        "type": "textbox",
        "name": name,
        "label": label,
        "query": value,
        "current": {"selected": True, "text": value, "value": value},
        "options": [{"selected": True, "text": value, "value": value}],
        "hide": 0,
    }


def _source(name: str, type_: str) -> dict[str, Any]:
    return {
        "type": "datasource",
        "name": name,
        "label": name.capitalize(),
        "query": type_,
        "current": {},
        "options": [],
        "refresh": 1,
        "regex": "",
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }


def _link(title: str, url: str, tooltip: str) -> dict[str, Any]:
    return {
        "type": "link",
        "title": title,
        "url": url,
        "tooltip": tooltip,
        "icon": "external link",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "targetBlank": True,
    }
