"""What tasks do. Most workers run in the process of the run, so they share this module's state."""

from __future__ import annotations

import asyncio
import operator
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

from distributed import fire_and_forget, get_client, span, worker_client
from distributed.metrics import context_meter

from .uses import uses_spans

__all__ = ["Counting", "Unreadable", "doze", "fail", "hand_on", "load", "shrink", "sometimes", "spawn", "work"]

#: How often each token was tried.
_tried: Counter[str] = Counter()


@uses_spans
def work(x: Any, *others: Any, seconds: float = 0.0, size: int = 0) -> Any:
    """Take time and memory, and report metrics of its own, two of which get one name."""
    time.sleep(seconds)
    context_meter.digest_metric("my work", 0.25, "seconds")
    context_meter.digest_metric("My-Work", -0.125, "seconds")
    context_meter.digest_metric("My-Work", 3, "count")
    return bytes(size) if size else x


@uses_spans
def load(x: Any, *others: Any, seconds: float = 0.0, size: int = 0) -> Any:
    """As ``work``, in a group of its own."""
    time.sleep(seconds)
    return bytes(size) if size else x


@uses_spans
async def doze(x: Any, *others: Any, seconds: float = 0.0, size: int = 0) -> Any:
    """Run on the worker's event loop."""
    await asyncio.sleep(seconds)
    return bytes(size) if size else x


@uses_spans
def fail(x: Any, *others: Any) -> Any:
    """Raise."""
    raise ValueError(f"bad {x}")


@uses_spans
def sometimes(token: str, error: type[Exception], times: int) -> str:
    """Raise the first few times."""
    _tried[token] += 1
    if _tried[token] <= times:
        raise error(token)
    return token


@uses_spans
def shrink(token: str) -> bytes:
    """Return less each time."""
    _tried[token] += 1
    return bytes(10_000 // _tried[token])


@uses_spans
def spawn(n: int, tag: str | None, wait: bool, seconds: float = 0.01, shared: bool = False) -> int:
    """Submit tasks from within a task, perhaps in a span below its own; to wait makes it a long-running one."""
    with worker_client() if wait else nullcontext(get_client()) as client, span(tag) if tag else nullcontext():
        futures = client.map(work, range(n), seconds=seconds, pure=shared)
        fire_and_forget(futures)
        return len(client.gather(futures, errors="skip")) if wait else n


@uses_spans
async def hand_on(n: int) -> int:
    """Submit tasks from a task on the worker's event loop."""
    fire_and_forget(get_client().map(load, range(n + 1), pure=False))
    return n


class Counting:
    """An actor."""

    value = 0

    @uses_spans
    def add(self) -> int:
        """Count one more."""
        self.value += 1
        return self.value


class Unreadable:
    """Cannot be unpickled by anybody."""

    def __reduce__(self) -> Any:
        return operator.truediv, (1, 0)
