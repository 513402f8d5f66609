"""The tracer of the program's own tracer provider, with which clients and workers make spans."""

from __future__ import annotations

from typing import Any

from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Tracer, get_tracer_provider

from . import __version__

__all__ = ["GlobalTracer", "may_be_sent"]


class GlobalTracer:
    """The tracer of the global provider, which may be set at any time."""

    def __init__(self) -> None:
        self._of: tuple[Any, Tracer] | None = None

    def __call__(self) -> Tracer | None:
        """Return the tracer; None if the process has no provider that makes spans and sends them."""
        provider, known = get_tracer_provider(), self._of
        if not _sends(provider):
            return None
        if known is None or known[0] is not provider:
            if isinstance(provider, (ProxyTracerProvider, NoOpTracerProvider)):
                return None
            known = self._of = provider, provider.get_tracer("dask_otel", __version__)
        return known[1]


def may_be_sent(span: Any) -> bool:
    """Whether a span may reach a backend: not if its provider has no span processors."""
    return _has_some(getattr(span, "_span_processor", None))


def _sends(provider: Any) -> bool:
    """Whether a provider has span processors: without them, the scheduler's span of a failed task would be missing."""
    return _has_some(getattr(provider, "_active_span_processor", None))


def _has_some(processor: Any) -> bool:
    """Whether there are processors behind that of the SDK's providers and spans, which has no public name.

    A provider or span that lacks these attributes is somebody else's, and sent in its own way.
    """
    processors = getattr(processor, "_span_processors", None)
    return processors is None or len(processors) > 0
