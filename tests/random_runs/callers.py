"""The program that submits work: its spans around it at random, as in web services and scripts, and an account of them.

The account is read from OpenTelemetry and from Dask's annotations where the program uses them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import dask
import distributed
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from support.memory import MemoryExporter

import dask_otel
from dask_otel.patching import generator_of, replace_generator

from .plan import Calling
from .submissions import Ids, SpanOf, is_in_task, note_callers

__all__ = ["PROGRAM", "WAYS", "Block", "Callers", "Failed", "keep_spans"]

#: Attribute of the spans that the program makes itself.
PROGRAM = "test.program"
_ROUTES = ("/items/{id}", "/report", "/search")
_tracer = trace.get_tracer("program")


class Failed(Exception):
    """Of the program."""


@dataclass(eq=False)
class Block:
    """A ``with span(...)`` of the program."""

    tags: Ids
    #: Of its Dask spans, and of the innermost and all around it.
    ids: Ids
    lineage: Ids
    #: The current span around it and in it.
    around: SpanOf | None
    inside: SpanOf | None
    #: What has left it.
    error: type[BaseException] | None = None


class Callers:
    """What the program does with OpenTelemetry, and all that it has done.

    Parameters
    ----------
    calling
        How it is instrumented, as it is from now on.
    """

    def __init__(self, calling: Calling, seed: int, phase_threshold: float) -> None:
        self.rng = random.Random(f"{seed} spans of callers")
        self.blocks: list[Block] = []
        #: Spans that it made itself, each with the id of its parent, empty for none; and those in other processes.
        self.made: dict[SpanOf, str] = {}
        self.elsewhere: set[SpanOf] = set()
        dask.config.set({"otel.client.context": calling.context, "otel.client.phase-threshold": phase_threshold})
        dask_otel.instrument()
        note_callers()
        self._note_blocks()

    def _note_blocks(self) -> None:
        opens = contextmanager(generator_of(distributed.span))  # type: ignore[arg-type]

        def span(*tags: str) -> Iterator[str]:
            if is_in_task():
                with opens(*tags) as id_:
                    yield id_
                return
            around = SpanOf.current()
            with opens(*tags) as id_:
                lineage = tuple(dask.get_annotations()["span"]["ids"])
                block = Block(tags, lineage[-len(tags) :], lineage, around, SpanOf.current())
                self.blocks.append(block)
                try:
                    yield id_
                except BaseException as error:
                    block.error = type(error)
                    raise

        replace_generator(distributed.span, span)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Enter some of what the program may have around its work, in any order, or nothing."""
        with ExitStack() as stack:
            for _ in range(self.rng.choice((0, 0, 1, 1, 2, 3))):
                stack.enter_context(
                    self.rng.choice((self.request, self.request, self.step, self.block, self.message))()
                )
            yield

    def request(self) -> AbstractContextManager[Any]:
        """A request to a web service, from a client with traces or from one without."""
        parent = self._far_away() if self.rng.random() < 0.5 else None
        context = (
            set_span_in_context(NonRecordingSpan(parent), otel_context.Context()) if parent else otel_context.Context()
        )
        attributes = {"http.request.method": "GET", "http.route": self.rng.choice(_ROUTES)}
        return self._span("GET", SpanKind.SERVER, attributes, context)

    def step(self) -> AbstractContextManager[Any]:
        """A span for a part of the program."""
        return self._span(self.rng.choice(("load", "step")), SpanKind.INTERNAL, {})

    def block(self) -> AbstractContextManager[Any]:
        """A Dask span."""
        return distributed.span(*self.rng.choices(("alice", "step", "train"), k=self.rng.choice((1, 1, 2))))

    @contextmanager
    def message(self) -> Iterator[None]:
        """A context that came from another process, without a span in this one."""
        token = otel_context.attach(set_span_in_context(NonRecordingSpan(self._far_away())))
        try:
            yield
        finally:
            otel_context.detach(token)

    @contextmanager
    def _span(self, name: str, kind: SpanKind, attributes: dict[str, Any], context: Any = None) -> Iterator[None]:
        parent = trace.get_current_span(context).get_span_context()
        with _tracer.start_as_current_span(
            name, context, kind, attributes | {PROGRAM: True}, record_exception=False, set_status_on_exception=False
        ):
            own = SpanOf.current()
            assert own
            self.made[own] = f"{parent.span_id:016x}" if parent.is_valid else ""
            yield

    def _far_away(self) -> SpanContext:
        flags = TraceFlags(self.rng.random() < 0.7)
        context = SpanContext(self.rng.getrandbits(128), self.rng.getrandbits(64), is_remote=True, trace_flags=flags)
        self.elsewhere.add(SpanOf(f"{context.trace_id:032x}", f"{context.span_id:016x}", bool(flags)))
        return context


def keep_spans(sampled: float) -> MemoryExporter:
    """Give this process a provider that samples a share of the traces and keeps the spans in memory."""
    exporter = MemoryExporter()
    sampler, resource = ParentBased(TraceIdRatioBased(sampled)), Resource({"service.name": "program"})
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


async def _here(submit: Callable[[], Any]) -> Any:
    return submit()


async def _in_thread(submit: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(submit)


async def _with_opentelemetry(submit: Callable[[], Any]) -> Any:
    """In a thread as OpenTelemetry's instrumentation makes it."""
    context = otel_context.get_current()

    def run() -> Any:
        otel_context.attach(context)
        return submit()

    return await asyncio.to_thread(Context().run, run)


async def _without_context(submit: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(Context().run, submit)


#: How a program may submit.
WAYS: tuple[Callable[[Callable[[], Any]], Awaitable[Any]], ...] = (
    *(_here, _here, _in_thread, _with_opentelemetry, _without_context),
)
