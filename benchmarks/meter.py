"""What the CPU time of one thread goes to, though some of it takes no longer than a look at the clock."""

from __future__ import annotations

from collections import Counter
from time import thread_time

from distributed.diagnostics.plugin import SchedulerPlugin

__all__ = ["Meter", "Replay"]

#: Transitions of which a hook hears at once.
AT_ONCE = 1_000


class Meter:
    """Says what the thread's CPU time was spent on; what is inside something else does not count for that."""

    def __init__(self):
        self.seconds = Counter()
        self._what, self._since = "", thread_time()

    def switch(self, what):
        """From now on it is spent on this; return what it was spent on before."""
        now = thread_time()
        self.seconds[self._what] += now - self._since
        before, self._what, self._since = self._what, what, now
        return before

    def call(self, what, function, *args, **kwargs):
        before = self.switch(what)
        try:
            return function(*args, **kwargs)
        finally:
            self.switch(before)

    async def wait(self, what, function, *args, **kwargs):
        before = self.switch(what)
        try:
            return await function(*args, **kwargs)
        finally:
            self.switch(before)

    def wrap(self, what, target, name):
        """Meter an object's method from now on."""
        function = getattr(target, name)
        setattr(target, name, lambda *args, **kwargs: self.call(what, function, *args, **kwargs))


class Replay(SchedulerPlugin):
    """Calls a hook a little later, for some transitions at once: a look at the clock would take as long as the hook."""

    def __init__(self, tasks, hook, meter):
        self._tasks, self._hook, self._meter = tasks, hook, meter
        self._steps, self._forgotten = [], {}

    def transition(self, key, start, finish, *args, stimulus_id, **details):
        # Not much later: what the hook reads would be out of the processor's cache.
        if len(self._steps) >= AT_ONCE:
            self.flush()
        self._steps.append((key, start, finish, stimulus_id, details))
        if finish == "forgotten":
            self._forgotten[key] = self._tasks[key]

    def flush(self):
        """Call the hook now."""
        self._tasks.update(self._forgotten)  # as Dask has it when it calls the hook itself
        self._meter.call("hooks", self._call)
        for key in self._forgotten:
            del self._tasks[key]
        self._steps, self._forgotten = [], {}

    def _call(self):
        hook = self._hook
        for key, start, finish, stimulus_id, details in self._steps:
            hook(key, start, finish, stimulus_id=stimulus_id, **details)
