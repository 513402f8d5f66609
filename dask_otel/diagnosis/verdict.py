"""Verdicts: which part of a run's waterfall cost most, why, and what helps."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from .evidence import RunFacts
from .findings import FINDINGS
from .parts import IDLE, OWN, Step
from .quantities import percent
from .rules import MINOR, RULES, SHARE, Case, Suspect, late_workers, lost_work

__all__ = ["Finding", "Verdict", "judge"]

#: Seconds and tasks from which on a run is judged: in a shorter one, start and end are most of it.
LEAST_SECONDS, LEAST_TASKS = 1.0, 4
#: Seconds from which on a run of fewer tasks is judged, by parts that say something of a single task, too.
LONG_FOR_FEW = 10.0
OF_ONE_TASK = ("noncpu", "disk", "serialize", "paused", "no_worker")
#: Part of the wall (0…1) from which on a cause is named, unless ``SHARE`` has another one.
WORTH = 0.1
#: Parts that no cure takes away, but more threads.
KEPT = ("cpu", "client", "others")
#: Of the thread-seconds; if more than these are counted twice, fine metrics and occupancy do not fit together.
UNACCOUNTED = 0.1
#: Characters of the name of a step.
MAX_NAME = 200
#: How the scheduler knows the cores of remote machines.
HOW_TO_KNOW_CORES = (
    "set distributed.admin.system-monitor.host-cpu to true on the workers, so that their cores are known"
)
#: Bytes, seconds and part of the memory of the hints.
LARGE_RESULTS = 100 * 2**20
LONG_RUN, UNUSED = 30.0, 0.7


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a run was slow."""

    #: E.g. ``gil``, see ``FINDINGS``.
    id: str
    #: Of the waterfall.
    part: str
    #: Wall seconds of its parts; and how many seconds a cure could save at most, which can be more: see ``_at_most``.
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
        evidence = self.evidence.format(*map(_shortened, self.steps)) if self.steps else self.evidence
        return f"{evidence} {self.remedy}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a run was slow."""

    #: The most costly first; empty if nothing but the work itself took long.
    findings: tuple[Finding, ...] = ()
    #: Ids of what else was noticed, outside the ranking, see ``HINTS``.
    hints: tuple[str, ...] = ()
    #: Why there is no verdict, though there may be a reason for one.
    withheld: str = ""

    @property
    def text(self) -> str:
        """Two sentences about the most costly finding; empty if there is none."""
        return self.findings[0].text if self.findings else ""


def _shortened(step: Step) -> str:
    """Name a step so that there is room for what helps: tags can be of any length."""
    name = str(step)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}…{name[-MAX_NAME // 2 :]}"


def judge(facts: RunFacts) -> Verdict:
    """Return why a run was slow.

    Parts of the same cause are one finding, with the evidence of the largest. What explains nothing is not named, and
    neither are runs so short, or of so few tasks, that their start and end are most of them.
    """
    run = facts.waterfall
    hints = _hints(facts)
    if not (isfinite(run.seconds) and run.seconds >= LEAST_SECONDS):
        return Verdict(hints=hints)
    if not (isfinite(run.threads) and run.threads > 0):
        return Verdict(hints=hints, withheld="the cluster had no thread while the run lasted")
    has_few = sum(group.tasks for group in facts.groups) < LEAST_TASKS
    if has_few and run.seconds < LONG_FOR_FEW:
        return Verdict(hints=hints)
    case = Case(facts)
    fits = -case.wall("unaccounted") < UNACCOUNTED * run.seconds
    suspects: list[tuple[str, Suspect]] = []
    #: Wall seconds that cannot be judged, and that are not explained.
    unknown, unexplained, unexplained_part = 0.0, 0.0, ""
    for part, rule in RULES.items():
        wall = case.wall(part)
        if wall < MINOR * run.seconds or (has_few and part not in OF_ONE_TASK):
            continue
        if (part in OWN and not fits) or (part == "handed" and not facts.metrics_complete):
            unknown += wall  # of metrics that are missing, all seconds are in ``handed``
        elif suspect := rule(case):
            suspects.append((part, suspect))
        elif part in ("noncpu", "handed", "overhead"):
            unexplained, unexplained_part = max((unexplained, unexplained_part), (wall, part))
    if late := late_workers(case):
        suspects.append(("starting", late))
    suspects.append(("lost", lost_work(case)))
    findings = _findings(suspects, run.seconds, run.seconds - sum(max(0.0, case.wall(part)) for part in KEPT))
    lacks_cores = unexplained_part == "noncpu" and case.may_lack_cores and not case.knows_cores
    least = SHARE["io"] if lacks_cores else max(SHARE.values())
    withheld = ""
    if unknown >= WORTH * run.seconds and unknown > (findings[0].seconds if findings else unexplained):
        withheld = "workers have not delivered all their metrics"
        if facts.metrics_complete:
            withheld = "the workers' metrics have more seconds than their threads had"
        withheld += f", so {percent(min(1.0, unknown / run.seconds))} of the time cannot be judged"
    elif unexplained >= least * run.seconds and unexplained > (findings[0].seconds if findings else 0.0):
        withheld = f"nothing that is known explains {percent(unexplained / run.seconds)} of the time"
        if case.others_use_machine:
            withheld = f"{withheld}, in which other programs kept the machine busy"
        elif lacks_cores:
            withheld = f"{withheld}: perhaps tasks waited for a core; {HOW_TO_KNOW_CORES}"
    return Verdict(findings, hints, withheld)


def _findings(suspects: list[tuple[str, Suspect]], lasted: float, most: float) -> tuple[Finding, ...]:
    """Join suspects of one cause, and leave out what cost little.

    Parameters
    ----------
    lasted, most
        Seconds of the run, and those of them that cures could save.
    """
    by_id: dict[str, list[tuple[str, Suspect]]] = {}
    for part, suspect in suspects:
        if isfinite(suspect.seconds) and suspect.seconds > 0:
            by_id.setdefault(suspect.id, []).append((part, suspect))
    findings = []
    for id_, some in by_id.items():
        total = min(sum(suspect.seconds for _, suspect in some), lasted)
        if total < SHARE.get(id_, WORTH) * lasted:
            continue
        part, largest = max(some, key=lambda each: each[1].seconds)
        bound = lasted if id_ == "late_workers" else max(0.0, most)
        at_most = min(bound, sum(_at_most(part, suspect) for part, suspect in some))
        findings.append(Finding(id_, part, total, at_most, largest.evidence, FINDINGS[id_].advice, largest.steps))
    return tuple(sorted(findings, key=lambda each: each.seconds, reverse=True))


def _at_most(part: str, suspect: Suspect) -> float:
    """What a cure could save: what the critical path has of it, where it has any.

    That may be more than what threads did: while inputs are on their way to one task, other threads are also idle,
    since theirs wait for its result. Of threads that are idle, no more can be saved than they are.
    """
    on_path = suspect.on_path
    if on_path is None or not 0 < on_path < inf:
        return suspect.seconds
    return min(on_path, suspect.seconds) if part in IDLE else on_path


def _hints(facts: RunFacts) -> tuple[str, ...]:
    run, cluster, failures = facts.waterfall, facts.cluster, facts.failures
    hints = []
    if failures.erred or failures.upstream_failed:
        hints.append("failed_tasks")
    if failures.retried:
        hints.append("retried_tasks")
    if cluster.memory_peak is not None and cluster.memory_peak < UNUSED and run.seconds >= LONG_RUN:
        hints.append("unused_memory")
    # Bytes are counted where they leave: workers received little of it.
    to_clients = (cluster.sent_bytes or 0) >= LARGE_RESULTS and (cluster.receiving or 0.0) < 0.5 * (
        cluster.sending or 0
    )
    if to_clients and run.wall("client") >= WORTH * run.seconds:
        hints.append("large_results")
    return tuple(hints)
