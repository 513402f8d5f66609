"""Runs two clusters side by side, one with the bridge, and compares them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from support.environment import environment
from support.misbehaving import Misbehaving
from support.wire import Wire

#: What the collector does in turn, and for how many seconds.
WEATHER = (("up", 12.0), ("down", 4.0), ("up", 6.0), ("hang", 5.0), ("up", 8.0), ("cut", 3.0))


@dataclass
class Story:
    """What was seen of one cluster: a sample every few seconds, then the end."""

    samples: list[dict] = field(default_factory=list)
    end: dict = field(default_factory=dict)


@dataclass
class Soak:
    """What came of it."""

    bridge: Story
    plain: Story
    #: Spans that arrived, each counted once, by trace.
    spans: int
    traces: int
    weather: int


def soak(seconds: float, say: Callable[[str], None] = lambda line: None, forget: str = "null") -> Soak:
    """Run for so many seconds; ``forget``: the setting ``otel.forget-spans`` of the one with the bridge."""
    bridge, plain = Story(), Story()
    with Misbehaving("grpc") as receiver, Wire(receiver.endpoint) as wire:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": wire.endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
        children = [_start("bridge", bridge, env, say, forget), _start("plain", plain, {}, say)]
        changes = _flap(wire, seconds)
        for process, _ in children:
            process.stdin.write("stop\n")
            process.stdin.close()
        for process, reader in children:
            assert process.wait(120) == 0
            reader.join(10)
        ids = {(span.trace_id, span.span_id): span for span in receiver.wait(lambda spans: True, timeout=1)}
    return Soak(bridge, plain, len(ids), len({trace for trace, _ in ids}), changes)


def _flap(wire: Wire, seconds: float) -> int:
    """Have the collector come and go for so long; in the end it is there."""
    end, changes = monotonic() + seconds, 0
    over = threading.Event()
    while monotonic() < end:
        mode, length = WEATHER[changes % len(WEATHER)]
        wire.stop()
        wire.mode = mode
        wire.cut_after = random.randrange(500, 20_000)
        if mode != "down":
            wire.start()
        over.wait(min(length, max(0.0, end - monotonic())))
        changes += 1
    wire.stop()
    wire.mode = "up"
    wire.start()
    return changes


def _start(kind: str, story: Story, env: dict[str, str], say: Callable[[str], None], forget: str = "null"):
    process = subprocess.Popen(
        [sys.executable, "-m", "soak.child", kind, forget],
        env=environment(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def read() -> None:
        for line in process.stdout:
            values = json.loads(line)
            say(f"{kind} {line.strip()}")
            if values.get("end"):
                story.end = values
            else:
                story.samples.append(values)
        process.stdout.close()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return process, reader
