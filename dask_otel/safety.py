"""The one place that catches everything: the cluster must never notice a failure of ours.

Standard library only, so that it works when nothing else can be imported.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["Safety", "import_or_log", "log"]

#: Below ``distributed``, so that Dask's own logging configuration shows it and can silence it.
log = logging.getLogger("distributed.dask_otel")


class Safety:
    """Counts failures by where they happened, and logs each kind once."""

    def __init__(self) -> None:
        #: Number of failures by ``(where, exception type)``.
        self.failures: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Swallow, count and log any exception of the block."""
        try:
            yield
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 -- this is the place
            self.caught(where, error)

    def caught(self, where: str, error: Exception) -> None:
        """Count an exception, and log it the first time."""
        kind = (where, type(error).__name__)
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            log.error(
                "dask-otel failed in its %s and goes on without; the cluster is not affected. "
                "Further failures of this kind are only counted.",
                where,
                exc_info=error,
            )


def import_or_log(module: str) -> ModuleType | None:
    """Import a module of ours, or say in one line that the bridge is off because something it needs is broken."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 -- a broken package may raise anything
        log.error(
            "dask-otel is off: cannot import %s (%s: %s). Reinstall it with what it needs: "
            "pip install --force-reinstall dask-otel",
            getattr(error, "name", None) or module,
            type(error).__name__,
            error,
        )
        return None
