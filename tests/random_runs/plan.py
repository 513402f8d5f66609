"""From a seed to what a run does. Pure: the same seed gives the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from math import inf

__all__ = ["FAULTS", "WORK", "Calling", "Inside", "Plan", "Step"]

#: Functions of the modules ``work`` and ``faults``, as often as they are likely.
WORK = (
    *("many", "many", "again", "again", "submit", "chain", "chain", "loop", "loop", "resubmit", "unreliable"),
    *("spawn", "hand_on", "actor", "scatter", "publish", "forget", "collection", "collection", "persisted"),
    *("unneeded", "shuffle", "drop", "wait"),
)
FAULTS = (
    *("cancel", "cancel", "retry", "close_worker", "close_worker", "lose_worker", "remove_worker", "retire_worker"),
    *("pause_worker", "move", "lose_client", "kill_workers", "unrunnable", "too_large", "shrink", "unreadable"),
    *("lose_actor", "lose_long_running", "restart"),
)
#: The fault that only workers in processes of their own can have.
KILL = "kill_process"
#: Share of the runs whose clients are instrumented, and the work that only these have.
INSTRUMENTED, REQUESTS = 1 / 3, "requests"


@dataclass(frozen=True)
class Step:
    """One thing that is done to the cluster."""

    name: str
    #: Seed of its own choices.
    seed: float
    #: Seconds until the next one.
    pause: float
    #: How many people do it at once, and whether they make the same choices: then they request the same keys.
    people: int
    is_alike: bool

    @property
    def is_fault(self) -> bool:
        """Whether something breaks, or is taken back."""
        return self.name in FAULTS or self.name == KILL


@dataclass(frozen=True)
class Inside:
    """How tasks use OpenTelemetry on workers, and what is left out of the traces that they are in."""

    #: Workers in processes of their own, besides those in the process of the run.
    processes: int
    #: Whether the scheduler gives the plugin to the workers; else they preload it.
    is_handed_out: bool
    #: Settings ``otel.workers.spans`` and ``otel.workers.max-rate``.
    spans: str
    worker_max_rate: int
    #: Of the person's exporter in the workers' processes, and the share of the traces that the person's sampler takes.
    protocol: str
    is_batched: bool
    sampled: float
    #: Settings of the bridge.
    level: str
    default_spans: str
    max_rate: int


@dataclass(frozen=True)
class Calling:
    """How the program whose clients are instrumented uses OpenTelemetry."""

    #: Setting ``otel.client.context``.
    context: str
    #: Share of the program's own traces that its sampler takes.
    sampled: float


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    people: int
    workers: int
    #: Bytes; 0 for none.
    memory_limit: int
    allowed_failures: int
    no_workers_timeout: str | None
    worker_saturation: float
    #: Seconds between heartbeats that are sent besides Dask's own: segments close earlier.
    pulse: float
    #: Settings of the bridge.
    idle_timeout: float
    max_segment: float
    steps: tuple[Step, ...]
    sweep_interval: float
    #: Groups of a segment that are shown.
    max_groups: int
    #: As ``OTEL_TRACES_SAMPLER`` names it: whether spans of callers that are not sampled are sent, too, and whether all
    #: spans without a caller are.
    sampler: str
    split_groups: bool
    #: Seconds; 0 to have a span for each graph.
    phase_threshold: float
    #: Seconds after which roots are forgotten, or None; and of how many names the latest one is kept.
    forget_spans: float | None = None
    kept_names: int = 100
    #: None if tasks do not use OpenTelemetry.
    inside: Inside | None = None
    #: None if clients are not instrumented.
    calling: Calling | None = None

    @classmethod
    def of(cls, seed: int, *, inside: bool = False) -> Plan:
        """Make the plan of a seed, perhaps with tasks that use OpenTelemetry."""
        rng = random.Random(seed)
        plan = cls(
            seed=seed,
            people=rng.randint(2, 5),
            workers=rng.randint(2, 4),
            memory_limit=rng.choice((0, 0, 1_000_000)),
            allowed_failures=rng.choice((0, 1)),
            no_workers_timeout=rng.choice((None, "300ms")),
            worker_saturation=rng.choice((1.1, 1.1, inf)),
            pulse=rng.choice((0.05, 0.3)),
            idle_timeout=rng.choice((0.05, 0.3)),
            max_segment=rng.choice((0.5, 3600.0)),
            steps=tuple(
                Step(
                    rng.choice(WORK if rng.random() < 0.65 else FAULTS),
                    rng.random(),
                    rng.choice((0.0, 0.01, 0.05, 0.2)),
                    rng.choice((1, 2, 2, 3, 5)),
                    rng.random() < 0.5,
                )
                for _ in range(rng.randint(5, 15))
            ),
            sweep_interval=rng.choice((0.05, 0.5)),
            max_groups=rng.choice((1, 3, 500)),
            sampler=rng.choice(("always_on", "parentbased_always_on")),
            split_groups=rng.random() < 0.8,
            phase_threshold=random.Random(f"{seed} phases").choice((0.0, 3600.0)),
        )
        others = random.Random(f"{seed} forgetting")
        plan = replace(plan, forget_spans=others.choice((None, 0.1, 0.1, 0.5)), kept_names=others.choice((0, 0, 100)))
        plan = plan._inside(random.Random(f"{seed} inside")) if inside else plan
        rng = random.Random(f"{seed} callers")
        return plan._calling(rng) if rng.random() < INSTRUMENTED else plan

    @property
    def kills(self) -> int:
        """How many processes of workers are killed."""
        return sum(step.name == KILL for step in self.steps)

    def _inside(self, rng: random.Random) -> Plan:
        """Have tasks use OpenTelemetry, and some workers be killed."""
        inside = Inside(
            processes=rng.choice((1, 1, 2)),
            is_handed_out=rng.random() < 0.5,
            spans=rng.choice(("any", "any", "child")),
            worker_max_rate=rng.choice((0, 0, 10)),
            protocol=rng.choice(("grpc", "http/protobuf")),
            is_batched=rng.random() < 0.5,
            sampled=rng.choice((1.0, 1.0, 0.5)),
            level=rng.choice(("tasks", "tasks", "groups", "spans")),
            default_spans=rng.choice(("full", "full", "segments", "off")),
            max_rate=rng.choice((0, 0, 0, 30)),
        )
        max_segment = 1.0 if self.max_segment < 1 else self.max_segment  # the setting allows no less
        sampler = self.sampler
        if max_segment > 1:  # a default root that continues in other traces has a decision for each
            sampler = rng.choice((self.sampler, self.sampler, "parentbased_traceidratio"))
        steps = list(self.steps)
        for _ in range(rng.randint(1, 3)):
            at, pause = rng.randint(0, len(steps)), rng.choice((0.0, 0.2))
            steps.insert(at, Step(KILL, rng.random(), pause, people=1, is_alike=False))
        return replace(self, inside=inside, max_segment=max_segment, sampler=sampler, steps=tuple(steps))

    def _calling(self, rng: random.Random) -> Plan:
        """Have the clients be instrumented, and the program serve requests besides."""
        calling = Calling(rng.choice(("parent", "parent", "link", "none")), rng.choice((1.0, 0.5)))
        steps = list(self.steps)
        for _ in range(rng.randint(2, 4)):
            people, pause = rng.choice((1, 2)), rng.choice((0.0, 0.05))
            steps.insert(rng.randint(0, len(steps)), Step(REQUESTS, rng.random(), pause, people, is_alike=False))
        return replace(self, calling=calling, steps=tuple(steps))
