"""Events that tasks in the same process share with a test: a module is pickled by its name."""

from __future__ import annotations

import threading

started = threading.Event()
go = threading.Event()
done = threading.Event()


def reset() -> None:
    for switch in (started, go, done):
        switch.clear()
