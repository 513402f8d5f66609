"""How much later a scheduler starts with the bridge, and for how long its event loop is held meanwhile.

Each start is that of a process of its own, with and without in turn: what is imported is imported once. ``distributed``
is imported before the clock starts. The bridge is registered on a scheduler that runs, as a person would on a cluster.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import subprocess
import sys
from time import perf_counter

#: What a scheduler is started with; the first is without the bridge.
KINDS = ("without", "grpc", "http/protobuf")
ROUNDS = 7


async def _held(tick: float = 0.0005) -> float:
    """Return for how long the event loop was held at most, once it is cancelled."""
    longest, before = 0.0, perf_counter()
    try:
        while True:
            await asyncio.sleep(tick)
            now = perf_counter()
            longest, before = max(longest, now - before), now
    except asyncio.CancelledError:
        return max(longest, perf_counter() - before)


async def _start(kind: str) -> list[float]:
    """Return ms that the first start took, the second, and the longest hold by a bridge that is registered later."""
    import dask
    from distributed import Scheduler

    arguments = {"port": 0, "dashboard_address": "127.0.0.1:0"}
    preload = [] if kind == "without" else ["dask_otel"]
    if preload and len(sys.argv) > 2:
        async with Scheduler(**arguments) as scheduler:
            import dask_otel

            plugin = dask_otel.OTelPlugin()  # a client has imported that much
            watching = asyncio.create_task(_held())
            await asyncio.sleep(0.01)
            await scheduler.register_scheduler_plugin(plugin, idempotent=True)
            watching.cancel()
            return [0.0, 0.0, 1000 * await watching]
    took = []
    for _ in range(2):
        with dask.config.set({"distributed.scheduler.preload": preload}):
            begin = perf_counter()
            async with Scheduler(**arguments):
                took.append(1000 * (perf_counter() - begin))
    return [*took, 0.0]


def main() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for number in range(ROUNDS + 1):
        for kind in KINDS:
            env = os.environ | variables | ({} if kind == "without" else {"OTEL_EXPORTER_OTLP_PROTOCOL": kind})
            row = []
            for more in ((), ("registered",)):
                command = [sys.executable, __file__, kind, *more]
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                row.append([float(each) for each in done.stdout.split()])
            if number:  # the first writes bytecode, if it may, and warms the disk's cache
                found[kind].append([*row[0][:2], row[1][2]])
    print("| | first start of a process, ms | the next | registered later: longest hold of the event loop, ms |")
    print("|---|---:|---:|---:|")
    for kind, rows in found.items():
        first, following, held = (
            f"{statistics.median(column):.0f} ({min(column):.0f} … {max(column):.0f})"
            for column in zip(*rows, strict=True)
        )
        bridge = kind != "without"
        print(f"| {'over ' + kind if bridge else 'without the bridge'} | {first} | {following} | {held * bridge} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        logging.disable(logging.CRITICAL)
        print(*asyncio.run(_start(sys.argv[1])))
    else:
        main()
