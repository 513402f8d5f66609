"""Verdicts: which part of a run's waterfall cost most, why, and what helps."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding", "Verdict"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a run was slow."""

    #: E.g. ``gil``, see ``FINDINGS``.
    id: str
    #: Of the waterfall.
    part: str
    #: Wall seconds of the part; and how many of them a cure could save at most.
    seconds: float
    at_most: float
    #: The numbers that show it, in one sentence, and what helps, in another.
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a run was slow."""

    #: The most costly first; empty if nothing but the work itself took long.
    findings: tuple[Finding, ...] = ()
    #: Ids of what else was noticed, outside the ranking.
    hints: tuple[str, ...] = ()
    #: Why there is no verdict, though there may be a reason for one.
    withheld: str = ""

    @property
    def text(self) -> str:
        """Two sentences about the most costly finding; empty if there is none."""
        return f"{self.findings[0].evidence} {self.findings[0].remedy}" if self.findings else ""
