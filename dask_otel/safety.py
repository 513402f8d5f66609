"""The one place that catches everything: the cluster must never notice a failure of ours.

Standard library only, so that it works when nothing else can be imported.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
import traceback
from collections import Counter, deque
from contextlib import AbstractContextManager, suppress
from types import ModuleType, TracebackType
from typing import Any
from weakref import WeakSet

__all__ = ["Safety", "import_or_log", "log", "log_error", "recent", "why_off"]

#: Below ``distributed``, so that Dask's own logging configuration shows it and can silence it.
log = logging.getLogger("distributed.dask_otel")

#: The last lines of the log, when they were logged (seconds since the epoch) and the first line of each: ``dask-otel
#: doctor --scheduler`` asks for those of a scheduler's own time, since a process may have had others before.
recent: deque[tuple[float, str]] = deque(maxlen=50)


def _remember(record: logging.LogRecord) -> bool:
    # A filter, since a handler of ours would silence Python's handler of last resort.
    with suppress(Exception):
        recent.append((record.created, record.getMessage().partition("\n")[0][:1000]))
    return True


log.addFilter(_remember)


def log_error(message: str, *args: Any, exc_info: BaseException | None = None) -> None:
    """Log an error; handlers and filters are the program's, and may raise anything."""
    with suppress(Exception):
        log.error(message, *args, exc_info=exc_info)


_OFF = re.compile(r"dask-otel.* (?:is|turns itself) off: ")


def why_off(since: float) -> str | None:
    """Return why the bridge is off, as the last line of the log about it has it; None if there is no such line.

    Parameters
    ----------
    since
        Seconds since the epoch; earlier lines do not count.
    """
    lines = [_OFF.split(line, maxsplit=1)[1] for at, line in list(recent) if at >= since and _OFF.match(line)]
    return lines[-1] if lines else None


#: Failures of one place in a row after which the bridge gives up.
MAX_IN_A_ROW = 100


#: Beginnings of places that may fail for ever: a collector may be away for as long as it likes, traces go on without
#: metrics, without a page and without verdicts, and span processors of workers and clients are not ours.
_DISPENSABLE = ("exporter", "metrics", "page", "evidence", "run times", "verdict", "task span", "caller")

#: All that live, so that those of a process that is forked off have locks that no other thread holds.
_all: WeakSet[Safety] = WeakSet()


class Safety:
    """Counts failures by where they happened, and logs each kind once."""

    def __init__(self) -> None:
        #: Guards what export threads change while the event loop reads it.
        self._lock = threading.RLock()  # re-entrant: a signal handler may fail, too
        _all.add(self)
        self._failures: Counter[tuple[str, str]] = Counter()
        #: Whether what exceptions say may be logged; it can hold a person's keys and tags.
        self.logs_messages = True
        #: Set once a place has failed too often in a row.
        self.gave_up = False
        #: Failures in a row by place; and as of the last check.
        self._streaks: Counter[str] = Counter()
        self._checked: dict[str, int] = {}

    @property
    def failures(self) -> Counter[tuple[str, str]]:
        """Number of failures by ``(where, exception type)``: a copy, since other threads go on counting."""
        with self._lock:
            return Counter(self._failures)

    def renew_lock(self) -> None:
        """Have a lock that no other thread holds."""
        self._lock = threading.RLock()

    def guard(self, where: str) -> AbstractContextManager[None, bool]:
        """Swallow, count and log any exception of a block, but not what ends a task or a thread."""
        return _Guard(self, where)

    def caught(self, where: str, error: Exception) -> None:
        """Count an exception, and log it the first time."""
        kind = (where, type(error).__name__)
        may_give_up = not where.startswith(_DISPENSABLE)
        with self._lock:
            self._failures[kind] += 1
            is_first = self._failures[kind] == 1
            self._streaks[where] += may_give_up
            gives_up = self._streaks[where] >= MAX_IN_A_ROW and not self.gave_up
            self.gave_up = self.gave_up or gives_up
        if is_first:
            log_error(
                "dask-otel failed in its %s and goes on without; the cluster is not affected. "
                "Further failures of this kind are only counted.%s",
                where,
                "" if self.logs_messages else f"\n{_without_message(error)}",
                exc_info=error if self.logs_messages else None,
            )
        if gives_up:
            log_error(
                "dask-otel turns itself off: its %s has failed %d times in a row. What it knows is sent if possible; "
                "the cluster is not affected.",
                where,
                MAX_IN_A_ROW,
            )

    def check_streaks(self) -> bool:
        """End the streaks of places that have not failed since the last check; return whether there are others."""
        with self._lock:
            for where, number in self._checked.items():
                if self._streaks[where] == number:
                    del self._streaks[where]
            self._checked = {where: number for where, number in self._streaks.items() if number}
            return bool(self._checked)


class _Guard(AbstractContextManager[None, bool]):
    __slots__ = ("_safety", "_where")

    def __init__(self, safety: Safety, where: str) -> None:
        self._safety = safety
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self._safety.caught(self._where, error)
            return True
        return False


def _forked() -> None:
    for each in list(_all):
        each.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _without_message(error: Exception) -> str:
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


#: Modules that could not be imported, and what was logged about each.
_not_imported: set[tuple[str, str]] = set()


def import_or_log(module: str) -> ModuleType | None:
    """Import a module of ours, or say in one line that the bridge is off because something it needs is broken."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 -- a broken package may raise anything
        name = getattr(error, "name", None) or module
        advice = "Reinstall it with what it needs: pip install --force-reinstall dask-otel"
        if not isinstance(error, ImportError) and os.environ.get("OTEL_PROPAGATORS"):
            advice = "OTEL_PROPAGATORS must name propagators that are installed"  # OpenTelemetry's API reads it
        line = f"dask-otel is off: cannot import {name} ({type(error).__name__}: {error}). {advice}"
        if (module, line) not in _not_imported:
            log_error("%s", line)
            _not_imported.add((module, line))
        return None
