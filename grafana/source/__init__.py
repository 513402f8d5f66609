"""Makes the dashboards: ``python -m grafana.source`` in a checkout writes ``grafana/dashboards/*.json``."""

from __future__ import annotations

import json

from .cluster import cluster
from .health import health
from .workflows import workflows

__all__ = ["dashboards"]


def dashboards() -> dict[str, str]:
    """Return the text of each file."""
    made = (cluster(), workflows(), health())
    return {
        f"{board['uid']}.json": json.dumps(board, indent=1, sort_keys=True) + "\n" for board in (d.json() for d in made)
    }
