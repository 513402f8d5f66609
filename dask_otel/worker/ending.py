"""A thread that ends the spans of tasks.

A run ends on the worker's event loop, and a span processor may take any time over the end of a span: one that exports
at once, to a collector that does not answer, would stop heartbeats. So spans end in this thread, one after the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from time import monotonic

from ..safety import Safety, log

__all__ = ["EndingThread"]

#: Ends that wait, at most: beyond that, span processors are too slow or hang, and spans stay without an end.
MAX_WAITING = 10_000
#: Seconds after which the thread ends if there is nothing to do.
IDLE = 5.0
#: Seconds in which more ends are collected: waking the thread for each would cost as much as an end.
LINGER = 0.05

End = Callable[[], None]


class EndingThread:
    """Calls functions in a thread of its own, which runs while there is something to do."""

    def __init__(self, safety: Safety, max_waiting: int = MAX_WAITING) -> None:
        self._safety = safety
        self._max_waiting = max_waiting
        self._condition = threading.Condition()
        self._waiting: deque[End] = deque()
        self._thread: threading.Thread | None = None
        self._stops = False
        self._lingers = False
        #: Ends that were given up.
        self.dropped = 0

    def call(self, end: End) -> None:
        """Have a function called soon; returns at once."""
        with self._condition:
            if len(self._waiting) >= self._max_waiting:
                self.dropped += 1
                if self.dropped > 1:
                    return
            else:
                self._waiting.append(end)
                if self._thread is None:
                    self._start()
                elif not self._lingers:
                    self._condition.notify()
                return
        log.warning(
            "dask-otel drops spans of tasks: a span processor of the process's tracer provider is too slow or hangs; "
            "%d spans of tasks wait for it",
            self._max_waiting,
        )

    def stop(self, timeout: float) -> bool:
        """Have the thread end once nothing waits; return whether it has in so many seconds. Blocks."""
        deadline = monotonic() + timeout
        while True:
            with self._condition:
                self._stops = True
                self._condition.notify()
                thread = self._thread  # another one, if a span processor has ended it
            if thread is None:
                return True
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                return False

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="dask-otel task spans", daemon=True)
        # Not in the context of a task: instrumented threads take over the context that starts them.
        Context().run(thread.start)
        self._thread = thread

    def _run(self) -> None:
        ends: deque[End] = deque()
        try:
            while self._collect(ends):
                while ends:
                    end = ends.popleft()
                    try:  # half the time of a guard
                        end()
                    except Exception as error:  # noqa: BLE001 -- handed to the one place that catches everything
                        self._safety.caught("task span (end)", error)
                    del end  # it refers to a span
        except BaseException:  # a span processor may end the thread; then another one goes on
            with self._condition:
                self._thread = None
                self._waiting.extendleft(reversed(ends))
                if self._waiting:
                    self._start()
            raise

    def _collect(self, ends: deque[End]) -> bool:
        """Wait for ends and take them; return whether there are any."""
        with self._condition:
            while not self._waiting:
                if self._stops or not (self._condition.wait(IDLE) or self._waiting):
                    self._thread = None  # before anybody can add an end
                    return False
            if not self._stops:
                self._lingers = True
                self._condition.wait(LINGER)
                self._lingers = False
            ends.extend(self._waiting)
            self._waiting.clear()
            return True
