"""The settings of an instrumented client: ``otel.client.*`` and what ``otel.capture`` excludes.

Each submission asks for them. Reading and checking all settings takes a millisecond, so the result is kept as long as
what is written there stays the same.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from typing import Any

import dask

from .. import config
from ..errors import SettingError
from ..privacy import Capture
from ..safety import log_error

__all__ = ["ClientSettings", "client_settings"]

#: Configurations that are remembered: ``dask.config.set`` may change between two for each request.
MAX_KNOWN = 16
#: Errors that are logged.
MAX_REPORTED = 100
#: Parts of ``otel`` that are read here; and what is in the place of all.
_PARTS = ("client", "capture", "")


@dataclass(frozen=True)
class ClientSettings:
    """Times in seconds."""

    #: ``parent``, ``link`` or ``none``.
    context: str
    link_after: float
    phase_threshold: float
    #: Whether the user and the host of the client are sent.
    says_user: bool
    #: What may be sent and logged of what is the person's own.
    capture: Capture


#: What was written when somebody asked last, and what it means: number of parts, and those that are read here.
_latest: tuple[int, list[Any], ClientSettings] | None = None
#: By the text of what was written.
_known: OrderedDict[str, ClientSettings] = OrderedDict()
#: Errors that were logged: each is logged once.
_reported: set[str] = set()
#: Re-entrant: a signal handler may submit.
_lock = RLock()


def client_settings() -> ClientSettings:
    """Return the settings as they are now. What cannot be used has its default, and is logged once."""
    global _latest
    given, latest = dask.config.config.get("otel"), _latest
    if not isinstance(given, dict):
        given = {"": given}
    parts = [given.get(name) for name in _PARTS]
    if latest is not None and latest[0] == len(given) and latest[1] == parts:
        return latest[2]
    # Copies, since ``dask.config.set`` changes mappings in place.
    parts = [part.copy() if isinstance(part, dict) else part for part in parts]
    text = repr((parts, [*given]))
    found = _known.get(text) or _load(text)
    _latest = len(given), parts, found
    return found


def _load(written: str) -> ClientSettings:
    settings = config.load(_report)
    loaded = ClientSettings(
        context=settings.client_context,
        link_after=settings.link_after,
        phase_threshold=settings.phase_threshold,
        says_user=settings.capture_user,
        capture=Capture(**settings.capture),
    )
    with _lock:
        _known[written] = loaded
        if len(_known) > MAX_KNOWN:
            _known.popitem(last=False)
    return loaded


def _report(error: SettingError) -> None:
    line = f"dask-otel {config.consequence(error)}: {error}"
    if line not in _reported and len(_reported) < MAX_REPORTED:
        _reported.add(line)
        log_error("%s", line)


def _renew_lock() -> None:
    """Have a lock that no other thread holds, in a process that was forked off."""
    global _lock
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
