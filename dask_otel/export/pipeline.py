"""From record to backend: a bounded queue and a thread, so that the event loop never waits for a collector."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ..mirror.records import Record
from ..safety import Safety, log

__all__ = ["FanOut", "Pipeline"]

#: Records that may wait, about 100 MB.
MAX_WAITING = 50_000
#: Spans in one request; collectors refuse 4 MiB.
MAX_BATCH = 256
#: Seconds between two batches: encoding one holds the interpreter lock for some 20 ms.
PAUSE = 0.005
#: A batch is given up after so many failures, about ten minutes: it may be the batch that is wrong.
MAX_ATTEMPTS = 20
#: Seconds to wait after a failure: doubled each time, up to the second number.
BACK_OFF = (0.5, 30.0)
#: Seconds between two warnings.
WARN_EVERY = 60.0


class Pipeline:
    """Sends records through one exporter, in a thread of its own.

    Parameters
    ----------
    name
        Of the exporter, for the log.
    convert
        Makes a span of a record; runs in the thread.
    """

    def __init__(
        self,
        name: str,
        exporter: SpanExporter,
        convert: Callable[[Record], ReadableSpan],
        safety: Safety,
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._name = name
        self._exporter = exporter
        self._convert = convert
        self._safety = safety
        self._max_waiting = max_waiting
        #: Records that should leave together.
        self._queue: deque[list[Record]] = deque()
        self._waiting = 0
        self._dropped = 0
        self._warned = -WARN_EVERY
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"dask-otel {name}", daemon=True)
        self._thread.start()

    def put(self, records: list[Record]) -> None:
        """Take records that should leave together; the oldest make place if need be."""
        if not records:
            return
        with self._changed:
            while self._queue and self._waiting + len(records) > self._max_waiting:
                self._drop(self._queue.popleft())
            self._queue.append(records)
            self._waiting += len(records)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Send what is left within ``timeout`` seconds, then shut the exporter down."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            # Shutting down ends an exporter's own waiting, but may itself wait.
            threading.Thread(target=self._shut_down, name="dask-otel shutdown", daemon=True).start()
        else:
            self._shut_down()
        if self.unsent:
            log.warning("dask-otel could not send %d spans with exporter %r", self.unsent, self._name)

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting or were dropped."""
        return self._waiting + self._dropped

    def _shut_down(self) -> None:
        with self._safety.guard("exporter shutdown"):
            self._exporter.shutdown()

    def _drop(self, records: list[Record]) -> None:
        self._waiting -= len(records)
        self._dropped += len(records)
        self._warn("dask-otel has dropped %d spans: exporter %r does not take them", self._dropped, self._name)

    def _warn(self, message: str, *details: object) -> None:
        if monotonic() - self._warned >= WARN_EVERY:
            self._warned = monotonic()
            log.warning(message, *details)

    def _run(self) -> None:
        # Else the user's instrumentation of requests or grpc would trace our own requests.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while batch := self._next_batch():
            with self._safety.guard(f"exporter {self._name}"):
                self._send(batch)
            with self._changed:
                self._waiting -= len(batch)
                self._changed.wait_for(lambda: self._closing, PAUSE)

    def _next_batch(self) -> list[Record]:
        """Wait for records that may leave together; empty when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            batch: list[Record] = []
            while self._queue and len(batch) + len(self._queue[0]) <= MAX_BATCH:
                batch += self._queue.popleft()
            if self._queue and not batch:  # a segment with more groups than fit
                batch, self._queue[0] = self._queue[0][:MAX_BATCH], self._queue[0][MAX_BATCH:]
            return batch

    def _send(self, batch: list[Record]) -> None:
        spans = []
        for record in batch:
            with self._safety.guard("conversion"):
                spans.append(self._convert(record))
        wait, longest = BACK_OFF
        for _ in range(MAX_ATTEMPTS):
            result = SpanExportResult.FAILURE
            with self._safety.guard(f"exporter {self._name}"):
                result = self._exporter.export(spans)
            # Some exporters return nothing.
            if result is not SpanExportResult.FAILURE:
                return
            self._warn(
                "dask-otel cannot send spans with exporter %r; it keeps the newest %d and tries again",
                self._name,
                self._max_waiting,
            )
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, wait * random.uniform(0.5, 1.0)):
                    break
            wait = min(2 * wait, longest)
        else:
            log.warning("dask-otel gives up %d spans after %d attempts", len(spans), MAX_ATTEMPTS)
        self._dropped += len(spans)


class FanOut:
    """Gives the same records to several pipelines, so that one that hangs holds up no other."""

    def __init__(self, pipelines: list[Pipeline]) -> None:
        self._pipelines = pipelines

    def put(self, records: list[Record]) -> None:
        """Give records to all."""
        for pipeline in self._pipelines:
            pipeline.put(list(records))

    @property
    def unsent(self) -> int:
        """Number of spans that are waiting or were dropped, over all exporters."""
        return sum(pipeline.unsent for pipeline in self._pipelines)

    def close(self, timeout: float) -> None:
        """Close all, within ``timeout`` seconds in all."""
        deadline = monotonic() + timeout
        closing = [
            threading.Thread(target=pipeline.close, args=(timeout,), daemon=True) for pipeline in self._pipelines
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(0.0, deadline - monotonic()))
