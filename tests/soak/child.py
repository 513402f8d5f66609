"""A cluster that works until it is told to stop, and says how it is doing, a line of JSON each time."""

from __future__ import annotations

import gc
import json
import sys
import threading
from time import monotonic, sleep

import dask
import psutil
from distributed import Client, LocalCluster, span
from distributed.utils_test import inc

SETTINGS = {
    "otel.traces.idle-timeout": "200ms",
    "otel.sweep-interval": "100ms",
    "distributed.scheduler.dashboard.status.task-stream-length": 1,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.admin.low-level-log-length": 10,
    "distributed.admin.log-length": 10,
}
#: Seconds between two roots: several run at once all the same, until they have settled.
PAUSE = 0.1
#: Roots between two changes of the number of workers.
EVERY = 40


def main(bridge: bool, forget: str) -> None:
    """Run; a line on the standard input ends it. ``forget``: the setting ``otel.forget-spans``, or ``null``."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    preload = ["dask_otel"] if bridge else []
    process = psutil.Process()
    with (
        dask.config.set(SETTINGS | {"distributed.scheduler.preload": preload, "otel.forget-spans": None}),
        dask.config.set({"otel.forget-spans": forget} if forget != "null" else {}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        plugin = cluster.scheduler.plugins.get("dask-otel")
        roots, last = 0, monotonic()
        while not stop.is_set():
            work(client, roots)
            roots += 1
            stop.wait(PAUSE)
            if roots % EVERY == 0:
                cluster.scale((1, 3, 2)[roots // EVERY % 3])
            if monotonic() - last > 5:
                last = monotonic()
                gc.collect()
                spans = len(cluster.scheduler.extensions["spans"].spans)
                known = {"roots": roots, "rss": process.memory_info().rss, "spans": spans}
                say(known | (state(plugin) if plugin else {}))
        while plugin and plugin._bridge.status()["open_segments"]:
            sleep(0.1)
        end = state(plugin) if plugin else {}
    # The bridge has closed: what it could not send by then is lost.
    say({"end": True, "roots": roots} | end | (totals(plugin) if plugin else {}))


def work(client: Client, number: int) -> None:
    """A root with two spans in it, and one task that fails."""
    with span(f"root {number % 7}"):
        with span("one"):
            first = client.map(inc, range(10), key=f"inc-{number}")
        with span("two"):
            second = client.map(inc, first, key=f"again-{number}")
            third = client.submit(int, "x", key=f"bad-{number}")
        client.gather(second)
        third.exception()


def state(plugin) -> dict:
    """How the bridge is doing."""
    bridge = plugin._bridge.status()
    seen = {"sweep": bridge["sweep"].get("seconds", 0.0), "open": bridge["open_segments"]}
    return seen | {"forgotten": bridge["forgotten"]} | totals(plugin)


def totals(plugin) -> dict:
    """What became of its spans."""
    (exporter,) = plugin.sink.status()["exporters"]
    return {
        "sent": sum(exporter["sent"].values()),
        "dropped": sum(each["count"] for each in exporter["dropped"]),
        "waiting": exporter["queue"]["spans"] + exporter["in_flight"],
        "errors": len(plugin.safety.failures) if hasattr(plugin, "safety") else 0,
    }


def say(values: dict) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(bridge=sys.argv[1] == "bridge", forget=sys.argv[2])
