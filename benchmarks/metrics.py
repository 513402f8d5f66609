"""What an export of metrics costs: on the event loop, and in the exporter's thread, for so many series.

Series are counted as OpenTelemetry does: a histogram is one. `python benchmarks/metrics.py 1000`
"""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from support.snapshots import everything

from dask_otel.cli.receiver import Receiver
from dask_otel.metrics.recorder import Recorder
from dask_otel.metrics.series import MetricSettings
from dask_otel.metrics.snapshot import Snapshot
from dask_otel.otlp.environment import METRICS, make_resource
from dask_otel.otlp.metrics import MetricFactory
from dask_otel.otlp.transport import SLICE, make_senders

SERIES = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
ROUNDS = 50


def filled() -> Recorder:
    """Measures of a cluster that has done all kinds of things, with about so many series."""
    recorder = Recorder(900.0, MetricSettings())
    number = 0
    while count(recorder) < SERIES and number < 200:
        everything(recorder, prefix=f"prefix-{number}", root=f"root-{number}", error=f"Error{number}")
        for activity in range(12):
            key = ("execute", f"prefix-{number}", f"activity-{activity}", "seconds")
            recorder.activity(key, key, 1.0)
        number += 1
    return recorder


def count(recorder: Recorder) -> int:
    return sum(len(each.points) for each in recorder.collect())


def main() -> None:
    recorder = filled()
    resource = make_resource(service_name="bench", instance_id="id", version="1", cluster_name="bench")
    factory = MetricFactory(resource, InstrumentationScope("dask_otel"), lambda name, value: value)
    with Receiver() as receiver:
        (sender,) = make_senders(receiver.endpoints["grpc"], METRICS)
        on_loop, in_thread = [], []
        gc.collect()

        def export() -> None:
            for _ in range(ROUNDS):
                begin = perf_counter()
                snapshot = Snapshot(1000.0, list(recorder.collect()))
                on_loop.append(perf_counter() - begin)
                begin = thread_time()
                sender.send(factory.data(snapshot))
                in_thread.append(thread_time() - begin)

        thread = threading.Thread(target=export)
        thread.start()
        thread.join()
        sender.shutdown()
        size = len(receiver.metrics[-1].SerializeToString())
    print(f"{count(recorder)} series, {size / 1e3:.0f} kB before compression, {ROUNDS} exports over gRPC:")
    print(f"  event loop, to take the snapshot: {median(on_loop) * 1e3:.2f} ms (in pieces of one metric)")
    print(
        f"  exporter's thread, CPU: {median(in_thread) * 1e3:.1f} ms (budget 20), with rests every {SLICE * 1e3:g} ms"
    )


if __name__ == "__main__":
    main()
