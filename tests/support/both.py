"""A cluster with the bridge on its scheduler and the plugin on its workers: whole traces, of both."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from distributed.utils_test import gen_cluster

from dask_otel.cli.receiver import Span
from dask_otel.spantree.to_records import Level
from dask_otel.worker.plugin import OTelWorkerPlugin
from support.clusters import finished, one_clock
from support.inside import Person, provider_of, spans_of
from support.memory import MemoryPlugin


def both(
    *, make: Callable[[], Person] = Person, bridge: Callable[[MemoryPlugin], object] = lambda plugin: None,
    config: Any = None, cluster: Any = None, **settings: Any,
):  # fmt: skip
    """Run a test with a person's provider, the bridge, a client and workers; nothing of ours may fail.

    Parameters
    ----------
    bridge
        Called with the plugin of the bridge before it starts.
    settings
        Of the bridge.
    """

    def decorate(test):
        async def run(client, scheduler, *workers, **arguments):
            person, plugin = make(), MemoryPlugin(**settings)
            if (
                settings.get("level", Level.TASKS) < Level.GROUPS
                or settings.get("default_level", Level.TASKS) < Level.GROUPS
            ):
                plugin.partial = Everything()  # not all groups are sent, so sums are not those of segments
            bridge(plugin)
            await plugin.add_to(scheduler)
            with provider_of(person), one_clock():
                for worker in workers:
                    await worker.plugin_add(OTelWorkerPlugin())
                spans = [spans_of(worker) for worker in workers]
                await test(person, plugin, client, scheduler, *workers, **arguments)
                for each in spans:
                    await asyncio.to_thread(each.stop, 30)
                    assert not each.safety.failures
            await finished(plugin)

        signature = inspect.signature(test)  # for pytest; without what is no fixture
        run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[2:])
        run.__name__ = test.__name__
        # Which phases of an instrumented client take long is a matter of chance.
        given = {"otel.client.phase-threshold": "1h"} | (config or {})
        defaults = {"client": True, "nthreads": [("127.0.0.1", 2)], "timeout": 90, "config": given}
        return gen_cluster(**defaults | (cluster or {}))(run)

    return decorate


async def everything(person: Person, plugin: MemoryPlugin, *workers: Any) -> list[Span]:
    """End all spans and return them; each parent is there, and no run has two task spans."""
    for worker in workers:
        if "dask-otel" in worker.plugins:
            assert await asyncio.to_thread(spans_of(worker).stop, 30)
    spans = [*await finished(plugin), *person.spans]
    check(spans)
    return spans


def check(spans: Iterable[Span]) -> None:
    """No orphan, no double."""
    spans = list(spans)
    ids = Counter((span.trace_id, span.span_id) for span in spans)
    assert set(ids.values()) <= {1}
    for span in spans:
        assert not span.parent_id or (span.trace_id, span.parent_id) in ids, ("orphan", span)
    runs = Counter(
        (span.attributes["dask.task.key"], span.attributes["dask.task.run_id"])
        for span in spans
        if "dask.task.run_id" in span.attributes
    )
    assert set(runs.values()) <= {1}, "double"


def shape(spans: Iterable[Span], *attributes: str) -> list[str]:
    """One line a span, children indented; spans of a worker's process have ``~``."""
    spans = list(spans)
    lines: list[str] = []

    def add(parent: tuple[str, str], depth: int) -> None:
        children = [each for each in spans if (each.trace_id, each.parent_id) == parent]
        for span in sorted(children, key=_order):
            kind = span.attributes.get("dask.kind")
            parts = ["  " * depth + ("" if span.resource["service.name"] == "dask-scheduler" else "~") + span.name]
            parts += [f"[{kind}]"] if kind else []
            parts += [f"{name}={span.attributes[name]}" for name in attributes if name in span.attributes]
            if span.status != "Unset":
                parts.append(": ".join([span.status, *filter(None, [span.attributes.get("error.type")])]))
            lines.append(" ".join(parts))
            add((span.trace_id, span.span_id), depth + 1)

    for trace_id in dict.fromkeys(span.trace_id for span in sorted(spans, key=lambda span: span.start)):
        add((trace_id, ""), 0)
    return lines


def _order(span: Span) -> tuple[bool, float | str, bool]:
    """Segments by time, then by name, the scheduler's own before those of workers."""
    is_segment = span.attributes.get("dask.kind") == "span"
    return not is_segment, span.start if is_segment else span.name, span.resource["service.name"] != "dask-scheduler"


class Everything:
    """Contains anything."""

    def __contains__(self, item: object) -> bool:
        return True
