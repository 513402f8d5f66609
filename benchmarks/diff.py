"""``dask-otel diff`` of two traces: how long the command takes, with its imports, and how long its steps take.

Each trace is a file of OTLP in JSON with 3,000 spans: 900 groups of 300 steps in 30 Dask spans, and task spans.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

SPANS, DASK_SPANS, PREFIXES, GROUPS = 3000, 30, 10, 900
COMMAND = [sys.executable, "-c", "from dask_otel.cli import main; main()"]


def attributes(values):
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return [{"key": key, "value": {kinds[type(value)]: value}} for key, value in values.items()]


def write(path, number):
    """Write the trace of a run in which each step takes longer than in the run with the number before."""
    trace_id, begin, spans = f"{number:032x}", 1_800_000_000 + 1000 * number, []

    def add(name, kind, dask_path, start, end, parent="", **values):
        values = {"dask.kind": kind, "dask.span.path": dask_path, "dask.span.root": "etl"} | values
        spans.append(
            {
                "traceId": trace_id,
                "spanId": f"{number:08x}{len(spans) + 1:08x}",
                "parentSpanId": parent,
                "name": name,
                "startTimeUnixNano": str(round((begin + start) * 1e9)),
                "endTimeUnixNano": str(round((begin + end) * 1e9)),
                "attributes": attributes(values),
            }
        )
        return spans[-1]["spanId"]

    whole = 90.0 * number
    parts = {f"dask.waterfall.{part}.seconds": 16 * whole / 4 for part in ("cpu", "noncpu", "handed", "tail")}
    critical = {"dask.critical.seconds": whole * 0.9, "dask.critical.gap.graph.seconds": whole * 0.1}
    numbers = {"dask.span.result": "success", "dask.task.count": 10 * GROUPS, "dask.waterfall.threads": 16.0}
    top = add("etl", "span", "etl", 0.0, whole, **numbers | parts | critical)
    inner = [add(f"span {each}", "span", f"etl / span {each}", 0.0, whole, top) for each in range(DASK_SPANS)]
    for each in range(GROUPS):
        place, prefix = each % DASK_SPANS, f"step-{each // DASK_SPANS % PREFIXES}"
        names = {"dask.task.prefix": prefix, "dask.group.name": f"{prefix}-{number}-{each}"}
        numbers = {"dask.task.count": 10, "dask.task.completed": 10, "dask.duration.compute": 0.5 * number}
        numbers |= {f"dask.task.duration.{name}": 0.05 * number for name in ("p50", "p95", "max")}
        numbers |= {f"dask.execute.activity_{activity}.seconds": 0.1 for activity in range(8)}
        numbers |= {"dask.critical.seconds": 0.09 * number, "dask.critical.data.seconds": 0.09 * number}
        start = 0.1 * each * number
        add(prefix, "group", f"etl / span {place}", start, start + number, inner[place], **names, **numbers)
    while len(spans) < SPANS:
        place = len(spans) % DASK_SPANS
        values = {
            "dask.task.prefix": "step-1",
            "dask.task.key": f"step-1-{len(spans)}",
            "dask.worker.address": "tcp://w:1",
        }
        add("step-1", "task", f"etl / span {place}", 0.0, 1.0, inner[place], **values)
    resource = {"attributes": attributes({"service.name": "dask-scheduler"})}
    lines = (
        json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans[each : each + 500]}]}]})
        for each in range(0, len(spans), 500)
    )
    Path(path).write_text("\n".join(lines), encoding="utf-8")
    return path


def timed(function, *arguments):
    begin = perf_counter()
    result = function(*arguments)
    return result, perf_counter() - begin


def steps(old, new):
    """Print how long the steps take in a process of their own."""
    _, imports = timed(__import__, "pandas")
    from dask_otel.analysis import load
    from dask_otel.analysis.compare import compare
    from dask_otel.analysis.run import runs_of

    loaded, loading = timed(lambda: [load(old), load(new)])
    runs, reading = timed(lambda: [runs_of(each) for each in loaded])
    _, comparing = timed(compare, *runs)
    print(
        f"importing pandas {imports * 1e3:.0f} ms, loading both {loading * 1e3:.0f} ms, runs of spans "
        f"{reading * 1e3:.0f} ms, comparing {comparing * 1e3:.1f} ms"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.steps:
        steps(*chosen.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        old, new = (str(write(Path(folder) / f"{number}.jsonl", number)) for number in (1, 2))
        walls, cpus = [], []
        for _ in range(chosen.rounds):
            before = os.times()
            done, wall = timed(
                lambda: subprocess.run([*COMMAND, "diff", old, new], capture_output=True, text=True, check=True)
            )
            after = os.times()
            walls.append(wall)
            cpus.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert "100% slower" in done.stdout, done.stdout
        print(f"dask-otel diff: {median(walls):.2f} s, of which CPU {median(cpus):.2f} s")
        subprocess.run([sys.executable, __file__, "--steps", old, new], check=True)


if __name__ == "__main__":
    main()
