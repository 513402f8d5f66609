"""Workers whose tasks have spans, in a process with a tracer provider of a person's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.utils_test import gen_cluster
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from dask_otel.cli.receiver import Span
from dask_otel.identity import group_id
from dask_otel.worker.execution import TaskSpans
from dask_otel.worker.plugin import OTelWorkerPlugin
from support.memory import MemoryExporter

#: What functions of tests share with their tests, since workers are in the same process. Functions import it: with
#: others that they refer to, a copy would come along.
shared: dict[str, Any] = {}
#: A person's preload: a provider that sends to the collector.
PROVIDER = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

def dask_setup(worker):
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
"""
#: By scheduler and id of a group span, its group; also groups that are gone.
_groups: WeakKeyDictionary[Scheduler, dict[str, str]] = WeakKeyDictionary()


class Person:
    """The provider of a person's process, and what it has sent."""

    def __init__(self, *processors: SpanProcessor, **provider: Any) -> None:
        self.exporter = MemoryExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **provider)
        for processor in (*processors, SimpleSpanProcessor(self.exporter)):
            self.provider.add_span_processor(processor)

    @property
    def spans(self) -> list[Span]:
        return self.exporter.spans()

    def tasks(self) -> list[Span]:
        return [span for span in self.spans if span.attributes.get("dask.kind") == "task"]


@contextmanager
def provider_of(person: Person | None) -> Iterator[None]:
    """Make it the global one for a while; without one, the process has none. OpenTelemetry has no such function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", person and person.provider)
        patch.delenv("OTEL_PYTHON_TRACER_PROVIDER", raising=False)
        yield


def spanned(*, make: Callable[[], Person | None] = Person, failures: int = 0, config: Any = None, **cluster: Any):
    """Run a test with a cluster, a client and a person's provider, whose workers have the plugin.

    Parameters
    ----------
    make
        Makes what the test gets first.
    failures
        Kinds of failures of ours that there are in the end.
    """

    def decorate(test):
        async def run(client, scheduler, *workers, **arguments):
            person = make()
            await scheduler.register_scheduler_plugin(Groups(), idempotent=False)
            with provider_of(person):
                for worker in workers:
                    await worker.plugin_add(OTelWorkerPlugin())
                spans = [spans_of(worker) for worker in workers]
                await test(person, client, scheduler, *workers, **arguments)
            for each in spans:
                await asyncio.to_thread(each.stop, 30)
            assert len({kind for each in spans for kind in each.safety.failures}) == failures, [
                each.safety.failures for each in spans
            ]

        signature = inspect.signature(test)  # for pytest; without the person, who is no fixture
        run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        run.__name__ = test.__name__
        defaults = {"client": True, "nthreads": [("127.0.0.1", 2)], "timeout": 90, "config": config}
        return gen_cluster(**defaults | cluster)(run)

    return decorate


def spans_of(worker: Any) -> TaskSpans:
    """What wraps a worker."""
    return worker.plugins["dask-otel"]._spans


async def ended(*workers: Any) -> None:
    """Wait until the spans of runs that are over have ended."""
    for worker in workers:
        assert await asyncio.to_thread(spans_of(worker).stop, 30)


class Groups(SchedulerPlugin):
    """Remembers groups."""

    name = "groups"

    def update_graph(self, scheduler: Scheduler, **details: Any) -> None:
        groups(scheduler)


def groups(scheduler: Scheduler) -> dict[str, str]:
    """By the id of a group span, its group."""
    known = _groups.setdefault(scheduler, {})
    for group in scheduler.task_groups.values():
        if group.span_id:
            known[f"{group_id(group.span_id, str(group.name), 0):016x}"] = f"group {group.name}"
    return known


def lines(scheduler: Scheduler, spans: list[Span], *attributes: str) -> list[str]:
    """One line a span, children indented, below the group span that is their parent."""
    known = groups(scheduler)
    ids = {span.span_id for span in spans}
    out: list[str] = []

    def add(parents: set[str], depth: int) -> None:
        for span in sorted((s for s in spans if s.parent_id in parents), key=lambda s: (s.name, s.start)):
            kind = span.attributes.get("dask.kind")
            parts = ["  " * depth + span.name + (f" [{kind}]" if kind else "")]
            parts += [f"{name}={span.attributes[name]}" for name in attributes if name in span.attributes]
            if span.status != "Unset":
                parts.append(f"{span.status}: {span.attributes.get('error.type')}: {span.status_message}")
            out.append(" ".join(parts))
            add({span.span_id}, depth + 1)

    outside = sorted(
        {span.parent_id for span in spans if span.parent_id not in ids}, key=lambda id_: known.get(id_, "")
    )
    for parent in outside:
        out.append(known.get(parent, f"span {parent}") if parent else "no parent")
        add({parent}, 1)
    return out
