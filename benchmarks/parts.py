"""What the bridge costs a live scheduler, part by part.

A difference of some per mille between two large and noisy numbers cannot be seen. So the CPU time of the bridge's
parts is measured where they run, and added up: of its threads and gRPC's by the kernel's counters, of its parts on the
event loop with a clock around them. The same batches without the bridge are what this is compared with. Their
difference, which contains what no clock is around, such as a colder cache, is printed beside, with its noise.

This file is also the preload of the scheduler that it starts: it switches the bridge on and off there.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import statistics
import sys
import threading
import types
from collections import Counter
from pathlib import Path
from time import monotonic, perf_counter, sleep, thread_time

from distributed.diagnostics.plugin import SchedulerPlugin

#: Of calls of the hook, one in so many is timed; a call that takes longer than this many seconds was interrupted.
SAMPLE, INTERRUPTED = 13, 1e-4
#: Seconds after which exports of metrics are as rare as they are from then on.
FIRST_EXPORTS = 35.0
#: Methods of Dask that the bridge wraps: on the scheduler, and on its extension for spans.
WRAPPED = ("digest_metric", "new_task", "stimulus_task_erred"), ("observe_tasks", "heartbeat")
#: Of these, the ones that take hardly longer than reading a clock.
SHORT = ("digest_metric", "new_task")


class Clock:
    """Adds up the CPU time of parts on the event loop, each without what is inside it of others."""

    def __init__(self):
        self.seconds, self.calls = Counter(), Counter()
        self._inner = [0.0]
        #: Seconds that a clock adds to each call.
        self.empty = {read: self._calibrate(read) for read in (perf_counter, thread_time)}

    def _calibrate(self, read):
        wrapped = self.wrap("", lambda *args, **kwargs: None, read)
        for _ in range(2):
            self.seconds.clear()
            for _ in range(20_000):
                wrapped(1, 2, 3, key=4)
        return self.seconds.pop("") / 20_000

    def wrap(self, part, function, read=thread_time):
        """Time each call of a function."""
        inner, seconds, calls = self._inner, self.seconds, self.calls

        def timed(*args, **kwargs):
            inner.append(0.0)
            begin = read()
            try:
                return function(*args, **kwargs)
            finally:
                took = read() - begin
                seconds[part] += took - inner.pop()
                inner[-1] += took
                calls[part] += 1

        return timed

    def sample(self, part, function):
        """Time one call in ``SAMPLE`` of a function that takes hardly longer than reading a clock."""
        seconds, calls = self.seconds, self.calls
        empty = self.empty[perf_counter]
        number = 0

        def timed(*args, **kwargs):
            nonlocal number
            number += 1
            if number % SAMPLE:
                return function(*args, **kwargs)
            begin = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = perf_counter() - begin - empty
                if took < INTERRUPTED:
                    seconds[part] += took * SAMPLE
                    calls[part] += SAMPLE

        return timed

    def steps(self, part, coroutine_function):
        """Time the steps of a coroutine."""

        @types.coroutine
        def step_by_step(coroutine):
            step, value = self.wrap(part, coroutine.send), None
            while True:
                try:
                    waits = step(value)
                except StopIteration as done:
                    return done.value
                value = yield waits

        async def timed(*args, **kwargs):
            return await step_by_step(coroutine_function(*args, **kwargs))

        return timed


class Probe:
    """Switches the bridge on and off in the scheduler, and says what was spent on what."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.clock = Clock()
        self._plugin = None
        self._taps = []
        self._collecting = 0.0
        gc.callbacks.append(self._collected)

    def _collected(self, phase, info):
        if phase == "start":
            self._collecting = thread_time()
        else:
            self.clock.seconds["garbage collection"] += thread_time() - self._collecting

    async def switch(self, endpoint=None):
        """Register the bridge, or unregister it and wait for its end."""
        from dask_otel import OTelPlugin

        for target, name, taps in self._taps:
            setattr(target, name, taps)  # as the bridge has left it, or it would not take it back
        if self._plugin is not None:
            self.scheduler.remove_plugin("empty")
            await self._plugin.before_close()
        for target, name, _ in self._taps:
            delattr(target, name)
        self._plugin, self._taps = None, []
        if endpoint:
            self._plugin = OTelPlugin(endpoint)
            targets = [(self.scheduler, name) for name in WRAPPED[0]]
            targets += [(self.scheduler.extensions["spans"], name) for name in WRAPPED[1]]
            for target, name in targets:
                setattr(target, name, self._around(name, getattr(target, name), "dask"))
            await self.scheduler.register_scheduler_plugin(plugin=self._plugin, idempotent=False)
            for target, name in targets:
                self._taps.append((target, name, getattr(target, name)))
                setattr(target, name, self._around(name, getattr(target, name), "wrapper"))
            self._clock_bridge(self._plugin, self._plugin._bridge)
        await asyncio.sleep(0.1)
        gc.collect()

    def _around(self, name, function, whose):
        if name in SHORT:
            return self.clock.sample(f"{whose}: {name}", function)
        return self.clock.wrap("dask" if whose == "dask" else f"wrapper: {name}", function)

    def _clock_bridge(self, plugin, bridge):
        clock, sweep = self.clock, bridge.sweep
        plugin.transition = clock.sample("hook: transition", plugin.transition)
        # In the same place, what a clock around a call that does nothing shows: caches are colder than in a loop.
        empty = SchedulerPlugin()
        empty.transition = clock.sample("empty hook", empty.transition)
        self.scheduler.add_plugin(empty, name="empty")
        if bridge.run_times:  # called from the hook, and too long for its samples
            bridge.run_times._catch_up = clock.wrap("verdicts: counting", bridge.run_times._catch_up)
        plugin.update_graph = clock.wrap("hook: update_graph", plugin.update_graph)
        plugin.log_event = clock.wrap("hook: log_event", plugin.log_event)
        for name in ("_collect", "_send", "_send_metrics", "sweep"):
            setattr(sweep, name, clock.steps(f"sweep: {name.strip('_')}", getattr(sweep, name)))

    def read(self):
        """CPU seconds of all threads by name, and of the parts."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        cpu = Counter()
        for task in Path("/proc/self/task").iterdir():
            name = re.sub(r"[-_ ]?\d.*", "", names.get(int(task.name), "gRPC's own"))
            cpu[name] += int((task / "schedstat").read_text().split()[0]) / 1e9
        parts, calls = Counter(self.clock.seconds), self.clock.calls
        for part in calls:
            if part not in ("hook: transition", "empty hook") and part.partition(": ")[2] not in SHORT:
                parts[part] -= calls[part] * self.clock.empty[thread_time]
        parts["hook: transition"] -= parts["empty hook"]
        # The clock around Dask's method is inside the one around the wrapper.
        per_call = parts.pop("empty hook", 0.0) / max(1, calls["empty hook"])
        for name in SHORT:
            parts[f"wrapper: {name}"] -= parts.pop(f"dask: {name}", 0.0) + calls[f"wrapper: {name}"] * per_call
        parts.pop("dask", None)
        return {"threads": cpu, "parts": parts, "calls": dict(calls), "empty plugin": self.empty_plugin()}

    def empty_plugin(self):
        """Seconds that Dask needs to call a plugin that does nothing, for the six transitions of a task."""
        plugin = SchedulerPlugin()
        details = dict.fromkeys(("nbytes", "type", "typename", "worker", "metadata", "thread", "status", "startstops"))
        best = []
        for _ in range(5):
            begin = thread_time()
            for _ in range(200):
                for kwargs in (details, {}, {}, {}, {}, {}):
                    plugin.transition("key", "start", "finish", stimulus_id="stimulus", **kwargs)
            best.append((thread_time() - begin) / 200)
        return min(best)


async def dask_setup(scheduler):
    probe = Probe(scheduler)

    async def handle(comm=None, what=None, endpoint=None):
        if what == "switch":
            await probe.switch(endpoint)
        return json.dumps(probe.read())

    scheduler.handlers["probe"] = handle


def batch(client, number, options):
    """Run spans of no-op tasks, one after the other; return their ids."""
    from distributed import span

    ids = []
    for each in range(options.spans):
        with span(f"batch {number}.{each}") as span_id:
            name = f"{number}-{each}"
            keys = [f"noop{n % options.prefixes}-{name}-{n}" for n in range(options.tasks)]
            client.gather(client.map(int, range(options.tasks), key=keys if options.prefixes > 1 else f"noop{name}"))
        ids.append(span_id)
    return ids


def run(options):
    """Differences of what the probe reads before and after each batch, and seconds without work at its end."""
    from live import cluster

    from dask_otel import trace_id
    from dask_otel.cli.receiver import Receiver

    def probe(**message):
        return json.loads(client.sync(client.scheduler.probe, **message))

    def difference(after, before):
        return {
            kind: {name: value - before[kind].get(name, 0) for name, value in after[kind].items()}
            for kind in ("threads", "parts", "calls")
        } | {"empty plugin": after["empty plugin"]}

    results, number, took = {"with": [], "without": []}, 0, 0.0
    with (
        Receiver() as receiver,
        cluster("--preload", __file__, OTEL_EXPORTER_OTLP_PROTOCOL=options.protocol) as (_, client),
    ):
        batch(client, number, options)  # warms up
        for turn in range(options.turns):
            for mode in ("with", "without") if turn % 2 == 0 else ("without", "with"):
                probe(what="switch", endpoint=receiver.endpoints[options.protocol] if mode == "with" else None)
                number += 1
                batch(client, number, argparse.Namespace(**vars(options) | {"spans": 1, "tasks": 10}))
                if mode == "with":
                    sleep(FIRST_EXPORTS)
                for _ in range(options.batches):
                    number += 1
                    before, begin = probe(), monotonic()
                    ids = batch(client, number, options)
                    if mode == "with":
                        for span_id in ids:
                            receiver.wait_for_trace(trace_id(span_id), timeout=120)
                        took = monotonic() - begin
                    sleep(max(0.0, took - (monotonic() - begin)))  # idle as long on both sides
                    results[mode].append(difference(probe(), before))
                    total = sum(results[mode][-1]["threads"].values())
                    print(f"  {mode:8} {total * 1e3:8.0f} ms", file=sys.stderr, flush=True)
    return results


def report(results, options):
    tasks, spans = options.tasks * options.spans, options.spans
    base = [sum(each["threads"].values()) for each in results["without"]]
    whole = statistics.mean(base)
    with_ = results["with"]

    def row(name, values, calls=""):
        mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
        print(
            f"  {name:34} {mean / tasks * 1e6:8.2f} ± {error / tasks * 1e6:4.2f} µs a task "
            f"{mean / spans * 1e3:8.2f} ms a span {mean / whole:7.2%} {calls}"
        )

    def column(kind, name, mode="with"):
        return [each[kind].get(name, 0.0) for each in results[mode]]

    print(f"{len(base)} batches of {spans} spans with {options.tasks} tasks, over {options.prefixes} prefixes")
    row("without the bridge", base)
    row("of that, garbage collection", column("parts", "garbage collection", "without"))
    print("with the bridge, on the event loop:")
    added = [each["empty plugin"] * tasks for each in with_]
    row("calls of an empty plugin", added)
    for name in sorted({name for each in with_ for name in each["parts"]} - {"garbage collection", ""}):
        values = column("parts", name)
        added = [one + other for one, other in zip(added, values, strict=True)]
        row(name, values, f"{statistics.mean(column('calls', name)) / spans:8.1f} calls a span")
    print("in other threads:")
    ours = {name for each in with_ for name in each["threads"] if name.startswith(("dask-otel", "gRPC"))}
    for name in sorted(ours):
        values = column("threads", name)
        added = [one + other for one, other in zip(added, values, strict=True)]
        row(name, values)
    row("all of these", added)
    print(f"with the bridge / without, by parts: {1 + statistics.mean(added) / whole:.4f}")
    pairs = list(zip([sum(each["threads"].values()) for each in with_], base, strict=True))
    samples = sorted(
        sum(one for one, _ in some) / sum(other for _, other in some)
        for some in (random.choices(pairs, k=len(pairs)) for _ in range(2_000))
    )
    middle = sum(one for one, _ in pairs) / sum(other for _, other in pairs)
    print(f"as a difference: {middle:.4f}, 95 % of samples {samples[50]:.4f} … {samples[-50]:.4f}")
    row("garbage collection, with", column("parts", "garbage collection"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000, help="of a span")
    parser.add_argument("--spans", type=int, default=20, help="of a batch, one after the other")
    parser.add_argument("--turns", type=int, default=4, help="with the bridge, and as many without")
    parser.add_argument("--batches", type=int, default=3, help="of a turn")
    parser.add_argument("--prefixes", type=int, default=1, help="of the tasks of a span")
    parser.add_argument("--protocol", choices=["grpc", "http/protobuf"], default="grpc")
    options = parser.parse_args()
    report(run(options), options)


if __name__ == "__main__":
    main()
