"""Verdicts: which part of a run's waterfall cost most, why, and what helps."""

from __future__ import annotations

from dataclasses import dataclass

from .parts import Step

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
    #: The numbers that show it, in one sentence, and what helps, in another. In place of names that people gave, the
    #: evidence has ``{0}``, ``{1}`` …, if there are ``steps``: pseudonyms may take their place.
    evidence: str
    remedy: str
    #: The names.
    steps: tuple[Step, ...] = ()

    @property
    def text(self) -> str:
        """Both sentences, with the names."""
        evidence = self.evidence.format(*map(str, self.steps)) if self.steps else self.evidence
        return f"{evidence} {self.remedy}"


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
        return self.findings[0].text if self.findings else ""
