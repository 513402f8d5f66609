"""Workloads as people write them: ill ones, each with one cause of its slowness, healthy ones, and cures.

What the verdict on each of the ill ones should be was written down before any verdict was seen. It follows from what
the ids of verdicts mean, not from how they are found.
"""

from __future__ import annotations

from .cluster import Cluster, WorkerOptions, Workload
from .cures import CURES, Cure
from .healthy import HEALTHY
from .ill import ILL

__all__ = ["CURES", "HEALTHY", "ILL", "Cluster", "Cure", "WorkerOptions", "Workload"]
