"""From a seed to what a run does. Pure: the same seed gives the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf

__all__ = ["FAULTS", "WORK", "Plan", "Step"]

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
        return self.name in FAULTS


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
    #: Whether spans of callers that are not sampled are sent, too.
    always_on: bool
    split_groups: bool

    @classmethod
    def of(cls, seed: int) -> Plan:
        """Make the plan of a seed."""
        rng = random.Random(seed)
        return cls(
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
            always_on=rng.choice((True, False)),
            split_groups=rng.random() < 0.8,
        )
