"""How the cluster is at one moment, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Activity", "Cluster", "Exporter"]

#: What one entry of Dask's fine metrics counts: context, task prefix if it has one, activity, unit.
Activity = tuple[str, "str | None", str, str]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the scheduler knows; bytes and counts."""

    tasks: Mapping[str, int]
    workers: Mapping[str, int]
    threads: int
    clients: int
    managed: int
    unmanaged: int
    spilled: int
    #: None if no worker has a limit.
    limit: int | None


@dataclass(frozen=True, slots=True)
class Exporter:
    """What became of the spans that one exporter was given: counts."""

    name: str
    waiting: int
    capacity: int
    #: Handed to the collector, and taken by it.
    exported: int
    #: By reason: those that were lost before they left the queue, and afterwards.
    dropped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
