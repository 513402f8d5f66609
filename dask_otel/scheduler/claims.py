"""Tasks that a span requested and that Dask counts in another one, the owning span: they were there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..spantree.counts import FirstError, Load
from ..spantree.events import Claim, latest_run
from .outcomes import UNFINISHED, error_of
from .pace import Clock

__all__ = ["Claims"]


class _Claimed:
    """A task that a span other than its own requested."""

    __slots__ = ("requesting", "state", "waiting")

    def __init__(self) -> None:
        #: Ids of the spans that requested it, and of those of them for which it has not ended yet.
        self.requesting: frozenset[str] = frozenset()
        self.waiting: frozenset[str] = frozenset()
        #: Last known; empty before the first transition: a task may never need to run.
        self.state = ""


class _Open(Claim):
    """A claim of the current sweep."""

    __slots__ = ("states",)

    def __init__(self, requesting: str, owning: str, since: float) -> None:
        super().__init__(requesting, owning, since)
        #: By how much the number of tasks in each state changed.
        self.states: dict[str, int] = {}


class Claims:
    """What happened to such tasks since the last sweep."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Those that Dask has not forgotten.
        self.keys: dict[Any, _Claimed] = {}
        #: Those of them that failed, and may be run again for all who requested them.
        self._failed: dict[Any, _Claimed] = {}
        self._claims: dict[tuple[str, str], _Open] = {}

    def add(self, key: Any, task: Any, requesting: str, since: float) -> None:
        """Follow a task from now on."""
        claim = self._claim(requesting, task.group.span_id, since)
        ended = task.state in ("memory", "erred")
        if ended:
            self._ended_before(claim, task)
            if task.state == "memory":
                return  # while a failure may be run again
        claimed = self.keys.setdefault(key, _Claimed())
        claimed.requesting |= {requesting}
        if ended:
            self._failed[key] = claimed
        claimed.state = task.state if task.state in UNFINISHED else ""
        if not ended and requesting not in claimed.waiting:
            claimed.waiting |= {requesting}
            claim.tasks += 1
            if claimed.state:
                claim.states[claimed.state] = claim.states.get(claimed.state, 0) + 1

    def follow(
        self,
        key: Any,
        state: str,
        task: Any,
        outcome: str | None,
        startstops: Sequence[Mapping[str, Any]] | None,
        *,
        asked_again: bool,
    ) -> None:
        """Note a transition to a state.

        Parameters
        ----------
        asked_again
            Whether a person has it run again after a failure.
        """
        claimed = self.keys[key]
        before = claimed.state
        if state == "erred":
            self._failed[key] = claimed
        elif self._failed:
            self._failed.pop(key, None)
        if asked_again and not claimed.waiting:
            claimed.waiting = claimed.requesting
        claimed.state = state if state in UNFINISHED else ""
        for requesting in claimed.waiting:
            claim = self._claim(requesting, task.group.span_id, self._clock.now())
            claim.prefix = claim.prefix or str(task.prefix.name)
            if before:
                claim.states[before] = claim.states.get(before, 0) - 1
            if claimed.state:
                claim.states[state] = claim.states.get(state, 0) + 1
            if state == "processing" and not claim.began:
                claim.began = self._clock.now()
            if outcome:
                self._end(claim, task, outcome, startstops)
        if state in ("memory", "erred") or outcome in ("cancelled", "abandoned"):
            claimed.waiting = frozenset()
        elif state == "forgotten":
            del self.keys[key]

    def spans(self) -> Iterator[str]:
        """Yield the ids of the spans of which something has happened since the last ``take``, or may happen again."""
        for requesting, owning in self._claims:
            yield requesting
            yield owning
        for claimed in self._failed.values():
            yield from claimed.requesting

    def take(self) -> list[Claim]:
        """Return what happened since the last call."""
        claims, self._claims = self._claims, {}
        for claim in claims.values():
            claim.load = Load(*(claim.states.get(state, 0) for state in UNFINISHED))
        return list(claims.values())

    def _ended_before(self, claim: Claim, task: Any) -> None:
        """Count a task that was there, or had failed, already."""
        claim.tasks += 1
        claim.last_event = self._clock.now()
        if task.state == "memory":
            claim.completed += 1
        else:
            claim.count("erred" if task.exception_blame is task else "upstream_failed")
            claim.error = claim.error or FirstError(*error_of(task.exception_blame))

    def _end(self, claim: Claim, task: Any, outcome: str, startstops: Sequence[Mapping[str, Any]] | None) -> None:
        claim.count(outcome)
        if outcome == "lost" and task.has_lost_dependencies:
            claim.lost_for_good += 1
        for run in latest_run(startstops):
            claim.hull(self._clock.of_dask(run["start"]), self._clock.of_dask(run["stop"]))
        if outcome != "completed":
            claim.last_event = self._clock.now()
        if outcome in ("erred", "upstream_failed") and not claim.error:
            claim.error = FirstError(*error_of(task.exception_blame))

    def _claim(self, requesting: str, owning: str, since: float) -> _Open:
        claim = self._claims.get((requesting, owning))
        if claim is None:
            claim = self._claims[requesting, owning] = _Open(requesting, owning, since)
        return claim
