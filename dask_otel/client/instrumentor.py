"""What ``opentelemetry-instrument`` finds by its entry point: it instruments clients once the program imports Dask.

An instrumentor that raises anything but ImportError ends the auto-instrumentation of its process, that of all other
libraries too; an import hook that raises makes the program's own import fail. Nothing of Dask is imported at start-up:
most programs that run under ``opentelemetry-instrument`` never use it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from wrapt import register_post_import_hook

from .. import instrument, uninstrument
from ..safety import Safety, log

__all__ = ["DaskInstrumentor"]

_safety = Safety()


class DaskInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments all Dask clients of this process, for OpenTelemetry's auto-instrumentation.

    It does what ``dask_otel.instrument()`` does, but not before ``distributed`` has been imported. It has no options:
    spans are made with the global tracer provider, and context is sent with the global propagator.
    """

    #: Whether a hook that is still waiting for the import is to do anything: it cannot be taken back.
    _is_wanted = False

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the versions of Dask that can be instrumented, as the extra ``instruments`` has them."""
        return ("dask>=2025.9.0", "distributed>=2025.9.0")

    def _instrument(self, **options: Any) -> None:
        with _safety.guard("instrumentor"):
            if options:
                log.warning("dask-otel: DaskInstrumentor has no options; ignored: %s", ", ".join(sorted(options)))
            self._is_wanted = True
            register_post_import_hook(self._imported, "distributed")

    def _imported(self, _: Any) -> None:
        with _safety.guard("instrumentor"):
            if self._is_wanted:
                instrument()

    def _uninstrument(self, **options: Any) -> None:
        with _safety.guard("instrumentor"):
            self._is_wanted = False
            if "distributed" in sys.modules:
                uninstrument()
