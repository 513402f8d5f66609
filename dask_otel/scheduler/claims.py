"""Tasks that a span requested and that Dask counts in another span, the owning span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spantree.counts import FirstError, Load, Tally
from ..spantree.events import NOBODY, Change, Claim, latest_run
from .outcomes import UNFINISHED, error_of
from .pace import Clock

__all__ = ["Claims"]

_FAILED = ("erred", "upstream_failed")


class _Claimed:
    """A task that is not where it was asked for."""

    __slots__ = ("askers", "is_foreign", "state", "waiting")

    def __init__(self, *, is_foreign: bool) -> None:
        #: Nobody has asked for it where it is. Should it fail, ever, that is no failure of the span that counts it.
        self.is_foreign = is_foreign
        #: Ids of the spans that asked, or ``NOBODY``.
        self.askers: frozenset[str] = frozenset()
        #: Of these, the spans for which it has not ended yet.
        self.waiting: frozenset[str] = frozenset()
        #: Last known; empty before the first transition: a task may never need to run.
        self.state = ""


class _Open(Claim):
    """A claim of the current sweep."""

    __slots__ = ("states",)

    def __init__(self, asker: str, holder: str, since: float) -> None:
        super().__init__(asker, holder, since)
        #: By how much the number of tasks in each state changed.
        self.states: dict[str, int] = {}


class Claims:
    """What happened to such tasks since the last sweep."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Those that Dask has not forgotten.
        self.keys: dict[Any, _Claimed] = {}
        self._claims: dict[tuple[str, str], _Open] = {}
        #: A set for each asker of the current sweep: most tasks have one asker, and one map may bring a million tasks.
        self._alone: dict[str, frozenset[str]] = {}

    def add(self, key: Any, task: Any, asker: str, since: float, change: Change, *, is_new: bool) -> None:
        """Follow a task from now on.

        Parameters
        ----------
        change
            Of the task's group.
        is_new
            Whether only this submission has asked for the task.
        """
        alone = self._alone.get(asker)
        if alone is None:
            alone = self._alone[asker] = frozenset((asker,))
        if is_new:
            _foreign(change, alone).tasks += 1
        ended = task.state in ("memory", "erred")
        if asker != NOBODY and ended:
            self._ended_before(self._claim(asker, task.group.span_id, since), task)
            if task.state == "memory":
                return  # while a failure may be run again
        claimed = self.keys.get(key)
        if claimed is None:
            claimed = self.keys[key] = _Claimed(is_foreign=is_new)
        claimed.askers = claimed.askers | alone if claimed.askers else alone
        claimed.state = task.state if task.state in UNFINISHED else ""
        if asker != NOBODY and not ended and asker not in claimed.waiting:
            claimed.waiting = claimed.waiting | alone if claimed.waiting else alone
            claim = self._claim(asker, task.group.span_id, since)
            claim.tasks += 1
            if claimed.state:
                claim.states[claimed.state] = claim.states.get(claimed.state, 0) + 1

    def wanted_where_it_is(self, key: Any) -> None:
        """Note that the span that counts a task has asked for it, too."""
        claimed = self.keys.get(key)
        if claimed:
            claimed.is_foreign = False

    def is_foreign(self, key: Any) -> bool:
        """Whether only spans other than the one that counts a task have asked for it."""
        claimed = self.keys.get(key)
        return claimed is not None and claimed.is_foreign

    def follow(
        self,
        key: Any,
        state: str,
        task: Any,
        outcome: str | None,
        change: Change,
        details: Mapping[str, Any],
        *,
        asked_again: bool,
    ) -> None:
        """Note a transition to a state.

        Parameters
        ----------
        change
            Of the task's group.
        asked_again
            Whether a person has it run again after a failure.
        """
        claimed = self.keys[key]
        before = claimed.state
        if asked_again and not claimed.waiting:
            claimed.waiting = claimed.askers - {NOBODY}
        claimed.state = state if state in UNFINISHED else ""
        if outcome and claimed.is_foreign:
            foreign = _foreign(change, claimed.askers)
            foreign.count(outcome)
            if outcome in _FAILED:
                foreign.error = foreign.error or FirstError(*error_of(task.exception_blame))
                if not claimed.waiting:
                    self._failed_for_nobody(claimed, task)
                    before = ""  # they have not been told that it was to run
        for asker in claimed.waiting:
            claim = self._claim(asker, task.group.span_id, self._clock.now())
            claim.prefix = claim.prefix or str(task.prefix.name)
            if before:
                claim.states[before] = claim.states.get(before, 0) - 1
            if claimed.state:
                claim.states[state] = claim.states.get(state, 0) + 1
            if state == "processing" and not claim.began:
                claim.began = self._clock.now()
            if outcome:
                self._end(claim, task, outcome, details)
        if state in ("memory", "erred") or outcome in ("cancelled", "abandoned"):
            claimed.waiting = frozenset()
        elif state == "forgotten":
            del self.keys[key]

    def _failed_for_nobody(self, claimed: _Claimed, task: Any) -> None:
        """Every failure is some root's: of those who have asked before, else of work without a span."""
        claimed.waiting = claimed.askers - {NOBODY}
        if not claimed.waiting:
            claimed.waiting = claimed.askers
            self._claim(NOBODY, task.group.span_id, self._clock.now()).tasks += 1

    def take(self) -> list[Claim]:
        """Return what happened since the last call."""
        claims, self._claims = self._claims, {}
        self._alone = {}
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

    def _end(self, claim: Claim, task: Any, outcome: str, details: Mapping[str, Any]) -> None:
        claim.count(outcome)
        for run in latest_run(details.get("startstops")):
            claim.hull(self._clock.of_dask(run["start"]), self._clock.of_dask(run["stop"]))
        if outcome != "completed":
            claim.last_event = self._clock.now()
        if outcome in _FAILED and not claim.error:
            claim.error = FirstError(*error_of(task.exception_blame))

    def _claim(self, asker: str, holder: str, since: float) -> _Open:
        claim = self._claims.get((asker, holder))
        if claim is None:
            claim = self._claims[asker, holder] = _Open(asker, holder, since)
        return claim


def _foreign(change: Change, askers: frozenset[str]) -> Tally:
    tally = change.foreign.get(askers)
    if tally is None:
        tally = change.foreign[askers] = Tally()
    return tally
